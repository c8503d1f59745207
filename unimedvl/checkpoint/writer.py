"""Checkpoint folders written so that neither memory nor an interruption limits their size.

Tensors pass through one piece at a time, from mapped files into a folder that gets its name only when it is whole.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..modeling_unimedvl.upstream_weights_unimedvl import FLOAT_TYPES, StoredTensor, map_tensor
from ..utils.claims import only_writer
from ..utils.whole_files import replacing_folder

TYPE_NAMES = {dtype: name for name, dtype in FLOAT_TYPES.items()}
# Values that pass through memory at a time.
PIECE = 1 << 22


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor on its way: where it lies, and the shape and type in which it is written."""

    stored: StoredTensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the values as written."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def total_bytes(tensors: Mapping[str, OutgoingTensor]) -> int:
    """Size of the tensors without headers."""
    return sum(tensor.num_bytes for tensor in tensors.values())


def require_new(target: Path) -> None:
    """Refuse a folder in use, before anything is loaded.

    Raises:
        ValueError: if `target` exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty: choose another folder.")


def copy_notices(source: Path, target: Path) -> None:
    """Take a checkpoint's license along to what is made of it."""
    for name in ("LICENSE", "NOTICE"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextmanager
def new_folder(target: Path, num_bytes: int) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends and disappears when it fails.

    A killed run leaves it unnamed; the next run into the same target clears it.

    Args:
        target: the folder; it must not exist, or be empty.
        num_bytes: room that the disk must have.

    Raises:
        ValueError: if another run writes `target`, or if the disk refuses or has less room than `num_bytes`.
    """
    lock_path = target.with_name(f".{target.name}.lock")
    try:
        with (
            only_writer(target, lock_path, remove_lock=True),
            replacing_folder(target, num_bytes=num_bytes) as partial,
        ):
            yield partial
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot write {target} ({reason}): make room, or choose another folder.") from error


def write_files(files: Mapping[Path, Mapping[str, OutgoingTensor]], progress: bool) -> None:
    """Write safetensors files one after the other, with one progress bar over all of them.

    Args:
        files: the tensors of each file, by their names in it.
        progress: whether a terminal shows the bar.

    Raises:
        ValueError: if a finite value is too large for float16.
    """
    total = sum(map(total_bytes, files.values()))
    with tqdm(
        total=total, unit="B", unit_scale=True, desc="Writing weights", disable=None if progress else True
    ) as bar:
        for path, items in files.items():
            write_safetensors(path, items, bar.update)


def write_safetensors(path: Path, items: Mapping[str, OutgoingTensor], advance: Callable[[int], object]) -> None:
    """Write one safetensors file piece by piece.

    The library's own writers (`save_file`, `serialize_file`) want all tensors of a file at once, which for a cast
    29 GB `ema.safetensors` no memory holds. The format: the header's length in 8 bytes, the header as JSON padded to
    8 bytes, then the tensors without gaps, widest type first so that each is aligned.

    Args:
        path: the file.
        items: its tensors by name.
        advance: called with the number of bytes of each piece.

    Raises:
        ValueError: if a finite value is too large for float16.
    """
    ordered = dict(sorted(items.items(), key=lambda entry: -entry[1].dtype.itemsize))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, item in ordered.items():
        span = [offset, offset + item.num_bytes]
        header[name] = {"dtype": TYPE_NAMES[item.dtype], "shape": list(item.shape), "data_offsets": span}
        offset = span[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, item in ordered.items():
            for piece in map_tensor(item.stored).reshape(-1).split(PIECE):
                cast = piece.to(item.dtype)
                if cast.dtype == torch.float16 and bool((cast.isinf() & ~piece.isinf()).any()):
                    raise ValueError(f"{name} holds values too large for float16: choose bfloat16 or float32.")
                handle.write(cast.view(torch.uint8).numpy())
                advance(cast.nbytes)
