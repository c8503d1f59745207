"""Files and folders that appear under their name complete and on the disk, or not at all.

What a killed process leaves has a name that ends in `PARTIAL_SUFFIX`: `NAME.PID-TOKEN.partial` for a file, of which
several writers may each have one, and `.NAME.partial` for a folder, which has one writer at a time.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
_PARTIAL_FILE = re.compile(rf"\.\d+(-[0-9a-f]+)?{re.escape(PARTIAL_SUFFIX)}$")

# Called with the path of each file just before it appears; the pipeline of shards notes names this way.
before_replacing: ContextVar[Callable[[Path], None] | None] = ContextVar("before_replacing", default=None)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A place to write a file that appears under `path` complete or not at all; its folder is made if it is missing.

    Several processes and threads may write the same file at once: the last one to finish counts.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        yield partial
        _sync(partial)
        announce = before_replacing.get()
        if announce is not None:
            announce(path)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path) -> None:
    """Remove the half-written files of killed runs below `folder`."""
    for path in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        if _PARTIAL_FILE.search(path.name):
            path.unlink(missing_ok=True)


def partial_folder(folder: Path) -> Path:
    """Where `replacing_folder` keeps `folder` until it is complete."""
    return folder.with_name(f".{folder.name}{PARTIAL_SUFFIX}")


@contextmanager
def scratch_folder(partial: Path, num_bytes: int = 0) -> Iterator[Path]:
    """An empty folder for the length of a block; what is left in it, also by a killed run before, is removed.

    Args:
        partial: the folder.
        num_bytes: room that the disk must have.

    Raises:
        OSError: if the disk refuses or has less room.
    """
    _remove(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(partial.parent).free
    if free < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    partial.mkdir()
    try:
        yield partial
    finally:
        _remove(partial)


@contextmanager
def replacing_folder(folder: Path, *, num_bytes: int = 0, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which appears as `folder` when the block ends without an error, all of it on the disk.

    It lies beside `folder`, so that giving it its name is one step.

    Args:
        folder: its name.
        num_bytes: room that the disk must have.
        overwrite: whether it replaces a folder of that name; otherwise only an empty one.

    Raises:
        OSError: if the disk refuses or has less room, or if there is a folder that may not be replaced.
    """
    with scratch_folder(partial_folder(folder), num_bytes) as partial:
        yield partial
        sync_files(partial)
        if overwrite and folder.exists():
            replaced = folder.with_name(f".{folder.name}.replaced{PARTIAL_SUFFIX}")
            _remove(replaced)
            os.replace(folder, replaced)
            os.replace(partial, folder)
            _remove(replaced)
        else:
            # On POSIX an empty folder gives way, and a full one is an error.
            if folder.is_dir():
                folder.rmdir()
            os.replace(partial, folder)


def sync_files(folder: Path) -> None:
    """Return when every file below `folder` is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
