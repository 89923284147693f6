"""How long does it take to find the pose of an X-ray?

    python benchmarks/register.py --out _runs/bench                   # about 2 minutes on two cores
    python benchmarks/register.py --out _runs/bench --adam-steps 0    # every step of every optimiser: about 6 minutes

The registration tutorial's problem: the example chest CT, source to detector 1020 mm, 100 x 100 pixels of 4 mm. The X-ray is a DRR
at zero angles and translation [0, 850, 0]; the search starts 46 degrees and 34 mm away. Every package registers an X-ray of its own making.

- `GaussNewton`, whole: pyramids are made, the pose is found, the covariance and the verdict are given.
- Adam, as in the tutorial: NCC of the images, learning rates 1e-1 (angles) and 5 (translation), until NCC > 0.999.

A step of Adam takes seconds elsewhere. By default some steps are measured (`--adam-steps`), and multiplied by the number of steps that
Adam takes on diffpose with the same rule: same images, same gradient, same path. The table says which numbers are extrapolated.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import PACKAGES, Diffpose, available, example_volume, machine, ratio, show, spread, write_csv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for register.csv")
parser.add_argument("--packages", nargs="+", default=["diffpose", "diffdrr", "nanodrr"], choices=["diffpose", "diffdrr", "nanodrr"])
parser.add_argument("--adam-steps", type=int, default=5, help="steps of Adam to measure in other packages; 0: until it converges")
parser.add_argument("--rounds", type=int, default=5, help="registrations by GaussNewton")
parser.add_argument("--points", type=int, default=500, help="samples per ray of the trilinear rule (nanodrr)")
parser.add_argument("--threads", type=int, default=0, help="threads (0: as torch chooses)")

SIZE, ENOUGH, MAX_STEPS = 100, 0.999, 200
TRUE_ROTATION, TRUE_TRANSLATION = torch.zeros(1, 3), torch.tensor([[0.0, 850.0, 0.0]])  # Euler ZXY [rad], [mm]
ROTATION, TRANSLATION = torch.tensor([[-0.1303, 0.3461, -0.7852]]), torch.tensor([[-11.8600, 828.8053, -24.4597]])
LR_ROTATION, LR_TRANSLATION = 1e-1, 5.0


def ncc(a, b):
    "Correlation of two images. B"
    a, b = ((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), correction=0, keepdim=True) for x in (a, b))
    return (a * b).mean((1, 2, 3))


class Adam:
    "The tutorial's loop on any renderer: `step` returns the NCC before the step."

    def __init__(self, renderer):
        self.renderer = renderer
        self.rotation, self.translation = ROTATION.clone().requires_grad_(), TRANSLATION.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([{"params": [self.rotation], "lr": LR_ROTATION}, {"params": [self.translation], "lr": LR_TRANSLATION}], maximize=True)
        with torch.no_grad():
            self.xray = renderer(TRUE_ROTATION, TRUE_TRANSLATION)

    def step(self):
        self.optimizer.zero_grad()
        score = ncc(self.renderer(self.rotation, self.translation), self.xray).sum()
        score.backward()
        self.optimizer.step()
        return score.item()

    def run(self, steps=MAX_STEPS):
        "NCC before each step until it is enough, and the seconds of each step."
        scores, seconds = [], []
        while len(scores) < steps and (not scores or scores[-1] <= ENOUGH):
            start = time.perf_counter()
            scores.append(self.step())
            seconds.append(time.perf_counter() - start)
        return scores, np.array(seconds)


class Newton:
    "`GaussNewton`, with a stopwatch that stands still while the similarity is looked at."

    def __init__(self, renderer):
        from diffpose.pose import convert

        pose = lambda r, t: convert(r, t, parameterization="euler_angles", convention="ZXY")
        self.drr, self.start, self.truth = renderer.drr, pose(ROTATION, TRANSLATION), pose(TRUE_ROTATION, TRUE_TRANSLATION)
        with torch.no_grad():
            self.xray = self.drr(self.truth)

    def error(self, result):
        "NCC of the found pose, and its distance from the truth [mm], [degrees]."
        with torch.no_grad():
            score = ncc(self.drr(result.pose.float()), self.xray).item()
        between = (self.truth.double().inverse().matrix @ result.pose.matrix)[0]
        angle = torch.rad2deg((between[:3, :3] - torch.eye(3)).norm() / 2**0.5)
        centre = (result.pose.inverse().matrix - self.truth.double().inverse().matrix)[0, :3, 3].norm()
        return score, f"{result.verdict}; {result.steps} steps, {result.renders} renders, NCC {score:.6f}, the isocenter {centre:.4f} mm and the view {angle:.4f} degrees from the truth"

    def run(self):
        "Result; seconds until NCC is enough (at the end of a stage) and in all; seconds for the next X-ray with the same object."
        from diffpose.registration import GaussNewton

        start, looking, reached = time.perf_counter(), 0.0, []

        def look(stage, stages, pose, cost):
            nonlocal looking
            begin = time.perf_counter()
            if not reached and ncc(self.drr(pose.float()), self.xray).item() > ENOUGH:
                reached.append(begin - start - looking)
            looking += time.perf_counter() - begin

        newton = GaussNewton(self.drr)
        result = newton.register(self.xray, init=self.start, callback=look)
        whole = time.perf_counter() - start - looking
        start = time.perf_counter()
        newton.register(self.xray, init=self.start)
        return result, reached[0] if reached else float("nan"), whole, time.perf_counter() - start


def main():
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    info = machine("python benchmarks/register.py " + shlex.join(sys.argv[1:]))
    for key, value in info.items():
        print(f"{key}: {value}")
    packages = [name for name in args.packages if available(name)]
    volume, sampled, rows = example_volume(), f"trilinear-{args.points}", []

    newton = Newton(Diffpose(volume, "siddon", SIZE))
    newton.run()  # warm
    ours = {rule: Adam(Diffpose(volume, rule, SIZE)) for rule in ("siddon", sampled)}
    paths = {rule: adam.run() for rule, adam in ours.items()}
    others = {name: Adam(PACKAGES[name](volume, rule, SIZE)) for name, rule in (("diffdrr", "siddon"), ("nanodrr", sampled)) if name in packages}

    runs, laps, scores = [], {name: [] for name in others}, {name: [] for name in others}
    turns = max(args.rounds, args.adam_steps)
    for k in range(turns):
        if k < args.rounds:
            runs.append(newton.run())
        for name, adam in others.items():
            if k < args.adam_steps:
                score, seconds = adam.run(1)
                scores[name] += score
                laps[name] += seconds.tolist()
    if args.adam_steps == 0:
        for name, adam in others.items():
            scores[name], laps[name] = (list(x) for x in adam.run())

    result, whole = runs[-1][0], np.array([seconds for _, _, seconds, _ in runs])
    final, words = newton.error(result)
    print(f"\nGaussNewton, X-ray by Siddon: {words}")
    same = Newton(Diffpose(volume, "trilinear-exact", SIZE))
    print(f"GaussNewton, X-ray by the exact trilinear rule, which it renders itself: {same.error(same.run()[0])[1]}")
    for name, (values, _) in (*paths.items(), *((n, (s, None)) for n, s in scores.items() if s)):
        print(f"Adam, {name}: NCC {values[0]:.5f} at the start, {values[-1]:.5f} after {len(values) - 1} steps")

    about = {"steps": result.steps, "ncc": f"{final:.5f}"}
    rows.append({"method": "diffpose GaussNewton, first X-ray", "seconds": spread(whole), "to_ncc_0.999": spread([r[1] for r in runs]), **about, "times_gauss_newton": 1})
    rows.append({"method": "diffpose GaussNewton, next X-ray", "seconds": spread([r[3] for r in runs]), **about, "times_gauss_newton": ratio(np.array([r[3] for r in runs]), whole)})
    for rule, (values, seconds) in paths.items():
        total = seconds.sum()
        rows.append({"method": f"diffpose Adam, {rule}", "seconds": f"{total:.3g}", "to_ncc_0.999": f"{total:.3g}", "steps": len(values), "ncc": f"{values[-1]:.5f}", "times_gauss_newton": ratio(np.array([total]), whole)})
    for name, rule in (("diffdrr", "siddon"), ("nanodrr", sampled)):
        if name in laps:
            full = args.adam_steps == 0
            steps = len(laps[name]) if full else len(paths[rule][0])
            total = sum(laps[name]) if full else steps * np.median(laps[name])
            about = {"steps": steps, "ncc": f"{scores[name][-1]:.5f}", "note": "in full" if full else f"extrapolated from {len(laps[name])} steps of {spread(laps[name])} s"}
            rows.append({"method": f"{name} Adam, {rule}", "seconds": f"{total:.3g}", "to_ncc_0.999": f"{total:.3g}", **about, "times_gauss_newton": ratio(np.array([total]), whole)})
    show(rows, ["method", "seconds", "to_ncc_0.999", "steps", "ncc", "times_gauss_newton", "note"])
    write_csv(args.out / "register.csv", info, rows)
    print(f"written: {args.out / 'register.csv'}")


if __name__ == "__main__":
    main()
