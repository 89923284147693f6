"What the registration experiments share: the patients, the views, the starts, the ruler, the tables on disk, and how a run begins."

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from diffpose.calibration import Camera
from diffpose.data import load_example_ct, read
from diffpose.phantom import make_phantom
from diffpose.pose import RigidTransform, convert
from diffpose.registration import Result

ISOCENTER = 850.0  # source to isocentre [mm]
VIEWS = {"AP": (0.0, 0.0, 0.0), "oblique": (0.6, 0.2, 0.05)}  # Euler angles ZXY [rad]


def patients(names: list) -> dict:
    "Subjects by name: the real chest and pelvis of DIFFPOSE_DATA, or the phantom where it is unset."
    root = os.environ.get("DIFFPOSE_DATA")
    if root is None:
        print("DIFFPOSE_DATA is unset: the phantom stands in for the real scans")
        return {"phantom": make_phantom(seed=0, spacing=2.0)}
    make = {"chest": load_example_ct, "pelvis": lambda: read(Path(root) / "pelvis" / "ct.nii.gz")}
    return {name: make[name]() for name in names}


def view_pose(view: str) -> RigidTransform:
    "True pose of a view."
    return convert(torch.tensor([VIEWS[view]]), torch.tensor([[0.0, ISOCENTER, 0.0]]), parameterization="euler_angles", convention="ZXY")


def square_camera(size: int, field: float) -> Camera:
    "A square detector of `field` mm, 1020 mm from the source."
    return Camera(1020.0, size, size, field / size, field / size)


def draw_starts(truth: RigidTransform, n: int, degrees: float, mm: float, seed: int) -> RigidTransform:
    "n poses, uniform within plus or minus so many degrees per Euler angle (ZXY) and mm per axis around the truth."
    generator = torch.Generator().manual_seed(seed)
    rotation, translation = truth.double().convert("euler_angles", "ZXY")
    draw = lambda: 2 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 1
    return convert(rotation + np.radians(degrees) * draw(), translation + mm * draw(), parameterization="euler_angles", convention="ZXY")


def ruler_points() -> torch.Tensor:
    "40 points within 70 mm of the isocentre per axis, N 3 [mm]: mTRE is measured on them."
    return 140 * torch.rand(40, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64) - 70


def outcome(result: Result, mtre_mm: float, seconds: float) -> dict:
    "What a table says of one registration."
    evidence = {name: result.evidence[name] for name in ("similarity", "agreement", "local_similarity", "local_agreement", "expected_tre_mm", "newton_mm", "separation", "cost")}
    return dict(mtre_mm=mtre_mm, verdict=result.verdict, starts=result.evidence["starts"], seconds=seconds, steps=result.steps, renders=result.renders, **evidence, reasons="; ".join(result.reasons))


class Rows:
    "A CSV that grows row by row, so that a run can be stopped and resumed."

    def __init__(self, path: Path, keys: list):
        self.path, self.keys = path, keys
        path.parent.mkdir(parents=True, exist_ok=True)
        self.done = {tuple(row) for row in pd.read_csv(path)[keys].astype(str).to_numpy()} if path.exists() else set()

    def has(self, *key) -> bool:
        return tuple(str(k) for k in key) in self.done

    def add(self, row: dict) -> None:
        pd.DataFrame([row]).to_csv(self.path, mode="a", header=not self.path.exists(), index=False)


def read_rows(folder: Path) -> pd.DataFrame:
    "All rows written so far, by however many processes."
    return pd.concat([pd.read_csv(path) for path in sorted(folder.glob("rows_*.csv"))], ignore_index=True)


def summarise(rows: pd.DataFrame, by: list, limit: float = 1.0) -> pd.DataFrame:
    "A line per group: accuracy, verdicts against the truth, and cost."
    right, converged = rows["mtre_mm"] < limit, rows["verdict"] == "converged"
    rows = rows.assign(right=right, converged=converged, stalled=rows["verdict"] == "stalled", ambiguous=rows["verdict"] == "ambiguous", false_positive=converged & ~right, missed=right & ~converged)
    table = rows.groupby(by, sort=False).agg(
        n=("right", "size"),
        mtre_median_mm=("mtre_mm", "median"),
        mtre_p95_mm=("mtre_mm", lambda x: x.quantile(0.95)),
        under_1mm=("right", "mean"),
        converged=("converged", "sum"),
        stalled=("stalled", "sum"),
        ambiguous=("ambiguous", "sum"),
        false_positive=("false_positive", "sum"),
        missed=("missed", "sum"),
        seconds=("seconds", "median"),
        steps=("steps", "median"),
        renders=("renders", "median"),
    )
    return table.round(3).reset_index()


def launch(args, run: Callable, report: Callable, **knobs) -> None:
    "Save the configuration beside the results, run, and report; with --report only the last."
    args.folder.mkdir(parents=True, exist_ok=True)
    if not args.report:
        (args.folder / "config.json").write_text(json.dumps(knobs, indent=1))
        run(args)
    report(args.folder)
