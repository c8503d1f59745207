"""What generation has read so far: caches that can be continued, branched and stacked.

Shape legend: B prompts, K context tokens, R rows (images times guidance branches).
"""

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicLayer


@dataclass
class GenerationContext:
    """What has been read so far: a cache and how to continue it.

    Attributes:
        cache: keys and values of K tokens.
        input_ids, position_ids: int64 (B, K).
        mask: bool (B, K), tokens that may be seen.
        next_position: int64 (B,), RoPE id of what comes next.
    """

    cache: Cache
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    next_position: torch.Tensor

    def prefix(self, lengths: torch.Tensor) -> "GenerationContext":
        """The context as it was before column `lengths[b]` of each row; shares the cache."""
        width = self.mask.shape[1]
        columns = torch.arange(width, device=self.mask.device)
        at_cut = self.position_ids.gather(1, lengths.clamp(max=width - 1)[:, None])[:, 0]
        return replace(
            self,
            mask=self.mask & (columns < lengths[:, None]),
            next_position=torch.where(lengths < width, at_cut, self.next_position),
        )


class FixedBlockLayer(DynamicLayer):
    """Cache layer with room for one image block after its context: every update writes the same slots."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, context_length: int):
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.context_length = context_length
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        self.keys[:, :, self.context_length :] = key_states
        self.values[:, :, self.context_length :] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.context_length


def stack_contexts(
    contexts: list[GenerationContext], row_index: torch.Tensor, block_length: int
) -> tuple[Cache, torch.Tensor, torch.Tensor]:
    """Put contexts one below the other in a cache with room for a block.

    Args:
        contexts: over the same prompts, of any length.
        row_index: int64, prompt of each image; every context contributes these rows.
        block_length: tokens of the block, markers included.

    Returns:
        the cache with `len(contexts) * len(row_index)` rows, the keys each row may see, bool (R, K + block_length),
        with the block visible, and the RoPE id of each row's block, int64 (R,).
    """
    width = max(context.mask.shape[1] for context in contexts)
    count = row_index.shape[0]
    rows = len(contexts) * count
    layers = []
    for index in range(len(contexts[0].cache.layers)):
        sample = contexts[0].cache.layers[index].keys
        buffers = [sample.new_zeros(rows, sample.shape[1], width + block_length, sample.shape[3]) for _ in range(2)]
        for number, context in enumerate(contexts):
            layer = context.cache.layers[index]
            place = (
                slice(number * count, (number + 1) * count),
                slice(None),
                slice(width - layer.keys.shape[2], width),
            )
            for buffer, states in zip(buffers, (layer.keys, layer.values), strict=True):
                buffer[place] = states[row_index.to(states.device)]
        layers.append(FixedBlockLayer(*buffers, context_length=width))
    valid = [F.pad(context.mask[row_index], (width - context.mask.shape[1], block_length)) for context in contexts]
    valid_RK = torch.cat(valid)
    valid_RK[:, width:] = True
    return Cache(layers=layers), valid_RK, torch.cat([context.next_position[row_index] for context in contexts])


def first_rows(cache: Cache, rows: int) -> Cache:
    """The same cache seen by its first rows only; shares memory."""
    layers = [FixedBlockLayer(layer.keys[:rows], layer.values[:rows], layer.context_length) for layer in cache.layers]
    return Cache(layers=layers)


def copy_cache(cache: Cache) -> Cache:
    """A cache that can grow without changing the original; the tensors are shared (growing makes new ones)."""
    clone = copy.copy(cache)
    clone.layers = [copy.copy(layer) for layer in cache.layers]
    return clone
