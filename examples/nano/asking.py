"""A nano that is asked and draws in batches, through the model wrapper of the benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from unimedvl.evaluation.model_wrappers import open_model

BATCH = 32
ANSWER_TOKENS = 24


def conversation(text: str, image: Image.Image | None = None) -> list[dict[str, Any]]:
    """One user message with a text, after an image where there is one."""
    content: list[dict[str, Any]] = [] if image is None else [{"type": "image", "image": image}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


class Nano:
    """A loaded checkpoint.

    Args:
        folder: of the checkpoint.
        sampling: settings of the sampler in the place of those of every task preset.
    """

    def __init__(self, folder: str, sampling: Mapping[str, Any] | None = None):
        wrapper: Any = open_model(folder)
        self.wrapper, self.model, self.processor = wrapper, wrapper.model, wrapper.processor
        for preset in self.model.generation_config.task_presets.values():
            preset.update(sampling or {})

    def ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Greedy answers to one question about each image."""
        asked = [conversation(question, image) for image, question in zip(images, questions, strict=True)]
        parts = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
        return [answer for part in parts for answer, _ in self.wrapper.write(part, ANSWER_TOKENS)]

    def draw(
        self, prompts: Sequence[str], preset: str, images: Sequence[Image.Image] | None = None, seed: int = 0
    ) -> list[Image.Image]:
        """One image for each prompt, from an image where there are images; each has a seed of its own."""
        given: Sequence[Image.Image | None] = images or [None] * len(prompts)
        asked = [conversation(prompt, image) for prompt, image in zip(prompts, given, strict=True)]
        seeds = range(seed, seed + len(asked))
        starts = range(0, len(asked), BATCH)
        batches = [(asked[start : start + BATCH], preset, seeds[start : start + BATCH]) for start in starts]
        return [image for batch in batches for image in self.wrapper.draw(*batch)]

    def reconstruct(self, image: Image.Image) -> Image.Image:
        """What the autoencoder makes of an image of the nano's size."""
        inputs = self.processor.image_processor([image], generation_mode="image", return_tensors="pt")
        latents = self.model.model.encode_latents(list(inputs["latent_pixel_values"]), sample_mode="mode")
        pixels = self.model.model.decode_latents(latents)
        return self.processor.post_process_multimodal_output(pixels, generation_mode="image")[0]
