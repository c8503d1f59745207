"""UniMedVL in vLLM: its Transformers backend, with the markers of an image inside the image.

The backend replaces a placeholder by the patches of an image, and vLLM attends in both directions among those. In
UniMedVL the two markers around the patches belong to the same block. Here they are replaced with the placeholder.

Shape legend: P patches, D hidden.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptReplacement, PromptUpdate


class ProcessingInfo(MultiModalProcessingInfo):
    """Counts of tokens, markers included."""

    def get_max_image_tokens(self) -> int:
        """The most tokens that an image takes."""
        return super().get_max_image_tokens() + 2


class DummyInputsBuilder(MultiModalDummyInputsBuilder):
    """Prompts as the template makes them."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """One block of an image each."""
        processor: Any = self.info.get_hf_processor()
        block = processor.vision_start_token + processor.image_token + processor.vision_end_token
        return block * mm_counts.get("image", 0)


class Processor(MultiModalProcessor):
    """Replaces a marker, a placeholder and a marker."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        processor: Any = self.info.get_hf_processor(**hf_processor_mm_kwargs)
        start, end = processor.vision_start_token_id, processor.vision_end_token_id
        # All of a replacement then counts as the image.
        blocks = [
            [start, *item.pop("image_replacement_ids").data.tolist(), end] for item in out_mm_kwargs.get("image", [])
        ]
        if not blocks:
            return []
        return [
            PromptReplacement(
                modality="image",
                target=[start, processor.image_token_id, end],
                replacement=blocks.__getitem__,
            )
        ]


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputsBuilder)
class UniMedVLForConditionalGeneration(TransformersMultiModalForCausalLM):
    """The understanding half of UniMedVL."""

    def embed_multimodal(self, **kwargs: object) -> list[torch.Tensor]:
        """Input rows (P + 2, D) of each image, its markers first and last."""
        config: Any = self.config
        images = list(super().embed_multimodal(**kwargs))
        if not images:
            return images
        ids = torch.tensor([config.vision_start_token_id, config.vision_end_token_id], device=images[0].device)
        start_1D, end_1D = self.embed_input_ids(ids).to(images[0]).split(1)
        return [torch.cat([start_1D, rows_PD, end_1D]) for rows_PD in images]
