"""Register a specimen's X-rays from its network's guess, without any other.

    python experiments/register.py --specimen 1 --data FILE.h5 --out _runs/paper
    python experiments/register.py --specimen 1 --data FILE.h5 --out _runs/paper --methods adam --limit 5

A row per X-ray and method goes to OUT/rows_METHOD_SPECIMEN.csv as it is done; what is there is not computed again.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from scenes import Rows
from specimens import Specimen, load
from train import folder_of

from diffpose.drr import DRR
from diffpose.pose import RigidTransform
from diffpose.registration import GaussNewton, SparseAdam
from diffpose.training import PoseEstimator


# ---------------------------------------------------------------- knobs
@dataclass(frozen=True)
class Config:
    specimen: int  # number
    out: Path  # folder of the experiment; its network is in specimen_N
    data: Path | None = None  # as for train.py
    model: Path | None = None  # another network (None: the specimen's)
    methods: tuple[str, ...] = ("network", "gauss_newton")  # and prior (GaussNewton from 64 draws of the training's range, no network), adam, adam_dense
    height: int = 192  # rows of the X-rays
    limit: int | None = None  # X-rays (None: all)
    hypotheses: int = 7  # beside the guess
    more: int = 48  # further starts where these do not convince
    steps: int = 500  # of Adam
    tool_mm: float = 0.0  # with a CT: a metal rod across the X-rays
# ----------------------------------------------------------------------


SOLVERS = {
    "network": lambda drr, config: None,
    "gauss_newton": lambda drr, config: GaussNewton(drr),
    "prior": lambda drr, config: GaussNewton(drr),
    "adam": lambda drr, config: SparseAdam(drr, steps=config.steps),
    "adam_dense": lambda drr, config: SparseAdam(drr, n_patches=None, steps=config.steps),
}


def register(method: str, solver, estimator: PoseEstimator, xray: torch.Tensor, mask: torch.Tensor, specimen: Specimen, camera, config: Config, k: int) -> dict:
    "One X-ray, one method: the pose, what is said of it, and the time."
    begun = time.perf_counter()
    guess = estimator.estimate(xray, camera, mask)
    row, pose = {"verdict": "", "expected_tre_mm": float("nan"), "steps": 0, "renders": 0, "starts": 0, "reasons": ""}, guess
    if method != "network":
        if method == "prior":
            result = solver.register(xray, estimator.config.poses.sample(64, torch.Generator().manual_seed(k)), mask=mask, landmarks=specimen.landmarks)
        else:
            options = {} if method.startswith("adam") else {"n_hypotheses": config.hypotheses, "n_more": config.more}
            result = estimator.register(xray, solver, mask, specimen.landmarks, **options)
        pose = result.pose
        row = {"verdict": result.verdict, "expected_tre_mm": result.expected_tre_mm, "steps": result.steps, "renders": result.renders, "starts": result.evidence.get("starts", 1), "reasons": "; ".join(result.reasons)}
    return {"seconds": time.perf_counter() - begun, **row, **errors(specimen, k, guess, "before"), **errors(specimen, k, pose, "after")}


def errors(specimen: Specimen, k: int, pose: RigidTransform, when: str) -> dict:
    "Of a pose, in columns."
    return {f"{name}_{when}": value.item() for name, value in specimen.errors(k, pose)._asdict().items()}


def main(config: Config) -> None:
    unknown = set(config.methods) - set(SOLVERS)
    if unknown:
        raise SystemExit(f"--methods are {', '.join(SOLVERS)}, not {', '.join(sorted(unknown))}")
    estimator = PoseEstimator.load(config.model or folder_of(config.out, (config.specimen,)))
    specimen = load(config.specimen, config.data, config.height, config.tool_mm)
    camera = specimen.camera(0)
    drr = DRR.from_camera(specimen.subject, camera, renderer="trilinear", persistent=False)
    for method in config.methods:
        warm, rows, solver = False, Rows(config.out / f"rows_{method}_{config.specimen}.csv", ["xray"]), SOLVERS[method](drr, config)
        for k in range(min(specimen.n, config.limit or specimen.n)):
            if rows.has(k):
                continue
            (xray, mask), there = specimen.xray(k), specimen.camera(k)
            if there != camera:  # a rotated frame whose principal point is not its middle
                solver = SOLVERS[method](DRR.from_camera(specimen.subject, there, renderer="trilinear", persistent=False), config)
                camera = there
            if not warm:  # compile, build the pyramid: not this X-ray's time
                once = SOLVERS[method](drr, replace(config, steps=1)) if method.startswith("adam") else solver
                register(method, once, estimator, xray, mask, specimen, there, config, k)
                warm = True
            row = register(method, solver, estimator, xray, mask, specimen, there, config, k)
            rows.add({"specimen": config.specimen, "name": specimen.name, "method": method, "xray": k, **row})
            print(f"{specimen.name}, {method}, X-ray {k}: mTRE {row['mtre_mm_before']:.1f} -> {row['mtre_mm_after']:.2f} mm, {row['verdict'] or 'no verdict'}, {row['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
