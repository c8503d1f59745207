"""What a stretch of a program does, counted on a processor: operations, bytes allocated, FLOPs, synchronizations.

An operation is a call that reaches the dispatcher below autograd and does work: every one but the views, of which
`_unsafe_view` is one. On a GPU it is about one kernel launch. Bytes allocated are those of the results that lie in
memory of their own: views and writes in place allocate nothing, and what a kernel takes for itself is not seen. FLOPs
follow torch's own formulas, and the same ones for attention on a processor, which torch does not count. A
synchronization is a call that would make the host of a GPU wait: it needs a value, or a shape that depends on values,
as reading a number or a list, `nonzero`, and indexing with a boolean mask, which finds its places by `nonzero`; or it
moves values between devices. Moves cannot be seen where there is one device: the meta device may take the place of the
other, and raises where a value is read.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
# What reads values: by packet, all overloads.
_READS = {
    _aten._local_scalar_dense,
    _aten.is_nonzero,
    _aten.equal,
    _aten.nonzero,
    _aten.masked_select,
    _aten.bincount,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
}
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPIES = {_aten._to_copy, _aten.copy_}


def _attention_flops(query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> int:
    """Two products over all pairs of (B, H, S, E) queries and (B, G, K, E) keys, masked or not."""
    return 2 * 2 * query.numel() * key.shape[-2]


def _attention_backward_flops(_: Any, query: torch.Tensor, key: torch.Tensor, *__: Any, **___: Any) -> int:
    """Five products: the scores once more, and the gradients of both factors of both forward products."""
    return 5 * 2 * query.numel() * key.shape[-2]


_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@dataclass
class Counts:
    """Sums of what was counted.

    Attributes:
        operations: calls that do work, by the name of the operator.
        allocated: bytes of results in memory of their own.
        flops: floating point operations of products, convolutions and attention.
        synchronizations: calls that would wait for a GPU, by name.
    """

    operations: Counter[str] = field(default_factory=Counter)
    allocated: int = 0
    flops: int = 0
    synchronizations: Counter[str] = field(default_factory=Counter)

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.operations - other.operations,
            self.allocated - other.allocated,
            self.flops - other.flops,
            self.synchronizations - other.synchronizations,
        )

    def summary(self) -> dict[str, Any]:
        """The sums as plain numbers."""
        return {
            "operations": self.operations.total(),
            "megabytes_allocated": self.allocated / 1e6,
            "gigaflop": self.flops / 1e9,
            "synchronizations": self.synchronizations.total(),
        }


class _Lists(TorchFunctionMode):
    """Counts lists that are read from a tensor, or sent to another device: what no call of the dispatcher shows."""

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sent = func in (torch.tensor, torch.as_tensor) and not (args and isinstance(args[0], torch.Tensor))
        if func is torch.Tensor.tolist or (sent and result.device.type != "cpu"):
            self.counts.synchronizations[func.__name__] += 1
        return result


class OperationCounter(TorchDispatchMode):
    """Counts while it is entered; `snapshot` may be called at any time.

    Example:

        with OperationCounter() as counter:
            model(**inputs)
            before = counter.snapshot()
            model(**inputs)
        second = counter.snapshot() - before
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts = Counts()
        self._lists = _Lists(self._counts)

    def __enter__(self) -> "OperationCounter":
        self._lists.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._lists.__exit__(*error)

    def snapshot(self) -> Counts:
        """What has been counted so far."""
        counts = self._counts
        return Counts(counts.operations.copy(), counts.allocated, counts.flops, counts.synchronizations.copy())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        results = func(*args, **given)
        packet = func.overloadpacket
        if func.is_view or packet is _aten._unsafe_view:
            return results
        name = packet.__name__
        self._counts.operations[name] += 1
        if packet in _FORMULAS:
            self._counts.flops += _FORMULAS[packet](*args, **given)
        elif packet in flop_registry:
            self._counts.flops += flop_registry[packet](*args, **given, out_val=results)
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, given))}
        for tensor in _tensors(results):
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._counts.allocated += storage.nbytes()
        sized = packet is _aten.repeat_interleave and given.get("output_size") is None
        if packet in _READS or sized or (packet in _COPIES and _waits_for_copy(args, given, results)):
            self._counts.synchronizations[name] += 1
        elif packet in _INDEXED and any(index.dtype == torch.bool for index in _tensors(args[1])):
            self._counts.synchronizations[f"{name} by a mask"] += 1
        return results


def _waits_for_copy(args: Any, given: dict[str, Any], results: Any) -> bool:
    devices = {tensor.device.type for tensor in _tensors((args, results))}
    return len(devices) > 1 and not (given.get("non_blocking") or (len(args) > 2 and args[2] is True))


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
