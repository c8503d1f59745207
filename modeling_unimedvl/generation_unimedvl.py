"""Generation: text by GenerationMixin, images by rectified flow, and both in turn.

An image is sampled against up to three contexts: the main one, one without the last text (text guidance) and one
without images (image guidance). Every context is a cache with a mask and a RoPE counter of its own; contexts that are
a prefix of another share its cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .blocks_unimedvl import BlockKind, block_layout, rope_position_ids
from .flow_unimedvl import flow_schedule, is_integer
from .sampling_unimedvl import FlowSamplerMixin, runs_per_row, stack_if_equal

# Arguments of text generation; in image mode they steer the thought.
TEXT_OPTIONS = set(GenerationConfig().to_dict())
IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "latent_values")


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


class UniMedVLGenerationMixin(FlowSamplerMixin):
    """`generate` in three modes. Text mode is GenerationMixin's own."""

    # ---------------------------------------------------------------------------------------------------------------
    # Text mode: what GenerationMixin needs to know about blocks

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        input_ids = model_kwargs.get("input_ids")
        if input_ids is None or input_ids.shape[1] == 0:
            input_ids = inputs_tensor
        kinds = model_kwargs.get("mm_token_type_ids")
        if kinds is None:
            kinds = torch.zeros(input_ids.shape[:2], dtype=torch.long, device=input_ids.device)
        return rope_position_ids(block_layout(kinds), model_kwargs.get("attention_mask"))

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
        kinds, tokens = inputs.get("mm_token_type_ids"), inputs.get("input_ids")
        if kinds is not None and tokens is not None:
            # Transformers 5.20 leaves this input at its full length when it continues on a cache.
            inputs["mm_token_type_ids"] = kinds[:, -tokens.shape[1] :]
        length = 0 if cache is None else cache.get_seq_length()
        if isinstance(length, int) and length == 0:
            # An assistant model's first pass does not count as one in transformers, which drops its images.
            inputs.update({name: kwargs[name] for name in IMAGE_INPUTS if kwargs.get(name) is not None})
        elif is_first_iteration and inputs.get("pixel_values") is not None and input_ids.shape[0] == 1:
            inputs.update(_images_of_new_tokens(inputs))
        elif not is_first_iteration and kwargs.get("use_cache", True):
            for name in IMAGE_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        if expand_size > 1 and input_ids is not None:
            kinds = model_kwargs.get("mm_token_type_ids")
            kinds = torch.zeros_like(input_ids) if kinds is None else kinds
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
        if inputs is not None and kwargs.get("input_ids") is None and kwargs.get("inputs_embeds") is None:
            inputs, kwargs["input_ids"] = None, inputs
        ids, vocabulary = kwargs.get("input_ids"), self.config.text_config.vocab_size
        if isinstance(ids, torch.Tensor) and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"input_ids must lie in [0, {vocabulary - 1}], this checkpoint's vocabulary: use its own processor."
            )
        if generation_mode == "text":
            return super().generate(inputs, **self._text_inputs(kwargs))
        self.model.require_generation()
        kwargs = self._image_inputs(kwargs)
        return self.generate_images(**kwargs) if generation_mode == "image" else self.generate_interleaved(**kwargs)

    def _text_inputs(self, kwargs: dict) -> dict:
        """Encode latent images once, and read token kinds off the placeholders where they are not given."""
        if kwargs.get("latent_pixel_values") is not None:
            kwargs["latent_values"] = self._encode_conditions(kwargs, kwargs.pop("generator", None))
        has_images = any(kwargs.get(name) is not None for name in ("pixel_values", "latent_values", "past_key_values"))
        if has_images and kwargs.get("mm_token_type_ids") is None and kwargs.get("input_ids") is not None:
            kwargs["mm_token_type_ids"] = self.model.token_kinds(kwargs["input_ids"])
        return kwargs

    def _image_inputs(self, kwargs: dict) -> dict:
        """Check and move the inputs of image modes, and hide the BOS that a text template ends with.

        A pipeline renders prompts for text; an image (or the first text segment) follows the prompt itself.
        """
        input_ids = kwargs.get("input_ids")
        if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or torch.is_floating_point(input_ids):
            raise ValueError(
                "generate needs input_ids, int64 (prompts, tokens): pass the processor's output as keyword arguments."
            )
        if input_ids.numel() == 0:
            raise ValueError("The prompts are empty: give each at least one text or image.")
        device = self._compute_device()
        kwargs = {
            name: value.to(device) if isinstance(value, torch.Tensor) and name != "latents" else value
            for name, value in kwargs.items()
        }
        if kwargs.get("generation_config") is None:
            kwargs["generation_config"] = self.generation_config
        input_ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask.clone()
        columns = torch.arange(input_ids.shape[1], device=device)
        last = torch.where(mask > 0, columns, -1).max(dim=1).values
        ends = (last >= 0) & (input_ids.gather(1, last.clamp(min=0)[:, None])[:, 0] == self.config.bos_token_id)
        mask[ends, last[ends]] = 0
        return {**kwargs, "attention_mask": mask}

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
            preset: name in `generation_config.task_presets`. Default: "t2i" without input images, "edit" with them; a
                batch that mixes both needs a name.
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
                input image, then initial latents of each image. A sampled thought draws from the global generator.
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
        kinds = self._context_kinds(input_ids, mm_token_type_ids, has_images)
        settings, sizes = self._settings(generation_config, preset, kwargs, kinds, height, width)
        _refuse_unknown(kwargs)
        count = batch_size * num_images_per_prompt
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
        context holds everything, the text-guidance context everything but generated text (before there is any:
        everything before the prompt's last text), the image-guidance context everything but images. These are the
        rules of the reference's reconstruction routine, with its separate posterior draws for the first two.

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
        kinds = self._context_kinds(input_ids, mm_token_type_ids, has_images)
        settings, sizes = self._settings(generation_config, preset, kwargs, kinds, height, width)
        _refuse_unknown(kwargs)
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
        # Until a text was written, text guidance drops the prompt's last one; then it drops what was written.
        before_last_text = main.prefix(self._last_text_start(input_ids, kinds, main.mask))
        image_context = self._text_only_context(input_ids, kinds, main.mask)
        contexts = {"main": main, "text": before_last_text, "image": image_context}

        result: list[torch.Tensor] = []
        images, tokens = [], []
        timesteps = flow_schedule(settings.num_inference_steps, settings.timestep_shift)[:-1]
        for index, kind in enumerate(plan):
            if kind == "text":
                written = self._write_text(contexts["main"], max_new_tokens, generation_config, kwargs)
                if not any(segment.dim() == 1 for segment in result):
                    contexts["text"] = contexts["main"]
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
            images=stack_if_equal(images), latents=tokens, timesteps=timesteps, segments=result
        )


def _refuse_unknown(arguments: dict) -> None:
    unknown = sorted(name for name in arguments if name not in TEXT_OPTIONS)
    if unknown:
        raise ValueError(f"generate does not know {', '.join(unknown)} in this mode: remove them.")


def _images_of_new_tokens(inputs: dict) -> dict:
    """The images of the tokens that are not in the cache yet, when a conversation goes on with all its images."""
    runs = runs_per_row(inputs["mm_token_type_ids"], BlockKind.VIT)[0] if "mm_token_type_ids" in inputs else None
    grid = inputs.get("image_grid_thw")
    if runs is None or grid is None or runs >= grid.shape[0]:
        return {}
    if runs == 0:
        return {"pixel_values": None, "image_grid_thw": None}
    return {
        "pixel_values": inputs["pixel_values"][-int(grid[-runs:].prod(dim=1).sum()) :],
        "image_grid_thw": grid[-runs:],
    }


def _repeat_images(kinds: torch.Tensor, expand_size: int, model_kwargs: dict) -> dict:
    """Repeat each row's images `expand_size` times, as beams and several returned sequences repeat the row."""
    repeated = {}
    if model_kwargs.get("pixel_values") is not None:
        grid = model_kwargs["image_grid_thw"]
        images = model_kwargs["pixel_values"].split(grid.prod(dim=1).tolist())
        order = _repeated_order(runs_per_row(kinds, BlockKind.VIT), expand_size)
        repeated["pixel_values"] = torch.cat([images[index] for index in order])
        repeated["image_grid_thw"] = grid[order]
    if model_kwargs.get("latent_values") is not None:
        order = _repeated_order(runs_per_row(kinds, BlockKind.CLEAN), expand_size)
        repeated["latent_values"] = [model_kwargs["latent_values"][index] for index in order]
    return repeated


def _repeated_order(counts: list[int], expand_size: int) -> list[int]:
    order, start = [], 0
    for count in counts:
        order.extend(list(range(start, start + count)) * expand_size)
        start += count
    return order
