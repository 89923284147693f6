"""2D/3D registration of X-rays to CT with an exact differentiable renderer.

The names that people start with are here (`from diffpose import DRR`), all others in their modules (`diffpose.metrics.mpe`).
Each is imported when it is first used: `import diffpose` is quick, and loads no torch.
"""

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers see; `_HOME` says the same
    from diffpose.calibration import Camera, carm_pose
    from diffpose.data import load_example_ct, read, read_xray
    from diffpose.drr import DRR
    from diffpose.metrics import mtre, ncc
    from diffpose.phantom import make_phantom
    from diffpose.pose import RigidTransform, convert
    from diffpose.registration import GaussNewton, Registration
    from diffpose.simulation import simulate_xray
    from diffpose.training import PoseEstimator, train

__version__ = "0.1.0"
__all__ = [
    "Camera",
    "DRR",
    "GaussNewton",
    "PoseEstimator",
    "Registration",
    "RigidTransform",
    "carm_pose",
    "convert",
    "load_example_ct",
    "make_phantom",
    "mtre",
    "ncc",
    "read",
    "read_xray",
    "simulate_xray",
    "train",
]
_HOME = {  # a name: its module
    "Camera": "calibration",
    "DRR": "drr",
    "GaussNewton": "registration",
    "PoseEstimator": "training",
    "Registration": "registration",
    "RigidTransform": "pose",
    "carm_pose": "calibration",
    "convert": "pose",
    "load_example_ct": "data",
    "make_phantom": "phantom",
    "mtre": "metrics",
    "ncc": "metrics",
    "read": "data",
    "read_xray": "data",
    "simulate_xray": "simulation",
    "train": "training",
}
_PAGE = "https://diffpose.github.io/diffpose/notebooks/tutorials/coming_from.html"
_MOVED = {  # a module of an earlier package: where its contents are
    "utils": "get_pinhole_camera and the intrinsic matrices are in diffpose.calibration, resample is diffpose.training.retarget, rotations are in diffpose.pose",
    "detector": "Detector is in diffpose.calibration; make_xrays is `source, target = drr.detector(pose)`",
    "siddon": "Siddon is in diffpose.renderers; siddon_raycast is `drr.render(drr.density, source, target)`",
    "jacobians": "JacobianDRR is `image, jacobian = drr.jacobian(pose)`; the axes that show it are your own",
}


class _OldModules:
    "The last finder of modules: says where those of earlier packages went."

    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, module = name.partition(".")
        if package == __name__ and module in _MOVED:
            raise ModuleNotFoundError(f"`{name}` is from an earlier package. Here: {_MOVED[module]}. Every old call beside the new one: {_PAGE}")


sys.meta_path.append(_OldModules)


def _modules() -> set[str]:
    "Names of the modules beside this one."
    return {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}


def __getattr__(name: str):
    "Import a name, or a module, when it is first asked for."
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        return value
    if name in _MOVED:
        raise AttributeError(f"`{__name__}.{name}` is from an earlier package. Here: {_MOVED[name]}. Every old call beside the new one: {_PAGE}")
    if not name.startswith("_") and name in _modules():
        return importlib.import_module(f"{__name__}.{name}")
    from .predecessors import former_names

    return former_names(__name__)(name)


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | _HOME.keys() | _modules())
