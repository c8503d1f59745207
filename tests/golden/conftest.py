"""Fixtures of the golden tests: the records, and the model that their checkpoint folder holds."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from .records import Golden
from .reference import RecordImages, load_model

GOLDEN = pytest.StashKey[Golden]()


def _golden(config: pytest.Config) -> Golden:
    if GOLDEN not in config.stash:
        config.stash[GOLDEN] = Golden(config.getoption("--golden"), config.getoption("--device"))
    return config.stash[GOLDEN]


def _is_ours(path: Path) -> bool:
    return path.parent == Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """The account is closed after everything else has been compared."""
    items.sort(key=lambda item: _is_ours(item.path) and item.path.name == "test_completeness.py")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    """Fail a test with everything that differed, not with the first difference."""
    ours = _is_ours(pyfuncitem.path)
    try:
        result = yield
    except BaseException as error:
        for mismatch in _golden(pyfuncitem.config).take_mismatches() if ours else []:
            error.add_note(mismatch)
        raise
    mismatches = _golden(pyfuncitem.config).take_mismatches() if ours else []
    if mismatches:
        pytest.fail(f"{len(mismatches)} records differ:\n" + "\n".join(mismatches), pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config):
    if GOLDEN not in config.stash:
        return
    golden = config.stash[GOLDEN]
    terminalreporter.section(f"golden records of {golden.folder}")
    for line in [*golden.summary(), "", "not compared:", *golden.exclusions_used()]:
        terminalreporter.write_line(line)


# Arguments of tests that represent every recorded run of a kind.
RUNS: dict[str, Callable[[Golden], list[str]]] = {
    "t2i_run": lambda golden: golden.runs("infer.json", "/t2i", having="prompt"),
    "t2i_batch": lambda golden: golden.runs("infer.json", "/t2i", having="prompts"),
    "edit_run": lambda golden: golden.runs("infer.json", "/edit"),
    "think_run": lambda golden: golden.runs("infer.json", "/think", having="think"),
    "reconstruction_ver0": lambda golden: [run for run in golden.runs("infer.json", "/think") if "ver0" in run],
    "reconstruction_ver1": lambda golden: [run for run in golden.runs("infer.json", "/think") if "ver1" in run],
    "train_pack": lambda golden: golden.runs("train.json", "", having="samples"),
    "dropout_pack": lambda golden: golden.runs("train.json", "", having="dropped_text_vit_vae"),
    "plain_pack": lambda golden: golden.runs("train.json", "", having="sequence_plan"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc):
    for name in RUNS.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, RUNS[name](_golden(metafunc.config)))


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Golden:
    return _golden(pytestconfig)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """The records were made with one thread; more would only change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model(golden: Golden):
    """The checkpoint of the folder in float32, in evaluation mode."""
    return load_model(golden)


@pytest.fixture(scope="session")
def images(golden: Golden) -> RecordImages:
    """The folder's images through the package's image processor."""
    return RecordImages(golden)
