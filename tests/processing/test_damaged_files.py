"""Damaged copies of every readable format: an image or one sentence, never another exception."""

import random

import numpy as np
import pytest
from PIL import Image, features

from tests.processing.conftest import random_image
from tests.processing.medical_files import make_dicom, make_nifti
from tests.processing.test_bad_inputs import npy_of
from tests.processing.test_medical_formats import RAMP, VOLUME, file_of
from unimedvl.processing.medical_formats_unimedvl import load_medical_image

ENCODED = ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM"]
ENCODED += ["AVIF"] * features.check("avif") + ["JPEG2000"] * features.check("jpg_2000")
FILES = {
    **{name: file_of(random_image(60, 50), name) for name in ENCODED},
    "npy": npy_of(np.arange(600, dtype=np.float32).reshape(20, 30)),
    "DICOM": make_dicom(RAMP),
    "NIfTI": make_nifti(VOLUME),
}


def damaged_copies(content: bytes, count: int, seed: int):
    draw = random.Random(seed)
    for index in range(count):
        copy = bytearray(content)
        if index % 3 == 0:
            del copy[draw.randrange(1, len(copy)) :]
        # Headers decide most; half of the changes fall there.
        for _ in range(draw.randint(1, 8)):
            end = len(copy) if draw.random() < 0.5 else min(len(copy), 128)
            copy[draw.randrange(end)] = draw.randrange(256)
        yield bytes(copy)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:The DICOM file declares burned-in")
def test_a_damaged_file_gives_an_image_or_one_sentence(name, capfd):
    refused = 0
    for content in damaged_copies(FILES[name], 120, seed=len(name)):
        try:
            assert isinstance(load_medical_image(content), Image.Image)
        except ValueError as error:
            refused += 1
            assert len(str(error).split()) >= 4 and "\n" not in str(error)
    assert refused
    assert "Traceback" not in capfd.readouterr().err
