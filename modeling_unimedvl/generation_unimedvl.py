"""Generation: text by GenerationMixin, images by rectified flow, and both in turn.

An image is sampled against up to three contexts: the main one, one without the last text (text guidance) and one
without images (image guidance). Every context is a cache with a mask and a RoPE counter of its own; contexts that are
a prefix of another share its cache.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput
from transformers.utils import logging as transformers_logging

from .blocks_unimedvl import BlockKind, block_layout, rope_position_ids
from .contexts_unimedvl import GenerationContext, copy_cache, first_rows, stack_contexts
from .flow_unimedvl import TASK_PRESETS, FlowSettings, flow_schedule, guided_velocity, is_integer

# Arguments of text generation; in image mode they steer the thought.
TEXT_OPTIONS = set(GenerationConfig().to_dict())


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


class UniMedVLGenerationMixin(GenerationMixin):
    """`generate` in three modes. Text mode is GenerationMixin's own."""

    # ---------------------------------------------------------------------------------------------------------------
    # Text mode: what GenerationMixin needs to know about blocks

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        input_ids = model_kwargs.get("input_ids")
        if input_ids is None or input_ids.shape[1] == 0:
            input_ids = inputs_tensor
        kinds = model_kwargs.get("mm_token_type_ids")
        if kinds is None:
            embeds_only = torch.is_floating_point(input_ids)
            kinds = (
                input_ids.new_zeros(input_ids.shape[:2]).long()
                if embeds_only
                else self._kinds(input_ids, model_kwargs)
            )
        return rope_position_ids(block_layout(kinds), model_kwargs.get("attention_mask"))

    def _kinds(self, input_ids, model_kwargs):
        has_images = any(model_kwargs.get(name) is not None for name in ("pixel_values", "latent_values"))
        return self.model.token_kinds(input_ids) if has_images else torch.zeros_like(input_ids)

    def prepare_inputs_for_generation(self, input_ids, *args, is_first_iteration=False, **kwargs):
        kinds = kwargs.get("mm_token_type_ids")
        if kinds is not None and input_ids is not None and kinds.shape[1] < input_ids.shape[1]:
            # Assisted decoding appends its candidates to the prompt before the first pass.
            kwargs["mm_token_type_ids"] = F.pad(kinds, (0, input_ids.shape[1] - kinds.shape[1]))
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if is_first_iteration and kinds is not None and cache is not None and cache.is_compileable:
            # Transformers prepares masks for static caches itself, and does not know about blocks.
            kwargs["attention_mask"] = self.model.prefill_attention_mask(kwargs["mm_token_type_ids"], mask, cache)
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "image_grid_thw", "latent_values"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        if expand_size > 1 and input_ids is not None:
            kinds = model_kwargs.get("mm_token_type_ids")
            if kinds is None:
                kinds = self._kinds(input_ids, model_kwargs)
            model_kwargs.update(_repeat_images(kinds, expand_size, model_kwargs))
            images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "image_grid_thw")}
        else:
            images = {}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        model_kwargs.update({name: value for name, value in images.items() if value is not None})
        return input_ids, model_kwargs

    # ---------------------------------------------------------------------------------------------------------------
    # The public door

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, generation_mode: str = "text", **kwargs):
        """Generate text, images, or both in turn.

        Args:
            inputs: prompt ids, as in transformers; usually given as `input_ids` with the processor's other outputs.
            generation_mode: "text" (GenerationMixin with all its arguments), "image" (see `generate_images`) or
                "interleaved" (see `generate_interleaved`).

        Returns:
            text mode: what GenerationMixin returns. Image mode: float pixels (N, 3, H, W), a list when sizes differ,
            or `UniMedVLGenerateOutput` with `return_dict_in_generate=True`. Interleaved mode: that output.

        Raises:
            ValueError: for unknown modes, presets or arguments, and for values out of range.
        """
        if generation_mode not in ("text", "image", "interleaved"):
            raise ValueError(f"generation_mode must be 'text', 'image' or 'interleaved', not {generation_mode!r}.")
        if generation_mode == "text":
            if kwargs.get("latent_pixel_values") is not None:
                kwargs["latent_values"] = self._encode_conditions(kwargs, kwargs.pop("generator", None))
            return super().generate(inputs, **kwargs)
        if inputs is not None:
            kwargs.setdefault("input_ids", inputs)
        if kwargs.get("input_ids") is None:
            raise ValueError("generate needs input_ids: pass the processor's output as keyword arguments.")
        if kwargs.get("generation_config") is None:
            kwargs["generation_config"] = self.generation_config
        self.model.require_generation()
        kwargs = {
            name: value.to(self.device) if isinstance(value, torch.Tensor) and name != "latents" else value
            for name, value in kwargs.items()
        }
        if generation_mode == "image":
            return self.generate_images(**self._without_answer_marker(kwargs))
        kwargs.pop("return_dict_in_generate", None)
        return self.generate_interleaved(**kwargs)

    def _without_answer_marker(self, kwargs: dict) -> dict:
        """Drop the BOS that a text template ends with (`pipeline` uses it); an image follows the prompt itself."""
        if not bool((kwargs["input_ids"][:, -1] == self.config.bos_token_id).all()):
            return kwargs
        columns = ("input_ids", "attention_mask", "mm_token_type_ids")
        return kwargs | {name: kwargs[name][:, :-1] for name in columns if kwargs.get(name) is not None}

    def generate_images(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        latent_pixel_values: torch.Tensor | None = None,
        latent_image_sizes: torch.Tensor | None = None,
        preset: str | None = None,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | list[torch.Tensor] | None = None,
        vae_noise: list[torch.Tensor] | None = None,
        vae_sample_mode: str = "sample",
        think: bool = False,
        max_think_tokens: int = 512,
        callback_on_step_end: Callable | None = None,
        show_progress: bool = True,
        return_dict_in_generate: bool = False,
        generation_config: GenerationConfig | None = None,
        **kwargs,
    ) -> torch.Tensor | list[torch.Tensor] | UniMedVLGenerateOutput:
        """Sample images for each prompt by rectified flow with text and image guidance.

        Args:
            input_ids, attention_mask, mm_token_type_ids, pixel_values, image_grid_thw, latent_pixel_values,
            latent_image_sizes: from the processor with `generation_mode="image"`.
            preset: name in `generation_config.task_presets`; "t2i" without an input image, "edit" with one.
            num_inference_steps (int): Euler updates. The reference's `num_timesteps=50` is 49.
            guidance_scale (float): text guidance; 1 turns all guidance off.
            image_guidance_scale (float): image guidance. Without an image (or thought) in the context its branch
                equals the main one and is folded into the algebra instead of computed.
            cfg_interval (tuple): flow times (low, high] where guidance acts.
            cfg_renorm_type (str): "global", "channel" or "text_channel", always per image.
            cfg_renorm_min (float): lower bound of the rescaling, in [0, 1].
            timestep_shift (float): > 1 spends more steps at high noise.
            height, width: pixels, multiples of the pixels per latent token; one for all or a list, one per prompt.
                Default: the size of the prompt's last input image, else the preset's.
            num_images_per_prompt: images for each prompt, adjacent in the result.
            generator: one generator, or a list with one per image. Draws come in this order: posterior noise of each
                input image, then initial latents of each image.
            latents: initial noise, (h * w, L) for each image; overrides `generator`.
            vae_noise: posterior noise of each input image; overrides `generator`.
            vae_sample_mode: "sample" as the reference, or "mode" to encode input images without randomness.
            think: write a thought first (the prompt's template should ask for it) and condition on it.
            max_think_tokens: length limit of the thought.
            callback_on_step_end: `f(model, step, timestep, values) -> dict | None` after each update; `values` holds
                lists with one tensor per image: `latents`, `velocity`, `velocity_cond`, `velocity_text`,
                `velocity_image` (None where a branch was not computed). A returned "latents" replaces the state.
            show_progress: progress bar over the steps.
            return_dict_in_generate: return `UniMedVLGenerateOutput`.
            generation_config: carries `task_presets` and steers the thought; the model's own by default.
            **kwargs: further arguments steer the thought (`do_sample`, `temperature`, ...).
        """
        batch_size = input_ids.shape[0]
        if not is_integer(num_images_per_prompt) or num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be a whole number >= 1, not {num_images_per_prompt!r}.")
        has_images = latent_pixel_values is not None or pixel_values is not None
        settings, sizes = self._settings(generation_config, preset, kwargs, has_images, height, width)
        unknown = sorted(name for name in kwargs if name not in TEXT_OPTIONS)
        if unknown:
            raise ValueError(f"generate does not know {', '.join(unknown)} in image mode: remove them.")
        count = batch_size * num_images_per_prompt
        kinds = self._context_kinds(input_ids, mm_token_type_ids, has_images)
        condition_grids = self._condition_grids(kinds, latent_image_sizes)
        grids = self._target_grids(sizes, batch_size, condition_grids)
        grids = [grid for grid in grids for _ in range(num_images_per_prompt)]
        noise_source = self._check_generators(generator, count, batch_size, num_images_per_prompt, condition_grids)
        latents = self._check_latents(latents, grids)

        conditions = {
            "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw,
            "latent_pixel_values": latent_pixel_values,
            "latent_image_sizes": latent_image_sizes,
            "vae_noise": vae_noise,
            "vae_sample_mode": vae_sample_mode,
        }
        main = self._extend_context(
            None,
            input_ids,
            kinds,
            attention_mask,
            {**conditions, "latent_values": self._encode_conditions(conditions, noise_source)},
        )
        length = torch.full((batch_size,), input_ids.shape[1], device=input_ids.device)
        text_branch = main.prefix(self._last_text_start(input_ids, kinds, main.mask))
        image_branch = None
        if has_images:
            image_branch = self._text_only_context(input_ids, kinds, main.mask)
        thoughts = None
        if think:
            if not has_images:
                image_branch = main.prefix(length)
            thoughts = self._write_text(main, max_think_tokens, generation_config, kwargs)
            # The branches keep the cache as it was: extending makes a new one.
            main = self._append_texts(main, thoughts)
        row_index = torch.arange(batch_size, device=input_ids.device).repeat_interleave(num_images_per_prompt)
        tokens, timesteps = self._sample_flow(
            main,
            text_branch,
            image_branch,
            row_index,
            grids,
            settings,
            self._initial_latents(latents, grids, generator),
            callback_on_step_end,
            show_progress,
        )
        images = self._decode(tokens, grids)
        if return_dict_in_generate:
            return UniMedVLGenerateOutput(images=images, latents=tokens, text=thoughts, timesteps=timesteps)
        return images

    def generate_interleaved(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        latent_pixel_values: torch.Tensor | None = None,
        latent_image_sizes: torch.Tensor | None = None,
        segments: list[str] | None = None,
        max_segments: int = 4,
        on_segment_end: Callable | None = None,
        max_new_tokens: int = 512,
        preset: str | None = None,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        generator: torch.Generator | None = None,
        latents: list[torch.Tensor] | None = None,
        vae_noise: list[torch.Tensor] | None = None,
        vae_sample_mode: str = "sample",
        callback_on_step_end: Callable | None = None,
        show_progress: bool = True,
        generation_config: GenerationConfig | None = None,
        **kwargs,
    ) -> UniMedVLGenerateOutput:
        """Write text and images in turn for one conversation.

        Each generated image is rounded to 8 bits, encoded again and joins the context as a clean VAE block. The main
        context holds everything, the text-guidance context everything but generated text, the image-guidance context
        everything but images (the reference's reconstruction routine, with its separate posterior draws for the first
        two).

        Args:
            segments: the plan, e.g. ["text", "image", "image"]. Default: text and image in turn, for at most
                `max_segments`; the model ends it by writing an empty text.
            on_segment_end: `f(index, segment) -> bool`; False stops.
            max_new_tokens: length limit of each text.
            height, width: size of every image, or one for each image. Default: the i-th input image's size for the
                i-th image, then the last one's, else the preset's.
            latents: initial noise of each image. vae_noise: posterior noises in drawing order (input images, then for
                each generated image one for the main and one for the text-guidance context).
            Other arguments: see `generate_images`.

        Raises:
            ValueError: for a batch of more than one conversation or an unknown segment kind.
        """
        if input_ids.shape[0] != 1:
            raise ValueError("generation_mode='interleaved' takes one conversation: call it once for each.")
        if not is_integer(max_segments) or max_segments < 1:
            raise ValueError(f"max_segments must be a whole number >= 1, not {max_segments!r}.")
        plan = segments if segments is not None else ["text" if i % 2 == 0 else "image" for i in range(max_segments)]
        unknown = sorted({str(kind) for kind in plan} - {"text", "image"})
        if unknown or not plan:
            raise ValueError(f"segments must be a list of 'text' and 'image', not {segments!r}.")
        has_images = latent_pixel_values is not None or pixel_values is not None
        settings, sizes = self._settings(generation_config, preset, kwargs, has_images, height, width)
        kinds = self._context_kinds(input_ids, mm_token_type_ids, has_images)
        condition_grids = self._condition_grids(kinds, latent_image_sizes)[0]
        num_images = plan.count("image")
        if condition_grids and height is None and width is None:
            grids = [condition_grids[min(index, len(condition_grids) - 1)] for index in range(num_images)]
        else:
            grids = self._target_grids(sizes, num_images, [[]] * num_images)
        latents = self._check_latents(latents, grids)
        draws = list(vae_noise) if vae_noise is not None else None
        conditions = {
            "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw,
            "latent_pixel_values": latent_pixel_values,
            "latent_image_sizes": latent_image_sizes,
            "vae_noise": None if draws is None else draws[: len(condition_grids)],
            "vae_sample_mode": vae_sample_mode,
        }
        draws = None if draws is None else draws[len(condition_grids) :]
        if draws is not None and len(draws) != 2 * num_images:
            raise ValueError(
                f"vae_noise needs {len(condition_grids) + 2 * num_images} tensors: one for each input image and two "
                "for each generated one."
            )
        encoded = {**conditions, "latent_values": self._encode_conditions(conditions, generator)}
        main = self._extend_context(None, input_ids, kinds, attention_mask, encoded)
        contexts = {"main": main, "text": main, "image": self._text_only_context(input_ids, kinds, main.mask)}

        result: list[torch.Tensor] = []
        images, tokens = [], []
        timesteps = flow_schedule(settings.num_inference_steps, settings.timestep_shift)[:-1]
        for index, kind in enumerate(plan):
            if kind == "text":
                written = self._write_text(contexts["main"], max_new_tokens, generation_config, kwargs)
                result.append(torch.tensor(written[0], dtype=torch.long))
                for name in ("main", "image"):
                    contexts[name] = self._append_texts(contexts[name], written)
                finished = segments is None and not written[0]
            else:
                grid = grids[len(images)]
                noise = None if latents is None else [latents[len(images)]]
                new_tokens, _ = self._sample_flow(
                    contexts["main"],
                    contexts["text"],
                    contexts["image"],
                    torch.zeros(1, dtype=torch.long, device=input_ids.device),
                    [grid],
                    settings,
                    self._initial_latents(noise, [grid], generator),
                    callback_on_step_end,
                    show_progress,
                )
                pixels = self._decode(new_tokens, [grid])[0]
                tokens.append(new_tokens[0])
                images.append(pixels)
                result.append(pixels)
                for name in ("main", "text"):
                    draw = None if draws is None else [draws.pop(0)]
                    contexts[name] = self._append_image(contexts[name], pixels, grid, draw, generator, vae_sample_mode)
                finished = False
            if on_segment_end is not None and on_segment_end(index, result[-1]) is False:
                finished = True
            if finished:
                break
        return UniMedVLGenerateOutput(
            images=_stack_if_equal(images), latents=tokens, timesteps=timesteps, segments=result
        )

    # ---------------------------------------------------------------------------------------------------------------
    # Settings and sizes

    def _settings(self, generation_config, preset, kwargs, has_images, height, width) -> tuple[FlowSettings, tuple]:
        """Merge preset and explicit arguments (removed from kwargs); returns settings and (height, width)."""
        presets = getattr(generation_config, "task_presets", None) or TASK_PRESETS
        name = preset if preset is not None else ("edit" if has_images else "t2i")
        if name not in presets:
            raise ValueError(f"preset must be one of {', '.join(sorted(presets))}, not {name!r}.")
        values = {**TASK_PRESETS["edit"], **presets[name]}
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
        counts = _runs_per_row(kinds, BlockKind.CLEAN)
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
        expected = [(rows * columns, self.config.latent_dim) for rows, columns in grids]
        if len(latents) != len(expected) or any(
            tuple(noise.shape) != shape for noise, shape in zip(latents, expected, strict=True)
        ):
            raise ValueError(
                f"latents must hold {len(expected)} tensors of shapes {expected} (tokens, values), got "
                f"{[tuple(noise.shape) for noise in latents]}."
            )
        return [noise.to(self.device, torch.float32) for noise in latents]

    def _initial_latents(self, latents, grids, generator) -> list[torch.Tensor]:
        if latents is not None:
            return latents
        sources = generator if isinstance(generator, (list, tuple)) else [generator] * len(grids)
        return [
            randn_tensor((rows * columns, self.config.latent_dim), generator=source, device=self.device)
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
        starts = mask & (block_kinds == BlockKind.TEXT) & (input_ids == self.config.bos_token_id)
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
        config.update(max_new_tokens=max_new_tokens, min_new_tokens=None, return_dict_in_generate=False)
        options = config.update(**options)
        batch_size = context.input_ids.shape[0]
        bos = torch.full((batch_size, 1), self.config.bos_token_id, device=context.input_ids.device)
        input_ids = torch.cat([context.input_ids, bos], dim=1)
        sequences = super().generate(
            input_ids=input_ids,
            attention_mask=F.pad(context.mask.long(), (0, 1), value=1),
            position_ids=torch.cat([context.position_ids, context.next_position[:, None]], dim=1),
            past_key_values=copy.deepcopy(context.cache),
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
        count, device = len(grids), self.device
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
                        new = [F.pad(noise, (0, 0, 0, width - noise.shape[0])) for noise in changed["latents"]]
                        state = torch.stack(new).to(state)
                progress.update()
        return _unpad(state, lengths), schedule[:-1]

    def _decode(self, tokens: list[torch.Tensor], grids: list[tuple[int, int]]) -> torch.Tensor | list[torch.Tensor]:
        latents = [self.model.latent_grid(part, *grid) for part, grid in zip(tokens, grids, strict=True)]
        return _stack_if_equal(self.model.decode_latents(latents))


def _unpad(state: torch.Tensor | None, lengths: list[int]) -> list[torch.Tensor] | None:
    return None if state is None else [row[:length] for row, length in zip(state, lengths, strict=True)]


def _stack_if_equal(images: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    same = len({image.shape for image in images}) == 1
    return torch.stack(images) if same else images


def _runs_per_row(kinds: torch.Tensor, kind: int) -> list[int]:
    """Number of images of one kind in each row."""
    here = kinds == kind
    return (here & ~F.pad(here[:, :-1], (1, 0))).sum(dim=1).tolist()


def _repeat_images(kinds: torch.Tensor, expand_size: int, model_kwargs: dict) -> dict:
    """Repeat each row's images `expand_size` times, as beams and several returned sequences repeat the row."""
    repeated = {}
    if model_kwargs.get("pixel_values") is not None:
        grid = model_kwargs["image_grid_thw"]
        images = model_kwargs["pixel_values"].split(grid.prod(dim=1).tolist())
        order = _repeated_order(_runs_per_row(kinds, BlockKind.VIT), expand_size)
        repeated["pixel_values"] = torch.cat([images[index] for index in order])
        repeated["image_grid_thw"] = grid[order]
    if model_kwargs.get("latent_values") is not None:
        order = _repeated_order(_runs_per_row(kinds, BlockKind.CLEAN), expand_size)
        repeated["latent_values"] = [model_kwargs["latent_values"][index] for index in order]
    return repeated


def _repeated_order(counts: list[int], expand_size: int) -> list[int]:
    order, start = [], 0
    for count in counts:
        order.extend(list(range(start, start + count)) * expand_size)
        start += count
    return order
