"""The naive order repeats the original's counts, and gives the package's results."""

import json
from itertools import islice

import pytest
import torch

from benchmarks.cases import close_gradients, gradients
from benchmarks.counts import CASES, RESULTS, count
from benchmarks.naive import Context, Naive
from benchmarks.naive_training import NaivePack, training_loss
from benchmarks.performance import ORIGINAL
from tests.tiny_inputs import conversation
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples
from unimedvl.modeling_unimedvl.flow_unimedvl import TASK_PRESETS, FlowSettings

# What does not depend on what a training pack holds.
COUNTED = ("operations", "synchronizations")


@pytest.mark.medium
@pytest.mark.parametrize("name", [name for name in ORIGINAL if "training" not in name])
def test_counts_are_within_ten_percent_of_the_original(name):
    _, naive = count(CASES[name]())
    found = naive.summary()
    for unit, value in ORIGINAL[name].items():
        assert found[unit] == pytest.approx(value, rel=0.1), unit


def test_the_stored_training_step_has_the_original_operations():
    name = "training step, 6 samples of 2908 tokens"
    found = json.loads((RESULTS / "counts.json").read_text())["cases"][name]["naive"]
    assert found["operations"] == pytest.approx(ORIGINAL[name]["operations"], rel=0.1)


def test_answers_to_images_are_the_same():
    model = tiny_model()
    inputs = conversation(model.config, [("vit", 3, 4), [5, 6, 7], ("vit", 2, 2), [8, 9]])
    context = Context()
    before = Naive(model).read(context, inputs, [])
    assert [part.length for part in before] == [14, 14 + 5 + 6]
    # RoPE ids: one for each image, one for each token of a text.
    assert context.length == inputs["input_ids"].shape[1] and context.position == 1 + 5 + 1 + 4
    written = list(islice(Naive(model).written(context), 6))
    asked = conversation(model.config, [("vit", 3, 4), [5, 6, 7], ("vit", 2, 2), [8, 9]], answer=True)
    ids = model.generate(**asked, do_sample=False, max_new_tokens=6)[0, asked["input_ids"].shape[1] :].tolist()
    assert written == ids[: len(written)] and len(written) > 0
    assert len(written) == 6 or ids[len(written)] == model.config.eos_token_id


@pytest.mark.parametrize("preset", ["t2i", "edit", "reconstruction"])
def test_edited_images_are_the_same(preset):
    model = tiny_model()
    naive, config = Naive(model), model.config
    inputs = conversation(config, [("latent", 3, 2), ("vit", 3, 4), [5, 6, 7]])
    noise = torch.randn(6, config.latent_dim, generator=torch.Generator().manual_seed(1))
    drawn = torch.randn(config.vae_config.latent_channels, 6, 4, generator=torch.Generator().manual_seed(2))
    names = ("height", "width")
    fields = {name: value for name, value in TASK_PRESETS[preset].items() if name not in names}
    fields |= {"num_inference_steps": 6, "image_guidance_scale": 1.5}
    unit = config.pixels_per_latent_token
    package = model.generate(
        **inputs,
        generation_mode="image",
        latents=[noise],
        vae_noise=[drawn],
        height=3 * unit,
        width=2 * unit,
        show_progress=False,
        return_dict_in_generate=True,
        **fields,
    )
    full, alone = Context(), Context()
    (before,) = naive.read(full, inputs, naive.encode(list(inputs["latent_pixel_values"]), [drawn]))
    naive.read(alone, conversation(config, [[5, 6, 7]]), [])
    contexts = {"cond": full, "text": before, "image": alone}
    *_, tokens = naive.denoised(contexts, (3, 2), noise, FlowSettings(**fields))
    torch.testing.assert_close(tokens, package.latents[0], rtol=1e-4, atol=1e-4)
    (pixels,) = naive.decode([naive.latent(tokens, (3, 2))])
    torch.testing.assert_close(pixels, package.images[0], rtol=1e-4, atol=1e-4)


def test_a_pack_has_the_same_loss_and_gradients():
    model = tiny_model()
    config = model.config
    text = Block(BlockKind.TEXT, token_ids=[5, 6, 7])
    samples = [
        [text, Block(BlockKind.NOISED, grid=(2, 3))],
        [Block(BlockKind.VIT, grid=(3, 2)), text, Block(BlockKind.TEXT, token_ids=[8, 9], loss=True)],
        [text, Block(BlockKind.NOISED, grid=(2, 2))],
    ]
    names = ("bos", "eos", "vision_start", "vision_end", "image", "latent")
    ids = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in names}
    draw = torch.Generator().manual_seed(3)
    channels = config.vae_config.latent_channels
    pack = dict(pack_samples(samples, **ids)) | {
        "pixel_values": torch.rand(6, 108, generator=draw) * 2 - 1,
        "image_grid_thw": torch.tensor([[1, 3, 2]]),
        "latent_values": [torch.randn(channels, 4, width, generator=draw) for width in (6, 4)],
        "flow_noise": torch.randn(10, config.latent_dim, generator=draw),
        "flow_timesteps": torch.tensor([0.3, 0.8]),
    }
    del pack["token_weights"]
    model.train()
    ours = gradients(model, model(**pack).loss)
    naive = gradients(model, training_loss(Naive(model), NaivePack.from_pack(pack)))
    close_gradients(ours, naive)
    assert naive["lm_head.weight"].any() and naive["model.llm2vae.weight"].any()
    with pytest.raises(AssertionError):
        close_gradients(ours, naive | {"lm_head.weight": naive["lm_head.weight"] * 1.01})
