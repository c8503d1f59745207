"""The image sampler: rectified flow from noise to latent tokens, with text and image guidance.

`FlowSampler` prepares what stays the same over the steps, evaluates the guided velocity, and integrates it with a
`FlowSolver`; training with rewards takes `prepare` and `step` and integrates by itself.

Shape legend: R images, N guidance branches, T latent tokens (padded to the largest image), L latent token dimension,
K context tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils import logging as transformers_logging

from .contexts_unimedvl import GuidanceContexts
from .flow_solvers_unimedvl import FlowSolver, FlowStep, plan_updates
from .flow_unimedvl import FlowSettings, flow_schedule, guided_velocity
from .image_requests_unimedvl import check_latents
from .loading_unimedvl import diffusers_module
from .noised_blocks_unimedvl import NoisedBlocks, lay_out_contexts
from .prompts_unimedvl import execution_device

# `f(model, step, timestep, values) -> dict | None`, see `generate`.
StepCallback = Callable[[PreTrainedModel, int, float, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Conditions:
    """What images are made from: all that a step needs besides state and time.

    Attributes:
        grids: (rows, columns) in latent tokens of each image.
        valid_RT: bool, True for tokens that are not padding; None without padding.
        branches: names of the guidance branches, stacked along the rows of the blocks.
        blocks: what the images' blocks attend to, by the number of branches that a step evaluates.
        time_embeds: embeddings (1, D) of the schedule's flow times; empty where gradients are recorded.
    """

    grids: list[tuple[int, int]]
    valid_RT: torch.Tensor | None
    branches: tuple[str, ...]
    blocks: dict[int, NoisedBlocks]
    time_embeds: dict[float, torch.Tensor]

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def shape(self) -> tuple[int, int]:
        """R and T of the state."""
        return len(self.grids), max(rows * columns for rows, columns in self.grids)

    @property
    def device(self) -> torch.device:
        """Where the state lies."""
        return self.blocks[1].marker_ids.device

    def pad(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        """Latent tokens (h * w, L) of each image as one state (R, T, L)."""
        width = self.shape[1]
        state = torch.stack([F.pad(rows, (0, 0, 0, width - rows.shape[0])) for rows in tokens])
        return state.to(self.device)

    def unpad(self, state_RTL: torch.Tensor) -> list[torch.Tensor]:
        """Inverse of `pad`."""
        return [row[: rows * columns] for row, (rows, columns) in zip(state_RTL, self.grids, strict=True)]


@dataclass
class UniMedVLGenerateOutput(ModelOutput):
    """Output of image and interleaved generation.

    Attributes:
        images: float pixels (N, 3, H, W) in about [-1, 1], or a list of (3, H, W) when sizes differ.
        latents: final latent tokens (h * w, L) of each image, float32.
        text: token ids of each prompt's thought (without markers), when `think=True`.
        timesteps: float32 flow times of the updates.
        segments: interleaved mode only, int64 id tensors and (3, H, W) image tensors in order.
    """

    images: torch.Tensor | list[torch.Tensor] | None = None
    latents: list[torch.Tensor] | None = None
    text: list[list[int]] | None = None
    timesteps: torch.Tensor | None = None
    segments: list[torch.Tensor] | None = None


class FlowSampler:
    """Samples images of one model with one set of settings.

    Gradients flow through `prepare` and `step` unless the caller turns them off.

    Args:
        model: a `UniMedVLForConditionalGeneration`, without an adapter's wrapper.
        settings: see `FlowSettings`.

    Attributes:
        schedule: float32 flow times, from 1 (noise) to 0 (data), one more than there are steps.
        branches: names of the guidance branches that the settings call for.
    """

    def __init__(self, model: PreTrainedModel, settings: FlowSettings):
        self.model, self.settings = model, settings
        self.schedule = flow_schedule(settings.num_inference_steps, settings.timestep_shift)
        self.branches: tuple[str, ...] = ("cond",)
        if any(settings.guides(time) for time in self.schedule[:-1].tolist()):
            self.branches += ("text", "image") if settings.image_guidance_scale > 1 else ("text",)

    def prepare(
        self, contexts: GuidanceContexts, grids: list[tuple[int, int]], images_per_prompt: int = 1
    ) -> Conditions:
        """Lay out contexts for the steps that follow.

        Args:
            contexts: see `read_prompts`. Without an image context its branch equals the main one and is folded into
                the algebra of guidance instead of computed.
            grids: (rows, columns) in latent tokens of each image, those of a prompt adjacent.
            images_per_prompt: how many adjacent images share one row of the contexts.
        """
        inner, device = self.model.model, execution_device(self.model)
        available = {"cond": contexts.main, "text": contexts.text, "image": contexts.image}
        used = {name: context for name in self.branches if (context := available[name]) is not None}
        count, lengths = len(grids), [rows * columns for rows, columns in grids]
        width = max(lengths)
        positions = [F.pad(inner.latent_position_ids(*grid), (0, width - grid[0] * grid[1])) for grid in grids]
        rows = len(used) * count
        config = self.model.config
        everything = NoisedBlocks(
            attention=lay_out_contexts(
                inner, list(used.values()), images_per_prompt, [length + 2 for length in lengths]
            ),
            rows=rows,
            marker_ids=torch.tensor([config.vision_start_token_id, config.vision_end_token_id], device=device),
            position_embeds_MTD=inner.latent_pos_embed(torch.stack(positions).to(device)),
        )
        recorded = torch.is_grad_enabled()
        return Conditions(
            grids=grids,
            valid_RT=None if min(lengths) == width else self._valid(lengths, width),
            branches=tuple(used),
            blocks={len(used): everything, 1: everything.first_rows(count)},
            time_embeds={} if recorded else {time: self._time_embed(time) for time in self.schedule[:-1].tolist()},
        )

    def _valid(self, lengths: list[int], width: int) -> torch.Tensor:
        device = execution_device(self.model)
        return torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]

    def _time_embed(self, time: float) -> torch.Tensor:
        # Filled on the device itself: a copy from the host would wait for it.
        inner = self.model.model
        dtype = inner.language_model.norm.weight.dtype
        return inner.time_embedder(torch.full((1,), time, device=execution_device(self.model)), dtype)

    def step(
        self,
        conditions: Conditions,
        state_RTL: torch.Tensor,
        time: float,
        guided: bool | None = None,
        directions: Mapping[str, torch.Tensor] | None = None,
    ) -> FlowStep:
        """Predict the velocity of images at one flow time; the branches of guidance run as one batch where it acts.

        Args:
            conditions: what `prepare` returned.
            state_RTL: float (R, T, L), the noised latent tokens of every image, padded to the longest.
            time: flow time in [0, 1], 1 is noise.
            guided: whether guidance acts; by default as the settings say for this time.
            directions: (R, T, L) each, the main velocity minus that of a guidance branch, kept from an earlier step;
                the branches are then not evaluated.

        Returns:
            The guided velocity (R, T, L) and the branches that it is made of.
        """
        guided = self.settings.guides(time) if guided is None else guided
        number = len(conditions.branches) if guided and directions is None else 1
        time_D = None if torch.is_grad_enabled() else conditions.time_embeds.get(time)
        time_D = self._time_embed(time) if time_D is None else time_D
        parts = self.model.model.predict_velocity(state_RTL, time_D, conditions.blocks[number]).chunk(number)
        branches = dict(zip(conditions.branches, parts, strict=False))
        velocity = parts[0]
        if guided:
            kept = {name: velocity - direction for name, direction in (directions or {}).items()}
            without = {"image": velocity, **branches, **kept}
            velocity = guided_velocity(velocity, without["text"], without["image"], self.settings, conditions.valid_RT)
        return FlowStep(velocity, branches)

    def draw_noise(
        self, grids: list[tuple[int, int]], generator: torch.Generator | list[torch.Generator] | None
    ) -> list[torch.Tensor]:
        """Initial latent tokens, float32 (rows * columns, L) of each image.

        Args:
            grids: (rows, columns) of latent tokens of each image.
            generator: one for all draws, or one for each image.
        """
        randn_tensor = diffusers_module("diffusers.utils.torch_utils").randn_tensor
        sources = generator if isinstance(generator, (list, tuple)) else [generator] * len(grids)
        device, dim = execution_device(self.model), self.model.config.latent_dim
        return [
            randn_tensor((rows * columns, dim), generator=source, device=device)
            for (rows, columns), source in zip(grids, sources, strict=True)
        ]

    def sample(
        self,
        conditions: Conditions,
        noise: list[torch.Tensor],
        on_step_end: StepCallback | None = None,
        show_progress: bool = False,
    ) -> list[torch.Tensor]:
        """Integrate from noise to latent tokens with the settings' solver.

        Args:
            conditions: what `prepare` returned.
            noise: initial latent tokens (h * w, L) of each image.
            on_step_end: see `callback_on_step_end` of `generate`.
            show_progress: print a bar.

        Returns:
            Final latent tokens, float32 (h * w, L) of each image.

        Raises:
            ValueError: if the callback returns latents that do not fit.
        """
        state = conditions.pad(noise)
        solver = FlowSolver(self.settings, partial(self.step, conditions))
        updates = plan_updates(self.settings, self.schedule)
        progress = transformers_logging.tqdm(total=len(updates), disable=not show_progress, leave=False)
        with progress:
            for number, update in enumerate(updates):
                state, step = solver.advance(state, update)
                if on_step_end is not None:
                    values: dict[str, Any] = {"latents": state, "velocity": step.velocity}
                    values |= {f"velocity_{name}": step.branches.get(name) for name in ("cond", "text", "image")}
                    values = {
                        name: None if value is None else conditions.unpad(value) for name, value in values.items()
                    }
                    changed = on_step_end(self.model, number, update.time, values) or {}
                    if "latents" in changed:
                        checked = check_latents(self.model.config, changed["latents"], conditions.grids)
                        state = conditions.pad(checked)
                progress.update()
        return conditions.unpad(state)

    def decode(self, tokens: list[torch.Tensor], grids: list[tuple[int, int]]) -> list[torch.Tensor]:
        """Latent tokens (h * w, L) of each image to float32 pixels (3, H, W), about [-1, 1]."""
        inner = self.model.model
        return inner.decode_latents([inner.latent_grid(part, *grid) for part, grid in zip(tokens, grids, strict=True)])


def stack_if_equal(images: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """Images of one size as one tensor, others as they are."""
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images
