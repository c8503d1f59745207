"""What `generate` offers in its three modes."""

import json

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tests.tiny_inputs import collate, conversation, initial_latents, noises
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.flow_unimedvl import TASK_PRESETS, FlowSettings, flow_schedule
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

pytestmark = pytest.mark.medium

GREEDY = {"do_sample": False, "max_new_tokens": 8}
IMAGE = {"generation_mode": "image", "num_inference_steps": 3, "show_progress": False}


@pytest.fixture(scope="module")
def edit(model):
    return conversation(model.config, [("latent", 2, 3), ("vit", 2, 2), [3, 4]], seed=1)


@pytest.fixture(scope="module")
def prompt(model):
    return conversation(model.config, [[5, 6, 7]], seed=2)


# -- text


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static", "disable_compile": True},
        {"cache_implementation": "dynamic"},
        {"prompt_lookup_num_tokens": 2},
        {"num_beams": 1},
    ],
    ids=["static", "dynamic", "prompt-lookup", "greedy"],
)
def test_decoding_strategies_that_must_equal_greedy(model, question, options):
    greedy = model.generate(**question, **GREEDY)
    assert torch.equal(model.generate(**question, **GREEDY, **options), greedy)


def test_assisted_decoding_equals_greedy(model, question):
    greedy = model.generate(**question, **GREEDY)
    assert torch.equal(model.generate(**question, **GREEDY, assistant_model=tiny_model(seed=1)), greedy)


def test_static_cache_in_a_padded_batch(model, question):
    longer = conversation(model.config, [("vit", 1, 2), [9] * 9, ("vit", 2, 1), [8]], seed=3, answer=True)
    batch = collate([question, longer], model.config.pad_token_id)
    static = model.generate(**batch, **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, model.generate(**batch, **GREEDY))


def test_beams_score_at_least_as_high_as_greedy(model, question):
    def score(ids):
        kinds = torch.nn.functional.pad(question["mm_token_type_ids"], (0, ids.shape[1] - prompt_length))
        images = {name: question[name] for name in ("pixel_values", "image_grid_thw")}
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=kinds, **images).logits.log_softmax(-1)
        return logits[:, prompt_length - 1 : -1].gather(2, ids[:, prompt_length:, None]).sum()

    prompt_length = question["input_ids"].shape[1]
    options = {**GREEDY, "min_new_tokens": 8}
    greedy = model.generate(**question, **options)
    beams = model.generate(**question, **options, num_beams=4, length_penalty=0.0)
    assert score(beams) >= score(greedy) - 1e-5


def test_several_sequences_repeat_each_rows_images(model, question):
    other = conversation(model.config, [("vit", 1, 2), [1], ("vit", 3, 1), [2]], seed=7, answer=True)
    batch = collate([question, other], model.config.pad_token_id)
    torch.manual_seed(0)
    sampled = model.generate(**batch, do_sample=True, top_k=1, max_new_tokens=6, num_return_sequences=3)
    greedy = model.generate(**batch, do_sample=False, max_new_tokens=6)
    assert torch.equal(sampled, greedy.repeat_interleave(3, dim=0))


def test_streamer_and_stopping_criteria(model, question):
    class Collect(BaseStreamer):
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ids.append("end")

    class After(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            enough = input_ids.shape[1] >= question["input_ids"].shape[1] + 3
            return torch.full((input_ids.shape[0],), enough)

    streamer = Collect()
    ids = model.generate(**question, **GREEDY, streamer=streamer, stopping_criteria=StoppingCriteriaList([After()]))
    assert ids.shape[1] == question["input_ids"].shape[1] + 3
    assert streamer.ids == [*ids[0].tolist(), "end"]


def test_latent_images_in_a_text_context(model, edit):
    """Text can be asked of a context with clean latents too; the posterior is drawn once, whatever the cache."""
    generator = [torch.Generator().manual_seed(1) for _ in range(2)]
    cached = model.generate(**edit, **GREEDY, generator=generator[0])
    uncached = model.generate(**edit, **GREEDY, generator=generator[1], use_cache=False)
    assert torch.equal(cached, uncached)


def test_shipped_generation_config_leaves_text_alone(model, question, tmp_path):
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["task_presets"] == json.loads(json.dumps(TASK_PRESETS))
    shipped = UniMedVLForConditionalGeneration.from_pretrained(tmp_path)
    assert shipped.generation_config.task_presets == saved["task_presets"]
    bare = GenerationConfig(eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id)
    with_shipped = shipped.generate(**question, **GREEDY)
    with_bare = shipped.generate(**question, generation_config=bare, **GREEDY)
    assert torch.equal(with_shipped, with_bare)


# -- images


def test_schedule_of_the_reference():
    schedule = flow_schedule(49, 3.0)
    assert schedule.shape == (50,)
    expected = {0: 1.0, 1: 0.993103, 2: 0.986014, 3: 0.978723, -4: 0.163636, -3: 0.113208, -2: 0.058824, -1: 0.0}
    for index, value in expected.items():
        assert schedule[index].item() == pytest.approx(value, abs=1e-6)


def test_interval_bounds_are_compared_in_float32():
    settings = FlowSettings(5, 4.0, 1.0, (0.4, 0.8), "global", 0.0, 1.0)
    assert [settings.guides(time) for time in flow_schedule(5, 1.0)[:-1].tolist()] == [False, True, True, False, False]


@pytest.mark.parametrize("preset", sorted(TASK_PRESETS))
def test_every_preset_runs_and_equals_its_values(model, edit, prompt, preset):
    row = prompt if preset == "t2i" else edit
    shared = {"latents": initial_latents(model.config, [(2, 3)]), "vae_noise": noises(model.config, row)}
    if preset == "t2i":
        shared |= {"height": 16, "width": 24, "vae_noise": None}
    named = model.generate(**row, **IMAGE, **shared, preset=preset)
    values = {**TASK_PRESETS[preset], "num_inference_steps": 3}
    values = {name: value for name, value in values.items() if name not in ("height", "width")}
    spelled = model.generate(**row, **{**IMAGE, **values}, **shared, preset="edit")
    assert torch.equal(named, spelled)


def test_preset_without_text_mode_effect(model, question):
    with pytest.raises(ValueError, match="preset"):
        model.generate(**question, **GREEDY, preset="edit")


def test_default_size_is_the_last_input_image(model, edit):
    assert model.generate(**edit, **IMAGE).shape == (1, 3, 16, 24)


def test_several_images_of_a_prompt_with_one_generator_each(model, edit):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    mode = {"vae_sample_mode": "mode"}
    pair = model.generate(**edit, **IMAGE, **mode, num_images_per_prompt=2, generator=generators(1, 2))
    for index, seed in enumerate((1, 2)):
        single = model.generate(**edit, **IMAGE, **mode, generator=generators(seed)[0])
        assert (pair[index] - single[0]).abs().max() < 1e-5


def test_generator_fixes_posterior_noise_and_latents(model, edit):
    images = [model.generate(**edit, **IMAGE, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2])


def test_step_callback_sees_and_changes_the_state(model, edit):
    steps = []

    def stop_moving(model, step, timestep, values):
        steps.append((step, timestep, [tuple(value.shape) for value in values["latents"]]))
        assert set(values) == {"latents", "velocity", "velocity_cond", "velocity_text", "velocity_image"}
        return {"latents": [torch.zeros_like(value) for value in values["latents"]]}

    output = model.generate(**edit, **IMAGE, callback_on_step_end=stop_moving, return_dict_in_generate=True)
    assert [step for step, _, _ in steps] == [0, 1, 2]
    assert steps[0][1] == 1.0
    assert steps[0][2] == [(6, model.config.latent_dim)]
    assert all(not latent.any() for latent in output.latents)


def test_think_then_image_conditions_on_the_thought(model, prompt):
    shared = {"latents": initial_latents(model.config, [(2, 2)]), "height": 16, "width": 16, "do_sample": False}
    thinking = model.generate(
        **prompt, **IMAGE, **shared, think=True, max_think_tokens=5, return_dict_in_generate=True
    )
    assert len(thinking.text[0]) <= 5
    shared.pop("do_sample")
    by_hand = conversation(model.config, [[5, 6, 7], thinking.text[0]], seed=2)
    unguided = {"guidance_scale": 1.0}
    spelled = model.generate(**by_hand, **IMAGE, **shared, **unguided)
    thought = model.generate(**prompt, **IMAGE, **shared, **unguided, think=True, max_think_tokens=5, do_sample=False)
    assert (spelled - thought).abs().max() < 1e-5


def test_prompt_in_text_layout_gives_the_same_image(model, prompt):
    shared = {"latents": initial_latents(model.config, [(2, 2)]), "height": 16, "width": 16}
    with_marker = conversation(model.config, [[5, 6, 7]], seed=2, answer=True)
    plain, marked = (model.generate(**row, **IMAGE, **shared) for row in (prompt, with_marker))
    assert (plain - marked).abs().max() < 1e-5
    right = {name: torch.nn.functional.pad(value, (0, 2)) for name, value in with_marker.items()}
    assert (plain - model.generate(**right, **IMAGE, **shared)).abs().max() < 1e-5


def test_interleaved_until_the_plan_or_the_caller_ends_it(model, edit):
    options = {"generation_mode": "interleaved", "num_inference_steps": 2, "show_progress": False, "do_sample": False}
    output = model.generate(**edit, **options, segments=["text", "image", "text"], max_new_tokens=4)
    assert [segment.dim() for segment in output.segments] == [1, 3, 1]
    assert output.images.shape == (1, 3, 16, 24)
    stopped = model.generate(**edit, **options, max_new_tokens=4, on_segment_end=lambda index, segment: index < 1)
    assert len(stopped.segments) == 2


def test_generated_image_is_context_for_the_next(model, prompt):
    options = {"generation_mode": "interleaved", "num_inference_steps": 2, "show_progress": False}
    options |= {"height": 16, "width": 16, "segments": ["image", "image"]}
    options["vae_noise"] = noises(model.config, {"latent_image_sizes": torch.tensor([[16, 16]] * 4)})
    last = initial_latents(model.config, [(2, 2)], seed=9)
    seconds = []
    for seed in (1, 2):
        first = initial_latents(model.config, [(2, 2)], seed=seed)
        seconds.append(model.generate(**prompt, **options, latents=first + last).images[1])
    alone = model.generate(**prompt, **{**IMAGE, "num_inference_steps": 2}, height=16, width=16, latents=last)
    assert not torch.allclose(seconds[0], seconds[1], atol=1e-5)
    assert not torch.allclose(seconds[0], alone[0], atol=1e-5)


def test_pixels_of_any_size_list(model, prompt):
    batch = collate([prompt, prompt], model.config.pad_token_id)
    images = model.generate(**batch, **IMAGE, height=[16, 8], width=[8, 16])
    assert [tuple(image.shape) for image in images] == [(3, 16, 8), (3, 8, 16)]


BAD_ARGUMENTS = {
    "mode": ({"generation_mode": "video"}, "generation_mode"),
    "preset": ({"preset": "paint"}, "preset"),
    "steps": ({"num_inference_steps": 0}, "num_inference_steps"),
    "steps type": ({"num_inference_steps": 2.5}, "num_inference_steps"),
    "guidance": ({"guidance_scale": float("nan")}, "guidance_scale"),
    "negative guidance": ({"image_guidance_scale": -1.0}, "image_guidance_scale"),
    "interval": ({"cfg_interval": (0.9, 0.1)}, "cfg_interval"),
    "interval length": ({"cfg_interval": (0.9,)}, "cfg_interval"),
    "renorm": ({"cfg_renorm_type": "local"}, "cfg_renorm_type"),
    "renorm_min": ({"cfg_renorm_min": 2.0}, "cfg_renorm_min"),
    "shift": ({"timestep_shift": 0.0}, "timestep_shift"),
    "odd size": ({"height": 17, "width": 16}, "multiple"),
    "huge size": ({"height": 8192, "width": 8192}, "multiple"),
    "half a size": ({"height": 16}, "together"),
    "sizes for another batch": ({"height": [16, 16, 16], "width": [16, 16, 16]}, "height and width"),
    "number": ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
    "generators": ({"generator": [torch.Generator(), torch.Generator()]}, "generator"),
    "latents": ({"latents": torch.zeros(3, 5)}, "latents"),
    "posterior noise": ({"vae_noise": []}, "vae_noise"),
    "sample mode": ({"vae_sample_mode": "mean"}, "vae_sample_mode"),
    "unknown": ({"guidence_scale": 3.0}, "guidence_scale"),
}


@pytest.mark.parametrize("name", sorted(BAD_ARGUMENTS))
def test_bad_arguments_name_themselves(model, edit, name):
    arguments, word = BAD_ARGUMENTS[name]
    with pytest.raises(ValueError, match=word):
        model.generate(**edit, **{**IMAGE, **arguments})


def test_images_must_fit_their_placeholders(model, edit):
    missing = {**edit, "latent_pixel_values": None, "latent_image_sizes": None}
    with pytest.raises(ValueError, match="processor"):
        model.generate(**missing, **IMAGE)
    fewer = {**edit, "pixel_values": edit["pixel_values"][:-1]}
    with pytest.raises(ValueError, match="processor"):
        model.generate(**fewer, **IMAGE)
