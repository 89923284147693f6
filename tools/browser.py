"""A browser for what is looked at: the site's tests, and films of the window."""

import os
import re
import shutil
import subprocess
import sys

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]  # WebGL without a GPU
FLAT = ["--no-sandbox", "--disable-gpu"]  # pages put together as Chromium does without a GPU: no WebGL, and no GPU that is emulated
DRAGGED = """async (seconds) => { // DRRs a second while a hand goes about, which is of the page and costs a driver nothing
  const stage = document.querySelector('.stage'), over = document.querySelector('.over'), begun = performance.now();
  const box = stage.getBoundingClientRect(), [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
  const hand = (kind, k, buttons) => stage.dispatchEvent(new PointerEvent(kind, {clientX: x + k % 120, clientY: y + k % 50, buttons, pointerId: 1, bubbles: true}));
  let seen = 0;
  stage.setPointerCapture = () => {};
  const observer = new MutationObserver(() => seen++);
  observer.observe(over, {attributes: true, attributeFilter: ['src']});
  hand('pointerdown', 0, 1);
  for (let k = 0; performance.now() - begun < 1000 * seconds; k++) {
    hand('pointermove', k, 1);
    await new Promise(requestAnimationFrame);
  }
  const rate = 1000 * seen / (performance.now() - begun);
  hand('pointerup', 0, 0);
  observer.disconnect();
  return rate;
}"""
NONE = f"no browser: install Chromium (Debian: apt install chromium), or name one in DIFFPOSE_BROWSER; looked for {', '.join(BROWSERS)}"


def find_browser():
    "The browser that DIFFPOSE_BROWSER names, or one that is installed; None where there is none."
    return os.environ.get("DIFFPOSE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


class Served:
    "A window of `diffpose gui` that runs in a process of its own."

    def __init__(self, folder, *options):
        command = [sys.executable, "-m", "diffpose", "gui", str(folder), "--no-browser", *options]
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"PYTHONUNBUFFERED": "1"}  # NiceGUI serves tests in another way
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        self.said = ""
        while not (found := re.search(r"(http://\S+)", self.said)):
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"the window did not open:\n{self.said}")
            self.said += line
        self.address = found[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
