"""`python -m tests [pytest's arguments]`: all checks, closed by a line of its own, `N passed, N failed`."""

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
    count = Count()
    code = int(pytest.main(["-v", "--durations=8", "-p", "no:cacheprovider", *(sys.argv[1:] or ["tests"])], plugins=[count]))
    failed = len(count.failed) or int(code != 0)  # an interrupted or an empty run is no success
    print(f"{len(count.passed - count.failed)} passed, {failed} failed", flush=True)
    sys.exit(code or failed > 0)
