"""`python -m tests.fuzz`: the command on damaged files and odd options, for a minute; `--seconds 3600` for an hour, `--seed` for other ones.

A case is a sound command line on sound small files, of which a few are spoilt: bits, headers, numbers in text, values in JSON, names, options. Seed and
number say all of it: `--case 1234` runs one again and shows what it prints. The laws:

- exit code 0, 1 or 2, one message, no traceback, no word of a fault of the package, no argument of Python where the command has an option;
- an end within `PATIENCE` seconds, whatever a library does: the cases run in a child that is replaced when it hangs or dies;
- no case takes more than `PEAK` bytes, and a thousand cases leave no more behind than a hundred;
- the files that were read are as they were; with exit code 2 nothing was written.

Solving and learning are replaced, as they are tested elsewhere and would take all of the time; what they are given is not.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from diffpose.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60  # s
# what the commands go through where the work begins, and every other way to a result
WORK = (
    *("diffpose.cli.job.solve", "diffpose.cli.together.solve_together"),  # before anything is rendered, which a first time compiles
    *("diffpose.registration.GaussNewton.register", "diffpose.registration.JointRegistration.register"),
    *("diffpose.training.train", "diffpose.deepfluoro.write_twin"),
)
PEAK, LEFT = 600e6, 400e6  # bytes: of one case, and of all
ALLOWED = "300MB"  # that files and images may ask for
NASTY = ("0", "-1", "1", "1e300", "-1e300", "1e-300", "nan", "inf", "-inf", "", "abc", "99999999999", "4294967295", "65535", "9" * 400, "0x10", "1,2", "1,2,3", "1;2;3", "1,2,3;4,5,6", "\u0663", "\u00fc", "%d", "'", "../..", "*", "-", "--", "None", "True", "{}", "{folder}", "[1]", "\n")
VALUES = (None, True, [], {}, [[]], "x", "", 0, -1, 1e308, 1e-308, 10**400, [1, 2], [[1, 2], [3]], {"a": {}}, "nan", [None] * 16, "1020")
PYTHON = re.compile(r"(?<![\w/'\"{-])[a-z][a-z_0-9]{2,}=(?=[\s(,.;:)]|$)")  # "affine= (...)", not a file's name nor a line of Python
SAFE = re.compile(r"python -c \"[^\"]*\"|^Usage:.*$", re.M)


def write_inputs(folder: Path) -> None:
    "Small sound files of every kind that a command reads, by the writers of other packages where there are some."
    import nibabel as nib
    import numpy as np
    import SimpleITK as sitk
    import torch
    from PIL import Image

    from diffpose.calibration import Camera
    from diffpose.report import write_ct
    from diffpose.results import pose_to_dict, write_json
    from diffpose.drr import DRR
    from diffpose.phantom import make_phantom
    from diffpose.pose import convert

    subject = make_phantom(0, 16.0)
    write_ct(folder / "ct.nii.gz", subject)
    image, camera = sitk.ReadImage(str(folder / "ct.nii.gz")), Camera(1020.0, 24, 28, 14.0, 14.0, sid=850.0, primary_angle=0.0, secondary_angle=0.0)
    for name, packed in (("ct.nii", False), ("ct.nrrd", True), ("raw.nrrd", False), ("ct.mha", True), ("raw.mha", False), ("ct.mhd", False), ("ct.nhdr", True)):
        sitk.WriteImage(image, str(folder / name), packed)
    hu = subject.volume.data[0].numpy()
    np.save(folder / "ct.npy", hu)
    nib.save(nib.MGHImage(hu.astype(np.float32), subject.volume.affine), folder / "ct.mgz")
    nib.save(nib.Nifti1Image(subject.mask.data[0].numpy().astype(np.uint8), nib.load(folder / "ct.nii").affine), folder / "labels.nii.gz")
    subject.structures.to_csv(folder / "structures.csv", index=False)
    write_slices(folder / "slices", hu, subject.volume.affine)
    pose = convert(torch.zeros(1, 3), torch.tensor([[0.0, 850.0, 0.0]]), parameterization="euler_angles", convention="ZXY", degrees=True)
    with torch.no_grad():
        shown = DRR.from_camera(make_phantom(0, 16.0, density="physical"), camera, persistent=False)(pose, beer_lambert=True)[0, 0]
    counts = (shown * 60000).numpy().astype(np.uint16)
    for name in ("x.png", "x.tif"):
        Image.fromarray(counts).save(folder / name)
    Image.fromarray((counts // 256).astype(np.uint8)).save(folder / "x.jpg")
    Image.fromarray((counts // 256).astype(np.uint8)).save(folder / "x.bmp")
    Image.fromarray(np.full(counts.shape, 255, np.uint8)).save(folder / "mask.png")
    np.save(folder / "x.npy", counts)
    nib.save(nib.Nifti1Image(counts.T, np.diag([14.0, 14, 1, 1])), folder / "x.nii.gz")
    write_dicom(folder / "x.dcm", counts, "1.2.840.10008.5.1.4.1.1.12.1", Modality="XA", ImagerPixelSpacing=[14, 14], DistanceSourceToDetector=1020, DistanceSourceToPatient=850, PositionerPrimaryAngle=0, PositionerSecondaryAngle=0)
    camera.to_json(folder / "camera.json")
    write_json(folder / "pose.json", pose_to_dict(pose, subject))
    (folder / "poses.csv").write_text("alpha_deg,beta_deg,gamma_deg,bx_mm,by_mm,bz_mm\n0,0,0,0,850,0\n5,1,2,3,840,1\n")
    (folder / "landmarks.csv").write_text("x_mm,y_mm,z_mm\n1,2,3\n10,20,30\n")
    (folder / "result").mkdir()
    (folder / "result" / "history.csv").write_text("alpha_rad,beta_rad,gamma_rad,bx_mm,by_mm,bz_mm,loss\n0,0,0,0,850,0,0.5\n0.1,0,0,0,850,0,0.4\n")
    write_json(folder / "result" / "pose.json", {**pose_to_dict(pose, subject), "camera": camera.to_dict()})
    write_network(folder / "network", subject, camera)


def write_dicom(path: Path, pixels, kind: str, **tags) -> None:
    "A DICOM file by pydicom."
    import pydicom

    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID, header.file_meta.MediaStorageSOPClassUID = pydicom.uid.ExplicitVRLittleEndian, kind
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[path.name])
    header.SOPClassUID, header.PhotometricInterpretation, header.SamplesPerPixel = kind, "MONOCHROME2", 1
    header.Rows, header.Columns = pixels.shape
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.PixelData = pixels.tobytes()
    header.save_as(path, enforce_file_format=True)


def write_slices(folder: Path, hu, affine) -> None:
    "The volume as a series of DICOM slices."
    import numpy as np

    folder.mkdir()
    size, stored = np.linalg.norm(affine[:3, :3], axis=0), hu.round().astype(np.int16)
    for k in range(stored.shape[2]):
        place = {"ImagePositionPatient": [0, 0, float(k * size[2])], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [float(size[1]), float(size[0])]}
        about = {"Modality": "CT", "SeriesInstanceUID": "1.2.3", "RescaleSlope": 1, "RescaleIntercept": 0, "InstanceNumber": k + 1}
        write_dicom(folder / f"IM{k:03}.dcm", np.ascontiguousarray(stored[:, :, k].T), "1.2.840.10008.5.1.4.1.1.2", **place, **about)


def write_network(folder: Path, subject, camera) -> None:
    "A network that has learned nothing."
    from diffpose.training import TrainConfig, train

    tiny = TrainConfig(model_name="test_convnext", model_options={}, height=32, batch_size=2, iterations=1, warmup=1, validate_every=1, n_validation=2)
    train(subject, camera, folder, tiny, progress=False, tensorboard=False)
    (folder / "checkpoint.pt").unlink()


# a case ---------------------------------------------------------------------------------------------------------------------


def draw(rng: random.Random, inside: Path, out: Path) -> list[str]:
    "A sound command line on the files of a folder."
    at = lambda *names: str(inside / rng.choice(names))
    ct = at("ct.nii.gz", "ct.nii", "ct.nrrd", "raw.nrrd", "ct.mha", "raw.mha", "ct.mhd", "ct.nhdr", "ct.npy", "ct.mgz", "slices")
    x = at("x.png", "x.tif", "x.jpg", "x.bmp", "x.npy", "x.nii.gz", "x.dcm")
    some = lambda *options: [text for option in options if rng.random() < 0.3 for text in option]
    patient = some(("--labelmap", at("labels.nii.gz")), ("--labelmap", at("labels.nii.gz"), "--labels", "left femur", "--structures", at("structures.csv")), ("--ct-spacing", "16"), ("--orientation", "AP"))
    patient += ["--ct-spacing", "16"] if ct.endswith(".npy") and "--ct-spacing" not in patient else []
    camera = ["--camera", at("camera.json")]
    kind = rng.choice(("render", "render", "register", "register", "register", "each", "animate", "train", "twin"))
    if kind == "render":
        view = rng.choice((camera, ["--height", "24"]))
        return ["render", ct, "--out", str(out / f"a{rng.choice(('.png', '.npy', '.tif', '.nii', '.nii.gz'))}"), *view, *patient, *some(("--pose", at("pose.json", "poses.csv")), ("--intensity",))]
    if kind in ("register", "each"):
        start = rng.choice((["--init", at("pose.json")], ["--init", "0,0,0;0,850,0"], ["--model", at("network")]))
        xrays = [x] if kind == "register" else [x, at("x.png", "x.dcm"), "--each"]
        return ["register", ct, *xrays, "--out", str(out / "result"), *camera, *start, *patient, *some(("--mask", at("mask.png")), ("--landmarks", at("landmarks.csv")))]
    if kind == "animate":
        shown = rng.choice(([at("result")], [at("poses.csv")], ["0,0,0;0,850,0", at("pose.json"), *camera]))
        return ["animate", ct, *shown, "--out", str(out / "a.gif"), "--frames", "3", "--px", "24", *patient, *(["--xray", x, *camera] if len(shown) == 1 and rng.random() < 0.5 else [])]
    if kind == "train":
        return ["train", ct, "--out", str(out / "network"), "--iterations", "1", "--batch-size", "2", *rng.choice((camera, ["--height", "24"])), *patient, *some(("--from", at("network")))]
    return ["data", "twin", "--out", str(out / "a.h5"), "--specimens", "1", "--xrays", "1", "--size", "32", "--spacing", "16"]


def used(args: list[str], inside: Path) -> list[Path]:
    "The files that a command line names."
    paths = [Path(a) for a in args if a.startswith(str(inside))]
    return [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path, path.with_suffix(".raw"), path.with_suffix(".raw.gz")]) if p.is_file()]


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    "Flip, overwrite, cut, repeat; near the beginning more often, where the headers are."
    data = bytearray(data)
    where = lambda: int(len(data) * rng.random() ** rng.choice((1, 8, 8))) if data else 0
    how = rng.randrange(6)
    if how == 0:
        for _ in range(rng.choice((1, 1, 4, 30))):
            if data:
                data[min(where(), len(data) - 1)] ^= 1 << rng.randrange(8)
    elif how in (1, 2):
        value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\1")) * rng.choice((1, 2, 4, 8)) if how == 1 else rng.randbytes(rng.choice((2, 4, 8)))
        k = rng.choice((40, 42, 44, 46, 70, 76, 80, 108, 252, 344, 16, 20, where())) if how == 1 else where()
        data[k : k + len(value)] = value
    elif how == 3:
        del data[where() :]
    elif how == 4:
        data += rng.choice((bytes(1 << 20), bytes(data), rng.randbytes(100)))
    else:
        k = where()
        data[k:k] = data[k : k + rng.choice((1, 16, 256))]
    return bytes(data)


def spoil_text(rng: random.Random, data: bytes) -> bytes:
    "In text, or in the text before the voxels: another number, a line gone or twice, another word."
    head, mark, rest = data.partition(b"\n\n") if b"NRRD" in data[:8] else data.partition(b"ElementDataFile")
    lines = head.decode("latin-1").split("\n")
    k = rng.randrange(len(lines))
    numbers = list(re.finditer(r"-?\d[\d.e+-]*", lines[k]))
    if numbers and rng.random() < 0.7:
        m = rng.choice(numbers)
        lines[k] = lines[k][: m.start()] + rng.choice(NASTY) + lines[k][m.end() :]
    elif rng.random() < 0.5:
        lines[k : k + 1] = rng.choice(([], [lines[k]] * 2, [lines[k].upper()], [lines[k] + " 1"]))
    else:
        lines.insert(k, rng.choice(NASTY))
    return "\n".join(lines).encode("latin-1", "replace") + mark + rest


def spoil_json(rng: random.Random, data: bytes) -> bytes:
    "Another value somewhere."
    try:
        tree = json.loads(data)
    except ValueError:
        return data
    node = tree
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.4:
            if isinstance(node, dict) and rng.random() < 0.3:
                node[rng.choice(("", "x", "sdd_mm", "pose_matrix"))] = node.pop(key)
            else:
                node[key] = rng.choice(VALUES)
            break
        node = node[key]
    return json.dumps(tree).encode()


def options_of(args: list[str]) -> tuple[list, list]:
    "The flags and the options of a command, and one that none has."
    import typer

    from diffpose.cli import app

    command = typer.main.get_command(app)
    for name in args[:2]:
        command = getattr(command, "commands", {}).get(name, command)
    given = [p for p in command.params if p.opts[0].startswith("--") and "--debug" not in p.opts]
    return ["--nonsense", *(o for p in given if p.is_flag for o in (*p.opts, *p.secondary_opts))], ["--nonsense", *(p.opts[0] for p in given if not p.is_flag)]


def spoil(rng: random.Random, args: list[str], inside: Path) -> list[str]:
    "Spoil files of a command line, or the line itself."
    args, files = list(args), used(args, inside)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        how = rng.randrange(10)
        if how < 6 and files:
            path = rng.choice(files)
            data = path.read_bytes()
            ways = {".json": (spoil_json, spoil_json, spoil_text, spoil_bytes), ".csv": (spoil_text, spoil_bytes), ".nrrd": (spoil_text, spoil_bytes), ".nhdr": (spoil_text,), ".mha": (spoil_text, spoil_bytes), ".mhd": (spoil_text,)}
            path.write_bytes(rng.choice(ways.get(path.suffix, (spoil_bytes,)))(rng, data))
        elif how == 6 and files:  # another kind of file under this name
            rng.choice(files).write_bytes(rng.choice(sorted(p for p in inside.rglob("*") if p.is_file())).read_bytes())
        elif how == 7:
            k = rng.randrange(1, len(args))
            args[k : k + 1] = rng.choice(([], [args[k]] * 2, [rng.choice(NASTY)], [args[k] + rng.choice(("x", "/", "/.."))], [str(inside)]))
        else:
            flags, options = options_of(args)
            args += [rng.choice(flags)] if how == 8 else [rng.choice(options), rng.choice(NASTY)]
    return args


# the laws ---------------------------------------------------------------------------------------------------------------------


def status(key: str) -> float:
    "A line of /proc/self/status in bytes, 0 where there is none."
    try:
        return 1024.0 * int(re.search(rf"^{key}:\s+(\d+)", Path("/proc/self/status").read_text(), re.M)[1])
    except (OSError, TypeError):
        return 0.0


def digest(folder: Path) -> str:
    "Of all names and contents."
    sums = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        sums.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b""))
    return sums.hexdigest()


def broken(code: int, text: str, out: Path) -> list[str]:
    "The laws that an end breaks."
    found = [] if code in (0, 1, 2) else [f"exit code {code}"]
    found += ["a traceback"] if "Traceback" in text else []
    found += ["called a fault of the package"] if "fault of diffpose" in text else []
    found += ["no message"] if code == 2 and not re.search(r"^(error: .*\S|Usage: |╭─ Error|\S+: .*\S)", text, re.M) else []
    plain = SAFE.sub("", text)
    found += [f"an argument of Python: {m[0]!r}" for m in PYTHON.finditer(plain)][:1]
    left = [p.name for p in out.rglob("*") if p.name.startswith(".")] if out.exists() else []
    found += [f"left behind: {left}"] if left else []
    several = out.joinpath("result", "summary.csv").exists()
    found += [f"exit code 2, and {sorted(p.name for p in out.rglob('*'))} written"] if code == 2 and out.exists() and any(p.is_file() for p in out.rglob("*")) and not several else []
    return found


class Reached(UserError):
    "Stands where the work would begin."


def run_case(seed: int, number: int, sound: Path, folder: Path, process: bool = False) -> tuple[list[str], list[str], str]:
    "The laws that a case breaks, its command line, and what it printed."
    from typer.testing import CliRunner

    from diffpose.cli import app

    rng = random.Random(f"{seed} {number}")
    inside, out = folder / "in", folder / "out"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, inside)
    args = spoil(rng, draw(rng, inside, out), inside)
    before = digest(inside)
    began, at_rest = time.monotonic(), _rest()
    if process:
        done = subprocess.run([sys.executable, "-c", "from diffpose.cli import main; main()", *args], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=PATIENCE, cwd=folder)
        code, text = done.returncode, done.stdout + done.stderr
    else:
        stop = lambda *given, **options: (_ for _ in ()).throw(Reached("the work would begin"))
        with ExitStack() as patched:
            for work in WORK:
                patched.enter_context(mock.patch(work, stop))
            patched.enter_context(warnings.catch_warnings())
            warnings.simplefilter("always", UserWarning)
            result = CliRunner().invoke(app, args)
        code, text = result.exit_code, result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            text += f"\nTraceback: {type(result.exception).__name__}: {result.exception}"
    found, took = broken(code, text, out), time.monotonic() - began
    found += [f"{took:.0f} s"] if took > PATIENCE / 3 and not process else []
    peak = status("VmHWM") - at_rest
    found += [f"{peak / 1e6:.0f} MB"] if at_rest and not process and peak > PEAK else []
    found += ["a file that was read was changed"] if digest(inside) != before else []
    return found, args, text


def _rest() -> float:
    "Bytes in use, from where the next peak is counted; 0 where the system does not say."
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0.0
    return status("VmRSS")


def child(seed: int, first: int, folder: Path) -> None:
    "Run cases one after the other, and say of each a line when it begins and a line when it ends."
    say = lambda **line: print("@" + json.dumps(line), file=sys.__stdout__, flush=True)
    number, after_warming = first, None
    run_case(seed, first, folder / "sound", folder / "case")  # imports what all of them need
    while True:
        say(begins=number)
        found, args, text = run_case(seed, number, folder / "sound", folder / "case")
        if number == first + 100:
            after_warming = status("VmRSS")
        elif after_warming and status("VmRSS") - after_warming > LEFT:
            found.append(f"{(status('VmRSS') - after_warming) / 1e6:.0f} MB left behind by {number - first - 100} cases")
            after_warming = None
        say(ends=number, found=found, args=args, text=text[-1500:] if found else "", kind=re.sub(r"\s+", " ", text)[:60])
        number += 1


def watch(seed: int, first: int, seconds: float, folder: Path) -> tuple[int, list]:
    "Cases for a while; a child that hangs or dies is replaced, and its case has broken a law. Cases done, and those at fault."
    done, faults, end = 0, [], time.monotonic() + seconds
    while time.monotonic() < end:
        process = subprocess.Popen([sys.executable, "-m", "tests.fuzz", "--child", str(folder), "--seed", str(seed), "--case", str(first + done)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True)
        heard, running = [time.monotonic()], [first + done]
        guard = threading.Thread(target=_guard, args=(process, heard, end), daemon=True)
        guard.start()
        for line in process.stdout:
            if not line.startswith("@"):
                continue
            heard[0], said = time.monotonic(), json.loads(line[1:])
            if "begins" in said:
                running[0] = said["begins"]
                continue
            done += 1
            if said["found"]:
                faults.append((said["ends"], said["found"], said["args"], said["text"]))
            if time.monotonic() > end:
                process.kill()
                break
        process.wait()
        if time.monotonic() < end:
            faults.append((running[0], [f"the process ended with {process.returncode}"], [], ""))
            done = running[0] - first + 1
    return done, faults


def _guard(process: subprocess.Popen, heard: list, end: float) -> None:
    "Kill a child that says nothing for too long."
    while process.poll() is None:
        time.sleep(0.5)
        if time.monotonic() - heard[0] > PATIENCE + 30:  # it starts, too
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one alone, and show it")
    parser.add_argument("--processes", type=int, default=2, help="so many cases as processes of their own")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(DIFFPOSE_MAX_MEMORY=ALLOWED, MPLBACKEND="Agg", PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    if options.child:
        child(options.seed, options.case, options.child)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "sound").mkdir()
        write_inputs(folder / "sound")
        if options.case is not None:
            found, args, text = run_case(options.seed, options.case, folder / "sound", folder / "case")
            print(f"diffpose {' '.join(map(repr, args))}\n{text}\n{'; '.join(found) or 'no law is broken'}")
            return bool(found)
        faults, began = [], time.monotonic()
        for number in range(options.processes):
            found, args, text = run_case(options.seed, -1 - number, folder / "sound", folder / "case", process=True)
            faults += [(-1 - number, found, args, text)] if found else []
        done, more = watch(options.seed, 0, options.seconds - (time.monotonic() - began), folder)
    for number, found, args, text in [*faults, *more]:
        print(f"--seed {options.seed} --case {number}: {'; '.join(found)}\n    diffpose {' '.join(map(repr, args))}\n    " + text.strip().replace("\n", "\n    "))
    print(f"{done + options.processes} cases in {time.monotonic() - began:.0f} s, seed {options.seed}: {len(faults) + len(more)} broke a law")
    print(f"{int(not (faults or more))} passed, {int(bool(faults or more))} failed")
    return bool(faults or more)


if __name__ == "__main__":
    sys.exit(main())
