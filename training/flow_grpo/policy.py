"""The image generator as a stochastic policy: rectified flow sampled by an SDE, with the probability of every step.

The reverse SDE has the marginals of the flow's ODE, so a deterministic sampler becomes one that explores, whose steps
have a likelihood (Flow-GRPO, arXiv 2505.05470, equations 7 to 10; t = 1 is noise, t = 0 data, v = noise - data):

    x_s = x_t - (t - s) * (v + sigma_t^2 / (2 t) * (x_t + (1 - t) v)) + sigma_t * sqrt(t - s) * noise
    sigma_t = noise_level * sqrt(t / (1 - t))

Shape legend: R images, T latent tokens, L latent token dimension, K sampling steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from unimedvl.modeling_unimedvl.contexts_unimedvl import encode_images, read_prompts
from unimedvl.modeling_unimedvl.prompts_unimedvl import PosteriorDraws, Prompts
from unimedvl.modeling_unimedvl.sampling_unimedvl import Conditions, FlowSampler


@dataclass(frozen=True)
class ImagePrompts:
    """What images of one size are made from.

    Attributes:
        prompts: one row each.
        latents: of the prompts' images, the means of their posteriors; None without images.
        grid: (rows, columns) in latent tokens of the images to make.
        images_per_prompt: adjacent in every result.
    """

    prompts: Prompts
    latents: list[torch.Tensor] | None
    grid: tuple[int, int]
    images_per_prompt: int = 1

    @classmethod
    def from_inputs(
        cls, model: PreTrainedModel, inputs: Mapping[str, Any], grid: tuple[int, int], images_per_prompt: int = 1
    ) -> "ImagePrompts":
        """Encode the images of prompts, once for all images that are made from them.

        Args:
            model: the conditional generation model.
            inputs: what the processor returned with `generation_mode="image"`.
            grid: (rows, columns) of latent tokens of the images that are made.
            images_per_prompt: size of a group.
        """
        prompts = Prompts.from_inputs(model, inputs)
        latents = encode_images(model, prompts, PosteriorDraws(sample_mode="mode"))
        return cls(prompts, latents, grid, images_per_prompt)

    def prepare(self, sampler: FlowSampler) -> Conditions:
        """Read the prompts with the sampler's model, unguided."""
        contexts = read_prompts(sampler.model, self.prompts, self.latents)
        return sampler.prepare(
            contexts, [self.grid] * (len(self.prompts) * self.images_per_prompt), self.images_per_prompt
        )


@dataclass
class Trajectory:
    """A sampled path from noise to latent tokens.

    Attributes:
        states: float32 (K + 1, R, T, L), from noise to the result.
        times: float32 (K + 1,), from 1 to 0.
        log_probabilities: float32 (K, R), of every step, averaged over its T * L numbers.
    """

    states: torch.Tensor
    times: torch.Tensor
    log_probabilities: torch.Tensor


@dataclass(frozen=True)
class Rollout:
    """Images of one step of training and their rewards.

    Attributes:
        prompts: what they were made from.
        trajectory: how.
        scores: rewards (R,) by name, see `FlowGRPOTrainer.score`.
        generator: draws the steps that are trained on.
    """

    prompts: ImagePrompts
    trajectory: Trajectory
    scores: dict[str, torch.Tensor]
    generator: torch.Generator

    def velocity(self, sampler: FlowSampler, conditions: Conditions, index: int) -> torch.Tensor:
        """A sampler's velocity (R, T, L) at state `index` of the trajectory.

        Sampling and learning share `FlowSampler.step`, so the first update of a policy starts at a probability ratio
        of exactly 1.
        """
        return sampler.step(conditions, self.trajectory.states[index], float(self.trajectory.times[index])).velocity


def sde_step(
    state: torch.Tensor, velocity: torch.Tensor, time: float, next_time: float, noise_level: float, largest_time: float
) -> tuple[torch.Tensor, float]:
    """Mean and standard deviation of the next state.

    Args:
        state, velocity: of equal shape.
        time, next_time: 1 >= time > next_time >= 0.
        noise_level: scale of the exploration; 0 gives the ODE's Euler step.
        largest_time: the deviation at `time` = 1, where it would be infinite, is taken at this time instead.
    """
    length, capped = time - next_time, min(time, largest_time)
    variance = noise_level**2 * capped / (1.0 - capped)
    drift = velocity + variance / (2.0 * time) * (state + (1.0 - time) * velocity)
    return state - length * drift, (variance * length) ** 0.5


def log_probability(value: torch.Tensor, mean: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian log density (R,) of (R, T, L) values, averaged over T * L so that sizes of images compare."""
    density = torch.distributions.Normal(mean, deviation, validate_args=False).log_prob(value)
    return density.flatten(1).mean(dim=1)


def policy_loss(ratio: torch.Tensor, advantages: torch.Tensor, clip_range: float) -> torch.Tensor:
    """PPO's clipped loss (Schulman et al. 2017, equation 7, negated).

    Args:
        ratio: (R,), probability of a step under the policy over that when it was sampled.
        advantages: (R,), normalized within the group of a prompt.
        clip_range: how far the ratio may leave 1 before its gradient stops.

    Returns:
        (R,), to be minimized.
    """
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages)


@torch.no_grad()
def sample_trajectory(
    sampler: FlowSampler, prompts: ImagePrompts, noise_level: float, generator: torch.Generator
) -> Trajectory:
    """Sample images from noise to data, at the flow times of the sampler.

    Args:
        sampler: of at least 2 steps.
        prompts: what the images are made from.
        noise_level: > 0; 0.7 in Flow-GRPO.
        generator: source of all noise, on the CPU, so that a seed means the same on every device.

    Returns:
        Every state of the path, from noise to images, and the log probabilities of its steps.
    """
    conditions = prompts.prepare(sampler)
    device, times = conditions.device, sampler.schedule
    shape = (*conditions.shape, sampler.model.config.latent_dim)
    state = torch.randn(shape, generator=generator).to(device)
    states, densities = [state], []
    for time, next_time in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        predicted = sampler.step(conditions, state, time).velocity
        mean, deviation = sde_step(state, predicted, time, next_time, noise_level, float(times[1]))
        state = mean + deviation * torch.randn(shape, generator=generator).to(device)
        densities.append(log_probability(state, mean, deviation))
        states.append(state)
    return Trajectory(torch.stack(states), times, torch.stack(densities))
