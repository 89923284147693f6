"""The real job: register X-rays that are not DRRs, from 30 degrees and 30 mm off.

    python experiments/real_job.py [FOLDER] [--starts 50] [--tool-mm 20] [--scans chest] [--views AP]
    python experiments/real_job.py FOLDER --report          only the table and the plot of what is there

The X-rays come from `simulate_xray`: two materials and a spectrum, heavier bone, scatter, blur, noise, blades, unknown gain; `--tool-mm` lays
a metal rod across. Processes that do different scans or views may share a FOLDER; what is there already is not computed again.
"""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from scenes import VIEWS, Rows, draw_starts, launch, outcome, patients, read_rows, ruler_points, square_camera, summarise, view_pose

from diffpose.drr import DRR
from diffpose.metrics import mtre
from diffpose.registration import GaussNewton
from diffpose.simulation import Physics, simulate_xray

# ---------------------------------------------------------------- knobs
SIZE, FIELD = 192, 384.0  # pixels and mm along a side of the detector
DEGREES, SHIFT = 30.0, 30.0  # starts: plus or minus per Euler angle, per axis [mm]
XRAYS = 5  # per view: each with its own noise, blades, gain and tool
SEED = 100  # of the starts; X-ray k has seed k
# ----------------------------------------------------------------------

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("_runs/real_job"))
parser.add_argument("--starts", type=int, default=50, help="per scan and view")
parser.add_argument("--tool-mm", type=float, default=0.0, help="width of a metal rod on the detector [mm]")
parser.add_argument("--scans", nargs="+", default=["chest", "pelvis"], choices=["chest", "pelvis"])
parser.add_argument("--views", nargs="+", default=list(VIEWS), choices=list(VIEWS))
parser.add_argument("--report", action="store_true", help="compute nothing")


def run(args) -> None:
    "Register, one row per start."
    points, camera = ruler_points(), square_camera(SIZE, FIELD)
    for scan, subject in patients(args.scans).items():
        solver = GaussNewton(DRR.from_camera(subject, camera))
        for view in args.views:
            rows = Rows(args.folder / f"rows_{scan}_{view}_{args.tool_mm:g}.csv", ["start"])
            truth = view_pose(view)
            xrays = simulate_xray(subject, camera, truth.expand(XRAYS), physics=Physics(tool_mm=args.tool_mm))
            starts = draw_starts(truth, args.starts, DEGREES, SHIFT, SEED)
            error = lambda pose: mtre(truth.double(), pose, points[None]).item()
            solver.register(xrays[:1], truth)  # compile, build the pyramid
            for k in range(args.starts):
                if rows.has(k):
                    continue
                begun, x = time.perf_counter(), k % XRAYS
                result = solver.register(xrays[x : x + 1], starts[k], landmarks=points)
                seconds = time.perf_counter() - begun
                rows.add(dict(scan=scan, view=view, tool_mm=args.tool_mm, start=k, xray=x, start_mtre_mm=error(starts[k]), **outcome(result, error(result.pose), seconds)))


def report(folder: Path) -> None:
    "Table and plot of all rows in the folder."
    rows = read_rows(folder)
    everything = rows.assign(scan="all", view="all")
    table = summarise(pd.concat([rows, everything]), ["tool_mm", "scan", "view"])
    table.to_csv(folder / "table.csv", index=False)
    print(table.to_string(index=False))
    fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (tool, scan, view), group in rows.groupby(["tool_mm", "scan", "view"]):
        errors = group["mtre_mm"].sort_values().to_numpy()
        axes[0].step(errors, [(i + 1) / len(errors) for i in range(len(errors))], "--" if tool else "-", where="post", label=f"{scan} {view}" + (f", {tool:g} mm tool" if tool else ""))
    axes[0].axvline(1, color="grey", lw=0.5)
    axes[0].set(xscale="log", xlabel="mTRE [mm]", ylabel="share of starts", ylim=(0, 1.02))
    axes[0].legend(fontsize=7)
    for verdict, colour in {"converged": "tab:green", "ambiguous": "tab:orange", "stalled": "tab:red"}.items():
        part = rows[rows["verdict"] == verdict]
        axes[1].scatter(part["mtre_mm"], part["local_agreement"], s=8, c=colour, label=f"{verdict} ({len(part)})")
    axes[1].axvline(1, color="grey", lw=0.5)
    axes[1].set(xscale="log", xlabel="mTRE [mm]", ylabel="agreement of X-ray and DRR at the local level")
    axes[1].legend(fontsize=7)
    fig.savefig(folder / "real_job.png", dpi=100)
    print(f"written: {folder / 'table.csv'}, {folder / 'real_job.png'}")


if __name__ == "__main__":
    args = parser.parse_args()
    launch(args, run, report, size=SIZE, field_mm=FIELD, degrees=DEGREES, shift_mm=SHIFT, xrays=XRAYS, seed=SEED, starts=args.starts)
