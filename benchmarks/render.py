"""How fast, how accurate and how large is a DRR, with and without the gradient by its pose or by its voxels?

    pip install -e .[bench]
    python benchmarks/render.py --out _runs/bench                           # an hour on two cores
    python benchmarks/render.py --sizes 200 --batches 1 --points 500        # two minutes

The scene: the example chest CT (512 x 512 x 133 voxels of 0.70 x 0.70 x 2.5 mm), source to detector 1020 mm, source to isocenter
850 mm, a detector of 400 x 400 mm, frontal view (a batch of 8 adds oblique ones). Each case, in this order:

1. A fresh process (forked from one that has done no more than its imports) loads the volume, renders an 8 x 8 image to warm up, then
   the case once: peak memory beyond what was there before, and the errors of image and gradient, against float64.
2. One process times all packages in turns: median (smallest-largest). Ratios are of medians (in brackets: of the smallest).

A case whose expected time (by its number of rays) or memory is beyond the limits below is left out, and the table says so.
"""

import argparse
import gc
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import FRONTAL, PACKAGES, available, begin, example_volume, interleave, peak_bytes, poses, ratio, reset_peak, show, spread, write_csv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for render.csv")
parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 200, 512, 1024], help="images of N x N pixels")
parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64], help="images per call")
parser.add_argument("--tasks", nargs="+", default=["value", "gradient", "voxels"], choices=["value", "gradient", "voxels", "jacobian"], help="what to compute")
parser.add_argument("--packages", nargs="+", default=list(PACKAGES), choices=list(PACKAGES))
parser.add_argument("--points", type=int, nargs="*", default=[500], help="samples per ray of the sampled trilinear rule")
parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
parser.add_argument("--budget", type=float, default=2.0, help="a contender that has run for so long [s] takes no more turns")
parser.add_argument("--limit", type=float, default=10.0, help="a case of another package expected to take longer than this [s] is left out")
parser.add_argument("--own-limit", type=float, default=40.0, help="likewise a case of diffpose")
parser.add_argument("--max-gb", type=float, default=10.0, help="a case that needs more memory than this [GB] is left out")
parser.add_argument("--turn", type=float, nargs=3, default=[0.0, 0.0, 0.0], help="degrees added to the three angles of every view")
parser.add_argument("--threads", type=int, default=0, help="threads (0: as torch chooses)")

# package, rule: Siddon is exact for voxels of constant density, "exact" integrates the trilinear interpolant, a number samples it
CONTENDERS = {
    "diffpose": ["siddon", "trilinear-exact", "trilinear-{n}"],
    "diffdrr": ["siddon", "trilinear-{n}"],
    "nanodrr": ["trilinear-{n}"],
    "plastimatch": ["siddon"],
    "rtk": ["joseph"],
}
# value: the image; gradient: and its gradient by the poses; voxels: and its gradient by the volume; jacobian: and B H W 6 (diffpose only)


class Task:
    "A piece of work as a function of no arguments. It returns the image, and gradients if asked: by rotation and translation, or by voxels X Y Z."

    def __init__(self, renderer, task: str, size: int, batch: int, turn=(0.0, 0.0, 0.0)):
        self.renderer, self.run = renderer, getattr(self, task)
        self.rotation, self.translation = poses(batch, turn)
        v, u = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
        self.weight = torch.sin(3 * u + 1) * torch.cos(4 * v - 1) + u * v  # some smooth function: the loss is (image * weight).mean()

    def __call__(self):
        return self.run()

    seconds = property(lambda self: getattr(self.renderer, "seconds", None), doc="What the last call took, where it knows better than we do.")

    def value(self):
        with torch.no_grad():
            return (self.renderer(self.rotation, self.translation),)

    def gradient(self):
        rotation, translation = self.rotation.clone().requires_grad_(), self.translation.clone().requires_grad_()
        image = self.renderer(rotation, translation)
        self.loss(image).backward()
        return image.detach(), rotation.grad, translation.grad

    def voxels(self):
        volume = self.renderer.voxels.requires_grad_()
        try:
            image = self.renderer(self.rotation, self.translation)
            (by_voxels,) = torch.autograd.grad(self.loss(image), volume)
        finally:
            volume.requires_grad_(False)
        return image.detach(), by_voxels[0, 0].permute(2, 1, 0) if by_voxels.ndim == 5 else by_voxels  # nanodrr: 1 1 Z Y X

    def truth(self):
        return self.gradient()

    def truth_with_voxels(self):
        return *self.gradient(), self.voxels()[1]

    def loss(self, image):
        return (image * self.weight.to(image.dtype)).mean((1, 2, 3)).sum()

    def jacobian(self):
        return self.renderer.jacobian(self.rotation, self.translation)[:1]


def probe(connection, path, package, rule, task, size, batch, args):
    "One case, in a process of its own: seconds, megabytes, and errors of image and gradient. The truth is kept in a file."
    if args.threads:
        torch.set_num_threads(args.threads)
    volume = tuple(np.load(path / f"{name}.npy") for name in ("density", "affine", "reorient"))
    options = {"dtype": torch.float64} if task.startswith("truth") else {}
    if package not in FRONTAL:
        Task(PACKAGES[package](volume, rule, 8, **options), task, 8, 1)()
    work = Task(PACKAGES[package](volume, rule, size, **options), task, size, batch, args.turn)
    gc.collect()
    limited = not task.startswith("truth") and sys.platform == "linux"
    resource.setrlimit(resource.RLIMIT_AS, (int(virtual_bytes() + args.max_gb * 1e9), -1)) if limited else None
    reset_peak()
    before, start = peak_bytes(), time.perf_counter()
    try:
        out = work()
    except (MemoryError, RuntimeError) as error:
        if "alloc" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return connection.send(None)
    seconds, megabytes = time.perf_counter() - start, (peak_bytes() - before) / 1e6
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1)) if limited else None
    out, file = [x.double().numpy() for x in out], path / f"truth-{rule.partition('-')[0].replace('joseph', 'trilinear')}.npz"
    if task.startswith("truth"):
        np.savez(file, image=out[0], gradient=np.concatenate(out[1:3]), voxels=out[3] if task == "truth_with_voxels" else [])
        return connection.send(True)
    connection.send((work.seconds or seconds, "" if work.seconds else f"{megabytes:.0f}", *errors(task, out, np.load(file))))


def errors(task, out, truth):
    "Largest error of the image relative to its maximum, and of the gradient relative to its length."
    image = np.abs(out[0] - truth["image"]).max() / truth["image"].max()
    if task not in ("gradient", "voxels"):
        return image, float("nan")
    mine, right = (out[1], truth["voxels"]) if task == "voxels" else (np.concatenate(out[1:]), truth["gradient"])
    pieces = zip(*(np.split(x, 2) for x in (mine, right))) if task == "gradient" else [(mine, right)]  # radians and millimetres apart
    return image, max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pieces)


def virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def measure(context, *arguments):
    "Seconds, MB, results of a case in a fresh process; None if it needs too much memory."
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=probe, args=(there, *arguments))
    process.start()
    there.close()
    try:
        result = here.recv()
    except EOFError:
        result = None  # killed: out of memory
    process.join()
    return result


def main():
    args, info = begin(parser)
    packages = [name for name in args.packages if available(name)]
    for name in set(args.packages) - set(packages):
        print(f"{name} is not installed, and left out")

    volume = example_volume()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, array in zip(("density", "affine", "reorient"), volume):
        np.save(args.out / f"{name}.npy", array)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffpose.drr", *(f"{p}.drr" for p in packages if p in ("diffdrr", "nanodrr"))])

    contenders = [(p, rule.format(n=n)) for p in packages for rule in CONTENDERS[p] for n in (args.points if "{n}" in rule else [0])]
    rows, per_ray = [], {}
    for size in args.sizes:
        for batch in args.batches:
            rows += case(args, context, volume, contenders, per_ray, size, batch)
            show(rows[-sum(r["size"] == size and r["batch"] == batch for r in rows) :], ["size", "batch", "package", "rule", "task", "ms", "times_siddon", "times_value", "peak_mb", "image_error", "gradient_error"])
            write_csv(args.out / "render.csv", info, rows)
    for name in ("density.npy", "affine.npy", "reorient.npy", "truth-siddon.npz", "truth-trilinear.npz"):
        (args.out / name).unlink(missing_ok=True)
    print(f"written: {args.out / 'render.csv'}")


def possible(package: str, task: str, batch: int, turn) -> bool:
    "Can a package do that at all?"
    if package in FRONTAL:
        return task == "value" and batch == 1 and not any(turn)
    return package == "diffpose" or task != "jacobian"


def case(args, context, volume, contenders, per_ray, size, batch):
    "All contenders and tasks at one size and batch: rows of the table."
    rays, kept, functions, rows = batch * size * size, {}, {}, []
    wanted = [(p, rule, task) for p, rule in contenders for task in args.tasks if possible(p, task, batch, args.turn)]
    expected = {key: per_ray.get(key, 0) * rays for key in wanted}
    within = {key for key in wanted if expected[key] <= (args.own_limit if key[0] == "diffpose" else args.limit)}
    for rule in ("siddon", "trilinear-exact") if within else ():
        measure(context, args.out, "diffpose", rule, "truth_with_voxels" if any(task == "voxels" for *_, task in within) else "truth", size, batch, args)
    for key in wanted:
        package, rule, task = key
        row = {"size": size, "batch": batch, "package": package, "rule": rule, "task": task}
        rows.append(row)
        if key not in within:
            row["ms"] = f"not run (about {expected[key]:.0f} s)"
            continue
        result = measure(context, args.out, package, rule, task, size, batch, args)
        if result is None:
            row["ms"] = f"not run (over {args.max_gb:g} GB)"
            continue
        seconds, megabytes, image, gradient = result
        per_ray[key] = seconds / rays
        row |= {"peak_mb": megabytes, "image_error": f"{image:.1e}", "gradient_error": "" if np.isnan(gradient) else f"{gradient:.1e}"}
        if (package, rule) not in kept:
            kept[package, rule] = PACKAGES[package](volume, rule, size)
        functions[key] = Task(kept[package, rule], task, size, batch, args.turn)
    for key, function in functions.items():
        if key[0] == "diffpose" and per_ray[key] * rays < 2:
            function()  # warm
    times = interleave(functions, args.rounds, args.budget)
    for row in rows:
        key = (row["package"], row["rule"], row["task"])
        if key not in times:
            continue
        seconds = times[key]
        per_ray[key] = np.nanmedian(seconds) / rays
        row["ms"], row["turns"] = spread(1000 * seconds), int(np.isfinite(seconds).sum())
        row["times_siddon"] = ratio(seconds, times.get(("diffpose", "siddon", row["task"])))
        row["times_value"] = ratio(seconds, times.get((*key[:2], "value"))) if key[2] != "value" else ""
    return rows


if __name__ == "__main__":
    main()
