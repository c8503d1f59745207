"""Attention in pieces: tokens next to each other that may see the same keys attend to exactly those, without a mask.

A mask over a whole pack costs memory and work that grow with the square of its length, and keeps kernels such as flash
attention away. What a token may see follows from its block (see `blocks_unimedvl`): the tokens of an image all see the
same keys, and those of a text each see one key more than the token before. So a sequence falls into spans for which
kernels need no mask, or only the causal one. Kernels that skip masked tiles themselves (flex attention) and eager
attention, which returns its weights, keep the mask of the same blocks.

Shape legend: B batch, S sequence, K keys, H heads, G key/value heads, E head dimension, R rows, N spans.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

from .blocks_unimedvl import BlockLayout


def takes_spans(implementation: str | None) -> bool:
    """Whether an attention implementation is given spans instead of a mask."""
    return implementation == "sdpa" or "flash" in (implementation or "")


class AttentionPieces(ABC):
    """Stands in the place of an attention mask, and computes the attention itself."""

    @abstractmethod
    def attend(
        self,
        module: nn.Module,
        query_BHSE: torch.Tensor,
        key_BGKE: torch.Tensor,
        value_BGKE: torch.Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> list[torch.Tensor]:
        """Mixed values (rows, S, H, E) of neighboring rows of the batch, in order.

        Args:
            module: the attention layer, see `attend_to_all`.
            query_BHSE, key_BGKE, value_BGKE: of the whole batch, cached tokens included.
            scaling, dropout: of the scores and of the weights.
        """


@dataclass(frozen=True)
class Span:
    """Neighboring tokens of a row that attend together.

    Attributes:
        length: number of tokens.
        region: the part of the row's keys that they see keys of; None for padding, which sees nothing.
        keys: the keys that the last token sees, a range of the region or int64 (K,) in it.
        causal: every token sees one key less than the one after it; otherwise all see the same.
        count: the span is this many equal ones, each of which sees itself only.
    """

    length: int
    region: int | None
    keys: slice | torch.Tensor | None = None
    causal: bool = False
    count: int = 1


@dataclass(frozen=True)
class RowSpans:
    """The spans of one row.

    Attributes:
        spans: in order; their lengths add up to S.
        regions: lengths of the parts of the row's keys that no span sees across; they add up to K.
    """

    spans: list[Span]
    regions: list[int]


@dataclass(frozen=True)
class SpanAttention(AttentionPieces):
    """Attention by spans, see `attention_spans`. Padding gets zeros.

    Attributes:
        rows: the spans of each row.
    """

    rows: list[RowSpans]

    # A compiled layer leaves its graph here: every pack has other lengths.
    @torch.compiler.disable
    def attend(
        self,
        module: nn.Module,
        query_BHSE: torch.Tensor,
        key_BGKE: torch.Tensor,
        value_BGKE: torch.Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> list[torch.Tensor]:
        """See `AttentionPieces.attend`."""
        # Taken apart by splits, whose backward pass writes every gradient once; that of a slice fills a whole tensor.
        by_row = zip(*(states.split(1) for states in (query_BHSE, key_BGKE, value_BGKE)), self.rows, strict=True)
        mixed = []
        for query_1HSE, key_1GKE, value_1GKE, row in by_row:
            queries = _parts(query_1HSE, [span.length for span in row.spans])
            keys, values = (_parts(states, row.regions) for states in (key_1GKE, value_1GKE))
            pieces = []
            for span, query in zip(row.spans, queries, strict=True):
                if span.region is None:
                    pieces.append(torch.zeros_like(query.transpose(1, 2)[0]))
                    continue
                key, value = (_columns(parts[span.region], span.keys) for parts in (keys, values))
                if span.count > 1:
                    query, key, value = (_as_rows(states, span.count) for states in (query, key, value))
                piece = attend_to_all(module, query, key, value, scaling, dropout, span.causal)
                pieces.append(piece.flatten(0, 1))
            mixed.append(torch.cat(pieces) if len(pieces) > 1 else pieces[0])
        return [torch.stack(mixed)]


def _parts(states_1HSE: torch.Tensor, lengths: list[int]) -> Sequence[torch.Tensor]:
    return states_1HSE.split(lengths, dim=2) if len(lengths) > 1 else [states_1HSE]


def _columns(states_1GKE: torch.Tensor, keys: slice | torch.Tensor | None) -> torch.Tensor:
    assert keys is not None
    if isinstance(keys, slice):
        return states_1GKE if keys == slice(0, states_1GKE.shape[2]) else states_1GKE[:, :, keys]
    return states_1GKE[:, :, keys.to(states_1GKE.device)]


def _as_rows(states_1HSE: torch.Tensor, count: int) -> torch.Tensor:
    return states_1HSE[0].unflatten(1, (count, -1)).transpose(0, 1)


def attention_spans(
    layout: BlockLayout, attention_mask: torch.Tensor | None = None, past_length: int = 0
) -> SpanAttention | None:
    """The spans of a batch, by the rule of `mask_functions`.

    Reads the layout on the host.

    Args:
        layout: of the S new tokens.
        attention_mask: (B, past + S) or (B, S), 0 for padding; None without padding.
        past_length: cached tokens before them, none of them hidden.

    Returns:
        None where the tokens of a block or of a sample do not lie next to each other, which only a mask can express.

    Raises:
        ValueError: for a mask of another size.
    """
    blocks, hidden = layout.block_ids_BS.cpu().numpy(), layout.hidden_BS.bool().cpu().numpy()
    samples = np.zeros_like(blocks) if layout.sample_ids_BS is None else layout.sample_ids_BS.cpu().numpy()
    present = np.ones((len(blocks), past_length + blocks.shape[1]), dtype=bool)
    if attention_mask is not None:
        if attention_mask.shape[1] == blocks.shape[1]:
            # Of the new tokens alone: all cached ones are seen.
            attention_mask = F.pad(attention_mask, (past_length, 0), value=1)
        if tuple(attention_mask.shape) != present.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, expected {present.shape}: one entry for "
                f"each of the {past_length} cached and {blocks.shape[1]} new tokens of every row."
            )
        present = (attention_mask > 0).cpu().numpy()
    rows = [_row_spans(*columns, past_length) for columns in zip(blocks, hidden, samples, present, strict=True)]
    complete = [row for row in rows if row is not None]
    return SpanAttention(complete) if len(complete) == len(rows) else None


def _row_spans(
    block_S: np.ndarray, hidden_S: np.ndarray, sample_S: np.ndarray, present_K: np.ndarray, past_length: int
) -> RowSpans | None:
    length = len(block_S)
    is_token_S = present_K[past_length:] & (sample_S >= 0)
    sample_starts = np.flatnonzero(np.diff(sample_S)) + 1
    runs = [number for number in sample_S[[0, *sample_starts]].tolist() if number >= 0]
    if len(set(runs)) < len(runs):
        return None
    kinds = np.stack([np.maximum(block_S, -1), sample_S, is_token_S])
    bounds = [0, *(np.flatnonzero((np.diff(kinds) != 0).any(axis=0)) + 1).tolist(), length]
    visible_K = present_K.copy()
    visible_K[past_length:] &= ~hidden_S
    edges = [0, *(past_length + sample_starts).tolist(), past_length + length]
    spans: list[Span] = []
    seen: set[tuple[int, int]] = set()
    for start, stop in itertools.pairwise(bounds):
        if not is_token_S[start]:
            spans.append(Span(stop - start, None))
            continue
        block = int(block_S[start])
        if block >= 0:
            name = (block, int(sample_S[start]))
            if name in seen:
                return None
            seen.add(name)
        region = int(np.searchsorted(sample_starts, start, side="right"))
        columns = visible_K[edges[region] : past_length + stop].copy()
        # A hidden block sees itself.
        columns[past_length + start - edges[region] :] = True
        spans.append(Span(stop - start, region, _range(columns), causal=block < 0))
    regions = [stop - start for start, stop in itertools.pairwise(edges)]
    return _merged(spans, regions)


def spans_of_lengths(lengths: list[int]) -> SpanAttention:
    """Spans of images that lie one after another in one row, each of which sees itself only."""
    spans = [Span(length, number, slice(0, length)) for number, length in enumerate(lengths)]
    return SpanAttention([_merged(spans, lengths)])


def _range(columns: np.ndarray) -> slice | torch.Tensor:
    """Where a mask is True, as a range if there are no gaps."""
    indices = np.flatnonzero(columns)
    start, stop = int(indices[0]), int(indices[-1]) + 1
    return slice(start, stop) if stop - start == len(indices) else torch.from_numpy(indices)


def _merged(spans: list[Span], regions: list[int]) -> RowSpans:
    """Neighboring regions that are one span each, of equal length, become one that a kernel computes as a batch."""
    inside: dict[int, list[Span]] = {}
    for span in spans:
        if span.region is not None:
            inside.setdefault(span.region, []).append(span)
    # What a region of its own is like; None where it is not one span over the whole of it.
    whole: list[tuple[int, bool] | None] = []
    for number, width in enumerate(regions):
        found = inside.get(number, [])
        single = len(found) == 1 and found[0].length == width
        whole.append((width, found[0].causal) if single else None)
    groups: list[list[int]] = []
    for number, kind in enumerate(whole):
        if groups and kind is not None and whole[groups[-1][0]] == kind:
            groups[-1].append(number)
        else:
            groups.append([number])
    place = {number: index for index, group in enumerate(groups) for number in group}
    merged: list[Span] = []
    for span in spans:
        if span.region is None:
            merged.append(span)
            continue
        group = groups[place[span.region]]
        if span.region == group[0]:
            length = span.length * len(group)
            keys = slice(0, length) if len(group) > 1 else span.keys
            merged.append(Span(length, place[span.region], keys, span.causal, len(group)))
    return RowSpans(merged, [sum(regions[number] for number in group) for group in groups])


def attend_to_all(
    module: nn.Module,
    query_BHSE: torch.Tensor,
    key_BGKE: torch.Tensor,
    value_BGKE: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    causal: bool = False,
) -> torch.Tensor:
    """Attention without a mask, by the kernels of the model's implementation.

    Args:
        module: the attention layer; its configuration names the implementation. Flex attention has nothing to skip
            here and is served by SDPA.
        scaling, dropout: of the scores and of the weights.
        causal: query i of S sees keys up to K - S + i; otherwise all keys.

    Returns:
        float (B, S, H, E).
    """
    config: Any = module.config
    implementation = config._attn_implementation
    heads, length = query_BHSE.shape[1:3]
    groups, total = heads // key_BGKE.shape[1], key_BGKE.shape[2]
    causal = causal and length > 1
    if implementation == "eager" or "flash" in (implementation or ""):
        assert not (causal and implementation == "eager"), "eager attention is given a mask"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        mixed, _ = attend(
            module, query_BHSE, key_BGKE, value_BGKE, None, scaling=scaling, dropout=dropout, is_causal=causal
        )
        return mixed
    mask: Any = None
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling}
    if length == 1 and groups > 1:
        # One query of several heads over the same keys is several queries of one head.
        query_BGRE = query_BHSE[:, :, 0].unflatten(1, (-1, groups))
        mixed_BGRE = F.scaled_dot_product_attention(query_BGRE, key_BGKE, value_BGKE, **options)
        return mixed_BGRE.flatten(1, 2)[:, None]
    if causal and length < total:
        # Not torch's `CausalBias`, which cannot be made where operations are watched, as by selective checkpointing.
        mask = torch.ones(length, total, dtype=torch.bool, device=query_BHSE.device).tril(total - length)
        if query_BHSE.device.type != "cpu":
            # The kernels that take a mask do not share keys between heads.
            key_BGKE, value_BGKE = (states.repeat_interleave(groups, dim=1) for states in (key_BGKE, value_BGKE))
            groups = 1
    mixed = F.scaled_dot_product_attention(
        query_BHSE,
        key_BGKE,
        value_BGKE,
        mask,
        is_causal=causal and length == total,
        enable_gqa=groups > 1,
        **options,
    )
    return mixed.transpose(1, 2)
