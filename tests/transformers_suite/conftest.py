"""What the common tests of transformers need around them."""

from collections.abc import Iterator

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from unimedvl import register

MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_training_test",
    "torch_compile_test",
)
MODEL_MAPPINGS = (
    transformers.MODEL_MAPPING,
    transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING,
)


def pytest_configure(config: pytest.Config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of the common tests of transformers")


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The installed classes in the auto classes while the tests of a module run.

    transformers knows no way back from `register`, and other tests of this process load remote code.
    """
    mappings = (CONFIG_MAPPING, PROCESSOR_MAPPING, IMAGE_PROCESSOR_MAPPING, *MODEL_MAPPINGS)
    before = [dict(mapping._extra_content) for mapping in mappings]
    register()
    yield
    for mapping, content in zip(mappings, before, strict=True):
        mapping._extra_content.clear()
        mapping._extra_content.update(content)
