"""2D/3D registration of X-rays to CT with an exact differentiable renderer.

The names that people start with are here (`from diffpose import DRR`), all others in their modules
(`diffpose.metrics.mpe`). Each is imported when it is first used: `import diffpose` is quick, and
loads no torch.
"""

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers see: `_HOME` and `_modules` say the same
    from diffpose import (  # noqa: F401
        calibration,
        cli,
        data,
        deepfluoro,
        drr,
        errors,
        exchange,
        explorer,
        field,
        files,
        guards,
        images,
        kernels,
        ljubljana,
        metrics,
        paths,
        phantom,
        pose,
        predecessors,
        registration,
        renderers,
        report,
        report_page,
        report_parts,
        results,
        rotations,
        scenes,
        simulation,
        tracking,
        training,
        twists,
        visualization,
    )
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
_MOVED = {  # a module of an earlier package: where its contents are
    "utils": "get_pinhole_camera and the intrinsic matrices are in diffpose.calibration, resample is diffpose.training.retarget, rotations are in diffpose.pose",
    "detector": "Detector is in diffpose.calibration; make_xrays is `source, target = drr.detector(pose)`",
    "siddon": "Siddon is in diffpose.renderers; siddon_raycast is `drr.render(drr.density, source, target)`",
    "jacobians": "JacobianDRR is `image, jacobian = drr.jacobian(pose)`; the axes that show it are your own",
}


def _moved(module: str) -> str:
    "What to say of an earlier package's module."
    from .predecessors import MIGRATION_PAGE

    return (
        f"`{__name__}.{module}` is from an earlier package. Here: {_MOVED[module]}. Every old call"
        f" beside the new one: {MIGRATION_PAGE}"
    )


class _OldModules:
    "The last finder of modules: says where those of earlier packages went."

    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, module = name.partition(".")
        if package == __name__ and module in _MOVED:
            raise ModuleNotFoundError(_moved(module))


sys.meta_path.append(_OldModules)


def _modules() -> set[str]:
    "Names of the modules beside this one."
    return {found.name for found in pkgutil.iter_modules(__path__) if found.name[0] != "_"}


if not TYPE_CHECKING:  # a checker that saw it would take any name

    def __getattr__(name: str):
        "Import a name, or a module, when it is first asked for."
        if name in _HOME:
            home = importlib.import_module(f"{__name__}.{_HOME[name]}")
            globals()[name] = getattr(home, name)
            return globals()[name]
        if name in _MOVED:
            raise AttributeError(_moved(name))
        if not name.startswith("_") and name in _modules():
            return importlib.import_module(f"{__name__}.{name}")
        from .predecessors import former_names

        return former_names(__name__)(name)


def __dir__() -> list[str]:
    own = {name for name in globals() if name.startswith("__")}
    return sorted(own | _HOME.keys() | _modules())
