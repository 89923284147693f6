"""A rule that cannot fail proves nothing: each is broken here in a small repository, and must name the fault."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.contract import COLUMNS, LINES_PER_FUNCTION, PUBLIC_NAMES, RULES
from tools import modules, readme
from tools.notebook import ROOT, dumps

SETTINGS = """[DEFAULT]
repo = diffpose
lib_name = diffpose
version = 0.0.1
description = a small repository
author = somebody
author_email = somebody@example.org
license = mit
min_python = 3.10
lib_path = diffpose
nbs_path = .
doc_path = _docs
update_pyproject = False
user = diffpose
branch = main
git_url = https://example.org/diffpose
requirements = torch
"""
PICTURE = {"data": {"image/png": "iVBORw0KGgo="}, "metadata": {}, "output_type": "display_data"}


def markdown(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code(text, *outputs):
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": list(outputs), "source": text}


def stream(text, name="stdout"):
    return {"name": name, "output_type": "stream", "text": [text]}


def write(path, *cells):
    for number, cell in enumerate(cells):
        cell["id"] = f"{path.stem[:2]}{number:06d}"
        cell["source"] = cell["source"].splitlines(keepends=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


def change(path, edit):
    "Apply `edit` to a notebook's cells."
    nb = json.loads(path.read_text(encoding="utf-8"))
    edit(nb["cells"])
    path.write_text(dumps(nb), encoding="utf-8")


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    "A small repository that keeps every rule."
    root = tmp_path_factory.mktemp("sound") / "repo"
    (root / "diffpose").mkdir(parents=True)
    (root / "settings.ini").write_text(SETTINGS, encoding="utf-8")
    (root / "diffpose" / "__init__.py").touch()
    write(
        root / "notebooks/api/00_a.ipynb",
        markdown("# a\n\n> What is it?"),
        code("#| default_exp a"),
        code("#| export\nimport torch"),
        code('#| export\ndef one():\n    "The number one."\n    return torch.ones(())'),
        code("assert one() == 1"),
    )
    write(
        root / "notebooks/api/01_b.ipynb",
        markdown("# b\n\n> What comes next?"),
        code("#| default_exp b"),
        code("#| export\nfrom diffpose.a import one"),
        code('#| export\ndef two():\n    "The number two."\n    return one() + one()'),
        code("assert two() == 2"),
    )
    write(
        root / "notebooks/api/02_p_part.ipynb",
        markdown("# p.part\n\n> What is a package made of?"),
        code("#| default_exp p.part"),
        code("#| export\nfrom diffpose.b import two"),
        code('#| export\ndef three():\n    "The number three."\n    return two() * 1.5'),
        code("assert three() == 3"),
    )
    write(
        root / "notebooks/api/03_p.ipynb",
        markdown("# p\n\n> What does a package offer?"),
        code("#| default_exp p.__init__"),
        code('#| export\nfrom diffpose.p.part import three\n\n_all_ = ["three"]'),
        code("assert three() == 3"),
    )
    write(root / "index.ipynb", markdown("# repo\n\n> A small one."), code("1 + 1", stream("2\n"), PICTURE))
    for name, content in readme.render(root).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    pages = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.ipynb"))
    (root / "_quarto.yml").write_text("contents:\n" + "".join(f"  - {page}\n" for page in pages), encoding="utf-8")
    export(root)
    (root / "CONTRIBUTING.md").write_text(f"# How\n\n{modules.START}\n{modules.END}\n\nThe end.\n", encoding="utf-8")
    modules.write(root)
    return root


def export(root):
    "As `make export` does."
    code = "from nbdev.doclinks import nbdev_export; nbdev_export('notebooks')"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, stdin=subprocess.DEVNULL)


def test_a_page_is_the_module_of_its_package(sound):
    text = (sound / "diffpose/p/__init__.py").read_text(encoding="utf-8")
    assert "from .part import three" in text and "__all__ = ['three']" in text and "File to edit: ../../notebooks/api/03_p.ipynb" in text
    run = subprocess.run([sys.executable, "-c", "from diffpose.p import *; print(three().item())"], cwd=sound, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True)
    assert run.stdout == "3.0\n", run.stderr


@pytest.mark.parametrize("name", RULES)
def test_a_sound_repository_passes(sound, name):
    assert RULES[name](sound) == []


def edit_source(number, text):
    return lambda cells: cells[number].update(source=text.splitlines(keepends=True))


def add(cell):
    return lambda cells: cells.append({**cell, "id": "ffffffff", "source": cell["source"].splitlines(keepends=True)})


def append(name, text):
    return lambda root: (root / name).open("a", encoding="utf-8").write(text)


def replace(name, old, new):
    return lambda root: (root / name).write_text((root / name).read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def cut_row(root, name):
    "Take a module's row out of the table."
    page = root / "CONTRIBUTING.md"
    page.write_text("".join(line for line in page.read_text(encoding="utf-8").splitlines(keepends=True) if name not in line), encoding="utf-8")


def hdf5(code):
    "A function that uses an extra."
    extras = append("settings.ini", "extras = hdf5\nhdf5_requirements = h5py>=3\n")
    return lambda root: (extras(root), append("diffpose/a.py", f"\ndef f():\n    {code}\n")(root))


def in_notebook(name, edit):
    return lambda root: change(root / name, edit)


A, B, P = "notebooks/api/00_a.ipynb", "notebooks/api/01_b.ipynb", "notebooks/api/03_p.ipynb"
LONG = "def long():\n    'Long.'\n" + "    x = 1\n" * LINES_PER_FUNCTION
METHODS = "#| export\nclass C:\n    'Many short methods.'\n" + "".join(f"    def m{k}(self):\n        return {k}\n" for k in range(LINES_PER_FUNCTION))
METHOD = "#| export\nclass C:\n    'One long method.'\n" + "".join("    " + line + "\n" for line in LONG.splitlines())
FAULTS = [
    ("modules_are_what_the_notebooks_export", "differs", append("diffpose/a.py", "# edited by hand\n")),
    ("modules_are_what_the_notebooks_export", "no notebook exports it", append("diffpose/stray.py", "\n")),
    ("modules_are_what_the_notebooks_export", "missing", lambda root: (root / "diffpose/b.py").unlink()),
    ("modules_are_what_the_notebooks_export", "__init__.py: differs", replace("settings.ini", "0.0.1", "0.0.2")),
    ("modules_are_what_the_notebooks_export", "p/__init__.py: differs", append("diffpose/p/__init__.py", "# edited by hand\n")),
    ("modules_are_what_the_notebooks_export", "p/__init__.py: missing", lambda root: (root / "diffpose/p/__init__.py").unlink()),
    ("notebooks_are_clean", "00_a", in_notebook(A, lambda cells: cells[1].update(execution_count=7))),
    ("notebooks_are_clean", "00_a", in_notebook(A, lambda cells: cells[1].update(metadata={"scrolled": True}))),
    ("notebooks_are_clean", "share an id", in_notebook(A, lambda cells: cells[1].update(id=cells[2]["id"]))),
    ("outputs_are_worth_keeping", "stderr", in_notebook(A, add(code("1", stream("careful", "stderr"))))),
    ("outputs_are_worth_keeping", "a progress bar", in_notebook(A, add(code("1", stream(" 40%|####      | 4/10"))))),
    ("outputs_are_worth_keeping", "address", in_notebook(A, add(code("1", stream("<object at 0x7f00aa11bb22>"))))),
    ("outputs_are_worth_keeping", "a traceback", in_notebook(A, add(code("1", {"output_type": "error", "ename": "", "evalue": "", "traceback": []})))),
    (
        "outputs_are_worth_keeping",
        "a widget",
        in_notebook(A, add(code("1", {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.jupyter.widget-view+json": {}}}))),
    ),
    ("notebooks_are_within_budget", "of 300 kB", in_notebook(A, add(code("1", stream("x" * 301_000))))),
    ("api_notebooks_run_every_cell", "00_a", in_notebook(A, add(code("#| eval: false\n1")))),
    ("api_notebooks_run_every_cell", "00_a", in_notebook(A, add(markdown("- skip_exec: true")))),
    ("functions_are_short", f"long has {LINES_PER_FUNCTION + 2} lines", in_notebook(A, add(code("#| export\n" + LONG)))),
    ("functions_are_short", f"long has {LINES_PER_FUNCTION + 2} lines", in_notebook(A, add(code(METHOD)))),
    ("lines_are_short", f"a line of {COLUMNS + 5} columns", in_notebook(A, add(code("#| export\n" + "x" * COLUMNS + " = 1 ")))),
    ("classes_are_whole", "diffpose/a.py: Whole is cut in two, and _Half is its other half", append("diffpose/a.py", "\nclass _Half: ...\nclass Whole(_Half): ...\n")),
    ("api_notebooks_claim_something", "2 cells export, 0 claim", in_notebook(A, edit_source(4, "one()"))),
    ("notebooks_open_with_name_and_question", "00_a", in_notebook(A, edit_source(0, "# a"))),
    ("notebooks_open_with_name_and_question", "00_a", in_notebook(A, edit_source(0, "# # a\n\n> what?"))),
    ("notebooks_open_with_name_and_question", "00_a", in_notebook(A, edit_source(0, "# a\n\n> what?\n\nMore."))),
    ("notebooks_are_numbered_and_named_by_module", "number 0", lambda root: (root / B).rename(root / "notebooks/api/00_b.ipynb")),
    ("notebooks_are_numbered_and_named_by_module", "as many digits", lambda root: (root / B).rename(root / "notebooks/api/001_b.ipynb")),
    ("notebooks_are_numbered_and_named_by_module", "NN_b.ipynb", lambda root: (root / B).rename(root / "notebooks/api/01_c.ipynb")),
    ("notebooks_are_numbered_and_named_by_module", "NN_p.ipynb", lambda root: (root / P).rename(root / "notebooks/api/03_p___init__.ipynb")),
    ("modules_import_only_lower_numbers", "diffpose.p.part (02) imports diffpose.p (03)", append("diffpose/p/part.py", "\nfrom . import three\n")),
    ("modules_import_only_lower_numbers", "diffpose.a (00) imports diffpose.p.part (02)", append("diffpose/a.py", "\nfrom .p import part\n")),
    ("modules_import_only_lower_numbers", "diffpose.a (00) imports diffpose.b (01)", append("diffpose/a.py", "\ndef f():\n    from .b import two\n")),
    ("modules_import_only_lower_numbers", "diffpose.a (00) imports diffpose.b (01)", append("diffpose/a.py", "\nimport diffpose.b\n")),
    ("modules_import_only_lower_numbers", "diffpose.a (00) imports diffpose.b (01)", append("diffpose/a.py", "\nfrom diffpose import b\n")),
    ("modules_import_only_lower_numbers", "diffpose.b (01) imports diffpose.one, which", append("diffpose/b.py", "\nfrom . import one\n")),
    ("public_names_are_few", f"{PUBLIC_NAMES + 3} public names, of {PUBLIC_NAMES}", replace("diffpose/a.py", "['one']", str(["one", *(f"x{k}" for k in range(PUBLIC_NAMES))]))),
    ("a_public_name_means_one_thing", "one is defined in diffpose/a.py and in diffpose/b.py", lambda root: (replace("diffpose/b.py", "['two']", "['two', 'one']")(root), append("diffpose/b.py", "\ndef one():\n    'Another.'\n")(root))),
    ("private_names_stay_in_their_module", "diffpose.b imports _half of diffpose.a", append("diffpose/b.py", "\nfrom .a import _half\n")),
    ("private_names_stay_in_their_module", "diffpose.p imports _half of diffpose.p.part", append("diffpose/p/__init__.py", "\nfrom diffpose.p.part import _half\n")),
    ("public_names_have_docstrings", "one has no docstring", replace("diffpose/a.py", '"The number one."', "pass")),
    ("mistakes_of_users_are_one_class", "diffpose/a.py line", append("diffpose/a.py", "\ndef f():\n    raise ValueError('no')\n")),
    ("mistakes_of_users_are_one_class", "raise diffpose.errors.UserTypeError", append("diffpose/a.py", "\ndef f():\n    raise TypeError('no')\n")),
    ("modules_need_no_developer_tool", "fastcore", append("diffpose/a.py", "\ndef f():\n    from fastcore.test import test_eq\n")),
    ("modules_need_no_developer_tool", "__future__", append("diffpose/a.py", "\nfrom __future__ import annotations\n")),
    ("requirements_are_what_the_modules_import", "yaml: imported", append("diffpose/a.py", "\nimport yaml\n")),
    ("requirements_are_what_the_modules_import", "vtk: in settings.ini", replace("settings.ini", "= torch", "= torch vtk>=9")),
    ("extras_are_asked_for_by_name", "imports h5py: write `with extra('hdf5', ...)`", hdf5("import h5py")),
    ("extras_are_asked_for_by_name", "imports h5py: write `with extra('hdf5'", hdf5("with extra('pictures', 'h5py'):\n        import h5py")),
    ("modules_parse_with_the_oldest_python", "a.py", append("diffpose/a.py", "\ntry: pass\nexcept* ValueError: pass\n")),
    ("imports_stand_in_cells_of_their_own", "00_a", in_notebook(A, add(code("import math\nmath.pi")))),
    ("imports_stand_in_cells_of_their_own", "00_a", in_notebook(A, add(code("def f():\n    import math\n    return math.pi")))),
    ("notebooks_name_no_place_on_a_machine", "/data/ct.nii.gz", in_notebook(A, add(code("open('/data/ct.nii.gz')")))),
    ("notebooks_name_no_place_on_a_machine", "/srv/a.py", in_notebook(A, add(code("1", stream("see /srv/a.py"))))),
    ("readme_is_made_from_the_index", "README.md", in_notebook("index.ipynb", add(markdown("More.")))),
    ("readme_is_made_from_the_index", "no longer shows it", append("index_files/old.png", "")),
    ("the_table_of_modules_is_true", "lacks | [b]", lambda root: cut_row(root, "01_b")),
    ("the_table_of_modules_is_true", "lacks | [a](notebooks/api/00_a.ipynb) | What is it now? |", in_notebook(A, edit_source(0, "# a\n\n> What is it now?"))),
    ("the_table_of_modules_is_true", "has | [a](notebooks/api/00_a.ipynb) | What is it? |, which no notebook is", lambda root: (root / A).unlink()),
    ("the_table_of_modules_is_true", "there are 5", append("diffpose/a.py", "\n" * 40)),
    ("the_table_of_modules_is_true", "no table", replace("CONTRIBUTING.md", modules.END, "")),
    ("the_site_shows_every_page", "does not name notebooks/api/01_b.ipynb", replace("_quarto.yml", "  - notebooks/api/01_b.ipynb\n", "")),
    ("the_site_shows_every_page", "names notebooks/api/09_z.ipynb, which is not there", replace("_quarto.yml", "01_b", "09_z")),
    ("the_root_is_clean", "shot.png stands in the root", append("shot.png", "")),
    ("the_root_is_clean", "_build.txt stands in the root", lambda root: (append(".gitignore", "/_*/\n")(root), (root / "_build").mkdir(), append("_build.txt", "")(root))),
    ("installing_does_not_lead_to_the_other_package", "README.md tells how", append("README.md", "\nType `pip install .` in a clone.\n")),
    ("installing_does_not_lead_to_the_other_package", "`pip install -U diffpose`", append("README.md", "\nThe older package of other authors.\n\nType pip install -U diffpose\n")),
    ("installing_does_not_lead_to_the_other_package", "`pip install torch 'diffpose`", in_notebook("notebooks/api/00_a.ipynb", add(markdown("`pip install torch 'diffpose[experiments]'`")))),
    ("installing_does_not_lead_to_the_other_package", "diffpose/a.py says `uv pip install diffpose`", append("diffpose/a.py", "\nraise ImportError('uv pip install diffpose')\n")),
]


@pytest.mark.parametrize("name,message,fault", FAULTS, ids=[f"{name}-{number}" for number, (name, *_) in enumerate(FAULTS)])
def test_a_fault_is_named(sound, tmp_path, name, message, fault):
    root = tmp_path / "repo"
    shutil.copytree(sound, root)
    fault(root)
    assert message in "\n".join(RULES[name](root))


def test_a_long_class_of_short_methods_is_no_fault(sound, tmp_path):
    root = tmp_path / "repo"
    shutil.copytree(sound, root)
    change(root / A, add(code(METHODS)))
    assert RULES["functions_are_short"](root) == []


def test_the_root_is_what_git_has(sound, tmp_path):
    "What git has is held to the list; what lies beside it, untracked, is its owner's."
    root = tmp_path / "repo"
    shutil.copytree(sound, root)
    git = lambda *args: subprocess.run(["git", *args], cwd=root, check=True, capture_output=True)
    git("init", "--quiet"), git("add", ".")
    (root / "shot.png").touch()
    assert RULES["the_root_is_clean"](root) == []
    git("add", "shot.png")
    assert "shot.png" in RULES["the_root_is_clean"](root)[0]


def test_the_table_puts_a_page_above_its_parts(sound):
    page = (sound / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert page.startswith("# How") and page.endswith("The end.\n") and not modules.write(sound)
    assert [row.split("]")[0] for row in modules.rows(sound)] == ["| [a", "| [b", "| [p", "| [p.part"]
    lines = len((sound / "diffpose/p/part.py").read_text(encoding="utf-8").splitlines())
    assert f"| [p.part](notebooks/api/02_p_part.ipynb) | What is a package made of? | {lines} |\n" in page


def test_an_overload_needs_no_docstring_of_its_own(sound, tmp_path):
    root = tmp_path / "repo"
    shutil.copytree(sound, root)
    module = root / "diffpose/a.py"
    module.write_text(module.read_text() + "\nfrom typing import overload\n@overload\ndef one(x: int) -> int: ...\n")
    assert RULES["public_names_have_docstrings"](root) == []


def test_every_rule_is_broken_once():
    assert {name for name, *_ in FAULTS} == set(RULES)
    assert ROOT.joinpath("settings.ini").exists()


def test_an_extra_that_is_asked_for_is_no_fault(sound, tmp_path):
    root = tmp_path / "repo"
    shutil.copytree(sound, root)
    hdf5("with extra('hdf5', 'h5py'):\n        import h5py")(root)
    assert RULES["extras_are_asked_for_by_name"](root) == RULES["requirements_are_what_the_modules_import"](root) == []


def test_ways_to_install_that_are_right(sound, tmp_path):
    root = tmp_path / "repo"
    shutil.copytree(sound, root)
    right = ["pip install .", "pip install -e '.[experiments]'", 'pip install "git+https://example.org/diffpose/diffpose"', "pip install dist/diffpose-*.whl", 'pip install "diffpose[all] @ git+https://example.org/diffpose/diffpose"', "pip install diffpose-0.1.0.whl", "pip uninstall diffpose", "`pip install .`, and then `diffpose --help`"]
    (root / "GUIDE.md").write_text("\n\n".join(right), encoding="utf-8")
    assert RULES["installing_does_not_lead_to_the_other_package"](root) == []
