"""Checkpoints are whole or absent, in the order of their steps, and just as many stay as were asked for."""

import shutil
from pathlib import Path

import pytest

from unimedvl.training.checkpoints import checkpoints, keep_newest, whole_folder


def write(output: Path, *steps: int) -> None:
    for step in steps:
        with whole_folder(output / f"checkpoint-{step}") as partial:
            (partial / "state.json").write_text("{}")


def names(output: Path) -> set[str]:
    return {path.name for path in output.iterdir()}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_newest_stay_by_number_and_exactly_so_many(tmp_path, count):
    # By name 10 would come before 9.
    steps = [8, 9, 10, 11]
    write(tmp_path, *steps)
    keep_newest(tmp_path, count)
    assert names(tmp_path) == {f"checkpoint-{step}" for step in steps[-count:]}
    assert checkpoints(tmp_path) == [tmp_path / f"checkpoint-{step}" for step in steps[-count:]]


def test_what_is_no_whole_checkpoint_neither_counts_nor_goes(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    (tmp_path / "checkpoint-4" / "state.json").write_text("cut")  # another size than was noted
    (tmp_path / "checkpoint-best").mkdir()
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "final")
    (tmp_path / ".checkpoint-0.removed").mkdir()  # what a kill left of an earlier removal
    keep_newest(tmp_path, 2)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-best", "final"}
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-2", tmp_path / "checkpoint-3"]


def test_a_folder_that_fails_while_it_is_written_never_appears(tmp_path):
    with pytest.raises(ValueError, match="no room"):
        with whole_folder(tmp_path / "checkpoint-1") as partial:
            (partial / "state.json").write_text("{}")
            raise OSError(28, "no room")
    assert not names(tmp_path)
