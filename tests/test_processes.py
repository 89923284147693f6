"""What a command or a render meets outside of one undisturbed process: forks, threads, terminals, and machine code that was damaged on the disk."""

import os
import re
import struct
import subprocess
import sys

import pytest

from tools.notebook import ROOT

SCENE = """
import os, sys, warnings
import torch
from diffpose.kernels import cpu, reference

generator = torch.Generator().manual_seed(0)
volume = torch.rand(28, 20, 24, generator=generator, dtype=torch.float64).float().permute(2, 1, 0)
labels = torch.randint(0, 3, volume.shape, generator=generator)
middle = torch.tensor(volume.shape, dtype=torch.float64) / 2
source = middle + 60 * torch.nn.functional.normalize(torch.randn(2, 1, 3, generator=generator, dtype=torch.float64), dim=-1)
target = middle - 0.8 * (source - middle) + 9 * torch.randn(2, 301, 3, generator=generator, dtype=torch.float64)
weight = torch.randn(2, 3, 301, generator=generator)


def everything(rules=("siddon", "trilinear")):
    "What every entry point returns."
    out = []
    for rule in rules:
        for more in ({}, {"jacobian": True}, {"jacobian": True, "reducefn": "max"}, {"labels": labels, "n_channels": 3}):
            out += [x for x in cpu.integrate(volume, source, target, rule=rule, **more) if x is not None]
        out.append(cpu.channel_jacobian(volume, source, target, weight, labels, rule=rule))
        out.append(cpu.volume_gradient(volume, source, target, weight[:, :1].contiguous(), rule=rule))
        out.append(cpu.frame_gradient(out[2], weight[:, 0].contiguous(), target))
    return out


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
"""


def run(code, scene=SCENE, timeout=300, **env):
    "What Python prints, on two cores."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2", **env}
    done = subprocess.run([sys.executable, "-c", scene + code], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@forks
def test_a_forked_child_renders_as_its_parent_did():
    "Every kernel, to the last bit, after the parent's threads have run."
    run("""
here = everything()
child = os.fork()
if child == 0:
    try:
        os._exit(0 if cpu.threads.forked() and same(here, everything()) else 3)
    finally:
        os._exit(4)
assert os.waitpid(child, 0)[1] == 0
assert not cpu.threads.forked() and same(here, everything())
""")


@forks
def test_workers_of_a_pool_and_of_a_loader_render():
    "The workers fork from a process that has rendered; the parent renders on, and so do its threads."
    code = """
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from torch.utils.data import DataLoader, Dataset

from diffpose.calibration import carm_pose
from diffpose.drr import DRR
from diffpose.phantom import make_phantom

drr = DRR(make_phantom(spacing=12.0), sdd=1020.0, height=96, delx=4.0)


def image(angle):
    with torch.no_grad():
        return drr(carm_pose(float(angle), 0.0, 850.0))[0]


class Images(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        return image(k)


here = [image(k) for k in range(4)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert same(pool.map(image, range(4)), here)
loaded = DataLoader(Images(), batch_size=None, num_workers=2, multiprocessing_context="fork")
assert same(loaded, here)
with ThreadPoolExecutor(2) as pool:
    assert same(pool.map(image, range(4)), here)
"""
    run(code)


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_threads_render_side_by_side(layer):
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numba

sys.setswitchinterval(1e-5)
here = everything(["siddon"])
assert numba.threading_layer() == os.environ["NUMBA_THREADING_LAYER"]
with ThreadPoolExecutor(4) as pool:
    for there in pool.map(lambda _: everything(["siddon"]), range(40)):
        assert same(here, there)
"""
    run(code, NUMBA_THREADING_LAYER=layer)


def _damage(path, how):
    data = path.read_bytes()
    if how == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.write_bytes(data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :])


def test_damaged_machine_code_is_compiled_anew(tmp_path):
    "A warning, the same numbers, and silence from then on."
    code = """
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    print(cpu.frame_gradient(torch.ones(2, 9, 6), torch.ones(2, 9), torch.ones(2, 9, 3, dtype=torch.float64)).sum().item())
print(*(str(w.message) for w in found if "machine code" in str(w.message)))
"""
    env = {"NUMBA_CACHE_DIR": str(tmp_path)}
    first = run(code, **env).stdout
    assert "machine code" not in first
    for files, how in (("*.nbc", "cut short"), ("*.nbi", "cut short"), ("*.nbi", "emptied"), ("*.nbc", "overwritten")):
        (damaged,) = tmp_path.rglob(files)
        _damage(damaged, how)
        again = run(code, **env).stdout
        assert again.startswith(first.strip()) and "is damaged" in again and "compiled anew" in again, (files, how, again)
    assert run(code, **env).stdout == first


BAR = """
import os, signal, sys, time, warnings
from diffpose.cli.progress import steps
from diffpose.cli.words import reported

with reported(), steps(2) as step:
    step("reading")
    step("registering")
    warnings.warn("the file has no [scale], 0.5 mm is taken")
    time.sleep(0.3)
    step.note("stage 1 of 3")
    if sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGTERM)
"""


def in_a_terminal(*command):
    "`(exit code, what the terminal got)` of a command whose streams are a terminal of 100 columns."
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, close_fds=True)
    os.close(theirs)
    said = b""
    while piece := _read(ours):
        said += piece
    os.close(ours)
    return process.wait(60), said.decode()


def _read(terminal):
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # nobody writes any more
        return b""


@pytest.mark.parametrize("stop", [False, True])
def test_a_bar_shows_the_step_and_leaves_the_terminal_as_it_was(stop):
    "Warnings stand above it, letter by letter; when it is over, or ended by a signal, it is erased and the cursor is back."
    code, said = in_a_terminal(sys.executable, "-c", BAR, *["stop"] * stop)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert code == (143 if stop else 0)
    assert re.search(r"registering +━+\S* 1/2 0:00:00", plain) and re.search(r"stage 1 of 3 +━", plain), plain
    assert "warning: the file has no [scale], 0.5 mm is taken\r\n" in plain
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1 and said.rindex("\x1b[2K") > said.rindex("━")


def test_no_bar_where_nobody_watches():
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1"})
    assert (done.stdout, done.stderr) == ("", "warning: the file has no [scale], 0.5 mm is taken\n")
