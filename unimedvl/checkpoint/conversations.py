"""From what a person typed to the inputs of a model: for commands, pages and servers alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers import BatchFeature

from ..processing.processing_unimedvl import UniMedVLProcessor


def person_turn(text: str, images: Sequence[Image.Image | str] = ()) -> dict[str, Any]:
    """A turn of a person for a chat template: images or their paths, then words."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def typed_inputs(processor: UniMedVLProcessor, messages: Sequence[Mapping[str, Any]], **options: Any) -> BatchFeature:
    """The model inputs of a conversation, on the processor.

    Control tokens in what a person typed stay plain characters.

    Args:
        processor: of the model.
        messages: turns, see `person_turn`.
        **options: further arguments of `apply_chat_template`.

    Raises:
        ValueError: for what the processor refuses.
    """
    inputs = processor.apply_chat_template(
        list(messages),
        split_special_tokens=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    assert isinstance(inputs, BatchFeature)
    return inputs
