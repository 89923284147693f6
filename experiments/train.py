"""Teach a network one specimen, or several.

    python experiments/train.py --specimen 1 --data FILE.h5 --out _runs/paper
    python experiments/train.py --specimen 1 2 3 --data FILE.h5 --out _runs/all           one network for three patients
    python experiments/train.py --specimen 1 --data ct.nii.gz --out _runs/mine            any CT; X-rays are simulated to test it
    torchrun --standalone --nproc-per-node 4 experiments/train.py ...                     several GPUs share each batch

A training that was stopped goes on where it had saved. The network goes to OUT/specimen_1 with its settings and logs.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from specimens import load

from diffpose.training import RECIPES, TrainConfig, process_group, train


# ---------------------------------------------------------------- knobs
@dataclass(frozen=True)
class Config:
    specimen: tuple[int, ...]  # number, or several
    out: Path  # folder of the experiment
    data: Path | None = None  # HDF5 file of the benchmark or its twin (None: where `diffpose data deepfluoro` puts it), or a CT
    init: Path | None = None  # model to start from: fine-tuning
    recipe: Annotated[str, tyro.conf.arg(help="cpu (minutes on two cores), paper or successor (a GPU)")] = "cpu"
    iterations: int | None = None  # None, here and below: the recipe's
    batch_size: int | None = None  # per process
    height: int | None = None  # rows of the network's images
    lr: float | None = None
    warmup: int | None = None
    accumulate: int | None = None
    precision: str | None = None
    model_name: str | None = None
    parameterization: str | None = None
    validate_every: int | None = None
    checkpoint_every: int | None = None
    seed: int | None = None
    resume: bool = True
# ----------------------------------------------------------------------


def folder_of(out: Path, specimen: tuple[int, ...]) -> Path:
    "Where a specimen's network is."
    return Path(out) / f"specimen_{'_'.join(map(str, specimen))}"


def settings(config: Config) -> TrainConfig:
    "The recipe with its changes."
    if config.recipe not in RECIPES:
        raise SystemExit(f"--recipe is one of {', '.join(RECIPES)}, not {config.recipe!r}")
    names = ("iterations", "batch_size", "height", "lr", "warmup", "accumulate", "precision", "model_name", "parameterization", "validate_every", "checkpoint_every", "seed")
    changes = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if "model_name" in changes and not changes["model_name"].startswith("resnet"):
        changes["model_options"] = {}
    return replace(RECIPES[config.recipe](), **changes)


def main(config: Config) -> None:
    found = [load(k, config.data, 256) for k in config.specimen]
    rank, processes, device = process_group()
    began = time.perf_counter()
    estimator = train([s.subject for s in found], found[0].camera(0), folder_of(config.out, config.specimen), settings(config), config.init, progress=rank == 0, device=device, resume=config.resume)
    if rank == 0:
        print(f"{folder_of(config.out, config.specimen)}: {estimator.about['validation']}, {time.perf_counter() - began:.0f} s in this run, {processes} process(es), {device}")
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
