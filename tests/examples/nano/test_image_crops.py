"""Crops of the records' images, made where the images are."""

import numpy
import pytest
import torch
from PIL import Image

from examples.nano import image_crops


def ramp(width, height):
    """Red rises from left to right, green from top to bottom, over the whole range."""
    across, down = numpy.linspace(0, 255, width), numpy.linspace(0, 255, height)
    levels = numpy.stack([*numpy.meshgrid(across, down), numpy.zeros((height, width))], axis=-1)
    return Image.fromarray(levels.round().astype(numpy.uint8))


SIZES = ((132, 132), (132, 88), (72, 132))


@pytest.fixture
def images():
    return image_crops.stack_images([ramp(*size) for size in SIZES], ["CT", "CT", image_crops.MASK])


@pytest.mark.parametrize("shape", [(96, 96), (64, 96), (40, 64)])
def test_crops_stay_inside_and_keep_the_aspect(images, shape):
    index = torch.tensor([0, 1, 2] * 20)
    crops = image_crops.random_crops(images, index, shape, 96, torch.Generator().manual_seed(0))
    assert crops.shape == (60, 3, *shape) and crops.dtype == torch.float32
    width, height = (torch.tensor(SIZES)[index].T).float()
    # Levels rise by 2 / (size - 1) for a pixel of the image: their steps are the pixels that a pixel of a crop spans.
    across = (crops[:, 0, 5, 8:-8].diff(dim=1).mean(dim=1) * (width - 1) / 2).abs()
    down = crops[:, 1, 8:-8, 5].diff(dim=1).mean(dim=1) * (height - 1) / 2
    assert torch.allclose(across, down, rtol=0.03)
    zoom = torch.minimum(torch.maximum(width, height) / 96, torch.minimum(height / shape[0], width / shape[1]))
    assert (down / zoom > 0.68).all() and (down / zoom < 1.02).all() and down.std() > 0.01
    # Black beside an image never shows: blue is zero, and both ramps reach over the crop without a jump.
    assert crops[:, :2].diff(dim=3).abs().max() < 0.1 and crops[:, :2].diff(dim=2).abs().max() < 0.1
    mirrored = (crops[:, 0, 5, -1] < crops[:, 0, 5, 0]).float().mean()
    assert 0.25 < mirrored < 0.75 and (crops[:, 1, -1, 5] > crops[:, 1, 0, 5]).all()


def test_a_seed_draws_the_same_crops(images):
    made = [
        image_crops.random_crops(images, torch.arange(3), (32, 32), 96, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_central_squares_are_those_of_pil(images):
    squares = image_crops.center_squares(images, 96)
    for size, square in zip(SIZES, squares, strict=True):
        short = min(size)
        left, top = (size[0] - short) // 2, (size[1] - short) // 2
        wanted = ramp(*size).crop((left, top, left + short, top + short)).resize((96, 96), Image.Resampling.BICUBIC)
        difference = square.permute(1, 2, 0).numpy().astype(int) - numpy.asarray(wanted).astype(int)
        assert numpy.abs(difference).max() <= 1


def test_masks_have_their_share_of_the_draws(images):
    many = images.chosen([0] * 90 + [1] * 10 + [2] * 5)
    many.modalities[90:100] = ["MRI"] * 10
    drawn = many.rarity(0.1)
    shares = drawn / drawn.sum()
    assert float(shares[100:].sum()) == pytest.approx(0.1)
    assert float(shares[:90].sum() / shares[90:100].sum()) == pytest.approx(3.0)
    assert many.places(masks=True) == list(range(100, 105)) and len(many.places(masks=False)) == 100
