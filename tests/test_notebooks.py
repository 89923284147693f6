"""Every notebook runs from top to bottom, in a process of its own, and leaves no file behind.

The tutorials tell stories with what the API notebooks test: they run where `DIFFPOSE_SLOW` is set, and with `make notebooks`.
"""

import atexit
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tools.notebook import ROOT, directives, environment, flags_left_out, load, notebooks

TIMEOUT_S = 900
NEEDS = {"_kernels_cuda": "triton"}  # torch brings it on Linux only
WHY = {"data": "no real scans: set DIFFPOSE_DATA", "slow": "not asked for: set DIFFPOSE_SLOW=1", "cuda": "no GPU"}


_server = []  # of this worker


def ran(path, left_out, folder):
    "Exit code of a notebook's run (None: it took too long), and what it printed."
    if not hasattr(os, "fork"):
        command = [sys.executable, "-m", "tests.run_notebook", str(path), *left_out]
        try:
            run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None, ""
        return run.returncode, run.stdout + run.stderr
    if not _server or _server[0].poll() is not None:
        command = [sys.executable, "-m", "tests.run_notebook", "--serve"]
        _server[:] = [subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)]
        atexit.register(_server[0].kill)
    log = folder / "said.txt"
    job = {"path": str(path), "left_out": left_out, "log": str(log), "timeout": TIMEOUT_S}
    print(json.dumps(job), file=_server[0].stdin, flush=True)
    code = json.loads(_server[0].stdout.readline())
    return code, log.read_text(errors="replace") if log.exists() else ""


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_notebook(path, record_property, tmp_path):
    for name, library in NEEDS.items():
        if name in path.name and importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    if path.parent.name == "tutorials" and os.environ.get("DIFFPOSE_SLOW", "0") in ("", "0"):
        pytest.skip("a tutorial: make notebooks, or DIFFPOSE_SLOW=1")
    nb = load(path)
    left_out = sorted(flags_left_out(nb))
    for flag in left_out:
        count = sum(flag in directives(cell) for cell in nb["cells"])
        record_property("left out", f"{path.relative_to(ROOT).as_posix()}: {count} cell(s) flagged {flag} did not run ({WHY[flag]})")
    before = set(path.parent.iterdir())
    code, said = ran(path, left_out, tmp_path)
    if code is None:
        pytest.fail(f"still running after {TIMEOUT_S} s", pytrace=False)
    if code:
        pytest.fail(said[-8000:], pytrace=False)
    new = {p.name for p in set(path.parent.iterdir()) - before} - {"__pycache__", ".ipynb_checkpoints"}
    new -= {"build"} if path.parent == ROOT else set()  # where setuptools builds the wheel for another test beside
    assert not new, f"it left {sorted(new)} behind: write into a temporary folder"
