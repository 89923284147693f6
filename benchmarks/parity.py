"""Do the Triton kernels, on a real GPU, give what the CPU's give in double precision?

    python benchmarks/parity.py --out _runs/bench
    compute-sanitizer python benchmarks/parity.py --small       # no access out of bounds?

The example chest CT (`--small`: a random volume of 24 x 17 x 20) is rendered on the GPU, and on the CPU in float64 from the same voxels, those
that the GPU's precision keeps. Every rule and precision: image, Jacobian, label channels with contrast maps and their gradient by the pose,
maximum, gradient by the voxels, the same under deterministic algorithms (and whether it repeats bit by bit), a few
pixels drawn at random, a loss's gradient by the pose. Of images the largest difference is given, relative to the brightest pixel; of derivatives
the root mean square, relative to theirs: the slope of a sample changes where it passes from one cell to the next, and in single precision some are on
the other side. `allowed` is what is tolerated; the exit code is 1 if a difference is larger.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torchio
from common import FIELD, SDD, begin, gpu, poses, show, write_csv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for parity.csv")
parser.add_argument("--small", action="store_true", help="a tiny volume and tiny images")
parser.add_argument("--rules", nargs="+", default=["siddon", "trilinear", "trilinear-500"])
parser.add_argument("--pixels", nargs="+", default=["all", "some"], help="of an image, or a random twentieth of them")
parser.add_argument("--precisions", nargs="+", default=["float64", "float32", "float16", "bfloat16"])

ALLOWED = {  # images, their maxima (a single chord or sample), derivatives, gradients by voxels (in the volume's type)
    "float64": (1e-11, 1e-10, 1e-7, 1e-9),
    "float32": (1e-5, 1e-4, 3e-3, 1e-4),
    "float16": (2e-3, 2e-3, 3e-3, 2e-3),
    "bfloat16": (1e-2, 1e-2, 1e-2, 1e-2),  # the gradient by an image has the image's type
}


def subject_of(small: bool):
    "The example, with its 118 structures; or noise, with four."
    if not small:
        from diffpose.data import load_example_ct

        return load_example_ct()
    density = torch.rand(24, 17, 20, generator=torch.Generator().manual_seed(0))
    affine = torch.diag(torch.tensor([14.0, 16.0, 15.0, 1.0])).numpy()
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(density.shape) - 1) / 2
    reorient = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    labels = torchio.LabelMap(tensor=(4 * density).to(torch.uint8)[None], affine=affine)
    return torchio.Subject(density=torchio.ScalarImage(tensor=density[None], affine=affine), mask=labels, reorient=reorient)


def tasks(drr, batch: int) -> dict:
    "What a DRR makes: name, tensor on the CPU in float64."
    from diffpose.pose import RigidTransform, convert

    device = drr.density.device
    rotation, translation = (x.double().to(device) for x in poses(batch + 1))  # not the frontal view, whose rays run along faces
    pose = convert(rotation[1:], translation[1:], parameterization="euler_angles", convention="ZXY")
    weight = torch.rand(drr(pose).shape, generator=torch.Generator().manual_seed(1)).to(device)
    found = {"image": drr(pose), "maximum": drr(pose, reducefn="max")}
    found["jacobian image"], found["jacobian"] = drr.jacobian(pose)
    moved = RigidTransform(pose.matrix.clone().requires_grad_())
    (found["gradient by pose"],) = torch.autograd.grad((drr(moved).double() * weight).sum(), moved.matrix)
    contrast = {} if drr.contrast is None else {"bone_attenuation_multiplier": [1.0, 3.0][:batch]}
    channels = drr(moved, mask_to_channels=True, **contrast)
    found["channels"] = channels.detach()
    (found["channels' gradient by pose"],) = torch.autograd.grad((channels.double() * weight * torch.arange(1.0, 1 + channels.shape[1], device=device)[:, None, None]).sum(), moved.matrix)
    density = drr.density.detach().clone().requires_grad_()
    for name, deterministic in (("gradient by voxels", False), ("gradient by voxels, deterministic", True), ("again", True)):
        torch.use_deterministic_algorithms(deterministic)
        drr.density = density
        (found[name],) = torch.autograd.grad((drr(pose).double() * weight).sum(), density)
    torch.use_deterministic_algorithms(False)
    drr.density = density.detach()
    assert torch.equal(found.pop("again"), found["gradient by voxels, deterministic"]) or device.type == "cpu", "not the same bits"
    return {name: x.detach().double().cpu() for name, x in found.items()}


def main():
    args, info = begin(parser, gpu)
    if not torch.cuda.is_available():
        sys.exit("parity.py: no CUDA device here, nothing was compared")
    from diffpose.drr import DRR

    subject, rows = subject_of(args.small), []
    height, width, batch = (9, 13, 2) if args.small else (101, 67, 2)
    for rule in args.rules:
        kind, _, n = rule.partition("-")
        options = {"renderer": kind} | ({"n_points": int(n)} if n else {})
        for precision in args.precisions:
            for subset in [{"all": None, "some": 0.05}[name] for name in args.pixels]:
                drr = DRR(subject, SDD, height, FIELD / width, width, p_subsample=subset, generator=torch.Generator().manual_seed(3), **options)
                drr.to(getattr(torch, precision))
                twin = DRR(subject, SDD, height, FIELD / width, width, p_subsample=subset, generator=torch.Generator().manual_seed(3), **options).double()
                twin.density = drr.density.double()
                ours, theirs = tasks(drr.cuda(), batch), tasks(twin, batch)
                for name, x in ours.items():
                    y = theirs[name]
                    kind = 3 if "voxels" in name else 2 if "gradient" in name or name == "jacobian" else name == "maximum"
                    allowed, size = ALLOWED[precision][kind], torch.linalg.vector_norm if kind > 1 else lambda z: z.abs().max()
                    far = (size(x - y) / size(y)).item() if x.shape == y.shape and x.isfinite().all() else float("inf")
                    rows.append({"rule": rule, "precision": precision, "pixels": "a twentieth" if subset else "all", "what": name, "difference": f"{far:.1e}", "allowed": allowed, "holds": far <= allowed})
    show(rows, list(rows[0]))
    write_csv(args.out / "parity.csv", info, rows)
    wrong = [row for row in rows if not row["holds"]]
    print(f"{len(rows)} compared, {len(wrong)} too far apart")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
