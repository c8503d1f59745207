"""What generation has read so far: contexts that can be continued and branched.

An image is sampled against up to three contexts: the main one, one without the last text (text guidance) and one
without images (image guidance). Every context is a cache with a mask and a RoPE counter of its own; contexts that are
a prefix of another share its cache.

Shape legend: B prompts, S prompt tokens, K context tokens.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from .blocks_unimedvl import BlockKind, block_layout, rope_position_ids
from .caches_unimedvl import branch_cache
from .prompts_unimedvl import PosteriorDraws, Prompts


@dataclass(frozen=True)
class GenerationContext:
    """What has been read so far: a cache and how to continue it.

    Attributes:
        cache: keys and values of K tokens.
        input_ids, position_ids: int64 (B, K).
        mask: bool (B, K), tokens that may be seen.
        next_position: int64 (B,), RoPE id of what comes next.
        ancestors: caches of the contexts that this one continues; their columns are its first ones.
    """

    cache: Cache
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    next_position: torch.Tensor
    ancestors: tuple[Cache, ...] = ()

    def prefix(self, lengths: torch.Tensor) -> "GenerationContext":
        """The context as it was before column `lengths[b]` of each row; shares the cache."""
        width = self.mask.shape[1]
        columns = torch.arange(width, device=self.mask.device)
        at_cut = self.position_ids.gather(1, lengths.clamp(max=width - 1)[:, None])[:, 0]
        return replace(
            self,
            mask=self.mask & (columns < lengths[:, None]),
            next_position=torch.where(lengths < width, at_cut, self.next_position),
        )


@dataclass(frozen=True)
class GuidanceContexts:
    """The contexts of one guidance step, over the same prompts.

    Attributes:
        main: the prompts with everything in them.
        text: the prompts without their last text.
        image: the prompts without images; None where that equals the main context, which then replaces it.
    """

    main: GenerationContext
    text: GenerationContext
    image: GenerationContext | None = None


def encode_images(model: PreTrainedModel, prompts: Prompts, draws: PosteriorDraws) -> list[torch.Tensor] | None:
    """Encode the images of prompts by the autoencoder, see `UniMedVLModel.encode_latents`.

    Args:
        model: the conditional generation model.
        prompts: with their `latent_pixel_values`.
        draws: how the posterior of the autoencoder is sampled.

    Returns:
        Latents (C, h, w) of each image, or None without images.

    Raises:
        ValueError: if images and posterior noise do not fit each other.
    """
    if prompts.latent_pixel_values is None:
        if draws.noise:
            raise ValueError("vae_noise is for input images, but no latent_pixel_values came with the prompt.")
        return None
    return model.model.input_latents(
        prompts.latent_pixel_values, prompts.latent_image_sizes, draws.noise, draws.generator, draws.sample_mode
    )


def read_prompts(
    model: PreTrainedModel, prompts: Prompts, latents: list[torch.Tensor] | None, image_guidance: bool = False
) -> GuidanceContexts:
    """Read prompts, and what guidance leaves out of them.

    Args:
        model: a `UniMedVLForConditionalGeneration`.
        latents: of the prompts' images, from `encode_images`.
        image_guidance: read the prompts without their images too, where they have any.

    Raises:
        ValueError: if images and placeholders do not fit each other.
    """
    main = extend_context(
        model,
        None,
        prompts.input_ids,
        prompts.kinds,
        prompts.attention_mask,
        pixel_values=prompts.pixel_values,
        image_grid_thw=prompts.image_grid_thw,
        latent_values=latents,
    )
    text = main.prefix(last_text_start(model.config, prompts))
    image = None
    if image_guidance and prompts.has_images:
        keep = prompts.attention_mask & (block_layout(prompts.kinds).kinds_BS == BlockKind.TEXT)
        rows = [ids[row] for ids, row in zip(prompts.input_ids, keep, strict=True)]
        image = extend_context(model, None, *_left_padded(rows, prompts.input_ids))
    return GuidanceContexts(main, text, image)


def last_text_start(config, prompts: Prompts) -> torch.Tensor:
    """Column where each prompt's last text begins, int64 (B,); S for a prompt that ends with an image."""
    input_ids, mask = prompts.input_ids, prompts.attention_mask
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    block_kinds = block_layout(prompts.kinds).kinds_BS
    last_valid = torch.where(mask, columns, -1).max(dim=1).values
    ends_with_text = block_kinds.gather(1, last_valid.clamp(min=0)[:, None])[:, 0] == BlockKind.TEXT
    # A turn starts after another one, after an image or at the beginning: a BOS inside a text is no start.
    is_text = mask & (block_kinds == BlockKind.TEXT)
    ends = torch.tensor(end_token_ids(config), device=input_ids.device)
    after_end = F.pad(torch.isin(input_ids, ends), (1, 0), value=True)[:, :-1]
    inside = F.pad(is_text, (1, 0), value=False)[:, :-1] & ~after_end
    starts = is_text & ~inside & (input_ids == config.bos_token_id)
    last_start = torch.where(starts, columns, -1).max(dim=1).values
    return torch.where(ends_with_text & (last_start >= 0), last_start, input_ids.shape[1])


def end_token_ids(config) -> list[int]:
    """The ids that end a text, of a model's or a generation configuration."""
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, (list, tuple)) else [ends]


def extend_context(
    model: PreTrainedModel,
    context: GenerationContext | None,
    input_ids: torch.Tensor,
    kinds: torch.Tensor,
    mask: torch.Tensor | None = None,
    **images: Any,
) -> GenerationContext:
    """Read further tokens after a context, or from the start. The given context stays usable.

    Args:
        model: the conditional generation model.
        context: what was read before; None at the start.
        input_ids, kinds: int64 (B, S), see `Prompts`.
        mask: bool (B, S), tokens that are read; all of them by default.
        **images: `pixel_values`, `image_grid_thw` and `latent_values` of these tokens, as in `forward`.

    Returns:
        The context with these tokens.
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    # One column more shows where the next token would be.
    positions = rope_position_ids(block_layout(F.pad(kinds, (0, 1))), F.pad(mask.long(), (0, 1), value=1))
    cache, next_position = None, positions[:, -1]
    ancestors: tuple[Cache, ...] = ()
    position_ids = positions[:, :-1]
    read_ids, read_positions, read_mask = input_ids, position_ids, mask
    if context is not None:
        cache = branch_cache(context.cache)
        ancestors = (*context.ancestors, context.cache)
        position_ids = position_ids + context.next_position[:, None]
        next_position = next_position + context.next_position
        read_ids = torch.cat([context.input_ids, input_ids], dim=1)
        read_positions = torch.cat([context.position_ids, position_ids], dim=1)
        read_mask = torch.cat([context.mask, mask], dim=1)
    outputs = model.model(
        input_ids=input_ids,
        attention_mask=read_mask.long(),
        position_ids=position_ids,
        mm_token_type_ids=kinds,
        past_key_values=cache,
        use_cache=True,
        **images,
    )
    return GenerationContext(outputs.past_key_values, read_ids, read_positions, read_mask, next_position, ancestors)


def append_texts(model: PreTrainedModel, context: GenerationContext, texts: list[list[int]]) -> GenerationContext:
    """Read one text for each prompt.

    Args:
        model: a `UniMedVLForConditionalGeneration`.
        context: what was read before; stays usable.
        texts: token ids of each prompt's text, without markers.
    """
    bos, eos = model.config.bos_token_id, end_token_ids(model.config)[0]
    rows = [torch.tensor([bos, *text, eos]) for text in texts]
    return extend_context(model, context, *_left_padded(rows, context.input_ids))


def append_image(
    model: PreTrainedModel, context: GenerationContext, pixels: torch.Tensor, draws: PosteriorDraws
) -> GenerationContext:
    """Read a generated image as a clean VAE block, through the 8 bits a saved image has.

    Args:
        model: a `UniMedVLForConditionalGeneration`.
        context: what was read before, of one prompt; stays usable.
        pixels: float (3, H, W) in [-1, 1].
        draws: the posterior draw.
    """
    levels = ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    reread = (levels.float() / 255 - 0.5) / 0.5
    latents = model.model.encode_latents([reread], draws.noise, draws.generator, draws.sample_mode)
    config, unit = model.config, model.config.pixels_per_latent_token
    tokens = (pixels.shape[1] // unit) * (pixels.shape[2] // unit)
    ids = [config.vision_start_token_id, *[config.latent_token_id] * tokens, config.vision_end_token_id]
    input_ids = torch.tensor([ids], device=context.input_ids.device)
    kinds = torch.tensor([[0, *[int(BlockKind.CLEAN)] * tokens, 0]], device=input_ids.device)
    return extend_context(model, context, input_ids, kinds, latent_values=latents)


def _left_padded(rows: list[torch.Tensor], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, kinds and mask, (B, S), of texts of any lengths."""
    # At least one column: a prompt of images only leaves an empty, fully masked context.
    width = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.stack([F.pad(row, (width - len(row), 0)) for row in rows]).to(like)
    lengths = torch.tensor([len(row) for row in rows], device=like.device)
    mask = torch.arange(width, device=like.device) >= width - lengths[:, None]
    return ids, torch.zeros_like(ids), mask
