"""Run notebooks and store their outputs: `python -m tools.refresh [NOTEBOOK ...]`, all of them by default.

Each runs in a fresh kernel, in its own folder, as Jupyter would. Cells flagged `data`, `slow` or `cuda` run where
`DIFFPOSE_DATA` or `DIFFPOSE_SLOW` is set, or a GPU is there, and keep their stored outputs elsewhere. What is stored is
stable: no counts, no times, no warnings, and the same bytes when nothing changed.
"""

import copy
import os
import sys
import time
from pathlib import Path

from tools.notebook import ROOT, directives, dumps, environment, flags_left_out, load, notebooks


def lines(text):
    return text.splitlines(keepends=True)


def stored(output):
    "One output in the form that is committed, or None for what is not."
    output = copy.deepcopy(dict(output))
    if output["output_type"] == "stream":
        return {"name": "stdout", "output_type": "stream", "text": lines(output["text"])} if output["name"] == "stdout" else None
    if "execution_count" in output:
        output["execution_count"] = None
    for kind, value in output.get("data", {}).items():
        if isinstance(value, str):
            output["data"][kind] = value.rstrip() if kind.startswith(("image/", "model/")) and "svg" not in kind else lines(value)
    return output


def refresh(path):
    "Run one notebook and store its outputs; returns what went wrong, or an empty string."
    import nbformat
    from nbclient import NotebookClient

    nb = load(path)
    executed = nbformat.read(path, as_version=4)
    skip = flags_left_out(nb)
    skipped = [bool(skip & directives(cell).keys()) for cell in nb["cells"]]
    for cell, skip_it in zip(executed.cells, skipped):
        if skip_it:
            cell.source = ""
    quiet = ["--IPKernelApp.log_level=40"]
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(executed, timeout=1800, kernel_name="python3", resources=folder, extra_arguments=quiet)
    error = ""
    try:
        client.execute()
    except Exception as problem:  # a failing cell, a dead kernel, a cell that ran out of time: each is reported alike
        error = str(problem)
    broken = [o for cell in executed.cells for o in cell.get("outputs", []) if o["output_type"] == "error"]  # an interrupted kernel raises nothing here
    if broken and not error:
        error = f"{broken[0]['ename']}: {broken[0]['evalue']}"
    if not error:
        for cell, result, skip_it in zip(nb["cells"], executed.cells, skipped):
            if cell["cell_type"] == "code" and not skip_it:
                cell["outputs"] = [o for o in map(stored, result["outputs"]) if o]
                cell["execution_count"] = None
        path.write_text(dumps(nb), encoding="utf-8")
    return error


def main(names):
    env = environment()
    os.environ.clear()
    os.environ.update(env)
    failed = 0
    for path in [Path(name).resolve() for name in names] or notebooks():
        start = time.time()
        error = refresh(path)
        failed += bool(error)
        print(f"{path.relative_to(ROOT)}: {'FAILED, left as it was' if error else 'stored'} after {time.time() - start:.0f} s", flush=True)
        if error:
            print(error[-4000:], flush=True)
    return failed and 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
