"""Run notebooks as a user of the installed package would: `python -m tools.wheel [--quick] [NOTEBOOK ...]`.

The wheel is built and installed, with the extras for readers, into an environment of its own, which holds nothing of this checkout; the notebooks are copied
to a folder outside, and each runs from top to bottom in a fresh kernel, on the phantom. `--quick` takes the dependencies
from the environment that runs this (the wheel comes first), and only the notebooks named in QUICK. Ends with `N passed, N failed`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from tools.notebook import ROOT, directives, dumps, environment, load, notebooks

QUICK = ("index.ipynb", "notebooks/tutorials/geometry.ipynb")
RUNNER = ("nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29", "fastcore<2")  # the kernel, and what the API notebooks' tests are written with
FLAGS = {"data", "slow", "cuda"}  # cells that a plain run leaves out
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], as_version=4)
quiet = ["--IPKernelApp.log_level=40"]
NotebookClient(nb, timeout=1800, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}, extra_arguments=quiet).execute()
"""


def run(*command, **options):
    return subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)


def must(*command, **options):
    done = run(*command, **options)
    if done.returncode:
        sys.exit((done.stdout + done.stderr)[-4000:])


def install(folder, quick):
    "An environment with the wheel in it; returns its Python."
    wheels, home = folder / "wheels", folder / "environment"
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # what an earlier build left there would go in too
    must(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT)
    wheel = next(wheels.glob("*.whl"))
    venv.create(home, with_pip=True)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if quick:
        must(*pip, "--no-deps", wheel)
        ours = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip()
        theirs = run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip()
        (Path(ours) / "dependencies.pth").write_text(theirs + "\n", encoding="utf-8")
    else:
        must(*pip, f"{wheel}[all]", *RUNNER)
    return python, home


def prepare(path, home):
    "Leave out the flagged cells, and see first that the kernel has the wheel."
    nb = load(path)
    for cell in nb["cells"]:
        if FLAGS & directives(cell).keys():
            cell["source"] = ""
    check = f"import diffpose\nassert diffpose.__file__.startswith({str(home)!r}), diffpose.__file__"
    nb["cells"].insert(0, {"cell_type": "code", "id": "wheel", "metadata": {}, "outputs": [], "execution_count": None, "source": check})
    path.write_text(dumps(nb), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="Run notebooks with the installed wheel alone.")
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    names = asked.notebooks or (QUICK if asked.quick else [p.relative_to(ROOT).as_posix() for p in notebooks()])
    failed = 0
    with tempfile.TemporaryDirectory(prefix="diffpose-wheel-") as scratch:
        folder = Path(scratch).resolve()
        python, home = install(folder, asked.quick)
        copy = folder / "copy"
        shutil.copytree(ROOT / "notebooks", copy / "notebooks")
        for name in ("index.ipynb", "references.bib"):
            shutil.copy(ROOT / name, copy)
        shutil.copytree(ROOT / "benchmarks" / "results", copy / "benchmarks" / "results")
        env = {key: value for key, value in environment().items() if key not in ("PYTHONPATH", "DIFFPOSE_DATA")}
        for name in names:
            start = time.time()
            prepare(copy / name, home)
            done = run(python, "-c", EXECUTE, copy / name, (copy / name).parent, env=env, cwd=copy)
            failed += bool(done.returncode)
            print(f"{name}: {'FAILED' if done.returncode else 'ran'} in {time.time() - start:.0f} s", flush=True)
            if done.returncode:
                print((done.stdout + done.stderr)[-3000:], flush=True)
    print(f"{len(names) - failed} passed, {failed} failed")
    return failed and 1


if __name__ == "__main__":
    sys.exit(main())
