"""A record's image is one image for `ask`, training, evaluation and quality control."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processing.test_view import asked, graded
from unimedvl.evaluation.samples import sample_of
from unimedvl.processing.pixel_windows_unimedvl import convert_to_rgb
from unimedvl.training.language.trl_datasets import generation_examples
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.builders.record_images import file_image
from unimedvl.unimed5m.task_images import open_stored_image, shown_image

pytestmark = pytest.mark.medium


def transparent(path: Path) -> Path:
    """A red square behind a hole, saved with its transparency."""
    pixels = np.zeros((24, 32, 4), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1:3] = 200, 10
    pixels[6:18, 8:24, 3] = 255
    Image.fromarray(pixels).save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_what_is_transparent_is_white_for_ask_for_training_and_for_evaluation(tmp_path, name):
    path = transparent(tmp_path / name)
    wanted = np.asarray(convert_to_rgb(asked("--image", path)))
    assert wanted[0, 0].tolist() == [255, 255, 255] and wanted[12, 16].tolist() == [200, 10, 10]
    image = file_image(path, tmp_path)
    assert np.array_equal(np.asarray(shown_image(image)), wanted)
    assert np.array_equal(np.asarray(open_stored_image(image.data)), wanted)
    origin = tasks.Origin("d", "1", "g", "test", "XR", "CC0-1.0", "yes", "")
    sample = sample_of(tasks.diagnosis(origin, image, "lung"))
    (content,) = [message["content"] for message in sample.conversation()]
    (shown,) = [item["image"] for item in content if item["type"] == "image"]
    assert np.array_equal(np.asarray(shown), wanted)


def test_a_deep_png_is_windowed_for_training_by_rewards_too(tmp_path):
    values = graded((1, 24, 32), 3, np.uint16)[0]
    Image.fromarray(values).save(tmp_path / "deep.png")
    wanted = np.asarray(asked("--image", tmp_path / "deep.png").convert("RGB"))
    image = file_image(tmp_path / "deep.png", tmp_path)
    origin = tasks.Origin("d", "1", "g", "train", "XR", "CC0-1.0", "yes", "")
    (example,) = generation_examples([tasks.text_to_image(origin, image, "a chest film")])
    assert np.array_equal(np.asarray(example["reference"]), wanted)
    assert len(np.unique(wanted)) > 40 and wanted.max() == 255
