"""A tiny model for each module of tests, a question about an image, and an image to edit with its noise."""

import pytest

from tests.tiny_inputs import conversation, initial_latents, noises
from tests.tiny_model import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def question(model):
    return conversation(model.config, [("vit", 2, 3), [3, 4, 5]], seed=1, answer=True)


@pytest.fixture(scope="module")
def edit(model):
    row = conversation(model.config, [("latent", 2, 3), ("vit", 2, 2), [3, 4]], seed=1)
    return {**row, "latents": initial_latents(model.config, [(2, 3)]), "vae_noise": noises(model.config, row)}
