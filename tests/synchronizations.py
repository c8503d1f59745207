"""Where a host would wait for a device: seen on a CPU, and on the meta device, whose values nobody can read."""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result, or the size of whose result, the host has to wait for.
_READING = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Synchronizations(TorchDispatchMode):
    """Counts operations after which a host waits, by name; copies to a device count where they are not asynchronous."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name in _READING:
            self.counts[name] += 1
        elif name in _INDEXING and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        ):
            self.counts[name] += 1
        elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self.counts[name] += 1
        result = func(*args, **kwargs)
        if name in ("aten::_to_copy", "aten::copy_") and not _asynchronous(name, args, kwargs):
            moved = {tensor.device.type for tensor in tree_leaves((args, result)) if isinstance(tensor, torch.Tensor)}
            self.counts[name] += len(moved) > 1
        return result


def _asynchronous(name: str, args: tuple, kwargs: dict) -> bool:
    return bool(kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))


class Literals(TorchFunctionMode):
    """Counts tensors made on a device from Python numbers, which a device waits for unseen by dispatch modes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor) and result.device.type != "cpu"
        if made and not isinstance(args[0], torch.Tensor):
            self.counts[func.__name__] += 1
        return result
