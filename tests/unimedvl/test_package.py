"""The package description lists every folder of code, and imports keep to the floors of CONTRIBUTING.md."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("unimedvl", "modeling_unimedvl", "processing", "unimed5m", "training", "evaluation", "hub_cards")


def tracked(pattern: str) -> list[Path]:
    """Files of the checkout that git knows."""
    listing = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in listing.stdout.splitlines()]


def test_every_folder_of_code_is_part_of_the_package():
    """What setuptools finds through the links is what git holds."""
    description = configparser.ConfigParser()
    description.read(ROOT / "setup.cfg")
    assert description["options"]["packages"] == "find:"
    found = find_packages(str(ROOT), include=description["options.packages.find"]["include"].split())
    held = set()
    for path in tracked("*__init__.py"):
        if path.parts[0] in FOLDERS:
            dotted = ".".join(path.parent.parts)
            held.add(dotted if path.parts[0] == "unimedvl" else f"unimedvl.{dotted}")
    assert set(found) == held


@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_every_folder_of_code_is_a_place_inside_the_package(folder):
    link = ROOT / "unimedvl" / folder
    assert link.is_symlink() and link.readlink() == Path("..") / folder


def test_a_checkout_without_links_says_what_to_run(tmp_path):
    """git writes the text of a link into a plain file where it cannot make links."""
    package = tmp_path / "unimedvl"
    package.mkdir()
    for name in ("__init__.py", "version.py"):
        (package / name).write_bytes((ROOT / "unimedvl" / name).read_bytes())
    (package / "processing").write_text("../processing")
    command = [sys.executable, "-c", "import unimedvl"]
    ran = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "git config core.symlinks true" in ran.stderr.splitlines()[-1]


def test_code_that_travels_is_flat_and_self_contained():
    names = []
    for folder in ("modeling_unimedvl", "processing"):
        for path in (ROOT / folder).glob("*_unimedvl.py"):
            names.append(path.name)
            text = path.read_text(encoding="utf-8")
            # The expressions are those that transformers searches code with, docstrings included.
            for module in re.findall(r"^\s*from\s+\.(\S*)\s+import", text, re.MULTILINE):
                assert (ROOT / folder / f"{module}.py").is_file(), (path.name, module)
            assert not re.search(r"^\s*import\s+\.", text, re.MULTILINE)
            assert not re.search(r"^\s*(import|from)\s+unimedvl\b", text, re.MULTILINE), path.name
            assert not re.search(r"^\s*(import|from)\s+(torchvision|flash_attn)\b", text, re.MULTILINE), path.name
    assert len(names) == len(set(names)) > 10


@pytest.fixture(scope="module")
def scratch_copy(tmp_path_factory):
    """The code of the checkout with its links and contracts, free to be changed."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in (*FOLDERS, "examples", "benchmarks"):
        skipped = shutil.ignore_patterns("__pycache__", "unimedvl-nano")
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


def test_imports_keep_to_the_floors(scratch_copy):
    ran = lint_imports(scratch_copy)
    assert ran.returncode == 0 and "0 broken" in ran.stdout, ran.stdout


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("unimedvl/utils/errors.py", "from ..checkpoint import folder", "Imports point down"),
        ("unimed5m/schema.py", "def late():\n    from unimedvl.checkpoint import folder", "Imports point down"),
        ("training/rewards.py", "from unimedvl.evaluation import scoring", "Imports point down"),
        ("training/rewards.py", "from unimedvl.evaluation.metrics import image_features", None),
        ("unimed5m/schema.py", "from unimedvl.evaluation.metrics import image_features", None),
        ("unimedvl/checkpoint/folder.py", "from ..evaluation.metrics import image_features", "Imports point down"),
        ("evaluation/scoring.py", "from unimedvl.training import rewards", "Imports point down"),
        ("processing/dicom_unimedvl.py", "import unimedvl", "Model and processor travel alone"),
        (
            "processing/dicom_unimedvl.py",
            "from unimedvl.modeling_unimedvl import blocks_unimedvl",
            "Model and processor travel alone",
        ),
        ("evaluation/metrics/image_features.py", "from unimedvl.evaluation import samples", "Metrics are leaves"),
        ("unimed5m/schema.py", "from . import build", "Neither modules nor folders form circles"),
        ("training/data/augmentation.py", "from ..curriculum import ema", "Neither modules nor folders form circles"),
        ("training/run.py", "from examples.nano import model", "The package does without its examples"),
    ],
)
def test_an_import_that_leaves_its_floor_breaks_a_contract(path, line, contract, scratch_copy):
    changed = scratch_copy / path
    before = changed.read_text(encoding="utf-8")
    try:
        changed.write_text(f"{before}\n{line}\n", encoding="utf-8")
        ran = lint_imports(scratch_copy)
    finally:
        changed.write_text(before, encoding="utf-8")
    broken = re.findall(r"^(.+) BROKEN", ran.stdout, re.MULTILINE)
    assert (contract in broken) if contract else not broken, ran.stdout
    assert (ran.returncode == 0) == (contract is None)


def imported_by(code: str) -> set[str]:
    """Root names of the packages that code imports anywhere, by a statement or by name."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.partition(".")[0] for name in names}


def test_nothing_imports_torchvision_or_flash_attention():
    """In every folder of the repository that holds code, named here or not; tests may import what they like."""
    files = [path for path in tracked("*.py") if path.parts[0] != "tests"]
    assert {path.parts[0] for path in files} >= set(FOLDERS)
    assert not {path for path in files if imported_by((ROOT / path).read_text()) & {"torchvision", "flash_attn"}}


@pytest.mark.parametrize(
    "line", ["import torch, torchvision.io", "from torchvision import io", "importlib.import_module('torchvision.io')"]
)
def test_imports_are_found_inside_functions_too(line):
    assert "torchvision" in imported_by(f"def load():\n    {line}\n")
    assert imported_by(f"TEXT = {line!r}\nfrom . import torchvision") == set()


# A function or class behind each link inside the package.
BEHIND_LINKS = {
    "modeling_unimedvl.upstream_layout_unimedvl": "build_config",
    "processing.view_unimedvl": "View",
    "unimed5m.sentences": "facts_phrase",
    "training.data.packing": "PackPlanner",
    "evaluation.metrics.images": "psnr",
    "hub_cards.push": "push_folder",
}


def test_types_are_checked_across_folders(tmp_path):
    """mypy reports wrong calls into another folder; behind a link that it cannot follow, every call is right."""
    assert {module.partition(".")[0] for module in BEHIND_LINKS} == set(FOLDERS[1:])
    lines = []
    for module, name in BEHIND_LINKS.items():
        lines += [f"from unimedvl.{module} import {name}", f"{name}(nothing_takes_this=1)"]
    lines += ["PackPlanner(1)", 'facts_phrase("head CT", finding="hemorrhage")']
    calls = tmp_path / "calls.py"
    calls.write_text("\n".join(lines) + "\n")
    # Libraries are left out, which takes seconds instead of minutes: a call into this package needs none of theirs.
    command = [sys.executable, "-m", "mypy", "--no-site-packages", "--cache-dir", str(tmp_path / "cache"), str(calls)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    reported = {int(line) for line in re.findall(r"calls\.py:(\d+): error:", ran.stdout)}
    right = {number for number, line in enumerate(lines, 1) if line.startswith("from ")} | {len(lines)}
    assert reported == set(range(1, len(lines) + 1)) - right, ran.stdout + ran.stderr
