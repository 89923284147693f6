"""A parallel beam: a sum along the rays, a pose without its depth, and a refusal wherever a source is needed.

The sums are SimpleITK's, of a volume that it reads from a file; the laws of rays, projection and derivatives stand in the notebooks of calibration, renderers and drr.
"""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from typer.testing import CliRunner


from diffpose.calibration import Camera, Detector, antipode, carm_pose, get_pinhole_camera, reorientation
from diffpose.cli import app, job, words
from diffpose.report import write_ct
from diffpose.results import parameter_deviations
from diffpose.data import read, read_xray
from diffpose.deepfluoro import write_twin
from diffpose.drr import DRR
from diffpose.metrics import NormalizedCrossCorrelation2d
from diffpose.phantom import make_phantom
from diffpose.pose import RigidTransform, convert
from diffpose.registration import GaussNewton, PosePrior, Registration, SparseRegistration
from diffpose.simulation import Physics, simulate_xray
from diffpose.training import TrainConfig, retarget, train
from tests.test_inputs import COUNTS, dicom

PATIENT = make_phantom(seed=0, spacing=4.0)
CAMERA = Camera(1000.0, 96, 96, 3.4, 3.4, parallel=True)


def at(*numbers):
    turn, shift = torch.tensor([numbers], dtype=torch.float32).split(3, -1)
    return convert(turn, shift, parameterization="euler_angles", convention="ZXY", degrees=True).double()


def call(*args):
    with torch.random.fork_rng():
        result = CliRunner().invoke(app, [str(a) for a in args])
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def errors(pose, truth):
    "How far off the landmarks are, seen from the C-arm: across the beam, and along it [mm]."
    off = pose.double().inverse()(PATIENT.fiducials.double()) - truth.inverse()(PATIENT.fiducials.double())
    return off[..., [0, 2]].norm(dim=-1).max().item(), off[..., 1].mean().item()


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    write_ct(path, PATIENT)
    return path


@pytest.mark.parametrize("orientation, axis, options", [("AP", 1, ()), ("none", 2, ("--translation", "0,0,7"))])
def test_a_picture_is_a_sum_along_an_axis(ct, tmp_path, orientation, axis, options):
    subject = read(ct)
    density = sitk.GetImageFromArray(subject.density.data[0].numpy().T)
    density.SetSpacing(tuple(subject.density.spacing))
    wanted = sitk.GetArrayFromImage(sitk.SumProjection(density, axis)).squeeze() * subject.density.spacing[axis]  # rows z or y, columns x
    if np.linalg.inv(subject.density.affine)[0, 0] > 0:
        wanted = wanted[:, ::-1]  # column 0 is the patient's right
    rows, columns = wanted.shape
    size = [subject.density.spacing[k] for k in (0, 2 if axis == 1 else 1)]
    code, said = call("render", ct, "--out", tmp_path / "a.npy", "--parallel", "--orientation", orientation, "--height", rows, "--width", columns, "--delx", size[0], "--dely", size[1], "--save-camera", tmp_path / "c.json", *options)
    assert code == 0, said
    assert np.abs(np.load(tmp_path / "a.npy") - wanted[::-1]).max() < 1e-4 * wanted.max()
    assert Camera.from_json(tmp_path / "c.json").parallel
    assert call("render", ct, "--out", tmp_path / "b.npy", "--camera", tmp_path / "c.json", "--orientation", orientation, *options)[0] == 0
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


@pytest.mark.parametrize("truth, start", [((2.0, -3, 4, 5, 850, -6), (-7.0, 5, -5, -5, 600, 4)), ((35.0, 10, -5, 5, 850, 8), (27.0, 2, 4, -5, 0, 16))])
def test_an_xray_is_registered_across_the_beam(truth, start):
    truth, start = at(*truth), at(*start)
    result = GaussNewton(DRR.from_camera(PATIENT, CAMERA, renderer="trilinear")).register(simulate_xray(PATIENT, CAMERA, truth), init=start)
    across, _ = errors(result.pose, truth)
    assert result.verdict == "converged" and across < 0.5, result
    beam = torch.tensor(result.evidence["beam"], dtype=torch.float64)
    begun = start.matrix[0, :3, 3] @ start.matrix[0, :3, :3] @ torch.tensor([0.0, -1, 0], dtype=torch.float64)
    assert abs(result.pose.matrix[0, :3, 3] @ beam - begun) < 1e-4  # as deep as it began
    assert [reason.code for reason in result.reasons] == ["agreement", "depth"]
    assert "across the beam" in result.reasons[0] and "does not show the depth" in result.reasons[1] and "across the beam" in repr(result)
    assert math.isfinite(result.expected_tre_mm) and result.covariance[3:, 3:].diagonal().max() == math.inf
    assert (result.across[3:, 3:] @ beam).abs().max() < 1e-9 * result.across.abs().max()
    spread = parameter_deviations(result.pose, result.across, beam.tolist())
    assert spread[4] == math.inf and max(spread[:4] + spread[5:]) < 1


def test_starts_of_other_depths_are_no_other_answers():
    drr, truth = DRR.from_camera(PATIENT, CAMERA, renderer="trilinear"), at(2.0, -3, 4, 5, 850, -6)
    result = GaussNewton(drr).register(drr(truth), PosePrior(at(-20.0, 8, 10, 0, 700, 0), 25.0, (20.0, 300.0, 20.0)), n_starts=12)
    assert result.verdict == "converged" and errors(result.pose, truth)[0] < 0.1
    assert errors(result.pose, truth)[1] == pytest.approx(150, abs=1)  # the depth of the prior's mean
    assert GaussNewton(drr).assess(drr(truth), at(2.0, -3, 4, 5, 200, -6)).verdict == "converged"


def test_adam_does_not_follow_the_rounding_along_the_beam():
    drr, truth = DRR.from_camera(PATIENT, CAMERA.resize(32, 32), renderer="trilinear"), at(2.0, -3, 4, 5, 850, -6)
    registration = Registration(drr, *at(0.0, 0, 0, 0, 700, 0).float().convert("euler_angles", "ZXY"), parameterization="euler_angles", convention="ZXY")
    optimizer = torch.optim.Adam([{"params": [registration.rotation], "lr": 1e-2}, {"params": [registration.translation], "lr": 1.0}], maximize=True)
    similarity, fixed = NormalizedCrossCorrelation2d(), drr(truth)
    for _ in range(60):
        optimizer.zero_grad()
        value = similarity(fixed, registration())
        value.mean().backward()
        optimizer.step()
    assert value.item() > 0.999
    assert registration.translation[0, 1].item() == pytest.approx(700, abs=0.1) and registration.translation[0, 0].item() == pytest.approx(5, abs=0.5)


def test_patches_are_cut_from_the_same_picture():
    drr, pose = DRR.from_camera(PATIENT, CAMERA.resize(32, 32)), at(2.0, -3, 4, 5, -4000, -6).float()
    sparse = SparseRegistration(drr, pose, "euler_angles", "ZXY", n_patches=5, patch_size=5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image, patches = sparse()
    seen = patches.any(0)
    assert 0 < seen.sum() < 32 * 32
    assert (image[0, 0, seen] - drr(pose)[0, 0, seen]).abs().max() < 1e-4 * image.max()


def test_a_start_from_the_other_side(ct, tmp_path, monkeypatch):
    camera, kept = Camera(1020.0, 64, 64, 6.3, 6.3), []
    drr, truth = DRR.from_camera(PATIENT, camera, renderer="trilinear"), at(5.0, 3, -4, 4, 850, 7)
    behind = antipode(at(8.0, 0, -2, 4, 800, 0))
    np.save(tmp_path / "x.npy", drr(truth)[0, 0].numpy())
    camera.to_json(tmp_path / "c.json")
    numbers = ";".join(",".join(map(str, x[0].tolist())) for x in behind.convert("euler_angles", "ZXY", degrees=True))
    monkeypatch.setattr(job, "write_results", lambda folder, result, *_, **__: kept.append(result))  # no pictures
    given = ("register", ct, tmp_path / "x.npy", "--camera", tmp_path / "c.json", "--line-integrals", "--polarity", "bone-bright", "--whole-image", "--init", numbers, "--restarts", 0)
    codes = [call(*given, "--out", tmp_path / name, *more)[0] for name, more in (("a", ()), ("b", ("--antipodal",)))]
    assert codes == [words.NOT_CONVERGED, 0] and [result.verdict for result in kept] == ["stalled", "converged"]
    assert errors(kept[1].pose, truth)[0] < 0.5


def test_the_command_registers_a_parallel_xray(ct, tmp_path):
    truth = at(2.0, -3, 4, 5, 850, -6)
    np.save(tmp_path / "x.npy", DRR.from_camera(PATIENT, CAMERA)(truth)[0, 0].numpy())
    given = ("register", ct, tmp_path / "x.npy", "--out", tmp_path / "out", "--parallel", "--line-integrals", "--polarity", "bone-bright", "--whole-image")
    code, said = call(*given, "--spacing", 3.4, "--init", "9,3,-4;-5,600,4")
    assert code == 0 and "across the beam" in said and "y (mm) 600.00 600.00 inf" in said, said
    pose, covariance = (json.loads((tmp_path / "out" / name).read_text()) for name in ("pose.json", "covariance.json"))
    assert "of a parallel beam, which has none" in pose["conventions"]["camera"] and "whose depth no X-ray shows" in pose["conventions"]["translation_mm"]
    assert pose["camera"]["parallel"] is True and any("does not show the depth" in reason for reason in pose["reasons"])
    assert errors(RigidTransform(torch.tensor(pose["pose_matrix"])[None]), truth)[0] < 0.5
    assert covariance["covariance"][4][4] is None and "null is infinite" in covariance["parallel_beam"]
    assert 0 < covariance["covariance_across_the_beam"][3][3] < 1
    for extra, why in ((("--sdd", 1000), "--sdd says where the source is"), ((), "--spacing"), (("--camera", ct), 'write "parallel": true')):
        code, said = call(*given, "--force", *extra)
        assert code == 2 and why in said, said


@pytest.mark.parametrize(
    "call, why",
    [
        (lambda _: get_pinhole_camera(Detector.from_camera(CAMERA, reorientation("AP")), at(0.0, 0, 0, 0, 850, 0)), "no pinhole camera"),
        (lambda folder: train(PATIENT, CAMERA, folder, TrainConfig(), progress=False), "does not show the depth"),
        (lambda _: retarget(torch.zeros(1, 1, 96, 96), CAMERA, Camera(1000.0, 96, 96, 3.4, 3.4)), "does not show the depth"),
        (lambda folder: write_twin(folder / "a.h5", size=96, camera=CAMERA), "this one is parallel"),
        (lambda folder: read_xray(dicom(folder / "x.dcm", COUNTS, DistanceSourceToDetector=1000, ImagerPixelSpacing=[0.4, 0.3]), parallel=True), "source is 1000 mm from the detector"),
        (lambda _: read_xray(COUNTS, spacing=1.0, sdd=1000.0, parallel=True), "leave out sdd="),
        (lambda _: read_xray(COUNTS, camera=CAMERA, parallel=True), "make the camera with parallel=True"),
        (lambda _: read_xray(COUNTS, parallel=True), "pass spacing="),
        (lambda _: DRR(PATIENT, math.inf, 96, 3.4), "parallel=True"),
    ],
)
def test_what_needs_a_source_refuses(tmp_path, call, why):
    with pytest.raises(ValueError, match=why):
        call(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name != "x.dcm"]


def test_an_array_of_a_parallel_beam_is_read(tmp_path):
    camera = read_xray(COUNTS, spacing=(0.4, 0.3), parallel=True)[1]
    assert camera == Camera(camera.sdd, 40, 50, 0.3, 0.4, parallel=True)
    assert read_xray(dicom(tmp_path / "x.dcm", COUNTS, ImagerPixelSpacing=[0.4, 0.3]), parallel=True)[1] == camera
    assert torch.equal(carm_pose(20.0, 5.0, camera.sdd).matrix, Camera(camera.sdd, 4, 4, 1, 1, primary_angle=20, secondary_angle=5, parallel=True).pose().matrix)


def test_simulated_xrays_are_of_the_whole_patient():
    camera, physics = CAMERA.resize(24, 24), Physics(scatter=0.0, blur=0.0, collimator=0.0, gain=0.0, photons=1e9, oversample=1)
    images = [simulate_xray(PATIENT, camera, at(10.0, 0, 0, 0, depth, 0), physics=physics) for depth in (-500.0, 0.0, 850.0)]
    assert images[0].max() > 1
    for image in images[1:]:
        assert (image - images[0]).abs().max() < 1e-2
