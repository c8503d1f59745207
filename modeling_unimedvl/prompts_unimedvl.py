"""Prompts and their images: what the processor returned, checked, counted and repeated.

Shape legend: B prompts, S prompt tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from .blocks_unimedvl import BlockKind

_IMAGES = ("pixel_values", "image_grid_thw", "latent_pixel_values", "latent_image_sizes")
# What the processor returns with `generation_mode="image"`.
PROMPT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", *_IMAGES)


def execution_device(model: PreTrainedModel) -> torch.device:
    """The device on which tensors are computed; offloaded weights themselves lie on the meta device."""
    if model.device.type != "meta":
        return model.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


@dataclass(frozen=True)
class Prompts:
    """Prompts as the processor returns them with `generation_mode="image"`, on the model's device.

    Attributes:
        input_ids: int64 (B, S).
        attention_mask: bool (B, S), tokens that are read.
        kinds: int64 (B, S), `mm_token_type_ids`, see `BlockKind`.
        pixel_values, image_grid_thw: ViT patches of all input images, see `UniMedVLModel.get_image_features`.
        latent_pixel_values, latent_image_sizes: the same for the autoencoder, see `UniMedVLModel.input_latents`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    kinds: torch.Tensor
    pixel_values: torch.Tensor | None = None
    image_grid_thw: torch.Tensor | None = None
    latent_pixel_values: torch.Tensor | None = None
    latent_image_sizes: torch.Tensor | None = None

    @classmethod
    def from_inputs(cls, model: PreTrainedModel, inputs: Mapping[str, Any]) -> "Prompts":
        """Check what the processor returned, and hide the BOS that a text template ends with.

        A pipeline renders prompts for text; an image (or the first text segment) follows the prompt itself.

        Raises:
            ValueError: if `input_ids` is missing, empty or no batch of token ids, or if the images of a prompt were
                prepared for understanding only.
        """
        input_ids = inputs.get("input_ids")
        if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or torch.is_floating_point(input_ids):
            raise ValueError(
                "generate needs input_ids, int64 (prompts, tokens): pass the processor's output as keyword arguments."
            )
        if input_ids.numel() == 0:
            raise ValueError("The prompts are empty: give each at least one text or image.")
        device = execution_device(model)
        given = {name: inputs[name].to(device) for name in PROMPT_INPUTS if inputs.get(name) is not None}
        input_ids = given["input_ids"]
        mask = given.get("attention_mask", torch.ones_like(input_ids)) > 0
        columns = torch.arange(input_ids.shape[1], device=device)
        last = torch.where(mask, columns, -1).max(dim=1).values
        last_ids = input_ids.gather(1, last.clamp(min=0)[:, None])[:, 0]
        mask &= (columns != last[:, None]) | (last_ids != model.config.bos_token_id)[:, None]
        kinds = given.get("mm_token_type_ids")
        if kinds is None:
            has_images = "pixel_values" in given or "latent_pixel_values" in given
            kinds = model.model.token_kinds(input_ids) if has_images else torch.zeros_like(input_ids)
        seen = (kinds == BlockKind.VIT).any(dim=1) & ~(kinds == BlockKind.CLEAN).any(dim=1)
        if bool(seen.any()):
            raise ValueError(
                "The prompt's images came as ViT patches only, which cannot be edited: call the processor with "
                "generation_mode='image' or 'interleaved' (in a pipeline: "
                "processor_kwargs={'generation_mode': 'image'}), which adds latent_pixel_values."
            )
        return cls(input_ids, mask, kinds, **{name: given[name] for name in _IMAGES if name in given})

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def has_images(self) -> bool:
        return self.pixel_values is not None or self.latent_pixel_values is not None


@dataclass(frozen=True)
class PosteriorDraws:
    """How latents are drawn from the autoencoder's posterior, see `UniMedVLModel.encode_latents`.

    Attributes:
        noise: one tensor for each image; overrides `generator`.
        generator: one for all draws, or a list with one for each image.
        sample_mode: "sample", or "mode" for no randomness.
    """

    noise: list[torch.Tensor] | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    sample_mode: str = "sample"


def image_counts(kinds: torch.Tensor, kind: BlockKind) -> list[int]:
    """Number of images of one kind in each row of `mm_token_type_ids`."""
    here = kinds == kind
    return (here & ~F.pad(here[:, :-1], (1, 0))).sum(dim=1).tolist()


def images_of_new_tokens(inputs: dict) -> dict:
    """The images of the tokens that are not in the cache yet, when a conversation continues with all its images."""
    runs = image_counts(inputs["mm_token_type_ids"], BlockKind.VIT)[0] if "mm_token_type_ids" in inputs else None
    grid = inputs.get("image_grid_thw")
    if runs is None or grid is None or runs >= grid.shape[0]:
        return {}
    if runs == 0:
        return {"pixel_values": None, "image_grid_thw": None}
    return {
        "pixel_values": inputs["pixel_values"][-int(grid[-runs:].prod(dim=1).sum()) :],
        "image_grid_thw": grid[-runs:],
    }


def repeat_images(kinds: torch.Tensor, expand_size: int, inputs: dict) -> dict:
    """Repeat each row's images `expand_size` times, as beams and several returned sequences repeat the row."""
    repeated: dict[str, Any] = {}
    if inputs.get("pixel_values") is not None:
        grid = inputs["image_grid_thw"]
        images = inputs["pixel_values"].split(grid.prod(dim=1).tolist())
        order = _repeated_order(image_counts(kinds, BlockKind.VIT), expand_size)
        repeated["pixel_values"] = torch.cat([images[index] for index in order])
        repeated["image_grid_thw"] = grid[order]
    if inputs.get("latent_values") is not None:
        order = _repeated_order(image_counts(kinds, BlockKind.CLEAN), expand_size)
        repeated["latent_values"] = [inputs["latent_values"][index] for index in order]
    return repeated


def _repeated_order(counts: list[int], expand_size: int) -> list[int]:
    order, start = [], 0
    for count in counts:
        order.extend(list(range(start, start + count)) * expand_size)
        start += count
    return order
