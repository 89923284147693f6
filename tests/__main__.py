"""`python -m tests [pytest's arguments]`: all checks, closed by a line of its own, `N passed, N failed`.

Up to four run at a time; most of a notebook's work is for one core. `-n 0` runs them one by one.
"""

import os
import sys

import pytest


class Count:
    "Tests that passed and failed; one that cannot be collected or set up has failed."

    def __init__(self):
        self.passed, self.failed = set(), set()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to other tests
    count = Count()
    workers = min(4, os.cpu_count() or 1)
    options = ["-v", "--durations=12", "-p", "no:cacheprovider", "-n", str(workers), "--dist", "worksteal"]
    code = int(pytest.main([*options, *(sys.argv[1:] or ["tests"])], plugins=[count]))
    failed = len(count.failed) or int(code != 0)  # an interrupted or an empty run is no success
    print(f"{len(count.passed - count.failed)} passed, {failed} failed", flush=True)
    sys.exit(code or failed > 0)
