"""2D/3D registration of X-rays to CT with an exact differentiable renderer.

Import what you need from its modules (`from diffpose.drr import DRR`): this one stays empty, so that `import diffpose` is quick.
"""

__version__ = "0.1.0"
