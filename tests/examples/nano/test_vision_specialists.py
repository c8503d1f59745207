"""Specialists of the same rows: they learn what can be learned, and are judged on what they have not seen."""

import numpy as np
import pytest
import torch
from PIL import Image

from examples.nano import vision_specialists as specialists
from examples.nano.record_images import CANVAS, Masks, RecordImages
from unimedvl.checkpoint.loading import load

pytestmark = pytest.mark.medium


def colored(count):
    """Images whose class is their color, in the upper left of the canvas, with a bright box as their mask."""
    classes = np.array(["red", "blue"])[np.arange(count) % 2]
    pixels = torch.zeros(count, 3, CANVAS, CANVAS, dtype=torch.uint8)
    masks = torch.zeros(count, CANVAS, CANVAS, dtype=torch.uint8)
    for place in range(count):
        pixels[place, 0 if classes[place] == "red" else 2, :88] = 150
        left = 8 + 7 * (place % 8)
        masks[place, 20:70, left : left + 50] = 255
        pixels[place, 1, 20:70, left : left + 50] = 255
    images = RecordImages(
        pixels,
        torch.tensor([[88.0, float(CANVAS)]] * count),
        torch.zeros(count).long(),
        ["HIS"] * count,
        ["x"] * count,
    )
    return images, classes, Masks(masks, torch.arange(count), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize("held_out", [30, 10])
def test_a_small_network_names_classes_of_held_out_rows_or_by_folds(held_out):
    images, classes, _ = colored(60)
    pixels = specialists.squares(images)
    assert pixels.shape == (60, 3, 64, 64) and float(pixels[0, 0].min()) > 0.1
    rows = np.arange(60)
    named = specialists.small_network(pixels, classes, 20, 0)
    groups = [str(place) for place in rows]
    found = specialists.judged(named, rows[held_out:], rows[:held_out], classes, groups)
    assert found["accuracy"] > 0.9
    assert found["number"] == (30 if held_out == 30 else 60) and ("folds" in found) == (held_out == 10)


def test_a_probe_of_noise_is_no_better_than_chance():
    labels = np.array(["a", "b"])[np.arange(80) % 2]
    noise = np.random.default_rng(0).normal(size=(80, 30))
    probe = specialists.linear_probe(noise, labels)
    rows, groups = np.arange(80), [str(place) for place in range(80)]
    assert specialists.judged(probe, rows[40:], rows[:40], labels, groups)["accuracy"] < 0.75
    assert specialists.judged(probe, rows[10:], rows[:10], labels, groups)["accuracy"] < 0.7


def test_a_unet_draws_masks_where_they_are():
    images, _, masks = colored(24)
    found = specialists.unet_overlaps((images, masks), (images, masks), ["x: box"], 25, 0)
    assert found["x: box"] > 0.8


@pytest.mark.slow
def test_features_of_a_checkpoint_are_those_that_it_reads_images_with(finished):
    images, _, _ = colored(3)
    found = specialists.frozen_features(str(finished), images, images)
    assert found.shape[0] == 6 and np.array_equal(found[:3], found[3:])
    model, processor, _ = load(finished, dtype="float32", device="cpu")
    shown = Image.fromarray(images.pixels[0, :, :88].permute(1, 2, 0).numpy())
    inputs = processor.image_processor([shown], generation_mode="text", return_tensors="pt")
    with torch.no_grad():
        own = model.get_image_features(**inputs).last_hidden_state
    # Before the connector that widens them, the mean over patches, up to the rounding of the resized pixels.
    np.testing.assert_allclose(found[0], own.reshape(-1, found.shape[1]).mean(0).numpy(), atol=0.05)
