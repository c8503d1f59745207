"""Drawn records of the nano's sources, its work folder, and every step as short as can be."""

import json

import numpy as np
import pytest

from examples.nano import (
    autoencoder,
    not_medical,
    prepare,
    vision,
)
from examples.nano.model import SIDE
from unimedvl.training.run import run
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.schema import to_table
from unimedvl.unimed5m.shards import write_table
from unimedvl.unimed5m.task_images import drawn_image

SOURCES = (
    ("A", "hc18", "US", "obstetric ultrasound", "", 3),
    ("A", "nih-chestxray14-subset", "CXR", "frontal chest radiograph", "pneumonia", 4),
    ("B", "lc25000-lung", "HIS", "H&E histopathology image", "lung adenocarcinoma", 4),
    ("A", "vqa-rad", "RAD", "radiology image", "", 2),
    ("A", "skimage", "CFP", "color fundus photograph", "", 2),
    ("C", "busi", "US", "breast ultrasound", "benign", 2),
)


def drawn(number: int, size=(72, 56)):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return drawn_image(pixels, f"{number}.png")


def built_records(split: str):
    """A few records of every kind, as a build makes them."""
    for tier, source, modality, description, label, count in SOURCES:
        for number in range(count):
            name = f"{source}-{split}-{number}"
            extra = {"source_id": name, "submodality": description, "anatomy": "part"}
            extra |= {"label": label} if label else {}
            origin = tasks.Origin(
                source, name, name, split, modality, "CC0-1.0", "yes", "drawn for a test", description, tier, extra
            )
            image = drawn(sum(map(ord, name)))
            if source == "vqa-rad":
                yield tasks.vqa(origin, [image], "is there a mass?", ("yes", "no")[number % 2], "0")
                yield tasks.vqa(origin, [image], "what organ is this?", "lung", "1")
                continue
            yield tasks.caption(origin, [image], f"Here is a {description}.")
            yield tasks.text_to_image(origin, image, f"a {description}")
            yield tasks.super_resolution(origin, image, 2, "bicubic")
            if label:
                yield tasks.diagnosis(origin, image, label)
            if source == "hc18":
                classes = np.zeros((56, 72), dtype=np.uint8)
                classes[10:40, 20:50] = 1
                yield tasks.segmentation(origin, image, classes, [1], "fetal head")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    for split in ("train", "validation"):
        write_table(folder / "data" / f"{split}-0.parquet", to_table(built_records(split)))
    return folder


@pytest.fixture(scope="session")
def work(built, tmp_path_factory):
    work = tmp_path_factory.mktemp("nano") / "work"
    with pytest.MonkeyPatch.context() as few:
        few.setattr(not_medical, "CROPS", 1)
        few.setattr(not_medical, "TEXTURES", 16)
        prepare.main(str(built), work, vocabulary=400)
    # Few groups are never held out: the held-out part is drawn from the validation split instead.
    records = [item for record in prepare.read_records(built, "validation") for item in prepare.nano_records(record)]
    write_table(work / "records" / "data" / "validation-00000-of-00001.parquet", to_table(records))
    return work


@pytest.fixture(scope="session")
def finished(work, tmp_path_factory):
    """Every step, as short as can be."""
    vision.main(work, work / "vision", steps=4)
    autoencoder.main(work, work / "autoencoder", steps=3, teacher=False)
    prepare.main("unread", work, autoencoder=str(work / "autoencoder"), vision=work / "vision")
    recipe = {
        "model": str(work / "start"),
        "output_dir": str(work / "trained"),
        "steps": 2,
        "bf16": False,
        "optimizer": {"warmup_steps": 1},
        "data": {
            "pack_tokens": 400,
            "groups": [
                {"name": name, "path": str(work / "records"), "tasks": names, **sizes()}
                for name, names in (("read", ["conversation"]), ("make", ["text_to_image", "segmentation"]))
            ],
        },
    }
    path = tmp_path_factory.mktemp("recipe") / "nano.yaml"
    path.write_text(json.dumps(recipe))
    return run(path, [])


def sizes():
    return {name: {"min_side": SIDE, "max_side": SIDE} for name in ("vae", "vit", "understanding")} | {
        "augmentation": {"crop": 0.8, "flip_horizontal": True}
    }
