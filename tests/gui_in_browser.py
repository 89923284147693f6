"The window of `diffpose gui` in a real browser: `make docs-test` runs it after the reports, for it needs Chromium too (see `tests/site_in_browser.py`)."

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from urllib.parse import urlparse

import pytest
import torch

from diffpose.calibration import Camera, carm_pose
from diffpose.drr import DRR
from diffpose.phantom import make_phantom
from diffpose.report import write_ct, write_inputs
from tests.report_in_browser import BROAD
from tests.site_in_browser import WIDTHS, Visit
from tools.browser import DRAGGED, Served

HOSTILE = "<script>alert(1)<" + "img src=x onerror=alert(2)>\"'`&amp;{{7*7}}\u202e\u2066.png"
LONG = "x" * 240 + ".png"
PICTURE = "() => document.querySelector('.stage .over').src"
PX = 256


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    "A CT, its label map's table, X-rays with hostile names, and a secret beside the folder."
    top = tmp_path_factory.mktemp("window") / "scans"
    top.mkdir()
    patient = make_phantom(0, 2.5)
    camera = Camera(1020.0, PX, PX, 1.4, 1.4, sid=780.0, primary_angle=8.0, secondary_angle=2.0, view="AP")
    truth = carm_pose(14.0, 5.0, 785.0)
    xray = DRR.from_camera(patient, camera)(truth)
    write_ct(top / "ct.nii.gz", patient)
    write_inputs(top, patient, camera, 4 * xray / xray.max(), carm_pose(8.0, 2.0, 780.0), truth)
    for name in (HOSTILE, LONG, "ap.png"):
        shutil.copy(top / "xray.png", top / name)
    (top.parent / "secret.nii.gz").write_bytes(b"secret")
    (top / "out.nii.gz").symlink_to(top.parent / "secret.nii.gz")
    return top


class Window(Served):
    "A window, and what it answers to whoever asks."

    def answer(self, path, host=None, **headers):
        "Status of a request, and its headers."
        place = urlparse(self.address).netloc
        connection = http.client.HTTPConnection(place, timeout=10)
        connection.request("GET", path, headers={"Host": host or place, **headers})
        got = connection.getresponse()
        body = got.read()
        connection.close()
        return got.status, body


@pytest.fixture(scope="module")
def served(scans):
    with Window(scans, "--ct", "ct.nii.gz", "--xray", "ap.png", "--camera", "camera.json") as window:
        yield window


@pytest.fixture(autouse=True, scope="module")
def of_one_run(served, browser):
    "The server is up before the first page."


def opened(browser, served, width="desktop", **options):
    visit = Visit(browser, served.address, width, **options)
    visit.page.wait_for_selector(".stage, .refused", timeout=30_000)
    return visit


def settled(page):
    "The DRR is there."
    page.wait_for_function("() => document.querySelector('.stage .over').src.startsWith('data:') && document.querySelector('.where').innerText", timeout=30_000)
    return page.evaluate(PICTURE)


def after(page, work):
    "What is done, once the pose that is shown and the DRR are others."
    seen = page.evaluate(PICTURE), page.locator(".where").inner_text()
    work()
    page.wait_for_function("([drr, where]) => document.querySelector('.where').innerText !== where && document.querySelector('.stage .over').src !== drr", arg=list(seen), timeout=30_000)


def dragged(page, by, button="left", keys=()):
    "A drag from the middle of the stage."
    box = page.locator(".stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for key in keys:
        page.keyboard.down(key)
    page.mouse.move(x, y)
    page.mouse.down(button=button)
    page.mouse.move(x + by[0] / 2, y + by[1] / 2)
    page.mouse.move(x + by[0], y + by[1])
    page.mouse.up(button=button)
    for key in keys:
        page.keyboard.up(key)


def where(page):
    "The six numbers of the pose: degrees, mm."
    return [float(x) for x in re.findall(r"-?\d+\.\d", page.locator(".where").inner_text().split("·")[1])]


def marked(page, name):
    return page.locator(f"[aria-label='{name}']").first


def test_nobody_comes_in_without_the_token(served):
    parts = urlparse(served.address)
    token = parts.path.strip("/")
    assert parts.hostname == "127.0.0.1" and len(token) >= 40
    for path in ("/", "/x/", f"/{token[:-1]}/", f"/{token}x/", f"/?token={token}", "/_nicegui/components/none.js", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", f"/x/../{token[:-1]}/"):
        status, body = served.answer(path)
        assert status == 403 and token.encode() not in body, path
    assert served.answer(f"/{token}/", host="evil.example:80")[0] == 403
    socket = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert served.answer("/_nicegui_ws/socket.io/?EIO=4&transport=websocket", **socket)[0] == 403
    assert served.answer(f"/{token}/")[0] == 200
    for path in ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "_nicegui/static/../../../secret.nii.gz", "ct.nii.gz"):
        status, body = served.answer(f"/{token}/{path}")
        assert status >= 400 and b"root:" not in body and b"secret" not in body, path
    listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout if shutil.which("ss") else ""
    assert f"0.0.0.0:{parts.port}" not in listening and f"*:{parts.port}" not in listening


@pytest.mark.parametrize("width", WIDTHS)
def test_the_window_opens(browser, served, width):
    with opened(browser, served, width) as visit:
        settled(visit.page)
        visit.page.wait_for_function("() => [...document.querySelectorAll('.stage img, .cut img')].every(x => x.naturalWidth)")
        assert visit.page.evaluate(BROAD) <= 0
        sizes = visit.page.evaluate("() => [...document.querySelectorAll('.stage img, .cut img')].map(x => x.naturalWidth)")
        assert len(sizes) == 5 and min(sizes) > 50
    assert not visit.faults


def test_the_patient_is_dragged_and_taken_back(browser, served):
    "Every kind of drag and key changes the DRR and the pose in its way; undo brings the pose again, and so does a page that is loaded anew."
    with opened(browser, served) as visit:
        page = visit.page
        settled(page)
        start = where(page)
        ways = (((60, 10), "left", ()), ((40, 0), "right", ()), ((0, 60), "left", ("Control",)), ((30, -40), "left", ("Shift",)), ((0, 50), "left", ("Alt",)))
        for way in ways:
            after(page, lambda: dragged(page, *way))
        page.wait_for_timeout(400)
        for key in ("ArrowLeft", "Shift+ArrowUp", "PageUp", "."):
            numbers = where(page)
            after(page, lambda: page.keyboard.press(key))
            moved = max(abs(a - b) for a, b in zip(where(page), numbers))
            assert 0.5 <= moved <= 20, (key, moved)
        there = where(page)
        page.reload()
        page.wait_for_selector(".stage")
        settled(page)
        assert where(page) == there
        for _ in range(4):
            after(page, lambda: page.keyboard.press("Control+z"))
        for _ in ways:
            after(page, lambda: marked(page, "undo").click())
        assert where(page) == start
        after(page, lambda: page.keyboard.press("Control+y"))
        after(page, lambda: marked(page, "reset").click())
        assert where(page) == start
    assert not visit.faults


def test_a_connection_that_was_lost_comes_back(browser, served):
    "A laptop slept, or a busy machine did not answer in time: the page goes on."
    with opened(browser, served) as visit:
        page = visit.page
        settled(page)
        page.evaluate("() => { window.socket.disconnect(); setTimeout(() => window.socket.connect(), 300); }")
        page.wait_for_function("() => window.socket.connected", timeout=30_000)
        after(page, lambda: page.keyboard.press("ArrowLeft"))
        after(page, lambda: page.keyboard.press("Control+z"))


def test_pictures_follow_the_hand(browser, served, record_property):
    "What is asserted is that they keep coming, for other processes may have the cores, and this browser emulates a GPU; `benchmarks/window.py` measures."
    with opened(browser, served) as visit:
        page = visit.page
        settled(page)
        rate = page.evaluate(DRAGGED, 3.0)
        size = page.evaluate("() => [document.querySelector('.over').naturalWidth, document.querySelector('.over').naturalHeight]")
        marked(page, "reset").click()
        record_property("left out", f"the window drew {rate:.1f} DRRs a second of {size[0]} x {size[1]} pixels (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
        assert size == [PX, PX] and rate > 1
    assert not visit.faults


def test_a_second_browser_is_refused_until_it_takes_over(browser, served):
    with opened(browser, served) as first:
        settled(first.page)
        with opened(browser, served) as second:
            second.page.wait_for_selector(".refused")
            assert second.page.locator(".stage").count() == 0
            second.page.locator(".refused button").click()
            second.page.wait_for_selector(".stage")
            first.page.wait_for_selector(".refused")
            first.page.locator(".refused button").click()
            first.page.wait_for_selector(".stage")
            second.page.wait_for_selector(".refused")
        assert not second.faults
        settled(first.page)
        after(first.page, lambda: dragged(first.page, (10, 0)))
        after(first.page, lambda: marked(first.page, "reset").click())
    assert not first.faults


def chooser(page, what):
    page.locator(f"button:has-text('{what}')").first.click()
    page.wait_for_selector(".chooser")


def test_the_chooser_stays_in_its_folder(browser, served, scans):
    with opened(browser, served) as visit:
        page = visit.page
        chooser(page, "CT")
        names = page.locator(".chooser .entry .text").all_text_contents()
        assert "ct.nii.gz" in names and "out.nii.gz" not in names and not any("secret" in x for x in names)
        page.keyboard.press("Escape")
        for name in ("../secret.nii.gz", "/etc/passwd", "out.nii.gz", str(scans.parent / "secret.nii.gz")):
            page.wait_for_selector(".chooser", state="detached")
            chooser(page, "CT")
            page.locator(".chooser input").fill(name)
            page.locator(".chooser input").press("Enter")
            page.wait_for_selector(".q-notification:has-text('is not in the folder')")
            page.locator(".q-notification button").first.click()
            page.wait_for_selector(".q-notification", state="detached")
        assert page.locator(".card .text").first.text_content() == "ct.nii.gz"
    assert not visit.faults


def test_hostile_names_are_text(browser, served):
    "Nothing runs, every name is there as it was written, and none is wider than the page."
    for width in WIDTHS:
        with opened(browser, served, width) as visit:
            page = visit.page
            page.on("dialog", lambda dialog: visit.faults.append(dialog.message))
            if width == "phone":
                for name in (HOSTILE, LONG):
                    chooser(page, "X-ray")
                    page.locator(".chooser .entry", has_text=name).click()
                    page.wait_for_function("name => [...document.querySelectorAll('.tab .text')].some(x => x.textContent === name)", arg=name, timeout=30_000)
            page.wait_for_selector(".chooser", state="detached", timeout=10_000)  # it goes while the page is laid out anew
            page.wait_for_timeout(500)
            assert page.evaluate(BROAD) <= 0
            assert page.locator("img[src='x']").count() == 0
            assert page.evaluate("() => [...document.querySelectorAll('.text')].every(x => getComputedStyle(x).unicodeBidi === 'isolate' && x.children.length < 2)")
            if width == "desktop":
                continue
            page.wait_for_timeout(500)
            for _ in range(2):
                page.locator("[aria-label='close this X-ray']").click()
                page.wait_for_timeout(500)
        assert not visit.faults


def test_register_and_save_equal_the_command_line(browser, served, scans):
    "Dragged, registered and saved in the window: the pose, its covariance and its history are those of the command that the window shows."
    with opened(browser, served) as visit:
        page = visit.page
        settled(page)
        after(page, lambda: dragged(page, (30, 12)))
        marked(page, "register").click()
        page.wait_for_selector(".verdict", timeout=60_000)
        assert page.locator(".verdict").inner_text() == "converged"
        page.locator("text=The same on the command line").click()
        command = page.locator(".command").text_content()
        page.locator("input[aria-label='Folder for the results']").fill("../saved")
        page.locator("button:has-text('Accept and save')").click()
        page.wait_for_selector(".q-notification:has-text('is not in the folder')")
        page.locator("input[aria-label='Folder for the results']").fill("saved")
        page.locator("button:has-text('Accept and save')").click()
        page.wait_for_selector(".good:has-text('written')", timeout=60_000)
    assert not visit.faults and not (scans.parent / "saved").exists()
    words = shlex.split(command)
    assert words[:2] == ["diffpose", "register"] and any(x.startswith("--init=") for x in words)
    words[words.index("--out") + 1] = str(scans / "typed")
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mine, theirs = scans / "saved", scans / "typed"
    assert {x.name for x in mine.iterdir()} == {x.name for x in theirs.iterdir()} >= {"pose.json", "report.html"}
    for name in ("pose.json", "covariance.json", "history.csv"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    truth = json.loads((scans / "truth.json").read_text())["translation_mm"]
    assert torch.dist(torch.tensor(json.loads((mine / "pose.json").read_text())["translation_mm"]), torch.tensor(truth)) < 2


def test_x_rays_of_one_moment_are_registered_together(browser, served, scans):
    with opened(browser, served) as visit:
        page = visit.page
        settled(page)
        assert page.locator(".q-checkbox:has-text('Register together')").count() == 0  # there is one X-ray
        chooser(page, "X-ray")
        page.locator(".chooser .entry", has_text=LONG).click()
        page.locator(".q-checkbox:has-text('Register together')").click(timeout=30_000)
        page.wait_for_selector(".verdict", state="detached")
        marked(page, "register").click()
        page.wait_for_selector(".verdict", timeout=120_000)
        page.locator("text=The same on the command line").click()
        command = page.locator(".command").text_content()
        page.locator("button:has-text('Accept and save')").click()
        page.wait_for_selector(".good:has-text('written: result_together')", timeout=60_000)
    assert not visit.faults and "--together" in command
    assert {x.name for x in (scans / "result_together").iterdir()} >= {"ap", LONG[:-4], "summary.csv", "report.html"}
