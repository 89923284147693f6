"""How the site shows a function or a class: signature, docstring, a table of its arguments, and for classes the members of ours.

nbdev calls `Members` for every exported name (settings.ini, `renderer`). Annotations are shown as the source has them,
`Float[Tensor, "b c h w"]`, and each argument with the comment that stands beside it: its meaning and unit.
"""

import ast
import functools
import html
import inspect
import io
import re
import textwrap
import tokenize
from pathlib import Path


@functools.cache
def exported_classes():
    "`{name: source}` of the classes of the package: what a notebook defines has no file that Python knows."
    found = {}
    for path in sorted(Path(__file__).parents[2].glob("diffpose/**/*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                found.setdefault(node.name, "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n")
    return found


def parsed(obj):
    "The syntax tree of a function or a class, and its comments by line; (None, {}) where the source is not to be had."
    try:
        text = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
    except (OSError, TypeError):
        text = exported_classes().get(obj.__name__) if inspect.isclass(obj) else None
        if text is None:
            return None, {}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments, above, lines = {}, [], text.splitlines()
    for token in (t for t in tokens if t.type == tokenize.COMMENT):
        beside, said = lines[token.start[0] - 1][: token.start[1]].strip(), token.string.lstrip("# ").strip()
        if beside:
            comments[token.start[0]], above = said, []
            continue
        above = [*above, said] if above and token.start[0] == line + 1 else [said]
        line = token.start[0]
        comments.setdefault(line + 1, " ".join(above))  # of the line below, unless a comment stands beside that
        if len(above) > 1:
            comments.pop(line, None)
    node = ast.parse(text).body[0]
    node.written = text
    return node, comments


def annotation(node, text, owner=""):
    "As written; a quoted one without its quotes, and a private base as the class that inherits from it."
    if node is None:
        return ""
    written = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.get_source_segment(text, node)
    return owner or written if written.startswith("_") else " ".join(written.split())


def arguments(node):
    "`(name as called, annotation, default or None, last line)` of each argument, without self and cls."
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    rows = [(arg, arg.arg, default) for arg, default in zip(positional, defaults)]
    rows += [(a.vararg, f"*{a.vararg.arg}", None)] if a.vararg else [("", "*", None)] if a.kwonlyargs else []
    rows += [(arg, arg.arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults)]
    rows += [(a.kwarg, f"**{a.kwarg.arg}", None)] if a.kwarg else []
    found = []
    for k, (arg, name, default) in enumerate(rows):
        if k == 0 and name in ("self", "cls"):
            continue
        if arg == "":
            found.append((name, "", None, 0))
        else:
            found.append(
                (name, annotation(arg.annotation, node.written), default and ast.get_source_segment(node.written, default), (default or arg).end_lineno)
            )
    return found


def signature(name, rows, returns=""):
    "The call, in one line or with a line for each argument."
    shown = [n if d is None else f"{n}={d}" for n, _, d, _ in rows]
    tail = f" -> {returns}" if returns else ""
    line = f"{name}({', '.join(shown)}){tail}"
    if len(line) > 96:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in shown) + f"){tail}"
    return f"```python\n{line}\n```"


def cell(text):
    return text.replace("|", r"\|").replace("\n", " ")


def code(text):
    return f"`{cell(text)}`" if text else ""


def table(rows, head="argument"):
    "Rows `(name, annotation, default, meaning)` as Markdown; without empty columns, or nothing if nothing is known."
    rows = [row for row in rows if row[0] != "*"]
    if not any(kind or meaning for _, kind, _, meaning in rows):
        return ""
    columns = [
        (head, [f"<code>{html.escape(r[0])}</code>" for r in rows]),  # no link where a function has an argument's name
        ("type", [code(r[1]) for r in rows]),
        ("default", [code(r[2] or "") for r in rows]),
    ]
    columns = [column for column in [*columns, ("meaning", [cell(r[3]) for r in rows])] if any(column[1])]
    lines = [" | ".join(title for title, _ in columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(values) for values in zip(*(values for _, values in columns))]
    return "\n".join(f"| {line} |" for line in lines)


def prose(obj):
    "The docstring, with its first sentence on a line of its own."
    return inspect.cleandoc(obj.__doc__) if isinstance(getattr(obj, "__doc__", None), str) else ""


def described(rows, comments, last=0):
    "Rows of arguments with the comment beside each, or above it; one that stands behind several arguments, or behind the result, is nobody's."
    lines = [line for *_, line in rows]
    return [(n, k, d, comments.get(line, "") if line != last and lines.count(line) == 1 else "") for n, k, d, line in rows]


def function(obj, name):
    "Signature, docstring and arguments of a function."
    node, comments = parsed(obj)
    if node is None:
        return f"{signature(name, [])}\n\n{prose(obj)}"
    rows = arguments(node)
    returns = annotation(node.returns, node.written, name.rpartition(".")[0])
    last = node.returns.end_lineno if node.returns is not None else 0
    table_rows = described(rows, comments, last)
    closing = comments.get(last, "") or comments.get(node.returns.lineno if last else 0, "")
    closing = closing.removeprefix("returns ")
    if closing:
        table_rows.append(("returns", returns, None, closing))
    parts = [signature(name, rows, returns), prose(obj), table(table_rows)]
    return "\n\n".join(part for part in parts if part)


def fields(cls):
    "Annotated fields of a dataclass or a NamedTuple, as rows of a table."
    node, comments = parsed(cls)
    if node is None:
        return []
    found = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id[0] != "_"]
    return [
        (p.target.id, annotation(p.annotation, node.written), p.value and ast.get_source_segment(node.written, p.value), comments.get(p.end_lineno, ""))
        for p in found
    ]


def ours(cls):
    "`{name: attribute}` of public members that this package defines, the most derived first; torch's and Python's are left out."
    found = {}
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("__main__", "diffpose", "builtins") and base is not object:
            for name, member in vars(base).items():
                if name[0] != "_" and name not in found and base.__module__ != "builtins":
                    found[name] = member
    return found


def methods(cls):
    "`(name, function)` of the methods of ours, then the properties as rows of a table."
    calls, properties = [], []
    for name, member in ours(cls).items():
        plain = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if isinstance(member, property):
            if member.__doc__:
                node, comments = parsed(member.fget) if member.fget else (None, {})
                closing = (
                    next((c for line, c in comments.items() if node is not None and line <= node.body[0].lineno), "")
                    if isinstance(node, ast.FunctionDef)
                    else ""
                )
                properties.append((name, "", None, prose(member) + (f" ({closing})" if closing else "")))
        elif inspect.isfunction(inspect.unwrap(plain)) and plain.__doc__ and plain.__name__ != "<lambda>":
            calls.append((name, plain))
    return calls, properties


def class_(cls, name, level):
    "A class: how to make one, what it holds, what it does."
    held = fields(cls)
    parts = []
    init = vars(cls).get("__init__")
    if held:
        parts += [signature(name, [(n, k, d, 0) for n, k, d, _ in held]), prose(cls), table(held, "field")]
    elif init is not None and inspect.isfunction(init):
        node, comments = parsed(init)
        rows = arguments(node) if node is not None else []
        parts += [signature(name, rows), prose(cls), table(described(rows, comments))]
    else:
        parts.append(prose(cls))
    calls, properties = methods(cls)
    parts.append(table(properties, "attribute"))
    for method, plain in sorted(calls, key=lambda call: call[0] != "forward"):  # calling a module comes first
        parts += [f"{'#' * (level + 1)} {name}.{method}", function(plain, f"{name}.{method}")]
    return "\n\n".join(part for part in parts if part)


class Members:
    "What nbdev's `show_doc` shows for a name."

    def __init__(self, sym, name=None, title_level=3):
        self.sym, self.level = sym, title_level
        self.name = name or getattr(sym, "__qualname__", str(sym))

    def _repr_markdown_(self):
        body = class_(self.sym, self.name, self.level) if inspect.isclass(self.sym) else function(self.sym, self.name)
        text = re.sub(r"\n{3,}", "\n\n", f"{'#' * self.level} {self.name}\n\n{body}\n")
        return text

    def __repr__(self):
        return self._repr_markdown_()
