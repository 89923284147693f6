"""The environment of every test, and what the run left out, said at its end."""

import os

import pytest

from tools.browser import NONE, SWITCHES, find_browser
from tools.notebook import data_folder

os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg")


@pytest.fixture(scope="session")
def browser():
    found = find_browser()
    if not found and os.environ.get("DIFFPOSE_NO_BROWSER"):
        pytest.skip(f"no browser: {os.environ['DIFFPOSE_NO_BROWSER']}")  # said by .ci/run, after it has tried
    assert found, NONE
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=SWITCHES)
        yield browser
        browser.close()


def pytest_terminal_summary(terminalreporter):
    named = os.environ.get("DIFFPOSE_DATA")
    lines = [f"real scans: {data_folder() or 'none'}" + (f" (DIFFPOSE_DATA names {named}, which is no folder)" if named and not data_folder() else "")]
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            lines += [value for name, value in report.user_properties if name == "left out"]
    terminalreporter.section("what did not run")
    for line in lines:
        terminalreporter.write_line(line)


LONG = (  # as measured; of a notebook's name without its number
    *("test_kernels_compile", "registration_first_order", "registration_gauss_newton", "_training.ipynb"),
    *("_renderers", "_drr_module", "_kernels_", "cli_training", "training_trainer", "a_forked_child", "damaged_machine_code"),
    *("cli_demonstration", "_deepfluoro_"),
)


def pytest_collection_modifyitems(items):
    "The longest first, so that no core waits for the last of them at the end."
    rank = lambda item: next((k for k, name in enumerate(LONG) if name in item.nodeid), len(LONG))
    items.sort(key=rank)
