"""The shipped checkpoint, loaded once for all tests of the application, and the application as a server."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_cards.ui.mutations import seeds_in
from unimedvl.checkpoint.loading import Loaded, load
from unimedvl.hub_cards.ui.application import running


@pytest.fixture(scope="session")
def nano() -> Loaded:
    return load(device="cpu")


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return seeds_in(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(nano, place: Path) -> Iterator[str]:
    before, tempfile.tempdir = tempfile.tempdir, str(place)
    try:
        with running(nano) as url:
            yield url
    finally:
        tempfile.tempdir = before
