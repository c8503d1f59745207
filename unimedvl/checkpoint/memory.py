"""Bytes of a checkpoint's weights, stored and in memory, from the shapes in its headers alone."""

import math
import re

from ..modeling_unimedvl.upstream_weights_unimedvl import StoredTensor

BYTES_PER_VALUE = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Linear weights that 4-bit and 8-bit loading replaces; the rest stays in bfloat16.
QUANTIZED = re.compile(r"language_model\..*\b(self_attn|mlp|mlp_moe_gen)\..*proj(_moe_gen)?\.weight$")
# 4 bits per value, and with double quantization one scale of 8 bits per 64 values and one of 32 per 64 * 256.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def stored_bytes(tensors: dict[str, StoredTensor]) -> int:
    """Bytes of all values as stored, without headers."""
    return sum(BYTES_PER_VALUE.get(stored.dtype, 1) * math.prod(stored.shape) for stored in tensors.values())


def estimate_memory(tensors: dict[str, StoredTensor]) -> dict[str, int]:
    """Bytes that the weights take in memory by loading type; activations and caches come on top.

    Args:
        tensors: the stored tensors by name, in either layout.

    Returns:
        Bytes for `float32`, `bfloat16`, and for `int8` and `nf4` through bitsandbytes, where the linear layers of both
        experts shrink and the rest stays bfloat16.
    """
    total = sum(math.prod(stored.shape) for stored in tensors.values())
    linear = sum(
        math.prod(stored.shape)
        for name, stored in tensors.items()
        if len(stored.shape) == 2 and QUANTIZED.search(name)
    )
    rest = total - linear
    return {
        "float32": 4 * total,
        "bfloat16": 2 * total,
        "int8": 2 * rest + linear,
        "nf4": 2 * rest + math.ceil(NF4_BYTES * linear),
    }


def size(num_bytes: int) -> str:
    """Bytes in decimal units, as disks and memory are sold."""
    value, unit = float(num_bytes), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"
