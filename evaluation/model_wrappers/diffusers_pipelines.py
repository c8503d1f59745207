"""Any diffusers pipeline that makes images from a text, or from a text and an image."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from .base import Conversation, images_of, last_text


def abilities_of(pipeline: type) -> frozenset[str]:
    """What a class of pipelines can do by the parameters of its call.

    That `image` has a default does not say that it may be left out, since image-to-image pipelines have one as well:
    its type has to allow None too, and pipelines named as editors or with a mask need an image all the same.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    if "prompt" not in parameters:
        return frozenset()
    if "image" not in parameters:
        return frozenset({"image"})
    image = parameters["image"]
    optional = image.default is None and any(word in str(image.annotation) for word in ("None", "Optional"))
    if optional and "mask_image" not in parameters and "Edit" not in pipeline.__name__:
        return frozenset({"image", "image_from_image"})
    return frozenset({"image_from_image"})


class DiffusersModel:
    """A pipeline; the parameters of its call say what it can do."""

    def __init__(
        self,
        path: str,
        *,
        revision: str | None,
        dtype: Any,
        device: torch.device,
        steps: int | None,
        trust_remote_code: bool,
    ):
        from diffusers import DiffusionPipeline

        options: dict[str, Any] = {"revision": revision, "use_safetensors": True}
        if trust_remote_code:
            options["trust_remote_code"] = True
        if dtype != "auto":
            options["torch_dtype"] = dtype
        try:
            self.pipeline = DiffusionPipeline.from_pretrained(path, **options).to(device)
        except (OSError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        self.pipeline.set_progress_bar_config(disable=True)
        self.name = path
        self.steps = steps
        self.abilities = abilities_of(type(self.pipeline))
        if not self.abilities:
            raise ValueError(f"{path}: {type(self.pipeline).__name__} takes no prompt: give a text-to-image pipeline.")
        self.settings: dict[str, Any] = {"class": type(self.pipeline).__name__, "steps": steps}

    def write(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[tuple[str, float | None]]:
        raise AssertionError("a pipeline writes no text: the runner asks by abilities")

    def draw(self, conversations: Sequence[Conversation], preset: str, seeds: Sequence[int]) -> list[Image.Image]:
        options: dict[str, Any] = {} if self.steps is None else {"num_inference_steps": self.steps}
        given = [images_of(conversation) for conversation in conversations]
        # What shares a batch has the same number of images.
        if "image_from_image" in self.abilities and given[0]:
            options["image"] = [images[-1] for images in given]
        images: list[Image.Image] = self.pipeline(
            prompt=[last_text(conversation) for conversation in conversations],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pil",
            **options,
        ).images
        return images
