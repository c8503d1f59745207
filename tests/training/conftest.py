"""A place with records and a tiny model, and recipes over them."""

import functools

import pytest
import yaml

from tests.tiny_checkpoint import tiny_checkpoint
from tests.training.record_folders import write_folder

COUNTS = {"vqa": 9, "dialogue": 5, "text_to_image": 6, "segmentation": 7, "counterfactual": 4}
RANGES = {
    "vae": {"min_side": 16, "max_side": 48},
    "vit": {"min_side": 12, "max_side": 36},
    "understanding": {"min_side": 12, "max_side": 48},
}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_folder(folder / "records", COUNTS)
    write_folder(folder / "records", {"vqa": 3, "text_to_image": 2}, split="validation")
    tiny_checkpoint(folder / "model")
    return folder


def write_recipe(place, folder, name="recipe", **changes):
    """A recipe over a place's records, with changes; returns its path in the folder."""
    group = {"name": "all", "path": str(place / "records"), **RANGES}
    values = {
        "model": str(place / "model"),
        "output_dir": str(folder / name),
        "steps": 4,
        "bf16": False,
        "save_steps": 2,
        "log_steps": 1,
        "ema_decay": 0.9,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "eps": 1e-8},
        "data": {"groups": [group], "pack_tokens": 200, "open_packs": 3},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def recipe(place, tmp_path):
    """Writes a recipe with changes and returns its path."""
    return functools.partial(write_recipe, place, tmp_path)
