"""Translation of the reference's sampling runs into arguments of `generate`, and of results into records of a run."""

from dataclasses import dataclass

import numpy
import torch

from unimedvl.modeling_unimedvl.flow_unimedvl import unpatchify_latents

from .records import TENSOR, Golden
from .reference import JSON, Context, draw, to_uint8

# The reference's names of sampling arguments, and ours.
SAMPLING = {
    "cfg_text_scale": "guidance_scale",
    "cfg_img_scale": "image_guidance_scale",
    "cfg_interval": "cfg_interval",
    "cfg_renorm_type": "cfg_renorm_type",
    "cfg_renorm_min": "cfg_renorm_min",
    "timestep_shift": "timestep_shift",
}


def sampling_arguments(golden: Golden, pointer: str) -> dict:
    """The recorded sampling settings of a run, under our names. N time values make N - 1 updates."""
    arguments = {
        ours: golden.argument(JSON, f"{pointer}/{theirs}")
        for theirs, ours in SAMPLING.items()
        if golden.value(JSON, f"{pointer}/{theirs}") is not None
    }
    arguments["num_inference_steps"] = golden.argument(JSON, f"{pointer}/num_timesteps") - 1
    return arguments


def guided_steps(arguments: dict, timesteps: list[float]) -> list[bool]:
    """Whether each flow time lies in the guidance interval, by the reference's rule: low < t <= high in float32.

    The reference's own call takes the whole of [0, 1] where a run names no interval.
    """
    low, high = (numpy.float32(bound) for bound in arguments.get("cfg_interval", (0.0, 1.0)))
    return [bool(low < numpy.float32(time) <= high) for time in timesteps]


@dataclass
class Flow:
    """One sampled image, under the reference's names.

    Attributes:
        tensors: `v_<step>` velocities, `x_<step>` states entering a step, raw branches `v_<step>_cond` and so on,
            `latent_grid`, `decoded`, `image`.
        timesteps: flow times of the updates.
        guided: whether each update computed the branch without text.
        ids: thought with BOS in front, or None.
    """

    tensors: dict[str, torch.Tensor]
    timesteps: list[float]
    guided: list[bool]
    ids: list[int] | None = None


def sample(model, context: Context, size: tuple[int, int], **arguments) -> Flow:
    """Generate one image after a context, with every intermediate the reference recorded."""
    inputs = context.inputs()
    height, width = size
    steps = []

    def collect(_, step: int, time: float, values: dict):
        assert step == len(steps)
        steps.append(values)

    output = model.generate(
        **inputs,
        generation_mode="image",
        height=height,
        width=width,
        callback_on_step_end=collect,
        show_progress=False,
        return_dict_in_generate=True,
        **arguments,
    )
    return Flow(
        tensors=flow_tensors(model, steps, 0, output.latents[0], output.images[0], bool(context.latent_pixels)),
        timesteps=output.timesteps.tolist(),
        guided=[values["velocity_text"] is not None for values in steps],
        ids=None if output.text is None else [model.config.bos_token_id, *output.text[0]],
    )


def flow_tensors(
    model, steps: list[dict], index: int, latents: torch.Tensor, pixels: torch.Tensor, has_images: bool
) -> dict[str, torch.Tensor]:
    """The records of one image of a sampling run, from what the step callback was given."""
    cell = model.config.pixels_per_latent_token
    rows, columns = pixels.shape[1] // cell, pixels.shape[2] // cell
    grid = unpatchify_latents(latents, rows, columns, model.config.latent_patch_size)
    tensors = {"latent_grid": grid[None], "decoded": pixels[None], "image": to_uint8(pixels)}
    for step, values in enumerate(steps):
        tensors[f"v_{step}"] = values["velocity"][index]
        tensors[f"x_{step + 1}"] = values["latents"][index]
        tensors[f"v_{step}_cond"] = values["velocity_cond"][index]
        if values["velocity_text"] is not None:
            tensors[f"v_{step}_cfg_text"] = values["velocity_text"][index]
        if values["velocity_image"] is not None:
            tensors[f"v_{step}_cfg_img"] = values["velocity_image"][index]
        elif not has_images:
            # Without an image in the context this branch is the main one, and the sampler does not compute it again.
            tensors[f"v_{step}_cfg_img"] = values["velocity_cond"][index]
    return tensors


def noise_calls(model, pixels: list[torch.Tensor], sizes: list[tuple[int, int]]) -> list[list]:
    """The reference's draws of an image run: posterior noise of each image, initial latents of each image."""
    config = model.config
    cell, downsample = config.pixels_per_latent_token, config.vae_config.downsample
    channels = config.vae_config.latent_channels
    posterior = [
        ["randn_like", [1, channels, image.shape[1] // downsample, image.shape[2] // downsample]] for image in pixels
    ]
    initial = [["randn", [(height // cell) * (width // cell), config.latent_dim]] for height, width in sizes]
    return posterior + initial


def recorded_noise(golden: Golden, file: str, part: str, run: str) -> list[torch.Tensor]:
    """The draws of a run, which may be stored under another run's name."""
    owner = run
    while not golden.has_tensor(file, f"{owner}.noise_0"):
        pointer = f"/{part}/{owner}"
        found = [golden.argument(JSON, f"{pointer}/{key}") for key in ("noise_stored_under", "identical_to")]
        owner = next(name for name in found if name is not None)
    count = len(golden.value(JSON, f"/{part}/{run}/noise_calls"))
    return [golden.input(file, f"{owner}.noise_{index}") for index in range(count)]


def compare_noise(golden: Golden, file: str, part: str, run: str, calls: list[list]):
    """Compare what a run drew: shapes in order, and the values that its seed gives."""
    pointer = f"/{part}/{run}"
    golden.equal_all(JSON, pointer, {"noise_calls": calls})
    draws = draw(golden.argument(JSON, f"{pointer}/seed"), [shape for _, shape in calls])
    golden.compare_all(file, f"{run}.", {f"noise_{index}": noise for index, noise in enumerate(draws)})


def compare_schedule(golden: Golden, pointer: str, arguments: dict, flow: Flow):
    """Compare the flow times of a run, the two guidance scales of each step, and whether the step was guided."""
    golden.equal_all(JSON, pointer, {"timesteps": flow.timesteps}, relative=TENSOR)
    guided = guided_steps(arguments, flow.timesteps)
    # Without a text scale above 1 the reference's branches count for nothing, and ours are not computed.
    assert flow.guided == [on and arguments["guidance_scale"] > 1 for on in guided]
    scales = {
        f"{name}s": [arguments[SAMPLING[name]] if on else 1.0 for on in guided]
        for name in ("cfg_text_scale", "cfg_img_scale")
        if SAMPLING[name] in arguments
    }
    golden.equal_all(JSON, pointer, scales)
