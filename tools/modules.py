"""The table of modules in CONTRIBUTING.md: `python -m tools.modules`.

A row for each module: the question that its notebook answers, and how many lines it has. A package's page stands above its parts.
"""

import re
import sys
from pathlib import Path

from tools.notebook import ROOT, directives, load, notebooks, source

PAGE = "CONTRIBUTING.md"
START, END = "<!-- Modules: made by `make modules`. -->", "<!-- End of modules. -->"
HEAD = "| module | what it answers | lines |\n|---|---|--:|\n"
ROW = re.compile(r"^(\| .* \|) (\d+) \|$", re.M)


def modules(root=ROOT):
    "`{dotted name: (notebook, question, module's path)}`, in the order of the table."
    found = {}
    for path in notebooks(root):
        cells = load(path)["cells"]
        name = next(filter(None, (directives(cell).get("default_exp") for cell in cells)), None)
        if name:
            question = next((line[2:].strip() for line in source(cells[0]).splitlines() if line.startswith("> ")), "")
            found[name.removesuffix(".__init__")] = path, question, root / "diffpose" / (name.replace(".", "/") + ".py")
    last = {}  # of a package's notebooks: there stands the package
    for name, (path, *_) in found.items():
        package = name.partition(".")[0]
        last[package] = max(last.get(package, ""), path.name)
    return dict(sorted(found.items(), key=lambda item: (last[item[0].partition(".")[0]], "." in item[0], item[1][0].name)))


def rows(root=ROOT):
    "`{row without its number: lines of the module}`, in order; a module that is not exported yet has none."
    made = {}
    for name, (notebook, question, path) in modules(root).items():
        lines = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
        link = f"[{name}]({notebook.relative_to(root).as_posix()})"
        question = question.replace("|", r"\|")
        made[f"| {link} | {question} |"] = lines
    return made


def stored(root=ROOT):
    "The same, as the page has them; None where it has no place for a table."
    text = (root / PAGE).read_text(encoding="utf-8") if (root / PAGE).exists() else ""
    if START not in text or END not in text:
        return None
    return {row: int(lines) for row, lines in ROW.findall(text.partition(START)[2].partition(END)[0])}


def write(root=ROOT):
    "Put the table where the page has its place; returns whether that changed it."
    path = Path(root) / PAGE
    text = path.read_text(encoding="utf-8")
    if stored(root) is None:
        sys.exit(f"{PAGE} has no place for the table: a line `{START}`, and below it a line `{END}`")
    table = HEAD + "".join(f"{row} {lines} |\n" for row, lines in rows(root).items())
    new = text.partition(START)[0] + f"{START}\n\n{table}\n{END}" + text.partition(END)[2]
    path.write_text(new, encoding="utf-8")
    return new != text


if __name__ == "__main__":
    print("wrote the table of modules into" if write() else "no change of", PAGE)
