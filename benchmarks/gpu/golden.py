"""The golden records on the device: the project's own test suite, run in this process."""

import os
import sys
from pathlib import Path
from typing import Any

from .record import ROOT
from .run import Bench

SUITE = ROOT / "tests" / "golden"
# Runs the suite on altered records in processes of its own: about the tests, not about the device.
LEFT_OUT = "test_mutations.py"


class Outcomes:
    """A pytest plugin that keeps what became of each test, and the account of the records."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}
        self.worst: dict[str, tuple[float, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("golden/")[2]
        if report.failed:
            self.failed[name] = str(report.longrepr)[-1500:]
        elif report.when == "call" and report.passed:
            self.passed.append(name)

    def pytest_sessionfinish(self, session: Any) -> None:
        stash = session.config.stash
        key = sys.modules["tests.golden.conftest"].GOLDEN
        if key in stash:
            self.worst = stash[key].shares_of_tolerance()


def run_suite(folder: Path, device: str, tests: tuple[str, ...] = ()) -> Outcomes:
    """Run the golden tests, all of them where none is named."""
    import pytest

    outcomes = Outcomes()
    paths = [str(SUITE / test) for test in tests] or [str(SUITE), f"--ignore={SUITE / LEFT_OUT}"]
    # Without the project's settings, which ask for the newest pytest: any recent one runs these tests.
    options = ["-c", os.devnull, f"--rootdir={ROOT}", "--import-mode=importlib", "-p", "no:cacheprovider", "-q"]
    pytest.main([*options, *paths, "--golden", str(folder), "--device", device], plugins=[outcomes])
    return outcomes


def golden_records(bench: Bench) -> None:
    """Every record in float32 at the suite's own tolerances."""
    # On a CPU the suite takes the same way through its boundary when the device has a number.
    device = "cuda:0" if bench.device.type == "cuda" else "cpu:0"
    outcomes = run_suite(bench.golden, device, bench.size.golden_tests)
    name = "correctness.golden.float32"
    if not outcomes.passed and not outcomes.failed:
        raise RuntimeError("no golden test ran, see gpu.log")
    bench.record.comparison(f"{name}.failed", len(outcomes.failed), 0, "tests", failures=outcomes.failed)
    bench.record.measured(f"{name}.passed", len(outcomes.passed), "tests")
    for file, (share, record) in outcomes.worst.items():
        bench.record.measured(f"{name}.{file}", share, "largest error over its tolerance", record=record)
