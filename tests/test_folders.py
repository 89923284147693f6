"""Files, folders and processes as they really are: damaged files, two processes in one folder, full disks, kills, odd paths.

Each test is a law for one kind of trouble; the notebooks teach the rest.
"""

import contextlib
import csv
import dataclasses
import gzip
import json
import re
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from diffpose import training
from diffpose.calibration import Camera, antipode
from diffpose.files import keep_out, save_atomically
from diffpose.cli import app, rendering
from diffpose.cli.inputs import load_ct
from diffpose.cli.words import reported
from diffpose.paths import alone, written_together
from diffpose.report import write_ct, write_inputs
from diffpose.results import load_poses
from diffpose.deepfluoro import fetch, write_twin
from diffpose.drr import DRR
from diffpose.phantom import make_phantom
from diffpose.pose import RigidTransform, convert
from diffpose.registration import GaussNewton
from diffpose.simulation import simulate_xray
from diffpose.training import NormalPoses, PoseEstimator, TrainConfig, Trainer, train
from diffpose.training.checkpoints import load_saved
from diffpose.visualization import animate

TINY = TrainConfig(model_name="test_convnext", model_options={}, height=32, batch_size=4, iterations=4, warmup=1, validate_every=2, n_validation=4, checkpoint_every=2, log_every=1)
CAMERA = Camera(1020.0, 96, 96, 2.9, 2.9)


@pytest.fixture(scope="module")
def patient():
    return make_phantom(0, 6.0, orientation="PA")


@pytest.fixture(scope="module")
def trained(patient, tmp_path_factory):
    "The folder of a finished training."
    folder = tmp_path_factory.mktemp("trained") / "network"
    train(patient, CAMERA, folder, TINY, progress=False, tensorboard=False)
    return folder


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    write_ct(path, make_phantom(spacing=8.0))
    return path


@pytest.fixture
def network(trained, tmp_path):
    "A copy of the finished training, to be spoilt."
    return Path(shutil.copytree(trained, tmp_path / "network"))


def call(*args):
    "Exit code and all that a command prints, in one line."
    with torch.random.fork_rng():
        result = CliRunner().invoke(app, [str(a) for a in args])
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def options(patient, folder, **changes):
    return {"subjects": [patient], "camera": CAMERA, "folder": folder, "config": TrainConfig(**{**vars(TINY), **changes}), "tensorboard": False}


@contextlib.contextmanager
def small_disk(n):
    "No file may grow beyond n bytes meanwhile, as on a full disk."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# what is read ------------------------------------------------------------------------------------------------------


def changed(**entries):
    "Spoil entries of a saved file; ... removes one."

    def spoil(path):
        data = torch.load(path, weights_only=True)
        for key, value in entries.items():
            if value is ...:
                del data[key]
            else:
                data[key] = value(data[key]) if callable(value) else value
        torch.save(data, path)

    return spoil


def first_weight(change):
    def spoil(weights):
        name = next(k for k, v in weights.items() if v.is_floating_point() and v.ndim > 1)
        return {**weights, name: change(weights[name])}

    return changed(model=spoil)


def flip(path):
    "One bit of the largest part, in its middle."
    with zipfile.ZipFile(path) as parts:
        part = max(parts.infolist(), key=lambda p: p.file_size)
    data = bytearray(path.read_bytes())
    data[part.header_offset + part.file_size // 2] ^= 4
    path.write_bytes(data)


def zipped(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no model")


MALFORMED = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights\n"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2000]),
    "a bit flipped": flip,
    "another zip": zipped,
    "an object": lambda path: torch.save(Path("x"), path),
    "a function": lambda path: torch.save({"format": 1, "f": print}, path),
    "a list": lambda path: torch.save([1, 2], path),
    "another format": changed(format=2),
    "another kind": changed(kind="checkpoint"),
    "a kind that is none": changed(kind=[1]),
    "no weights": changed(model=...),
    "no errors": changed(residuals=...),
    "weights that are a list": changed(model=[1, 2]),
    "weights of another shape": first_weight(lambda w: torch.cat([w, w])),
    "weights of another type": first_weight(lambda w: w.double()),
    "whole numbers for weights": first_weight(lambda w: w.long()),
    "weights that are none": first_weight(lambda w: w * float("nan")),
    "weights that are text": first_weight(lambda w: "w"),
    "errors that are none": changed(residuals=lambda r: r * float("inf")),
    "errors of five numbers": changed(residuals=lambda r: r[:, :5]),
    "no such view": changed(orientation="LAT"),
    "settings of nobody": changed(config=lambda c: {**c, "depth": 3}),
    "settings without poses": changed(config=lambda c: {k: v for k, v in c.items() if k != "poses"}),
    "a height that is text": changed(config=lambda c: {**c, "height": "x"}),
    "no such network": changed(config=lambda c: {**c, "model_name": "resnet1"}),
    "half a camera": changed(camera={"sdd": 1020.0}),
    "a camera of no size": changed(camera=lambda c: {**c, "width": 0}),
    "no validation": changed(validation=None),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_model_is_refused_by_name(network, kind):
    path = network / "model.pt"
    MALFORMED[kind](path)
    with pytest.raises(ValueError) as caught:
        PoseEstimator.load(network)
    text = str(caught.value)
    assert str(path) in text or str(network) in text, text
    assert "train again" in text and "weights_only" not in text, text


def test_a_network_may_have_taken_one_side_for_the_other(network, patient):
    class Recording(GaussNewton):
        def register(self, xray, init, **options):
            self.more = options["more"].matrix
            return SimpleNamespace(evidence={})

    estimator, solver = PoseEstimator.load(network), Recording(DRR.from_camera(patient, CAMERA))
    xray = solver.drr(estimator.config.poses.center)
    estimator.register(xray, solver, n_more=3)
    plain = solver.more
    guess = RigidTransform(torch.tensor(estimator.register(xray, solver, n_more=3, antipodal=True).evidence["guess"])[None])
    assert torch.equal(solver.more[1:], plain) and torch.equal(solver.more[:1], antipode(guess, "PA").matrix)


def test_a_malformed_model_ends_the_command_with_exit_code_2(network, ct, tmp_path):
    for kind in ("empty", "a bit flipped", "a function", "weights that are none", "half a camera"):
        shutil.copy(network / "model.pt", tmp_path / "model.pt")
        MALFORMED[kind](tmp_path / "model.pt")
        code, text = call("register", ct, ct, "--model", tmp_path / "model.pt", "--orientation", "PA", "--sdd", 1020, "--out", tmp_path / "out")
        assert code == 2 and "model.pt" in text and "train again" in text and "weights_only" not in text, (kind, text)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["empty", "cut", "a bit flipped", "a function", "another format"])
def test_a_damaged_checkpoint_says_how_to_go_on(network, patient, kind):
    path = network / "checkpoint.pt"
    MALFORMED[kind](path)
    with pytest.raises(ValueError, match="resume=False") as caught:
        Trainer(**options(patient, network))
    assert str(path) in str(caught.value) and "weights_only" not in str(caught.value)
    assert Trainer(**options(patient, network), resume=False).iteration == 0


def test_a_checkpoint_of_other_contents_is_refused(network, patient):
    path = network / "checkpoint.pt"
    whole = path.read_bytes()
    for spoil in (changed(optimiser=...), changed(rng={}), changed(optimiser={}), first_weight(lambda w: w * float("nan")), changed(rng={"torch": torch.zeros(3), "cuda": None})):
        path.write_bytes(whole)
        spoil(path)
        with pytest.raises(ValueError, match="checkpoint.pt is not a whole checkpoint"):
            Trainer(**options(patient, network))


LOGS = {
    "empty": lambda text: b"",
    "no text": lambda text: b"\xff\x00\xfe" + text,
    "a row cut": lambda text: text[:-9],
    "a name spoilt": lambda text: text.replace(b"loss", b"lo3s"),
    "a number spoilt": lambda text: text[:-4] + b"x" + text[-3:],
    "zeros": lambda text: bytes(len(text)),
    "a row too long": lambda text: text + b"5,1,2\r\n",
}


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_table_is_put_aside_and_the_training_goes_on(network, patient, kind):
    for name in ("log.csv", "validation.csv"):
        (network / name).write_bytes(LOGS[kind]((network / name).read_bytes()))
    spoilt = (network / "log.csv").read_bytes()
    estimator = train(patient, CAMERA, network, TrainConfig(**{**vars(TINY), "iterations": 6}), progress=False, tensorboard=False)
    assert estimator.about["iteration"] > 0
    log = pd.read_csv(network / "log.csv")
    assert log["iteration"].is_monotonic_increasing and log["iteration"].iloc[-1] == 6 and log["loss"].notna().all()
    if spoilt and kind != "empty":
        assert (network / "log_damaged.csv").read_bytes() == spoilt
    if kind in ("a row cut", "a number spoilt", "a row too long"):
        assert len(log) >= 5  # the other rows are kept


# two at once --------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from diffpose.files import keep_out
release = keep_out(sys.argv[1])
print("held", flush=True)
time.sleep(120)
"""


@contextlib.contextmanager
def held(folder):
    "Another process that writes there."
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_second_process_in_a_folder_is_refused_by_name(patient, ct, tmp_path):
    out = tmp_path / "out"
    with held(out) as process:
        who = f"is being written to by process {process.pid} on {os.uname().nodename}"
        with pytest.raises(BlockingIOError, match=who):
            Trainer(**options(patient, out))
        for command in (("train", ct), ("register", ct, ct)):
            code, text = call(*command, "--out", out)
            assert code == 2 and who in text, text
        assert [p.name for p in out.iterdir()] == [".lock"]
        with pytest.raises(BlockingIOError, match=who):
            from diffpose.deepfluoro import fetching

            asked = pytest.MonkeyPatch()
            with asked.context() as patch:
                patch.setattr(fetching, "_ask_archive", lambda url, doi: fetching._Archived(10, "MD5", "0"))
                fetch(out)
    assert Trainer(**options(patient, out)).iteration == 0  # a kill ended the lock


def test_a_training_that_fails_lets_others_in(patient, tmp_path):
    with pytest.raises(ValueError):
        Trainer(**options(patient, tmp_path / "new", model_name="no_such_network"))
    assert not (tmp_path / "new").exists()
    keep_out(tmp_path / "new")()


# full disks, and outputs that are inputs -------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_leaves_nothing_half(network, patient, ct, tmp_path):
    before = {p.name: p.read_bytes() for p in network.iterdir()}
    trainer = Trainer(**options(patient, network, iterations=8))
    with small_disk(20_000), pytest.raises(OSError, match="File too large") as caught:
        trainer.run(progress=False)
    assert caught.value.filename == str(network / "checkpoint.pt") or caught.value.filename == str(network / "model.pt")
    assert {p.name: p.read_bytes() for p in network.glob("*.pt")} == {k: v for k, v in before.items() if k.endswith(".pt")}
    assert not list(network.glob(".*"))
    for name in ("drr.png", "drr.npy", "drr.tif", "drr.nii.gz", "drr.nii"):
        with small_disk(300):
            code, text = call("render", ct, "--out", tmp_path / "images" / name, "--height", 64)
        assert code == 2 and name in text and "File too large" in text and "None" not in text, text
        assert not list((tmp_path / "images").iterdir())


@pytest.fixture
def full(tmp_path):
    "A file system with 100 kB left."
    folder = tmp_path / "full"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (folder / "others").write_bytes(bytes(200_000))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_file_system_without_room_is_named(patient, ct, full):
    def commands():
        for name in ("a.png", "a.npy", "a.tif", "a.nii", "a.nii.gz"):
            yield name, ("render", ct, "--out", full / name, "--height", 400)
        yield "t.h5", ("data", "twin", "--out", full / "t.h5", "--specimens", 1, "--xrays", 1, "--size", 64, "--spacing", 8)

    for name, words in commands():
        code, text = call(*words)
        assert code == 2 and f"{full / name}: cannot be written (No space left on device)" in text, text
        assert [p.name for p in full.iterdir()] == ["others"]
    with pytest.raises(OSError, match="No space left on device") as caught:
        Trainer(**options(patient, full / "network")).run(progress=False)
    assert caught.value.filename == str(full / "network" / "model.pt")
    assert {p.name for p in (full / "network").iterdir()} <= {"config.json", "log.csv", "validation.csv"}


def test_no_output_is_an_input(ct, tmp_path):
    camera, link, hard = tmp_path / "camera.json", tmp_path / "link.json", tmp_path / "hard.json"
    Camera(1020.0, 32, 32, 9.0, 9.0).to_json(camera)
    link.symlink_to(camera)
    os.link(camera, hard)
    for given in (camera, link, hard):
        code, text = call("render", ct, "--camera", given, "--out", tmp_path / "a.png", "--save-camera", camera, "--force")
        assert code == 2 and "is read as well" in text and not (tmp_path / "a.png").exists(), text
    out = tmp_path / "out"
    out.mkdir()
    (out / "pose.json").write_text('{"rotation_zxy_deg": [0, 0, 0], "translation_mm": [0, 850, 0]}')
    code, text = call("register", ct, ct, "--init", out / "pose.json", "--out", out, "--force")
    assert code == 2 and "is read as well" in text, text


def test_no_output_takes_the_place_of_a_device(ct, tmp_path):
    "Run as root, a rename would put a file where /dev/null was. A pipe stands for a device here: it has no room for a name of its own either."
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for write in (lambda: save_atomically(pipe, lambda part: part.write_text("x")), lambda: CAMERA.to_json(pipe), lambda: animate(pipe, pd.DataFrame(np.zeros((1, 6)), columns=["alpha", "beta", "gamma", "bx", "by", "bz"]), None, device="cpu")):
        with pytest.raises((OSError, ValueError), match="a device or a pipe"):
            write()
    for options in (("--out", pipe), ("--out", tmp_path / "a.png", "--save-camera", pipe)):
        code, text = call("render", ct, *options, "--force")
        assert code == 2 and "pipe.png is a pipe, which no file takes the place of" in text, text
    assert pipe.is_fifo() and [*tmp_path.iterdir()] == [pipe]


def test_python_runs_the_package():
    done = subprocess.run([sys.executable, "-m", "diffpose", "animate", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: diffpose animate" in done.stdout, done.stderr


def test_a_training_does_not_start_from_the_model_that_it_replaces(network, patient, ct):
    with pytest.raises(ValueError, match="would replace it"):
        Trainer(**options(patient, network), init=network, resume=False)
    assert (network / "model.pt").exists()
    code, text = call("train", ct, "--from", network, "--out", network, "--force", "--iterations", 2)
    assert code == 2 and "would" in text, text


# kills and signals ------------------------------------------------------------------------------------------------------


def test_what_a_kill_left_half_written_is_removed(network, patient):
    (network / ".checkpoint.pt.4711.part").write_bytes(b"half")
    Trainer(**options(patient, network))
    assert not list(network.glob(".*.part"))


@pytest.mark.parametrize("number,error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_and_the_training_goes_on_as_if_undisturbed(trained, patient, tmp_path, capsys, number, error):
    def interrupt(iteration, happened):
        if iteration == 3:  # between two checkpoints
            signal.raise_signal(number)

    usual = signal.getsignal(number)
    with pytest.raises(error) as caught:
        Trainer(**options(patient, tmp_path)).run(progress=False, callback=interrupt)
    assert signal.getsignal(number) is usual
    said = str(caught.value) if error is KeyboardInterrupt else capsys.readouterr().err
    assert "stopped after iteration 3 of 4" in said and "goes on from there" in said
    assert error is KeyboardInterrupt or caught.value.code == 143
    assert load_saved(tmp_path, "checkpoint.pt")["iteration"] == 3
    Trainer(**options(patient, tmp_path)).run(progress=False)
    for name in ("checkpoint.pt", "model.pt"):
        one, other = (load_saved(folder / name, name)["model"] for folder in (trained, tmp_path))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_with_the_code_of_the_signal(ct, tmp_path, number):
    out = tmp_path / "network"
    command = [sys.executable, "-m", "diffpose.cli", "train", ct, "--out", out, "--height", 64, "--delx", 6, "--batch-size", 2, "--iterations", 100_000]
    command[1:3] = ["-c", "from diffpose.cli import main; main()"]
    process = subprocess.Popen([str(x) for x in command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        ends = time.time() + 120
        while not ((out / "log.csv").exists() and (out / "log.csv").stat().st_size) and process.poll() is None and time.time() < ends:
            time.sleep(0.1)
        process.send_signal(number)
        _, text = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, text
    assert "stopped after iteration" in text and "goes on from there" in text, text
    assert (out / "checkpoint.pt").exists() and not (out / ".lock").exists()


def test_a_command_that_is_terminated_leaves_nothing(tmp_path, capsys):
    "Whatever the command: its lock is given back, what is half written is removed, and the shell sees 143."
    with pytest.raises(SystemExit) as ended, reported(), alone(tmp_path / "out"), written_together(tmp_path / "out") as inside:
        (inside / "pose.json").write_text("half")
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143 and capsys.readouterr().err == "terminated\n"
    assert not any((tmp_path / "out").rglob("*")) and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_more_iterations_go_on_and_fewer_are_refused(network, patient):
    more = Trainer(**options(patient, network, iterations=6))
    assert more.iteration == 4 and more.learner.optimiser.param_groups[0]["lr"] > 0
    more.run(progress=False)
    assert load_saved(network, "checkpoint.pt")["iteration"] == 6
    with pytest.raises(ValueError, match="has 6 iterations behind it"):
        Trainer(**options(patient, network, iterations=5))


# what users do ----------------------------------------------------------------------------------------------------------


def odd_paths(tmp_path, ct):
    "Paths that lead to no file, and what is said of them."
    dangling, loop, pipe = tmp_path / "dangling.nii", tmp_path / "loop.nii", tmp_path / "pipe.nii"
    dangling.symlink_to(tmp_path / "gone.nii")
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    return {dangling: "is a link to", loop: "leads back to itself", pipe: "is a pipe and no file", Path(os.devnull): "is a device and no file", tmp_path / ("x" * 300): "File name too long"}


def test_odd_paths_are_said_for_what_they_are(ct, tmp_path):
    for path, message in odd_paths(tmp_path, ct).items():
        code, text = call("render", path, "--out", tmp_path / "a.png")
        assert code == 2 and message in text and "did you mean" not in text, (path, text)
        code, text = call("render", ct, "--out", tmp_path / "a.png", "--camera", path)
        assert code == 2 and message in text, (path, text)
        code, text = call("register", ct, ct, "--out", path)
        assert code == 2 and "error:" in text, (path, text)


def test_capitals_do_not_matter(ct, tmp_path):
    for name in ("CT.NII.GZ", "CT.nii.GZ", "CT.NII"):
        (tmp_path / name).write_bytes(ct.read_bytes() if name.endswith("GZ") else gzip.decompress(ct.read_bytes()))
        code, text = call("render", tmp_path / name, "--out", tmp_path / f"{name}.png", "--height", 16)
        assert code == 0, text


def test_numbers_that_no_c_arm_has_are_refused_by_their_option(ct, tmp_path):
    digits = "9" * 400
    deep, far, long = (tmp_path / f"{name}.json" for name in ("deep", "far", "long"))
    deep.write_text("[" * 10_000 + "]" * 10_000)
    far.write_text('{"sdd_mm": 1e300, "height_px": 16, "width_px": 16, "delx_mm": 9, "dely_mm": 9}')
    long.write_text(f'{{"rotation_zxy_deg": [0, 0, {digits}], "translation_mm": [0, 850, 0]}}')
    cases = [
        (("--height", 0), "--height"),
        (("--width", 0), "--width"),
        (("--height", digits), "--height"),
        (("--sdd", digits), "sdd must be"),
        (("--delx", "1e-300"), "delx must be"),
        (("--rotation", f"{digits},0,0"), "--rotation"),
        (("--translation", "0,1e300,0"), "--translation"),
        (("--camera", deep), "nested too deeply"),
        (("--pose", deep), "nested too deeply"),
        (("--camera", far), "sdd must be a positive number, at most 1e+07"),
        (("--pose", long), "rotation_zxy_deg must be three numbers"),
        (("--bone-attenuation", digits), "--bone-attenuation"),
    ]
    for args, message in cases:
        code, text = call("render", ct, "--out", tmp_path / "a.png", *args)
        assert code == 2 and message in text and "fault" not in text, (args, code, text)
    for command in (("train", ct), ("demo",), ("register", ct, ct)):
        code, text = call(*command, "--out", tmp_path / "a", "--seed", digits)
        assert code == 2 and "--seed" in text, text


def test_a_landmark_table_at_fault_is_named(tmp_path):
    from diffpose.cli.inputs import load_landmarks

    path, subject = tmp_path / "points.csv", make_phantom(spacing=20.0)
    for data in (b"", b"\xff\xfe", b"x_mm,y_mm\n1,2\n", b"x_mm,y_mm,z_mm\n1,2,three\n", b"x_mm,y_mm,z_mm\n1,2\n", b"x_mm,x_mm,y_mm,z_mm\n1,1,2,3\n", b"x_mm,y_mm,z_mm\n1,2,1e300\n"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="points.csv"):
            load_landmarks(path, "ras", subject)
    path.write_bytes("\ufeffx_mm,y_mm,z_mm\n1,2,3\n".encode())
    assert np.isfinite(load_landmarks(path, "ras", subject).numpy()).all()


def test_what_is_written_can_be_read_by_others_and_names_no_folder(ct, tmp_path):
    camera = tmp_path / "camera.json"
    code, text = call("render", ct, "--out", tmp_path / "a.png", "--height", 16, "--save-camera", camera)
    assert code == 0, text
    assert json.loads(camera.read_text())["height_px"] == 16
    assert str(tmp_path).encode() not in (tmp_path / "a.png").read_bytes() + camera.read_bytes()


# several at once ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["AP", "PA", None])
def test_the_settings_as_they_are_train_a_subject_as_it_is(tmp_path, orientation):
    "Nobody says where the C-arm may stand: it stands where the subject's view looks from."
    subject = make_phantom(0, 8.0, orientation=orientation)
    estimator = train(subject, CAMERA, tmp_path, dataclasses.replace(TINY, iterations=1), progress=False, tensorboard=False)
    assert estimator.config.poses == NormalPoses.of_view(orientation)
    assert load_saved(tmp_path)["validation"]["mtre_mm_median"] > 0
    again = Trainer([subject], CAMERA, tmp_path, dataclasses.replace(TINY, iterations=1), tensorboard=False)  # with the same settings it goes on
    assert again.iteration == 1


def test_the_command_trains_on_several_patients_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(training.RECIPES, "cpu", lambda **changes: dataclasses.replace(TINY, **changes))
    for seed in (0, 1):
        write_ct(tmp_path / f"{seed}.nii.gz", make_phantom(seed, 9.0))
    quick = ["train", tmp_path / "0.nii.gz", tmp_path / "1.nii.gz", "--out", tmp_path / "net", "--height", 32, "--delx", 9, "--batch-size", 2]
    code, text = call(*quick, "--iterations", 1)
    assert code == 0 and "diffpose register CT XRAY" in text, text
    code, text = call(*quick, "--iterations", 2)
    assert code == 0 and load_saved(tmp_path / "net", "checkpoint.pt")["iteration"] == 2, text
    code, text = call(quick[0], quick[1], *quick[3:], "--iterations", 3)
    assert code == 2 and "another CT or camera" in text and "--force starts anew" in text, text
    code, text = call(*quick, "--iterations", 3, "--labelmap", tmp_path / "0.nii.gz")
    assert code == 2 and "2 CTs and 1 label maps are given: give --labelmap once for each CT" in text, text
    code, text = call(*quick[:5], "--iterations", 1, "--max-memory", "100kB", "--out", tmp_path / "other")
    assert code == 2 and "0.nii.gz asks for" in text and "--max-memory allows 100.0 kB" in text and not (tmp_path / "other").exists(), text


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    "A patient, and two X-rays of it with their cameras and starts."
    folder = tmp_path_factory.mktemp("case")
    subject, camera = make_phantom(0, 5.0), Camera(1020.0, 48, 48, 8.0, 8.0, sid=850.0, primary_angle=0.0, secondary_angle=0.0)
    write_ct(folder / "ct.nii.gz", subject)
    for name, angle in (("ap", 1.0), ("oblique", 20.0)):
        truth, start = (convert(torch.tensor([[a, 2.0, 1.0]]), torch.tensor([[3.0, 845, -4]]), parameterization="euler_angles", convention="ZXY", degrees=True) for a in (angle, angle + 3))
        (folder / name).mkdir()
        write_inputs(folder / name, subject, camera, simulate_xray(subject, camera, truth, seed=0), start, truth)
    return folder


def test_every_xray_is_registered_whatever_the_others_do(case, tmp_path):
    "The CT is read once, each X-ray has its results and its row, and the exit code is the worst."
    (tmp_path / "broken.png").write_bytes((case / "ap" / "xray.png").read_bytes()[:300])
    shutil.copy(case / "ap" / "xray.png", tmp_path / "lonely.png")  # its start is not beside it
    given = [case / "*" / "xray.png", tmp_path]
    job = ["register", case / "ct.nii.gz", *given, "--each", "--camera", "{folder}/camera.json", "--init", "{folder}/start.json", "--restarts", 0, "--out", tmp_path / "all"]
    (tmp_path / "camera.json").write_bytes((case / "ap" / "camera.json").read_bytes())
    with mock.patch("diffpose.cli.registration.load_ct", side_effect=load_ct) as reading:
        code, text = call(*job)
    assert reading.call_count == 1 and code == 2, text
    rows = {row["folder"]: row for row in csv.DictReader(open(tmp_path / "all" / "summary.csv"))}
    assert list(rows) == ["ap_xray", "oblique_xray", "broken", "lonely"]
    for name in ("ap", "oblique"):
        row, alone = rows[f"{name}_xray"], json.loads((tmp_path / "all" / f"{name}_xray" / "pose.json").read_text())
        assert row["verdict"] == alone["verdict"] and row["exit_code"] == ("0" if row["verdict"] == "converged" else "1")
        assert [float(row[k]) for k in ("alpha_deg", "beta_deg", "gamma_deg", "bx_mm", "by_mm", "bz_mm")] == pytest.approx([*alone["rotation_zxy_deg"], *alone["translation_mm"]], abs=1e-6)
        truth = load_poses(case / name / "truth.json")[0]["rotation_zxy_deg"]
        assert abs(float(row["alpha_deg"]) - truth[0]) < 2
    assert {rows[k]["verdict"] for k in ("broken", "lonely")} == {"failed"} and "start.json does not exist" in rows["lonely"]["error"]
    assert not (tmp_path / "all" / "broken").exists()
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert summary["n"] == 4 and summary["verdicts"]["failed"] == 2 and [row["folder"] for row in summary["xrays"]] == list(rows)
    assert [row["xray"] for row in rows.values()] == ["xray.png", "xray.png", "broken.png", "lonely.png"]  # names, no folders
    assert not any(str(tmp_path) in (tmp_path / "all" / name).read_text() for name in ("summary.csv", "summary.json", "report.html"))  # in no message either
    page = (tmp_path / "all" / "report.html").read_text()
    linked = re.findall(r'<a href="([^"]+)"', page)
    assert linked == ["ap_xray/report.html", "oblique_xray/report.html"] and all((tmp_path / "all" / x).exists() for x in linked)
    assert "see row 4 of summary.csv" in page and "lonely" not in page  # which may be a patient's name
    one = [case / "oblique" / name for name in ("xray.png", "camera.json", "start.json")]
    call("register", case / "ct.nii.gz", one[0], "--camera", one[1], "--init", one[2], "--restarts", 0, "--out", tmp_path / "one")
    assert (tmp_path / "one" / "history.csv").read_bytes() == (tmp_path / "all" / "oblique_xray" / "history.csv").read_bytes()  # as if it were alone
    code, text = call(*job)
    assert code == 2 and "already holds summary.csv" in text, text


def test_several_xrays_need_a_word(case, tmp_path):
    "Two images of one pose are another question than two poses; nothing is guessed."
    for xrays, said in (([case / "ap" / "xray.png"] * 2, "2 X-rays are given"), ([case / "ap"], "is a folder or a pattern"), ([case / "*" / "*.png"], "is a folder or a pattern")):
        code, text = call("register", case / "ct.nii.gz", *xrays, "--out", tmp_path / "a")
        assert code == 2 and said in text and "with --each every X-ray is registered by itself" in text, text
    code, text = call("register", case / "ct.nii.gz", case / "ct.nii.gz", "--each", "--camera", tmp_path / "no.json", "--out", tmp_path / "a")
    assert code == 2 and "none" in text and "no.json does not exist" in text, text
    assert not (tmp_path / "a").exists()


def test_no_device_or_pipe_gives_way_to_a_file(ct, tmp_path):
    pipe, link = tmp_path / "pipe.png", tmp_path / "link.png"
    os.mkfifo(pipe)
    link.symlink_to(os.devnull)
    for path, kind in ((pipe, "pipe"), (link, "device")):
        for args in (("--out", path), ("--out", tmp_path / "a.png", "--save-camera", path)):
            code, text = call("render", ct, *args, "--height", 16, "--force")
            assert code == 2 and f"{path} is a {kind}, which no file takes the place of" in text, text
        with pytest.raises(FileExistsError, match="which no file takes the place of"):
            save_atomically(path, lambda part: part.write_bytes(b"new"))
    assert pipe.is_fifo() and link.is_symlink() and not (tmp_path / "a.png").exists()


def test_no_output_is_part_of_an_input(ct, tmp_path):
    from tests.test_inputs import ct_folder

    slices = ct_folder(tmp_path / "slices", "{:04d}.tif")
    voxels = tmp_path / "voxels.nii"
    voxels.write_bytes(bytes(2 * 4**3))
    header = tmp_path / "ct.nhdr"
    header.write_text("NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\nendian: little\nspace: LPS\nspace directions: (9,0,0) (0,9,0) (0,0,9)\ndata file: voxels.nii\n")
    summary = tmp_path / "summary.json"
    Camera(1020.0, 32, 32, 9.0, 9.0).to_json(summary)
    image = tmp_path / "x.png"
    assert call("render", ct, "--out", image, "--height", 32, "--intensity")[0] == 0
    cases = [
        (slices[3], ("render", slices[3].parent, "--out", slices[3])),
        (voxels, ("render", header, "--out", voxels)),
        (summary, ("register", ct, image, "--each", "--camera", summary, "--init", "0,0,0;0,850,0", "--out", tmp_path)),
    ]
    for path, words in cases:
        before = path.read_bytes()
        code, text = call(*words, "--force")
        assert code == 2 and f"{path} would be overwritten, and is read as well" in text and path.read_bytes() == before, text
    code, text = call("render", ct, "--out", tmp_path / "b.png", "--save-camera", tmp_path / "b.png", "--height", 16)
    assert code == 2 and "is an image of --out as well" in text, text


def test_what_another_process_wrote_meanwhile_stays(ct, tmp_path):
    out, rendered = tmp_path / "a.npy", rendering._images

    def slowly(*args):
        out.write_bytes(b"of another process")
        return rendered(*args)

    with mock.patch("diffpose.cli.rendering._images", slowly):
        code, text = call("render", ct, "--out", out, "--height", 16)
        assert code == 2 and f"{out}: another process wrote it meanwhile" in text and out.read_bytes() == b"of another process", text
        assert call("render", ct, "--out", out, "--height", 16, "--force")[0] == 0 and np.load(out).shape == (16, 16)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_a_signal_ends_any_command_in_order(tmp_path):
    let_in = []
    with pytest.raises(SystemExit) as caught, reported(), alone(tmp_path / "out"):
        let_in.append((tmp_path / "out" / ".lock").exists())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 128 + signal.SIGTERM and let_in == [True] and not (tmp_path / "out").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_benchmark_file_on_a_full_disk(tmp_path):
    for room in (3_000, 60_000):
        with small_disk(room), pytest.raises(OSError, match="File too large"):
            write_twin(tmp_path / "t.h5", [1], 1, size=64, spacing=8.0)
        assert not list(tmp_path.iterdir())


def test_an_interrupted_training_says_how_the_command_goes_on(capsys):
    with pytest.raises(typer.Exit) as end, reported():
        raise KeyboardInterrupt("stopped after iteration 3 of 9: started again in the same way, it goes on from there")
    assert end.value.exit_code == 130 and "in the same way, it goes on" in capsys.readouterr().err
