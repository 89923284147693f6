"""Every Triton kernel, compiled for a GPU that need not be here: `python -m tests.compile_kernels CAPABILITY [--all]`, a line of JSON each.

Triton asks its driver what the GPU is; a stand-in answers. Nothing is launched. Each mode is compiled for either rule, and each option
(Jacobian, contrast map, box, pose, type of numbers, wide index) at least once; `--all` compiles every combination that is listed.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

CAPABILITY, ALL = int(sys.argv[1]), "--all" in sys.argv


class StandIn(DriverBase):
    "Just enough of a driver to compile."

    def __init__(self):
        pass

    is_active = staticmethod(lambda: True)

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        return None

    def map_python_to_cpp_type(self, kind):
        return kind


triton.runtime.driver.set_active(StandIn())
from diffpose.kernels import cuda  # noqa: E402  (after the driver)

(CUOBJDUMP,) = (Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("cuobjdump*")


class Compiled:
    "In place of a kernel: compiles what it would be launched with, and says what came of it."

    def __init__(self, kernel, name):
        self.kernel, self.name = kernel, name

    def __getitem__(self, grid):
        return lambda *args, **options: self.report(self.kernel.warmup(*args, grid=grid, **options), options)

    def report(self, compiled, options):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
        registers, stack, local = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK", "LOCAL"))
        kind = options["REAL"].name if "REAL" in options else ""
        print(json.dumps({"kernel": self.name, "mode": options.get("MODE", ""), "real": kind, "asked": asked, "registers": registers, "spilled": stack + local, "hash": compiled.hash}), flush=True)


for name in ("siddon_walk", "trilinear_walk", "contract_frame"):
    setattr(cuda, name, Compiled(getattr(cuda, name), name))
cuda._check = lambda volume, *others: volume

n = 1024
pixels, pieces, weight = torch.rand(1, n, 3, dtype=torch.float64), torch.rand(1, 5, dtype=torch.float64), torch.rand(1, 4, n)
labels = torch.zeros(64, 64, 64, dtype=torch.int16)
box = torch.tensor([0.0, 0.0, 0.0, 64.0, 64.0, 64.0], dtype=torch.float64)
SEEN = [  # the first is what a DRR asks for
    {"jacobian": True, "pieces": pieces, "occupied": box},
    {"occupied": box},
    {"jacobian": True, "occupied": box, "pose": torch.eye(4, dtype=torch.float64)[None]},  # registration does
    {"jacobian": True, "reducefn": "max", "occupied": box},
    {"labels": labels, "n_channels": 4, "occupied": box},
]
RARE = [{"jacobian": True, "occupied": box}, {"jacobian": True}]  # each option stands in another entry too
EXACT, SAMPLED = [{"rule": "siddon"}, {"rule": "trilinear"}], {"rule": "trilinear", "n_points": 50}
view = {"pose": torch.eye(4)[None], "frame": torch.eye(4, dtype=torch.float64), "length": torch.ones(1, n, dtype=torch.float64), "columns": 32}


def listed(dtype, rule):
    "What is asked of a type of numbers and a rule."
    if dtype == torch.float32:
        return SEEN + RARE if ALL else SEEN[:1] if rule == SAMPLED else SEEN
    if ALL or dtype == torch.float64:
        return [] if rule == SAMPLED else SEEN[:1]
    return {(torch.float16, "siddon"): SEEN[:1], (torch.bfloat16, "trilinear"): SEEN[1:2]}.get((dtype, rule["rule"]), []) if rule != SAMPLED else []


for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    volume = torch.zeros(64, 64, 64, dtype=dtype)
    for rule in (*EXACT, SAMPLED):
        for more in listed(dtype, rule):
            asked = " ".join(map(str, (dtype, *rule.values(), *more)))
            cuda.integrate(volume, None, pixels, **{**view, **rule, **more})
        if dtype != torch.float32 or rule == SAMPLED and not ALL:
            continue
        asked = f"{dtype} {' '.join(map(str, rule.values()))} backward"
        cuda.channel_jacobian(volume, None, pixels, weight, labels, pieces=pieces, **view, **rule)
        for deterministic in (False, True) if ALL or rule == EXACT[0] else (True,):
            torch.use_deterministic_algorithms(deterministic)
            cuda.volume_gradient(volume, None, pixels, weight, labels=labels, pieces=pieces, **view, **rule)
asked = "any size"
for size, count, columns in (((64, 64, 64), 1024, 32), ((63, 65, 61), 999, 27), ((48, 16, 80), 4000, 100)):
    for rule in ({"rule": "siddon"}, {"rule": "trilinear"}, {"rule": "trilinear", "n_points": count}):
        cuda.integrate(torch.zeros(size), None, torch.rand(1, count, 3, dtype=torch.float64), **{**view, "length": torch.ones(1, count, dtype=torch.float64), "columns": columns}, **rule, occupied=box)
asked = "more than 2^31 voxels"
for rule in ("siddon", "trilinear"):
    for more in ({}, {"reducefn": "max"}) if ALL or rule == "siddon" else ({},):
        cuda._integrate(torch.empty(2048, 1024, 1025, dtype=torch.float16), None, pixels, *list(view.values())[:3], 32, None, None, None, rule, 0, 0.5, more.get("reducefn", "sum"), 1, bool(ALL or more))
asked = "rays in a list"
cuda.integrate(volume.float(), pixels[:, :1], pixels, jacobian=True)
cuda.integrate(volume.float(), pixels, pixels, jacobian=True)
cuda.frame_gradient(torch.zeros(1, n, 6), weight[:, 0], pixels)
