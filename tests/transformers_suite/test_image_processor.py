"""The common tests of transformers for image processors."""

import unittest

import pytest
import torch

from tests.transformers_suite.distribution import common_tests, leave_out
from tests.transformers_suite.not_applicable import IMAGE_PROCESSOR
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor

pytestmark = pytest.mark.medium

image_processing = common_tests("test_image_processing_common")


class SmallImages(image_processing.ImageProcessingTester):
    """Images of up to 120 pixels for a processor that makes at most 56 of them."""

    def __init__(self, parent: unittest.TestCase):
        transform = {"max_image_size": 56, "min_image_size": 28, "image_stride": 14, "max_pixels": 4096}
        super().__init__(parent, batch_size=3, max_resolution=120, understanding_transform=transform)

    def _get_image_processing_classes(self):
        return {"pil": UniMedVLImageProcessor}


@leave_out(IMAGE_PROCESSOR)
class TestImageProcessor(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = SmallImages

    def check_patches(self, **kind):
        """What `test_call_*` ask of images in one tensor, for patches of all images in one row after the other."""
        processor = UniMedVLImageProcessor(**self.image_processor_dict)
        images = self.image_processor_tester.prepare_image_inputs(**kind)
        alone = [processor(image, return_tensors="pt") for image in images]
        together = processor(images, return_tensors="pt")
        for image, encoded in zip(images, alone, strict=True):
            height, width = (image.height, image.width) if not kind else image.shape[-2:]
            if kind == {"numpify": True}:
                height, width = image.shape[:2]
            assert encoded.image_grid_thw.tolist() == [[1, *processor.patch_grid(height, width)]]
            assert encoded.pixel_values.shape == (encoded.image_grid_thw.prod(), processor.patch_size**2 * 3)
        assert torch.equal(together.pixel_values, torch.cat([encoded.pixel_values for encoded in alone]))
        assert torch.equal(together.image_grid_thw, torch.cat([encoded.image_grid_thw for encoded in alone]))

    def test_call_pil(self):
        self.check_patches()

    def test_call_numpy(self):
        self.check_patches(numpify=True)

    def test_call_pytorch(self):
        self.check_patches(torchify=True)
