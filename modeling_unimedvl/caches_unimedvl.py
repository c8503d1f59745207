"""Caches of keys and values: which of them hold images, and how they grow without being copied.

Shape legend: B batch, G key/value heads, K context tokens, S new tokens, E head dimension.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, StaticCache

_NOTE = "_unimedvl_images"
_PADDED = "_unimedvl_padded"


@dataclass
class ImageNote:
    """What a cache cannot say of itself: how far RoPE ids lag behind its tokens, because images share one.

    Attributes:
        offset_B: int64 (B,), the RoPE id of the next token minus the number of valid tokens; None where the mask came
            ready-made, so that valid tokens cannot be counted.
        end: int64, 0-dim, tokens in the cache up to the last image; a cache that was cropped further is another.
    """

    offset_B: torch.Tensor | None
    end: torch.Tensor


def note_images(
    cache: Cache,
    position_ids_BS: torch.Tensor,
    block_ids_BS: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_length: int,
) -> None:
    """Remember that image blocks are written to a cache, of whatever class. Copies of the cache keep the note.

    Args:
        position_ids_BS: RoPE ids of the tokens that are written.
        block_ids_BS: their image blocks, -1 for text.
        attention_mask: 0 for padding, (B, K + S), None without padding, or a mask that is already complete.
        past_length: K, tokens that the cache holds before them.
    """
    length = position_ids_BS.shape[1]
    columns = torch.arange(length, device=position_ids_BS.device)
    offset = None
    if attention_mask is None:
        offset = position_ids_BS[:, -1] + 1 - past_length - length
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        valid = attention_mask.to(position_ids_BS.device) > 0
        last = torch.where(valid[:, -length:], columns, 0).max(dim=-1, keepdim=True).values
        offset = position_ids_BS.gather(1, last)[:, 0] + 1 - valid.sum(dim=-1)
    end = past_length + 1 + torch.where(block_ids_BS >= 0, columns, -1).max()
    setattr(cache, _NOTE, ImageNote(offset, end))


def first_position(
    cache: Cache, attention_mask: torch.Tensor | None, batch_size: int, length: int
) -> torch.Tensor | int:
    """RoPE id of the first of S new tokens after a cache, int64 (B, 1) or one number for all rows.

    Args:
        attention_mask: (B, K + S), 0 for padding; None without padding.
        batch_size, length: B and S.

    Raises:
        ValueError: for a cache with images whose RoPE ids cannot be known any more.
    """
    past_length = cache.get_seq_length()
    count = past_length if attention_mask is None else (attention_mask[:, :-length] > 0).sum(dim=-1, keepdim=True)
    note = getattr(cache, _NOTE, None)
    if note is None:
        return count
    known = note.offset_B is not None and len(note.offset_B) == batch_size
    if not known or int(past_length) < int(note.end):
        raise ValueError(
            "Continuing this cache needs position_ids: it holds images, whose tokens share RoPE ids, and its rows or "
            "its length changed since they were read, or they were read with a ready-made mask."
        )
    return note.offset_B.to(count.device if isinstance(count, torch.Tensor) else None)[:, None] + count


def note_padding(cache: Cache, attention_mask: torch.Tensor | None) -> None:
    """Remember whether generation reads padding into a cache: once, where reading the mask again would make a device
    wait in every step.

    Args:
        attention_mask: of the prompts, 0 for padding; None without padding.
    """
    whole = attention_mask is None or (attention_mask.dim() == 2 and bool((attention_mask > 0).all()))
    setattr(cache, _PADDED, not whole)


def holds_padding(cache: Cache) -> bool:
    """Whether `note_padding` saw padding, or nothing yet."""
    return getattr(cache, _PADDED, True)


class _Store:
    """Memory that several layers may see a beginning of; only what was written last may be continued in place."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int):
        self.keys, self.values, self.filled = keys, values, filled


class GrowingLayer(DynamicLayer):
    """Cache layer that grows in place: memory for what follows is taken ahead, so that a new token moves nothing.

    `keys` and `values` are views of the part that is filled, and what they show never changes. A copy of a layer, or
    one that was cropped, reordered or repeated, moves to memory of its own the next time it grows, unless nothing was
    written behind it.
    """

    keys: Any
    values: Any
    # Room that is taken ahead: at least this many tokens, and an eighth of what is there.
    room = 256

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.store: _Store | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any):
        """Append keys and values (B, G, S, E) and return all of them."""
        # A backward pass reads what a query saw, even of keys that have no gradients themselves.
        plain = type(key_states) is torch.Tensor and not torch.compiler.is_compiling()
        if torch.is_grad_enabled() or not plain:
            self.store = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length, added = self.get_seq_length(), key_states.shape[-2]
        store = self.store
        if store is None or not self._may_append(store, key_states, value_states):
            store = self.store = self._grown(length, key_states, value_states)
        end = length + added
        store.keys[:, :, length:end] = key_states
        store.values[:, :, length:end] = value_states
        store.filled = end
        self.keys, self.values = store.keys[:, :, :end], store.values[:, :, :end]
        return self.keys, self.values

    def _may_append(self, store: _Store, key_states: torch.Tensor, value_states: torch.Tensor) -> bool:
        length, added = self.get_seq_length(), key_states.shape[-2]
        if store.filled != length or length + added > store.keys.shape[2]:
            return False
        pairs = ((store.keys, self.keys, key_states), (store.values, self.values, value_states))
        return all(
            memory.data_ptr() == seen.data_ptr()
            and memory.shape[:2] == seen.shape[:2]
            and memory.dtype == seen.dtype == new.dtype
            and (torch.is_inference_mode_enabled() or not memory.is_inference())
            for memory, seen, new in pairs
        )

    def _grown(self, length: int, key_states: torch.Tensor, value_states: torch.Tensor) -> _Store:
        total = length + key_states.shape[-2]
        capacity = total + max(self.room, total // 8)

        def buffer(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            dtype = torch.promote_types(old.dtype, new.dtype) if length else new.dtype
            made = new.new_empty(new.shape[0], new.shape[1], capacity, new.shape[3], dtype=dtype)
            if length:
                made[:, :, :length] = old
            return made

        return _Store(buffer(self.keys, key_states), buffer(self.values, value_states), length)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.store = None


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a language model, whose layers grow in place."""
    cache = DynamicCache(config=config)
    grow_in_place(cache)
    return cache


def grow_in_place(cache: DynamicCache) -> None:
    """Let the empty layers of a dynamic cache grow in place; offloaded caches move their layers about and stay."""
    plain = type(cache) is DynamicCache and not cache.offloading
    if plain and all(type(layer) is DynamicLayer and not layer.is_initialized for layer in cache.layers):
        layers: list[Any] = [GrowingLayer() for _ in cache.layers]
        cache.layers = layers


def layer_cache(cache: Any, index: int) -> Any:
    """What a compiled layer is handed to keep keys and values: its own layer of a cache that is just a list of them.

    Layers then do not differ by a number, and one compiled layer serves all.
    """
    plain = type(cache) in (DynamicCache, StaticCache) and not cache.offloading and index < len(cache.layers)
    return cache.layers[index] if plain else cache


def branch_cache(cache: Cache) -> Cache:
    """A cache that can grow without changing the original; memory is shared where nothing is overwritten."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def layer_states(cache: Cache, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (R, G, K, E) that a layer of a cache of attention layers holds."""
    layer = cache.layers[index]
    assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None
    return layer.keys, layer.values
