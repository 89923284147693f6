"""Reading and writing notebooks as the repository stores them."""

import functools
import json
import os
import re
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notebooks(root=ROOT):
    "Every notebook of the repository, in order; folders that start with `.` or `_` are invisible."
    found = [p for p in (root / "notebooks").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(root).parts)]
    return sorted(found) + [p for p in [root / "index.ipynb"] if p.exists()]


def load(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def dumps(nb):
    "The bytes that nbdev writes too, so that a refresh or a clean changes nothing that did not change."
    return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def source(cell):
    return "".join(cell["source"])


def directives(cell):
    "`{'export': '', 'eval': 'false'}` from the `#|` lines that a code cell starts with."
    found = {}
    if cell["cell_type"] != "code":
        return found
    for line in source(cell).lstrip().splitlines():
        match = re.match(r"#\s?\|\s*([\w-]+):?\s*(.*)", line)
        if not match and line.strip():
            break
        if match:
            found[match[1]] = match[2].strip()
    return found


def body(cell):
    "A code cell without its directives."
    return re.sub(r"\A(\s*#\s?\|[^\n]*(\n|\Z))+", "", source(cell)).strip("\n")


def data_folder():
    "The folder of real scans that `DIFFPOSE_DATA` names, as an absolute path; None without one."
    folder = os.environ.get("DIFFPOSE_DATA")
    return os.path.abspath(folder) if folder and os.path.isdir(folder) else None


def flags_left_out(nb):
    "Those of the flags `data`, `slow` and `cuda` whose cells cannot run here, or were not asked for."
    used = set().union(*(directives(cell) for cell in nb["cells"])) & {"data", "slow", "cuda"}
    if data_folder():
        used.discard("data")
    if os.environ.get("DIFFPOSE_SLOW", "0") not in ("", "0"):
        used.discard("slow")
    if "cuda" in used:
        import torch

        if torch.cuda.is_available():
            used.discard("cuda")
    return used


@functools.cache
def spare_home():
    "A home folder where the real one cannot be written: IPython, matplotlib and numba want to. One for all notebooks."
    return tempfile.mkdtemp(prefix="diffpose-home-")


def environment():
    "What every notebook runs under: this checkout's modules, no network, no bars; pictures as the kernel draws them."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    env.pop("MPLBACKEND", None)
    env.pop("DIFFPOSE_DATA", None)
    if not os.access(os.path.expanduser("~"), os.W_OK):
        env["HOME"] = spare_home()
    return {**env, "DIFFPOSE_DATA": data_folder()} if data_folder() else env
