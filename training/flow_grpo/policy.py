"""The image generator as a stochastic policy: rectified flow sampled by an SDE, with the probability of every step.

The reverse SDE has the marginals of the flow's ODE, so a deterministic sampler becomes one that explores, whose steps
have a likelihood (Flow-GRPO, arXiv 2505.05470, equations 7 to 10; t = 1 is noise, t = 0 data, v = noise - data):

    x_s = x_t - (t - s) * (v + sigma_t^2 / (2 t) * (x_t + (1 - t) v)) + sigma_t * sqrt(t - s) * noise
    sigma_t = noise_level * sqrt(t / (1 - t))

Shape legend: R rows, T latent tokens, L latent token dimension, K sampling steps, S sequence length.
"""

from dataclasses import dataclass

import torch
from torch import nn

from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind
from unimedvl.modeling_unimedvl.flow_unimedvl import flow_schedule
from unimedvl.modeling_unimedvl.sampling_unimedvl import runs_per_row


@dataclass
class Conditions:
    """What images are made from, one row an image.

    Attributes:
        inputs: arguments of `forward` without latents: `input_ids`, `attention_mask`, `mm_token_type_ids` (R, S) and,
            with input images, `pixel_values`, `image_grid_thw`.
        clean_latents: for every row the latents (C, h, w) of its input images, in order.
        grid: (rows, columns) in latent tokens of the images to make.
    """

    inputs: dict[str, torch.Tensor]
    clean_latents: list[list[torch.Tensor]]
    grid: tuple[int, int]

    def __len__(self) -> int:
        return self.inputs["input_ids"].shape[0]


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


def prepare_conditions(model: nn.Module, processed: dict[str, torch.Tensor], height: int, width: int) -> Conditions:
    """Conditions from one call of the processor with `generation_mode="image"`.

    Args:
        model: a `UniMedVLForConditionalGeneration`, bare (no adapter wrapper).
        processed: what the processor returned; left padded if the rows differ in length.
        height, width: pixels of the images to make.

    Raises:
        ValueError: if the size is no multiple of a latent token or larger than the position table.
    """
    config = model.config
    unit, side = config.pixels_per_latent_token, config.max_latent_size
    for name, value in (("height", height), ("width", width)):
        if value < unit or value % unit or value > unit * side:
            raise ValueError(f"{name} must be a multiple of {unit} from {unit} to {unit * side} pixels, not {value}.")
    inputs = {name: value.to(model.device) for name, value in processed.items() if isinstance(value, torch.Tensor)}
    pixels, sizes = inputs.pop("latent_pixel_values", None), inputs.pop("latent_image_sizes", None)
    latents: list[torch.Tensor] = []
    if pixels is not None and sizes is not None:
        images = [image[:, :rows, :columns] for image, (rows, columns) in zip(pixels, sizes.tolist(), strict=True)]
        with torch.no_grad():
            latents = model.model.encode_latents(images, None, None, "mode")
    counts = runs_per_row(inputs["mm_token_type_ids"], BlockKind.CLEAN)
    remaining = iter(latents)
    clean = [[next(remaining) for _ in range(count)] for count in counts]
    return Conditions(inputs, clean, (height // unit, width // unit))


def repeat_conditions(conditions: Conditions, count: int) -> Conditions:
    """Every row `count` times in succession."""
    inputs, rows = conditions.inputs, len(conditions)
    repeated = {}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        repeated[name] = inputs[name].repeat_interleave(count, dim=0)
    if "pixel_values" in inputs:
        grids = inputs["image_grid_thw"]
        images_per_row = runs_per_row(inputs["mm_token_type_ids"], BlockKind.VIT)
        patches = list(torch.split(inputs["pixel_values"], grids.prod(dim=1).tolist()))
        order, first = [], 0
        for number in images_per_row:
            order += list(range(first, first + number)) * count
            first += number
        repeated["pixel_values"] = torch.cat([patches[index] for index in order])
        repeated["image_grid_thw"] = grids[order]
    clean = [conditions.clean_latents[row] for row in range(rows) for _ in range(count)]
    return Conditions(repeated, clean, conditions.grid)


def velocity(model: nn.Module, conditions: Conditions, states_RTL: torch.Tensor, time: float) -> torch.Tensor:
    """The model's velocity (R, T, L) at `states_RTL` and flow time `time`, through `forward` as in training.

    Sampling and learning share it, so the first update of a policy starts at a probability ratio of exactly 1.
    """
    config, (rows, columns) = model.config, conditions.grid
    inputs = conditions.inputs
    count, tokens = len(conditions), rows * columns
    block = [config.vision_start_token_id, *[config.latent_token_id] * tokens, config.vision_end_token_id]
    ids = torch.tensor(block, device=states_RTL.device).expand(count, -1)
    kinds = torch.full_like(ids, int(BlockKind.NOISED))
    kinds[:, 0] = kinds[:, -1] = int(BlockKind.TEXT)
    latents, times = [], []
    for row in range(count):
        state = model.model.latent_grid(states_RTL[row], rows, columns)
        latents += [*conditions.clean_latents[row], state]
        times += [0.0] * len(conditions.clean_latents[row]) + [time]
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    output = model(
        input_ids=torch.cat([inputs["input_ids"], ids], dim=1),
        attention_mask=torch.cat([inputs["attention_mask"], torch.ones_like(ids)], dim=1),
        mm_token_type_ids=torch.cat([inputs["mm_token_type_ids"], kinds], dim=1),
        latent_values=latents,
        # Noise equal to the data makes the interpolation of training return the state itself at any time.
        flow_noise=states_RTL.reshape(count * tokens, -1),
        flow_timesteps=torch.tensor(times, device=states_RTL.device),
        logits_to_keep=1,
        use_cache=False,
        **images,
    )
    return output.velocity.float().reshape(states_RTL.shape)


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


@torch.no_grad()
def sample_trajectory(
    model: nn.Module,
    conditions: Conditions,
    num_inference_steps: int,
    noise_level: float,
    timestep_shift: float,
    generator: torch.Generator,
) -> Trajectory:
    """Sample every row from noise to data.

    Args:
        num_inference_steps: K >= 2.
        noise_level: > 0; 0.7 in Flow-GRPO.
        timestep_shift: as in `FlowSettings`.
        generator: source of all noise, on the CPU, so that a seed means the same on every device.
    """
    rows, columns = conditions.grid
    shape, device = (len(conditions), rows * columns, model.config.latent_dim), model.device
    times = flow_schedule(num_inference_steps, timestep_shift)
    state = torch.randn(shape, generator=generator).to(device)
    states, densities = [state], []
    for time, next_time in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        predicted = velocity(model, conditions, state, time)
        mean, deviation = sde_step(state, predicted, time, next_time, noise_level, float(times[1]))
        state = mean + deviation * torch.randn(shape, generator=generator).to(device)
        densities.append(log_probability(state, mean, deviation))
        states.append(state)
    return Trajectory(torch.stack(states), times, torch.stack(densities))


@torch.no_grad()
def decode(model: nn.Module, tokens_RTL: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Latent tokens to pixels, float (R, 3, H, W) in [-1, 1] and beyond."""
    return torch.stack(model.model.decode_latents([model.model.latent_grid(tokens, *grid) for tokens in tokens_RTL]))
