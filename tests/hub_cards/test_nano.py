"""The shipped nano: whole, small, licensed, free of pickles, with the code of this checkout, and the default model."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from examples.nano.card import facts_of
from examples.nano.release import KEPT, OUTDATED, WRITTEN
from tests.hub_cards.test_clean_process import AUTO_CLASSES, run_clean
from unimedvl.checkpoint.folder import NANO_DIRECTORY, default_model, open_checkpoint
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.hub_cards.model_card import build_card
from unimedvl.hub_cards.push import check_folder

pytestmark = pytest.mark.medium

FIGURES = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "nano.json"


def test_it_is_the_default_model():
    assert Path(default_model()) == NANO_DIRECTORY
    assert open_checkpoint(NANO_DIRECTORY).layout == "transformers"


def test_it_is_small_and_fit_to_be_published():
    assert {"config.json", "model.safetensors", "README.md", "LICENSE"} <= set(check_folder(NANO_DIRECTORY).files)
    assert sum(path.stat().st_size for path in NANO_DIRECTORY.rglob("*") if path.is_file()) <= 40_000_000


def test_it_is_trained_whole():
    config = json.loads((NANO_DIRECTORY / "config.json").read_text())
    assert config["text_config"]["freeze_und"] is False
    assert config["ce_loss_weight"] > 0 and config["mse_loss_weight"] > 0


def test_its_card_names_license_and_limits():
    card = (NANO_DIRECTORY / "README.md").read_text(encoding="utf-8")
    assert "cc-by-nc-sa-4.0" in card
    assert "teaching" in card and "not for diagnosis" in card


def test_its_card_is_that_of_its_figures():
    assert (NANO_DIRECTORY / "README.md").read_text(encoding="utf-8") == build_card(
        NANO_DIRECTORY, facts_of(json.loads(FIGURES.read_text(encoding="utf-8")))
    )


@pytest.mark.parametrize("sheet", ["samples.png", "edits.png"])
def test_its_sheets_say_that_they_are_synthetic_and_of_these_weights(sheet):
    record = read_provenance(NANO_DIRECTORY / sheet)
    assert record["synthetic"] and record["revision"] == open_checkpoint(NANO_DIRECTORY).revision


def test_it_holds_what_a_release_writes_and_nothing_else():
    names = {path.name for path in NANO_DIRECTORY.iterdir()}
    assert all(name in (*KEPT, *OUTDATED) or any(fnmatch(name, pattern) for pattern in WRITTEN) for name in names), (
        names
    )


def test_its_code_is_the_code_of_this_checkout():
    """Links that lead into the two source folders, and to every file there that the model or the processor needs."""
    code = sorted(NANO_DIRECTORY.glob("*.py"))
    for path in code:
        assert path.readlink() in (
            Path("../..") / folder / path.name for folder in ("modeling_unimedvl", "processing")
        )
    needed, seen = ["modeling_unimedvl", "processing_unimedvl", "image_processing_unimedvl"], set()
    while needed:
        name = needed.pop()
        if name not in seen:
            seen.add(name)
            text = (NANO_DIRECTORY / f"{name}.py").read_text(encoding="utf-8")
            needed += re.findall(r"^\s*from \.(\w+) import", text, re.MULTILINE)
    assert {path.stem for path in code} == seen


def test_it_works_alone(tmp_path):
    report = run_clean(tmp_path, str(NANO_DIRECTORY))
    assert all(report[name]["text"][0] for name in AUTO_CLASSES)
    assert report["attempts"] == []
    assert set(json.loads((NANO_DIRECTORY / "generation_config.json").read_text())["task_presets"]) == set(
        report["presets"]
    )
