"""Caches of keys and values: which of them hold images, and how a block of latents is written after a context.

Shape legend: R rows, G key/value heads, K context tokens, E head dimension.
"""

import copy
from typing import Any
from weakref import WeakSet

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

# Any class of cache may hold images (dynamic, static, quantized, the caller's own), so the note is kept beside them.
_CACHES_WITH_IMAGES: "WeakSet[Cache]" = WeakSet()


def note_images(cache: Cache) -> None:
    """Remember that image blocks were written to a cache, whose tokens then share RoPE ids."""
    _CACHES_WITH_IMAGES.add(cache)


def holds_images(cache: Cache | None) -> bool:
    """Whether image blocks were written to a cache, of whatever class."""
    return cache is not None and cache in _CACHES_WITH_IMAGES


def branch_cache(cache: Cache) -> Cache:
    """A cache that can grow without changing the original; the tensors are shared (growing makes new ones)."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    if holds_images(cache):
        note_images(branch)
    return branch


class FixedBlockLayer(DynamicLayer):
    """Cache layer with slots for one image block after its context: every update writes the same slots.

    Args:
        keys, values: (R, G, K + block length, E), the context and the slots of the block.
        context_length: K.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, context_length: int):
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.context_length = context_length
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if torch.is_grad_enabled():
            # A backward pass reads what every step saw, so no step may overwrite it.
            keys, values = (states[:, :, : self.context_length] for states in (self.keys, self.values))
            return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)
        self.keys[:, :, self.context_length :] = key_states
        self.values[:, :, self.context_length :] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.context_length


def first_rows(cache: Cache, rows: int) -> Cache:
    """A cache of `FixedBlockLayer` seen by its first rows only; shares memory."""
    layers: list[Any] = []
    for layer in cache.layers:
        assert isinstance(layer, FixedBlockLayer)
        layers.append(FixedBlockLayer(layer.keys[:rows], layer.values[:rows], layer.context_length))
    return Cache(layers=layers)


def layer_states(cache: Cache, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (R, G, K, E) that a layer of a cache of attention layers holds."""
    layer = cache.layers[index]
    assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None
    return layer.keys, layer.values
