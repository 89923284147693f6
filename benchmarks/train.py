"""How long does one step of training a pose regressor take, and how much of it is rendering?

    pip install -e .[bench]
    python benchmarks/train.py --out _runs/bench          # three minutes on two cores

The step of DiffPose and xvr: eight random poses, their DRRs (128 x 128), a ResNet-18's guess, DRRs from the guessed poses, the loss
(multiscale NCC and the double geodesic), its gradient through the renderer into the network, and Adam. Network, loss and optimiser are
the same for every package, ours; the renderer is the package's. `no renderer` is the step on images made before, with the geodesic
alone: what would be left if rendering and comparing images cost nothing. Every contender starts from the same network and draws the same poses.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from common import PACKAGES, available, begin, example_volume, gpu, interleave, placed, poses, ratio, show, spread, write_csv

from diffpose.metrics import double_geodesic_se3, multiscale_ncc
from diffpose.pose import convert
from diffpose.registration import PoseRegressor
from diffpose.training import standardise

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for train.csv")
parser.add_argument("--size", type=int, default=128, help="images of N x N pixels")
parser.add_argument("--batch", type=int, default=8, help="images per step")
parser.add_argument("--packages", nargs="+", default=["diffpose", "nanodrr", "diffdrr"], choices=["diffpose", "nanodrr", "diffdrr"])
parser.add_argument("--points", type=int, default=500, help="samples per ray of the sampled trilinear rule")
parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
parser.add_argument("--budget", type=float, default=25.0, help="a contender that has run for so long [s] takes no more turns")
parser.add_argument("--device", default="cpu", help="where the network and the renderers are")
parser.add_argument("--threads", type=int, default=0, help="threads (0: as torch chooses)")

WINDOW, EPS, PER_MM, SDD = 13, 1e-4, 1e-2, 1020.0
AS_EULER = {"parameterization": "euler_angles", "convention": "ZXY"}


class Step:
    "One step of training, as a function of no arguments. It returns the loss."

    def __init__(self, renderer, size: int, batch: int, device: str):
        torch.manual_seed(0)
        self.renderer, self.batch, self.generator, self.device = renderer, batch, torch.Generator().manual_seed(0), device
        self.middle = poses(1)
        self.network = PoseRegressor("resnet18", height=size, reference=convert(*self.middle, **AS_EULER)).to(device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=1e-4)

    def draw(self):
        "Poses within 15 degrees and 20 mm of the frontal one."
        noise = 2 * torch.rand(2, self.batch, 3, generator=self.generator) - 1
        return (self.middle[0] + 0.26 * noise[0]).to(self.device), (self.middle[1] + 20 * noise[1]).to(self.device)

    def __call__(self):
        self.optimiser.zero_grad()
        rotation, translation = self.draw()
        with torch.no_grad():
            images = self.renderer(rotation, translation)
        loss = self.loss(images, rotation, translation)
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def loss(self, images, rotation, translation):
        guess, far = self.guess(images, rotation, translation)
        again = self.renderer(*guess.convert(**AS_EULER))
        return far + 1 - multiscale_ncc(again, images, [None, WINDOW], [0.5, 0.5], eps=EPS).mean()

    def guess(self, images, rotation, translation):
        "The network's poses, and how far they are from the true ones."
        guess = self.network(standardise(images))
        return guess, PER_MM * double_geodesic_se3(convert(rotation, translation, **AS_EULER), guess, SDD).double.mean()


class Unrendered(Step):
    "The step without rendering."

    def __init__(self, size: int, batch: int, device: str):
        images = torch.rand(batch, 1, size, size, device=device)
        super().__init__(lambda rotation, translation: images, size, batch, device)

    def loss(self, *batch):
        return self.guess(*batch)[1]


def main():
    args, info = begin(parser, gpu)
    volume, sampled = example_volume(), f"trilinear-{args.points}"
    steps = {"no renderer": Unrendered(args.size, args.batch, args.device)}
    for package, rule in (("diffpose", "siddon"), ("diffpose", "trilinear-exact"), ("diffpose", sampled), ("nanodrr", sampled), ("diffdrr", sampled), ("diffdrr", "siddon")):
        if package not in args.packages:
            continue
        if available(package):
            renderer = placed(PACKAGES[package](volume, rule, args.size), args.device)
            steps[f"{package}, {rule}"] = Step(renderer, args.size, args.batch, args.device)
        else:
            print(f"{package} is not installed, and left out")
    first = {name: step() for name, step in steps.items()}  # warm, and the loss of the same network on the same poses
    times = interleave(steps, args.rounds, args.budget)
    rows, bare = [], np.nanmedian(times["no renderer"])
    for name, seconds in times.items():
        row = {"step": name, "size": args.size, "batch": args.batch, "seconds": spread(seconds), "times_siddon": ratio(seconds, times["diffpose, siddon"])}
        rows.append(row | {"rendering_share": f"{1 - bare / np.nanmedian(seconds):.2f}", "first_loss": f"{first[name]:.4f}"})
    show(rows, list(rows[0]))
    write_csv(args.out / "train.csv", info, rows)
    print(f"written: {args.out / 'train.csv'}")


if __name__ == "__main__":
    main()
