"""What engines ask of a model that they run inside of their own scheduler and cache.

vLLM's Transformers backend builds the base model with its own attention, gives it embeddings that hold the images
already, and asks for the positions of a prompt before.

Shape legend: B batch, S sequence.
"""

from typing import TYPE_CHECKING, Any

import torch

from .blocks_unimedvl import block_layout, rope_position_ids

# Names of the attention of engines that read images and write text, and make no images.
READING_ENGINES = ("vllm",)

if TYPE_CHECKING:
    from .pretrained_unimedvl import UniMedVLPreTrainedModel as _Base
else:
    _Base = object


class UniMedVLEngineMixin(_Base):
    """Positions of a prompt's tokens, in the form of Qwen2-VL."""

    token_kinds: Any

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
            Ids, int64 (3, B, S), three times the same, and what the number of tokens before a new one lacks to its id,
            int64 (B, 1).
        """
        positions = rope_position_ids(block_layout(self.token_kinds(input_ids)), attention_mask)
        after = positions.max(dim=-1, keepdim=True).values + 1 - input_ids.shape[1]
        return positions.expand(3, *positions.shape), after
