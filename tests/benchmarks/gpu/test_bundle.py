"""A bundle is small, names its commit, and runs where only the libraries are that it names."""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.bundle import LIMIT_BYTES, WHEELS, copy, size_of
from benchmarks.gpu.golden import LEFT_OUT
from benchmarks.gpu.record import ROOT

# What this repository's environment has and a lent GPU machine has not.
MISSING = (
    "datasets",
    "evaluate",
    "trl",
    "pydicom",
    "nibabel",
    "omegaconf",
    "ijson",
    "typer",
    "gradio",
    "openpyxl",
    "matplotlib",
)
IMPORT_WITHOUT = """
import importlib
import sys
from importlib.machinery import PathFinder

missing, find = set(sys.argv[1].split(",")), PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in missing else find(name, path, target)


PathFinder.find_spec = staticmethod(find_spec)
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    print(name, module.__file__)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    copy(folder)
    return folder


def test_a_bundle_is_small_and_names_its_commit(bundle):
    carried = size_of(WHEELS) if WHEELS.exists() else 0
    assert size_of(bundle) - carried + (carried or 45 << 20) <= LIMIT_BYTES
    assert (bundle / "COMMIT").read_text().strip()


def test_every_part_runs_on_the_bundle_alone(bundle):
    """Each part's module and each golden test is imported from the copy, on a machine without `MISSING`."""
    suite = sorted(path for path in (bundle / "tests" / "golden").glob("test_*.py") if path.name != LEFT_OUT)
    modules = [part.module for part in PARTS] + [f"tests.golden.{path.stem}" for path in suite]
    command = [sys.executable, "-c", IMPORT_WITHOUT, ",".join(MISSING), *modules]
    # An installed checkout would otherwise lend its own modules to what the copy lacks.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=bundle, env=environment | {"PYTHONPATH": str(bundle)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    files = [line.partition(" ")[2] for line in result.stdout.splitlines()]
    assert len(files) == len(modules) > 10
    assert all(file.startswith(str(bundle)) and not file.startswith(str(ROOT)) for file in files)
