"""A thought first, then the image (or the answer)."""

import torch

from .records import ABSOLUTE, TENSOR
from .reference import JSON, Context, answer, decode
from .sampling_reference import (
    compare_noise,
    compare_schedule,
    noise_calls,
    recorded_noise,
    sample,
    sampling_arguments,
)

FILE = "think.safetensors"


@torch.no_grad()
def test_run(golden, model, images, think_run):
    pointer = f"/think/{think_run}"
    understanding = bool(golden.argument(JSON, f"{pointer}/understanding_output"))
    for name in ("think", "do_sample"):
        golden.argument(JSON, f"{pointer}/{name}")
    system = "sys_vlm_think" if understanding else "sys_gen_think"
    context = Context(model.config).text(golden.argument(JSON, f"/prompts/{system}"))
    for name in golden.argument(JSON, f"{pointer}/inputs"):
        index = images.index_of(name)
        if index is None:
            context.text(golden.argument(JSON, f"/prompts/{name}"))
            continue
        if not understanding:
            context.vae(images.vae_pixels(index))
        context.vit(*images.vit_patches(index, after_vae=True))
    max_length = golden.argument(JSON, f"{pointer}/max_think_token_n")

    if understanding:
        # Recorded beside the run, but no image is made and nothing is drawn.
        for name in ("cfg_interval", "cfg_renorm_min", "num_timesteps", "timestep_shift", "seed"):
            golden.argument(JSON, f"{pointer}/{name}")
        reply = answer(model, context, max_length)
        compare_thought(golden, model, think_run, reply.ids)
    else:
        size = tuple(golden.argument(JSON, f"{pointer}/image_shapes"))
        arguments = sampling_arguments(golden, pointer)
        compare_noise(golden, FILE, "think", think_run, noise_calls(model, context.latent_pixels, [size]))
        *posterior, initial = recorded_noise(golden, FILE, "think", think_run)
        posterior = [noise[0] for noise in posterior]
        think = {"think": True, "max_think_tokens": max_length - 1, "do_sample": False}
        flow = sample(model, context, size, latents=[initial], vae_noise=posterior or None, **think, **arguments)
        golden.compare_run(FILE, pointer, flow.tensors)
        compare_schedule(golden, pointer, arguments, flow)
        compare_thought(golden, model, think_run, flow.ids)
        generator = torch.Generator().manual_seed(golden.value(JSON, f"{pointer}/seed"))
        seeded = sample(model, context, size, generator=generator, **think, **arguments)
        golden.compare_run(FILE, pointer, seeded.tensors)
        reply = answer(model, context, max_length, **({"vae_noise": posterior} if posterior else {}))
    compare_thought(golden, model, think_run, reply.ids)
    tolerance = 2 * (TENSOR * reply.logits.abs().max().item() + ABSOLUTE)
    golden.equal_all(JSON, pointer, {"min_top2_margin": reply.margin}, absolute=tolerance)


def compare_thought(golden, model, run: str, ids: list[int]):
    golden.compare_all(FILE, f"{run}.", {"generated_ids": torch.tensor(ids)})
    golden.equal_all(JSON, f"/think/{run}", {"ids": ids, "text": decode(ids, model.config)})
