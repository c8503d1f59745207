"""Lean layers compute what the plain ones do, and overwrite nothing that anybody can see."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2MLP, Qwen2RMSNorm, apply_rotary_pos_emb

from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLTextConfig
from unimedvl.modeling_unimedvl.layers_unimedvl import (
    UniMedVLMLP,
    UniMedVLRMSNorm,
    UniMedVLRotaryEmbedding,
    _scalar,
    rotated,
)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_norm(recorded, dtype, limit, scale):
    """Small values too, where the norm's epsilon counts."""
    torch.manual_seed(0)
    ours, plain = (kind(24, eps=1e-6).to(dtype) for kind in (UniMedVLRMSNorm, Qwen2RMSNorm))
    ours.weight.data.normal_()
    plain.load_state_dict(ours.state_dict())
    states = (scale * torch.randn(3, 5, 24)).to(dtype)
    given = states.clone()
    with torch.set_grad_enabled(recorded):
        found, expected = ours(states), plain(states)
    assert found.dtype == dtype and torch.equal(states, given)
    assert (found - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_gated_unit(recorded, activation):
    torch.manual_seed(0)
    config = Qwen2Config(hidden_size=16, intermediate_size=24, hidden_act=activation)
    ours, plain = UniMedVLMLP(config), Qwen2MLP(config)
    plain.load_state_dict(ours.state_dict())
    states = torch.randn(7, 16)
    with torch.set_grad_enabled(recorded):
        assert (ours(states) - plain(states)).abs().max() < 1e-6


@pytest.mark.parametrize("recorded", [False, True])
def test_rotation(recorded):
    rotary = UniMedVLRotaryEmbedding(UniMedVLTextConfig(hidden_size=32, num_attention_heads=4))
    states = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0, 1, 2, 3, 4], [7, 7, 7, 90, 91]])
    cos, sin = rotary(states, places)
    expected, _ = apply_rotary_pos_emb(states, states, cos, sin, unsqueeze_dim=2)
    with torch.set_grad_enabled(recorded):
        assert (rotated(states, *rotary.turns(states, places)) - expected).abs().max() < 1e-6


def test_what_hooks_saw_stays():
    """A hook that keeps what any module of the layers returned finds it unchanged after the pass."""
    model = tiny_model()
    ids = torch.tensor([[121, 5, 6, 7, 8]])
    seen, copies = [], []

    def keep(module, args, output):
        for part in output if isinstance(output, tuple) else (output,):
            if isinstance(part, torch.Tensor):
                seen.append(part)
                copies.append(part.clone())

    names = [name for name, _ in model.model.language_model.layers[0].named_modules()]
    for name in names:
        seen.clear()
        copies.clear()
        module = model.model.language_model.layers[0].get_submodule(name)
        hook = module.register_forward_hook(keep)
        with torch.no_grad():
            model(input_ids=ids)
        hook.remove()
        assert all(torch.equal(part, copy) for part, copy in zip(seen, copies, strict=True)), name
    assert "self_attn.o_proj" in names and "mlp.act_fn" in names


def test_hooks_inside_of_adapters_are_respected():
    """With its adapter turned off, a wrapped layer returns what the layer inside of it returned."""
    config = LoraConfig(target_modules=["gate_proj", "o_proj", "down_proj"])
    model = get_peft_model(tiny_model(), config)
    seen, copies = [], []

    def keep(module, args, output):
        seen.append(output)
        copies.append(output.clone())

    for name, module in model.named_modules():
        if name.endswith(".base_layer"):
            module.register_forward_hook(keep)
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=torch.tensor([[121, 5, 6, 7]]))
    assert len(seen) >= 6
    assert all(torch.equal(part, copy) for part, copy in zip(seen, copies, strict=True))


def test_the_constants_of_the_norm_do_not_depend_on_defaults():
    """Whoever computes the first norm of a process with other defaults must not change the later ones."""
    _scalar.cache_clear()
    states, norm = torch.randn(2, 8), UniMedVLRMSNorm(8)
    with torch.no_grad():
        try:
            torch.set_default_device("meta")
            torch.set_default_dtype(torch.bfloat16)
            norm(states)
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
        found = norm(1e-4 * states)
    _scalar.cache_clear()
    with torch.no_grad():
        assert torch.equal(found, norm(1e-4 * states))


@pytest.mark.parametrize("recorded", [False, True])
def test_autocast_keeps_the_residual_exact(recorded):
    """What modules return is rounded to bfloat16; the sum that it is added to stays in float32."""
    model = tiny_model()
    ids = torch.tensor([[121, 5, 6, 7, 8]])
    with torch.set_grad_enabled(recorded), torch.autocast("cpu", torch.bfloat16):
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert all(state.dtype == torch.float32 for state in states[:-1])


def test_states_of_every_layer_stay():
    model = tiny_model()
    ids = torch.tensor([[121, 5, 6, 7, 8]])
    with torch.no_grad():
        lean = model(input_ids=ids, output_hidden_states=True).hidden_states
    recorded = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(lean) == 3
    for ours, plain in zip(lean, recorded, strict=True):
        assert (ours - plain).abs().max() < 1e-5
