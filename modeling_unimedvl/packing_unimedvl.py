"""Samples of a pack whose maker did not say `sample_ids`: other libraries lay samples one after another in a row.

TRL's packing and the padding-free collators of transformers mark the samples by RoPE ids that start again, by
`cu_seq_lens_q` or by `seq_idx`.

Shape legend: B batch, S sequence, N samples.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from .blocks_unimedvl import BlockKind, BlockLayout


def named_samples(marks: Mapping[str, Any], batch_size: int, length: int) -> torch.Tensor | None:
    """Sample of each token, int64 (B, S), where a collator names it; None where it does not.

    Args:
        marks: further arguments of `forward`: `seq_idx`, integer (B, S), the number of each token's sample, or
            `cu_seq_lens_q`, integer (N + 1,), where the samples of the flattened batch begin and end.
        batch_size, length: B and S.
    """
    if marks.get("seq_idx") is not None:
        return marks["seq_idx"].long()
    bounds = marks.get("cu_seq_lens_q")
    if bounds is None:
        return None
    tokens = torch.arange(batch_size * length, device=bounds.device)
    return torch.bucketize(tokens, bounds[1:].long(), right=True).view(batch_size, length)


def samples_of_restarts(
    position_ids: torch.Tensor, attention_mask: torch.Tensor | None, layout: BlockLayout | None
) -> torch.Tensor:
    """Sample of each token, int64 (B, S), read off RoPE ids that start again; all 0 where there is one sample.

    Inside a sample RoPE ids never fall. In text every token has an id of its own, so that an id which does not grow
    starts a sample too; without a mask any step but 1 does, as in transformers. The tokens of one image share an id,
    and a noised block gives its id on to the next one.

    Args:
        position_ids: int64 (B, S).
        attention_mask: (B, S), 0 for padding, whose ids mean nothing.
        layout: the image blocks; None for text.
    """
    columns = torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
    valid = torch.ones_like(position_ids, dtype=torch.bool) if attention_mask is None else attention_mask > 0
    last_valid = torch.where(valid, columns, -1).cummax(dim=-1).values
    before = F.pad(last_valid[:, :-1], (1, 0), value=-1)
    has_before, before = before >= 0, before.clamp(min=0)
    step = position_ids - position_ids.gather(1, before)
    if layout is None:
        starts = step != 1 if attention_mask is None else step <= 0
    else:
        block = layout.block_ids_BS
        together = (block >= 0) & (block == block.gather(1, before))
        after_noise = layout.kinds_BS.gather(1, before) == int(BlockKind.NOISED)
        starts = (step < 0) | ((step == 0) & ~together & ~after_noise)
    return (starts & valid & has_before).cumsum(dim=-1)


def sequence_bounds(sample_ids_BS: torch.Tensor) -> dict[str, Any]:
    """Arguments by which kernels without masks keep samples apart, over the flattened batch.

    Args:
        sample_ids_BS: int64 (B, S), sample of each token.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k`, int32 (N + 1,), `max_length_q` and `max_length_k`.
    """
    first = F.pad(sample_ids_BS[:, 1:] != sample_ids_BS[:, :-1], (1, 0), value=True)
    bounds = F.pad(first.flatten().nonzero()[:, 0], (0, 1), value=sample_ids_BS.numel()).int()
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def shared_image_positions(position_ids: torch.Tensor, derived: torch.Tensor, layout: BlockLayout) -> torch.Tensor:
    """RoPE ids (B, S) in which the tokens of an image share one, whatever the caller counted.

    Args:
        position_ids: int64 (B, S), the caller's. A row that counts the tokens of an image, as collators made for
            other models do, is replaced.
        derived: int64 (B, S), the ids of the blocks.
        layout: the image blocks.
    """
    block = layout.block_ids_BS
    inside = (block[:, 1:] >= 0) & (block[:, 1:] == block[:, :-1])
    counted = (inside & (position_ids[:, 1:] != position_ids[:, :-1])).any(dim=-1, keepdim=True)
    return torch.where(counted, derived, position_ids)
