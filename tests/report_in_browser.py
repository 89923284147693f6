"""Reports in a real browser, opened from disk: `make docs-test` runs them after the site, for they need Chromium too (see `tests/site_in_browser.py`)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffpose.calibration import Camera, carm_pose
from diffpose.cli.summary import write_summary
from diffpose.drr import DRR
from diffpose.phantom import make_phantom
from diffpose.registration import GaussNewton
from diffpose.report import Page, write_results, write_scene
from diffpose.report_page import write_report
from diffpose.report_parts import MovedBody
from tests.site_in_browser import WIDTHS, Visit

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`&amp;{{7*7}}</title>\u202e\u2066" + "x" * 300
READY = "() => [...document.querySelectorAll('[data-viewer]')].every(x => x.dataset.ready)"
PICTURE = "() => document.querySelector('canvas').toDataURL()"
ALIKE = """async ([a, b]) => { // share of the pixels of two pictures that are the same
  const grey = async url => {
    const image = Object.assign(new Image(), { src: url }), pen = document.createElement('canvas').getContext('2d');
    await image.decode();
    Object.assign(pen.canvas, { width: image.width, height: image.height });
    pen.drawImage(image, 0, 0);
    return pen.getImageData(0, 0, image.width, image.height).data;
  };
  const [x, y] = [await grey(a), await grey(b)];
  return x.filter((v, k) => v === y[k]).length / x.length;
}"""
BROAD = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
MODES = ("wipe", "flicker", "checker", "difference", "edges", "xray", "drr")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "Folders of results: one X-ray with a scene, one whose every name is hostile, two together, and a batch."
    root = tmp_path_factory.mktemp("results")
    patient, camera = make_phantom(0, 4.0), Camera(1020.0, 96, 96, 3.6, 3.6)
    model, truth, start = DRR.from_camera(patient, camera), carm_pose(15.0, 5.0, 780.0), carm_pose(12.0, 3.0, 770.0)
    xray, mask = model(truth), torch.arange(96).expand(1, 1, 96, 96) > 6
    found = GaussNewton(model).register(xray, start, mask=mask)
    origin = {"inputs": [{"role": "X-ray", "name": "ap.dcm", "sha256": "0" * 64}], "options": {"--init": "LAO 12"}, "device": {"Manufacturer": "Acme"}}
    write_results(root / "one", found, start, model, xray, mask, page=Page("ap.dcm", origin=origin, scene=True))
    bad = {"inputs": [{"role": "X-ray", "name": HOSTILE, "sha256": "0"}], "options": {HOSTILE: HOSTILE}, "device": {HOSTILE: HOSTILE}}
    hostile = replace(found, reasons=[HOSTILE])
    patient.structures.loc[:, "structure"] = HOSTILE
    page = Page(HOSTILE, patient.fiducials, [HOSTILE] * patient.fiducials.shape[1], bad, patient={HOSTILE: HOSTILE})
    write_results(root / "hostile", hostile, start, DRR.from_camera(patient, camera), xray, mask, page=page)
    ids = patient.structures["id"].astype(int)
    moved = replace(found, pose=carm_pose(17.0, 5.0, 780.0))
    bodies = [MovedBody(HOSTILE, (int(ids.iloc[4]),), moved), MovedBody("right femur", (int(ids.iloc[5]),), found)]
    write_results(root / "bodies", found, start, DRR.from_camera(patient, camera), xray, mask, page=Page("ap.dcm"), bodies=bodies)
    for name in ("a", "b"):
        for parent in ("together", "each"):
            write_results(root / parent / name, found, start, model, xray, mask, page=Page(f"{name}.png"))
    row = {"verdict": "converged", "expected_tre_mm": 0.1, "reasons": "", "exit_code": 0}
    for parent in ("together", "each"):
        write_summary(root / parent, [{"xray": f"{name}.png", "folder": name, **row} for name in ("a", "b")], parent == "together")
    write_scene(root / "together" / "scene.glb", [(model, found.pose, xray)] * 2)
    for parent in ("together", "each"):
        write_report(root / parent)
    return root


def opened(browser, folder, width, **options):
    visit = Visit(browser, (folder / "report.html").as_uri(), width, **options)
    visit.page.wait_for_function(READY, timeout=30_000)
    return visit


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "hostile", "together", "each", "bodies"])
def test_a_page_opens_from_disk(results, browser, name, width):
    with opened(browser, results / name, width) as visit:
        assert visit.page.evaluate(BROAD) <= 0
        assert visit.page.locator("h1").count() == 1 and visit.page.locator("[data-viewer]").count() == {"together": 2, "each": 0}.get(name, 1)
        asked = [x for x in visit.page.evaluate("() => performance.getEntriesByType('resource').map(x => x.name)") if not x.startswith(("data:", "blob:"))]
    assert not visit.faults and not asked


@pytest.mark.parametrize("width", WIDTHS)
def test_pictures_are_compared(results, browser, width):
    "Each mode shows something else, and its slider changes what is seen; the X-ray left of the boundary, the DRR right of it."
    with opened(browser, results / "one", width) as visit:
        page, seen, ends = visit.page, {}, {}
        for mode in MODES:
            page.locator(f"input[value={mode}] + span").click()
            seen[mode] = page.evaluate(PICTURE)
            if mode not in ("xray", "drr", "flicker"):
                dial = page.locator(".dial input")
                dial.focus()
                page.keyboard.press("Home")
                low = page.evaluate(PICTURE)
                page.keyboard.press("End")
                ends[mode] = low, page.evaluate(PICTURE)
                assert dial.input_value() == "100" and ends[mode][0] != ends[mode][1], mode
        assert len({x for mode, x in seen.items() if mode != "flicker"}) == 6
        assert page.evaluate(ALIKE, [ends["wipe"][1], seen["xray"]]) > 0.98  # the boundary's line covers the rest
        assert page.evaluate(ALIKE, [ends["wipe"][0], seen["drr"]]) > 0.98 > page.evaluate(ALIKE, [seen["xray"], seen["drr"]])
        page.locator("input[value=flicker] + span").click()
        page.wait_for_function("() => { const c = document.querySelector('canvas'), now = () => c.toDataURL(); window.first ??= now(); return now() !== window.first; }", timeout=10_000)
        page.locator("input[value=drr] + span").click()
        page.locator(".which select").select_option("before")
        assert page.evaluate(PICTURE) != seen["drr"]
    assert not visit.faults


def test_the_boundary_follows_the_pointer(results, browser):
    with opened(browser, results / "one", "desktop") as visit:
        box = visit.page.locator(".stage").bounding_box()
        visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
        visit.page.mouse.down()
        visit.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 80)
        visit.page.mouse.up()
        visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 80)  # with no button pressed
        assert abs(float(visit.page.locator(".dial input").input_value()) - 25) <= 1


def test_marks_are_shown_and_hidden(results, browser):
    with opened(browser, results / "one", "desktop") as visit:
        names = visit.page.locator(".structures bdi").all_inner_texts()
        assert {"left femur", "right femur"} <= set(names)
        for mark in ("landmarks", "ellipses", "counted", "outline-1"):
            box, drawn = visit.page.locator(f"[data-toggle={mark}]"), f"() => getComputedStyle(document.querySelector('[data-mark={mark}]')).display !== 'none'"
            for wanted in (True, False):
                box.set_checked(wanted)
                assert visit.page.evaluate(drawn) == wanted
        assert visit.page.locator("[data-mark=ellipses] ellipse").count() > 5


@pytest.mark.parametrize("way", ["clipboard", "selection"])
def test_a_pose_is_copied_to_the_last_digit(results, browser, way):
    pose = json.loads((results / "one" / "pose.json").read_text())
    with opened(browser, results / "one", "desktop") as visit:
        kept = "window.kept = null;"
        if way == "clipboard":
            visit.page.evaluate("() => { " + kept + " navigator.clipboard.writeText = async text => { window.kept = text; }; }")
        else:  # of a browser that allows none to files
            visit.page.evaluate("() => { " + kept + " navigator.clipboard.writeText = async () => { throw 1; }; document.execCommand = () => { window.kept = document.activeElement.value; return true; }; }")
        button = visit.page.locator("[data-copy]").first
        button.focus()
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_function("() => window.kept")
        assert json.loads(visit.page.evaluate("() => window.kept")) == pose["scan_ras_from_camera"]
        assert visit.page.locator(".said").inner_text() == "Copied"


@pytest.mark.parametrize("name", ["one", "together"])
def test_the_scene_opens_when_asked(results, browser, name):
    with opened(browser, results / name, "desktop") as visit:
        assert visit.page.locator("iframe").count() == 0
        visit.page.locator("[data-scene]").click()
        frame = visit.page.locator("iframe").element_handle().content_frame()
        frame.wait_for_function("() => document.body?.dataset.triangles > 0", timeout=60_000)
        assert frame.locator("#parts label").count() > 5
    assert not visit.faults


def test_hostile_names_are_text(results, browser):
    "Nothing runs, every name is there as it was written, and none turns its neighbours around."
    with opened(browser, results / "hostile", "desktop") as visit:
        visit.page.on("dialog", lambda dialog: visit.faults.append(dialog.message))
        assert visit.page.locator("img:not([data-role]), main iframe").count() == 0
        assert visit.page.locator("script").count() == 1
        assert visit.page.locator("h1").text_content() == visit.page.title() == HOSTILE.replace("\u202e", "").replace("\u2066", "")
        for where in (".verdict li", ".structures bdi", "tbody th bdi", ".lists dt", ".lists dd", ".patient b"):
            assert HOSTILE in visit.page.locator(where).all_text_contents(), where
        assert visit.page.evaluate("() => [...document.querySelectorAll('.verdict li > *, tbody th > *, .lists dd > *, .toggle > bdi')].every(x => x.tagName === 'BDI')")
    assert not visit.faults


def test_bodies_that_moved(results, browser):
    "A pose of each in every frame, how far it turned, an outline that is named, and a name that is text."
    with opened(browser, results / "bodies", "desktop") as visit:
        page = visit.page
        assert page.locator("h4").all_text_contents() == ["The patient without what moved", HOSTILE, "right femur"]
        assert page.locator(".bodies tbody th").all_text_contents() == [HOSTILE, "right femur"]
        turned = [float(text.split()[0]) for text in page.locator(".bodies tbody td:nth-child(2)").all_text_contents()]
        assert turned[0] > 1.5 > 0.1 > turned[1]
        exact = page.locator(".poses").nth(1).locator("[data-copy]").first.get_attribute("data-copy")
        assert json.loads(exact) == json.loads((results / "bodies" / "body_1.json").read_text())["scan_ras_from_camera"]
        assert sum(text.endswith(", moved") for text in page.locator(".structures bdi").all_text_contents()) == 2
    assert not visit.faults


def test_the_page_prints_within_its_paper(results, browser):
    "Nothing of a printed page stands out of it on the left or right, on A4 and on Letter."
    for name in ("one", "bodies", "hostile"):
        with opened(browser, results / name, "desktop") as visit:
            visit.page.emulate_media(media="print")
            for width in (680, 700):
                visit.page.set_viewport_size({"width": width, "height": 960})
                out = visit.page.evaluate("""() => [...document.querySelectorAll('main *, header *')].filter(x => x.getClientRects().length && !x.closest('svg, .scroll, pre'))
                  .filter(x => { const r = x.getBoundingClientRect(); return r.left < -1 || r.right > innerWidth + 1; }).map(x => x.className || x.tagName)""")
                assert not out, (name, width, out[:5])
            assert visit.page.pdf(format="A4").startswith(b"%PDF")


def test_paper_and_dark(results, browser):
    with opened(browser, results / "one", "desktop", color_scheme="dark") as visit:
        paper = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        assert sum(visit.page.evaluate(paper)) < 120
        visit.page.emulate_media(media="print")
        assert sum(visit.page.evaluate(paper)) == 765
        assert not visit.page.locator(".bar").is_visible() and visit.page.locator(".both img").first.is_visible() and visit.page.locator(".verdict").is_visible()


def test_without_a_script_the_pictures_are_there(results, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((results / "one" / "report.html").as_uri())
    assert page.locator(".both img").count() == 3 and page.locator(".both img").first.is_visible() and page.locator("noscript, .missing").count()
    context.close()


def test_links_of_a_batch(results, browser):
    with opened(browser, results / "each", "phone") as visit:
        visit.page.locator("tbody a").last.click()
        visit.page.wait_for_function(READY)
        assert visit.page.locator("h1").inner_text() == "b.png"


def test_size_of_a_large_x_ray(tmp_path):
    "1024 x 1024 pixels, with noise, which compresses badly, and the scene."
    patient, camera = make_phantom(0, 4.0), Camera(1020.0, 1024, 1024, 0.35, 0.35)
    model, at = DRR.from_camera(patient, camera), carm_pose(15.0, 5.0, 780.0)
    with torch.no_grad():
        image = model(at)
    image = image + 0.05 * image.std() * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    found = GaussNewton(model).assess(image, at)
    write_results(tmp_path / "large", found, at, model, image, page=Page("large.dcm", scene=True))
    size = (tmp_path / "large" / "report.html").stat().st_size
    assert 200_000 < size < 5_000_000, size


def test_size_of_a_page(results):
    for folder in ("one", "hostile", "together"):
        assert (results / folder / "report.html").stat().st_size < 5_000_000
    assert (results / "one" / "report.html").read_text().count("<script>") == 1
    assert Path(results / "one" / "report.json").stat().st_size < 200_000
