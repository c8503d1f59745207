"""The two image encoders: FLUX autoencoder, SigLIP vision transformer."""

import re

import torch

from unimedvl.modeling_unimedvl.flow_unimedvl import grid_position_ids, patchify_latents

from .records import TENSOR
from .reference import RecordImages, draw, position_ids_of, to_uint8

VAE = "vae.safetensors"
VIT = "vit.safetensors"


def recorded_images(golden, file: str) -> list[int]:
    found = {re.match(r"img(\d+)\.", name) for name in golden.tensor_names(file)}
    return sorted({int(match[1]) for match in found if match})


@torch.no_grad()
def test_autoencoder(golden, model, images: RecordImages):
    config = model.config
    for index in recorded_images(golden, VAE):
        pixels = images.vae_pixels(index)
        posterior = model.model.vae.encode(pixels[None]).latent_dist
        seed = golden.argument("infer.json", f"/vae/seeds/{index}")
        noise = draw(seed, [list(posterior.mean.shape)])[0]
        (sample,) = model.model.encode_latents([pixels], noise=[noise[0]])
        (mode,) = model.model.encode_latents([pixels], sample_mode="mode")
        (seeded,) = model.model.encode_latents([pixels], generator=torch.Generator().manual_seed(seed))
        ours = {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "noise": noise,
            "latent_sample": sample[None],
            "latent_mode": mode[None],
            "latent_sample_patches": patchify_latents(sample, config.latent_patch_size),
        }
        if golden.has_tensor(VAE, f"img{index}.decoded_sample"):
            ours["decoded_sample"] = model.model.decode_latents([sample])[0][None]
        golden.compare_all(VAE, f"img{index}.", ours)
        golden.compare_all(VAE, f"img{index}.", {"latent_sample": seeded[None]})


@torch.no_grad()
def test_decoding_a_random_latent(golden, model):
    decoded = model.model.decode_latents([golden.input(VAE, "rand.latent")[0]])[0]
    golden.compare_all(VAE, "rand.", {"decoded": decoded[None], "decoded_uint8": to_uint8(decoded)})
    statistics = {"decoded_abs_max": decoded.abs().max().item(), "decoded_std": decoded.std().item()}
    golden.equal_all("infer.json", "/vae", statistics, relative=TENSOR)
    # A value at the edge may fall on either side.
    clipped = {"decoded_frac_clipped": (decoded.abs() > 1).double().mean().item()}
    golden.equal_all("infer.json", "/vae", clipped, absolute=1.5 / decoded.numel())


def vision_records(golden, model, images: RecordImages, prefix: str, indices: list[int]) -> dict[str, torch.Tensor]:
    """Everything about some images in one call of the vision transformer."""
    config = model.config
    patches, grids = zip(*(images.vit_patches(index) for index in indices), strict=True)
    lengths = [part.shape[0] for part in patches]
    side, interpolate = config.vit_max_num_patch_per_side, config.interpolate_pos
    position_ids = position_ids_of(golden, VIT, f"{prefix}.position_ids", list(grids), side, interpolate)
    hidden = model.model.vit_model(torch.cat(patches), position_ids, lengths)
    projected = model.model.connector(hidden)
    records = {
        "position_ids": position_ids,
        "seqlens": torch.tensor(lengths),
        "vit_last_hidden": hidden,
        "connector": projected,
        "embeds": projected + model.model.vit_pos_embed(position_ids),
    }
    by_rule = torch.cat([grid_position_ids(*grid, side, interpolate) for grid in grids])
    if torch.equal(position_ids, by_rule):
        features = model.get_image_features(torch.cat(patches), torch.tensor([[1, *grid] for grid in grids]))
        records["embeds"] = torch.cat(features.pooler_output)
    return records


@torch.no_grad()
def test_vision_transformer(golden, model, images: RecordImages):
    for index in recorded_images(golden, VIT):
        prefix = f"img{index}"
        golden.compare_all(VIT, f"{prefix}.", vision_records(golden, model, images, prefix, [index]))


@torch.no_grad()
def test_several_images_in_one_call(golden, model, images: RecordImages):
    prefixes = {name.split(".")[0] for name in golden.tensor_names(VIT, "packed_")}
    for prefix in sorted(prefixes):
        indices = [int(index) for index in prefix.removeprefix("packed_").split("_")]
        golden.compare_all(VIT, f"{prefix}.", vision_records(golden, model, images, prefix, indices))
