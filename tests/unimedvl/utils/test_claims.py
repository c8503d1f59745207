"""A folder belongs to one run, is written by one at a time, and is ignored by Git."""

import multiprocessing
import subprocess

import pytest

from unimedvl.utils.claims import claim_folder, keep_out_of_git, only_writer


def claim(folder, **identity):
    claim_folder(folder, identity, mark="run.json", kind="run", words={"state": "the state of the source"})


def test_a_folder_is_claimed_once_for_each_run(tmp_path):
    folder = tmp_path / "new" / "out"
    claim(folder, model="a", state=(1, 2))
    (folder / "result").touch()
    claim(folder, model="a", state=(1, 2))
    with pytest.raises(ValueError, match="holds another run .different: model, the state of the source.: choose"):
        claim(folder, model="b", state=[1])
    with pytest.raises(ValueError, match="holds another run .different: model"):
        claim(folder, state=[1, 2])


def test_a_folder_with_other_files_is_not_claimed(tmp_path):
    (tmp_path / "run.json.7-ab.partial").touch()
    (tmp_path / ".gitignore").touch()
    claim(tmp_path, model="a")
    (tmp_path / "run.json").unlink()
    (tmp_path / "thesis").touch()
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        claim(tmp_path, model="a")


@pytest.mark.parametrize("make", [keep_out_of_git, lambda folder: claim(folder, model="a")])
def test_git_ignores_results(make, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    make(tmp_path / "out")
    (tmp_path / "out" / "image.png").touch()
    status = subprocess.run(["git", "-C", tmp_path, "status", "--porcelain"], capture_output=True, check=True)
    assert status.stdout == b""


def hold(folder, held, end):
    with only_writer(folder, folder / "inner" / ".lock"):
        held.set()
        end.wait(60)


def test_one_run_writes_at_a_time_and_a_killed_one_keeps_nobody_out(tmp_path):
    context = multiprocessing.get_context("fork")
    held, end, lock = context.Event(), context.Event(), tmp_path / "inner" / ".lock"
    process = context.Process(target=hold, args=(tmp_path, held, end))
    process.start()
    assert held.wait(60)
    with pytest.raises(ValueError, match="another run is writing"), only_writer(tmp_path, lock):
        raise AssertionError("the block was entered")
    process.kill()
    process.join()
    with only_writer(tmp_path, lock, remove_lock=True):
        assert lock.exists()
    assert not lock.exists()
