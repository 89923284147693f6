"""How fast is a DRR on a GPU, with and without its derivatives, and how far is that from what the GPU could do?

    pip install -e .[bench]
    python benchmarks/gpu.py --out _runs/bench

The scene is that of render.py. Time is the GPU's own: a call is captured in a CUDA graph and replayed, and events around many replays are
compared, so that neither Python nor launches count. `wall` is a call as a user makes it, waited for. Errors are against a float64
render on the CPU, of the first eight images. The floor is the time to read the volume once at the bandwidth that a large copy reaches here.
Packages take turns. nanodrr is measured as it comes (fused, in Triton); with --peers also as its torch renderer under torch.compile, and DiffDRR.

Without a CUDA device there is nothing to do, and the script says so.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from common import Diffdrr, Diffpose, Nanodrr, available, begin, example_volume, gpu, placed, poses, show, write_csv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for gpu.csv")
parser.add_argument("--sizes", type=int, nargs="+", default=[200, 512], help="images of N x N pixels")
parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="images per call")
parser.add_argument("--points", type=int, default=500, help="samples per ray of the sampled trilinear rule")
parser.add_argument("--peers", type=int, default=0, nargs="?", const=64, help="those too that take milliseconds, up to so many images per call")
parser.add_argument("--registered", type=int, nargs="*", default=[1, 64], help="X-rays registered at once")
parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
parser.add_argument("--replays", type=int, default=50, help="replays of a graph in a turn, at most")
parser.add_argument("--budget", type=float, default=1.0, help="a contender that has run for so long [s] takes no more turns")
parser.add_argument("--turn", type=float, default=20.0, help="a turn replays a graph once or for so long [ms]")


class Work:
    "A renderer and a task on the GPU, as a function of no arguments whose inputs stay where they are."

    def __init__(self, renderer, task: str, batch: int):
        self.renderer, self.run = renderer, getattr(self, task)
        self.rotation, self.translation = (x.cuda().requires_grad_() for x in poses(batch))
        with torch.no_grad():
            self.pose = renderer.pose(self.rotation, self.translation)
        self.pose.requires_grad_()

    def __call__(self):
        return self.run()

    def value(self):
        with torch.no_grad():
            return self.renderer.image(self.pose)

    def gradient(self):
        image = self.renderer.image(self.pose)
        return image, *torch.autograd.grad(image.mean(), self.pose)

    def angles(self):
        image = self.renderer(self.rotation, self.translation)
        return image, *torch.autograd.grad(image.mean(), (self.rotation, self.translation))

    def jacobian(self):
        return self.renderer.jacobian(self.rotation, self.translation)

    def voxels(self):
        volume = self.renderer.voxels.requires_grad_()
        try:
            return torch.autograd.grad(self.renderer.image(self.pose.detach()).mean(), volume)
        finally:
            volume.requires_grad_(False)


# value: from the matrix of a pose to its image; gradient: and back to the matrix; angles: the same from Euler angles, as users do
TASKS = ("value", "gradient", "angles", "voxels", "jacobian")  # jacobian: diffpose only


class Called:
    "In place of a graph, for a call that cannot be captured: its launches are timed too."

    def __init__(self, work):
        self.replay = work


def captured(work):
    "The GPU's part of a call, to be replayed."
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError as error:
        print(f"not captured: {str(error).splitlines()[0]}")
        torch.cuda.synchronize()
        return Called(work)
    return graph


def microseconds(graph, replays: int) -> float:
    "GPU time of one replay, of several."
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end) / replays


def wall_microseconds(work) -> float:
    "What a user waits for."
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - start)


def bandwidth() -> float:
    "Bytes per second of a large copy, read and written."
    a, b = (torch.empty(2**28, device="cuda") for _ in range(2))
    graph = captured(lambda: b.copy_(a))
    return 2 * a.nbytes / (1e-6 * statistics.median(microseconds(graph, 10) for _ in range(5)))


def contenders(volume, size: int, points: int, peers: bool) -> dict:
    "Renderers on the GPU by package, rule and precision; `peers`: those too that take milliseconds."
    found = {}
    for rule in (f"trilinear-{points}", "trilinear-exact", "siddon"):
        for dtype in (torch.float32, torch.bfloat16):
            found["diffpose", rule, str(dtype)[6:]] = placed(Diffpose(volume, rule, size, dtype), "cuda")
    if available("nanodrr"):
        for dtype in (torch.float32, torch.bfloat16):
            other = placed(Nanodrr(volume, f"trilinear-{points}", size), "cuda")
            other.subject._image_hu = other.subject.image.to(dtype)
            found["nanodrr", f"trilinear-{points}", str(dtype)[6:]] = other
        if peers:
            found["nanodrr, torch.compile", f"trilinear-{points}", "float32"] = slow = placed(Nanodrr(volume, f"trilinear-{points}", size), "cuda")
            renderer, samples = slow.drr, slow.n_samples
            slow.image = torch.compile(lambda matrix: renderer(slow.subject, matrix, n_samples=samples, backend="torch"))
    if peers and available("diffdrr"):
        for rule in (f"trilinear-{points}", "siddon"):
            found["diffdrr", rule, "float32"] = placed(Diffdrr(volume, rule, size), "cuda")
    return found


def measure(args, volume, size: int, batch: int, copy_rate: float) -> list[dict]:
    "Rows of the table for one size and batch."
    exact = {rule: Diffpose(volume, rule, size, torch.float64)(*poses(min(batch, 8))) for rule in ("siddon", "trilinear-exact")}
    graphs, works, rows = {}, {}, []
    for key, renderer in contenders(volume, size, args.points, batch <= args.peers).items():
        for task in TASKS if key[0] == "diffpose" else TASKS[:-1]:
            work = Work(renderer, task, batch)
            try:
                work()  # compiles
            except Exception as error:
                print(f"{key}, {task}: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            out = work()
            peak = torch.cuda.max_memory_allocated() - before
            row = {"size": size, "batch": batch, "package": key[0], "rule": key[1], "precision": key[2], "task": task, "peak_mb": f"{peak / 1e6:.1f}", "volume_mb": f"{renderer.voxels.nbytes / 1e6:.0f}", "memory_times_volume": f"{1 + peak / renderer.voxels.nbytes:.2f}"}
            if task == "value":
                truth = exact["siddon" if key[1] == "siddon" else "trilinear-exact"]
                row["image_error"] = f"{(out[: len(truth)].double().cpu() - truth).abs().max().item() / truth.max().item():.1e}"
            del out
            works[(*key, task)], graphs[(*key, task)] = work, captured(work) if key[0] in ("diffpose", "nanodrr") else Called(work)
            row["floor_us"] = f"{1e6 * renderer.voxels.nbytes / copy_rate:.1f}"
            rows.append(row)
    times = {key: [] for key in graphs}
    replays = {key: max(1, min(args.replays, int(1e3 * args.turn / microseconds(graph, 1)))) for key, graph in graphs.items()}
    for _ in range(args.rounds):
        for key, graph in graphs.items():
            if 1e-6 * replays[key] * sum(times[key]) < args.budget:
                times[key].append(microseconds(graph, replays[key]))
    for row in rows:
        key = tuple(row[name] for name in ("package", "rule", "precision", "task"))
        mine, value = np.array(times[key]), np.median(times[(*key[:3], "value")])
        row |= {"gpu_us": f"{np.median(mine):.1f} ({mine.min():.1f}-{mine.max():.1f})", "times_value": f"{np.median(mine) / value:.2f}"}
        row |= {"graph": "no" if isinstance(graphs[key], Called) else "yes", "wall_us": f"{statistics.median(wall_microseconds(works[key]) for _ in range(9 if value < 1e4 else 1)):.0f}"}
    return rows


def register(volume, batch: int) -> dict:
    "A registration from 20 degrees off, 100 x 100 pixels, in milliseconds; of several X-rays at once, each from a pose of its own."
    from diffpose.metrics import mtre
    from diffpose.pose import convert
    from diffpose.registration import GaussNewton, default_landmarks

    drr = Diffpose(volume, "siddon", 100).drr.cuda()
    off, away = torch.deg2rad(torch.tensor([[-12.0, 10.0, -12.0]])), torch.tensor([[-10.0, -20.0, -10.0]])  # 20 degrees about one axis
    rotation, translation = poses(batch)
    truth, start = (convert(rotation + k * off, translation + k * away, parameterization="euler_angles", convention="ZXY") for k in (0, 1))
    with torch.no_grad():
        xray = drr(truth.cuda())
    solver = GaussNewton(drr)
    laps = []
    for _ in range(4 if batch == 1 else 2):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        result = solver.register(xray, init=start)
        laps.append(1e3 * (time.perf_counter() - begun))
    results, landmarks = result if batch > 1 else [result], default_landmarks(drr)[None]
    far = torch.cat([mtre(truth.double()[k], one.pose.cpu(), landmarks) for k, one in enumerate(results)])
    return {
        "xrays": batch, "first_ms": f"{laps[0]:.1f}", "next_ms": f"{statistics.median(laps[1:]):.1f}", "mtre_mm": f"{far.median():.3f}", "largest_mtre_mm": f"{far.max():.3f}",
        "within_0.1_mm": int((far <= 0.1).sum()), "converged": sum(one.verdict == "converged" for one in results),
    }  # fmt: skip


def main():
    if not torch.cuda.is_available():
        parser.parse_args()
        print("gpu.py: no CUDA device here, nothing was measured")
        return
    args, info = begin(parser, lambda: gpu() | {"copy_gb_per_s": round(bandwidth() / 1e9)})
    copy_rate = 1e9 * info["copy_gb_per_s"]
    volume, rows = example_volume(), []
    args.out.mkdir(parents=True, exist_ok=True)
    for size in args.sizes:
        for batch in args.batches:
            new = measure(args, volume, size, batch, copy_rate)
            show(new, list(new[0]))
            rows += new
            write_csv(args.out / "gpu.csv", info, rows)
    found = [register(volume, batch) for batch in args.registered]
    if found:
        print("GaussNewton from 20 degrees off, 100 x 100")
        show(found, list(found[0]))
        write_csv(args.out / "gpu_register.csv", info, found)
    print(f"written: {args.out / 'gpu.csv'}")


if __name__ == "__main__":
    main()
