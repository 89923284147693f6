"What both benchmarks share: the scene, the packages under one interface, the clock, and the description of the machine."

import csv
import os
import platform
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torchio

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for tools/, which is not installed

SDD = 1020.0  # source to detector [mm]
FIELD = 400.0  # side of the detector [mm]
ISOCENTER = 850.0  # source to isocenter [mm]
# Eight poses: Euler angles ZXY [deg] and translations [mm]. The first is the frontal view that everybody's tutorial shows.
ANGLES = [[0, 0, 0], [10, 5, -5], [-20, 0, 10], [30, -10, 0], [-30, 10, 5], [45, 0, 0], [15, -15, 15], [-10, 20, -10]]
SHIFTS = [[0, 0, 0], [5, 20, -5], [-10, 0, 10], [0, -20, 20], [10, 10, 0], [0, 0, -10], [-5, 30, 5], [10, -30, 0]]


def poses(batch: int, turn=(0.0, 0.0, 0.0)):
    "Rotations [rad] and translations [mm] of the first poses, of which the ninth is the first turned by two degrees, and so on: two float32 tensors B 3. `turn` [deg] is added to all."
    turns = [[angle + 2.0 * (k // len(ANGLES)) + more for angle, more in zip(ANGLES[k % len(ANGLES)], turn)] for k in range(batch)]
    shifts = [SHIFTS[k % len(SHIFTS)] for k in range(batch)]
    return torch.deg2rad(torch.tensor(turns, dtype=torch.float32)), torch.tensor(shifts, dtype=torch.float32) + torch.tensor([0.0, ISOCENTER, 0.0])


def example_volume():
    "Density X Y Z of the example chest CT, its affine, and the matrix that turns the C-arm to AP."
    from diffpose.data import load_example_ct

    subject = load_example_ct()
    return subject.density.data[0].numpy(), subject.density.affine, subject.reorient.numpy()


# Every package is given the same density and the same affine. A renderer is made once, and called with rotation and translation B 3.


class Diffpose:
    def __init__(self, volume, rule, size, dtype=torch.float32):
        from diffpose.drr import DRR

        density, affine, reorient = volume
        image = torchio.ScalarImage(tensor=torch.from_numpy(density)[None], affine=affine)
        subject = torchio.Subject(density=image, reorient=torch.from_numpy(reorient))
        kind, _, n = rule.partition("-")
        options = {} if kind == "siddon" else {"n_points": None if n == "exact" else int(n)}
        self.dtype, self.drr = dtype, DRR(subject, SDD, size, FIELD / size, renderer=kind, **options).to(dtype)

    def pose(self, rotation, translation):
        "Matrices B 4 4."
        from diffpose.pose import convert

        exact = torch.promote_types(self.dtype, torch.float32)
        return convert(rotation.to(exact), translation.to(exact), parameterization="euler_angles", convention="ZXY").matrix

    def image(self, matrix):
        from diffpose.pose import RigidTransform

        return self.drr(RigidTransform(matrix))

    def __call__(self, rotation, translation):
        return self.image(self.pose(rotation, translation))

    voxels = property(lambda self: self.drr.density, doc="The volume that is rendered.")

    def jacobian(self, rotation, translation):
        return self.drr.jacobian(rotation, translation, parameterization="euler_angles", convention="ZXY")


class Diffdrr:
    def __init__(self, volume, rule, size):
        from diffdrr.drr import DRR

        density, affine, reorient = volume
        image = torchio.ScalarImage(tensor=torch.from_numpy(density)[None], affine=affine)
        subject = torchio.Subject(volume=image, density=image, reorient=torch.from_numpy(reorient), mask=None)
        kind, _, n = rule.partition("-")
        self.options = {"n_points": int(n)} if n else {}
        self.drr = DRR(subject, SDD, size, FIELD / size, renderer=kind)

    voxels = property(lambda self: self.drr.density, doc="The volume that is rendered.")

    def pose(self, rotation, translation):
        "Matrices B 4 4."
        from diffdrr.pose import convert

        return convert(rotation, translation, parameterization="euler_angles", convention="ZXY").matrix

    def image(self, matrix):
        from diffdrr.pose import RigidTransform

        return self.drr(RigidTransform(matrix), **self.options)

    def __call__(self, rotation, translation):
        return self.drr(rotation, translation, parameterization="euler_angles", convention="ZXY", **self.options)


class Nanodrr:
    def __init__(self, volume, rule, size):
        from nanodrr.data import Subject
        from nanodrr.drr import DRR

        density, affine, _ = volume
        image = torchio.ScalarImage(tensor=torch.from_numpy(density)[None], affine=affine)
        self.subject = Subject.from_images(image, convert_to_mu=False)
        self.n_samples, self.orientation = int(rule.partition("-")[2]), None
        self.drr = DRR.from_carm_intrinsics(SDD, FIELD / size, FIELD / size, 0.0, 0.0, size, size, dtype=torch.float32)

    voxels = property(lambda self: self.subject.image, doc="The volume that is rendered, 1 1 Z Y X.")

    def pose(self, rotation, translation):
        "Matrices B 4 4."
        from nanodrr.camera import make_rt_inv
        from nanodrr.geometry import convert

        if self.orientation is None:  # brought to the GPU once: make_rt_inv would do so at each call
            self.orientation = make_rt_inv(torch.zeros_like(rotation[:1]), torch.zeros_like(translation[:1]), "AP").detach()
        return convert(rotation, translation, "euler", convention="ZXY", degrees=False) @ self.orientation

    def image(self, matrix):
        return self.drr(self.subject, matrix, n_samples=self.n_samples)

    def __call__(self, rotation, translation):
        return self.image(self.pose(rotation, translation))


class Plastimatch:
    "The C++ program, as a process. It knows no gradient, and this interface only the frontal view."

    def __init__(self, volume, rule, size):
        program = shutil.which("drr")
        self.command = [program] if program else [shutil.which("plastimatch"), "drr"]
        self.size, self.folder, self.seconds = size, tempfile.TemporaryDirectory(), None
        density, affine, _ = volume
        lps = np.diag([-1, -1, 1, 1]) @ affine
        flips = [k for k in range(3) if lps[k, k] < 0]
        corner = lps @ [*(density.shape[k] - 1 if k in flips else 0 for k in range(3)), 1]
        header = {"NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False, "Offset": corner[:3], "ElementSpacing": abs(lps.diagonal()[:3])}
        header |= {"TransformMatrix": np.eye(3, dtype=int).ravel(), "DimSize": density.shape, "ElementType": "MET_FLOAT", "ElementDataFile": "LOCAL"}
        lines = ["ObjectType = Image"] + [f"{k} = {' '.join(map(str, np.atleast_1d(v)))}" for k, v in header.items()]
        with open(Path(self.folder.name) / "volume.mha", "wb") as file:
            file.write(("\n".join(lines) + "\n").encode() + np.ascontiguousarray(np.flip(density, flips).T).tobytes())

    def __call__(self, rotation, translation):
        size = f"{self.size} {self.size}"
        view = ["--nrm", "0 -1 0", "--vup", "0 0 1", "--sad", ISOCENTER, "--sid", SDD, "-o", "0 0 0", "-r", size, "-z", f"{FIELD} {FIELD}"]
        run = [*self.command, "-i", "exact", "-P", "none", *map(str, view), "-t", "raw", "-O", "out_", "volume.mha"]
        said = subprocess.run(run, cwd=self.folder.name, capture_output=True, text=True, check=True).stdout
        self.seconds = float(said.split("Total time:")[1].split()[0]) - float(said.split("I/O time:")[1].split()[0])  # without reading the volume
        image = np.fromfile(next(Path(self.folder.name).glob("out_*.raw")), np.float32)
        return 10 * torch.from_numpy(image).reshape(1, 1, self.size, self.size)  # cm to mm


class Rtk:
    "RTK's forward projector of Joseph, C++ through its Python package. It knows no gradient by the pose, and this interface only the frontal view."

    def __init__(self, volume, rule, size):
        import itk
        from itk import RTK

        density, affine, _ = volume
        spacing = [float(abs(affine[axis, axis])) for axis in (0, 2, 1)]  # its y axis is the patient's z
        image = itk.image_from_array(np.ascontiguousarray(density.transpose(1, 2, 0)))
        image.SetSpacing(spacing)
        image.SetOrigin([-(n - 1) / 2 * step for n, step in zip(image.GetLargestPossibleRegion().GetSize(), spacing)])
        geometry = RTK.ThreeDCircularProjectionGeometry.New()
        geometry.AddProjection(ISOCENTER, SDD, 0.0)
        kind, pixel = itk.Image[itk.F, 3], FIELD / size
        empty = RTK.ConstantImageSource[kind].New(Size=[size, size, 1], Spacing=[pixel, pixel, 1.0], Origin=[-(size - 1) / 2 * pixel] * 2 + [0.0], Constant=0.0)
        self.projector = RTK.JosephForwardProjectionImageFilter[kind, kind].New(Geometry=geometry)
        self.projector.SetInput(0, empty.GetOutput())
        self.projector.SetInput(1, image)
        self.projector.SetNumberOfWorkUnits(torch.get_num_threads())
        self.read, self.kept, self.seconds = itk.array_from_image, (image, empty, geometry), None

    def __call__(self, rotation, translation):
        self.projector.Modified()
        start = time.perf_counter()
        self.projector.Update()
        self.seconds = time.perf_counter() - start
        return torch.from_numpy(self.read(self.projector.GetOutput())[None, :, ::-1].copy())


def placed(renderer, device: str):
    "The renderer, with its volume, on a device."
    renderer.drr.to(device)
    if hasattr(renderer, "subject"):
        renderer.subject = renderer.subject.to(device)
    return renderer


PACKAGES = {"diffpose": Diffpose, "diffdrr": Diffdrr, "nanodrr": Nanodrr, "plastimatch": Plastimatch, "rtk": Rtk}
FRONTAL = ("plastimatch", "rtk")  # those that are given the frontal view alone, and know no gradient


def available(name: str) -> bool:
    "Whether a package can be measured here."
    if name == "plastimatch":
        return bool(shutil.which("drr") or shutil.which("plastimatch"))
    return find_spec("itk.RTKPython" if name == "rtk" and find_spec("itk") else name) is not None


# The clock


def interleave(contenders: dict, rounds: int, budget: float, turn: float = 0.1) -> dict:
    """Seconds of each contender in each round. Contenders take turns, so that a busy machine is unfair to all alike. A turn repeats a
    function for `turn` seconds and counts its median; who has used up `budget` seconds sits out the rest."""
    times, spent = {name: [] for name in contenders}, dict.fromkeys(contenders, 0.0)
    for k in range(rounds):
        for name, function in contenders.items():
            if spent[name] > budget:
                times[name].append(float("nan"))
                continue
            laps = []
            while sum(laps) < turn or not laps:
                start = time.perf_counter()
                function()
                laps.append(getattr(function, "seconds", None) or time.perf_counter() - start)
            times[name].append(statistics.median(laps))
            spent[name] += sum(laps)
    return {name: np.array(values) for name, values in times.items()}


def spread(values) -> str:
    "Median and range of the finite values."
    values = np.asarray(values)[np.isfinite(values)]
    if len(values) == 0:
        return "-"
    return f"{np.median(values):.3g}" + (f" ({values.min():.3g}-{values.max():.3g})" if len(values) > 1 else " (once)")


def ratio(seconds, base) -> str:
    "Ratio of the medians, and of the smallest: what a quiet machine would give."
    if base is None or not np.isfinite(seconds).any() or not np.isfinite(base).any():
        return ""
    return f"{np.nanmedian(seconds) / np.nanmedian(base):.3g} ({np.nanmin(seconds) / np.nanmin(base):.3g})"


# Memory


def peak_bytes() -> int:
    "High-water mark of this process's memory."
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    "Forget the peak so far, where the system can (Linux)."
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


# The machine


def begin(parser, more=dict) -> tuple:
    "Arguments of a script, and what will stand above its table: where, when and with what it was made, and what more() finds. It is printed, too."
    args = parser.parse_args()
    if getattr(args, "threads", 0):
        torch.set_num_threads(args.threads)
    info = machine(f"python benchmarks/{Path(sys.argv[0]).name} " + shlex.join(sys.argv[1:])) | more()
    for key, value in info.items():
        print(f"{key}: {value}")
    return args, info


def machine(command: str) -> dict:
    "Where, when and with what the numbers were made."
    names = ("diffpose", "diffdrr", "nanodrr", "itk-rtk", "torch", "numba", "numpy", "torchio")
    root = Path(__file__).resolve().parent
    git = lambda *a: subprocess.run(["git", *a], cwd=root, capture_output=True, text=True).stdout.strip()
    info = {"date": time.strftime("%Y-%m-%d"), "command": re.sub(r" --out \S+", "", command).strip(), "cpu": _cpu(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}
    info |= {"memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1), "system": platform.platform(terse=True), "python": platform.python_version()}
    info |= {name: _version(name) for name in names}
    if available("plastimatch"):
        said = subprocess.run(["plastimatch", "--version"], capture_output=True, text=True).stdout.split() if shutil.which("plastimatch") else []
        info["plastimatch"] = said[2] if len(said) > 2 else "installed"
    info["commit"] = os.environ.get("DIFFPOSE_COMMIT") or (git("rev-parse", "--short", "HEAD") or "unknown") + (" with uncommitted changes" if git("status", "--porcelain", "--", "../diffpose") else "")
    info["environment"] = " ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(("OMP_", "NUMBA_", "MKL_", "GOMP_", "KMP_"))) or "no settings for threads"
    info["numba_threads"] = _numba_threads()
    info["torch_threads"], info["load_average_at_start"] = torch.get_num_threads(), f"{os.getloadavg()[0]:.2f}"
    return info


def gpu() -> dict:
    "The GPU, its driver and CUDA, where there is one."
    if not torch.cuda.is_available():
        return {}
    said = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout if shutil.which("nvidia-smi") else ""
    return {"gpu": torch.cuda.get_device_name(), "driver": (said.splitlines() or ["unknown"])[0].strip(), "cuda": torch.version.cuda, "triton": _version("triton")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed" if find_spec(name) is None else "from source"


def _numba_threads() -> int:
    import numba

    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # what the kernels take


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text().splitlines()
        get = lambda key: next((line.split(":")[1].strip() for line in text if line.startswith(key)), "")
        return f"{get('model name')} (family {get('cpu family')}, model {get('model')})"
    except OSError:
        return platform.processor() or platform.machine()


def write_csv(path: Path, info: dict, rows: list) -> None:
    "A table below lines `# key: value` that say how it was made (pandas: read_csv(path, comment='#'))."
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in info.items())
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def show(rows: list, columns: list) -> None:
    "Print a table in Markdown."
    cells = [columns, ["-" * len(c) for c in columns], *([str(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    for line in cells:
        print("| " + " | ".join(text.ljust(w) for text, w in zip(line, widths)) + " |")
