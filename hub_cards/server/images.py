"""Images made: batched denoising, and what a request becomes on the way to a PNG with its provenance."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from unimedvl.checkpoint.conversations import person_turn, typed_inputs
from unimedvl.checkpoint.folder import Checkpoint
from unimedvl.checkpoint.provenance import generated_png

from .lanes import Job, Lane
from .metrics import Metrics
from .rows import joined
from .turns import Turns

LANE = "image"


@dataclass(frozen=True)
class ImageRequest:
    """What to make.

    Args:
        prompt: the text.
        n: images of it.
        seed: of the noise.
        settings: arguments of `generate`: the preset, and what replaces its values.
        input_hashes: SHA-256 of each input image's file; the images themselves are not kept while it waits.
    """

    prompt: str
    n: int
    seed: int
    settings: dict[str, Any]
    input_hashes: tuple[str, ...] = ()

    def inputs(self, processor: Any, images: Sequence[Image.Image]) -> Any:
        """The model inputs of the prompt and its input images, on the CPU."""
        return typed_inputs(processor, [person_turn(self.prompt, images)], generation_mode="image")

    def encoded(self, images: list[Image.Image], checkpoint: Checkpoint) -> list[str]:
        """Generated images as base64 of PNG files with their provenance."""
        files = []
        for number, image in enumerate(images):
            png, _ = generated_png(
                image,
                model=checkpoint.name,
                revision=checkpoint.revision,
                seed=self.seed,
                prompt=self.prompt,
                input_hashes=list(self.input_hashes),
                settings={**self.settings, "think": False, "index": number},
            )
            files.append(base64.b64encode(png).decode("ascii"))
        return files


class ImageJob(Job):
    """One request's images to denoise.

    Args:
        request: what to make.
        inputs: of its prompt, on the model's device.
        seconds: until it has to be answered.
    """

    def __init__(self, request: ImageRequest, inputs: dict[str, Any], seconds: float):
        # Images without a size of their own take that of their input: those of one size go together.
        sizes = inputs.get("latent_image_sizes")
        shape = None if sizes is None else tuple(map(tuple, sizes.tolist()))
        key = (request.n, shape, tuple(sorted((name, repr(value)) for name, value in request.settings.items())))
        super().__init__(key, request.n, seconds)
        self.request, self.inputs = request, inputs


class _Abandoned(Exception):
    """Nobody waits for any image of the batch."""


class ImageWorker:
    """Denoises batches of images; what the image lane runs.

    Args:
        network: the model.
        processor: makes images of its output.
        turns: shared with the text lane.
        metrics: counts images and tokens.
    """

    def __init__(self, network: Any, processor: Any, turns: Turns, metrics: Metrics):
        self._network, self._processor, self._turns, self._metrics = network, processor, turns, metrics

    def __call__(self, jobs: list[ImageJob]) -> None:
        def after_step(model: Any, step: int, timestep: float, values: dict[str, Any]) -> None:
            if all(job.ended for job in jobs):
                raise _Abandoned
            self._turns.offer(LANE)

        count = jobs[0].request.n
        sources = [torch.Generator().manual_seed(job.request.seed) for job in jobs]
        with self._turns.held(LANE):
            try:
                pixels = self._network.generate(
                    **joined([job.inputs for job in jobs], self._processor.tokenizer.pad_token_id),
                    **jobs[0].request.settings,
                    generation_mode="image",
                    num_images_per_prompt=count,
                    # The images of a request draw from one generator in turn, as in `unimedvl generate`.
                    generator=[source for source in sources for _ in range(count)],
                    callback_on_step_end=after_step,
                    show_progress=False,
                )
            except _Abandoned:
                return
        images = self._processor.post_process_multimodal_output(pixels, generation_mode="image")
        for number, job in enumerate(jobs):
            self._metrics.images_made(count)
            self._metrics.tokens_used(job.inputs["input_ids"].shape[1], 0)
            job.finish(images[number * count : (number + 1) * count])


async def make_images(lane: Lane, request: ImageRequest, inputs: dict[str, Any], seconds: float) -> list[Image.Image]:
    """Send a request through the lane.

    Raises:
        ApiError: if its time is over, or the device cannot do it.
        ValueError: for settings that the model refuses.
    """
    job = ImageJob(request, inputs, seconds)
    lane.submit(job)
    return await job.result()
