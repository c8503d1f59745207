"""SHA-256 digests of files, of sets of files, and of tensors."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_END_BYTES = 1 << 20


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over names and whole contents of files, in the order given, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def hash_ends(files: Iterable[Path]) -> str:
    """SHA-256 over name, size and both ends of each file, in the order given, as hexadecimal digits.

    Cheap for tens of gigabytes of weights, and changed by any training step, which touches every tensor.
    """
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as handle:
            digest.update(handle.read(_END_BYTES))
            handle.seek(max(0, size - _END_BYTES))
            digest.update(handle.read())
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, "torch.Tensor"]) -> str:
    """SHA-256 over names and values in float32, in the order of the names, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
