"""2D/3D registration of X-rays to CT with an exact differentiable renderer.

Import what you need from its modules (`from diffpose.drr import DRR`): this one imports none of them, so that `import diffpose` is quick.
"""

import sys

__version__ = "0.1.0"
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
