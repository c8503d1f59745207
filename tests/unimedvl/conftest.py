"""One tiny checkpoint for all tests of the command."""

from pathlib import Path

import pytest

from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.checkpoint.loading import Loaded, load


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "tiny"
    tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint) -> Loaded:
    return load(checkpoint)
