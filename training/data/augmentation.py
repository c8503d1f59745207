"""Random changes of a record's images, the same for all images of one record.

What a record teaches must survive: mirroring a chest film swaps left and right, mirroring a histology tile does not,
so every group of a recipe says what its images bear (`AugmentationRecipe`).
"""

import math
import random
from dataclasses import dataclass

import numpy
from PIL import Image

from ..data_recipe import AugmentationRecipe


@dataclass(frozen=True)
class Augmentation:
    """One draw.

    Attributes:
        box: part of the image that is kept, (left, top, right, bottom) as shares of its sides.
        mirrored, upside_down: whether left and right, top and bottom change places.
        turns: quarter turns, counter-clockwise.
        gains: factors of the three channels, on a scale where black is 0.
        contrast: factor of the differences from the image's mean.
        gamma: exponent of the levels on a scale from black (0) to white (1), before all else.
        inverted: whether black and white change places, after all else.
        outputs: whether the levels of images that are made change as those of images that are read.
    """

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    mirrored: bool = False
    upside_down: bool = False
    turns: int = 0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    gamma: float = 1.0
    inverted: bool = False
    outputs: bool = True

    def geometry(self, image: Image.Image) -> Image.Image:
        """Crop, mirror and turn an image; it becomes smaller, its sides keep their ratio."""
        left, top, right, bottom = self.box
        if self.box != (0.0, 0.0, 1.0, 1.0):
            width, height = image.size
            image = image.crop(
                (round(left * width), round(top * height), round(right * width), round(bottom * height))
            )
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.upside_down:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if self.turns:
            turn = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[self.turns - 1]
            image = image.transpose(turn)
        return image

    def intensity(self, pixels: numpy.ndarray, output: bool) -> numpy.ndarray:
        """Change float32 pixels (3, H, W) in [-1, 1]; black stays black unless contrast or polarity change."""
        unchanged = (self.contrast, self.gains, self.gamma, self.inverted) == (1.0, (1.0, 1.0, 1.0), 1.0, False)
        if unchanged or (output and not self.outputs):
            return pixels
        light = (pixels + 1.0) / 2.0
        if self.gamma != 1.0:
            light = numpy.clip(light, 0.0, 1.0) ** self.gamma
        mean = light.mean()
        light = (light - mean) * self.contrast + mean
        light = light * numpy.asarray(self.gains, dtype=numpy.float32)[:, None, None]
        changed = (numpy.clip(light, 0.0, 1.0) * 2.0 - 1.0).astype(numpy.float32)
        return -changed if self.inverted else changed


def draw_augmentation(recipe: AugmentationRecipe, seed: int, square: bool) -> Augmentation | None:
    """The change that a seed gives, None if the recipe changes nothing.

    Args:
        square: whether all images of the record are as wide as high; others are never turned by a quarter.
    """
    if not recipe.changes:
        return None
    draw = random.Random(seed)
    side = draw.uniform(recipe.crop, 1.0)
    left, top = draw.uniform(0.0, 1.0 - side), draw.uniform(0.0, 1.0 - side)
    mirrored = recipe.flip_horizontal and draw.random() < 0.5
    upside_down = recipe.flip_vertical and draw.random() < 0.5
    turns = draw.randrange(4) if recipe.quarter_turns and square else 0
    brightness = draw.uniform(1.0 - recipe.brightness, 1.0 + recipe.brightness)
    red, green, blue = (brightness * draw.uniform(1.0 - recipe.color, 1.0 + recipe.color) for _ in range(3))
    contrast = draw.uniform(1.0 - recipe.contrast, 1.0 + recipe.contrast)
    reach = math.log1p(recipe.gamma)
    gamma = math.exp(draw.uniform(-reach, reach))
    inverted = draw.random() < recipe.invert
    box, gains = (left, top, left + side, top + side), (red, green, blue)
    return Augmentation(box, mirrored, upside_down, turns, gains, contrast, gamma, inverted, recipe.outputs)
