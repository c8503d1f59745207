"""Arithmetic of images in the model: position tables, latent tokens, flow times, guidance, and the task presets.

Shape legend: C latent channels, h and w latent height and width, R rows, T latent tokens, L latent token dimension,
I images, P patches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

TIME_FEATURES = 256
MAX_PERIOD = 10000.0
RENORM_TYPES = ("global", "channel", "text_channel")
SOLVERS = ("euler", "midpoint", "adams_bashforth")

_EDIT = {
    "num_inference_steps": 49,
    "guidance_scale": 4.0,
    "image_guidance_scale": 2.0,
    "cfg_interval": [0.0, 1.0],
    "cfg_renorm_type": "text_channel",
    "cfg_renorm_min": 0.0,
    "timestep_shift": 3.0,
}

# The reference's sampling settings for each task: BAGEL's for text to image, the UniMedVL generator's for every task
# with an input image, and its reconstruction routine's (both scales 7) for reconstruction.
TASK_PRESETS: dict[str, dict[str, Any]] = {
    "t2i": {
        **_EDIT,
        "image_guidance_scale": 1.0,
        "cfg_interval": [0.4, 1.0],
        "cfg_renorm_type": "global",
        "height": 1024,
        "width": 1024,
    },
    "edit": dict(_EDIT),
    "virtual_staining": dict(_EDIT),
    "super_resolution": dict(_EDIT),
    "cross_modal": dict(_EDIT),
    "counterfactual": dict(_EDIT),
    "segmentation": dict(_EDIT),
    "reconstruction": {
        **_EDIT,
        "guidance_scale": 7.0,
        "image_guidance_scale": 7.0,
        "cfg_interval": [0.4, 1.0],
        "cfg_renorm_type": "global",
    },
}


def sinusoidal_position_table(dim: int, grid: int) -> torch.Tensor:
    """Sin-cos table of a square grid, float32 (grid * grid, dim); row index is `row * grid + column`.

    The first half of the channels encodes the column, the second half the row; each half is [sin | cos].
    """
    omega = MAX_PERIOD ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis[None, :, :].expand(grid, grid, -1)
    rows = axis[:, None, :].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(grid * grid, -1).float()


def timestep_features(timesteps: torch.Tensor, dim: int = TIME_FEATURES) -> torch.Tensor:
    """Sinusoidal features [cos | sin], float32 (len(timesteps), dim), of timesteps in [0, 1] (not scaled by 1000)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
    angles = timesteps[:, None].float() * frequencies.to(timesteps.device, non_blocking=True)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def shift_timesteps(timesteps: torch.Tensor, shift: float) -> torch.Tensor:
    """Move timesteps in [0, 1] towards noise: `shift * t / (1 + (shift - 1) * t)`."""
    return shift * timesteps / (1 + (shift - 1) * timesteps)


def patchify_latents(latent_Chw: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut a latent (C, h, w) into tokens (h/p * w/p, p * p * C), row-major, channels fastest within a token."""
    channels, height, width = latent_Chw.shape
    rows, columns = height // patch_size, width // patch_size
    cut = latent_Chw[:, : rows * patch_size, : columns * patch_size]
    cut = cut.reshape(channels, rows, patch_size, columns, patch_size)
    return cut.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)


def unpatchify_latents(tokens_TL: torch.Tensor, rows: int, columns: int, patch_size: int) -> torch.Tensor:
    """Inverse of `patchify_latents`: tokens (rows * columns, p * p * C) to a latent (C, rows * p, columns * p)."""
    grid = tokens_TL.reshape(rows, columns, patch_size, patch_size, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch_size, columns * patch_size)


def check_grids(grids: Sequence[Sequence[int]], cells: int, side: int) -> None:
    """Check that grids of patches fit the position table and the patches that came with them.

    Args:
        grids: rows and columns of each image.
        cells: rows of `pixel_values`.
        side: the side of the table.

    Raises:
        ValueError: if a grid is larger than the table, or the grids hold another number of patches.
    """
    total = sum(rows * columns for rows, columns in grids)
    if total != cells:
        raise ValueError(
            f"pixel_values has {cells} patches but image_grid_thw describes {total}: pass both as the processor "
            "returned them."
        )
    for rows, columns in grids:
        if rows > side or columns > side:
            raise ValueError(
                f"An image of {rows} x {columns} tokens does not fit the position table of {side} x {side}: "
                f"resize it to at most {side} tokens a side."
            )


def grid_position_ids(rows: int, columns: int, side: int, interpolate: bool = False) -> torch.Tensor:
    """Row of the position table for every cell of a grid, int64 (rows * columns,).

    Raises:
        ValueError: if the grid is larger than the table.
    """
    check_grids([[rows, columns]], rows * columns, side)
    return grids_position_ids(torch.tensor([[rows, columns]]), rows * columns, side, interpolate)


def image_of_cells(counts_I: torch.Tensor, cells: int) -> torch.Tensor:
    """Number of the image that each of `cells` patches belongs to, int64 (P,), from the patches of each image."""
    numbers = torch.arange(cells, device=counts_I.device)
    return torch.bucketize(numbers, counts_I.cumsum(dim=0), right=True).clamp(max=counts_I.shape[0] - 1)


def grids_position_ids(grids_I2: torch.Tensor, cells: int, side: int, interpolate: bool = False) -> torch.Tensor:
    """Row of the position table for the cells of several grids, one after another, int64 (P,).

    Counted from the top left with the table's own side as stride, or (interpolate) spread over the whole table. Only
    shapes decide what is computed, so that it can be compiled.

    Args:
        grids_I2: int64 (I, 2), rows and columns of each grid.
        cells: P, cells of all grids.
        side: the side of the table.
    """
    counts_I = grids_I2.prod(dim=1)
    image_P = image_of_cells(counts_I, cells)
    starts_I = counts_I.cumsum(dim=0) - counts_I
    place_P = torch.arange(cells, device=grids_I2.device) - starts_I[image_P]
    rows_P, columns_P = grids_I2[image_P].unbind(dim=1)
    row_P, column_P = place_P // columns_P, place_P % columns_P
    if interpolate:
        boundaries = torch.arange(1 / side, 1.0, 1 / side, device=grids_I2.device)
        row_P, column_P = (
            torch.bucketize((number * (1 / count.double())).float(), boundaries, right=True)
            for number, count in ((row_P, rows_P), (column_P, columns_P))
        )
    return row_P * side + column_P


def flow_schedule(num_inference_steps: int, shift: float) -> torch.Tensor:
    """Flow times of the sampler, float32 (num_inference_steps + 1,): from 1 (noise) to 0 (data), shifted.

    The reference's `num_timesteps` counts the values, `num_inference_steps` the updates between them.
    """
    grid = torch.linspace(1, 0, num_inference_steps + 1)
    return shift * grid / (1 + (shift - 1) * grid)


@dataclass(frozen=True)
class FlowSettings:
    """Sampling settings after preset and arguments were merged; validated on creation.

    Those with a default are approximations (see `generate_images`), off unless asked for.

    Raises:
        ValueError: for a value outside its range, naming the argument.
    """

    num_inference_steps: int
    guidance_scale: float
    image_guidance_scale: float
    cfg_interval: tuple[float, float]
    cfg_renorm_type: str
    cfg_renorm_min: float
    timestep_shift: float
    solver: str = "euler"
    velocity_cache_interval: int = 1
    velocity_cache_order: int = 1
    guidance_cache_interval: int = 1

    def __post_init__(self):
        for name in ("num_inference_steps", "velocity_cache_interval", "guidance_cache_interval"):
            value = getattr(self, name)
            if not is_integer(value) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, not {value!r}.")
        for name in ("guidance_scale", "image_guidance_scale"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"{name} must be a finite number >= 0 (1 turns it off), not {value!r}.")
        interval = self.cfg_interval
        if not isinstance(interval, (list, tuple)) or len(interval) != 2 or not all(map(_is_number, interval)):
            raise ValueError(f"cfg_interval must be two numbers (low, high), not {interval!r}.")
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"cfg_interval must satisfy 0 <= low <= high <= 1, not {tuple(interval)}.")
        if self.cfg_renorm_type not in RENORM_TYPES:
            raise ValueError(
                f"cfg_renorm_type must be one of {', '.join(RENORM_TYPES)}, not {self.cfg_renorm_type!r}."
            )
        if not _is_number(self.cfg_renorm_min) or not 0 <= self.cfg_renorm_min <= 1:
            raise ValueError(f"cfg_renorm_min must lie in [0, 1] (1 turns it off), not {self.cfg_renorm_min!r}.")
        if not _is_number(self.timestep_shift) or self.timestep_shift <= 0:
            raise ValueError(f"timestep_shift must be a number > 0 (1 is no shift), not {self.timestep_shift!r}.")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {self.solver!r}.")
        if not is_integer(self.velocity_cache_order) or not 0 <= self.velocity_cache_order <= 2:
            raise ValueError(
                "velocity_cache_order must be 0 (reuse the last velocity), 1 (extrapolate along a line) or 2 (along a "
                f"parabola), not {self.velocity_cache_order!r}."
            )
        if self.solver != "euler" and self.velocity_cache_interval > 1:
            raise ValueError(
                "velocity_cache_interval > 1 extrapolates the velocities of Euler updates: leave solver at 'euler'."
            )

    @classmethod
    def unguided(cls, num_inference_steps: int, timestep_shift: float) -> "FlowSettings":
        """Settings that sample from the main context alone."""
        return cls(
            num_inference_steps=num_inference_steps,
            guidance_scale=1.0,
            image_guidance_scale=1.0,
            cfg_interval=(0.0, 1.0),
            cfg_renorm_type="global",
            cfg_renorm_min=0.0,
            timestep_shift=timestep_shift,
        )

    def guides(self, timestep: float) -> bool:
        """Whether guidance acts at a flow time: low < t <= high, and a text scale above 1 (below it the reference
        ignores the image scale too)."""
        # The reference compares in float32, where a bound such as 0.4 can equal a step's time.
        low, high = torch.tensor(self.cfg_interval).tolist()
        return self.guidance_scale > 1 and low < timestep <= high


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value) -> bool:
    """Whether a value is a whole number (NumPy's too), and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def guided_velocity(
    velocity: torch.Tensor,
    without_text: torch.Tensor,
    without_image: torch.Tensor,
    settings: FlowSettings,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Combine the guidance branches (BAGEL section on inference).

    Args:
        velocity, without_text, without_image: float (R, T, L), the main branch and the two dropped ones.
        valid: bool (R, T), tokens that are no padding; matters for the "global" norm, taken per image.

    Returns:
        float (R, T, L), rescaled so that no image ("global") or token ("channel", "text_channel") grows beyond the
        main velocity, with at least `cfg_renorm_min` of the guided length kept.
    """

    def rescaled(guided: torch.Tensor) -> torch.Tensor:
        def norm(value):
            if settings.cfg_renorm_type == "global":
                kept = value if valid is None else value * valid[..., None]
                return kept.flatten(1).norm(dim=1)[:, None, None]
            return value.norm(dim=-1, keepdim=True)

        return guided * (norm(velocity) / (norm(guided) + 1e-8)).clamp(settings.cfg_renorm_min, 1.0)

    guided = torch.lerp(without_text, velocity, settings.guidance_scale)
    if settings.cfg_renorm_type == "text_channel":
        guided = rescaled(guided)
    if settings.image_guidance_scale > 1:
        guided = torch.lerp(without_image, guided, settings.image_guidance_scale)
    return guided if settings.cfg_renorm_type == "text_channel" else rescaled(guided)
