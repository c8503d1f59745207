"""Text mode of `generate`: what transformers' GenerationMixin needs to know about image blocks.

Shape legend: B batch, S sequence, D hidden.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache

from .blocks_unimedvl import block_layout, rope_position_ids
from .caches_unimedvl import first_position, grow_in_place, holds_padding, note_padding
from .prompts_unimedvl import images_of_new_tokens, repeat_images

IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "latent_values")


if TYPE_CHECKING:

    class _Base(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # they type their modalities differently
        model: Any
        config: Any
else:
    _Base = GenerationMixin


class UniMedVLTextGenerationMixin(_Base):
    """Text generation over prompts with images; every strategy is GenerationMixin's own."""

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """Give a prompt the RoPE ids of its blocks, int64 (B, S), where transformers would count tokens."""
        input_ids = model_kwargs.get("input_ids")
        if input_ids is None or input_ids.shape[1] == 0:
            input_ids = inputs_tensor
        batch_size, length = input_ids.shape[:2]
        kinds, mask = model_kwargs.get("mm_token_type_ids"), model_kwargs.get("attention_mask")
        if kinds is None:
            kinds = torch.zeros(batch_size, length, dtype=torch.long, device=input_ids.device)
        positions = rope_position_ids(block_layout(kinds), mask)
        cache = model_kwargs.get("past_key_values")
        if cache is None or mask is None or mask.shape[1] == length:
            return positions
        # Only the new tokens of a conversation came, with the mask of all of it.
        return positions + first_position(cache, mask, batch_size, length)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args, **kwargs
    ):
        """Let the cache grow in place, and remember whether the prompts are padded."""
        given = model_kwargs.get("past_key_values")
        prepare: Any = super()._prepare_cache_for_generation  # type: ignore[misc]  # they type self more narrowly
        prepare(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if given is None and isinstance(cache, DynamicCache):
            grow_in_place(cache)
        if cache is not None:
            note_padding(cache, model_kwargs.get("attention_mask"))

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, is_first_iteration=False, **kwargs):
        """Prepare one pass: token kinds of the tokens it reads, and images only where their tokens are among them.

        Args:
            input_ids: int64 (B, S), everything read or generated so far.
            inputs_embeds: float (B, S, D), embeddings of the prompt, read instead of ids in the first pass.
            is_first_iteration: whether this is the pass over the prompt.
            *args, **kwargs: as in `GenerationMixin`.

        Returns:
            The arguments of `forward`.
        """
        kinds = kwargs.get("mm_token_type_ids")
        if kinds is not None and input_ids is not None and kinds.shape[1] < input_ids.shape[1]:
            # Assisted decoding appends its candidates to the prompt before the first pass.
            kwargs["mm_token_type_ids"] = F.pad(kinds, (0, input_ids.shape[1] - kinds.shape[1]))
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if is_first_iteration and kinds is not None and cache is not None and cache.is_compileable:
            # Transformers prepares masks for static caches itself, and does not know about blocks.
            kwargs["attention_mask"] = self.model.prefill_attention_mask(kwargs["mm_token_type_ids"], mask, cache)
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        kinds, tokens = inputs.get("mm_token_type_ids"), inputs.get("input_ids")
        if kinds is not None and tokens is not None:
            # Transformers 5.20 leaves this input at its full length when it continues on a cache.
            inputs["mm_token_type_ids"] = kinds[:, -tokens.shape[1] :]
        if cache is not None and not (is_first_iteration or cache.is_compileable or holds_padding(cache)):
            # Nothing is hidden and generation hides nothing: no pass needs to look at the mask again.
            inputs["attention_mask"] = None
        length = 0 if cache is None else cache.get_seq_length()
        if isinstance(length, int) and length == 0:
            # An assistant model's first pass does not count as one in transformers, which drops its images.
            inputs.update({name: kwargs[name] for name in IMAGE_INPUTS if kwargs.get(name) is not None})
        elif is_first_iteration and inputs.get("pixel_values") is not None and input_ids.shape[0] == 1:
            inputs.update(images_of_new_tokens(inputs))
        elif not is_first_iteration and kwargs.get("use_cache", True):
            for name in IMAGE_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeat prompts for beams and several returned sequences, images included, which are no rows of the batch."""
        if expand_size > 1 and input_ids is not None:
            kinds = model_kwargs.get("mm_token_type_ids")
            kinds = torch.zeros_like(input_ids) if kinds is None else kinds
            model_kwargs.update(repeat_images(kinds, expand_size, model_kwargs))
            images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "image_grid_thw")}
        else:
            images = {}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        model_kwargs.update({name: value for name, value in images.items() if value is not None})
        return input_ids, model_kwargs

    def generate_batch(self, inputs: list[list[int]], *args, **kwargs):
        """Continue prompts of text by continuous batching; arguments and result as in transformers.

        Args:
            inputs: the ids of each prompt.

        Raises:
            ValueError: for a prompt with image placeholders, since images cannot be given.
        """
        placeholders = {self.config.image_token_id, self.config.latent_token_id}
        if any(placeholders & set(map(int, ids)) for ids in inputs):
            raise ValueError(
                "generate_batch of transformers takes token ids only and cannot read images: use generate for prompts "
                "with images."
            )
        return super().generate_batch(inputs, *args, **kwargs)

    def _text_inputs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Encode latent images once, and read token kinds off the placeholders where they are not given."""
        pixels, sizes = kwargs.pop("latent_pixel_values", None), kwargs.pop("latent_image_sizes", None)
        if pixels is not None:
            draws = {"noise": "vae_noise", "generator": "generator", "sample_mode": "vae_sample_mode"}
            given = {ours: kwargs.pop(name) for ours, name in draws.items() if name in kwargs}
            kwargs["latent_values"] = self.model.input_latents(pixels, sizes, **given)
        has_images = any(kwargs.get(name) is not None for name in ("pixel_values", "latent_values", "past_key_values"))
        if has_images and kwargs.get("mm_token_type_ids") is None:
            if kwargs.get("input_ids") is not None:
                kwargs["mm_token_type_ids"] = self.model.token_kinds(kwargs["input_ids"])
            elif kwargs.get("inputs_embeds") is not None:
                kwargs["mm_token_type_ids"] = self.model.embedded_kinds(kwargs["inputs_embeds"])
        return kwargs
