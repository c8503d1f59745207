"""The two image encoders: FLUX autoencoder, SigLIP vision transformer."""

import re

import torch

from unimedvl.modeling_unimedvl.flow_unimedvl import grid_position_ids, patchify_latents

from .records import TENSOR
from .reference import Pictures, draw, to_uint8

VAE = "vae.safetensors"
VIT = "vit.safetensors"


def recorded_pictures(golden, file: str) -> list[int]:
    found = {re.match(r"img(\d+)\.", name) for name in golden.tensor_names(file)}
    return sorted({int(match[1]) for match in found if match})


@torch.no_grad()
def test_autoencoder(golden, model, pictures: Pictures):
    config = model.config
    for index in recorded_pictures(golden, VAE):
        pixels = pictures.vae_pixels(index)
        posterior = model.model.vae.encode(pixels[None]).latent_dist
        seed = golden.argument("infer.json", f"/vae/seeds/{index}")
        noise = draw(seed, [list(posterior.mean.shape)])[0]
        (sample,) = model.model.encode_latents([pixels], noise=[golden.input(VAE, f"img{index}.noise")[0]])
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
    statistics = {
        "decoded_abs_max": decoded.abs().max().item(),
        "decoded_frac_clipped": (decoded.abs() > 1).double().mean().item(),
        "decoded_std": decoded.std().item(),
    }
    golden.equal_all("infer.json", "/vae", statistics, relative=TENSOR, absolute=1 / decoded.numel())


@torch.no_grad()
def test_vision_transformer(golden, model, pictures: Pictures):
    config = model.config
    side, interpolate = config.vit_max_num_patch_per_side, config.interpolate_pos
    for index in recorded_pictures(golden, VIT):
        patches, grid = pictures.vit_patches(index)
        position_ids = grid_position_ids(*grid, side, interpolate)
        hidden = model.model.vit_model(patches, position_ids, [patches.shape[0]])
        ours = {
            "position_ids": position_ids,
            "seqlens": torch.tensor([patches.shape[0]]),
            "vit_last_hidden": hidden,
            "connector": model.model.connector(hidden),
            "embeds": model.model.get_image_features(patches, torch.tensor([[1, *grid]])),
        }
        golden.compare_all(VIT, f"img{index}.", ours)


@torch.no_grad()
def test_several_images_in_one_call(golden, model, pictures: Pictures):
    config = model.config
    groups = {match[0]: match[1] for match in map(re.compile(r"packed_(\d+(?:_\d+)*)").match, golden.tensor_names(VIT)) if match}
    for prefix, indices in groups.items():
        patches, grids = zip(*(pictures.vit_patches(int(index)) for index in indices.split("_")), strict=True)
        position_ids = [
            grid_position_ids(*grid, config.vit_max_num_patch_per_side, config.interpolate_pos) for grid in grids
        ]
        ours = {
            "position_ids": torch.cat(position_ids),
            "seqlens": torch.tensor([part.shape[0] for part in patches]),
            "embeds": model.model.get_image_features(torch.cat(patches), torch.tensor([[1, *grid] for grid in grids])),
        }
        golden.compare_all(VIT, f"{prefix}.", ours)
