"""Caches of keys and values: which of them hold images, and how a block of latents is written after a context.

Shape legend: B batch, R rows, G key/value heads, K context tokens, S new tokens, E head dimension.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

_NOTE = "_unimedvl_images"


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


def branch_cache(cache: Cache) -> Cache:
    """A cache that can grow without changing the original; the tensors are shared (growing makes new ones)."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
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
