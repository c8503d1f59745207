"""The files that travel with a checkpoint on the oldest transformers that an engine here runs: vLLM's floor.

    python -m benchmarks.engines.transformers_floor PYTHON

PYTHON has that transformers over what this package needs otherwise. The shipped folder is opened there by the auto
classes and compared with this environment, and the golden records are compared there.
"""

import json
import sys
import xml.etree.ElementTree as tree
from pathlib import Path
from typing import Any

from .environments import CHECKPOINT, ROOT, Ran, check_and_write, run

PROGRAM = ROOT / "benchmarks" / "engines" / "transformers_process.py"
# Accumulation in this package's own trainer, which does not travel and asks for transformers 5.20.
NOT_TRAVELING = ("tests.golden.test_trainer::test_the_same_batch_twice_in_one_step_changes_nothing",)


def golden(python: str, folder: Path) -> tuple[dict[str, Any], Ran]:
    """Counts of the golden tests, and the names of those that fail, with the command."""
    report = folder / "golden.xml"
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), f"--junitxml={report}"]
    words = ["-m", "pytest", *options, str(ROOT / "tests" / "golden")]
    # 1: some failed.
    done = run(python, words, folder / "work", codes=(0, 1))
    cases = list(tree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    found = {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "names of what fails": sorted(f"{case.get('classname')}::{case.get('name')}" for case in failed),
    }
    return found, done


def checked(python: str, folder: Path) -> tuple[dict[str, Any], bool, Ran]:
    """The figures, whether everything that travels runs, and the command of the golden tests.

    Args:
        python: an interpreter with the oldest transformers.
        folder: receives everything, an existing folder.
    """
    there, here = (
        json.loads(run(each, [str(PROGRAM), str(CHECKPOINT)], folder / "work", path=()).output.splitlines()[-1])
        for each in (python, sys.executable)
    )
    versions = {"compared with transformers": here.pop("transformers"), "transformers": there.pop("transformers")}
    counts, done = golden(python, folder)
    figure: dict[str, Any] = {
        **versions,
        "answers and images of the auto classes equal": there == here,
        "golden tests": counts,
    }
    traveling = set(counts["names of what fails"]) - set(NOT_TRAVELING)
    return figure, there == here and counts["passed"] > 0 and not traveling, done


if __name__ == "__main__":
    check_and_write("transformers", "transformers_floor", "interpreter with the oldest transformers", __doc__, checked)
