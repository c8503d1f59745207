"""How much may lie on disk for the people who use the application."""

import os
import time
from contextlib import suppress
from pathlib import Path

GIBIBYTE = 1 << 30
# Of all files of the application, and of those of one page.
TOTAL_BYTES, PAGE_BYTES = 8 * GIBIBYTE, 2 * GIBIBYTE
# Walking a folder takes time, too.
MEASURE_SECONDS = 1.0


def bytes_below(folder: Path) -> int:
    """Sizes of the files below a folder, some of which may disappear meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


class Room:
    """A limit of the bytes below a folder.

    Args:
        folder: which is measured at most once in `MEASURE_SECONDS`.
        limit: in bytes.
        full: the sentence for whoever wants more.
    """

    def __init__(self, folder: Path, limit: int, full: str):
        self._folder, self._limit, self._full = folder, limit, full
        self._bytes, self._measured = 0, float("-inf")

    def check(self, more: int = 0) -> None:
        """Nothing, where there is room for so many bytes.

        Raises:
            ValueError: one sentence, where there is none.
        """
        if time.monotonic() - self._measured > MEASURE_SECONDS:
            self._bytes, self._measured = bytes_below(self._folder), time.monotonic()
        if self._bytes + more > self._limit:
            raise ValueError(self._full)

    def take(self, bytes_: int) -> None:
        """Set so many bytes aside until the folder, which will hold them, is measured again.

        Raises:
            ValueError: one sentence, where there is no room for them.
        """
        self.check(bytes_)
        self._bytes += bytes_


def total_room(root: Path) -> Room:
    """What all pages together may keep."""
    return Room(root, TOTAL_BYTES, "The application keeps as many files as it may: try again when others have left.")


def page_room(folder: Path) -> Room:
    """What one page may keep."""
    return Room(
        folder, PAGE_BYTES, f"This page has {PAGE_BYTES >> 30} GiB of files: save what you need, and reload it."
    )


def remove_old(folder: Path, keep: str, seconds: float) -> None:
    """Delete what lies below a folder and was last written so long ago.

    Args:
        folder: what is searched.
        keep: name of a folder in it that stays as it is.
        seconds: the least age.
    """
    before = time.time() - seconds
    for place, folders, names in os.walk(folder, topdown=False):
        if Path(place).is_relative_to(folder / keep):
            continue
        for name in (*names, *folders):
            path = Path(place, name)
            # Taken at this moment, or a folder with newer files.
            with suppress(OSError):
                if path.lstat().st_mtime <= before:
                    path.rmdir() if path.is_dir() else path.unlink()
