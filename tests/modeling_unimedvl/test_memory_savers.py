"""What diffusers and accelerate offer to save memory keeps answers and images: tiles, slices, offloading."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")
GREEDY = {"do_sample": False, "max_new_tokens": 6}
IMAGE = {"generation_mode": "image", "num_inference_steps": 3, "show_progress": False}


@pytest.fixture
def saving(model):
    """A copy of the model, to be changed."""
    return copy.deepcopy(model)


def latents(model, count: int, height: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    channels = model.config.vae_config.latent_channels
    return [torch.randn(channels, height, width, generator=generator) for _ in range(count)]


def test_a_tile_that_covers_the_latent_decodes_as_the_whole(model, saving):
    side = saving.model.vae.tile_latent_min_size
    (latent,) = latents(saving, 1, side, side)
    saving.model.vae.enable_tiling()
    # Without its shortcut for latents of one tile, which would compare a call with itself.
    saving.model.vae._decode = saving.model.vae.tiled_decode
    # One row and one column of tiles need a step no shorter than the latent.
    saving.model.vae.tile_overlap_factor = 0.0
    (whole,), (tiled,) = model.model.decode_latents([latent]), saving.model.decode_latents([latent])
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)


def test_many_tiles_are_decoded_one_by_one_and_give_the_whole_size(model, saving):
    vae = saving.model.vae
    height, width = vae.tile_latent_min_size + 3, 2 * vae.tile_latent_min_size
    (latent,) = latents(saving, 1, height, width)
    seen: list[tuple[int, ...]] = []
    vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    vae.enable_tiling()
    (tiled,), (whole,) = saving.model.decode_latents([latent]), model.model.decode_latents([latent])
    assert tiled.shape == whole.shape and torch.isfinite(tiled).all()
    assert len(seen) > 1 and all(max(shape) <= vae.tile_latent_min_size for shape in seen)


def test_slices_decode_a_batch_image_by_image(model, saving):
    vae = saving.model.vae
    seen: list[int] = []
    vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    vae.enable_slicing()
    images = latents(saving, 3, 4, 6)
    for ours, expected in zip(saving.model.decode_latents(images), model.model.decode_latents(images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert seen == [1, 1, 1]


def by_accelerate(model) -> None:
    cpu_offload(model, execution_device=CPU)
    assert all(weight.is_meta for weight in model.parameters()), "weights are brought in by hooks"


def by_blocks(model) -> None:
    apply_group_offloading(model, onload_device=CPU, offload_type="block_level", num_blocks_per_group=1)


def by_leaves(model) -> None:
    apply_group_offloading(model, onload_device=CPU, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [by_accelerate, by_blocks, by_leaves])
def test_offloading_keeps_greedy_ids_and_images(model, saving, question, edit, offload):
    offload(saving)
    assert torch.equal(saving.generate(**question, **GREEDY), model.generate(**question, **GREEDY))
    assert torch.equal(saving.generate(**edit, **IMAGE), model.generate(**edit, **IMAGE))
