"""The built site in a real browser: `make docs-test` builds it, then visits every page of `_docs/`, at phone and desktop widths.

Not part of `make test`, since it needs Chromium (or Chrome): `DIFFPOSE_BROWSER` names it, else the PATH is searched.
"""

import functools
import http.server
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest

from tools.notebook import ROOT

DOCS = ROOT / "_docs"
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.html") if not {"_static", "scenes"} & set(p.relative_to(DOCS).parts))
SCENES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.glob("scenes/*.html"))
BARE = {"search.html", "genindex.html"}  # the theme's own, with nothing to read on them
WANTED = {  # what a new user looks for: the page that has it, and words on it
    "how to install": ("notebooks/install.html", "pip install"),
    "how to register one's own X-ray": ("notebooks/tutorials/own_data.html", "read_xray"),
    "what the coordinate frames are": ("notebooks/tutorials/geometry.html", "RAS"),
    "how fast it is": ("notebooks/benchmarks.html", "plastimatch"),
    "how to cite it": ("notebooks/about/index.html", "@software"),
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site():
    assert PAGES, "no site in _docs/: run `make docs`"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=DOCS))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class Visit:
    "A page at one width, with what went wrong on it."

    def __init__(self, browser, address, width, **options):
        self.faults = []
        self.context = browser.new_context(viewport=dict(zip(("width", "height"), WIDTHS[width])), **options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: message.type == "error" and self.faults.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("requestfailed", lambda request: self._aborted(request) or self.faults.append(f"failed: {request.url} {request.failure}"))
        self.page.on("response", lambda answer: answer.status >= 400 and self.faults.append(f"{answer.status}: {answer.url}"))
        self.page.on("request", lambda request: self._inside(request.url, address))
        self.page.goto(address, wait_until="load")

    def _aborted(self, request):
        "A scene that is loaded anew, since the page has told it light or dark."
        return "/scenes/" in request.url and "ERR_ABORTED" in str(request.failure)

    def _inside(self, url, address):
        if urlparse(url).scheme in ("http", "https") and urlparse(url).netloc != urlparse(address).netloc:
            self.faults.append(f"asks the network for {url}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


SEEN = """() => {
  const article = document.querySelector('article') ?? document.querySelector('main') ?? document.body;
  for (const image of document.images) image.loading = 'eager';
  const formulas = [...document.querySelectorAll('.math')];
  return {
    words: article.innerText.trim().split(/\\s+/).length,
    titles: document.querySelectorAll('h1').length,
    formulas: formulas.length,
    undrawn: formulas.filter(f => !f.querySelector('.katex') || f.querySelector('.katex-error') ||
                                  (f.getBoundingClientRect().width === 0 && f.offsetParent !== null)).map(f => f.textContent.slice(0, 60)),
    raw: /\\\\\\(|\\\\\\[|\\$\\$/.test([...article.querySelectorAll('p, li')].map(p => p.innerText).join(' ')),
    pipes: [...article.querySelectorAll('p')].filter(p => /\\|\\s*[-—]+\\s*\\|/.test(p.innerText)).length,
    brackets: [...article.querySelectorAll('p, li, td')].filter(p => /\\]\\([\\w.\\/-]*\\.(ipynb|html|md)/.test(p.innerText)).length,
    broad: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
}"""
IMAGES = "() => [...document.images].filter(i => i.complete && i.naturalWidth === 0).map(i => i.src.slice(0, 120))"
LOADED = "() => [...document.images].every(i => i.complete)"


@pytest.mark.parametrize("page", PAGES)
def test_page(site, browser, page):
    with Visit(browser, site + page, next(iter(WIDTHS))) as visit:  # once, and then turned
        at = {}
        for width, size in WIDTHS.items():
            visit.page.set_viewport_size(dict(zip(("width", "height"), size)))
            at[width] = visit.page.evaluate(SEEN)
        visit.page.wait_for_function(LOADED, timeout=20_000)
        shared = visit.faults + [f"no picture at {source}" for source in visit.page.evaluate(IMAGES)]
    for width, seen in at.items():
        faults = shared + [f"a formula is missing: {tex}" for tex in seen["undrawn"]]
        checks = {
            "TeX stands in the text": seen["raw"],
            "a table is not drawn": seen["pipes"] > 0,
            "a link is not drawn": seen["brackets"] > 0,
            f"{seen['titles']} titles": seen["titles"] != 1,
            f"{seen['broad']} px too broad": seen["broad"] > 1,
            f"{seen['words']} words": seen["words"] < 40 and page not in BARE,
        }
        faults += [fault for fault, found in checks.items() if found]
        assert not faults, f"{page}, {width}: " + "; ".join(faults)


class Reader(HTMLParser):
    "What the tests ask of a page: its tags with their attributes, and its text."

    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@functools.cache
def parsed(page):
    "By Python's own parser, which builds no tree: each worker reads nearly every page, since every page links to them."
    reader = Reader()
    reader.feed((DOCS / page).read_text(encoding="utf-8"))
    reader.close()
    return reader


def text(page):
    return "".join(parsed(page).words)


@functools.cache
def anchors(page):
    return {attrs[name] for _, attrs in parsed(page).tags for name in ("id", "name") if attrs.get(name)}


def links(page):
    "`(path from the site's root, anchor)` of every link and source on a page that stays on the site."
    for tag, attrs in parsed(page).tags:
        address = tag in ("a", "link", "img", "script", "iframe", "source") and (attrs.get("href") or attrs.get("src"))
        if address and not urlparse(address).scheme:
            url, anchor = urldefrag(urljoin("/" + page, address))
            path = unquote(urlparse(url).path).lstrip("/")
            yield path + "index.html" * (path == "" or path.endswith("/")), unquote(anchor)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    broken = set()
    for target, anchor in links(page):
        if not (DOCS / target).is_file():
            broken.add(target)
        elif anchor and target.endswith(".html") and anchor not in anchors(target):
            broken.add(f"{target}#{anchor}")
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_outputs_hold_no_traceback(page):
    assert "Traceback (most recent call last)" not in text(page)
    classes = [set((attrs.get("class") or "").split()) for _, attrs in parsed(page).tags]
    assert not [found for found in classes if "output" in found and found & {"stderr", "traceback"}]


@pytest.mark.parametrize("scene", SCENES)
def test_scene_is_not_blank(browser, scene):
    "From the file itself, as a user would keep it; no server, no network."
    for width in WIDTHS:
        with Visit(browser, (DOCS / scene).as_uri(), width) as visit:
            visit.page.wait_for_function("() => document.body.dataset.triangles > 0", timeout=60_000)
            colors = visit.page.evaluate("""() => {
              const small = document.createElement('canvas');
              small.width = small.height = 100;
              const pen = small.getContext('2d');
              pen.drawImage(document.getElementById('canvas'), 0, 0, 100, 100);
              return new Set(new Uint32Array(pen.getImageData(0, 0, 100, 100).data.buffer)).size;
            }""")
            parts = visit.page.locator("#parts label").count()
            visit.page.locator("#views button").last.click()
        assert not visit.faults and colors > 30 and parts > 2, f"{width}: {colors} colours, {parts} parts, {visit.faults}"


def test_there_are_scenes():
    assert SCENES


def test_search_finds_gauss_newton(site, browser):
    for width in WIDTHS:
        with Visit(browser, site + "search.html?q=GaussNewton", width) as visit:
            visit.page.wait_for_selector("#search-results li a", timeout=30_000)
            found = visit.page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
        assert not visit.faults and any("registration" in link for link in found), (visit.faults, found)


def test_search_opens_from_every_page_by_its_button(site, browser):
    with Visit(browser, site + "notebooks/api/pose.html", "desktop") as visit:
        visit.page.locator("button.search-button__button:visible, button.search-button:visible").first.click()
        visit.page.keyboard.type("GaussNewton")
        visit.page.keyboard.press("Enter")
        visit.page.wait_for_selector("#search-results li a", timeout=30_000)
    assert not visit.faults


@pytest.mark.parametrize("wish", WANTED)
def test_found_in_two_clicks(wish):
    page, words = WANTED[wish]
    first = {target for target, _ in links("index.html") if target in PAGES}
    second = {target for step in first for target, _ in links(step)}
    assert page in first | second and words in text(page)


def test_dark_and_light(site, browser):
    def paper(scheme):
        with Visit(browser, site + "index.html", "desktop", color_scheme=scheme) as visit:
            return visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")

    assert sum(paper("dark")) < 200 < 600 < sum(paper("light"))


ANGLES = "() => [...document.querySelectorAll('#turning input')].map(dial => +dial.value)"
SHOWN = "() => document.querySelector('#turning canvas').toDataURL()"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_c_arm_turns(site, browser, width):
    "By keys, pointer and finger; what is said, what is drawn and what is seen follow."
    with Visit(browser, site + "index.html", width, has_touch=width == "phone") as visit:
        page = visit.page
        page.wait_for_selector("#turning .sliders", state="visible")
        seen = {page.evaluate(SHOWN)}
        dials = page.locator("#turning input")
        for k, (key, words) in enumerate((("End", "LAO 60\u00b0 CRAN 0\u00b0"), ("Home", "LAO 60\u00b0 CAUD 30\u00b0"))):
            dials.nth(k).focus()
            page.keyboard.press(key)
            seen.add(page.evaluate(SHOWN))
            assert page.locator("#turning output").inner_text() == words
        assert page.locator("[data-arm]").evaluate_all("arms => arms.map(arm => arm.getAttribute('transform'))") == ["rotate(60)", "rotate(-30)"]
        page.locator("#turning .picture").scroll_into_view_if_needed()
        box = page.locator("#turning .picture").bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] - box["width"] / 2, middle[1] - box["height"] / 3)
        page.mouse.up()
        page.mouse.move(*middle)  # with no button pressed
        angles = page.evaluate(ANGLES)
        seen.add(page.evaluate(SHOWN))
        assert len(seen) == 4 and angles[0] < 0 < angles[1]
        if width == "phone":  # a finger drawn sideways
            touch = visit.context.new_cdp_session(page)
            for kind, x in (("touchStart", middle[0]), ("touchMove", middle[0] + 30), ("touchMove", middle[0] + 90), ("touchEnd", None)):
                touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if x is None else [{"x": x, "y": middle[1]}]})
            assert page.evaluate(ANGLES)[0] > angles[0] and page.evaluate(ANGLES)[1] == angles[1]
        for dial in range(2):
            assert dials.nth(dial).get_attribute("aria-label") and dials.nth(dial).get_attribute("aria-valuetext")
        assert "CRAN" in page.locator("#turning canvas").get_attribute("aria-label")
    assert not visit.faults


def test_without_a_script_the_c_arm_stands_still(site, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site + "index.html")
    assert page.locator("#turning img").is_visible() and page.locator("#turning img").get_attribute("alt")
    assert not page.locator("#turning input").first.is_visible() and not page.locator("#turning canvas").is_visible()
    context.close()


def test_the_c_arm_turns_the_way_that_is_said():
    "The picture at LAO 60 is the DRR at LAO 60, and not that of another side."
    import numpy as np
    from PIL import Image

    from diffpose.calibration import Camera, carm_pose
    from diffpose.drr import DRR
    from diffpose.phantom import make_phantom
    from tools.site.turning import PRIMARY, SECONDARY, SHEET, SIDE

    sheet = np.asarray(Image.open(DOCS / SHEET).convert("L"), dtype=float)
    drr = DRR.from_camera(make_phantom(0, 4.0), Camera(1020.0, 64, 64, 4.88, 4.88))
    seen = {(x, y): sheet[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE].reshape(64, SIDE // 64, 64, SIDE // 64).mean((1, 3)) for x in (0, len(PRIMARY) - 1) for y in (0, len(SECONDARY) - 1)}
    for x, y in seen:
        image = drr(carm_pose(float(PRIMARY[x]), float(SECONDARY[y]), 800.0))[0, 0].numpy()
        alike = {at: np.corrcoef(image.ravel(), other.ravel())[0, 1] for at, other in seen.items()}
        assert max(alike, key=alike.get) == (x, y), alike


def test_sizes():
    sizes = {p.relative_to(DOCS).as_posix(): p.stat().st_size / 1e6 for p in DOCS.rglob("*") if p.is_file()}
    assert sum(sizes.values()) < 60 and sizes["media/turning.webp"] < 1.5
    assert not {page: size for page, size in sizes.items() if page.endswith(".html") and size > 3 and Path(page).parts[0] != "scenes"}
