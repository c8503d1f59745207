"""Generation: text by GenerationMixin, images by rectified flow, and both in turn."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from .caches_unimedvl import branch_cache
from .contexts_unimedvl import (
    GenerationContext,
    append_image,
    append_texts,
    encode_images,
    end_token_ids,
    read_prompts,
)
from .flow_unimedvl import TASK_PRESETS, is_integer
from .image_requests_unimedvl import (
    ImageTask,
    check_latents,
    condition_grids,
    image_task,
    posterior_generators,
    split_options,
    target_grids,
)
from .prompts_unimedvl import PROMPT_INPUTS, PosteriorDraws, Prompts
from .sampling_unimedvl import FlowSampler, StepCallback, UniMedVLGenerateOutput, stack_if_equal
from .text_generation_unimedvl import UniMedVLTextGenerationMixin


class UniMedVLGenerationMixin(UniMedVLTextGenerationMixin):
    """`generate` in three modes. Text mode is GenerationMixin's own."""

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, generation_mode: str = "text", **kwargs):
        """Generate text, images, or both in turn.

        Args:
            inputs: prompt ids, int64 (B, S), as in transformers; usually given as `input_ids` with the processor's
                other outputs.
            generation_mode: "text" (GenerationMixin with all its arguments), "image" (see `generate_images`) or
                "interleaved" (see `generate_interleaved`).
            **kwargs: what the processor returned, and the arguments of the mode.

        Returns:
            Text mode: what GenerationMixin returns. Image mode: float pixels (N, 3, H, W), a list when sizes differ,
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
        prompts = Prompts.from_inputs(self, kwargs)
        options = {name: value for name, value in kwargs.items() if name not in PROMPT_INPUTS}
        make = self.generate_images if generation_mode == "image" else self.generate_interleaved
        return make(prompts, **options)

    def _image_task(
        self, generation_config: GenerationConfig | None, preset: str | None, prompts: Prompts, flow: dict[str, Any]
    ) -> ImageTask:
        configs = (generation_config, self.generation_config)
        presets = next(filter(None, (getattr(config, "task_presets", None) for config in configs)), TASK_PRESETS)
        return image_task(presets, preset, prompts, flow)

    def generate_images(
        self,
        prompts: Prompts,
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
        callback_on_step_end: StepCallback | None = None,
        show_progress: bool = True,
        return_dict_in_generate: bool = False,
        generation_config: GenerationConfig | None = None,
        **kwargs,
    ) -> torch.Tensor | list[torch.Tensor] | UniMedVLGenerateOutput:
        """Sample images for each prompt by rectified flow with text and image guidance.

        Args:
            prompts: made by `generate` from what the processor returns with `generation_mode="image"`: `input_ids`,
                `attention_mask`, `mm_token_type_ids`, `pixel_values`, `image_grid_thw`, `latent_pixel_values` and
                `latent_image_sizes`.
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
            velocity_cache_interval (int): n > 1 evaluates the model at every n-th update only and extrapolates the
                velocity between. An approximation, like the following ones; docs/approximations.md has their errors.
            velocity_cache_order (int): how it extrapolates, from one evaluated velocity more than the order: 0 reuses
                the last one, 1 (default) follows a line through two, 2 a parabola through three.
            guidance_cache_interval (int): n > 1 evaluates the branches of guidance at every n-th evaluation only and
                reuses their distance from the main branch between.
            solver (str): "euler" as the reference; "adams_bashforth", of second order with one evaluation for each
                update; "midpoint", of second order with two.
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

        Returns:
            Float pixels (N, 3, H, W) in about [-1, 1], a list when sizes differ, or `UniMedVLGenerateOutput`.

        Raises:
            ValueError: for unknown presets or arguments, and for values out of range.
        """
        if not is_integer(num_images_per_prompt) or num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be a whole number >= 1, not {num_images_per_prompt!r}.")
        flow, text_options = split_options(kwargs)
        task = self._image_task(generation_config, preset, prompts, flow)
        given = condition_grids(self.config, prompts)
        last_given = [images[-1] if images else None for images in given]
        grids = target_grids(self.config, len(prompts), height, width, last_given, task.size)
        grids = [grid for grid in grids for _ in range(num_images_per_prompt)]
        draws = PosteriorDraws(
            vae_noise, posterior_generators(generator, num_images_per_prompt, given), vae_sample_mode
        )
        noise = None if latents is None else check_latents(self.config, latents, grids)

        sampler = FlowSampler(self, task.settings)
        contexts = read_prompts(self, prompts, encode_images(self, prompts, draws), "image" in sampler.branches)
        thoughts = None
        if think:
            thoughts = self._write_text(contexts.main, max_think_tokens, generation_config, text_options)
            # The other branches keep the contexts as they were, without the thought.
            with_thought = append_texts(self, contexts.main, thoughts)
            contexts = replace(contexts, main=with_thought, image=contexts.image or contexts.main)
        conditions = sampler.prepare(contexts, grids, num_images_per_prompt)
        noise = sampler.draw_noise(grids, generator) if noise is None else noise
        tokens = sampler.sample(conditions, noise, callback_on_step_end, show_progress)
        images = stack_if_equal(sampler.decode(tokens, grids))
        if return_dict_in_generate:
            times = sampler.schedule[:-1]
            return UniMedVLGenerateOutput(images=images, latents=tokens, text=thoughts, timesteps=times)
        return images

    def generate_interleaved(
        self,
        prompts: Prompts,
        segments: list[str] | None = None,
        max_segments: int = 4,
        on_segment_end: Callable[[int, torch.Tensor], bool | None] | None = None,
        max_new_tokens: int = 512,
        preset: str | None = None,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        generator: torch.Generator | None = None,
        latents: list[torch.Tensor] | None = None,
        vae_noise: list[torch.Tensor] | None = None,
        vae_sample_mode: str = "sample",
        callback_on_step_end: StepCallback | None = None,
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
            latents: initial noise of each image, (h * w, L).
            vae_noise: posterior noises in drawing order (input images, then for each generated image one for the main
                and one for the text-guidance context).
            prompts, preset, generator, vae_sample_mode, callback_on_step_end, show_progress, generation_config: see
                `generate_images`.
            **kwargs: settings of the sampler, and options of the texts (`do_sample`, `temperature`, ...).

        Raises:
            ValueError: for a batch of more than one conversation or an unknown segment kind.
        """
        if len(prompts) != 1:
            raise ValueError("generation_mode='interleaved' takes one conversation: call it once for each.")
        if not is_integer(max_segments) or max_segments < 1:
            raise ValueError(f"max_segments must be a whole number >= 1, not {max_segments!r}.")
        plan = segments if segments is not None else ["text" if i % 2 == 0 else "image" for i in range(max_segments)]
        unknown = sorted({str(kind) for kind in plan} - {"text", "image"})
        if unknown or not plan:
            raise ValueError(f"segments must be a list of 'text' and 'image', not {segments!r}.")
        flow, text_options = split_options(kwargs)
        task = self._image_task(generation_config, preset, prompts, flow)
        given, num_images = condition_grids(self.config, prompts)[0], plan.count("image")
        defaults = [given[min(index, len(given) - 1)] if given else None for index in range(num_images)]
        grids = target_grids(self.config, num_images, height, width, defaults, task.size)
        noises = None if latents is None else check_latents(self.config, latents, grids)
        if vae_noise is not None and len(vae_noise) != len(given) + 2 * num_images:
            raise ValueError(
                f"vae_noise needs {len(given) + 2 * num_images} tensors: one for each input image and two for each "
                "generated one."
            )
        drawn = None if vae_noise is None else iter(vae_noise)

        def draws(count: int) -> PosteriorDraws:
            noise = None if drawn is None else [next(drawn) for _ in range(count)]
            return PosteriorDraws(noise, generator, vae_sample_mode)

        sampler = FlowSampler(self, task.settings)
        image_guidance = "image" in sampler.branches
        contexts = read_prompts(self, prompts, encode_images(self, prompts, draws(len(given))), image_guidance)
        if image_guidance and contexts.image is None:
            contexts = replace(contexts, image=contexts.main)
        result: list[torch.Tensor] = []
        images: list[torch.Tensor] = []
        tokens: list[torch.Tensor] = []
        for index, kind in enumerate(plan):
            finished = False
            if kind == "text":
                written = self._write_text(contexts.main, max_new_tokens, generation_config, text_options)
                # Until a text was written, text guidance drops the prompt's last one; then it drops what was written.
                if not any(segment.dim() == 1 for segment in result):
                    contexts = replace(contexts, text=contexts.main)
                result.append(torch.tensor(written[0], dtype=torch.long))
                grown = ("main", "image") if image_guidance else ("main",)
                extended = {name: append_texts(self, getattr(contexts, name), written) for name in grown}
                finished = segments is None and not written[0]
            else:
                grid = grids[len(images)]
                conditions = sampler.prepare(contexts, [grid])
                noise = sampler.draw_noise([grid], generator) if noises is None else [noises[len(images)]]
                tokens += sampler.sample(conditions, noise, callback_on_step_end, show_progress)
                images += sampler.decode(tokens[-1:], [grid])
                result.append(images[-1])
                extended = {
                    name: append_image(self, getattr(contexts, name), images[-1], draws(1))
                    for name in ("main", "text")
                }
            contexts = replace(contexts, **extended)
            if on_segment_end is not None and on_segment_end(index, result[-1]) is False:
                finished = True
            if finished:
                break
        return UniMedVLGenerateOutput(
            images=stack_if_equal(images), latents=tokens, timesteps=sampler.schedule[:-1], segments=result
        )

    def _write_text(
        self,
        context: GenerationContext,
        max_new_tokens: int,
        generation_config: GenerationConfig | None,
        options: dict[str, Any],
    ) -> list[list[int]]:
        """Generate a text after a context, as ids without markers. The context is not changed."""
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        options = config.update(**options)
        config.update(
            max_new_tokens=max_new_tokens, max_length=None, num_return_sequences=1, cache_implementation=None
        )
        config.update(return_dict_in_generate=False)
        cache = branch_cache(context.cache)
        if (config.num_beams or 1) > 1:
            cache.batch_repeat_interleave(config.num_beams)
        bos = torch.full_like(context.input_ids[:, :1], self.config.bos_token_id)
        input_ids = torch.cat([context.input_ids, bos], dim=1)
        sequences = super().generate(
            input_ids=input_ids,
            attention_mask=F.pad(context.mask.long(), (0, 1), value=1),
            position_ids=torch.cat([context.position_ids, context.next_position[:, None]], dim=1),
            past_key_values=cache,
            generation_config=config,
            **options,
        )
        ends = set(end_token_ids(self.config if config.eos_token_id is None else config))
        texts = []
        for row in sequences[:, input_ids.shape[1] :].tolist():
            stop = next((index for index, token_id in enumerate(row) if token_id in ends), len(row))
            texts.append(row[:stop])
        return texts
