"""A drawn data folder and the records built from it, shared by the tests of the Observation level."""

import os
from pathlib import Path

import pytest

from tests.unimed5m.mini_folder import write_folder
from unimedvl.unimed5m.mini import MiniSource
from unimedvl.unimed5m.schema import Record


@pytest.fixture(scope="session")
def mini_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of the compact data, with drawn images."""
    return write_folder(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="session")
def mini_records(mini_folder: Path) -> list[Record]:
    """Every record of that folder: all tasks, both splits."""
    return list(MiniSource().records(mini_folder))


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """The real compact data, where the machine has it."""
    name = os.environ.get("UNIMED_MINI", "")
    if not Path(name).is_dir() or not name:
        pytest.skip("UNIMED_MINI does not name the folder of the compact data")
    return Path(name)
