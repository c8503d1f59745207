"""The image sampler: settings, contexts and the integration from noise to latent tokens.

Methods of the model, kept apart from the public door in `generation_unimedvl.py`.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import logging as transformers_logging

from .blocks_unimedvl import BlockKind, block_layout, rope_position_ids
from .contexts_unimedvl import GenerationContext, copy_cache, first_rows, stack_contexts
from .flow_unimedvl import TASK_PRESETS, FlowSettings, flow_schedule, guided_velocity, is_integer


class FlowSamplerMixin(GenerationMixin):
    """What image and interleaved generation are made of."""

    # ---------------------------------------------------------------------------------------------------------------
    # Settings and sizes

    def _compute_device(self) -> torch.device:
        """Where tensors are computed; offloaded weights themselves lie on the meta device."""
        if self.device.type != "meta":
            return self.device
        hook = getattr(self.get_input_embeddings(), "_hf_hook", None)
        return torch.device(getattr(hook, "execution_device", None) or "cpu")

    def _settings(self, generation_config, preset, kwargs, kinds, height, width) -> tuple[FlowSettings, tuple]:
        """Merge preset and explicit arguments (removed from kwargs); returns settings and (height, width)."""
        own = getattr(self.generation_config, "task_presets", None)
        presets = getattr(generation_config, "task_presets", None) or own or TASK_PRESETS
        with_image = (kinds > 0).any(dim=1)
        if preset is None and bool(with_image.any()) and not bool(with_image.all()):
            raise ValueError("The batch mixes prompts with and without images: name the preset for all of them.")
        name = preset if preset is not None else ("edit" if bool(with_image.any()) else "t2i")
        if name not in presets:
            raise ValueError(f"preset must be one of {', '.join(sorted(presets))}, not {name!r}.")
        values = {**TASK_PRESETS.get(name, TASK_PRESETS["edit"]), **presets[name]}
        default_size = (values.pop("height", None), values.pop("width", None))
        for key in list(values):
            given = kwargs.pop(key, None)
            if given is not None:
                values[key] = given
        unknown = set(values) - set(FlowSettings.__dataclass_fields__)
        if unknown:
            raise ValueError(f"preset {name!r} has unknown settings {', '.join(sorted(unknown))}: remove them.")
        if (height is None) != (width is None):
            raise ValueError("Give height and width together, or neither.")
        return FlowSettings(**values), (height, width, default_size)

    def _target_grids(self, sizes, batch_size: int, condition_grids: list[list]) -> list[tuple[int, int]]:
        """(rows, columns) in latent tokens of each prompt's image.

        Raises:
            ValueError: for sizes that are no positive multiples of the token size or exceed the position table.
        """
        height, width, default = sizes
        unit, side = self.config.pixels_per_latent_token, self.config.max_latent_size
        heights = list(height) if isinstance(height, (list, tuple)) else [height] * batch_size
        widths = list(width) if isinstance(width, (list, tuple)) else [width] * batch_size
        if len(heights) != batch_size or len(widths) != batch_size:
            raise ValueError(f"height and width need one value or {batch_size}, one for each image.")
        grids = []
        for one_height, one_width, conditions in zip(heights, widths, condition_grids, strict=True):
            if one_height is None and conditions:
                grids.append(conditions[-1])
                continue
            if one_height is None:
                limit = unit * side
                one_height, one_width = (min(value or limit, limit) for value in default)
            for name, value in (("height", one_height), ("width", one_width)):
                if not is_integer(value) or value < unit or value % unit or value > unit * side:
                    raise ValueError(
                        f"{name} must be a multiple of {unit} from {unit} to {unit * side} pixels, not {value!r}."
                    )
            grids.append((one_height // unit, one_width // unit))
        return grids

    def _context_kinds(self, input_ids, mm_token_type_ids, has_images) -> torch.Tensor:
        if mm_token_type_ids is not None:
            return mm_token_type_ids
        return self.model.token_kinds(input_ids) if has_images else torch.zeros_like(input_ids)

    def _condition_grids(self, kinds, latent_image_sizes) -> list[list[tuple[int, int]]]:
        """Latent grids of the input images of each prompt."""
        counts = runs_per_row(kinds, BlockKind.CLEAN)
        sizes = [] if latent_image_sizes is None else latent_image_sizes.tolist()
        if sum(counts) != len(sizes):
            raise ValueError(
                f"The prompts hold {sum(counts)} latent images but latent_image_sizes describes {len(sizes)}: pass "
                "everything from one processor call with generation_mode='image'."
            )
        unit = self.config.pixels_per_latent_token
        grids = iter([(height // unit, width // unit) for height, width in sizes])
        return [[next(grids) for _ in range(count)] for count in counts]

    def _check_generators(self, generator, count, batch_size, num_images_per_prompt, condition_grids):
        """The source of posterior noise: the caller's generator, or for a list the first one of each prompt."""
        if not isinstance(generator, (list, tuple)):
            return generator
        if len(generator) != count:
            raise ValueError(
                f"generator has {len(generator)} entries for {count} images: give one each, or a single one."
            )
        firsts = [generator[row * num_images_per_prompt] for row in range(batch_size)]
        return [first for first, grids in zip(firsts, condition_grids, strict=True) for _ in grids]

    def _check_latents(self, latents, grids) -> list[torch.Tensor] | None:
        if latents is None:
            return None
        if isinstance(latents, torch.Tensor) and latents.dim() == 2:
            latents = [latents]
        if not all(isinstance(noise, torch.Tensor) for noise in latents):
            raise ValueError("latents must be a tensor, or a list of tensors (tokens, values), one for each image.")
        expected = [(rows * columns, self.config.latent_dim) for rows, columns in grids]
        if len(latents) != len(expected) or any(
            tuple(noise.shape) != shape for noise, shape in zip(latents, expected, strict=True)
        ):
            raise ValueError(
                f"latents must hold {len(expected)} tensors of shapes {expected} (tokens, values), got "
                f"{[tuple(noise.shape) for noise in latents]}."
            )
        if not all(bool(torch.isfinite(noise).all()) for noise in latents):
            raise ValueError("latents hold NaN or infinite values: draw them from a normal distribution.")
        return [noise.to(self._compute_device(), torch.float32) for noise in latents]

    def _initial_latents(self, latents, grids, generator) -> list[torch.Tensor]:
        if latents is not None:
            return latents
        sources = generator if isinstance(generator, (list, tuple)) else [generator] * len(grids)
        return [
            randn_tensor((rows * columns, self.config.latent_dim), generator=source, device=self._compute_device())
            for (rows, columns), source in zip(grids, sources, strict=True)
        ]

    # ---------------------------------------------------------------------------------------------------------------
    # Contexts

    def _encode_conditions(self, conditions: dict, generator) -> list[torch.Tensor] | None:
        """Latents of the input images; takes the pixel arguments out of `conditions`."""
        pixels = conditions.pop("latent_pixel_values", None)
        sizes = conditions.pop("latent_image_sizes", None)
        noise = conditions.pop("vae_noise", None)
        mode = conditions.pop("vae_sample_mode", "sample")
        if pixels is None and noise:
            raise ValueError("vae_noise is for input images, but no latent_pixel_values came with the prompt.")
        return self.model._latents(pixels, sizes, None, noise, mode, generator) if pixels is not None else None

    def _extend_context(
        self,
        context: GenerationContext | None,
        input_ids: torch.Tensor,
        kinds: torch.Tensor,
        mask: torch.Tensor | None,
        images: dict | None = None,
    ) -> GenerationContext:
        """Read further tokens (and images) after a context, or from the start. The given context stays usable."""
        mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
        # One column more shows where the next token would stand.
        positions = rope_position_ids(block_layout(F.pad(kinds, (0, 1))), F.pad(mask.long(), (0, 1), value=1))
        cache = None
        full_mask = mask
        if context is not None:
            positions = positions + context.next_position[:, None]
            cache = copy_cache(context.cache)
            full_mask = torch.cat([context.mask, mask], dim=1)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=full_mask.long(),
            position_ids=positions[:, :-1],
            mm_token_type_ids=kinds,
            past_key_values=cache,
            use_cache=True,
            **(images or {}),
        )
        past = context is not None
        return GenerationContext(
            cache=outputs.past_key_values,
            input_ids=torch.cat([context.input_ids, input_ids], dim=1) if past else input_ids,
            position_ids=torch.cat([context.position_ids, positions[:, :-1]], dim=1) if past else positions[:, :-1],
            mask=full_mask,
            next_position=positions[:, -1],
        )

    def _last_text_start(self, input_ids, kinds, mask) -> torch.Tensor:
        """Column where the last text begins, or the full width for a prompt that ends with an image."""
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        block_kinds = block_layout(kinds).kinds_BS
        last_valid = torch.where(mask, columns, -1).max(dim=1).values
        ends_with_text = block_kinds.gather(1, last_valid.clamp(min=0)[:, None])[:, 0] == BlockKind.TEXT
        # A turn starts after another one, after an image or at the beginning: a BOS inside a text is no start.
        is_text = mask & (block_kinds == BlockKind.TEXT)
        ends = self.config.eos_token_id
        ends = torch.tensor(ends if isinstance(ends, (list, tuple)) else [ends], device=input_ids.device)
        after_end = F.pad(torch.isin(input_ids, ends), (1, 0), value=True)[:, :-1]
        inside = F.pad(is_text, (1, 0), value=False)[:, :-1] & ~after_end
        starts = is_text & ~inside & (input_ids == self.config.bos_token_id)
        last_start = torch.where(starts, columns, -1).max(dim=1).values
        return torch.where(ends_with_text & (last_start >= 0), last_start, input_ids.shape[1])

    def _text_only_context(self, input_ids, kinds, mask) -> GenerationContext:
        """The prompts without their images, read from the start."""
        keep = mask & (block_layout(kinds).kinds_BS == BlockKind.TEXT)
        rows = [ids[row] for ids, row in zip(input_ids, keep, strict=True)]
        return self._extend_context(None, *self._left_padded(rows, input_ids))

    def _left_padded(self, rows: list[torch.Tensor], like: torch.Tensor):
        # At least one column: a prompt of images only leaves an empty, fully masked context.
        width = max(1, *(len(row) for row in rows)) if rows else 1
        ids = torch.stack([F.pad(row, (width - len(row), 0)) for row in rows]).to(like)
        lengths = torch.tensor([len(row) for row in rows], device=like.device)
        mask = torch.arange(width, device=like.device) >= width - lengths[:, None]
        return ids, torch.zeros_like(ids), mask

    def _write_text(
        self,
        context: GenerationContext,
        max_new_tokens: int,
        generation_config: GenerationConfig | None,
        options: dict,
    ) -> list[list[int]]:
        """Generate a text after a context, as ids without markers. The context is not changed."""
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        options = config.update(**options)
        config.update(
            max_new_tokens=max_new_tokens, max_length=None, num_return_sequences=1, cache_implementation=None
        )
        config.update(return_dict_in_generate=False)
        cache = copy_cache(context.cache)
        if (config.num_beams or 1) > 1:
            cache.batch_repeat_interleave(config.num_beams)
        batch_size = context.input_ids.shape[0]
        bos = torch.full((batch_size, 1), self.config.bos_token_id, device=context.input_ids.device)
        input_ids = torch.cat([context.input_ids, bos], dim=1)
        sequences = super().generate(
            input_ids=input_ids,
            attention_mask=F.pad(context.mask.long(), (0, 1), value=1),
            position_ids=torch.cat([context.position_ids, context.next_position[:, None]], dim=1),
            past_key_values=cache,
            generation_config=config,
            **options,
        )
        ends = self.config.eos_token_id if config.eos_token_id is None else config.eos_token_id
        ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        texts = []
        for row in sequences[:, input_ids.shape[1] :].tolist():
            stop = next((index for index, token_id in enumerate(row) if token_id in ends), len(row))
            texts.append(row[:stop])
        return texts

    def _append_texts(self, context: GenerationContext, texts: list[list[int]]) -> GenerationContext:
        bos, eos = self.config.bos_token_id, self.config.eos_token_id
        eos = eos[0] if isinstance(eos, (list, tuple)) else eos
        rows = [torch.tensor([bos, *text, eos]) for text in texts]
        return self._extend_context(context, *self._left_padded(rows, context.input_ids))

    def _append_image(self, context, pixels, grid, noise, generator, sample_mode) -> GenerationContext:
        """Read a generated image back as a clean VAE block, through the 8 bits a saved picture has."""
        levels = ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
        reread = (levels.float() / 255 - 0.5) / 0.5
        latents = self.model.encode_latents([reread], noise, generator, sample_mode)
        config = self.config
        tokens = grid[0] * grid[1]
        ids = [config.vision_start_token_id, *[config.latent_token_id] * tokens, config.vision_end_token_id]
        input_ids = torch.tensor([ids], device=context.input_ids.device)
        kinds = torch.tensor([[0, *[int(BlockKind.CLEAN)] * tokens, 0]], device=input_ids.device)
        return self._extend_context(context, input_ids, kinds, None, {"latent_values": latents})

    # ---------------------------------------------------------------------------------------------------------------
    # The sampler

    def _sample_flow(
        self,
        main: GenerationContext,
        text_branch: GenerationContext,
        image_branch: GenerationContext | None,
        row_index: torch.Tensor,
        grids: list[tuple[int, int]],
        settings: FlowSettings,
        latents: list[torch.Tensor],
        callback_on_step_end: Callable | None,
        show_progress: bool,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Integrate from noise to latent tokens; `image_branch=None` folds image guidance into the main branch."""
        schedule = flow_schedule(settings.num_inference_steps, settings.timestep_shift)
        times = schedule.tolist()
        count, device = len(grids), self._compute_device()
        lengths = [rows * columns for rows, columns in grids]
        width = max(lengths)
        state = torch.stack([F.pad(noise, (0, 0, 0, width - noise.shape[0])) for noise in latents]).to(device)
        position_ids = torch.stack(
            [F.pad(self.model.latent_position_ids(*grid), (0, width - grid[0] * grid[1])) for grid in grids]
        ).to(device)
        valid = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]

        branches = {"cond": main}
        if any(settings.guides(time) for time in times[:-1]):
            branches["text"] = text_branch
            if image_branch is not None and settings.image_guidance_scale > 1:
                branches["image"] = image_branch
        cache, valid_RK, rope_R = stack_contexts(list(branches.values()), row_index, width + 2)
        valid_RK[:, -width:] = valid.repeat(len(branches), 1)
        caches = {len(branches): cache, 1: first_rows(cache, count) if len(branches) > 1 else cache}
        masks = {
            number: self.model.flow_attention_mask(valid_RK[: number * count], width, rows_cache)
            for number, rows_cache in caches.items()
        }

        progress = transformers_logging.tqdm(
            total=settings.num_inference_steps, disable=not show_progress, leave=False
        )
        with progress:
            for step, time in enumerate(times[:-1]):
                guided = settings.guides(time)
                number = len(branches) if guided else 1
                parts = self.model.predict_velocity(
                    state.repeat(number, 1, 1),
                    schedule[step].to(device),
                    position_ids.repeat(number, 1),
                    rope_R[: number * count],
                    masks[number],
                    caches[number],
                ).chunk(number)
                named = dict(zip(branches, parts, strict=False))
                velocity = parts[0]
                if guided:
                    velocity = guided_velocity(parts[0], named["text"], named.get("image", parts[0]), settings, valid)
                state = state - velocity * (schedule[step] - schedule[step + 1]).to(device)
                if callback_on_step_end is not None:
                    values = {"latents": state, "velocity": velocity}
                    values |= {f"velocity_{name}": named.get(name) for name in ("cond", "text", "image")}
                    values = {name: _unpad(value, lengths) for name, value in values.items()}
                    changed = callback_on_step_end(self, step, time, values) or {}
                    if "latents" in changed:
                        checked = self._check_latents(changed["latents"], grids)
                        new = [F.pad(noise, (0, 0, 0, width - noise.shape[0])) for noise in checked]
                        state = torch.stack(new).to(state)
                progress.update()
        return _unpad(state, lengths), schedule[:-1]

    def _decode(self, tokens: list[torch.Tensor], grids: list[tuple[int, int]]) -> torch.Tensor | list[torch.Tensor]:
        latents = [self.model.latent_grid(part, *grid) for part, grid in zip(tokens, grids, strict=True)]
        return stack_if_equal(self.model.decode_latents(latents))


def _unpad(state: torch.Tensor | None, lengths: list[int]) -> list[torch.Tensor] | None:
    return None if state is None else [row[:length] for row, length in zip(state, lengths, strict=True)]


def stack_if_equal(images: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    same = len({image.shape for image in images}) == 1
    return torch.stack(images) if same else images


def runs_per_row(kinds: torch.Tensor, kind: int) -> list[int]:
    """Number of images of one kind in each row."""
    here = kinds == kind
    return (here & ~F.pad(here[:, :-1], (1, 0))).sum(dim=1).tolist()
