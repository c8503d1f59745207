"""Where a host would wait for a GPU: counted on a CPU, or on the meta device, which raises where values are read."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Results, or sizes of results, that the host has to wait for.
_READING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
_COPYING = ("_to_copy", "copy_")


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Counts, by the name of the operation, what makes a host wait while the block runs."""
    waits: Counter[str] = Counter()
    with _Calls(waits), _Operations(waits):
        yield waits


class _Calls(TorchFunctionMode):
    """Sees what never becomes an operation: lists of numbers, in both directions."""

    def __init__(self, waits: Counter[str]):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        literal = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if func is torch.Tensor.tolist or (literal and result.device.type != "cpu"):
            self.waits[func.__name__] += 1
        return result


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Counter[str]):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **kwargs)
        masked = name in _INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        counted = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in _READING or masked or counted or (name in _COPYING and _waits_for_copy(args, kwargs, result)):
            self.waits[name] += 1
        return result


def _waits_for_copy(args: tuple, kwargs: dict, result: torch.Tensor) -> bool:
    devices = {tensor.device.type for tensor in tree_leaves((args, result)) if isinstance(tensor, torch.Tensor)}
    return len(devices) > 1 and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
