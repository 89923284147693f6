"""What a user installs: the wheel, made from the source archive, and how fast it answers."""

import ast
import importlib
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser

import pytest

from tests.contract import settings
from tools.notebook import ROOT

SOURCES = ["settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "diffpose"]
LATE = {"pyvista", "vtkmodules", "timm", "seaborn", "pandas", "torchvision", "h5py", "tensorboard", "imageio"}  # imported where they are used
HEAVY = {"torch", "torchio", "numba", "numpy", "matplotlib", "pandas", "scipy", "seaborn"}


def python(*args, **kwargs):
    "Run Python, fail with what it printed."
    run = subprocess.run([sys.executable, *args], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)
    if run.returncode:
        pytest.fail(f"python {' '.join(map(str, args))}\n{run.stdout}{run.stderr}", pytrace=False)
    return run.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    "`(source archive, wheel)`, the wheel made from the archive, away from the checkout."
    import shutil

    copy = tmp_path_factory.mktemp("build") / "diffpose"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    python("-m", "build", "--no-isolation", str(copy), cwd=copy.parent)
    (sdist,) = (copy / "dist").glob("*.tar.gz")
    (wheel,) = (copy / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def metadata(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_the_package_and_its_licence(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
        (entry_points,) = (wheel.read(n).decode() for n in names if n.endswith("entry_points.txt"))
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "diffpose").rglob("*.py")} | {f"diffpose/{name}" for name in ("py.typed", "viewer.html", "viewer.js", "report.html", "report.css", "report.js", "window.css")}
    info = {n for n in names if ".dist-info/" in n}
    assert names - info == modules
    assert any(n.endswith("/LICENSE") for n in info)
    assert "diffpose = diffpose.cli:main" in entry_points or "diffpose=diffpose.cli:main" in entry_points


def test_sdist_holds_what_the_wheel_needs(archives):
    with tarfile.open(archives[0]) as sdist:
        names = {n.partition("/")[2] for n in sdist.getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "diffpose/__init__.py"} <= names


def test_metadata_says_what_settings_say(metadata):
    cfg = settings(ROOT)
    assert (metadata["Name"], metadata["Version"], metadata["Summary"]) == (cfg["lib_name"], cfg["version"], cfg["description"])
    assert metadata["License-Expression"] == "MIT" and metadata["Requires-Python"] == ">=3.10"
    classifiers = metadata.get_all("Classifier")
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)} <= set(classifiers)
    assert metadata["Description-Content-Type"] == "text/markdown" and "# diffpose" in metadata.get_payload()


def test_runtime_requirements_stand_apart_from_the_extras(metadata):
    cfg, required = settings(ROOT), metadata.get_all("Requires-Dist")
    readers = cfg["extras"].split()
    extras = {extra: cfg[f"{extra}_requirements"].split() for extra in (*readers, "dev", "docs", "bench", "experiments")}
    extras["all"] = [package for extra in readers for package in extras[extra]]
    extras["experiments"] += extras["all"]
    extras["dev"] += extras["experiments"]
    assert set(metadata.get_all("Provides-Extra")) == set(extras)
    assert len([r for r in required if "extra ==" not in r]) == len(cfg["requirements"].split())
    for extra, wanted in extras.items():
        marked = [r for r in required if r.replace("'", '"').endswith(f'extra == "{extra}"')]
        assert len(marked) == len(wanted)


def test_wheel_installs_in_an_empty_environment(archives, tmp_path):
    "Alone: importing the package itself needs nothing else, and its version is the wheel's."
    empty = tmp_path / "empty"
    python("-m", "venv", "--without-pip", str(empty))
    there = empty / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python("-m", "pip", "--python", str(there), "install", "--no-deps", "--no-index", "--quiet", str(archives[1]))
    code = "import diffpose, importlib.metadata as m; print(diffpose.__version__ == m.version('diffpose'), 'empty' in diffpose.__file__)"
    run = subprocess.run([there, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "True"], run.stderr


def imported_by(code):
    "Heavy modules that are loaded after `code` ran in a fresh process."
    end = f"\nimport sys; print('LOADED', *sorted({HEAVY!r} & sys.modules.keys()))"
    out = python("-c", code + end, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return out.rpartition("LOADED")[2].split(), out


def test_importing_the_package_loads_no_heavy_module():
    assert imported_by("import diffpose")[0] == []


def test_no_module_loads_what_it_does_not_use_yet():
    "Each of the package, one after the other, in a fresh process; `LATE` comes with the first call that needs it."
    code = f"""
import importlib, pkgutil, sys, diffpose
for found in pkgutil.walk_packages(diffpose.__path__, "diffpose."):
    if not found.name.endswith(("_modidx", "__main__")):
        importlib.import_module(found.name)
        late = {LATE!r} & sys.modules.keys()
        assert not late, (found.name, late)
assert len([name for name in sys.modules if name.startswith("diffpose.")]) > 100
"""
    python("-c", code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_plain_install_names_the_extra_that_is_missing(tmp_path):
    "Where the packages of all extras cannot be found: each function that needs one says which extra, and a training goes on without its tables in TensorBoard."
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    code = """
import sys
sys.modules.update(h5py=None, tensorboard=None)  # cannot be imported
from pathlib import Path
from diffpose.cli import main
from diffpose.data import read
from diffpose.deepfluoro import DeepFluoroDataset, write_twin
from diffpose.errors import MissingExtra
from diffpose.ljubljana import write_twin as write_vessels
from diffpose.training.tables import TrainingTables

for extra, call in (
    ("hdf5", lambda: read("a.h5")),
    ("hdf5", lambda: DeepFluoroDataset(1, "a.h5")),
    ("hdf5", lambda: write_twin("b.h5")),
    ("hdf5", lambda: write_vessels("c.h5")),
    ("tensorboard", lambda: TrainingTables(Path("."), 0, tensorboard=True)),
):
    try:
        call()
    except MissingExtra as error:
        assert f"pip install '.[{extra}]'" in str(error), error
    else:
        raise AssertionError(f"{extra} was not missed")
assert TrainingTables(Path("."), 0, tensorboard=None).board is None
assert sorted(path.name for path in Path(".").iterdir()) == ["a.h5"]
sys.argv = ["diffpose", "data", "twin", "--out", "d.h5"]
try:
    main()
except SystemExit as end:
    print("CODE", end.code)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert "CODE 2" in run.stdout and "of the extra 'hdf5'" in run.stderr, run.stdout + run.stderr


def test_the_first_names_are_offered_when_they_are_used():
    "`from diffpose import DRR` is the `DRR` of its module, and so is each of the others; modules come when they are named."
    code = """
import sys, diffpose
seen = dir(diffpose)
assert 'torch' not in sys.modules, 'dir() loads torch'
assert {*diffpose.__all__, 'drr', 'registration', 'cli'} <= set(seen) and 'sys' not in seen and '_modidx' not in seen, seen
assert diffpose.pose.RigidTransform is diffpose.RigidTransform
from diffpose import DRR
assert 'torch' in sys.modules and DRR is diffpose.drr.DRR
assert 'diffpose.training' not in sys.modules, 'a DRR needs no network'
"""
    python("-c", code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_editors_see_what_is_offered():
    "The block that type checkers read, the table that Python reads and `__all__` say the same, and it is so."
    import diffpose

    tree = ast.parse((ROOT / "diffpose/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    modules = {name for name, module in seen.items() if module == "diffpose"}
    assert modules == diffpose._modules(), "name each module in the block `if TYPE_CHECKING:` of diffpose/__init__.py"
    seen = {name: module for name, module in seen.items() if name not in modules}
    assert seen == {name: f"diffpose.{module}" for name, module in diffpose._HOME.items()}
    assert sorted(seen) == sorted(diffpose.__all__) and 12 <= len(seen) <= 20
    for name, module in seen.items():
        there = getattr(importlib.import_module(module), name)
        assert getattr(diffpose, name) is there, name


def test_what_is_not_offered_is_an_error():
    "A wrong name as in any module; an earlier package's with what is called here."
    import diffpose

    with pytest.raises(AttributeError, match="^module 'diffpose' has no attribute 'drrr'$"):
        getattr(diffpose, "drrr")  # noqa: B009
    with pytest.raises(AttributeError, match="Siddon is in diffpose.renderers"):
        getattr(diffpose, "siddon")  # noqa: B009
    with pytest.raises(ImportError, match="drr.jacobian"):
        from diffpose import JacobianDRR  # noqa: F401


def test_help_answers_at_once():
    "`diffpose --help`, and each command's, load neither torch nor anything of its weight."
    call = "import sys\nsys.argv = ['diffpose', *{args!r}]\nfrom diffpose.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code"
    for args in (["--help"], ["render", "--help"], ["register", "--help"], ["demo", "--help"]):
        heavy, out = imported_by(call.format(args=args))
        assert heavy == [] and "usage" in out.lower()
