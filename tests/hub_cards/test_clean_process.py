"""A saved folder is complete: it works where `unimedvl` cannot be imported and no socket can be opened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_cards.clean_process import use
from tests.tiny_checkpoint import tiny_checkpoint

pytestmark = pytest.mark.medium

PROGRAM = Path(__file__).with_name("clean_process.py")
# The classes that generate; AutoModel is the base model.
AUTO_CLASSES = ("AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModelForCausalLM")


def run_clean(home: Path, *arguments: str, program: Path = PROGRAM, **environment: str) -> dict:
    """The report of a program, run with caches of its own and away from the checkout."""
    variables = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    variables |= {"HF_HOME": str(home), "HF_MODULES_CACHE": f"{home}/modules", "HOME": str(home)}
    variables |= {"TMPDIR": str(home), **environment}
    command = [sys.executable, "-I", str(program), *arguments]
    home.mkdir(exist_ok=True)
    result = subprocess.run(command, env=variables, cwd=home, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    model, processor = tiny_checkpoint(folder)
    here = use(model, processor)
    return run_clean(tmp_path_factory.mktemp("home"), str(folder)), here


def test_every_auto_class_answers_and_draws_the_same(report):
    there, here = report
    assert here["ids"][0] and here["image"]["size"] == (32, 32)
    expected = json.loads(json.dumps(here))
    assert there["AutoModel"] == {"class": "UniMedVLModel", "width": 32}
    for name in AUTO_CLASSES:
        assert there[name].pop("class") == "UniMedVLForConditionalGeneration"
        assert there[name] == expected, name


def test_presets_travel(report):
    there, _ = report
    assert {"t2i", "edit", "virtual_staining", "reconstruction"} <= set(there["presets"])


def test_nothing_else_was_touched(report):
    there, _ = report
    assert there["config"] == "UniMedVLConfig"
    assert there["imported"] == []
    assert there["attempts"] == []
    assert there["opened"] == []
