"""Images from images and text: all renorms and intervals, one and two input images."""

import torch

from .reference import JSON, Context
from .sampling_reference import (
    compare_noise,
    compare_schedule,
    noise_calls,
    recorded_noise,
    sample,
    sampling_arguments,
)

FILE = "gen_edit.safetensors"


def edit_context(golden, model, images, pointer: str) -> Context:
    """All input images, each as VAE and ViT blocks, then the instruction."""
    indices = golden.argument(JSON, f"{pointer}/images")
    if indices is None:
        indices = [golden.argument(JSON, f"{pointer}/image")]
    context = Context(model.config)
    for index in indices:
        context.vae(images.vae_pixels(index)).vit(*images.vit_patches(index, after_vae=True))
    return context.text(golden.argument(JSON, f"/prompts/{golden.argument(JSON, f'{pointer}/prompt')}"))


@torch.no_grad()
def test_run(golden, model, images, edit_run):
    pointer = f"/edit/{edit_run}"
    context = edit_context(golden, model, images, pointer)
    size = tuple(golden.argument(JSON, f"{pointer}/image_hw"))
    arguments = sampling_arguments(golden, pointer)
    compare_noise(golden, FILE, "edit", edit_run, noise_calls(model, context.latent_pixels, [size]))
    *posterior, initial = recorded_noise(golden, FILE, "edit", edit_run)
    posterior = [noise[0] for noise in posterior]
    flow = sample(model, context, size, latents=[initial], vae_noise=posterior, **arguments)

    golden.compare_run(FILE, pointer, flow.tensors)
    compare_schedule(golden, pointer, arguments, flow)
    if golden.has_tensor(FILE, f"{edit_run}.noise_0"):
        generator = torch.Generator().manual_seed(golden.value(JSON, f"{pointer}/seed"))
        seeded = sample(model, context, size, generator=generator, **arguments)
        golden.compare_run(FILE, pointer, seeded.tensors)


@torch.no_grad()
def test_contexts(golden, model, images):
    """Hidden states of the main and of the image-free context, recorded for the runs with one input image."""
    if not golden.tensor_names(FILE, "context."):
        return
    run = golden.runs(JSON, "/edit", having="image")[0]
    posterior = [noise[0] for noise in recorded_noise(golden, FILE, "edit", run)[:-1]]
    context = edit_context(golden, model, images, f"/edit/{run}")
    output = model(**context.inputs(), vae_noise=posterior, output_hidden_states=True)
    positions = context.position_ids()
    ours = {}
    for name, segment in zip(("vae_image", "vit_image", "text"), context.segments(), strict=True):
        ours[f"ctx_{name}_embeds"] = output.hidden_states[0][0, segment]
        ours[f"ctx_{name}_hidden"] = output.hidden_states[-1][0, segment]
        ours[f"ctx_{name}_position_ids"] = positions[segment]

    without_image = Context(model.config, blocks=context.blocks[-1:])
    output = model(**without_image.inputs(), output_hidden_states=True)
    ours["cfg_img_ctx_text_hidden"] = output.hidden_states[-1][0]
    ours["cfg_img_ctx_text_position_ids"] = without_image.position_ids()
    golden.compare_all(FILE, "context.", ours)
