"""Bytes of the tensors that are alive at one time, counted operation by operation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class LiveBytes:
    """Storages made while counting: their sum at its highest, and the largest one."""

    peak: int = 0
    largest: int = 0
    _alive: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        self._alive[reference.cdata] = (reference, storage.nbytes())
        self.largest = max(self.largest, storage.nbytes())

    def count(self) -> int:
        """Bytes that are alive now."""
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        alive = sum(size for _, size in self._alive.values())
        self.peak = max(self.peak, alive)
        return alive


class _Mode(TorchDispatchMode):
    def __init__(self, live: LiveBytes):
        super().__init__()
        self.live = live

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(leaf.untyped_storage()).cdata for leaf in tree_leaves(args) if _is_tensor(leaf)}
        for leaf in filter(_is_tensor, tree_leaves(result)):
            if StorageWeakRef(leaf.untyped_storage()).cdata not in given:
                self.live.see(leaf)
        self.live.count()
        return result


def _is_tensor(value) -> bool:
    return isinstance(value, torch.Tensor)


@contextmanager
def live_bytes() -> Iterator[LiveBytes]:
    """Counts the storages that operations of the block make."""
    live = LiveBytes()
    with _Mode(live):
        yield live
