"""The shipped checkpoint, loaded once for all tests of the application."""

import pytest

from unimedvl.checkpoint.loading import Loaded, load


@pytest.fixture(scope="session")
def nano() -> Loaded:
    return load(device="cpu")
