"""A nano that answers and draws, through the public interface: the checkpoint folder, the processor, `generate`."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from unimedvl.checkpoint.loading import load

BATCH = 32
Content = list[dict[str, Any]]


class Nano:
    """A loaded checkpoint that answers and draws in batches."""

    def __init__(self, folder: str, settings: dict[str, Any] | None = None):
        self.model, self.processor, _ = load(folder)
        self.settings = settings or {}

    def _inputs(self, contents: Sequence[Content], mode: str) -> dict[str, Any]:
        return self.processor.apply_chat_template(
            [[{"role": "user", "content": content}] for content in contents],
            generation_mode=mode,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Greedy answers to one question about each image."""
        answers: list[str] = []
        for start in range(0, len(images), BATCH):
            pairs = zip(images[start : start + BATCH], questions[start : start + BATCH], strict=True)
            contents = [
                [{"type": "image", "image": image}, {"type": "text", "text": question}] for image, question in pairs
            ]
            inputs = self._inputs(contents, "text")
            ids = self.model.generate(**inputs, max_new_tokens=24, do_sample=False)
            answers += self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def draw(
        self, prompts: Sequence[str], preset: str, images: Sequence[Image.Image] | None = None, seed: int = 0
    ) -> list[Image.Image]:
        """One picture for each prompt, from an image where there are images; each has a seed of its own."""
        made: list[Image.Image] = []
        for start in range(0, len(prompts), BATCH):
            chosen = range(start, min(len(prompts), start + BATCH))
            contents: list[Content] = [
                ([{"type": "image", "image": images[index]}] if images else [])
                + [{"type": "text", "text": prompts[index]}]
                for index in chosen
            ]
            pixels = self.model.generate(
                **self._inputs(contents, "image"),
                generation_mode="image",
                preset=preset,
                generator=[torch.Generator().manual_seed(seed + index) for index in chosen],
                show_progress=False,
                **self.settings,
            )
            made += self.processor.post_process_multimodal_output(pixels, generation_mode="image")
        return made

    def reconstruct(self, image: Image.Image) -> Image.Image:
        """What the autoencoder makes of a picture of the nano's size."""
        inputs = self.processor.image_processor([image], generation_mode="image", return_tensors="pt")
        latents = self.model.model.encode_latents(list(inputs["latent_pixel_values"]), sample_mode="mode")
        pixels = self.model.model.decode_latents(latents)
        return self.processor.post_process_multimodal_output(pixels, generation_mode="image")[0]
