"""Claims on folders: which run a folder belongs to, that one run writes at a time, and that Git ignores results."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .json_files import read_json, write_json
from .whole_files import PARTIAL_SUFFIX

_IGNORE = ".gitignore"
_IGNORE_ALL = b"*\n"


def claim_folder(
    folder: Path, identity: Mapping[str, Any], *, mark: str, kind: str, words: Mapping[str, str] | None = None
) -> None:
    """Make a new or empty folder that of a run, or find that it is that of the same run already.

    Images of patients may be among the results: Git ignores the folder.

    Args:
        folder: the folder.
        identity: what distinguishes the run from others, values that JSON can hold.
        mark: name of the file that keeps `identity` in the folder.
        kind: what the folder holds, for messages: "run", "build".
        words: for messages, what keys of `identity` are called.

    Raises:
        ValueError: if the folder is that of another run, or holds anything else.
    """
    identity, words = json.loads(json.dumps(identity)), words or {}
    if (folder / mark).is_file():
        found = read_json(folder / mark)
        if found != identity:
            differing = [key for key in {*found, *identity} if found.get(key) != identity.get(key)]
            names = ", ".join(sorted(words.get(key, key) for key in differing))
            raise ValueError(f"{folder} holds another {kind} (different: {names}): choose another folder.")
        return
    # A run that was killed before its mark was whole leaves these.
    if folder.exists() and any(path.name != _IGNORE and path.suffix != PARTIAL_SUFFIX for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no {kind}: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _IGNORE).write_bytes(_IGNORE_ALL)
    write_json(folder / mark, identity)


def keep_out_of_git(folder: Path) -> None:
    """Make the folder one for results: images of patients never slip into a repository that it happens to lie in.

    Raises:
        ValueError: where it holds something else, which results would overwrite.
    """
    ignore = folder / _IGNORE
    if folder.exists() and any(folder.iterdir()) and not (ignore.is_file() and ignore.read_bytes() == _IGNORE_ALL):
        raise ValueError(f"{folder} holds other files; choose a new folder for the results")
    folder.mkdir(parents=True, exist_ok=True)
    ignore.write_bytes(_IGNORE_ALL)


@contextmanager
def only_writer(folder: Path, lock_path: Path, *, remove_lock: bool = False) -> Iterator[None]:
    """Keep other runs out of `folder` until the block ends; a killed process keeps nobody out.

    Args:
        folder: for the message.
        lock_path: the file that is locked; its folder is made if it is missing.
        remove_lock: whether the file goes at the end.

    Raises:
        ValueError: if another run is writing there.
        OSError: if there cannot be such a file.
    """
    lock = FileLock(lock_path, timeout=0)
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another run is writing {folder}: wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        lock.release()
        if remove_lock:
            lock_path.unlink(missing_ok=True)
