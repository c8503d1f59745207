"""Noised image blocks over contexts that do not change: what every denoising step attends to.

The keys and values of a context are laid out once, without padding, with slots for the block behind them. A context
that is the beginning of another shares its values: order means nothing to a block, which sees all of its context, so
what only the longer one holds is placed first. Images of one prompt take turns in the same slots.

All tokens of a block share one RoPE id p. Instead of turning queries and keys of the block by p in every step, the
keys of the context are turned back by p once: the products of queries and keys depend on the difference of their
angles only.

Shape legend: S tokens of a block, K context tokens, H heads, G key/value heads, E head dimension, R rows (images times
branches of guidance), M images, T latent tokens, D hidden.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .attention_unimedvl import AttentionPieces, attend_to_all
from .caches_unimedvl import layer_states
from .contexts_unimedvl import GenerationContext
from .layers_unimedvl import rotated


@dataclass(frozen=True)
class BlockGroup:
    """Neighboring rows whose blocks attend to one context each, all of one length.

    Attributes:
        rows: in the stacked batch.
        length: tokens of the block, markers included; the rows' further tokens are padding.
        keys, values: float (rows or 1, G, K + length, E), the contexts and slots for the block, in every layer; rows
            whose context this is one after the other write the same slots. None where the contexts are empty.
    """

    rows: range
    length: int
    keys: tuple[torch.Tensor, ...] | None = None
    values: tuple[torch.Tensor, ...] | None = None

    def layer(self, index: int) -> "LayerGroup":
        """What one layer needs of it."""
        if self.keys is None or self.values is None:
            return LayerGroup(self.rows.start, self.rows.stop, self.length)
        keys, values = self.keys[index], self.values[index]
        # A backward pass reads what every step saw, so no step may overwrite it. Asked here: compilers cannot ask.
        sealed = keys.is_inference() and not torch.is_inference_mode_enabled()
        takes_turns = not (torch.is_grad_enabled() or sealed)
        return LayerGroup(self.rows.start, self.rows.stop, self.length, keys, values, takes_turns)


@dataclass(frozen=True)
class LayerGroup:
    """A `BlockGroup` in one layer. Layers differ by these tensors only, so that one compiled layer serves all.

    Attributes:
        takes_turns: whether the block is written to the slots, over the block of the step before.
    """

    start: int
    stop: int
    length: int
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    takes_turns: bool = False

    def with_context(self, key_RGSE: torch.Tensor, value_RGSE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the contexts and of the block."""
        if self.keys is None or self.values is None:
            return key_RGSE, value_RGSE
        if not self.takes_turns:
            contexts = (states[:, :, : -self.length] for states in (self.keys, self.values))
            keys, values = (
                torch.cat([context, block], dim=2)
                for context, block in zip(contexts, (key_RGSE, value_RGSE), strict=True)
            )
            return keys, values
        slots = [states[:, :, -self.length :] for states in (self.keys, self.values)]
        torch._foreach_copy_(slots, [key_RGSE, value_RGSE])
        return self.keys, self.values


@dataclass(frozen=True)
class BlockAttention:
    """Attention of noised image blocks to their contexts and to themselves.

    Attributes:
        groups: the rows of the stacked batch in order.
        score_scale: what products of queries and keys lack, because the rotation that scales them is left out.
    """

    groups: tuple[BlockGroup, ...]
    score_scale: float = 1.0

    def first_rows(self, rows: int) -> "BlockAttention":
        """The same for the first rows only; shares memory."""
        kept = (
            replace(group, rows=range(group.rows.start, min(group.rows.stop, rows)))
            for group in self.groups
            if group.rows.start < rows
        )
        return BlockAttention(tuple(kept), self.score_scale)

    def layer(self, index: int) -> "LayerBlocks":
        """What one layer needs of it."""
        return LayerBlocks(tuple(group.layer(index) for group in self.groups), self.score_scale)


@dataclass(frozen=True)
class LayerBlocks(AttentionPieces):
    """A `BlockAttention` in one layer."""

    groups: tuple[LayerGroup, ...]
    score_scale: float = 1.0

    def attend(
        self,
        module: nn.Module,
        query_RHSE: torch.Tensor,
        key_RGSE: torch.Tensor,
        value_RGSE: torch.Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> list[torch.Tensor]:
        """See `AttentionPieces.attend`."""
        pieces = []
        length = query_RHSE.shape[2]
        for group in self.groups:
            rows = slice(group.start, group.stop)
            query, key, value = (states[rows, :, : group.length] for states in (query_RHSE, key_RGSE, value_RGSE))
            key, value = group.with_context(key, value)
            mixed = attend_to_all(module, query, key, value, scaling * self.score_scale, dropout)
            pieces.append(mixed if group.length == length else F.pad(mixed, (0, 0, 0, 0, 0, length - group.length)))
        return pieces


@dataclass(frozen=True)
class NoisedBlocks:
    """What does not change over the steps that denoise M images.

    Attributes:
        attention: of R rows: the M images in every branch of guidance, branch by branch.
        rows: R.
        marker_ids: int64 (2,), the markers of a block.
        position_embeds_MTD: of the latent tokens.
    """

    attention: BlockAttention
    rows: int
    marker_ids: torch.Tensor
    position_embeds_MTD: torch.Tensor

    def first_rows(self, rows: int) -> "NoisedBlocks":
        """The same for the first rows only; shares memory."""
        return NoisedBlocks(self.attention.first_rows(rows), rows, self.marker_ids, self.position_embeds_MTD)


def lay_out_contexts(
    model: Any, contexts: list[GenerationContext], images_per_prompt: int, lengths: list[int]
) -> BlockAttention:
    """Lay out what blocks attend to, without padding, and turned back by their RoPE ids.

    Args:
        model: a `UniMedVLModel`.
        contexts: one for each branch of guidance, over the same prompts.
        images_per_prompt: how many adjacent images share a prompt.
        lengths: tokens of each image's block, markers included; equal for the images of a prompt.
    """
    count = len(lengths)
    columns = [[row.nonzero()[:, 0] for row in context.mask.cpu()] for context in contexts]
    runs = _runs(columns, images_per_prompt, lengths)
    laid_out = [_lay_out_run(model, contexts, columns, run, lengths[run.start * images_per_prompt]) for run in runs]
    groups: list[BlockGroup] = []
    for branch in range(len(contexts)):
        for run, states in zip(runs, laid_out, strict=True):
            first = branch * count + run.start * images_per_prompt
            rows = range(first, first + len(run) * images_per_prompt)
            length = lengths[run.start * images_per_prompt]
            placed = states[branch]
            if placed is None:
                last = groups[-1] if groups else None
                if last is not None and last.keys is None and (last.rows.stop, last.length) == (first, length):
                    rows = range(groups.pop().rows.start, rows.stop)
                groups.append(BlockGroup(rows, length))
                continue
            # Images of one prompt follow each other in the same slots.
            parts = [rows] if images_per_prompt == 1 else [range(row, row + 1) for row in rows]
            groups += [BlockGroup(part, length, *placed) for part in parts]
    return BlockAttention(tuple(groups), model.language_model.rotary_emb.attention_scaling**2)


def _runs(columns: list[list[torch.Tensor]], images_per_prompt: int, lengths: list[int]) -> list[range]:
    """Neighboring prompts whose contexts and blocks have equal lengths and can be computed as one batch."""
    prompts = len(lengths) // images_per_prompt
    sizes = [
        (lengths[prompt * images_per_prompt], *(len(branch[prompt]) for branch in columns))
        for prompt in range(prompts)
    ]
    runs: list[range] = []
    for prompt in range(prompts):
        if images_per_prompt == 1 and runs and sizes[runs[-1].start] == sizes[prompt]:
            runs[-1] = range(runs[-1].start, prompt + 1)
        else:
            runs.append(range(prompt, prompt + 1))
    return runs


_States = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]


def _lay_out_run(
    model: Any,
    contexts: list[GenerationContext],
    columns: list[list[torch.Tensor]],
    run: range,
    length: int,
) -> list[_States | None]:
    """Keys and values in every layer for each branch, of some prompts; None for empty contexts."""
    rotary = model.language_model.rotary_emb
    states: list[_States | None] = [None] * len(contexts)
    for chain in _chains(contexts, columns, run):
        holder, order = contexts[chain[0]], [_order([columns[branch][prompt] for branch in chain]) for prompt in run]
        keys: dict[int, list[torch.Tensor]] = {branch: [] for branch in chain}
        values: dict[int, list[torch.Tensor]] = {branch: [] for branch in chain}
        for index in range(len(holder.cache.layers)):
            key_PGKE, value_PGKE = (
                torch.stack(
                    [part[prompt, :, picked.to(part.device)] for prompt, picked in zip(run, order, strict=True)]
                )
                for part in layer_states(holder.cache, index)
            )
            slots = value_PGKE.new_empty(*value_PGKE.shape[:2], length, value_PGKE.shape[3])
            value_PGKE = torch.cat([value_PGKE, slots], dim=2)
            for branch in chain:
                size = len(columns[branch][run.start])
                ids_P1 = contexts[branch].next_position[run.start : run.stop, None]
                exact = key_PGKE[:, :, key_PGKE.shape[2] - size :].float()
                cos, sin = (part / rotary.attention_scaling**2 for part in rotary.turns(exact, ids_P1))
                turned = rotated(exact, cos, -sin).to(key_PGKE.dtype)
                keys[branch].append(torch.cat([turned, torch.empty_like(slots)], dim=2))
                values[branch].append(value_PGKE[:, :, value_PGKE.shape[2] - size - length :])
        for branch in chain:
            if len(columns[branch][run.start]):
                states[branch] = tuple(keys[branch]), tuple(values[branch])
    return states


def _chains(contexts: list[GenerationContext], columns: list[list[torch.Tensor]], run: range) -> list[list[int]]:
    """Branches whose contexts lie in each other, the longest first."""
    chains: list[list[int]] = []
    for branch in sorted(range(len(contexts)), key=lambda number: -len(columns[number][run.start])):
        for chain in chains:
            holder, inner = contexts[chain[0]], contexts[branch]
            lies_in = any(inner.cache is cache for cache in (holder.cache, *holder.ancestors))
            if lies_in and all(
                bool(torch.isin(columns[branch][prompt], columns[chain[-1]][prompt]).all()) for prompt in run
            ):
                chain.append(branch)
                break
        else:
            chains.append([branch])
    return chains


def _order(nested: list[torch.Tensor]) -> torch.Tensor:
    """Columns of the longest context so that each shorter one is the end."""
    parts = [part[~torch.isin(part, inner)] for part, inner in zip(nested, nested[1:], strict=False)]
    return torch.cat([*parts, nested[-1]])
