"""A processor with transforms small enough for tests, and images to feed it."""

import numpy as np
import pytest
from PIL import Image

from tests.tiny import make_tokenizer
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

SMALL_TRANSFORMS = {
    "understanding_transform": {"max_image_size": 56, "min_image_size": 28, "image_stride": 14, "max_pixels": 3136},
    "vit_transform": {"max_image_size": 70, "min_image_size": 28, "image_stride": 14, "max_pixels": 4900},
    "vae_transform": {"max_image_size": 64, "min_image_size": 32, "image_stride": 16, "max_pixels": 4096},
}


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def image_processor():
    return UniMedVLImageProcessor(**SMALL_TRANSFORMS)


@pytest.fixture
def processor(image_processor, tokenizer):
    return UniMedVLProcessor(image_processor, tokenizer)
