"""`compile_repeated_blocks`: equal results, and one graph for all layers in every kind of call."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.tiny_inputs import conversation, initial_latents
from tests.tiny_model import tiny_config, tiny_model

pytestmark = pytest.mark.medium

GREEDY = {"do_sample": False, "max_new_tokens": 6}
IMAGE = {
    "generation_mode": "image",
    "num_inference_steps": 4,
    "timestep_shift": 1.0,
    "cfg_interval": (0.4, 1.0),
    "height": 16,
    "width": 24,
    "show_progress": False,
}


def model_of(layers: int):
    text = {**tiny_config().text_config.to_dict(), "num_hidden_layers": layers, "layer_types": None}
    return tiny_model(text_config=text)


def compiled(model, backend: str = "eager") -> CompileCounterWithBackend:
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    model.compile_repeated_blocks(backend=counter)
    return counter


@pytest.mark.parametrize("layers", [2, 5])
def test_decoding_with_a_static_cache_compiles_one_layer(layers):
    model = model_of(layers)
    row = conversation(model.config, [[3, 4, 5]], seed=1, answer=True)
    expected = model.generate(**row, **GREEDY)
    counter = compiled(model)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(model.generate(**row, **GREEDY, **static), expected)
    assert counter.frame_count == 2, "one graph for the prompt and one for all tokens"
    model.generate(**row, **GREEDY, **static)
    assert counter.frame_count == 2


@pytest.mark.parametrize("layers", [2, 5])
def test_denoising_compiles_one_layer_with_and_one_without_guidance(layers):
    model = model_of(layers)
    row = conversation(model.config, [[3, 4, 5]], seed=2)
    latents = initial_latents(model.config, [(2, 3)])
    expected = model.generate(**row, **IMAGE, latents=latents)
    counter = compiled(model)
    counts: list[int] = []
    found = model.generate(
        **row, **IMAGE, latents=latents, callback_on_step_end=lambda *step: counts.append(counter.frame_count)
    )
    assert (found - expected).abs().max() < 1e-5
    guided, again, switched, unguided = (count - counts[0] for count in counts)
    assert (guided, again, switched, unguided) == (0, 0, 0, 1), "times 1, 0.75 and 0.5 are guided, 0.25 is not"
    model.generate(**row, **IMAGE, latents=latents)
    assert counter.frame_count == counts[-1]


def test_training_compiles_as_much_for_two_layers_as_for_five():
    frames = []
    for layers in (2, 5):
        model = model_of(layers).train()
        row = conversation(model.config, [[3, 4, 5]], seed=3, answer=True)
        model(**row, labels=row["input_ids"]).loss.backward()
        weights = [parameter for parameter in model.parameters() if parameter.grad is not None]
        expected = [parameter.grad.clone() for parameter in weights]
        model.zero_grad()
        counter = compiled(model, "aot_eager")
        model(**row, labels=row["input_ids"]).loss.backward()
        scale = max(float(gradient.abs().max()) for gradient in expected)
        for parameter, gradient in zip(weights, expected, strict=True):
            assert (parameter.grad - gradient).abs().max() < 1e-5 * scale
        frames.append(counter.frame_count)
        model(**row, labels=row["input_ids"]).loss.backward()
        assert counter.frame_count == frames[-1], "the second step compiles nothing"
    assert frames[0] == frames[1] > 0


def test_it_covers_both_stacks_and_is_undone():
    model = model_of(2)
    names = list(model.state_dict())
    counter = compiled(model)
    row = conversation(model.config, [("vit", 2, 3), [3]], seed=4, answer=True)
    blocks = [*model.model.language_model.layers, *model.model.vit_model.encoder.layers]
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert sum(module._compiled_call_impl is not None for module in model.modules()) == len(blocks)
    assert list(model.state_dict()) == names
    model.decompile_repeated_blocks()
    model(**row)
    assert counter.frame_count == 0
    model.model.compile_repeated_blocks(backend=counter)
    model(**row)
    assert counter.frame_count > 0
