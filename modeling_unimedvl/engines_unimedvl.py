"""What engines ask of a model that they run inside their own scheduler and cache.

vLLM's Transformers backend builds the base model with its own attention, gives it embeddings that hold the images
already, and asks for the positions of a prompt before.

Shape legend: B batch, S sequence.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from .blocks_unimedvl import block_layout, rope_position_ids

# Attention backends of engines that run the understanding half only.
UNDERSTANDING_ONLY_BACKENDS = ("vllm",)
CAUSAL_IMAGES = (
    "On a CPU, vLLM attends causally inside images, where UniMedVL was trained with attention in both directions: "
    "answers about images differ from those of `generate`. Serve images from a GPU."
)

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    from .pretrained_unimedvl import UniMedVLPreTrainedModel as _Base
else:
    _Base = object


def runs_in_engine(config: Any) -> bool:
    """Whether an engine builds the model, with an attention of its own."""
    return config.text_config._attn_implementation in UNDERSTANDING_ONLY_BACKENDS


class UniMedVLEngineMixin(_Base):
    """Positions of a prompt's tokens, in the form of Qwen2-VL, and a warning of what an engine does otherwise."""

    token_kinds: Any

    def warn_of_causal_images(self, device: torch.device) -> None:
        """Warn once when an engine reads an image on a CPU."""
        if runs_in_engine(self.config) and device.type == "cpu":
            logger.warning_once(CAUSAL_IMAGES)

    def get_rope_index(
        self,
        input_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """RoPE ids of prompts, of which the tokens of an image share one.

        Args:
            input_ids: int64 (B, S), with a placeholder for each token of an image.
            image_grid_thw: not looked at: an image takes one id whatever its size.
            attention_mask: (B, S), 0 for padding.

        Returns:
            Ids, int64 (3, B, S), three times the same, and the next position minus the sequence length, int64 (B, 1).
        """
        positions = rope_position_ids(block_layout(self.token_kinds(input_ids)), attention_mask)
        after = positions.max(dim=-1, keepdim=True).values + 1 - input_ids.shape[1]
        return positions.expand(3, *positions.shape), after
