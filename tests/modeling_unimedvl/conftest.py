"""A tiny model for each module of tests, and a question about an image."""

import pytest

from tests.tiny_inputs import conversation
from tests.tiny_model import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def question(model):
    return conversation(model.config, [("vit", 2, 3), [3, 4, 5]], seed=1, answer=True)
