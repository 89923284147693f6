"""How does the time of a DRR grow with pixels, images, samples and voxels, and what would memory and arithmetic allow?

    python benchmarks/growth.py --out _runs/bench         # one minute on two cores

One thing is changed at a time, from 256 x 256 pixels, one frontal image, the whole chest CT. `cells` counts the voxels that the rays cross
in the whole volume, air and all (for the sampled rule: its samples). Two floors stand beside each time, both measured on this machine:
memory, the time to read the volume once at the rate of a large copy; and arithmetic, the least number of operations per cell at the rate
of a large matrix product. A kernel that skips air can beat neither, but it can beat the count of cells.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from common import Diffpose, begin, example_volume, interleave, poses, show, spread, write_csv

from diffpose.kernels.reference import stretch
from diffpose.pose import convert
from diffpose.registration import pool_volume

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for growth.csv")
parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
parser.add_argument("--budget", type=float, default=2.0, help="a contender that has run for so long [s] takes no more turns")

SIZE, BATCH = 256, 1
# operations per cell: the chord, the next crossing and the voxel's place (Siddon); 7 interpolations and 3 products of the expansion more (trilinear)
OPERATIONS = {"siddon": 12, "trilinear-exact": 50, "trilinear": 40}


def cells(work: Diffpose, rotation, translation, rule: str) -> int:
    "How many cells, or samples, the rays visit if they walk through the whole volume."
    drr = work.drr
    view = drr._view(convert(rotation, translation, parameterization="euler_angles", convention="ZXY"))
    source, target = view.ends()
    d = target - source
    s = source.expand_as(d) + 0.5
    low, high = stretch(s, d, 0.0, torch.tensor(drr.density.shape, dtype=s.dtype))
    if rule not in ("siddon", "trilinear-exact"):
        return int((low < high).sum()) * int(rule.partition("-")[2])
    ends = [(s + x[..., None] * d).floor() for x in (low, high)]
    return int(((ends[1] - ends[0]).abs().sum(-1) + 1)[low < high].sum())


def rates() -> dict:
    "Bytes of a large copy (read and written), and single-precision operations of a large matrix product, both in 1e9 per second."
    a = torch.rand(2**26)
    b, m = torch.empty_like(a), torch.rand(2048, 2048)
    best = lambda f: min(seconds(f) for _ in range(7))
    return {"copy_gb_per_s": round(2 * 4e-9 * a.numel() / best(lambda: b.copy_(a)), 1), "matmul_gflop_per_s": round(2e-9 * 2048**3 / best(lambda: m @ m))}


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def pooled(volume, factor: int):
    "The volume with fewer, larger voxels: the same patient."
    density, affine, reorient = volume
    smaller, moved = pool_volume(torch.from_numpy(density), torch.from_numpy(affine), [factor] * 3)
    return np.ascontiguousarray(smaller.numpy()), moved.numpy(), reorient


def main():
    args, info = begin(parser, rates)
    copy_rate, flop_rate = 1e9 * info["copy_gb_per_s"], 1e9 * info["matmul_gflop_per_s"]
    volume = example_volume()
    base = {"size": SIZE, "batch": BATCH, "factor": 1}
    series = [("pixels", "size", [64, 128, 256, 512, 1024]), ("images", "batch", [1, 2, 4, 8, 16, 32, 64]), ("voxels", "factor", [1, 2, 4])]
    plan = [(what, rule, base | {name: value} | ({"size": 64} if name == "batch" else {})) for what, name, values in series for rule in ("siddon", "trilinear-exact") for value in values]
    plan += [("samples", f"trilinear-{n}", base) for n in (125, 250, 500, 1000)]
    rows, functions, volumes = [], {}, {k: pooled(volume, k) if k > 1 else volume for k in (1, 2, 4)}
    for k, (what, rule, at) in enumerate(plan):
        work, (rotation, translation) = Diffpose(volumes[at["factor"]], rule, at["size"]), poses(at["batch"])
        count, voxels = cells(work, rotation, translation, rule), volumes[at["factor"]][0].size
        rows.append({"what": what, "rule": rule, "size": at["size"], "batch": at["batch"], "voxels": voxels, "cells": count})
        functions[k] = value_of(work, rotation, translation)
        functions[k]()
    times = interleave(functions, args.rounds, args.budget)
    for k, row in enumerate(rows):
        middle = float(np.nanmedian(times[k]))
        memory, arithmetic = 4 * row["voxels"] / copy_rate, row["cells"] * OPERATIONS[row["rule"] if row["rule"] in OPERATIONS else "trilinear"] / flop_rate
        row |= {"ms": spread(1000 * times[k]), "ns_per_cell": f"{1e9 * middle / row['cells']:.2f}", "memory_floor_ms": f"{1e3 * memory:.1f}", "arithmetic_floor_ms": f"{1e3 * arithmetic:.1f}"}
        row["times_floor"] = f"{middle / max(memory, arithmetic):.1f}"
    show(rows, list(rows[0]))
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "growth.csv", info, rows)
    print(f"written: {args.out / 'growth.csv'}; median time per cell {statistics.median(float(r['ns_per_cell']) for r in rows):.2f} ns")


def value_of(work, rotation, translation):
    "The image, as a function of no arguments."

    def value():
        with torch.no_grad():
            return work(rotation, translation)

    return value


if __name__ == "__main__":
    main()
