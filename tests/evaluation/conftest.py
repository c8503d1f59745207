"""Small record folders with every task, in the layout of the compact collection and built."""

from pathlib import Path

import pytest

from tests.evaluation.painter import Painter, run
from tests.unimed5m.mini_folder import write_folder
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.mini import MiniSource


@pytest.fixture(scope="session")
def mini_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with drawn images: 12 training and 4 validation rows of each source."""
    return write_folder(tmp_path_factory.mktemp("compact"))


@pytest.fixture(scope="session")
def records(mini_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records built from it."""
    folder = tmp_path_factory.mktemp("records") / "built"
    build(MiniSource(), mini_data, folder, shards=2)
    return folder


@pytest.fixture(scope="session")
def finished(records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder of a finished run of the painter over the records, which no test changes, and its results."""
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(Painter(), records, out)


@pytest.fixture(scope="session")
def nano():
    """The shipped checkpoint, two sampler steps."""
    from unimedvl.evaluation.model_wrappers import open_model

    return open_model(str(NANO_DIRECTORY), steps=2, device="cpu")
