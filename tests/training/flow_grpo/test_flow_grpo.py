"""Flow-GRPO: the SDE keeps the flow's distribution, its likelihoods are right, and rewards are learned."""

import math

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from torch.distributions import Normal, kl_divergence

from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.modeling_unimedvl.flow_unimedvl import FlowSettings
from unimedvl.modeling_unimedvl.sampling_unimedvl import FlowSampler
from unimedvl.training.adapters import adapter_config
from unimedvl.training.flow_grpo.policy import ImagePrompts, log_probability, policy_loss, sample_trajectory, sde_step
from unimedvl.training.flow_grpo.trainer import FlowGRPOArguments, FlowGRPOTrainer, group_advantages
from unimedvl.training.tuning_recipe import AdapterRecipe

SIDE = 16
PROMPTS = [{"prompt": "a chest scan"}, {"prompt": "a dark film of the head"}]


@pytest.fixture
def checkpoint(tmp_path):
    return tiny_checkpoint(tmp_path / "model")


def processed(processor, examples):
    content = [
        [{"type": "image", "image": image} for image in example.get("images", [])]
        + [{"type": "text", "text": example["prompt"]}]
        for example in examples
    ]
    return processor.apply_chat_template(
        [[{"role": "user", "content": parts}] for parts in content],
        generation_mode="image",
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )


@pytest.mark.parametrize("noise_level", [1e-6, 0.3, 0.7])
def test_the_sde_ends_in_the_distribution_of_the_data(noise_level):
    # For Gaussian data the velocity is known: E[noise - data | x_t].
    mean, deviation, count, steps = 0.6, 0.5, 200_000, 400
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(count, generator=generator)
    times = torch.linspace(1, 0, steps + 1).tolist()
    for time, next_time in zip(times, times[1:], strict=False):
        variance = (1 - time) ** 2 * deviation**2 + time**2
        centered = (state - (1 - time) * mean) / variance
        exact = time * centered - (mean + (1 - time) * deviation**2 * centered)
        center, spread = sde_step(state, exact, time, next_time, noise_level, times[1])
        state = center + spread * torch.randn(count, generator=generator)
    assert abs(state.mean().item() - mean) < 0.01
    assert abs(state.std().item() - deviation) < 0.01


def test_without_noise_it_is_the_sampler_of_generate(checkpoint):
    model, processor = checkpoint
    image = Image.effect_noise((24, 16), 80).convert("RGB")
    examples = [{"prompt": "sharpen", "images": [image]}, {"prompt": "find the polyp, please", "images": [image]}]
    inputs = processed(processor, examples)
    sampler = FlowSampler(model, FlowSettings.unguided(5, 2.0))
    unit = model.config.pixels_per_latent_token
    prompts = ImagePrompts.from_inputs(model, inputs, (SIDE // unit, 2 * SIDE // unit))
    path = sample_trajectory(sampler, prompts, 1e-7, torch.Generator().manual_seed(3))
    expected = model.generate(
        **inputs,
        generation_mode="image",
        num_inference_steps=5,
        guidance_scale=1.0,
        image_guidance_scale=1.0,
        timestep_shift=2.0,
        height=SIDE,
        width=2 * SIDE,
        latents=list(path.states[0]),
        vae_sample_mode="mode",
        return_dict_in_generate=True,
    )
    torch.testing.assert_close(path.states[-1], torch.stack(list(expected.latents)), atol=1e-4, rtol=1e-4)


def test_repeated_rows_are_independent_of_each_other(checkpoint):
    model, processor = checkpoint
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    examples = [{"prompt": "sharpen", "images": [image]}, {"prompt": "sharpen it", "images": [image.rotate(90)]}]
    sampler, grid = FlowSampler(model, FlowSettings.unguided(4, 1.0)), (2, 2)
    states = torch.randn(6, math.prod(grid), model.config.latent_dim)
    with torch.no_grad():
        conditions = ImagePrompts.from_inputs(model, processed(processor, examples), grid, 3).prepare(sampler)
        together = sampler.step(conditions, states, 0.4).velocity
        for row in range(6):
            inputs = processed(processor, examples[row // 3 : row // 3 + 1])
            alone = ImagePrompts.from_inputs(model, inputs, grid).prepare(sampler)
            velocity = sampler.step(alone, states[row : row + 1], 0.4).velocity
            torch.testing.assert_close(velocity[0], together[row])


def test_gradients_flow_through_every_step_on_the_same_conditions(checkpoint):
    model, processor = checkpoint
    inputs = processed(processor, [{"prompt": "sharpen", "images": [Image.effect_noise((16, 16), 60).convert("RGB")]}])
    sampler, grid = FlowSampler(model, FlowSettings.unguided(4, 1.0)), (2, 2)
    states = torch.randn(2, 1, math.prod(grid), model.config.latent_dim)
    weight = model.model.language_model.layers[0].self_attn.k_proj.weight
    prompts = ImagePrompts.from_inputs(model, inputs, grid)
    conditions = prompts.prepare(sampler)
    both = sum(
        sampler.step(conditions, state, time).velocity.sum() for state, time in zip(states, (0.9, 0.4), strict=True)
    )
    (together,) = torch.autograd.grad(both, weight)
    apart = torch.zeros_like(weight)
    for state, time in zip(states, (0.9, 0.4), strict=True):
        velocity = sampler.step(prompts.prepare(sampler), state, time).velocity
        apart += torch.autograd.grad(velocity.sum(), weight)[0]
    assert together.any()
    torch.testing.assert_close(together, apart)


def test_advantages_compare_within_a_group():
    advantages = group_advantages(torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0]), 3)
    torch.testing.assert_close(advantages, torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]), atol=2e-4, rtol=0)


def test_loss_stops_where_the_ratio_has_moved_enough():
    ratio = torch.tensor([0.5, 1.05, 2.0, 2.0], requires_grad=True)
    policy_loss(ratio, torch.tensor([-1.0, 1.0, 1.0, -1.0]), 0.1).sum().backward()
    torch.testing.assert_close(ratio.grad, torch.tensor([0.0, -1.0, 0.0, 1.0]))


def red(images, examples):
    """Mean of the red channel against the others, in levels."""
    values = []
    for image in images:
        pixels = torch.tensor(list(image.getdata()), dtype=torch.float32)
        values.append((pixels[:, 0] - pixels[:, 1:].mean(dim=1)).mean().item())
    return values


def arguments(folder, **changes):
    settings = {
        "max_steps": 2,
        "prompts_per_step": 2,
        "group_size": 6,
        "num_inference_steps": 4,
        "height": SIDE,
        "width": SIDE,
        "learning_rate": 2e-2,
        "kl_weight": 0.0,
        "save_steps": 1,
    }
    return FlowGRPOArguments(output_dir=str(folder), **{**settings, **changes})


def make_trainer(folder, model_folder, **changes):
    torch.manual_seed(0)
    model, processor = tiny_checkpoint(model_folder)
    torch.manual_seed(1)
    model = get_peft_model(model, adapter_config(AdapterRecipe(experts="generation", rank=4)))
    return FlowGRPOTrainer(
        model, processor, arguments(folder, **changes), PROMPTS, {"red": (red, 1.0)}, eval_examples=PROMPTS
    )


def test_the_first_update_starts_at_ratio_one_and_reference(tmp_path):
    trainer = make_trainer(tmp_path / "run", tmp_path / "model", kl_weight=1.0, max_steps=1)
    trainer.eval_examples = []
    entry = trainer.train()[-1]
    assert entry["clipped"] == 0.0 and entry["kl"] == 0.0 and entry["grad_norm"] > 0


def test_learning_sees_the_probabilities_of_sampling_to_the_bit(tmp_path):
    trainer = make_trainer(tmp_path / "run", tmp_path / "model")
    rollout = trainer.rollout()
    path = rollout.trajectory
    times = path.times.tolist()
    for index, (time, next_time) in enumerate(zip(times, times[1:], strict=False)):
        predicted = rollout.velocity(trainer.sampler, rollout.prompts.prepare(trainer.sampler), index)
        assert predicted.requires_grad
        mean, deviation = sde_step(path.states[index], predicted, time, next_time, 0.7, times[1])
        ratio = (log_probability(path.states[index + 1], mean, deviation) - path.log_probabilities[index]).exp()
        assert torch.equal(ratio, torch.ones_like(ratio))


def test_the_kl_term_is_the_divergence_of_two_gaussians(tmp_path):
    """Mean over steps and values of KL(policy || reference) of the next state, by torch.distributions."""
    trainer = make_trainer(
        tmp_path / "run", tmp_path / "model", kl_weight=1.0, max_steps=1, group_size=2, num_inference_steps=3
    )
    trainer.eval_examples = []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # an adapter begins as the reference itself
        for parameter in trainer.parameters.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    rollout = trainer.rollout()  # drawn by the seed and the step, so training draws it again
    path, divergences = rollout.trajectory, []
    times = path.times.tolist()

    def next_state(index):
        predicted = rollout.velocity(trainer.sampler, rollout.prompts.prepare(trainer.sampler), index)
        return Normal(*sde_step(path.states[index], predicted, times[index], times[index + 1], 0.7, times[1]))

    with torch.no_grad():
        for index in range(len(times) - 1):
            policy = next_state(index)
            with trainer.model.disable_adapter():
                reference = next_state(index)
            divergences.append(kl_divergence(policy, reference).mean().item())
    entry = trainer.train()[-1]
    assert len(divergences) == 3 and min(divergences) > 0
    assert entry["kl"] == pytest.approx(sum(divergences) / 3, rel=1e-4)


@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "generation expert"])
def test_gradients_reach_only_what_learns(tmp_path, adapted):
    trainer = make_trainer(tmp_path / "run", tmp_path / "model", kl_weight=1.0, max_steps=1)
    if not adapted:
        model = trainer.policy = trainer.model.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("_moe_gen" in name)
        trainer = FlowGRPOTrainer(model, trainer.processor, trainer.arguments, PROMPTS, trainer.rewards)
    trainer.eval_examples = []
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    assert trainer.train()[-1]["kl"] == 0.0
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved and moved <= trainer.parameters.keys()
    assert all("_moe_gen" in name and (not adapted or "lora_" in name) for name in moved)


@pytest.mark.slow
def test_a_reward_is_learned_in_either_direction_and_only_the_adapter_moves(tmp_path):
    redness = {}
    for weight in (1.0, -1.0):
        trainer = make_trainer(tmp_path / f"run{weight}", tmp_path / "model", max_steps=8, group_size=48)
        trainer.rewards = {"red": (red, weight)}
        frozen = {name: value.clone() for name, value in trainer.model.named_parameters() if not value.requires_grad}
        history = trainer.train()
        redness[weight] = history[-1]["eval_red"] - history[0]["eval_red"]
        after = dict(trainer.model.named_parameters())
        assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert redness[1.0] > 0.1 and redness[-1.0] < -0.03


@pytest.mark.slow
def test_the_kl_term_holds_the_policy_back(tmp_path):
    runs = {
        weight: make_trainer(tmp_path / f"run{weight}", tmp_path / "model", max_steps=6, kl_weight=weight).train()[-1]
        for weight in (1e-6, 10.0)
    }
    assert runs[10.0]["kl"] < runs[1e-6]["kl"]


def test_resuming_equals_running_through(tmp_path):
    whole = make_trainer(tmp_path / "whole", tmp_path / "model")
    expected = whole.train()
    make_trainer(tmp_path / "parts", tmp_path / "model", max_steps=1).train()
    parts = make_trainer(tmp_path / "parts", tmp_path / "model")
    history = parts.train()
    learned = {name: value for name, value in expected[-1].items() if not name.startswith("eval")}
    assert learned.items() <= history[-1].items()
    for name, value in whole.parameters.items():
        assert torch.equal(value, parts.parameters[name]), name


def test_other_settings_do_not_resume_from_a_checkpoint(tmp_path):
    make_trainer(tmp_path / "run", tmp_path / "model", max_steps=1).train()
    with pytest.raises(ValueError, match="group_size"):
        make_trainer(tmp_path / "run", tmp_path / "model", group_size=3).train()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"group_size": 1}, "group_size"),
        ({"noise_level": 0.0}, "noise_level"),
        ({"trained_steps": 9}, "trained_steps"),
        ({"height": 17}, "height must be a multiple"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path / "run", tmp_path / "model", **changes).train()


def test_a_reward_that_is_no_number_is_named(tmp_path):
    trainer = make_trainer(tmp_path / "run", tmp_path / "model")
    trainer.rewards = {"broken": (lambda images, examples: [float("nan")] * len(images), 1.0)}
    with pytest.raises(ValueError, match="broken"):
        trainer.train()
