"""The GPU's kernels compile to machine code for the GPUs in use, and fit into their registers. No GPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tools.notebook import ROOT

TIMEOUT_S = 600


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton: torch brings it on Linux")
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile(capability, tmp_path):
    slow = os.environ.get("DIFFPOSE_SLOW", "0") not in ("", "0")
    if capability != "90" and not slow:
        pytest.skip("DIFFPOSE_SLOW is unset")
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.compile_kernels", capability, *["--all"] * slow]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert {(row["kernel"], row["mode"]) for row in rows} >= {(k, m) for k in ("siddon_walk", "trilinear_walk") for m in ("sum", "max", "channels", "voxels")} | {("contract_frame", "")}
    assert not [row for row in rows if row["spilled"]], "registers spilled to memory"
    assert max(row["registers"] for row in rows) <= 255
    sizes = [row for row in rows if row["asked"] == "any size"]
    assert len(sizes) == 9 and len({row["hash"] for row in sizes}) == 3, "compiled anew for another size of image or volume"
