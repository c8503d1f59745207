"""Question, answer and the input images drawn again (UniMedVL's reconstruction routines)."""

import torch

from .records import ABSOLUTE, AFTER_ROUND_TRIP, TENSOR
from .reference import JSON, Context, answer, decode
from .sampling_reference import compare_noise, flow_tensors, noise_calls, recorded_noise, sample, sampling_arguments

FILE = "think.safetensors"


@torch.no_grad()
def test_all_images_in_turn(golden, model, images, reconstruction_ver1):
    """Answer, then every input image; each generated image joins the context before the next one is drawn."""
    pointer = f"/think/{reconstruction_ver1}"
    context, _ = question_context(golden, model, images, pointer)
    max_length = golden.argument(JSON, f"{pointer}/max_think_token_n")
    arguments = sampling_arguments(golden, pointer)
    count = len(context.latent_pixels)
    sizes = [tuple(pixels.shape[1:]) for pixels in context.latent_pixels]
    calls = noise_calls(model, context.latent_pixels, [])
    for pixels, size in zip(context.latent_pixels, sizes, strict=True):
        # The new image is encoded for the main and for the text-guidance context.
        calls += noise_calls(model, [], [size]) + 2 * noise_calls(model, [pixels], [])
    compare_noise(golden, FILE, "think", reconstruction_ver1, calls)

    noise = recorded_noise(golden, FILE, "think", reconstruction_ver1)
    initial = [draw for draw, (kind, _) in zip(noise, calls, strict=True) if kind == "randn"]
    posterior = [draw[0] for draw, (kind, _) in zip(noise, calls, strict=True) if kind == "randn_like"]
    seed = golden.value(JSON, f"{pointer}/seed")
    for draws in (
        {"latents": initial, "vae_noise": posterior},
        {"generator": torch.Generator().manual_seed(seed)},
    ):
        steps = []
        output = model.generate(
            **context.inputs(),
            generation_mode="interleaved",
            segments=["text", *["image"] * count],
            max_new_tokens=max_length - 1,
            do_sample=False,
            preset="reconstruction",
            callback_on_step_end=lambda model, step, time, values, steps=steps: steps.append(values),
            show_progress=False,
            **draws,
            **arguments,
        )
        for index in range(count):
            mine = steps[index * arguments["num_inference_steps"] : (index + 1) * arguments["num_inference_steps"]]
            tensors = flow_tensors(model, mine, 0, output.latents[index], output.images[index], True)
            tolerance = TENSOR if index == 0 else AFTER_ROUND_TRIP
            compare_image(golden, reconstruction_ver1, index, tensors, tolerance)
        ids = [model.config.bos_token_id, *output.segments[0].tolist()]
        compare_answer(golden, model, reconstruction_ver1, ids)
    compare_margin(golden, model, pointer, context, max_length, posterior[:count])


@torch.no_grad()
def test_first_image_after_the_answer(golden, model, images, reconstruction_ver0):
    """Answer in one context; then a fresh context of the first image and the answer, without the question."""
    pointer = f"/think/{reconstruction_ver0}"
    context, indices = question_context(golden, model, images, pointer)
    max_length = golden.argument(JSON, f"{pointer}/max_think_token_n")
    arguments = sampling_arguments(golden, pointer)
    first = context.latent_pixels[:1]
    size = tuple(first[0].shape[1:])
    calls = noise_calls(model, context.latent_pixels, []) + noise_calls(model, first, [size])
    compare_noise(golden, FILE, "think", reconstruction_ver0, calls)

    noise = recorded_noise(golden, FILE, "think", reconstruction_ver0)
    posterior = [draw[0] for draw in noise[:-1]]
    count = len(context.latent_pixels)
    reply = compare_margin(golden, model, pointer, context, max_length, posterior[:count])
    compare_answer(golden, model, reconstruction_ver0, reply)
    fresh = Context(model.config).vae(first[0]).vit(*images.vit_patches(indices[0], after_vae=True)).text(reply[1:])
    flow = sample(
        model, fresh, size, latents=noise[-1:], vae_noise=posterior[count:], preset="reconstruction", **arguments
    )
    compare_image(golden, reconstruction_ver0, 0, flow.tensors, TENSOR)


def question_context(golden, model, images, pointer: str) -> tuple[Context, list[int]]:
    """The inputs in order, images as VAE and ViT blocks; and which images they are."""
    context, indices = Context(model.config), []
    for name in golden.argument(JSON, f"{pointer}/inputs"):
        index = images.index_of(name)
        if index is None:
            context.text(golden.argument(JSON, f"/prompts/{name}"))
        else:
            context.vae(images.vae_pixels(index)).vit(*images.vit_patches(index, after_vae=True))
            indices.append(index)
    return context, indices


def compare_image(golden, run: str, index: int, tensors: dict[str, torch.Tensor], tolerance: float):
    golden.compare_all(FILE, f"{run}.", {f"{name}_{index}": value for name, value in tensors.items()}, tolerance)


def compare_answer(golden, model, run: str, ids: list[int]):
    golden.compare_all(FILE, f"{run}.", {"generated_ids": torch.tensor(ids)})
    golden.equal_all(JSON, f"/think/{run}", {"ids": ids, "text": decode(ids, model.config)})


def compare_margin(golden, model, pointer: str, context: Context, max_length: int, vae_noise) -> list[int]:
    reply = answer(model, context, max_length, vae_noise=vae_noise)
    tolerance = 2 * (TENSOR * reply.logits.abs().max().item() + ABSOLUTE)
    golden.equal_all(JSON, pointer, {"min_top2_margin": reply.margin}, absolute=tolerance)
    return reply.ids
