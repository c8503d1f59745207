"""Any diffusers pipeline that makes pictures from a text, or from a text and a picture."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from .base import Conversation, last_text, pictures_of


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
        parameters = inspect.signature(self.pipeline.__call__).parameters
        if "prompt" not in parameters:
            raise ValueError(f"{path}: {type(self.pipeline).__name__} takes no prompt: give a text-to-image pipeline.")
        self.name = path
        self.steps = steps
        self.abilities = frozenset({"image_from_image" if "image" in parameters else "image"})
        self.settings: dict[str, Any] = {"class": type(self.pipeline).__name__, "steps": steps}

    def write(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[tuple[str, float | None]]:
        raise AssertionError("a pipeline writes no text: the runner asks by abilities")

    def draw(self, conversations: Sequence[Conversation], preset: str, seeds: Sequence[int]) -> list[Image.Image]:
        options: dict[str, Any] = {} if self.steps is None else {"num_inference_steps": self.steps}
        if "image_from_image" in self.abilities:
            options["image"] = [pictures_of(conversation)[-1] for conversation in conversations]
        pictures: list[Image.Image] = self.pipeline(
            prompt=[last_text(conversation) for conversation in conversations],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pil",
            **options,
        ).images
        return pictures
