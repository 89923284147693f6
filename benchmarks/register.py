"""How long does it take to find the pose of an X-ray, to 0.1 mm?

    python benchmarks/register.py --out _runs/bench                   # about 2 minutes on two cores
    python benchmarks/register.py --out _runs/bench --adam-steps 0    # every step of every optimiser: about 10 minutes

The registration tutorial's problem: the example chest CT, source to detector 1020 mm, 100 x 100 pixels of 4 mm. The X-ray is a DRR
at zero angles and translation [0, 850, 0]; the search starts 46 degrees and 34 mm away. Every package registers an X-ray of its own making.
Near is a mean target registration error of 0.1 mm, over the density's centre and one standard deviation of it along each axis.

- `GaussNewton`, whole: pyramids are made, the pose is found, the covariance and the verdict are given.
- Adam: NCC of the images, learning rates 1e-1 (angles) and 5 (translation) until NCC > 0.999, as in the tutorial; from there on they
  shrink by 5% per step, for with steps as large as these it never comes nearer.

A step of Adam takes seconds elsewhere. By default some steps are measured (`--adam-steps`), and multiplied by the number of steps that
Adam takes on diffpose with the same rule: same images, same gradient, same path. The table says which numbers are extrapolated.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import PACKAGES, Diffpose, available, begin, example_volume, ratio, show, spread, write_csv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for register.csv")
parser.add_argument("--packages", nargs="+", default=["diffpose", "diffdrr", "nanodrr"], choices=["diffpose", "diffdrr", "nanodrr"])
parser.add_argument("--adam-steps", type=int, default=5, help="steps of Adam to measure in other packages; 0: until it converges")
parser.add_argument("--rounds", type=int, default=5, help="registrations by GaussNewton")
parser.add_argument("--points", type=int, default=500, help="samples per ray of the trilinear rule (nanodrr)")
parser.add_argument("--threads", type=int, default=0, help="threads (0: as torch chooses)")

SIZE, ENOUGH, NEAR, SHRINK, MAX_STEPS = 100, 0.999, 0.1, 0.95, 300
TRUE_ROTATION, TRUE_TRANSLATION = torch.zeros(1, 3), torch.tensor([[0.0, 850.0, 0.0]])  # Euler ZXY [rad], [mm]
ROTATION, TRANSLATION = torch.tensor([[-0.1303, 0.3461, -0.7852]]), torch.tensor([[-11.8600, 828.8053, -24.4597]])
LR_ROTATION, LR_TRANSLATION = 1e-1, 5.0


def ncc(a, b):
    "Correlation of two images. B"
    a, b = ((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), correction=0, keepdim=True) for x in (a, b))
    return (a * b).mean((1, 2, 3))


def pose_of(rotation, translation):
    from diffpose.pose import convert

    return convert(rotation, translation, parameterization="euler_angles", convention="ZXY").double()


class Adam:
    "The tutorial's loop on any renderer: `step` returns the NCC before the step."

    def __init__(self, renderer, landmarks):
        self.renderer, self.landmarks = renderer, landmarks
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

    def error(self):
        "How far the landmarks are from where they should be [mm]."
        from diffpose.metrics import mtre

        return mtre(pose_of(TRUE_ROTATION, TRUE_TRANSLATION), pose_of(self.rotation.detach(), self.translation.detach()), self.landmarks).item()

    def run(self, steps=MAX_STEPS):
        "NCC before, error after, and seconds of each step, until the pose is near."
        scores, errors, seconds = [], [], []
        while len(scores) < steps and (not errors or errors[-1] > NEAR):
            start = time.perf_counter()
            scores.append(self.step())
            seconds.append(time.perf_counter() - start)
            errors.append(self.error())
            if max(scores) > ENOUGH:
                for group in self.optimizer.param_groups:
                    group["lr"] *= SHRINK
        return scores, errors, np.array(seconds)


def until(scores: list, errors: list) -> tuple:
    "After how many steps NCC was enough, and the pose near; None: never."
    first = lambda found: next((k + 1 for k, yes in enumerate(found) if yes), None)
    return first(score > ENOUGH for score in scores), first(error <= NEAR for error in errors)


class Newton:
    "`GaussNewton`, with a stopwatch that stands still while the pose is looked at."

    def __init__(self, renderer, landmarks):
        self.drr, self.landmarks = renderer.drr, landmarks
        self.start, self.truth = pose_of(ROTATION, TRANSLATION), pose_of(TRUE_ROTATION, TRUE_TRANSLATION)
        with torch.no_grad():
            self.xray = self.drr(self.truth.float())

    def quality(self, pose):
        "NCC of the DRR with the X-ray, and how far the landmarks are from where they should be [mm]."
        from diffpose.metrics import mtre

        with torch.no_grad():
            return ncc(self.drr(pose.float()), self.xray).item(), mtre(self.truth, pose.cpu(), self.landmarks).item()

    def run(self):
        "Result; seconds until NCC is enough, until the pose is near (looked at after each stage), in all; and in all for the next X-ray with the same object."
        from diffpose.registration import GaussNewton

        start, looking, enough, near = time.perf_counter(), 0.0, [], []

        def look(stage, stages, pose, cost):
            nonlocal looking
            begin = time.perf_counter()
            score, error = self.quality(pose)
            enough.extend([begin - start - looking] * (score > ENOUGH))
            near.extend([begin - start - looking] * (error <= NEAR))
            looking += time.perf_counter() - begin

        newton = GaussNewton(self.drr)
        result = newton.register(self.xray, init=self.start, callback=look)
        whole = time.perf_counter() - start - looking
        start = time.perf_counter()
        newton.register(self.xray, init=self.start)
        return result, enough[0] if enough else float("nan"), near[0] if near else float("nan"), whole, time.perf_counter() - start


def main():
    from diffpose.registration import default_landmarks

    args, info = begin(parser)
    packages = [name for name in args.packages if available(name)]
    volume, sampled = example_volume(), f"trilinear-{args.points}"
    siddon = Diffpose(volume, "siddon", SIZE)
    landmarks = default_landmarks(siddon.drr)[None]

    newton = Newton(siddon, landmarks)
    newton.run()  # warm
    paths = {rule: Adam(Diffpose(volume, rule, SIZE), landmarks).run() for rule in ("siddon", sampled)}
    others = {name: Adam(PACKAGES[name](volume, rule, SIZE), landmarks) for name, rule in (("diffdrr", "siddon"), ("nanodrr", sampled)) if name in packages}

    runs, found = [], {name: ([], [], []) for name in others}
    for k in range(max(args.rounds, args.adam_steps)):
        if k < args.rounds:
            runs.append(newton.run())
        for name, adam in others.items():
            if k < args.adam_steps:
                for kept, new in zip(found[name], adam.run(1)):
                    kept.extend(new)
    if args.adam_steps == 0:
        found = {name: adam.run() for name, adam in others.items()}

    result, whole = runs[-1][0], np.array([run[2] for run in runs])
    same = Newton(Diffpose(volume, "trilinear-exact", SIZE), landmarks)
    own = same.run()[0]
    print(f"\nGaussNewton: {result.verdict}, {result.steps} steps, {result.renders} renders; X-ray by the exact trilinear rule, which it renders itself: NCC and mTRE {same.quality(own.pose)}")

    score, error = newton.quality(result.pose)
    about = {"steps": result.steps, "ncc": f"{score:.6f}", "mtre_mm": f"{error:.3f}"}
    names = "seconds_to_ncc_0.999", "seconds_to_0.1_mm", "seconds"
    rows = [{"method": "diffpose GaussNewton, first X-ray", **{name: spread([run[k] for run in runs]) for k, name in enumerate(names, 1)}, **about, "times_gauss_newton": 1}]
    following = np.array([run[4] for run in runs])
    rows.append({"method": "diffpose GaussNewton, next X-ray", "seconds": spread(following), **about, "times_gauss_newton": ratio(following, whole)})
    for rule, (scores, errors, seconds) in paths.items():
        rows.append(row_of(f"diffpose Adam, {rule}", scores, errors, seconds, until(scores, errors), whole, "in full"))
    for name, (scores, errors, seconds) in found.items():
        rule, full = ("siddon" if name == "diffdrr" else sampled), args.adam_steps == 0
        steps = until(scores, errors) if full else until(*paths[rule][:2])
        rows.append(row_of(f"{name} Adam, {rule}", scores, errors, np.array(seconds), steps, whole, "in full" if full else f"extrapolated from {len(seconds)} steps of {spread(seconds)} s"))
    show(rows, list(rows[2]))
    write_csv(args.out / "register.csv", info, rows)
    print(f"written: {args.out / 'register.csv'}")


def row_of(method: str, scores: list, errors: list, seconds, steps: tuple, base, note: str) -> dict:
    "A row for Adam: so many steps of so many seconds."
    take = [None if n is None else seconds[:n].sum() if note == "in full" else n * np.median(seconds) for n in steps]
    row = {"method": method} | {name: "never" if t is None else f"{t:.3g}" for name, t in zip(("seconds_to_ncc_0.999", "seconds_to_0.1_mm"), take)}
    row |= {"seconds": row["seconds_to_0.1_mm"], "steps": steps[1] or len(scores)}
    if note == "in full":
        row |= {"ncc": f"{scores[-1]:.6f}", "mtre_mm": f"{errors[-1]:.3f}"}
    return row | {"times_gauss_newton": "" if take[1] is None else ratio(np.array([take[1]]), base), "note": note}


if __name__ == "__main__":
    main()
