"""Which file a row of a table means by a name, however the name is spelled."""

import functools
import os
import posixpath
import re
import unicodedata
from pathlib import Path

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|.*;base64,)", re.DOTALL)


def image_name(folder: Path, name: str) -> str:
    """The path of a file below a folder, as it is on the disk: one for all spellings of a name.

    These mean the same file: "a/b.png", "./a/b.png", "a//b.png", "a/../a/b.png", a backslash for a slash (unless a
    file has one in its name), spaces around the name, a leading slash (publishers' own loaders drop it), the absolute
    path, and letters with accents composed or decomposed (macOS stores the latter).

    Args:
        folder: where the names start from.
        name: as the row has it.

    Returns:
        The path below `folder` with slashes; the name's own spelling, simplified, where there is no such file.

    Raises:
        ValueError: one line, for an address or a name that leads out of the folder.
    """
    if _ADDRESS.match(name.strip()):
        raise ValueError(f"{name.strip()[:80]}: expected a file's name, found an address: save the image in {folder}.")
    plain = ""
    for spelling in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
        plain = _below(folder, spelling)
        stored = _stored(folder, plain)
        if stored is not None:
            return stored
    return plain


def same_name(name: str) -> str:
    """A name with its accents composed (NFC), so that groups and labels are the same whatever system wrote it."""
    return unicodedata.normalize("NFC", name)


def file_group(folder: Path, name: str) -> str:
    """What a file is grouped by where no patient is stated: its path below the folder, behind links within it."""
    path = folder / name
    if os.path.exists(path) and path.resolve().is_relative_to(folder.resolve()):
        name = path.resolve().relative_to(folder.resolve()).as_posix()
    return same_name(name)


def _below(folder: Path, spelling: str) -> str:
    """The name as a path below the folder, without the detours in it."""
    if spelling.startswith("/"):
        for root in (folder.absolute(), folder.resolve()):
            if Path(spelling).is_relative_to(root):
                spelling = Path(spelling).relative_to(root).as_posix()
                break
    plain = posixpath.normpath(spelling.lstrip("/"))
    if plain == ".." or plain.startswith("../"):
        raise ValueError(f"{spelling}: expected an image below {folder}, found a name that leads out of it.")
    return plain


def _stored(folder: Path, plain: str) -> str | None:
    """The path below the folder as the disk has it, None if there is none."""
    path = folder
    for part in plain.split("/"):
        if not os.path.lexists(path / part):
            found = _composed(path).get(same_name(part))
            if found is None:
                return None
            part = found
        path = path / part
    return path.relative_to(folder).as_posix()


def _composed(folder: Path) -> dict[str, str]:
    """The names in a folder by their composed form."""
    return _listed(str(folder), folder.stat().st_mtime_ns) if folder.is_dir() else {}


@functools.lru_cache(maxsize=64)
def _listed(folder: str, changed: int) -> dict[str, str]:
    """See `_composed`; `changed` is the folder's time of change."""
    return {same_name(name): name for name in sorted(os.listdir(folder))}
