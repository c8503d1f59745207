"""The common tests of transformers for processors, on the tiny tokenizer and image processor."""

import unittest

import numpy as np
import pytest
from PIL import Image

from tests.tiny import make_tokenizer
from tests.transformers_suite.distribution import common_tests, leave_out
from tests.transformers_suite.not_applicable import PROCESSOR
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

pytestmark = pytest.mark.medium

processing = common_tests("test_processing_common")


@leave_out(PROCESSOR)
class TestProcessor(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = UniMedVLProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return make_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        transform = {"max_image_size": 56, "min_image_size": 28, "image_stride": 14}
        return UniMedVLImageProcessor(understanding_transform=transform)

    def prepare_image_inputs(self, batch_size: int | None = None):
        levels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        image = Image.fromarray(levels)
        return image if batch_size is None else [[image]] * batch_size
