"""Into how many lanes should a GPU split a ray, and how many rays should a program take?

    python benchmarks/gpu_split.py --out _runs/bench

A small image has too few rays to keep a GPU busy: several lanes share one. Lanes of a warp read the volume together, so how they are grouped
counts too. The kernels' own time (a captured graph, replayed) for the frontal view of render.py and for one turned, image and Jacobian, by every rule; the fastest
splits are `SPLIT` in `diffpose.kernels.cuda.arguments`. `--once` renders each once instead, for a profiler:

    ncu --clock-control none --set full -k regex:"siddon_walk|trilinear_walk" python benchmarks/gpu_split.py --once
"""

import argparse
import math
import statistics
from pathlib import Path

import torch
from common import Diffpose, begin, example_volume, gpu, poses, show, write_csv
from gpu import captured, microseconds

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for gpu_split.csv")
parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 512], help="images of N x N pixels")
parser.add_argument("--turns", type=float, nargs="+", default=[0.0, 45.0], help="the C-arm turned about the patient [deg]")
parser.add_argument("--once", action="store_true", help="one render of each, and no table")

SPLITS = [(16, 16), (16, 32), (8, 8), (8, 16), (8, 32), (4, 8), (4, 16), (4, 32), (2, 16), (2, 32), (1, 32)]  # lanes of a ray, rays of a program
RULES = ("siddon", "trilinear-exact", "trilinear-500")


def tasks(volume, size: int, turn: float) -> dict:
    "Functions of no arguments, by rule and task."
    from diffpose.pose import RigidTransform

    found = {}
    for rule in RULES:
        renderer = Diffpose(volume, rule, size)
        drr = renderer.drr.cuda()
        pose = RigidTransform(renderer.pose(*(x.cuda() for x in poses(1, (turn, 0, 0)))).detach())
        found[rule, "value"], found[rule, "jacobian"] = (lambda drr=drr, pose=pose: drr(pose)), (lambda drr=drr, pose=pose: drr.jacobian(pose))
    return found


def main():
    args, info = begin(parser, gpu)
    if not torch.cuda.is_available():
        print("gpu_split.py: no CUDA device here, nothing was measured")
        return
    from diffpose.kernels.cuda import arguments

    volume, rows, own = example_volume(), [], arguments.SPLIT
    with torch.no_grad():
        for size, turn in [(size, turn) for size in args.sizes for turn in args.turns]:
            for (rule, task), call in tasks(volume, size, turn).items():
                row = {"size": size, "turned": turn, "rule": rule, "task": task}
                for parts, rays in [] if args.once else SPLITS:
                    arguments.SPLIT = ((math.inf, parts, rays),)
                    graph = captured(call)
                    row[f"{parts} lanes, {rays} rays"] = f"{statistics.median(microseconds(graph, 12) for _ in range(3)):.1f}"
                arguments.SPLIT = own
                call()
                rows.append(row)
    torch.cuda.synchronize()
    if not args.once:
        show(rows, list(rows[0]))
        write_csv(args.out / "gpu_split.csv", info, rows)


if __name__ == "__main__":
    main()
