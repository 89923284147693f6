"""Build the site into `_docs/`: `python -m tools.site [--sphinx]`.

nbdev processes the notebooks into `_proc/`. Where Quarto is installed it renders them, else Sphinx does, with myst-nb and
the theme of the scientific Python packages: the same pages at the same addresses, in the order of `_quarto.yml`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tools.notebook import ROOT, environment
from tools.site.convert import HOST, MADE, Converter, Pages, page_of

PROC, WORK, DOCS = ROOT / "_proc", ROOT / "_site", ROOT / "_docs"
PAGES = WORK / "pages"
STATIC = Path(__file__).parent / "static"


def navigation():
    "`{page: pages below it}` of `_quarto.yml`, in order: the landing page, the sections, the pages of each, and their parts where they have some."
    website = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    sections = {bar["id"]: bar["contents"] for bar in website["sidebar"]}
    bar = [item["href"] for item in website["navbar"]["left"]]
    below = {"index.ipynb": [page for page in bar if page != "index.ipynb"]}

    def add(page, contents):
        below.setdefault(page, [])
        for entry in contents:
            if isinstance(entry, str):
                below[page].append(entry)
            elif "href" in entry:
                below[page].append(entry["href"])
                add(entry["href"], entry["contents"])
            else:  # a section without a page: Quarto shows its name, Sphinx its pages alone
                add(page, entry["contents"])

    for page in bar:
        add(page, sections.get(Path(page).parent.name, [])[1:])
    return below


def process():
    "nbdev's processing, in a process of its own, since its workers are spawned."
    shutil.rmtree(PROC, ignore_errors=True)
    code = "from nbdev.serve import proc_nbs\nif __name__ == '__main__': proc_nbs()"
    script = WORK / "process.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(code, encoding="utf-8")
    run = subprocess.run([sys.executable, script], cwd=ROOT, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.returncode:
        sys.exit("nbdev could not process the notebooks:\n" + (run.stdout + run.stderr)[-6000:])


def write_scenes(scenes, folder):
    "Each 3D scene as a page of its own."
    from diffpose.scenes import scene_html

    for file, glb, title in scenes:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(scene_html(glb, title), encoding="utf-8")


def write_example(folder):
    "A report to open: an X-ray of the phantom, registered, as `diffpose register --scene` would write it."
    import tempfile

    from diffpose.calibration import Camera, carm_pose
    from diffpose.drr import DRR
    from diffpose.phantom import LANDMARKS, make_phantom
    from diffpose.registration import GaussNewton
    from diffpose.report import Page, write_results
    from diffpose.simulation import simulate_xray

    patient, camera = make_phantom(0, 2.0), Camera(1020.0, 320, 320, 1.2, 1.2)
    start, truth = carm_pose(32.0, -12.0, 840.0), carm_pose(20.0, -5.0, 850.0)
    xray, mask = simulate_xray(make_phantom(0, 1.5), camera, truth, seed=0, return_mask=True)
    drr = DRR.from_camera(patient, camera, renderer="trilinear")
    page = Page("Pelvis of the phantom, simulated", patient.fiducials, LANDMARKS, scene=True)
    with tempfile.TemporaryDirectory() as results:
        write_results(Path(results), GaussNewton(drr).register(xray, start, mask=mask), start, drr, xray, mask, page=page)
        (folder / "reports").mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(results) / "report.html", folder / "reports" / "example.html")


def link_made(folder):
    "Links to what the build itself makes lead there wherever the site lies."
    for path in folder.rglob("*.html"):
        text, up = path.read_text(encoding="utf-8"), "../" * len(path.relative_to(folder).parts[:-1])
        here = text
        for made in MADE:
            here = here.replace(f'href="{HOST}/{made}"', f'href="{up}{made}"')
        if here != text:
            path.write_text(here, encoding="utf-8")


def with_toctree(pages, order):
    "The order of pages, into the landing page and the sections' pages."
    for here, children in order.items():
        path = pages / (page_of(here) + Path(here).suffix)
        names = "\n".join(f"/{page_of(child)}" for child in children)
        block = f"```{{toctree}}\n:hidden:\n:maxdepth: 2\n\n{names}\n```"
        if path.suffix == ".ipynb":
            nb = json.loads(path.read_text(encoding="utf-8"))
            nb["cells"].append({"cell_type": "markdown", "metadata": {}, "source": block})
            path.write_text(json.dumps(nb), encoding="utf-8")
        else:
            path.write_text(path.read_text(encoding="utf-8") + f"\n\n{block}\n", encoding="utf-8")


def sphinx():
    for folder in ("pages", "html", "doctrees"):
        shutil.rmtree(WORK / folder, ignore_errors=True)
    below = navigation()
    sources = list(dict.fromkeys(source for page, pages in below.items() for source in (page, *pages)))
    citations = re.findall(r"@\w+\{([^,]+),", (ROOT / "references.bib").read_text(encoding="utf-8"))
    converter = Converter(PROC, PAGES, Pages(PROC, sources, citations), PAGES / "extra")
    for source in sources:
        (converter.notebook if source.endswith(".ipynb") else converter.markdown)(source)
    if converter.pages.problems:
        sys.exit("\n".join(converter.pages.problems))
    for picture in converter.pages.pictures:
        (PAGES / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / picture, PAGES / picture)
    with_toctree(PAGES, {page: pages for page, pages in below.items() if pages})
    shutil.copytree(STATIC, PAGES / "_static", dirs_exist_ok=True)
    (PAGES / "extra").mkdir(exist_ok=True)
    shutil.copy(ROOT / "references.bib", PAGES)
    shutil.copy(Path(__file__).parent / "conf.py", PAGES)
    env = {**os.environ, "DIFFPOSE_ROOT": str(ROOT), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-j",
        "auto",
        "-d",
        str(WORK / "doctrees"),
        str(PAGES),
        str(WORK / "html"),
    ]
    if subprocess.run(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL).returncode:
        sys.exit("sphinx found what is said above")
    shutil.move(WORK / "html", DOCS)
    link_made(DOCS)
    write_scenes(converter.scenes, DOCS)
    write_example(DOCS)


def quarto():
    converter = Converter(PROC, PROC, None)
    for path in sorted(PROC.rglob("*.ipynb")):
        converter.outputs_only(path)
    write_scenes(converter.scenes, PROC)
    write_example(PROC)
    if subprocess.run(["quarto", "render", str(PROC), "--no-execute"], cwd=ROOT, stdin=subprocess.DEVNULL).returncode:
        sys.exit("quarto could not render the site")
    if (PROC / "_docs").is_dir():
        shutil.copytree(PROC / "_docs", DOCS, dirs_exist_ok=True)


def main():
    parser = argparse.ArgumentParser(description="Build the documentation site into _docs/.")
    parser.add_argument("--sphinx", action="store_true", help="with Sphinx, even where Quarto is installed")
    asked = parser.parse_args()
    start = time.time()
    shutil.rmtree(DOCS, ignore_errors=True)
    process()
    with_quarto = bool(shutil.which("quarto")) and not asked.sphinx
    (quarto if with_quarto else sphinx)()
    files = [path for path in DOCS.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    pages = sum(path.suffix == ".html" for path in files)
    print(f"{pages} pages, {size:.1f} MB, by {'Quarto' if with_quarto else 'Sphinx'} in {time.time() - start:.0f} s: open _docs/index.html")


if __name__ == "__main__":
    main()
