"""Register a specimen's X-rays from its network's guess, without any other.

    python experiments/register.py --specimen 1 --data FILE.h5 --out _runs/paper
    python experiments/register.py --specimen 1 --data FILE.h5 --out _runs/paper --methods adam --limit 5

A row per X-ray and method goes to OUT/rows_METHOD_SPECIMEN.csv as it is done, the settings beside it; what is there is not computed again.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from scenes import Rows
from specimens import Specimen, load
from train import folder_of

from diffpose.drr import DRR
from diffpose.pose import RigidTransform
from diffpose.registration import GaussNewton, SparseAdam
from diffpose.files import save_atomically
from diffpose.training import PoseEstimator, versions


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
    opaque: float = 1.0  # leave out what is brighter than this share of the brightest, and 4 pixels around it (1: nothing)
# ----------------------------------------------------------------------


SOLVERS = {
    "network": lambda drr, config: None,
    "gauss_newton": lambda drr, config: GaussNewton(drr),
    "prior": lambda drr, config: GaussNewton(drr),
    "adam": lambda drr, config: SparseAdam(drr, steps=config.steps),
    "adam_dense": lambda drr, config: SparseAdam(drr, n_patches=None, steps=config.steps),
}


def register(method: str, solver, estimator: PoseEstimator, xray: torch.Tensor, mask: torch.Tensor, specimen: Specimen, camera, config: Config, k: int) -> dict:
    "One X-ray, one method: the pose, what is said of it, and the time from the X-ray to the pose."
    row = {"verdict": "", "expected_tre_mm": float("nan"), "steps": 0, "renders": 0, "starts": 0, "reasons": ""}
    begun = time.perf_counter()
    if method == "network":
        guess = pose = estimator.estimate(xray, camera, mask)
    elif method == "prior":
        result = solver.register(xray, estimator.config.poses.sample(64, torch.Generator().manual_seed(k)), mask=mask, landmarks=specimen.landmarks)
    else:
        options = {} if method.startswith("adam") else {"n_hypotheses": config.hypotheses, "n_more": config.more}
        result = estimator.register(xray, solver, mask, specimen.landmarks, **options)
    row["seconds"] = time.perf_counter() - begun
    if method != "network":
        guess, pose = estimator.estimate(xray, camera, mask), result.pose
        row |= {"verdict": result.verdict, "expected_tre_mm": result.expected_tre_mm, "steps": result.steps, "renders": result.renders, "starts": result.evidence.get("starts", 1), "reasons": "; ".join(result.reasons)}
    return {**row, **errors(specimen, k, guess, "before"), **errors(specimen, k, pose, "after")}


def without_opaque(xray: torch.Tensor, mask: torch.Tensor, share: float) -> torch.Tensor:
    "The mask without what no beam passes: the brightest pixels of the field, averaged over 5 x 5."
    smooth = torch.where(mask, F.avg_pool2d(xray, 5, 1, 2, count_include_pad=False), -torch.inf)
    return mask & (F.max_pool2d((smooth > share * smooth.max()).float(), 9, 1, 4) == 0) if share < 1 else mask


def errors(specimen: Specimen, k: int, pose: RigidTransform, when: str) -> dict:
    "Of a pose, in columns."
    return {f"{name}_{when}": value.item() for name, value in specimen.errors(k, pose)._asdict().items()}


def open_rows(method: str, config: Config, estimator: PoseEstimator) -> Rows:
    "The table of a method, with the settings that made it beside it; refuses to mix two settings."
    path = config.out / f"rows_{method}_{config.specimen}.csv"
    weights = hashlib.sha256(b"".join(x.cpu().numpy().tobytes() for x in estimator.model.state_dict().values())).hexdigest()[:16]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items() if k not in ("out", "methods", "limit")}
    settings |= {"network": weights, "versions": versions()}
    beside = path.with_suffix(".json")
    if path.exists():
        theirs = json.loads(beside.read_text()) if beside.exists() else {}
        other = [f"{k} ({theirs.get(k, 'unknown')} there, {v} here)" for k, v in settings.items() if k != "versions" and theirs.get(k) != v]
        if other:
            raise SystemExit(f"{path} is of other settings: {'; '.join(other)}. Give the same, take another --out, or remove that file")
    save_atomically(beside, lambda p: p.write_text(json.dumps(settings, indent=1) + "\n"))
    return Rows(path, ["xray"])


def main(config: Config) -> None:
    unknown = set(config.methods) - set(SOLVERS)
    if unknown:
        raise SystemExit(f"--methods are {', '.join(SOLVERS)}, not {', '.join(sorted(unknown))}")
    estimator = PoseEstimator.load(config.model or folder_of(config.out, (config.specimen,)))
    tables = {method: open_rows(method, config, estimator) for method in config.methods}
    specimen = load(config.specimen, config.data, config.height, config.tool_mm)
    for method, rows in tables.items():
        solvers = {}  # by camera: that of a turned frame differs, if its principal point is not its middle
        for k in range(min(specimen.n, config.limit or specimen.n)):
            if rows.has(k):
                continue
            (xray, mask), camera = specimen.xray(k), specimen.camera(k)
            mask = without_opaque(xray, mask, config.opaque)
            if camera not in solvers:  # compile, build the pyramid: not this X-ray's time
                drr = DRR.from_camera(specimen.subject, camera, renderer="trilinear", persistent=False)
                solvers[camera] = SOLVERS[method](drr, config)
                once = SOLVERS[method](drr, replace(config, steps=1)) if method.startswith("adam") else solvers[camera]
                register(method, once, estimator, xray, mask, specimen, camera, config, k)
            row = register(method, solvers[camera], estimator, xray, mask, specimen, camera, config, k)
            rows.add({"specimen": config.specimen, "name": specimen.name, "method": method, "xray": k, **row})
            print(f"{specimen.name}, {method}, X-ray {k}: mTRE {row['mtre_mm_before']:.1f} -> {row['mtre_mm_after']:.2f} mm, {row['verdict'] or 'no verdict'}, {row['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
