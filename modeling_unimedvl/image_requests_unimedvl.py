"""What a call for images asks for: task preset, sizes and noise, checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from .blocks_unimedvl import BlockKind
from .configuration_unimedvl import UniMedVLConfig
from .flow_unimedvl import TASK_PRESETS, FlowSettings, is_integer
from .prompts_unimedvl import Prompts, image_counts

# Arguments of text generation; in image mode they steer the thought.
TEXT_OPTIONS = frozenset(GenerationConfig().to_dict())
FLOW_OPTIONS = tuple(field.name for field in fields(FlowSettings))


@dataclass(frozen=True)
class ImageTask:
    """A preset merged with what the caller gave instead of its values.

    Attributes:
        settings: of the sampler.
        size: the preset's (height, width) in pixels; None where it has none.
    """

    settings: FlowSettings
    size: tuple[int | None, int | None]


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part further arguments of `generate` into settings of the sampler and options of text generation.

    Raises:
        ValueError: for an argument that is neither.
    """
    flow = {name: options[name] for name in FLOW_OPTIONS if options.get(name) is not None}
    text = {name: value for name, value in options.items() if name not in FLOW_OPTIONS}
    unknown = sorted(text.keys() - TEXT_OPTIONS)
    if unknown:
        raise ValueError(f"generate does not know {', '.join(unknown)} in this mode: remove them.")
    return flow, text


def image_task(
    presets: Mapping[str, Mapping[str, Any]], preset: str | None, prompts: Prompts, flow: Mapping[str, Any]
) -> ImageTask:
    """Merge a preset with explicit settings.

    Args:
        presets: the checkpoint's `task_presets`.
        preset: a name among them; by default "edit" for prompts with images and "t2i" for those without.
        flow: settings that replace the preset's.

    Raises:
        ValueError: for an unknown preset, a batch that needs two, or settings out of range.
    """
    with_image = (prompts.kinds > 0).any(dim=1)
    if preset is None and bool(with_image.any()) and not bool(with_image.all()):
        raise ValueError("The batch mixes prompts with and without images: name the preset for all of them.")
    name = preset if preset is not None else ("edit" if bool(with_image.any()) else "t2i")
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(sorted(presets))}, not {name!r}.")
    values = {**TASK_PRESETS.get(name, TASK_PRESETS["edit"]), **presets[name]}
    size = (values.pop("height", None), values.pop("width", None))
    unknown = sorted(values.keys() - set(FLOW_OPTIONS))
    if unknown:
        raise ValueError(f"preset {name!r} has unknown settings {', '.join(unknown)}: remove them.")
    return ImageTask(FlowSettings(**{**values, **flow}), size)


def condition_grids(config: UniMedVLConfig, prompts: Prompts) -> list[list[tuple[int, int]]]:
    """(rows, columns) in latent tokens of the input images of each prompt.

    Raises:
        ValueError: if `latent_image_sizes` describes other images than the prompts hold.
    """
    counts = image_counts(prompts.kinds, BlockKind.CLEAN)
    sizes = [] if prompts.latent_image_sizes is None else prompts.latent_image_sizes.tolist()
    if sum(counts) != len(sizes):
        raise ValueError(
            f"The prompts hold {sum(counts)} latent images but latent_image_sizes describes {len(sizes)}: pass "
            "everything from one processor call with generation_mode='image'."
        )
    unit = config.pixels_per_latent_token
    grids = iter([(height // unit, width // unit) for height, width in sizes])
    return [[next(grids) for _ in range(count)] for count in counts]


def target_grids(
    config: UniMedVLConfig,
    count: int,
    height: int | list[int] | None,
    width: int | list[int] | None,
    defaults: list[tuple[int, int] | None] | None = None,
    preset_size: tuple[int | None, int | None] = (None, None),
) -> list[tuple[int, int]]:
    """(rows, columns) in latent tokens of each of `count` images.

    Args:
        height, width: pixels, one for all or a list.
        defaults: grids of images without a height; None where the preset's size decides.
        preset_size: (height, width) in pixels; the largest that fits the position table where None.

    Raises:
        ValueError: for sizes that are no positive multiples of the token size or exceed the position table.
    """
    if (height is None) != (width is None):
        raise ValueError("Give height and width together, or neither.")
    unit, limit = config.pixels_per_latent_token, config.pixels_per_latent_token * config.max_latent_size
    # What callers put into lists is checked below.
    heights: list[Any] = list(height) if isinstance(height, (list, tuple)) else [height] * count
    widths: list[Any] = list(width) if isinstance(width, (list, tuple)) else [width] * count
    if len(heights) != count or len(widths) != count:
        raise ValueError(f"height and width need one value or {count}, one for each image.")
    grids = []
    for one_height, one_width, default in zip(heights, widths, defaults or [None] * count, strict=True):
        if one_height is None and default is not None:
            grids.append(default)
            continue
        if one_height is None:
            one_height, one_width = (min(value or limit, limit) for value in preset_size)
        for name, value in (("height", one_height), ("width", one_width)):
            if not is_integer(value) or value < unit or value % unit or value > limit:
                raise ValueError(f"{name} must be a multiple of {unit} from {unit} to {limit} pixels, not {value!r}.")
        grids.append((one_height // unit, one_width // unit))
    return grids


def posterior_generators(
    generator: torch.Generator | list[torch.Generator] | None,
    images_per_prompt: int,
    conditions: list[list[tuple[int, int]]],
) -> torch.Generator | list[torch.Generator] | None:
    """The source of posterior noise: the caller's generator, or for a list the first one of each prompt.

    Args:
        conditions: input images of each prompt, see `condition_grids`.

    Raises:
        ValueError: for a list of another length than the number of images to make.
    """
    if not isinstance(generator, (list, tuple)):
        return generator
    count = len(conditions) * images_per_prompt
    if len(generator) != count:
        raise ValueError(f"generator has {len(generator)} entries for {count} images: give one each, or a single one.")
    return [first for first, grids in zip(generator[::images_per_prompt], conditions, strict=True) for _ in grids]


def check_latents(
    config: PreTrainedConfig, latents: torch.Tensor | list[torch.Tensor], grids: list[tuple[int, int]]
) -> list[torch.Tensor]:
    """Latent tokens as the caller gave them, as float32 (rows * columns, L) of each image.

    Raises:
        ValueError: for another number or shape, or values that are not finite.
    """
    if isinstance(latents, torch.Tensor) and latents.dim() == 2:
        latents = [latents]
    if not all(isinstance(noise, torch.Tensor) for noise in latents):
        raise ValueError("latents must be a tensor, or a list of tensors (tokens, values), one for each image.")
    expected = [(rows * columns, config.latent_dim) for rows, columns in grids]
    got = [tuple(noise.shape) for noise in latents]
    if got != expected:
        raise ValueError(
            f"latents must hold {len(expected)} tensors of shapes {expected} (tokens, values), got {got}."
        )
    if not all(bool(torch.isfinite(noise).all()) for noise in latents):
        raise ValueError("latents hold NaN or infinite values: draw them from a normal distribution.")
    return [noise.float() for noise in latents]
