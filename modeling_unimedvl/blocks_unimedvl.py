"""The one definition of block kinds. Attention mask, RoPE ids, expert and loss of a token follow from its block.

A sample is a list of blocks. Training packs and inference contexts are both described by `mm_token_type_ids` (the
kind of every patch or latent token, 0 for text and for every marker) and, for packs, `sample_ids`; everything else
is derived here from the table `RULES` (UniMedVL section 3.3; generalized causal attention of BAGEL).

Shape legend: B batch, S sequence, K key length.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask


class BlockKind(IntEnum):
    """Kinds of block; the values are those of `mm_token_type_ids`."""

    TEXT = 0
    VIT = 1
    CLEAN = 2
    NOISED = 3


@dataclass(frozen=True)
class BlockRule:
    """What a block's kind decides.

    Attributes:
        full: attention inside the block is bidirectional (else causal).
        hidden: no other block may attend to it.
        rope_per_token: every token takes a RoPE id of its own; otherwise all its tokens share one.
        rope_advance: RoPE ids consumed by the block when they are shared.
        generation: patch or latent tokens (never the markers) are routed to the generation expert.
        loss: "ce" where the block is an answer, "mse" for flow matching, or None.
    """

    full: bool
    hidden: bool
    rope_per_token: bool
    rope_advance: int
    generation: bool
    loss: str | None


RULES: dict[BlockKind, BlockRule] = {
    BlockKind.TEXT: BlockRule(False, False, True, 1, False, "ce"),
    BlockKind.VIT: BlockRule(True, False, False, 1, False, None),
    BlockKind.CLEAN: BlockRule(True, False, False, 1, True, None),
    BlockKind.NOISED: BlockRule(True, True, False, 0, True, "mse"),
}


def _rule_lookup(attribute: str, kinds: torch.Tensor) -> torch.Tensor:
    values = torch.tensor([getattr(RULES[kind], attribute) for kind in BlockKind], device=kinds.device)
    return values[kinds]


def is_generation_token(mm_token_type_ids_BS: torch.Tensor) -> torch.Tensor:
    """Tokens routed to the generation expert, bool (B, S)."""
    return _rule_lookup("generation", mm_token_type_ids_BS)


def is_flow_target(mm_token_type_ids_BS: torch.Tensor) -> torch.Tensor:
    """Tokens that carry the flow-matching loss, bool (B, S)."""
    flow = torch.tensor([RULES[kind].loss == "mse" for kind in BlockKind], device=mm_token_type_ids_BS.device)
    return flow[mm_token_type_ids_BS]


@dataclass
class BlockLayout:
    """Per-token description of a batch, all (B, S) int64.

    Attributes:
        kinds: the kind of the block a token (or marker) belongs to.
        block_ids: number of the image block, -1 for text.
        hidden: 1 where no other block may look.
        sample_ids: number of the sample in a pack, -1 for padding; None when every row is one sample.
    """

    kinds_BS: torch.Tensor
    block_ids_BS: torch.Tensor
    hidden_BS: torch.Tensor
    sample_ids_BS: torch.Tensor | None = None


def block_layout(
    mm_token_type_ids_BS: torch.Tensor,
    block_ids_BS: torch.Tensor | None = None,
    sample_ids_BS: torch.Tensor | None = None,
) -> BlockLayout:
    """Derive the layout of a batch from the kinds of its tokens.

    Args:
        mm_token_type_ids_BS: int64 (B, S), see `BlockKind`. A run of equal non-zero values is one image; the token
            before and the token after it are its markers.
        block_ids_BS: int64 (B, S), only needed when several images form one block (video); -1 for text.
        sample_ids_BS: int64 (B, S), sample of each token in a pack, -1 for padding.
    """
    patches = mm_token_type_ids_BS > 0
    from_left = F.pad(mm_token_type_ids_BS[:, :-1], (1, 0))
    from_right = F.pad(mm_token_type_ids_BS[:, 1:], (0, 1))
    kinds = torch.where(patches, mm_token_type_ids_BS, from_right + from_left)
    starts = ~patches & (from_right > 0)
    run_starts = patches & (from_left == 0)
    if block_ids_BS is None:
        block_ids_BS = torch.where(kinds > 0, starts.cumsum(-1) - 1, -1)
        frames = None
    else:
        slots = block_ids_BS.clamp(min=0)
        width = int(slots.max()) + 1
        frames = slots.new_zeros(slots.shape[0], width).scatter_add_(1, slots, run_starts.to(slots.dtype))
        frames = frames.gather(1, slots)
    hidden = _rule_lookup("hidden", kinds)
    if frames is not None:
        # A target of several frames is an ordinary bidirectional block in the reference, not a hidden one.
        hidden = hidden & (frames <= 1)
    return BlockLayout(kinds, block_ids_BS, hidden, sample_ids_BS)


def rope_position_ids(layout: BlockLayout, attention_mask_BS: torch.Tensor | None = None) -> torch.Tensor:
    """RoPE ids of every token, int64 (B, S): text counts on, an image block shares one id (BAGEL section on MoT).

    Padding (attention_mask 0) consumes nothing; in a pack every sample starts again at 0.
    """
    block_ids = layout.block_ids_BS
    last_of_block = block_ids != F.pad(block_ids[:, 1:], (0, 1), value=-2)
    per_token = _rule_lookup("rope_per_token", layout.kinds_BS)
    advance = torch.where(per_token | last_of_block, _rule_lookup("rope_advance", layout.kinds_BS), 0)
    if attention_mask_BS is not None:
        advance = advance * (attention_mask_BS[:, -advance.shape[1] :] > 0)
    positions = advance.cumsum(-1) - advance
    if layout.sample_ids_BS is not None:
        sample_ids = layout.sample_ids_BS
        first = sample_ids != F.pad(sample_ids[:, :-1], (1, 0), value=-2)
        positions = positions - torch.where(first, positions, 0).cummax(-1).values
    return positions


def mask_functions(layout: BlockLayout, past_length: int = 0, key_length: int | None = None) -> dict[str, Callable]:
    """Overlays for `transformers.masking_utils.create_causal_mask` that turn causal into generalized causal.

    Args:
        layout: layout of the query tokens.
        past_length: cached tokens before them; the cache never holds a hidden block, so they are all visible.
        key_length: total number of key slots (static caches allocate more than they hold).
    """
    size = layout.block_ids_BS.shape[1]
    right = 0 if key_length is None else key_length - past_length - size
    block_ids = F.pad(layout.block_ids_BS, (past_length, right), value=-1)
    hidden = F.pad(layout.hidden_BS, (past_length, right), value=False)
    sample_ids = layout.sample_ids_BS
    assert sample_ids is None or past_length == 0, "packs are never continued from a cache"

    def same_block(batch, head, query, key):
        block = block_ids[batch, query]
        return (block == block_ids[batch, key]) & (block >= 0)

    def visible(batch, head, query, key):
        allowed = ~hidden[batch, key] | same_block(batch, head, query, key)
        if sample_ids is not None:
            allowed = allowed & (sample_ids[batch, query] == sample_ids[batch, key])
        return allowed

    return {"or_mask_function": same_block, "and_mask_function": visible}


def build_attention_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    layout: BlockLayout | None,
):
    """Causal mask, turned into the generalized causal mask of the blocks where there are any.

    RoPE ids are never given to the mask functions: tokens of one image share an id, which transformers would read as
    the start of a packed document.
    """
    overlays: dict[str, Any] = {}
    if layout is not None:
        if "flash" in (config._attn_implementation or ""):
            raise ValueError(
                f"{config._attn_implementation} cannot express image blocks: load the model with "
                "attn_implementation='sdpa' or 'flex_attention'."
            )
        past_length, key_length = 0, None
        if past_key_values is not None:
            past_length = int(past_key_values.get_seq_length())
            key_length, _ = past_key_values.get_mask_sizes(inputs_embeds.shape[1], 0)
        overlays = mask_functions(layout, past_length, key_length)
    return create_causal_mask(config, inputs_embeds, attention_mask, past_key_values, **overlays)


def dense_mask(layout: BlockLayout) -> torch.Tensor:
    """The whole attention rule as bool (B, S, S), True = may attend. Quadratic: for inspection and tests."""
    batch_size, size = layout.block_ids_BS.shape
    functions = mask_functions(layout)
    device = layout.block_ids_BS.device
    batch = torch.arange(batch_size, device=device)[:, None, None]
    query = torch.arange(size, device=device)[None, :, None]
    key = torch.arange(size, device=device)[None, None, :]
    allowed = (key <= query) | functions["or_mask_function"](batch, 0, query, key)
    return allowed & functions["and_mask_function"](batch, 0, query, key)


@dataclass
class Block:
    """One block of a training sample.

    Attributes:
        kind: see `BlockKind`.
        token_ids: ids of a text block, without its BOS and EOS.
        grid: (rows, columns) in tokens of an image block.
        loss: a text block that is an answer. Noised blocks always carry the flow loss.
        dropped: condition dropout: the block's tokens are left out. A dropped image still consumes one RoPE id, a
            dropped text none (BAGEL data packing).
        next_label: id that the block's last token should predict; needs a following block.
        frames: further grids of a video, each in markers of its own but in the same attention block.
        frame_deltas: RoPE advance after each frame but the last.
    """

    kind: BlockKind
    token_ids: list[int] | None = None
    grid: tuple[int, int] | None = None
    loss: bool = False
    dropped: bool = False
    next_label: int | None = None
    frames: list[tuple[int, int]] = field(default_factory=list)
    frame_deltas: list[int] = field(default_factory=list)


class _PackBuilder:
    """Collects the columns of one pack, token by token."""

    columns = (
        "input_ids",
        "mm_token_type_ids",
        "position_ids",
        "block_ids",
        "sample_ids",
        "labels",
        "token_weights",
    )

    def __init__(self, token_ids: dict[str, int]):
        self.token_ids = token_ids
        self.values: dict[str, list] = {name: [] for name in self.columns}
        self.num_blocks = 0
        self.sample = -1
        self.position = 0
        self.pending_label: int | None = None

    def token(self, token_id: int, kind: int, position: int, block: int, label: int = -100, weight: float = 0.0):
        if self.pending_label is not None:
            label, weight = self.pending_label, 1.0
            self.pending_label = None
        row = (token_id, kind, position, block, self.sample, label, weight)
        for name, value in zip(self.columns, row, strict=True):
            self.values[name].append(value)

    def text(self, block: Block):
        assert block.token_ids is not None, "a text block needs token_ids"
        ids = [self.token_ids["bos_token_id"], *block.token_ids, self.token_ids["eos_token_id"]]
        weight = 1.0 / (len(ids) - 1) ** 0.5
        for index, token_id in enumerate(ids):
            answer = block.loss and RULES[block.kind].loss == "ce" and index > 0
            label = (token_id, weight) if answer else (-100, 0.0)
            self.token(token_id, BlockKind.TEXT, self.position + index, -1, *label)
        self.position += len(ids)

    def image(self, block: Block):
        assert block.grid is not None, "an image block needs its grid"
        latent = RULES[block.kind].generation
        placeholder = self.token_ids["latent_token_id" if latent else "image_token_id"]
        for index, (rows, columns) in enumerate([block.grid, *block.frames]):
            if index > 0:
                self.position += block.frame_deltas[index - 1]
            place = (self.position, self.num_blocks)
            self.token(self.token_ids["vision_start_token_id"], BlockKind.TEXT, *place)
            for _ in range(rows * columns):
                self.token(placeholder, block.kind, *place)
            self.token(self.token_ids["vision_end_token_id"], BlockKind.TEXT, *place)
        self.position += RULES[block.kind].rope_advance
        self.num_blocks += 1


class _Pack(dict[str, torch.Tensor]):
    """The columns of a pack. Loss weights are still found under their former name for one release."""

    def __missing__(self, name: str) -> torch.Tensor:
        if name != "label_weights":
            raise KeyError(name)
        warnings.warn("The key label_weights is called token_weights now.", FutureWarning, stacklevel=2)
        return self["token_weights"]


def pack_samples(
    samples: list[list[Block]],
    *,
    bos_token_id: int,
    eos_token_id: int,
    vision_start_token_id: int,
    vision_end_token_id: int,
    image_token_id: int,
    latent_token_id: int,
) -> dict[str, torch.Tensor]:
    """Lay samples out one after another in a single row.

    Returns:
        (1, L) tensors, named as the arguments of `UniMedVLForConditionalGeneration.forward`: `input_ids`,
        `mm_token_type_ids`, `position_ids`, `block_ids`, `sample_ids`, `labels` (int64) and `token_weights` (float32,
        1 / sqrt(number of labels in the answer)). Images are given to `forward` in the order of their blocks,
        without the dropped ones.

    Raises:
        ValueError: if the last block of a sample has a `next_label`.
    """
    builder = _PackBuilder(
        {
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
            "vision_start_token_id": vision_start_token_id,
            "vision_end_token_id": vision_end_token_id,
            "image_token_id": image_token_id,
            "latent_token_id": latent_token_id,
        }
    )
    for number, blocks in enumerate(samples):
        builder.sample, builder.position = number, 0
        for block in blocks:
            if block.dropped:
                rule = RULES[block.kind]
                builder.position += 0 if rule.rope_per_token else rule.rope_advance
                continue
            if block.kind == BlockKind.TEXT:
                builder.text(block)
            else:
                builder.image(block)
            builder.pending_label = block.next_label
        if builder.pending_label is not None:
            raise ValueError(
                f"Sample {number} ends with a block that has a next_label: nothing follows it to predict."
            )
    types = {"token_weights": torch.float32}
    return _Pack(
        {name: torch.tensor([values], dtype=types.get(name, torch.int64)) for name, values in builder.values.items()}
    )
