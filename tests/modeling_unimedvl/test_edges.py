"""Corners where a silent wrong answer would hide: missing inputs, continued caches, mixed batches, idle parts."""

import numpy
import pytest
import torch
from transformers import GenerationConfig

from tests.tiny_inputs import collate, conversation, initial_latents, noises
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

GREEDY = {"do_sample": False, "max_new_tokens": 6}
IMAGE = {"generation_mode": "image", "num_inference_steps": 3, "show_progress": False}
INTERLEAVED = {"generation_mode": "interleaved", "num_inference_steps": 2, "show_progress": False, "do_sample": False}


@pytest.fixture(scope="module")
def edit(model):
    return conversation(model.config, [("latent", 2, 3), ("vit", 2, 2), [3, 4]], seed=1)


@pytest.fixture(scope="module")
def prompt(model):
    return conversation(model.config, [[5, 6, 7]], seed=2)


def velocities(model, row, **options):
    """Raw branch velocities of the first step."""
    seen = {}

    def record(model, step, timestep, values):
        if step == 0:
            seen.update(values)

    model.generate(**row, **options, callback_on_step_end=record)
    return seen


def test_interleaved_image_first_is_guided_like_image_mode(model, prompt):
    shared = {"latents": initial_latents(model.config, [(2, 2)]), "height": 16, "width": 16, "guidance_scale": 6.0}
    alone = velocities(model, prompt, **{**IMAGE, "num_inference_steps": 2}, **shared)
    turns = velocities(model, prompt, **INTERLEAVED, segments=["image"], **shared)
    for name in ("velocity_cond", "velocity_text", "velocity"):
        assert (alone[name][0] - turns[name][0]).abs().max() < 1e-5, name
    assert not torch.allclose(turns["velocity_cond"][0], turns["velocity_text"][0])


def test_interleaved_ignores_a_trailing_answer_marker(model, prompt):
    marked = conversation(model.config, [[5, 6, 7]], seed=2, answer=True)
    options = {**INTERLEAVED, "segments": ["text"], "max_new_tokens": 5}
    texts = [model.generate(**row, **options).segments[0].tolist() for row in (prompt, marked)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_kinds_are_read_off_the_placeholders(model, question, cache):
    without = {name: value for name, value in question.items() if name != "mm_token_type_ids"}
    options = {**GREEDY, "cache_implementation": cache, "disable_compile": True}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    given, derived = (model.generate(**row, **options).logits[0] for row in (question, without))
    assert torch.equal(given, derived)


def test_second_turn_on_a_cache_equals_a_fresh_read(model, question):
    first = model.generate(**question, **GREEDY, return_dict_in_generate=True)
    config = model.config
    turn = torch.tensor([[config.eos_token_id, config.bos_token_id, 9, 8, config.eos_token_id, config.bos_token_id]])
    ids = torch.cat([first.sequences, turn], dim=1)
    whole = {**question, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole.pop("mm_token_type_ids")
    options = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
    fresh = model.generate(**whole, **options)
    continued = model.generate(**whole, **options, past_key_values=first.past_key_values)
    assert (fresh.logits[0] - continued.logits[0]).abs().max() < 1e-5
    assert torch.equal(fresh.sequences, continued.sequences)


@pytest.mark.parametrize("mode", ["forward", "text", "image"])
def test_placeholders_without_images_are_refused(model, question, edit, mode):
    row = edit if mode == "image" else question
    bare = {name: row[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with pytest.raises(ValueError, match="processor"):
        if mode == "forward":
            model(**bare)
        else:
            model.generate(**bare, **(IMAGE if mode == "image" else GREEDY))


def test_mixed_batch_needs_a_preset(model, edit, prompt):
    batch = collate([edit, prompt], model.config.pad_token_id)
    with pytest.raises(ValueError, match="preset"):
        model.generate(**batch, **IMAGE)


def test_callers_generation_config_keeps_the_checkpoints_presets(prompt):
    model = tiny_model()
    model.generation_config.task_presets = {"t2i": {"num_inference_steps": 2, "height": 16, "width": 24}}
    output = model.generate(
        **prompt,
        generation_mode="image",
        show_progress=False,
        generation_config=GenerationConfig(max_new_tokens=4),
        return_dict_in_generate=True,
    )
    assert output.images.shape == (1, 3, 16, 24)
    assert len(output.timesteps) == 2


def test_everything_on_disk_still_draws_the_same_image(model, edit, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    offloaded = UniMedVLForConditionalGeneration.from_pretrained(
        tmp_path / "checkpoint", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    shared = {"latents": initial_latents(model.config, [(2, 3)]), "vae_noise": noises(model.config, edit)}
    assert torch.equal(offloaded.generate(**edit, **IMAGE, **shared), model.generate(**edit, **IMAGE, **shared))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_thoughts_take_text_options(model, prompt, options):
    output = model.generate(
        **prompt, **IMAGE, **options, height=16, width=16, think=True, max_think_tokens=4, return_dict_in_generate=True
    )
    assert len(output.text) == 1
    assert output.images.shape[0] == 1


def test_text_guidance_of_transformers_works(model):
    row = conversation(model.config, [[5, 6, 7]], seed=2, answer=True)
    plain = model.generate(**row, **GREEDY)
    assert torch.equal(model.generate(**row, **GREEDY, guidance_scale=1.0 + 1e-6), plain)
    model.generate(**row, **GREEDY, guidance_scale=3.0)


@pytest.mark.parametrize("frozen", ["vit_model", "connector"])
def test_every_trained_weight_gets_a_gradient_without_images(frozen):
    model = tiny_model().train()
    getattr(model.model, frozen).requires_grad_(False)
    ids = torch.tensor([[121, 1, 2, 3, 122]])
    model(input_ids=ids, labels=ids).loss.backward()
    missing = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []


def test_freezing_understanding_acts_when_it_is_switched_on():
    model = tiny_model().train()
    model.config.text_config.freeze_und = True
    row = conversation(model.config, [("vit", 1, 2), [3, 4]], seed=1)
    model(**row, labels=row["input_ids"]).loss.backward()
    moved = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()]
    assert moved == ["lm_head.weight"]


def test_quantization_given_as_a_dictionary(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = UniMedVLForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"}
    )
    quantized = [name for name, module in model.named_modules() if "8bit" in type(module).__name__]
    assert quantized
    assert all("language_model.layers" in name for name in quantized)


def test_generation_half_cannot_be_invented(tmp_path):
    tiny_model(visual_gen=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="understanding only"):
        UniMedVLForConditionalGeneration.from_pretrained(tmp_path, visual_gen=True)


def test_global_seed_draws_in_the_documented_order(model, edit):
    config = model.config
    torch.manual_seed(3)
    posterior = torch.randn(1, config.vae_config.latent_channels, 4, 6)[0]
    start = torch.randn(6, config.latent_dim)
    injected = model.generate(**edit, **IMAGE, vae_noise=[posterior], latents=[start])
    torch.manual_seed(3)
    assert torch.equal(model.generate(**edit, **IMAGE), injected)


def test_marker_inside_a_text_does_not_move_the_guidance_cut(model):
    """The branch without text has lost the whole last text, whatever stood before a marker inside it."""
    config = model.config
    shared = {"height": 16, "width": 16, "latents": initial_latents(config, [(2, 2)])}

    def branches(*inside):
        ids = torch.tensor([[config.bos_token_id, *inside, config.eos_token_id]])
        seen = velocities(model, {"input_ids": ids}, **IMAGE, **shared)
        return seen["velocity_cond"][0], seen["velocity_text"][0]

    (main, without), (other_main, other_without) = (branches(first, config.bos_token_id, 6) for first in (5, 9))
    assert torch.equal(without, other_without) and not torch.allclose(main, other_main, atol=1e-4)
    # What is left is the empty context that every single text leaves.
    assert (without - branches(7, 8)[1]).abs().max() < 1e-6


def test_casting_keeps_rotary_frequencies_exact():
    model = tiny_model()
    before = model.model.language_model.rotary_emb.inv_freq.clone()
    model.to(torch.bfloat16)
    after = model.model.language_model.rotary_emb.inv_freq
    assert after.dtype == torch.float32
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"input_ids": [[1, 2]]}, "input_ids"),
        ({"input_ids": torch.tensor([1, 2])}, "input_ids"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "empty"),
        ({"latents": "x"}, "latents"),
        ({"latents": torch.full((1, 4, 24), float("nan"))}, "NaN"),
        ({"vae_noise": [torch.zeros(6, 2, 2)]}, "vae_noise"),
        ({"generation_mode": "interleaved", "guidence_scale": 9.0, "segments": ["image"]}, "guidence_scale"),
        ({"generation_mode": "interleaved", "think": True}, "think"),
        ({"callback_on_step_end": lambda *_: {"latents": [torch.zeros(1, 24)]}}, "latents"),
    ],
)
def test_bad_inputs_are_named(model, prompt, arguments, word):
    row = {**prompt, **IMAGE, "height": 16, "width": 16, **arguments}
    if "input_ids" in arguments:
        row = {name: value for name, value in row.items() if name not in ("attention_mask", "mm_token_type_ids")}
    with pytest.raises(ValueError, match=word):
        model.generate(**row)


def test_numpy_sizes_are_sizes(model, prompt):
    assert model.generate(**prompt, **IMAGE, height=numpy.int64(16), width=numpy.int64(8)).shape == (1, 3, 16, 8)
