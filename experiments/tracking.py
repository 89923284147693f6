"""Is a patient followed through a sequence of 60 frames, with a jump and a tool in it, how fast, and how large is the stated error?

    python experiments/tracking.py [FOLDER] [--renderer diffpose|diffdrr] [--frames 60] [--report]

The patient turns by a degree and shifts by a millimetre a frame, jumps by 15 degrees and 5 mm after a third of the frames (at frame 20),
and is covered by an opaque bar in a sixth of them after two thirds (40 to 49).
`diffpose` frames are simulated (spectrum, denser bone, scatter, blur, noise, an unknown gain in every frame); `diffdrr` frames are line integrals of another renderer
(pip install diffdrr, or its folder in PYTHONPATH), with noise and the bar laid on them. Frames are kept in the folder, and not made again. A frame is timed beside a
single registration of it (`GaussNewton(drr).register` from the pose of the frame before), in the same process, so that the ratio holds on a machine that others share.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from diffpose.calibration import Camera
from diffpose.drr import DRR
from diffpose.metrics import mtre
from diffpose.phantom import make_phantom
from diffpose.pose import RigidTransform, convert
from diffpose.registration import GaussNewton, MotionPrior
from diffpose.simulation import Physics, simulate_xray
from diffpose.tracking import Track, track
from diffpose.twists import se3_exp, se3_log

# ---------------------------------------------------------------- knobs
CAMERA = Camera(1020.0, 256, 256, 1.2, 1.2)
AXIS, WAY = (0.3, 0.2, 1.0), (1.0, 0.4, 0.3)  # of the turn, and of the shift
TURNED = (0.6, 0.8, 0.0)  # axis of the jump
BAR_MM = 180.0  # width of the bar on the detector, which is 307 mm wide
SPACING = 2.0  # of the CT [mm]
EVEN = MotionPrior(0.5, 1.0)
OFF = (4.0, -6.0, 3.0, 0.05, -0.04, 0.06)  # of the first start: mm, rad
BESIDE = 5  # every so many frames one that is tracked is registered alone, too, for the time
COUNTS = 2e4  # unattenuated, per pixel, of diffdrr's frames
# ----------------------------------------------------------------------


def unit(direction) -> torch.Tensor:
    direction = torch.tensor(direction, dtype=torch.float64)
    return direction / direction.norm()


def jump_of(n: int) -> int:
    return n // 3


def hidden_of(n: int) -> range:
    return range(n * 2 // 3, n * 2 // 3 + n // 6)


def path(n: int) -> torch.Tensor:  # N 4 4
    "The true poses."
    start = convert(torch.tensor([[-0.45, 0.05, 0.2]]), torch.tensor([[-20.0, 750.0, -10.0]]), parameterization="euler_angles", convention="ZXY")
    poses = [start.double().matrix[0]]
    step = se3_exp(torch.cat([unit(WAY), math.radians(1) * unit(AXIS)]))
    jump = se3_exp(torch.cat([5 * unit(WAY), math.radians(15) * unit(TURNED)]))
    for k in range(1, n):
        poses.append((jump if k == jump_of(n) else torch.eye(4).double()) @ step @ poses[-1])
    return torch.stack(poses)


def simulated(patient, truth: torch.Tensor, k: int) -> torch.Tensor:  # 1 1 H W
    physics = Physics(collimator=0.0, tool_mm=BAR_MM if k in hidden_of(len(truth)) else 0.0)
    return simulate_xray(patient, CAMERA, RigidTransform(truth[k : k + 1]), seed=100 + k, physics=physics)


def foreign(patient, truth: torch.Tensor, k: int) -> torch.Tensor:  # 1 1 H W
    "A frame of DiffDRR, with noise, and a bar through it."
    from diffdrr.detector import Detector  # noqa: F401
    from diffdrr.drr import DRR as Theirs
    from diffdrr.pose import RigidTransform as Pose

    theirs = Theirs(patient, sdd=CAMERA.sdd, height=256, delx=1.2, renderer="siddon")
    with torch.no_grad():
        image = theirs(Pose(truth[k : k + 1].float()))
    image = 4.0 * image / image.max()
    gen = torch.Generator().manual_seed(k)
    y, x = torch.meshgrid(*(torch.arange(256) - 127.5,) * 2, indexing="ij")
    angle = math.pi * torch.rand(1, generator=gen)
    covered = (x * angle.sin() - y * angle.cos()).abs() * 1.2 < BAR_MM / 2
    signal = torch.exp(-image)
    if k in hidden_of(len(truth)):
        signal = torch.where(covered, 0.01 * signal.mean(), signal)
    return -(torch.poisson(COUNTS * signal, generator=gen).clamp(min=0.5) / COUNTS).log()


def along(found: RigidTransform, truth: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    "Error of the landmarks along the beam and across it [mm], root mean square of each frame."
    inverse = lambda T: torch.linalg.inv(T)
    seen = lambda T: points @ inverse(T)[:, :3, :3].mT + inverse(T)[:, None, :3, 3]
    off = seen(found.matrix) - seen(truth)
    beam = torch.nn.functional.normalize(seen(truth), dim=-1)
    depth = (off * beam).sum(-1)
    aside = (off.square().sum(-1) - depth.square()).clamp(min=0)
    return depth.square().mean(1).sqrt(), aside.mean(1).sqrt()


def rows(name: str, found: Track, truth: torch.Tensor, points: torch.Tensor) -> pd.DataFrame:
    table = found.table()
    table["mtre_mm"] = mtre(found.poses, RigidTransform(truth), points.expand(len(truth), -1, -1)).numpy()
    table["along_mm"], table["across_mm"] = (x.numpy() for x in along(found.poses, truth, points))
    twist = se3_log(truth @ torch.linalg.inv(found.poses.matrix)).roll(3, -1)
    table["chi2"] = (twist[:, None] @ torch.linalg.solve(found.covariances, twist[..., None]))[:, 0, 0].numpy()
    table.insert(0, "track", name)
    return table


def say(table: pd.DataFrame, alone: list) -> None:
    for name, part in table.groupby("track", sort=False):
        error, seconds, n = part.mtre_mm.to_numpy(), part.seconds.to_numpy(), len(part)
        steady = part[part.state == "tracked"].seconds.median()
        after = next((k for k in range(jump_of(n), n) if error[k] < 1), n) - jump_of(n)
        print(f"{name}: {(error < 1).mean():.1%} of frames within 1 mm (median {np.median(error):.2f}, hidden {error[list(hidden_of(n))].max():.2f}, greatest {error.max():.2f});"
              f" along the beam {part.along_mm.max():.2f}, across it {part.across_mm.max():.2f} at most; stated {part.expected_tre_mm.median():.2f} (median);"
              f" chi-square of 6 numbers: median {part.chi2.median():.1f}, below 12.6 in {(part.chi2 < 12.6).mean():.0%}; the jump is found after {after} frames;"
              f" states: {dict(part.state.value_counts())}")
    itself, tracked = np.array(alone).T
    print(f"a frame that is tracked takes {steady:.2f} s (median), a registration by itself, right after it, {np.median(itself):.2f} s: {np.median(tracked / itself):.2f} of it;"
          f" the whole sequence {seconds.sum():.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("_runs/tracking"))
    parser.add_argument("--renderer", default="diffpose", choices=["diffpose", "diffdrr"])
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--report", action="store_true", help="compute nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    results, times = args.folder / f"{args.renderer}.csv", args.folder / f"{args.renderer}_alone.csv"
    if args.report:
        return say(pd.read_csv(results), pd.read_csv(times).to_numpy().tolist())
    patient, truth, images = make_phantom(seed=7, spacing=SPACING), path(args.frames), []
    for k in range(args.frames):
        kept = args.folder / f"{args.renderer}_{args.frames}_{k:03}.npy"
        if not kept.exists():
            np.save(kept, (simulated if args.renderer == "diffpose" else foreign)(patient, truth, k).numpy())
        images.append(torch.from_numpy(np.load(kept)))
    xrays, drr = torch.cat(images).float(), DRR.from_camera(patient, CAMERA, renderer="trilinear", persistent=False)
    solver, alone = GaussNewton(drr), []
    solver.register(xrays[:1], RigidTransform(truth[:1]))  # what is compiled and kept

    def beside(k: int, n: int, frame) -> None:
        print(k, frame.state, f"{frame.seconds:.2f} s", flush=True)
        if k % BESIDE == 0 and frame.state == "tracked":
            began = time.perf_counter()
            solver.register(xrays[k : k + 1], RigidTransform(truth[k - 1 : k]))
            alone.append((time.perf_counter() - began, frame.seconds))

    start = RigidTransform(se3_exp(torch.tensor(OFF, dtype=torch.float64)) @ truth[:1])
    found = track(drr, xrays, start, EVEN, callback=beside)
    points = patient.fiducials.double()
    table = pd.concat([rows("frame by frame", found, truth, points), rows("smoothed", found.smoothed(), truth, points)])
    table.to_csv(results, index=False)
    pd.DataFrame(alone, columns=["seconds", "tracked"]).to_csv(times, index=False)
    say(table, alone)


if __name__ == "__main__":
    main()
