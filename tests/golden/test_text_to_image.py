"""Images from text: guidance, renorms, intervals, and a batch of two sizes."""

import torch

from unimedvl.modeling_unimedvl.flow_unimedvl import RENORM_TYPES

from .reference import JSON, Context, left_pad, merged_places
from .sampling_reference import (
    compare_noise,
    compare_schedule,
    noise_calls,
    recorded_noise,
    sample,
    sampling_arguments,
)

FILE = "gen_t2i.safetensors"


def prompt(golden, model, name: str) -> Context:
    return Context(model.config).text(golden.argument(JSON, f"/prompts/{name}"))


@torch.no_grad()
def test_run(golden, model, t2i_run):
    pointer = f"/t2i/{t2i_run}"
    context = prompt(golden, model, golden.argument(JSON, f"{pointer}/prompt"))
    size = tuple(golden.argument(JSON, f"{pointer}/image_hw"))
    arguments = sampling_arguments(golden, pointer)
    compare_noise(golden, FILE, "t2i", t2i_run, noise_calls(model, [], [size]))
    noise = recorded_noise(golden, FILE, "t2i", t2i_run)
    flow = sample(model, context, size, latents=noise, **arguments)

    golden.compare_run(FILE, pointer, flow.tensors)
    compare_schedule(golden, pointer, arguments, flow)
    golden.compare_all(FILE, f"{t2i_run}.prep.", latent_fields(model, [context], [size]))
    if golden.has_tensor(FILE, f"{t2i_run}.noise_0"):
        generator = torch.Generator().manual_seed(golden.value(JSON, f"{pointer}/seed"))
        seeded = sample(model, context, size, generator=generator, **arguments)
        golden.compare_run(FILE, pointer, seeded.tensors)


@torch.no_grad()
def test_batch(golden, model, t2i_batch):
    """Prompts and sizes differ within the batch; `prep` describes it, every other name is a run."""
    pointer = f"/t2i/{t2i_batch}"
    contexts = [prompt(golden, model, name) for name in golden.argument(JSON, f"{pointer}/prompts")]
    sizes = golden.argument(JSON, f"{pointer}/sizes")
    compare_noise(golden, FILE, "t2i", t2i_batch, noise_calls(model, [], sizes))
    golden.compare_all(FILE, f"{t2i_batch}.prep.", latent_fields(model, contexts, sizes))

    noise = [golden.input(FILE, f"{t2i_batch}.noise_{index}") for index in range(len(contexts))]
    batch = left_pad([context.inputs() for context in contexts])
    runs = {name.split(".")[1] for name in golden.tensor_names(FILE, f"{t2i_batch}.") if ".latent_" in name}
    for run in sorted(runs):
        # The reference's low-level call: no guidance unless the run says so.
        arguments = sampling_arguments(golden, pointer) | {"guidance_scale": 1.0, "image_guidance_scale": 1.0}
        if golden.value(JSON, f"{pointer}/{run}") is not None:
            arguments["guidance_scale"] = golden.argument(JSON, f"{pointer}/{run}/cfg_text_scale")
        if run in RENORM_TYPES:
            arguments["cfg_renorm_type"] = run
        output = model.generate(
            **batch,
            generation_mode="image",
            height=[height for height, _ in sizes],
            width=[width for _, width in sizes],
            latents=noise,
            show_progress=False,
            return_dict_in_generate=True,
            **arguments,
        )
        ours = {f"latent_{index}": latents for index, latents in enumerate(output.latents)}
        golden.compare_all(FILE, f"{t2i_batch}.{run}.", ours)


def latent_fields(model, contexts: list[Context], sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """The reference's packed description of the images to be generated after the contexts, from ours."""
    config = model.config
    cell = config.pixels_per_latent_token
    grids = [(height // cell, width // cell) for height, width in sizes]
    cached = [context.inputs()["input_ids"].shape[1] for context in contexts]
    counts = [rows * columns for rows, columns in grids]
    lengths = [count + 2 for count in counts]
    cache_places, places = merged_places(cached, lengths)
    positions = torch.tensor([context.next_position() for context in contexts])
    is_marker = torch.cat([torch.tensor([True, *[False] * count, True]) for count in counts])
    markers = [config.vision_start_token_id, config.vision_end_token_id]
    return {
        "key_values_lens": torch.tensor(cached),
        "packed_indexes": places,
        "packed_key_value_indexes": cache_places,
        "packed_position_ids": positions.repeat_interleave(torch.tensor(lengths)),
        "packed_seqlens": torch.tensor(lengths),
        "packed_text_ids": torch.tensor(markers * len(contexts)),
        "packed_text_indexes": is_marker.nonzero()[:, 0],
        "packed_vae_position_ids": torch.cat([model.model.latent_position_ids(*grid) for grid in grids]),
        "packed_vae_token_indexes": (~is_marker).nonzero()[:, 0],
    }
