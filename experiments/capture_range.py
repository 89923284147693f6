"""Capture range: from how far off does the registration of a DRR find its pose, and does its verdict know?

    python experiments/capture_range.py [FOLDER] [--starts 100] [--scans chest] [--views AP]
    python experiments/capture_range.py FOLDER --report     only the table and the plot of what is there

X-ray and model are the same here, so a right answer is exact, and what is left is the optimiser. `--restarts 0` shows a single descent.
Processes that do different scans or views may share a FOLDER; what is there already is not computed again.
"""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scenes import VIEWS, Rows, draw_starts, launch, outcome, patients, read_rows, ruler_points, square_camera, summarise, view_pose

from diffpose.drr import DRR
from diffpose.metrics import geodesic_so3, mtre
from diffpose.registration import GaussNewton

# ---------------------------------------------------------------- knobs
SIZE, FIELD = 100, 400.0  # pixels and mm along a side of the detector
DEGREES, SHIFT = 45.0, 30.0  # starts: plus or minus per Euler angle, per axis [mm]
SEED = 200  # of the starts
ALONE = 5  # a start enters once, and once at each coarse level: more were surveyed
# ----------------------------------------------------------------------

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("_runs/capture_range"))
parser.add_argument("--starts", type=int, default=100, help="per scan and view")
parser.add_argument("--restarts", type=int, help="of GaussNewton; its default where it is not given")
parser.add_argument("--scans", nargs="+", default=["chest", "pelvis"], choices=["chest", "pelvis"])
parser.add_argument("--views", nargs="+", default=["AP"], choices=list(VIEWS))
parser.add_argument("--report", action="store_true", help="compute nothing")


def run(args) -> None:
    "Register, one row per start."
    points, camera = ruler_points(), square_camera(SIZE, FIELD)
    options = {} if args.restarts is None else {"restarts": args.restarts}
    for scan, subject in patients(args.scans).items():
        drr = DRR.from_camera(subject, camera, renderer="trilinear")
        solver = GaussNewton(drr, **options)
        for view in args.views:
            rows = Rows(args.folder / f"rows_{scan}_{view}.csv", ["start"])
            truth = view_pose(view)
            xray = drr(truth)
            starts = draw_starts(truth, args.starts, DEGREES, SHIFT, SEED)
            error = lambda pose: mtre(truth.double(), pose, points[None]).item()
            solver.register(xray, truth)  # compile, build the pyramid
            for k in range(args.starts):
                if rows.has(k):
                    continue
                begun = time.perf_counter()
                result = solver.register(xray, starts[k], landmarks=points)
                seconds = time.perf_counter() - begun
                angle = np.degrees(geodesic_so3(truth.double().rotation, starts[k].rotation).item())
                rows.add(dict(scan=scan, view=view, start=k, start_mtre_mm=error(starts[k]), start_deg=angle, **outcome(result, error(result.pose), seconds)))


def report(folder: Path) -> None:
    "Table and plot of all rows in the folder."
    rows = read_rows(folder)
    table = summarise(rows, ["scan", "view"])
    table.to_csv(folder / "table.csv", index=False)
    print(table.to_string(index=False))
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for (scan, view), group in rows.groupby(["scan", "view"]):
        bins = pd.qcut(group["start_mtre_mm"], min(6, max(1, len(group) // 8)))
        share = (group["mtre_mm"] < 1).groupby(bins, observed=True).mean()
        (line,) = axes[0].plot([b.mid for b in share.index], share, "o-", label=f"{scan} {view}")
        single = ((group["mtre_mm"] < 1) & (group["starts"] <= ALONE)).groupby(bins, observed=True).mean()
        axes[0].plot([b.mid for b in single.index], single, ".--", color=line.get_color(), label="without a survey")
        axes[1].scatter(group["start_deg"], group["mtre_mm"].clip(lower=1e-5), s=10, label=f"{scan} {view}")
    lied = rows[(rows["verdict"] == "converged") & (rows["mtre_mm"] >= 1)]
    axes[1].scatter(lied["start_deg"], lied["mtre_mm"], s=80, facecolors="none", edgecolors="red", label=f"called converged, and wrong ({len(lied)})")
    axes[0].set(xlabel="mTRE of the start [mm]", ylabel="share that ends under 1 mm", ylim=(0, 1.05))
    axes[1].set(yscale="log", xlabel="angle of the start from the truth [deg]", ylabel="mTRE of the answer [mm]")
    axes[1].axhline(1, color="grey", lw=0.5)
    for ax in axes:
        ax.legend(fontsize=7)
    fig.savefig(folder / "capture_range.png", dpi=100)
    print(f"written: {folder / 'table.csv'}, {folder / 'capture_range.png'}")


if __name__ == "__main__":
    args = parser.parse_args()
    launch(args, run, report, size=SIZE, field_mm=FIELD, degrees=DEGREES, shift_mm=SHIFT, seed=SEED, starts=args.starts, restarts=args.restarts)
