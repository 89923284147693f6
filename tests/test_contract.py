"""This repository keeps its contract: one test per rule of `contract.py`, and ruff."""

import subprocess
import sys

import pytest

from tests.contract import RULES
from tools.notebook import ROOT


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    problems = RULES[name](ROOT)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_ruff_finds_nothing():
    run = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        pytest.fail(run.stdout + run.stderr, pytrace=False)
