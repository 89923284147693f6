"""How many DRRs a second does the window of `diffpose gui` show while a hand drags the patient?

    python benchmarks/window.py --out _runs/bench                     # two minutes on two cores; needs Chromium, and pip install -e .[gui] playwright

The hand moves at every frame of the page; a DRR counts when the page shows it. Server and browser share the cores. The browser runs without a GPU;
what one that emulates a GPU shows (Chromium's SwiftShader, as tests need it for WebGL) stands beside it.
"""

import argparse
import os
import tempfile
from pathlib import Path

from common import begin, show, spread, write_csv
from playwright.sync_api import sync_playwright

from diffpose.calibration import Camera, carm_pose
from diffpose.phantom import make_phantom
from diffpose.report import write_ct, write_inputs
from diffpose.simulation import simulate_xray
from tools.browser import DRAGGED, FLAT, NONE, SWITCHES, Served, find_browser

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("_runs/bench"), help="folder for window.csv")
parser.add_argument("--size", type=int, default=512, help="the X-ray has N x N pixels; the DRRs have 256 x 256 at most")
parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
parser.add_argument("--seconds", type=float, default=3.0, help="length of a drag")

MODES = ("Blend", "Wipe", "Difference", "Edges")
BROWSERS = {"no GPU": FLAT, "emulated GPU": SWITCHES}


def scans(folder: Path, size: int) -> None:
    "A CT, an X-ray of it and its camera."
    patient = make_phantom(0, 2.0)
    camera = Camera(1020.0, size, size, 358.4 / size, 358.4 / size, sid=780.0, primary_angle=0.0, secondary_angle=0.0, view="AP")
    truth = carm_pose(12.0, -5.0, 790.0)
    xray = simulate_xray(patient, camera, truth, seed=0)
    write_ct(folder / "ct.nii.gz", patient)
    write_inputs(folder, patient, camera, 4 * xray / xray.max(), carm_pose(0.0, 0.0, 780.0), truth)


def ready(page):
    "Once the DRR is finer than those of a drag."
    page.wait_for_function("() => document.querySelector('.stage .over')?.naturalWidth > 300", timeout=90_000)
    page.wait_for_timeout(500)


def main():
    args, info = begin(parser)
    found = find_browser()
    if not found:
        return print(NONE)
    rates, sizes = {(kind, mode): [] for kind in BROWSERS for mode in MODES}, set()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        scans(Path(folder), args.size)
        for _ in range(args.rounds):
            for kind, switches in BROWSERS.items():
                opened = Served(folder, "--ct", "ct.nii.gz", "--xray", "xray.png", "--camera", "camera.json")
                with opened as served, play.chromium.launch(executable_path=found, args=switches) as browser:
                    page = browser.new_page(viewport={"width": 1280, "height": 900})
                    page.goto(served.address)
                    for mode in MODES:
                        ready(page)
                        page.locator(f".bar button:has-text('{mode}')").first.click()
                        page.wait_for_timeout(700)
                        ready(page)
                        rates[kind, mode].append(page.evaluate(DRAGGED, args.seconds))
                        sizes.add(page.evaluate("() => document.querySelector('.over').naturalWidth"))
    load = f"{os.getloadavg()[0]:.1f}"
    rows = [{"browser": kind, "mode": mode, "drrs_per_second": spread(x), "load": load} for (kind, mode), x in rates.items()]
    show(rows, ["browser", "mode", "drrs_per_second", "load"])
    write_csv(args.out / "window.csv", info, rows)
    print(f"DRRs of {min(sizes)} to {max(sizes)} pixels; written: {args.out / 'window.csv'}")


if __name__ == "__main__":
    main()
