"""A film of the window of `diffpose gui`, from a browser that uses it: `python -m tools.window_film OUT.webp [--still OUT.png] [--width phone]`.

A phantom is dragged before an X-ray of it, and registered. Needs Chromium, as the tests of the site do.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from tools.browser import NONE, SWITCHES, Served, find_browser

SIZES = {"desktop": (1280, 760), "phone": (390, 844)}
SHOWN = 800  # pixels of the film's width


def write_scans(folder):
    "A CT, an X-ray of it and its camera."
    import torch

    from diffpose.calibration import Camera, carm_pose
    from diffpose.phantom import make_phantom
    from diffpose.report import write_ct, write_inputs
    from diffpose.simulation import simulate_xray

    patient = make_phantom(0, 2.0)
    camera = Camera(1020.0, 360, 360, 1.0, 1.0, sid=780.0, primary_angle=0.0, secondary_angle=0.0, view="AP")
    start, truth = carm_pose(0.0, 0.0, 780.0), carm_pose(18.0, -7.0, 790.0)
    xray = simulate_xray(make_phantom(0, 1.5), camera, truth, seed=0)
    write_ct(folder / "ct.nii.gz", patient)
    write_inputs(folder, patient, camera, 4 * xray / torch.quantile(xray, 0.999), start, truth)


def used(page, take):
    "Open, drag, register, look."
    page.wait_for_function("() => document.querySelector('.stage .over')?.src.startsWith('data:')", timeout=60_000)
    page.wait_for_timeout(1500)
    take(6)
    box = page.locator(".stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for k in range(1, 13):
        page.mouse.move(x + 5 * k, y - 2 * k)
        page.wait_for_timeout(250)
        take()
    page.mouse.up()
    page.wait_for_timeout(800)
    take(4)
    page.locator("[aria-label='register']").first.click()
    for _ in range(120):
        page.wait_for_timeout(120)
        take()
        if page.locator("text=/converged|stalled|ambiguous/").count():
            break
    page.wait_for_timeout(1500)
    take(12)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--still", type=Path, help="the last picture, too")
    parser.add_argument("--width", choices=list(SIZES), default="desktop")
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    browser = find_browser()
    if browser is None:
        sys.exit(NONE)
    frames = []
    with tempfile.TemporaryDirectory() as box:
        write_scans(Path(box))
        with Served(box, "--ct", "ct.nii.gz", "--xray", "xray.png", "--camera", "camera.json") as served, sync_playwright() as playwright:
            wide, high = SIZES[asked.width]
            page = playwright.chromium.launch(executable_path=browser, args=SWITCHES).new_page(viewport={"width": wide, "height": high})
            page.goto(served.address)
            shot = lambda: Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            size = (min(SHOWN, wide), round(high * min(SHOWN, wide) / wide))
            used(page, lambda times=1: frames.extend([np.asarray(shot().resize(size, Image.LANCZOS))] * times))
            if asked.still:
                shot().save(asked.still)
    iio.imwrite(asked.out, np.stack(frames), duration=160, loop=0, quality=55, method=6)
    print(f"{asked.out}: {len(frames)} pictures, {asked.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
