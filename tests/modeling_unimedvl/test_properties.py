"""Properties that hold for any weights: batching, padding, caching, attention implementations, call order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.tiny_inputs import collate, conversation, initial_latents, marker_ids, noises
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples
from unimedvl.modeling_unimedvl.contexts_unimedvl import read_prompts
from unimedvl.modeling_unimedvl.flow_unimedvl import FlowSettings, patchify_latents
from unimedvl.modeling_unimedvl.prompts_unimedvl import Prompts
from unimedvl.modeling_unimedvl.sampling_unimedvl import FlowSampler

pytestmark = pytest.mark.medium

TEXT = {"do_sample": False, "max_new_tokens": 8}
IMAGE = {"generation_mode": "image", "num_inference_steps": 4, "show_progress": False}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def understanding_rows(config):
    return [
        conversation(config, [("vit", 2, 3), [3, 4, 5]], seed=1, answer=True),
        conversation(config, [[9, 8, 7, 6, 5, 4]], seed=2, answer=True),
        conversation(config, [("vit", 3, 1), [1], ("vit", 2, 2), [2, 3]], seed=3, answer=True),
    ]


def editing_rows(config):
    return [
        conversation(config, [("latent", 2, 3), ("vit", 2, 2), [3, 4]], seed=1),
        conversation(config, [[5, 6, 7, 8]], seed=2),
        conversation(config, [("latent", 1, 2), ("vit", 1, 2), ("latent", 2, 2), ("vit", 2, 1), [1, 2, 3]], seed=3),
    ]


def split_noises(rows, noise):
    counts = [len(row.get("latent_image_sizes", [])) for row in rows]
    return [noise[sum(counts[:index]) : sum(counts[: index + 1])] for index in range(len(rows))]


def test_text_batch_equals_singles(model):
    rows = understanding_rows(model.config)
    batch = collate(rows, model.config.pad_token_id)
    together = model.generate(**batch, **TEXT)[:, batch["input_ids"].shape[1] :]
    for index, row in enumerate(rows):
        alone = model.generate(**row, **TEXT)[0, row["input_ids"].shape[1] :]
        got = together[index, : len(alone)]
        assert torch.equal(got, alone)


@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_image_batch_equals_singles(model, renorm):
    rows = editing_rows(model.config)
    batch = collate(rows, model.config.pad_token_id)
    noise = noises(model.config, batch)
    sizes = [(16, 24), (24, 8), (8, 8)]
    latents = initial_latents(model.config, [(height // 8, width // 8) for height, width in sizes])
    options = {
        **IMAGE,
        "preset": "edit",
        "cfg_renorm_type": renorm,
        "guidance_scale": 4.0,
        "image_guidance_scale": 2.0,
    }
    heights, widths = zip(*sizes, strict=True)
    together = model.generate(
        **batch, **options, height=list(heights), width=list(widths), latents=latents, vae_noise=noise
    )
    for index, row in enumerate(rows):
        alone = model.generate(
            **row,
            **options,
            height=heights[index],
            width=widths[index],
            latents=[latents[index]],
            vae_noise=split_noises(rows, noise)[index],
        )
        assert (together[index] - alone[0]).abs().max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded_forward(model, side):
    row = conversation(model.config, [("vit", 2, 3), [3, 4, 5]], seed=1)
    longer = conversation(model.config, [("vit", 1, 2), [1] * 20], seed=2)
    batch = collate([row, longer], model.config.pad_token_id, side)
    with torch.no_grad():
        alone = model(**row).logits[0]
        padded = model(**batch).logits[0]
    length = alone.shape[0]
    kept = padded[-length:] if side == "left" else padded[:length]
    assert (kept - alone).abs().max() < 1e-5


@pytest.mark.parametrize("answer_index", range(3))
def test_cached_equals_uncached(model, answer_index):
    row = understanding_rows(model.config)[answer_index]
    cached = model.generate(**row, **TEXT)
    assert torch.equal(cached, model.generate(**row, **TEXT, use_cache=False))


def test_implementations_of_attention_agree():
    row = conversation(tiny_model().config, [("latent", 2, 3), ("vit", 2, 2), [3, 4], ("vit", 1, 3), [5]], seed=1)
    results = {}
    for name in ("eager", "sdpa", "flex_attention"):
        model = tiny_model()
        model.set_attn_implementation(name)
        with torch.no_grad():
            logits = model(**row, vae_noise=noises(model.config, row)).logits
        drawn = torch.Generator().manual_seed(0)
        results[name] = logits, model.generate(**row, **IMAGE, height=32, width=48, generator=drawn)
    for name in ("eager", "flex_attention"):
        for ours, plain in zip(results[name], results["sdpa"], strict=True):
            assert (ours - plain).abs().max() < 1e-5


def test_flash_kernels_read_image_blocks(monkeypatch):
    """Kernels without masks are asked for nothing but full attention and causal attention over the last queries."""
    model = tiny_model()
    row = conversation(model.config, [[7, 8], ("vit", 2, 2), [3, 4]], seed=1)
    expected = model.model(**row).last_hidden_state
    masks = []

    def kernel(module, query, key, value, attention_mask, scaling, is_causal, **kwargs):
        """What flash attention computes, written out."""
        masks.append(attention_mask)
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        scores = query @ key.transpose(2, 3) * scaling
        if is_causal:
            size = scores.shape[-2:]
            scores = scores.masked_fill(torch.ones(size).tril(size[1] - size[0]) == 0, -torch.inf)
        return (scores.softmax(dim=-1) @ value).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", kernel)
    for config in (model.config.text_config, model.config.vision_config):
        config._attn_implementation = "flash_attention_2"
    assert (model.model(**row).last_hidden_state - expected).abs().max() < 1e-5
    assert len(masks) > 4 and all(mask is None for mask in masks)


def test_packed_training_forward_equals_cached_inference(model):
    """The noised block of a pack predicts what the sampler predicts after the same context."""
    config = model.config
    row = conversation(config, [("latent", 2, 3), ("vit", 2, 2), [3, 4, 5]], seed=4)
    grid, time = (2, 2), 0.75
    noise = initial_latents(config, [grid], seed=2)[0]
    latent = torch.randn(config.vae_config.latent_channels, 4, 4, generator=torch.Generator().manual_seed(8))
    condition = model.model.encode_latents([row["latent_pixel_values"][0]], noises(config, row))[0]
    other = [Block(BlockKind.TEXT, token_ids=[1, 2]), Block(BlockKind.NOISED, grid=(1, 1))]
    sample = [
        Block(BlockKind.CLEAN, grid=(2, 3)),
        Block(BlockKind.VIT, grid=(2, 2)),
        Block(BlockKind.TEXT, token_ids=[3, 4, 5]),
        Block(BlockKind.NOISED, grid=grid),
    ]
    small = torch.zeros(config.vae_config.latent_channels, 2, 2)
    with torch.no_grad():
        packed = model(
            **pack_samples([other, sample], **marker_ids(config)),
            pixel_values=row["pixel_values"],
            image_grid_thw=row["image_grid_thw"],
            latent_values=[small, condition, latent],
            flow_noise=torch.cat([torch.zeros(1, config.latent_dim), noise]),
            flow_timesteps=torch.tensor([0.5, 0.0, time]),
        )
    x_t = (1 - time) * patchify_latents(latent, config.latent_patch_size) + time * noise
    prompts = Prompts.from_inputs(model, row)
    sampler = FlowSampler(model, FlowSettings.unguided(4, 1.0))
    with torch.no_grad():
        contexts = read_prompts(model, prompts, [condition])
        velocity = sampler.step(sampler.prepare(contexts, [grid]), x_t[None], time).velocity
    assert (packed.velocity[1:] - velocity[0]).abs().max() < 1e-5


def test_guidance_scale_one_is_no_guidance(model):
    row = editing_rows(model.config)[0]
    shared = {"latents": initial_latents(model.config, [(2, 3)]), "vae_noise": noises(model.config, row)}
    unguided = model.generate(**row, **IMAGE, **shared, guidance_scale=1.0, image_guidance_scale=1.0)
    image_only = model.generate(**row, **IMAGE, **shared, guidance_scale=1.0, image_guidance_scale=3.0)
    outside = model.generate(**row, **IMAGE, **shared, guidance_scale=4.0, cfg_interval=(0.0, 0.0))
    guided = model.generate(**row, **IMAGE, **shared, guidance_scale=4.0)
    assert torch.equal(unguided, image_only)
    assert torch.equal(unguided, outside)
    assert not torch.allclose(unguided, guided)


def test_image_guidance_without_images_folds_into_the_text_scale(model):
    """In text to image the image branch equals the main one: scale b acts as 1 + b (a - 1) if the renorm is last."""
    row = editing_rows(model.config)[1]
    shared = {
        "latents": initial_latents(model.config, [(2, 2)]),
        "height": 16,
        "width": 16,
        "cfg_interval": (0.0, 1.0),
    }
    folded = model.generate(
        **row, **IMAGE, **shared, guidance_scale=3.0, image_guidance_scale=2.0, cfg_renorm_type="channel"
    )
    plain = model.generate(
        **row, **IMAGE, **shared, guidance_scale=5.0, image_guidance_scale=1.0, cfg_renorm_type="channel"
    )
    assert (folded - plain).abs().max() < 1e-4


def test_packed_samples_do_not_see_each_other(model):
    config = model.config
    first = [Block(BlockKind.TEXT, token_ids=[1, 2]), Block(BlockKind.TEXT, token_ids=[3, 4], loss=True)]
    second = [Block(BlockKind.TEXT, token_ids=[5]), Block(BlockKind.TEXT, token_ids=[6, 7], loss=True)]
    changed = [Block(BlockKind.TEXT, token_ids=[50, 51]), Block(BlockKind.TEXT, token_ids=[52, 53], loss=True)]
    with torch.no_grad():
        logits = model(**pack_samples([first, second], **marker_ids(config))).logits
        other = model(**pack_samples([changed, second], **marker_ids(config))).logits
    assert logits.shape[0] == 6
    assert torch.equal(logits[3:], other[3:])
    assert not torch.allclose(logits[:3], other[:3])


FRESH = """
import json, sys
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from tests.tiny_model import tiny_model
from tests.modeling_unimedvl.test_properties import call
print(json.dumps(call(tiny_model(), sys.argv[1])))
"""


def call(model, name: str):
    """One named call with everything fixed, as plain numbers."""
    config = model.config
    if name == "text":
        row = understanding_rows(config)[0]
        return model.generate(**row, **TEXT)[0].tolist()
    row = editing_rows(config)[0 if name == "edit" else 1]
    options = {"height": 16, "width": 16} if name == "t2i" else {}
    generator = torch.Generator().manual_seed(4)
    images = model.generate(**row, **IMAGE, **options, generator=generator, think=name == "t2i", max_think_tokens=4)
    return images.flatten()[:64].tolist()


def test_any_call_after_any_other_equals_a_fresh_process(model):
    root = Path(__file__).parents[2]
    names = ["text", "t2i", "edit"]
    fresh = {
        name: json.loads(
            subprocess.run(
                [sys.executable, "-c", FRESH, name], cwd=root, capture_output=True, text=True, check=True
            ).stdout.splitlines()[-1]
        )
        for name in names
    }
    for first in names:
        call(model, first)
        for second in names:
            assert call(model, second) == fresh[second], (first, second)
