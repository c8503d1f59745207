"""The shipped nano: whole, small, licensed, free of pickles, with the code of this checkout, and the default model."""

import json
from pathlib import Path

import pytest

from tests.hub_cards.test_clean_process import AUTO_CLASSES, run_clean
from unimedvl.checkpoint import default_model, open_checkpoint
from unimedvl.hub_cards import NANO_DIRECTORY
from unimedvl.hub_cards.publish import check_folder

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(path.name for path in NANO_DIRECTORY.glob("*.py"))


def test_it_is_the_default_model():
    assert Path(default_model()) == NANO_DIRECTORY
    assert open_checkpoint(NANO_DIRECTORY).layout == "transformers"


def test_it_is_small_and_fit_to_be_published():
    assert {"config.json", "model.safetensors", "README.md", "LICENSE"} <= set(check_folder(NANO_DIRECTORY))
    assert sum(path.stat().st_size for path in NANO_DIRECTORY.rglob("*") if path.is_file()) <= 40_000_000


def test_its_card_names_licence_and_limits():
    card = (NANO_DIRECTORY / "README.md").read_text(encoding="utf-8")
    assert "cc-by-nc-sa-4.0" in card
    assert "teaching" in card and "Not for diagnosis" in card


@pytest.mark.parametrize("name", CODE)
def test_its_code_is_the_code_of_this_checkout(name):
    sources = [path for path in (ROOT / "modeling_unimedvl" / name, ROOT / "processing" / name) if path.is_file()]
    assert len(sources) == 1
    assert (NANO_DIRECTORY / name).read_bytes() == sources[0].read_bytes(), "save the nano's code again"


def test_it_works_alone(tmp_path):
    report = run_clean(tmp_path, str(NANO_DIRECTORY))
    assert all(report[name]["text"][0] for name in AUTO_CLASSES)
    assert report["attempts"] == []
    assert set(json.loads((NANO_DIRECTORY / "generation_config.json").read_text())["task_presets"]) == set(
        report["presets"]
    )
