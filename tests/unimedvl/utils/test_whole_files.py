"""Files and folders appear whole or not at all, whatever happens while they are written."""

import errno
import os
import signal
import threading

import pytest

from unimedvl.utils.whole_files import remove_partials, replacing, replacing_folder, scratch_folder, sync_files


def killed_while(work) -> None:
    """Run `work` in a child that is killed within it."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_file_keeps_its_old_content_until_the_new_is_whole(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_killed_writer_of_a_file_leaves_only_what_is_removed_later(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first")

    def write():
        with replacing(path) as partial:
            partial.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    killed_while(write)
    (tmp_path / "download.partial").write_text("of the user")
    assert path.read_text() == "first" and len(list(tmp_path.iterdir())) == 3
    remove_partials(tmp_path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.txt", "download.partial"]


def test_threads_may_write_one_file_at_once(tmp_path):
    path, both = tmp_path / "a.txt", threading.Barrier(2)

    def write(letter: str):
        with replacing(path) as partial:
            partial.write_text(letter * 100_000)
            both.wait(60)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("a" * 100_000, "b" * 100_000) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_writer_of_a_folder_leaves_what_was_there(overwrite, tmp_path):
    folder = tmp_path / "out"
    if overwrite:
        folder.mkdir()
        (folder / "old").touch()

    def write():
        with replacing_folder(folder, overwrite=overwrite) as partial:
            (partial / "new").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    killed_while(write)
    assert [path.name for path in folder.glob("*")] == (["old"] if overwrite else [])
    with replacing_folder(folder, overwrite=overwrite) as partial:
        assert not list(partial.iterdir())
        (partial / "newer").touch()
    assert list(tmp_path.iterdir()) == [folder] and [path.name for path in folder.iterdir()] == ["newer"]


def test_a_folder_with_content_is_replaced_only_on_demand(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(OSError) as refused, replacing_folder(folder):
        pass
    assert refused.value.errno == errno.ENOTEMPTY
    assert list(tmp_path.iterdir()) == [folder] and (folder / "old").exists()


def test_a_folder_needs_its_room_before_it_is_filled(tmp_path):
    with pytest.raises(OSError, match="GB needed") as refused, scratch_folder(tmp_path / "out", 1 << 60):
        raise AssertionError("the block was entered")
    assert refused.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_every_file_below_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def noted(descriptor: int):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert not (tmp_path / "out").exists()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with replacing_folder(tmp_path / "out") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a").touch()
        (partial / "b").touch()
    assert sorted(os.path.basename(path) for path in synced) == ["a", "b"]
    sync_files(tmp_path / "nowhere")
