"""Several processes do what one does, each with the whole model or with its share of it."""

from pathlib import Path

import pytest

from tests.training.outcomes import assert_close, history
from tests.training.processes import finish

ROOT = Path(__file__).resolve().parents[2]
FULL = {"accumulation": 2}


@pytest.fixture(scope="module")
def one(place, tmp_path_factory):
    """One process with two micro-batches a step."""
    from tests.training.conftest import write_recipe

    folder = tmp_path_factory.mktemp("one")
    finish(write_recipe(place, folder, "one", accumulation=2))
    return folder / "one"


def assert_same_course(left: Path, right: Path) -> None:
    assert_close(left, right)
    assert_close(left, right, folder="final-ema")
    for entry, other in zip(history(left), history(right), strict=True):
        assert entry == pytest.approx(other, rel=1e-4)


def test_two_processes_equal_one(one, recipe, tmp_path):
    finish(recipe("two"), processes=2)
    assert_same_course(one, tmp_path / "two")


def test_two_shares_equal_one_process(one, recipe, tmp_path):
    run = finish(recipe("shares", parallelism="fsdp2"), processes=2)
    assert_same_course(one, tmp_path / "shares")
    # Each process wrote its own share of weights, averages and moments.
    sizes = [path.stat().st_size for path in (tmp_path / "shares" / "checkpoint-4" / "shards").iterdir()]
    assert len(sizes) == 2 and max(sizes) < 0.75 * sum(sizes), run.said()
