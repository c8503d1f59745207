"""The image of the README: cells in rows."""

import runpy
from pathlib import Path

import numpy
from PIL import Image

from unimedvl.checkpoint.folder import NANO_DIRECTORY, open_checkpoint
from unimedvl.checkpoint.provenance import read_provenance

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "site" / "readme_image.py"))


def test_every_cell_is_drawn_in_its_place():
    colors = [(255, 0, 0), (0, 0, 255)] * 6
    drawn = numpy.asarray(SCRIPT["draw"]([(Image.new("RGB", (96, 96), color), "", "") for color in colors], ""))
    side = drawn.shape[1] // SCRIPT["COLUMNS"]
    height = round((SCRIPT["SIDE"] + SCRIPT["WORDS"]) * SCRIPT["DOTS"])
    for number, color in enumerate(colors):
        row, column = divmod(number, SCRIPT["COLUMNS"])
        assert tuple(drawn[row * height + side // 2, column * side + side // 2]) == color


def test_the_image_says_that_it_is_synthetic_and_of_the_shipped_weights():
    record = read_provenance(SCRIPT["README_IMAGE"])
    assert record["synthetic"] and record["not_for_diagnosis"]
    assert record["revision"] == open_checkpoint(NANO_DIRECTORY).revision
