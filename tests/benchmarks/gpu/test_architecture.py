"""The architecture that is measured: its size, its operations in closed form, its values where they are not random."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.architecture import (
    SIZES,
    cache_bytes_per_token,
    full_config,
    on_meta,
    prompt,
    random_model,
    tiny_config,
)
from benchmarks.gpu.denoise import context_lengths, counted_flops, flops_of_update
from unimedvl.checkpoint.compute import prefill_flops
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    model = random_model(tiny_config(), CPU, torch.float32)
    # torch does not count the CPU kernel of SDPA.
    model.set_attn_implementation("eager")
    return model


def test_the_14b_architecture_has_its_number_of_weights():
    model = on_meta(full_config())
    autoencoder = sum(parameter.numel() for parameter in model.model.vae.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) - autoencoder == 14_607_260_128


def test_the_cache_of_the_14b_architecture_takes_56_kibibytes_a_token():
    assert cache_bytes_per_token(full_config()) == 57_344


def saved_flops(config, side, contexts):
    """What the package does not compute in an update: times, repeated latents, the last outputs of the markers."""
    text, tokens = config.text_config, (side // config.pixels_per_latent_token) ** 2
    times = 2 * (256 + text.hidden_size) * text.hidden_size
    latents = 2 * config.latent_dim * text.hidden_size * tokens
    outputs = 2 * 2 * text.hidden_size * (text.hidden_size + 3 * text.intermediate_size)
    return times + (contexts - 1) * latents + contexts * outputs


@pytest.mark.parametrize("contexts", [1, 2, 3])
@pytest.mark.parametrize("side", SIZES["tiny"].sides)
def test_operations_of_an_update_are_those_that_torch_counts(model, side, contexts):
    image = {"vit_grid": (3, 4), "vae_side": side} if contexts == 3 else {}
    inputs = prompt(model.config, CPU, 11, **image)
    assert len(context_lengths(inputs, contexts)) == contexts
    formula = flops_of_update(model, inputs, side, contexts)
    assert formula - saved_flops(model.config, side, contexts) == counted_flops(model, inputs, side, contexts)


def test_operations_of_a_prompt_with_an_image_are_those_that_torch_counts(model):
    grid = SIZES["tiny"].prefill_grid
    inputs = prompt(model.config, CPU, 11, vit_grid=grid)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, use_cache=True, logits_to_keep=1)
    assert counter.get_total_flops() == prefill_flops(model.config, grid, inputs["input_ids"].shape[1])


def test_random_weights_leave_tables_and_frequencies_as_they_have_to_be(model):
    regular = UniMedVLForConditionalGeneration(tiny_config())
    buffers, regular_buffers = dict(model.named_buffers()), dict(regular.named_buffers())
    assert buffers.keys() == regular_buffers.keys()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, regular_buffers[name], rtol=0, atol=0)
    for name, parameter in model.named_parameters():
        if "pos_embed" in name:
            torch.testing.assert_close(parameter, regular.get_parameter(name), rtol=0, atol=0)
        assert torch.isfinite(parameter).all(), name


def test_rotary_frequencies_stay_exact_in_bfloat16():
    model = random_model(tiny_config(), CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.model.language_model.rotary_emb.buffers()} == {torch.float32}
