"""The repository's contract. Each rule is a function from the repository's folder to a list of what breaks it.

`test_contract.py` holds this repository to every rule; `test_rules.py` breaks each rule in a small repository, and sees it speak up.
"""

import ast
import configparser
import fnmatch
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import modules as table
from tools import readme
from tools.notebook import body, directives, dumps, load, notebooks, source

BUDGET_KB = {"api": 300, "tutorials": 1000}
LINES_PER_FUNCTION = 60
COLUMNS = 100  # as wide as the site shows code
WIDE = ("kernels_cuda_trilinear",)  # its walk, set in 100 columns, would have more lines than a function may
OPTIONAL = {"triton"}  # imported where it is there, never required
DISTRIBUTION = {"PIL": "pillow", "SimpleITK": "simpleitk"}  # where the import's name is not the distribution's
ANNOUNCED = {"pyvista", "seaborn", "tensorboard"}  # 3D scenes and tables of results are part of the package's fixed set; torch.utils.tensorboard needs its namesake
AT_THE_ROOT = {
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "Makefile"),  # read by people
    *("index.ipynb", "index_files", "notebooks", "diffpose", "tests", "tools", "experiments", "benchmarks"),
    *("_quarto.yml", "nbdev.yml", "references.bib"),  # the site's
    *("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in"),  # the package's
    *(".gitignore", ".gitattributes", ".github", ".ci"),
}
PUBLIC_NAMES = 210  # what somebody who learns the package meets, and about what the site shows
ALIKE = {  # names that several modules define: one interface, which their users exchange for one another
    *("Evaluator", "Transforms", "preprocess", "get_random_offset", "isocenter_pose", "write_twin", "check_layout"),  # of the benchmarks, deepfluoro and ljubljana
    *("integrate", "occupancy", "frame_gradient", "volume_gradient", "channel_jacobian"),  # of the backends, in kernels
}
RULES = {}


def rule(check):
    RULES[check.__name__] = check
    return check


def settings(root):
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def cells(root):
    "`(where, notebook's path, cell)` of every cell; `where` names it in a message."
    for path in notebooks(root):
        for number, cell in enumerate(load(path)["cells"]):
            yield f"{path.relative_to(root).as_posix()} cell {number} ({cell.get('id')})", path, cell


def is_export(cell):
    return bool({"export", "exporti", "exports"} & directives(cell).keys())


def distributions(requirements):
    return {re.split(r"[<>=!~\[]", requirement)[0].lower() for requirement in requirements.split()}


def extras(root):
    "`{extra: its distributions}` of those for readers."
    return {extra: distributions(settings(root)[f"{extra}_requirements"]) for extra in settings(root).get("extras", "").split()}


def modules(root):
    "`{dotted name: (notebook's number, path of the exported module)}`; what `p.__init__` exports is the module `diffpose.p`."
    number = lambda path: found[0] if (found := re.match(r"\d+[a-z]?", path.name)) else None  # 047a comes between 047 and 048
    return {f"diffpose.{name}": (number(notebook), module) for name, (notebook, _, module) in table.modules(root).items()}


def exported(root):
    "`(path, tree)` of every module that exists."
    for _, path in modules(root).values():
        if path.exists():
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree, package=""):
    "Absolute dotted names of everything a module imports, at its top or inside a function."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@rule
def modules_are_what_the_notebooks_export(root):
    made = {path for _, path in modules(root).values()}
    kept = [path for path in (root / "diffpose").rglob("__*__.py") if path not in made]  # written by hand, or by nbdev where a folder has none
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / root.name
        for path in [root / "settings.ini", *notebooks(root), *kept]:
            target = fresh / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        code = "from nbdev.doclinks import nbdev_export; nbdev_export('notebooks')"
        run = subprocess.run([sys.executable, "-c", code], cwd=fresh, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if run.returncode:
            return ["nbdev_export failed:\n" + run.stderr]
        theirs = {p.relative_to(fresh).as_posix(): p.read_bytes() for p in (fresh / "diffpose").rglob("*.py")}
    ours = {p.relative_to(root).as_posix(): p.read_bytes() for p in (root / "diffpose").rglob("*.py")}
    verdicts = {name: "no notebook exports it" if name not in theirs else "missing" if name not in ours else "differs" for name in ours | theirs}
    return [f"{name}: {verdicts[name]} (run `make export`)" for name in sorted(verdicts) if ours.get(name) != theirs.get(name)]


@rule
def notebooks_are_clean(root):
    "As `nbdev_clean` leaves them: no counts, no stray metadata, one way to write the file."
    from nbdev.clean import clean_nb

    bad = []
    for path in notebooks(root):
        nb = load(path)
        clean_nb(nb, clean_ids=False)
        if dumps(nb) != path.read_text(encoding="utf-8"):
            bad.append(f"{path.relative_to(root).as_posix()}: run `make clean`")
        ids = [cell.get("id") for cell in nb["cells"]]
        if len(set(ids)) < len(ids):
            bad.append(f"{path.relative_to(root).as_posix()}: two cells share an id")
    return bad


@rule
def outputs_are_worth_keeping(root):
    "No tracebacks, warnings, widgets, progress bars or object addresses among the stored outputs."
    bad = []
    for where, _, cell in cells(root):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = "".join(output.get("text", [])) + "".join("".join(data[k]) for k in data if k in ("text/plain", "text/html"))
            kinds = {
                "a traceback": output["output_type"] == "error",
                "stderr": output.get("name") == "stderr",
                "a widget": any("widget" in kind for kind in data),
                "a progress bar": bool(re.search(r"\r|\d%\|| it/s|s/it\b|[█▏▎▍▌▋▊▉]", text)),
                "an object's address": bool(re.search(r" at 0x[0-9a-fA-F]{6,}", text)),
            }
            bad += [f"{where} stores {kind}" for kind, found in kinds.items() if found]
    return bad


@rule
def notebooks_are_within_budget(root):
    sizes = [(path, path.stat().st_size / 1000, BUDGET_KB.get(path.parent.name, 1000)) for path in notebooks(root)]
    return [f"{path.relative_to(root).as_posix()}: {kb:.0f} kB, of {budget} kB" for path, kb, budget in sizes if kb > budget]


@rule
def api_notebooks_run_every_cell(root):
    return [
        f"{where} is never run"
        for where, path, cell in cells(root)
        if path.parent.name == "api" and (directives(cell).get("eval", "").lower() == "false" or "skip_exec" in source(cell))
    ]


@rule
def functions_are_short(root):
    "Every function and every method; a class may be as long as its parts make it."
    bad = []
    for where, _, cell in cells(root):
        for node in ast.walk(ast.parse(body(cell))) if is_export(cell) else ():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (count := node.end_lineno - node.lineno + 1) > LINES_PER_FUNCTION:
                bad.append(f"{where}: {node.name} has {count} lines, of {LINES_PER_FUNCTION}")
    return bad


@rule
def lines_are_short(root):
    "Of the cells: the head that nbdev writes above them is its own."
    bad = []
    for where, path, cell in cells(root):
        if is_export(cell) and not re.sub(r"^\d+[a-z]?_", "", path.stem).startswith(WIDE):
            bad += [f"{where}: a line of {len(line)} columns, of {COLUMNS}: {line.strip()[:40]}..." for line in body(cell).splitlines() if len(line) > COLUMNS]
    return bad


@rule
def classes_are_whole(root):
    "No class is cut into a chain: a private base serves two classes at least."
    users = {}
    for path, tree in exported(root):
        for node in ast.walk(tree):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                users.setdefault(ast.unparse(base).split(".")[-1], set()).add((path.relative_to(root).as_posix(), node.name))
    chains = {base: used for base, used in users.items() if base.startswith("_") and len(used) == 1}
    return [f"{path}: {name} is cut in two, and {base} is its other half" for base, used in sorted(chains.items()) for path, name in used]


@rule
def api_notebooks_claim_something(root):
    "At least one cell that asserts per two cells that export."
    bad = []
    for path in notebooks(root):
        code = [cell for cell in load(path)["cells"] if cell["cell_type"] == "code"]
        exports = sum(map(is_export, code))
        claims = sum(bool(re.search(r"\bassert|assert_close|test_eq|test_fail|test_close", source(cell))) for cell in code if not is_export(cell))
        if path.parent.name == "api" and 2 * claims < exports:
            bad.append(f"{path.relative_to(root).as_posix()}: {exports} cells export, {claims} claim")
    return bad


@rule
def notebooks_open_with_name_and_question(root):
    bad = []
    for path in notebooks(root):
        lines = [line for line in source(load(path)["cells"][0]).splitlines() if line.strip()]
        if len(lines) != 2 or not re.match("# [^#]", lines[0]) or not lines[1].startswith("> "):  # nbdev's site drops what else stands there
            bad.append(f"{path.relative_to(root).as_posix()}: the first cell is not `# name` and `> what it answers`, and nothing else")
    return bad


@rule
def notebooks_are_numbered_and_named_by_module(root):
    found = modules(root)
    numbers = [number for number, _ in found.values()]
    widths = {len(re.match(r"\d*", path.name)[0]) for path in (root / "notebooks" / "api").glob("*.ipynb")}
    bad = ["numbers of notebooks have as many digits as each other, so that their names are in order"] if len(widths) > 1 else []
    bad += [f"two notebooks are number {number}" for number in sorted({n for n in numbers if n is not None and numbers.count(n) > 1})]
    for where, path, cell in cells(root):
        name = directives(cell).get("default_exp")
        wanted = name and name.removesuffix(".__init__").replace(".", "_")  # a package's page has the package's name
        if name and not re.fullmatch(rf"\d{{2,}}[a-z]?_{wanted}", path.stem):
            bad.append(f"{where} exports to {name}: call the notebook NN_{wanted}.ipynb")
    return bad


@rule
def modules_import_only_lower_numbers(root):
    found = modules(root)
    bad = []
    for name, (number, path) in found.items():
        if not path.exists():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for target in sorted(set(imports(tree, package))):
            owner = next((m for m in (target, target.rpartition(".")[0]) if m in found), None)
            if owner and owner != name and found[owner][0] >= number:
                bad.append(f"{name} ({number}) imports {owner} ({found[owner][0]})")
            if re.fullmatch(r"diffpose\.[A-Za-z]\w*", target) and not owner:
                bad.append(f"{name} ({number}) imports {target}, which the package offers to users: import it from its module")
    return bad


@rule
def private_names_stay_in_their_module(root):
    "What another module needs is part of the surface within: no underscore, and `#| exporti`."
    bad = []
    for name, (_, path) in modules(root).items():
        if path.exists():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for target in sorted(set(imports(tree, name if path.name == "__init__.py" else name.rpartition(".")[0]))):
                home, _, private = target.rpartition(".")
                if re.fullmatch(r"diffpose(\..+)?", home) and re.match(r"_[^_]", private):
                    bad.append(f"{name} imports {private} of {home}: give it a name without an underscore, in a cell with `#| exporti`, or move it")
    return bad


def offered(tree):
    "The names in a module's `__all__`."
    return next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), [])


@rule
def public_names_are_few(root):
    "Counted once each, however many modules offer them."
    names = {name for _, tree in exported(root) for name in offered(tree)}
    if len(names) <= PUBLIC_NAMES:
        return []
    return [
        f"{len(names)} public names, of {PUBLIC_NAMES}: nobody learns more. What only other modules use goes into a cell with `#| exporti`;"
        " if users start with the new name, raise PUBLIC_NAMES in tests/contract.py, and say in the commit which other one could not go"
    ]


@rule
def a_public_name_means_one_thing(root):
    "Two modules define no public name, unless it is the same thing of two kinds, in ALIKE."
    homes = {}
    for path, tree in exported(root):
        made = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        made |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        for name in made & set(offered(tree)):
            homes.setdefault(name, []).append(path.relative_to(root).as_posix())
    return [f"{name} is defined in {' and in '.join(where)}: give one of them another name" for name, where in sorted(homes.items()) if len(where) > 1 and name not in ALIKE]


@rule
def public_names_have_docstrings(root):
    bad = []
    for path, tree in exported(root):
        public = offered(tree)
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        forms = lambda n: [ast.unparse(d) for d in getattr(n, "decorator_list", [])]  # an overload has the docstring of what it is one of
        nodes = [n for n in tree.body if isinstance(n, kinds) and n.name in public and "overload" not in forms(n)]
        bad += [f"{path.relative_to(root).as_posix()}: {n.name} has no docstring" for n in nodes if not ast.get_docstring(n)]
    return bad


@rule
def mistakes_of_users_are_one_class(root):
    "What the command answers with exit code 2: a ValueError or a TypeError of another kind is a fault of the package."
    ours, bad = {"ValueError": "UserError", "TypeError": "UserTypeError"}, []
    for path, tree in exported(root):
        for node in ast.walk(tree):
            kind = ast.unparse(node.exc.func) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
            where = path.relative_to(root).as_posix()
            if kind in ours:
                bad.append(f"{where} line {node.lineno} raises {kind}: raise diffpose.errors.{ours[kind]}")
    return bad


@rule
def modules_need_no_developer_tool(root):
    "Nor postponed annotations, which jaxtyping could not check."
    return [
        f"{path.relative_to(root).as_posix()} imports {name}"
        for path, tree in exported(root)
        for name in sorted(set(imports(tree)))
        if name.split(".")[0] in {"nbdev", "fastcore", "execnb", "nbclient", "pytest"} or name == "__future__.annotations"
    ]


@rule
def requirements_are_what_the_modules_import(root):
    declared = distributions(settings(root)["requirements"]) | {name for names in extras(root).values() for name in names}
    used = {name.split(".")[0] for _, tree in exported(root) for name in imports(tree, "diffpose.any.part")}
    used = {DISTRIBUTION.get(name, name) for name in used - set(sys.stdlib_module_names) - OPTIONAL - {"diffpose"}}
    return [f"{name}: imported, not in settings.ini's requirements" for name in sorted(used - declared)] + [
        f"{name}: in settings.ini's requirements, never imported" for name in sorted(declared - used - ANNOUNCED)
    ]


@rule
def extras_are_asked_for_by_name(root):
    "What an extra brings is imported within `with extra(its name, ...)`, whose error says how to install it."
    homes, bad = {name: extra for extra, names in extras(root).items() for name in names}, []
    for path, tree in exported(root):
        told = {}
        for node in ast.walk(tree):
            for item in node.items if isinstance(node, ast.With) else ():
                if isinstance(item.context_expr, ast.Call) and ast.unparse(item.context_expr.func) == "extra":
                    told |= dict.fromkeys(map(id, node.body), ast.literal_eval(item.context_expr.args[0]))
        for node in ast.walk(tree):
            found = set(imports(node)) if isinstance(node, (ast.Import, ast.ImportFrom)) else ()
            for name in sorted({part for module in found for part in module.split(".")[:3]} & homes.keys()):
                if told.get(id(node)) != homes[name]:
                    bad.append(f"{path.relative_to(root).as_posix()} line {node.lineno} imports {name}: write `with extra({homes[name]!r}, ...)` around it")
    return bad


@rule
def modules_parse_with_the_oldest_python(root):
    bad = []
    for path, _ in exported(root):
        try:
            ast.parse(path.read_text(encoding="utf-8"), feature_version=tuple(map(int, settings(root)["min_python"].split("."))))
        except SyntaxError as problem:
            bad.append(f"{path.relative_to(root).as_posix()}: {problem}")
    return bad


@rule
def imports_stand_in_cells_of_their_own(root):
    "The docs build runs every cell that imports; it must find nothing else to do there."
    bad = []
    for where, path, cell in cells(root):
        if cell["cell_type"] != "code" or is_export(cell) or path.name == "index.ipynb":
            continue
        code = "\n".join("pass" if line.lstrip()[:1] in ("%", "!") else line for line in body(cell).splitlines())
        tree = ast.parse(code)
        kinds = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body if not isinstance(node, ast.Pass)]
        if not all(kinds) and any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree)):
            bad.append(f"{where} imports, and does more")
    return bad


@rule
def notebooks_name_no_place_on_a_machine(root):
    "No absolute path, in a source or in an output."
    place = re.compile(r"""(?<![\w./:<>&$\\}\])-])(/[A-Za-z][\w.-]*/[\w.-]+|[A-Z]:\\\w+)""")
    bad = []
    for where, _, cell in cells(root):
        outputs = [o.get("text", "") for o in cell.get("outputs", [])]
        outputs += [v for o in cell.get("outputs", []) for k, v in o.get("data", {}).items() if k in ("text/plain", "text/html", "text/markdown")]
        for text in [cell["source"], *outputs]:
            bad += [f"{where} names {match[1]}" for match in place.finditer("".join(text))]
    return bad


@rule
def readme_is_made_from_the_index(root):
    bad = []
    for name, content in readme.render(root).items():
        if not (root / name).exists() or (root / name).read_bytes() != content:
            bad.append(f"{name} is not what index.ipynb gives (run `make readme`)")
    return bad + [f"{path.relative_to(root).as_posix()}: index.ipynb no longer shows it (run `make readme`)" for path in readme.stale(root)]


@rule
def the_table_of_modules_is_true(root):
    "Each module with the question of its notebook; its lines to 10 % or 20."
    wanted, have = table.rows(root), table.stored(root)
    if have is None:
        return [f"{table.PAGE} has no table of modules: write `{table.START}` and `{table.END}` where it belongs, and run `make modules`"]
    bad = [f"lacks {row}" for row in wanted if row not in have] + [f"has {row}, which no notebook is" for row in have if row not in wanted]
    bad += [f"says {have[row]} lines in {row}, there are {lines}" for row, lines in wanted.items() if row in have and abs(have[row] - lines) > max(20, lines / 10)]
    return [f"{table.PAGE} {fault} (run `make modules`)" for fault in bad]


def entries(root):
    "What stands at the root: of git's files, or, in a copy without git, of all but what `.gitignore` names."
    if (root / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
        return {name.partition("/")[0] for name in listed.split("\0") if name}
    ignore = root / ".gitignore"
    patterns = [line.strip() for line in ignore.read_text(encoding="utf-8").splitlines()] if ignore.exists() else []
    patterns = [pattern for pattern in patterns if pattern and not pattern.startswith("#")]
    ignored = lambda path: any(fnmatch.fnmatch(path.name, p.strip("/")) and (path.is_dir() or not p.endswith("/")) for p in patterns)
    return {path.name for path in root.iterdir() if not ignored(path)}


@rule
def the_site_shows_every_page(root):
    "What no bar names is left out of the site, and a link to it leads nowhere; what is not there cannot be shown."
    named = set(re.findall(r"[\w./]+\.(?:ipynb|md)\b", (root / "_quarto.yml").read_text(encoding="utf-8")))
    there = {path.relative_to(root).as_posix() for path in notebooks(root)}
    left_out = [f"_quarto.yml does not name {name}: the site leaves it out" for name in sorted(there - named)]
    return left_out + [f"_quarto.yml names {name}, which is not there" for name in sorted(named) if not (root / name).exists()]


@rule
def the_root_is_clean(root):
    "Only what people or programs look for there: pictures belong to the notebooks that show them."
    return [f"{name} stands in the root: move it to where it belongs, or put it in AT_THE_ROOT" for name in sorted(entries(root) - AT_THE_ROOT)]


INSTALL = re.compile(r"(?:pipx?3? install|uv add|uv pip install|pip wheel|pip download)(?: +(?:-[-\w]+|[\w.\[\],'\"=<>~-]+))*? +['\"]?diffpose(?![\w@/.-]|(?:\[[\w,]+\])? *@)")
OTHER = "older package of other authors"


def paragraphs(root):
    "`(where, text)` of every paragraph that somebody may read: pages, notebooks, modules, scripts."
    for where, _, cell in cells(root):
        yield from ((where, text) for text in re.split(r"\n\s*\n", source(cell)))
    folders = ["", "notebooks/", "experiments/", "benchmarks/", "tools/**/", "diffpose/**/"]
    for path in sorted({path for folder in folders for kind in ("md", "py", "toml", "yml") for path in root.glob(f"{folder}*.{kind}")}):
        yield from ((path.relative_to(root).as_posix(), text) for text in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")))


@rule
def installing_does_not_lead_to_the_other_package(root):
    "The name belongs to another package on the public index: nobody is told to install by name, and pages that tell how to install say why."
    bad = [f"{where} says `{found[0]}`: on the public index that is an {OTHER}" for where, text in paragraphs(root) if OTHER not in text for found in INSTALL.finditer(text)]
    for name in ("README.md", "notebooks/install.md"):
        text = (root / name).read_text(encoding="utf-8") if (root / name).exists() else ""
        if "pip install" in text and not (OTHER in text and INSTALL.search(text)):
            bad.append(f"{name} tells how to install, and not that `pip install diffpose` gives an {OTHER}")
    return bad
