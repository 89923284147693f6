"""A GPU is not waited for from a pose to its image, nor in a registration from poses to their costs and slopes. No GPU is needed.

torch's fake tensors know shapes and devices, and have no values. What they go through cannot have looked at a value, nor mixed
devices, nor brought anything from the CPU's memory: so it can be captured in a CUDA graph, too. The kernels themselves do not run.
"""

import importlib.util

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._pytree import tree_leaves

from diffpose.renderers import integrals
from diffpose.drr import DRR
from diffpose.phantom import make_phantom
from diffpose.pose import PARAMETERIZATIONS, RigidTransform
from diffpose.registration import pyramid, solver

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton: torch brings it on Linux")


@pytest.fixture(scope="module")
def subject():
    return make_phantom(32)


class Gpu(FakeTensorMode):
    "A GPU without values, that nothing may be brought to."

    def dispatch(self, func, types, args=(), kwargs=None):
        out = super().dispatch(func, types, args, kwargs)
        where = lambda tree: {x.device.type for x in tree_leaves(tree) if isinstance(x, torch.Tensor)}
        if where((args, kwargs)) == {"cpu"} and "cuda" in where(out):
            raise AssertionError(f"{func} brings something from the CPU's memory")
        return out


@pytest.fixture
def gpu(monkeypatch):
    "While a CUDA graph is being captured on it."
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    return Gpu()


def on_gpu(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="cuda")


def moved(gpu: FakeTensorMode, subject, **options) -> DRR:
    "A DRR on the fake GPU, as if it had rendered before."
    drr = DRR(subject, 1020.0, 12, 20.0, backend="triton", **options)
    detector, centres = drr.detector, drr.detector.pixels()

    def fake(x):
        with gpu:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")

    for module in drr.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else fake(buffer)
    drr._world_from_index, drr._index_from_world, detector._exact = map(fake, (drr._world_from_index, drr._index_from_world, detector._exact))
    kept = [fake(x) for x in centres]
    versions = None if detector._index is None else detector._index._version, *(x._version for x in kept)
    detector._kept = detector.camera, detector._index, versions, *kept
    drr._occupied = lambda density: None
    return drr


EULER = {"parameterization": "euler_angles", "convention": "ZXY"}
WAITING = {"rotation_9d", "rotation_10d"}  # they decompose matrices, which torch waits for


@pytest.mark.parametrize("parameterization", sorted(PARAMETERIZATIONS.keys() - WAITING))
def test_from_pose_to_image(subject, gpu, parameterization):
    drr = moved(gpu, subject)
    size = PARAMETERIZATIONS[parameterization]
    with gpu:
        rotation = on_gpu(2, 3, 3) if parameterization == "matrix" else on_gpu(2, size)
        image = drr(rotation, on_gpu(2, 3), parameterization=parameterization, convention="ZXY" if parameterization == "euler_angles" else None)
        again = drr(RigidTransform(on_gpu(2, 4, 4)))
    assert image.shape == again.shape == (2, 1, 12, 12) and image.is_cuda and again.is_cuda


@pytest.mark.parametrize("options", [{}, {"p_subsample": 0.5}, {"renderer": "trilinear"}, {"renderer": "trilinear", "n_points": 50}, {"patch_size": 6}])
def test_every_way_to_render(subject, gpu, options):
    drr = moved(gpu, subject, **options)
    with gpu:
        pose = on_gpu(2, 3), on_gpu(2, 3)
        channels = drr(*pose, **EULER, mask_to_channels=True)
        images = [drr(*pose, **EULER, reducefn="max", beer_lambert=0.02), drr(*pose, **EULER, calibration=on_gpu(2, 3, 3)), *drr.jacobian(*pose, **EULER)]
    assert channels.shape == (2, drr.n_channels, 12, 12)
    assert all(x.is_cuda for x in [channels, *images])


class Context:
    "What autograd would hand to a backward pass; its own needs a GPU."

    needs_input_grad = (True, True, False, True, True, False, False, False, False)

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors


@pytest.mark.parametrize("labelled", [False, True])
def test_gradients(subject, gpu, labelled):
    drr = moved(gpu, subject)
    with gpu:
        view = drr._view(RigidTransform._of(on_gpu(2, 4, 4)))
        request = drr.renderer.request({}, *((drr.mask, drr.n_channels) if labelled else ()))
        context = Context()
        image = integrals._Projection.forward(context, drr.density, *view[:5], request, "triton", True)
        gradients = integrals._Projection.backward(context, torch.empty_like(image))
    for given, gradient in zip((drr.density, *view), gradients):
        assert gradient is None or (gradient.is_cuda and gradient.shape == given.shape and gradient.dtype == given.dtype)
    assert [gradient is not None for gradient in gradients] == list(Context.needs_input_grad)


@pytest.mark.parametrize("residual", ["band", "ncc", "mncc", "gradient"])
@pytest.mark.parametrize("n_xrays", [1, 2])
def test_a_look(subject, gpu, residual, n_xrays):
    level = pyramid.Level(pyramid.Stage(12, residual), moved(gpu, subject))
    channels = {"band": 3, "gradient": 2}.get(residual, 1)
    with gpu, torch.no_grad():
        image, weight, support = (on_gpu(n_xrays, 1, 12, 12) for _ in range(3))
        target = pyramid.Target(image, weight, support, on_gpu(n_xrays, channels, 12, 12))
        poses, numbers = on_gpu(4, 4, 4, dtype=torch.float64), on_gpu(4, dtype=torch.long)
        fit = solver.evaluate(level, target, poses, numbers)
    assert fit.matrix.shape == (4, 4, 4) and all(x.is_cuda for x in (fit.matrix, fit.H, fit.score))


def test_waiting_would_be_noticed(subject, gpu, monkeypatch):
    drr, weight = moved(gpu, subject), torch.ones(12)
    with gpu:
        image = drr(on_gpu(1, 3), on_gpu(1, 3), parameterization="so3_log_map")
        with pytest.raises(DataDependentOutputException):
            image.max().item()
        with pytest.raises(AssertionError, match="FakeTensor"):
            weight.to(image.device)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        with pytest.raises(DataDependentOutputException):  # a quaternion of no length is looked for, where one can look
            drr(on_gpu(1, 4), on_gpu(1, 3), parameterization="quaternion")
