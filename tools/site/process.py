"""What the site does beyond nbdev's processing: exported code stays on the page, folded, instead of vanishing.

nbdev's `rm_export` is left out (settings.ini, `skip_procs`), and `fold_exports` does its work.
"""

import ast
import re


def _names(tree):
    return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def fold_exports(cell):
    "Drop hidden cells, and mere imports and what is offered of them (`_all_`); fold what is exported, under the names that it defines."
    kinds = {key.rstrip(":") for key in cell.directives_}
    if kinds & {"hide", "default_exp"}:
        del cell["source"]
    elif kinds & {"export", "exporti"}:
        text = re.sub(r"\A(\s*#\s?\|[^\n]*\n)+", "", cell.source).strip("\n")
        tree = ast.parse(text)
        if all(isinstance(node, (ast.Import, ast.ImportFrom)) or ast.unparse(node).startswith("_all_ = ") for node in tree.body):
            del cell["source"]
        else:
            names = ", ".join(_names(tree)[:4])
            cell["outputs"] = []
            cell.source = f'#| code-fold: true\n#| code-summary: "{f"source of {names}" if names else "source"}"\n{text}'
