"""Notebooks to modules: `python -m tools.export`.

A module that did not change keeps its time, by which numba knows whether machine code that it kept is still good.
"""

import os

from nbdev.doclinks import nbdev_export

from tools.notebook import ROOT


def state():
    "Content and times of every module."
    return {path: (path.read_bytes(), path.stat()) for path in (ROOT / "diffpose").rglob("*.py")}


if __name__ == "__main__":
    before = state()
    nbdev_export("notebooks")
    for path, (content, _) in state().items():
        if path in before and before[path][0] == content:
            os.utime(path, ns=(before[path][1].st_atime_ns, before[path][1].st_mtime_ns))
