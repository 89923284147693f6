"""One notebook through nbdev's own test runner, in a process of its own: `python -m tests.run_notebook NOTEBOOK [FLAG ...]`.

The flags name the cells to leave out. `python -m tests.run_notebook --serve` runs those that it is told on stdin, a line of JSON
each, and answers with the exit code. Where the system can fork, it imports the libraries once, and each notebook runs in a child
that begins with them: the package itself is imported anew by each.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb

# what most notebooks import, and what starts no thread by being imported; not triton, which looks at the environment when it is (roma brings it)
LIBRARIES = (
    "torch torch.nn.functional torch.testing torch.utils.data torchio numba numba.core.caching jaxtyping beartype nibabel SimpleITK pydicom"
    " scipy.ndimage scipy.optimize scipy.spatial.transform pandas matplotlib PIL.Image typer fastcore.test h5py imageio"
)


def run(path, left_out):
    "Did every cell pass?"
    everything = get_config().tst_flags.split()
    passed, _ = test_nb(Path(path).resolve(), skip_flags=everything, force_flags=sorted(set(everything) - set(left_out)), basepath=get_config().config_path)
    return passed


def child(job):
    "Run a notebook, with what it prints in the file `log`, and end with its exit code."
    os.setsid()  # so that what it started can be ended with it
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(null, 0), os.dup2(log, 1), os.dup2(log, 2)
    sys.stdin = open(0, closefd=False)
    sys.argv = [sys.argv[0], job["path"]]
    code = 1
    try:
        code = int(not run(job["path"], job["left_out"]))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def serve():
    for name in LIBRARIES.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert not {name.split(".")[0] for name in sys.modules} & {"diffpose", "triton"}
    for line in sys.stdin:
        job = json.loads(line)
        pid, until = os.fork() or child(job), time.monotonic() + job["timeout"]
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
            time.sleep(0.05)
        if ended == (0, 0):
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        print(json.dumps(None if ended == (0, 0) else os.waitstatus_to_exitcode(ended[1])), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(not run(sys.argv[1], sys.argv[2:]))
