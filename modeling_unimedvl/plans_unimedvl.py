"""What a forward pass has to know of its batch on the host: which rows go where, and how large the images are.

Kinds of tokens lie on the device, and asking it for them makes the host wait until all earlier work is done. A data
loader knows them before: it makes a `PackPlan` beside the batch, and a forward pass with one never asks. Without one,
`forward` takes the same rows from the kinds itself.

Shape legend: B batch, S sequence, U understanding tokens, T generation (latent) tokens, N noised tokens, P ViT
patches, A labeled tokens, I ViT images, M latent images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from .attention_unimedvl import SpanAttention, attention_spans
from .blocks_unimedvl import (
    BlockKind,
    BlockLayout,
    block_layout,
    is_flow_target,
    is_generation_token,
    rope_position_ids,
)
from .packing_unimedvl import shared_image_positions


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a value with every tensor in it replaced, also inside of dataclasses and lists."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list):
        return [map_tensors(entry, change) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: map_tensors(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **changes)
    return value


@dataclass(frozen=True)
class TokenRows:
    """Rows of the tokens that are treated alike, all int64; of the flattened (B * S) batch unless said otherwise.

    Attributes:
        und_U, gen_T: tokens of the understanding and of the generation expert, in sequence order.
        restore: (B * S,), the place of every token among the understanding tokens followed by the generation tokens.
        noised_N: tokens with the flow loss, as rows of the generation tokens.
        vit_P: ViT patches.
    """

    und_U: torch.Tensor
    gen_T: torch.Tensor
    restore: torch.Tensor
    noised_N: torch.Tensor
    vit_P: torch.Tensor

    @classmethod
    def from_kinds(cls, mm_token_type_ids_BS: torch.Tensor) -> "TokenRows":
        """The rows of a batch by its `mm_token_type_ids`, int64 (B, S). Waits for the device that they lie on."""
        kinds = mm_token_type_ids_BS.flatten()
        generation = is_generation_token(kinds)
        und_U, gen_T = _true_rows(~generation), _true_rows(generation)
        noised_N = _true_rows(is_flow_target(kinds[gen_T]))
        vit_P = _true_rows(kinds == int(BlockKind.VIT))
        return cls(und_U, gen_T, torch.cat([und_U, gen_T]).argsort(), noised_N, vit_P)

    @classmethod
    def all_text(cls, count: int, device: torch.device) -> "TokenRows":
        """The rows of `count` tokens none of which belongs to an image."""
        rows = torch.arange(count, device=device)
        return cls(rows, rows[:0], rows, rows[:0], rows[:0])


def _true_rows(mask: torch.Tensor) -> torch.Tensor:
    return mask.nonzero()[:, 0]


def labeled_rows(labels_BS: torch.Tensor) -> torch.Tensor:
    """Rows (A,) of the flattened batch whose next token is a label, int64. Waits for the device of the labels.

    Args:
        labels_BS: int64 (B, S), -100 where there is none.
    """
    labeled_BS = torch.zeros_like(labels_BS, dtype=torch.bool)
    labeled_BS[:, :-1] = labels_BS[:, 1:] != -100
    return _true_rows(labeled_BS.flatten())


@dataclass(frozen=True)
class PackPlan:
    """All that `forward` would otherwise read off a batch on the device.

    Tensors move with `to`, so that a loader can pin them and send them beside the batch; everything else stays on the
    host.

    Attributes:
        layout: the blocks of the batch.
        position_ids_BS: RoPE ids, int64 (B, S).
        rows: see `TokenRows`.
        labeled_A: see `labeled_rows`.
        spans: which tokens attend together, see `attention_spans`.
        vit_grids: (rows, columns) of each ViT image, in patches.
        latent_sizes: (height, width) of each image that enters through the autoencoder, in pixels; () where latents
            are given instead.
    """

    layout: BlockLayout
    position_ids_BS: torch.Tensor
    rows: TokenRows
    labeled_A: torch.Tensor
    spans: SpanAttention | None
    vit_grids: tuple[tuple[int, int], ...] = ()
    latent_sizes: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> "PackPlan":
        """The plan of a packed batch whose tensors lie on the host.

        Args:
            batch: arguments of `UniMedVLForConditionalGeneration.forward` by name: `mm_token_type_ids`, `sample_ids`,
                `labels` and, where the batch has them, `block_ids`, `position_ids`, `image_grid_thw` and
                `latent_image_sizes`.
        """
        kinds, sample_ids, position_ids = batch["mm_token_type_ids"], batch["sample_ids"], batch.get("position_ids")
        layout = block_layout(kinds, batch.get("block_ids"), sample_ids)
        vit, latent = batch.get("image_grid_thw"), batch.get("latent_image_sizes")
        derived = rope_position_ids(layout)
        return cls(
            layout,
            derived if position_ids is None else shared_image_positions(position_ids, derived, layout),
            TokenRows.from_kinds(kinds),
            labeled_rows(batch["labels"]),
            attention_spans(layout),
            () if vit is None else tuple((rows, columns) for rows, columns in vit[:, 1:].tolist()),
            () if latent is None else tuple((height, width) for height, width in latent.tolist()),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackPlan":
        """The plan with its tensors on a device."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackPlan":
        """The plan with its tensors in pinned memory, from where copies to a GPU run beside its work."""
        return map_tensors(self, torch.Tensor.pin_memory)

    def require_fit(self, batch_size: int, length: int) -> None:
        """Raises ValueError if the plan is of a batch of another size."""
        shape = tuple(self.layout.kinds_BS.shape)
        if shape != (batch_size, length):
            raise ValueError(
                f"The plan describes {shape[0]} x {shape[1]} tokens but the batch has {batch_size} x {length}: "
                "make it from this batch, with `PackPlan.from_batch`."
            )
