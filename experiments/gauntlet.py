"""X-rays that other programs made: how many are registered, does the verdict know, and what does each idea bring?

    DIFFPOSE_GAUNTLET=folder DIFFPOSE_DATA=folder python experiments/gauntlet.py [FOLDER] [--starts small medium large] [--scenarios clean real]
    python experiments/gauntlet.py FOLDER --methods none only_band no_band   an ablation: without any idea, with one, with all but one
    python experiments/gauntlet.py FOLDER --methods check                      and eight X-rays simulated from each answer, registered: check_mm, rms
    python experiments/gauntlet.py FOLDER --report                              only the tables and the plot of what is there
    python experiments/gauntlet.py FOLDER --pictures lowdose-5 head-4           X-ray, DRR at the true pose, and outlines at the pose that was found

Each `NAME.npz` of the gauntlet holds X-rays of one kind (a scenario): `cases`, a JSON list (id, subject, view, camera, kind of pixels, polarity, what is wrong), and for case i
`i.image`, `i.pose` (the true pose, 4 x 4), `i.start.small | medium | large` and `i.points` (world mm, where errors are measured). Subjects are `pelvis` and `chest` of
DIFFPOSE_DATA, and `phantomN`, `make_phantom(seed=N)` at 2 mm. Processes that do different starts may share a FOLDER; what is there already is not computed again.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scenes import Rows, outcome, read_rows

from diffpose.calibration import Camera
from diffpose.data import read, read_xray
from diffpose.drr import DRR
from diffpose.metrics import mtre
from diffpose.phantom import make_phantom
from diffpose.pose import RigidTransform
from diffpose.registration import GaussNewton, default_stages

# ---------------------------------------------------------------- knobs
SPACING = 2.0  # voxels of the phantoms [mm]
RIGHT, WRONG = 1.0, 2.0  # below: right; above: wrong [mm]
NINETY = 10.645  # 90% point of chi-square with 6 degrees of freedom
IDEAS = {  # and what takes each away: options of GaussNewton, changes of its stages, options of register
    "survey": ({"restarts": 0}, {}, {}),
    "band": ({}, {"residual": "mncc"}, {}),
    "curvature": ({}, {"curvature": 1.0}, {}),
    "field": ({}, {}, {"find_field": False}),
    "refine": ({}, {"refine": False}, {}),
}
# ----------------------------------------------------------------------


def without(*ideas: str) -> tuple[dict, dict, dict]:
    "A method that lacks some ideas."
    return tuple({k: v for name in ideas for k, v in IDEAS[name][part].items()} for part in range(3))


METHODS = {"default": without(), "none": without(*IDEAS)}
METHODS |= {f"no_{name}": without(name) for name in IDEAS}
METHODS["check"] = {}, {}, {"check": 8}
METHODS |= {f"only_{name}": without(*(other for other in IDEAS if other != name)) for name in IDEAS}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default=Path("_runs/gauntlet"))
parser.add_argument("--starts", nargs="+", default=["small"], choices=["small", "medium", "large"])
parser.add_argument("--scenarios", nargs="*", default=None, help="default: all")
parser.add_argument("--methods", nargs="+", default=["default"], choices=list(METHODS))
parser.add_argument("--only", default="0::1", help="first::every, of each scenario's cases")
parser.add_argument("--pictures", nargs="+", default=[], metavar="ID", help="X-rays to draw into FOLDER/hard.webp; nothing else is done")
parser.add_argument("--report", action="store_true", help="compute nothing")


PATIENTS, SOLVERS = {}, {}  # made once


def subject(name: str):
    "A patient of the gauntlet."
    if name not in PATIENTS:
        phantom = name.startswith("phantom")
        path = Path(os.environ["DIFFPOSE_DATA"]) / name / "ct.nii.gz"
        PATIENTS[name] = make_phantom(seed=int(name[7:]), spacing=SPACING) if phantom else read(path)
    return PATIENTS[name]


def solver(case: dict, method: str) -> tuple[GaussNewton, Camera]:
    "A GaussNewton for a case's patient and camera; a few are kept."
    key = (case["subject"], json.dumps(case["camera"], sort_keys=True), method)
    if key not in SOLVERS:
        while len(SOLVERS) > 6:
            SOLVERS.pop(next(iter(SOLVERS)))
        c = case["camera"]
        camera = Camera(c["sdd"], c["h"], c["w"], c["dx"], c["dy"], c["x0"], c["y0"])
        options, change, _ = METHODS[method]
        if change:
            stages = default_stages(min(camera.height, camera.width))
            fine = lambda s: {"window": max(7 / s.size, 0.05)} if "residual" in change else {}
            options = options | {"stages": [replace(s, **change, **fine(s)) if s.residual == "band" else s for s in stages]}
        SOLVERS[key] = GaussNewton(DRR.from_camera(subject(case["subject"]), camera), **options), camera
    return SOLVERS[key]


def load(z, i: int, case: dict, camera: Camera) -> torch.Tensor:  # 1 1 H W
    "An X-ray as a user would read it."
    image, lines = z[f"{i}.image"], case["kind"] == "line_integrals"
    image = image.astype(np.float32) if lines and image.dtype != np.uint8 else image
    return read_xray(image, camera=camera, polarity=case["polarity"], already_line_integral=lines)[0]


def one(z, i: int, case: dict, start: str, method: str) -> dict:
    "Register one X-ray."
    newton, camera = solver(case, method)
    xray = load(z, i, case, camera)
    truth, points = RigidTransform(torch.tensor(z[f"{i}.pose"])[None]), torch.tensor(z[f"{i}.points"]).double()
    begun = time.perf_counter()
    result = newton.register(xray, RigidTransform(torch.tensor(z[f"{i}.start.{start}"])[None]), **METHODS[method][2])
    seconds = time.perf_counter() - begun
    twist = torch.cat(result.pose.inverse().compose(truth.double()).convert("se3_log_map"), -1)[0].double()
    try:
        inside = bool(twist @ torch.linalg.solve(result.covariance, twist) <= NINETY)
    except torch.linalg.LinAlgError:
        inside = False
    codes = " ".join(reason.code for reason in result.reasons)
    off = mtre(truth.double(), result.pose, points[None]).item()
    again = result.evidence.get("check_mm", [])
    tried = {"check_mm": np.sqrt(np.square(again).mean())} if again else {}
    return outcome(result, off, seconds) | {"inside_90": inside and bool(result.covariance.isfinite().all()), "codes": codes} | tried


def run(args) -> None:
    "A row per registration."
    first, every = map(int, args.only.split("::"))
    for path in sorted(Path(os.environ["DIFFPOSE_GAUNTLET"]).glob("*.npz")):
        if args.scenarios and path.stem not in args.scenarios:
            continue
        z = np.load(path)
        cases = json.loads(str(z["cases"]))
        for start in args.starts:
            for method in args.methods:
                rows = Rows(args.folder / f"rows_{path.stem}_{start}_{method}.csv", ["id"])
                for i in range(first, len(cases), every):
                    case = cases[i]
                    if not rows.has(case["id"]):
                        about = {k: case[k] for k in ("id", "subject", "view", "wrong")}
                        rows.add(about | {"scenario": path.stem, "start": start, "method": method} | one(z, i, case, start, method))


def summary(part: pd.DataFrame) -> pd.Series:
    "What a table says of some registrations."
    off, ok = part["mtre_mm"], part["verdict"] == "converged"
    done = part[ok]
    ratio = np.sqrt(((done["mtre_mm"] / done["expected_tre_mm"]) ** 2).mean())
    return pd.Series({
        "X-rays": len(part),
        "< 1 mm": f"{(off < RIGHT).mean():.0%}",
        "< 2 mm": f"{(off < WRONG).mean():.0%}",
        "median [mm]": f"{off.median():.2f}",
        "converged": int(ok.sum()),
        "of these wrong": int((ok & (off > WRONG)).sum()),
        "right, not converged": int((~ok & (off < RIGHT)).sum()),
        "true / expected": f"{ratio:.2f}",
        "in 90%": f"{done['inside_90'].mean():.0%}" if len(done) else "",
        "seconds": f"{part['seconds'].median():.1f}",
    })


def markdown(table: pd.DataFrame) -> str:
    "A table for a README."
    head = [*table.index.names, *table.columns]
    lines = ["| " + " | ".join(map(str, head)) + " |", "|" + "---|" * len(head)]
    for index, row in table.iterrows():
        index = index if isinstance(index, tuple) else (index,)
        lines.append("| " + " | ".join(map(str, (*index, *row))) + " |")
    return "\n".join(lines)


def report(folder: Path) -> None:
    "Tables by scenario, view and start, and a plot of the scenarios."
    rows = read_rows(folder)
    rows["wrong"] = rows["wrong"].fillna("")
    rows["view"] = rows["view"].fillna("")
    right = rows[rows["wrong"] == ""]
    for keys in (["method", "start", "scenario"], ["method", "start", "view"], ["method", "start"]):
        table = right.groupby(keys).apply(summary, include_groups=False)
        print(markdown(table), end="\n\n")
        table.to_csv(folder / f"table_{keys[-1]}.csv")
    wrong = rows[rows["wrong"] != ""]
    if len(wrong):
        print(markdown(wrong.groupby(["method", "start", "wrong"]).apply(summary, include_groups=False)))
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    share = right.assign(ok=100 * (right["mtre_mm"] < RIGHT)).pivot_table(index="scenario", columns=["method", "start"], values="ok")
    share.plot.bar(ax=ax, width=0.8)
    ax.set(xlabel="", ylabel=f"within {RIGHT:g} mm [%]", ylim=(0, 100))
    ax.legend(fontsize=7, loc="lower left")
    fig.savefig(folder / "gauntlet.png", dpi=100)


def pictures(folder: Path, ids: list[str], start: str) -> None:
    "What is hard: X-ray, DRR at the true pose, and the found pose's outlines (orange) beside the true one's (blue) on the X-ray."
    fig, axes = plt.subplots(3, len(ids), figsize=(2.2 * len(ids), 7), layout="constrained", squeeze=False)
    for column, name in zip(axes.T, ids):
        scenario, i = name.rsplit("-", 1)
        z, i = np.load(Path(os.environ["DIFFPOSE_GAUNTLET"]) / f"{scenario}.npz"), int(i)
        case = json.loads(str(z["cases"]))[i]
        newton, camera = solver(case, "default")
        xray, truth = load(z, i, case, camera), RigidTransform(torch.tensor(z[f"{i}.pose"])[None].float())
        result = newton.register(xray, RigidTransform(torch.tensor(z[f"{i}.start.{start}"])[None]))
        off = mtre(truth.double(), result.pose, torch.tensor(z[f"{i}.points"]).double()[None]).item()
        with torch.no_grad():
            images = newton.drr(truth), newton.drr(result.pose.float())
        column[0].imshow(xray[0, 0], cmap="gray")
        column[1].imshow(images[0][0, 0], cmap="gray")
        column[2].imshow(xray[0, 0], cmap="gray")
        for image, colour in zip(images, ("#4da6ff", "#ff8c1a")):
            levels = torch.quantile(image[image > 0], torch.tensor([0.35, 0.7, 0.92])).tolist()
            column[2].contour(image[0, 0], levels=sorted({0.02 * float(image.max()), *levels}), colors=colour, linewidths=0.6)
        column[0].set_title(f"{name}\n{case['subject']}, {case['view']}", fontsize=8)
        numbers = f"agreement {result.evidence['agreement']:.2f}" if "agreement" in result.evidence else ""
        column[2].set_title(f"{off:.1f} mm off, {result.verdict}\nexpected {result.expected_tre_mm:.1f} mm, {numbers}", fontsize=7)
    for ax in axes.flat:
        ax.axis("off")
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / "hard.webp", dpi=110)


if __name__ == "__main__":
    args = parser.parse_args()
    if args.pictures:
        pictures(args.folder, args.pictures, args.starts[0])
        raise SystemExit
    if not args.report:
        run(args)
    report(args.folder)
