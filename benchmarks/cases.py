"""The pieces of work that are counted and timed on a processor, each with the same work done by other means.

Names say what one step is: `decode` a token, `update` a guided update of an image, everything else a whole call.

Shape legend: T latent tokens, L latent token dimension, C latent channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from unimedvl.modeling_unimedvl.flow_unimedvl import TASK_PRESETS, FlowSettings

from .gpu.architecture import prompt
from .naive import Context, Naive
from .naive_training import NaivePack, training_loss
from .reference_size import DEVICE, VIT_GRID, image_prompt, reference_model, training_pack
from .steps import Case, Mark, calls, last, stepwise

ALWAYS = (0.0, 1.0)
# Of a whole image from a text, some guided and some not, beside reading the prompt and the autoencoder.
IMAGE_UPDATES = 5
# Both sides compute in float32 in another order; velocities and latents are of the order of 1.
TOLERANCE = 1e-4


@cache
def the_model() -> Any:
    """The model that all cases share."""
    return reference_model()


def close(ours: Any, other: Any) -> None:
    """Check that lists of tensors are equal up to rounding."""
    torch.testing.assert_close(ours, other, rtol=TOLERANCE, atol=TOLERANCE)


def same(ours: Any, other: Any) -> None:
    """Check that ids are equal."""
    assert ours == other, f"the ids differ: {ours} and {other}"


# Text


def answered(model: Any, inputs: dict[str, torch.Tensor], count: int) -> list[list[int]]:
    """Greedy answers of `count` tokens to prompts, by `generate`."""
    bos = torch.full_like(inputs["input_ids"][:, :1], model.config.bos_token_id)
    added = {"input_ids": bos, "attention_mask": torch.ones_like(bos), "mm_token_type_ids": torch.zeros_like(bos)}
    inputs = {
        name: torch.cat([value, added[name]], dim=1) if name in added else value for name, value in inputs.items()
    }
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=count)
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def marking_tokens(model: Any, inputs: dict[str, torch.Tensor], mark: Mark, steps: int) -> list[list[int]]:
    """Decode, with a mark at every forward pass but that of the prompt."""
    passes = iter(range(steps + 2))
    hook = model.register_forward_pre_hook(lambda *call: mark() if next(passes) else None)
    try:
        return answered(model, inputs, steps + 2)
    finally:
        hook.remove()


def decode(context: int, rows: int = 1) -> Case:
    """One token after texts of `context` tokens; the reference writes one answer at a time."""
    model, naive = the_model(), Naive(the_model())
    inputs = prompt(model.config, DEVICE, context - 2, rows=rows)

    def other(steps: int) -> Iterator[tuple[int, ...]]:
        contexts = [Context() for _ in range(rows)]
        for read, row in zip(contexts, inputs["input_ids"], strict=True):
            naive.read(read, {"input_ids": row[None]}, [])
        return islice(zip(*map(naive.written, contexts), strict=True), steps + 2)

    def check(ours: list[list[int]], others: list[tuple[int, ...]]) -> None:
        same(list(zip(*ours, strict=True)), others)

    return Case(partial(marking_tokens, model, inputs), other, check)


def naive_answer(naive: Naive, inputs: dict[str, torch.Tensor], tokens: int) -> list[int]:
    """Read a prompt and write an answer in the reference's order."""
    read = Context()
    naive.read(read, inputs, [])
    return list(islice(naive.written(read), tokens))


def prefill(images: int) -> Case:
    """The first token of an answer to a question about images."""
    model, naive = the_model(), Naive(the_model())
    inputs = prompt(model.config, DEVICE, 62, vit_grid=VIT_GRID)
    block = VIT_GRID[0] * VIT_GRID[1] + 2
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = torch.cat([inputs[name][:, :block].repeat(1, images - 1), inputs[name]], dim=1)
    for name in ("pixel_values", "image_grid_thw"):
        inputs[name] = inputs[name].repeat(images, 1)
    return calls(lambda: answered(model, inputs, 1)[0], lambda: naive_answer(naive, inputs, 1), same)


def decode_as_qwen2(context: int) -> Case:
    """One token, beside transformers' Qwen2 of equal size, which has no norms of queries and keys."""
    model = the_model()
    text = model.config.text_config.to_dict()
    fields = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rope_parameters",
        "tie_word_embeddings",
    )
    torch.manual_seed(0)
    qwen = Qwen2ForCausalLM(Qwen2Config(**{name: text[name] for name in fields}, bos_token_id=4001)).eval()
    qwen.generation_config.pad_token_id = model.config.pad_token_id
    inputs = prompt(model.config, DEVICE, context - 2)

    def other(steps: int) -> Iterator[int]:
        return stepwise(lambda mark: marking_tokens(qwen, inputs, mark, steps))

    def check(ours: list[list[int]], others: list[int]) -> None:
        assert len(ours[0]) == len(others) + 2, "an answer ended early"

    return Case(partial(marking_tokens, model, inputs), other, check)


# Images


def flow_fields(edited: bool, updates: int, **changes: Any) -> dict[str, Any]:
    """Settings of the preset with another number of updates."""
    preset = TASK_PRESETS["edit" if edited else "t2i"]
    return {name: value for name, value in preset.items() if name not in ("height", "width")} | {
        "num_inference_steps": updates,
        **changes,
    }


def drawn(*shape: int, seed: int) -> torch.Tensor:
    """Normal noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class ImageRequest:
    """An image of `side` pixels from a text, or of an image that is edited, with all noise given."""

    side: int
    edited: bool = False
    images: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        tokens = self.side // the_model().config.pixels_per_latent_token
        return tokens, tokens

    def noise(self) -> list[torch.Tensor]:
        """Initial latent tokens (T, L) of each image."""
        rows, columns = self.grid
        return [drawn(rows * columns, the_model().config.latent_dim, seed=3 + index) for index in range(self.images)]

    def posterior_noise(self) -> list[torch.Tensor]:
        """Noise (C, h, w) of the image that is edited."""
        config = the_model().config
        cells = self.grid[0] * config.latent_patch_size
        return [drawn(config.vae_config.latent_channels, cells, cells, seed=2)] if self.edited else []

    def generate(self, fields: dict[str, Any], **options: Any) -> Any:
        """The result of the package's `generate`."""
        model = the_model()
        return model.generate(
            **image_prompt(model.config, self.side, self.edited),
            generation_mode="image",
            height=self.side,
            width=self.side,
            num_images_per_prompt=self.images,
            latents=self.noise(),
            vae_noise=self.posterior_noise() or None,
            show_progress=False,
            return_dict_in_generate=True,
            **fields,
            **options,
        )

    def contexts(self, naive: Naive) -> dict[str, Context]:
        """Contexts of the guidance branches, read one by one."""
        inputs = image_prompt(naive.config, self.side, self.edited)
        images = list(inputs["latent_pixel_values"]) if self.edited else []
        full, alone = Context(), Context()
        before = naive.read(full, inputs, naive.encode(images, self.posterior_noise()))
        if not self.edited:
            return {"cond": full, "text": before[-1]}
        naive.read(alone, image_prompt(naive.config, self.side), [])
        return {"cond": full, "text": before[-1], "image": alone}

    def naive_latents(self, naive: Naive, fields: dict[str, Any], index: int = 0) -> Iterator[torch.Tensor]:
        """Latent tokens after each update in the reference's order."""
        return naive.denoised(self.contexts(naive), self.grid, self.noise()[index], FlowSettings(**fields))


def update(side: int, edited: bool = False) -> Case:
    """One guided update."""
    request = ImageRequest(side, edited)

    def fields(steps: int) -> dict[str, Any]:
        # One update comes before the first mark.
        return flow_fields(edited, steps + 1, cfg_interval=ALWAYS)

    def ours(mark: Mark, steps: int) -> torch.Tensor:
        return request.generate(fields(steps), callback_on_step_end=lambda *step: mark()).latents[0]

    def other(steps: int) -> Iterator[torch.Tensor]:
        return request.naive_latents(Naive(the_model()), fields(steps))

    return Case(ours, other, partial(last, close))


def whole_image(side: int, edited: bool = False, images: int = 1) -> Case:
    """Images of one prompt from ids to pixels; the reference makes one at a time, and reads the prompt for each."""
    request, naive = ImageRequest(side, edited, images), Naive(the_model())
    fields = flow_fields(edited, IMAGE_UPDATES)

    def other() -> list[torch.Tensor]:
        latents = [list(request.naive_latents(naive, fields, index))[-1] for index in range(images)]
        return naive.decode([naive.latent(tokens, request.grid) for tokens in latents])

    return calls(lambda: list(request.generate(fields).images), other, close)


def encode(side: int, images: int = 1) -> Case:
    """Latents of images by the autoencoder."""
    request, model = ImageRequest(side, edited=True), the_model()
    pixels = [drawn(3, side, side, seed=4 + index).clamp(-1, 1) for index in range(images)]
    noise = request.posterior_noise() * images
    naive = Naive(model)
    return calls(lambda: model.model.encode_latents(pixels, noise), lambda: naive.encode(pixels, noise), close)


def decode_pixels(side: int, images: int = 1) -> Case:
    """Pixels of latents by the autoencoder."""
    request, naive = ImageRequest(side, images=images), Naive(the_model())
    latents = [naive.latent(tokens, request.grid) for tokens in request.noise()]
    return calls(lambda: the_model().model.decode_latents(latents), lambda: naive.decode(latents), close)


# Training


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss and all gradients by name, which are taken away from the weights."""
    loss.backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return {"loss": loss.detach(), **found}


def close_gradients(ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Check that gradients differ by rounding, measured by the largest one, since some are sums that cancel.

    The package also gives a gradient of zero to parts that a pack does not use.
    """
    largest = max(value.abs().max().item() for value in other.values())
    assert not other.keys() - ours.keys(), "gradients that the package lacks"
    for name, value in ours.items():
        expected = other.get(name, torch.zeros_like(value))
        torch.testing.assert_close(value, expected, rtol=TOLERANCE, atol=TOLERANCE * min(largest, 1.0))


def train(samples: int, tokens: int) -> Case:
    """Forward and backward of a pack."""
    model = the_model()
    pack = training_pack(model.config, samples, tokens)
    naive, naive_pack = Naive(model), NaivePack.from_pack(pack)

    def ours() -> dict[str, torch.Tensor]:
        model.train()
        try:
            return gradients(model, model(**pack).loss)
        finally:
            model.eval()

    return calls(ours, lambda: gradients(model, training_loss(naive, naive_pack)), close_gradients)


# What is compared with the reference's order.
COMPARED: dict[str, Callable[[], Case]] = {
    "decode, context 64": partial(decode, 64),
    "decode, context 2048": partial(decode, 2048),
    "decode, context 8192": partial(decode, 8192),
    "decode, 16 prompts of 64": partial(decode, 64, rows=16),
    "prefill, 1 image": partial(prefill, 1),
    "prefill, 4 images": partial(prefill, 4),
    "text to image, update, 64 pixels": partial(update, 64),
    "text to image, update, 256 pixels": partial(update, 256),
    "text to image, update, 512 pixels": partial(update, 512),
    "text to image, whole, 256 pixels": partial(whole_image, 256),
    "edit, update, 256 pixels": partial(update, 256, edited=True),
    "edit, 4 images of a prompt, 128 pixels": partial(whole_image, 128, edited=True, images=4),
    "autoencoder, encode, 256 pixels": partial(encode, 256),
    "autoencoder, decode, 256 pixels": partial(decode_pixels, 256),
    "training step, 3 samples of 1454 tokens": partial(train, 3, 1454),
}
# Further points of the curves of growth.
GROWN: dict[str, Callable[[], Case]] = {
    "decode, context 512": partial(decode, 512),
    "decode, 4 prompts of 64": partial(decode, 64, rows=4),
    "text to image, update, 128 pixels": partial(update, 128),
    "edit, 1 image of a prompt, 128 pixels": partial(whole_image, 128, edited=True, images=1),
    "edit, 2 images of a prompt, 128 pixels": partial(whole_image, 128, edited=True, images=2),
    "training step, 1 sample of 485 tokens": partial(train, 1, 485),
    "training step, 6 samples of 2908 tokens": partial(train, 6, 2908),
}
# Beside transformers' Qwen2.
BESIDE_QWEN2: dict[str, Callable[[], Case]] = {
    "decode beside Qwen2, context 64": partial(decode_as_qwen2, 64),
    "decode beside Qwen2, context 2048": partial(decode_as_qwen2, 2048),
}
# Quick ones.
SMALL = (
    "decode, context 64",
    "prefill, 1 image",
    "text to image, update, 64 pixels",
    "edit, 1 image of a prompt, 128 pixels",
    "training step, 1 sample of 485 tokens",
)
