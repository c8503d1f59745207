"""Operations and bytes of the decoder in closed form, from a configuration alone."""

from typing import Any

from ..modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from ..modeling_unimedvl.flow_unimedvl import TIME_FEATURES


def layer_weights(config: UniMedVLConfig) -> int:
    """Weights of the matrices that a token passes in one layer, in either expert."""
    text: Any = config.text_config
    head = text.hidden_size // text.num_attention_heads
    heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
    return text.hidden_size * (heads * head + 3 * text.intermediate_size)


def pass_flops(config: UniMedVLConfig, tokens: int, context: int) -> int:
    """Floating point operations of the decoder's layers: two for each weight and token, four for each pair of
    attention and channel.

    Args:
        tokens: new tokens, each of which sees all others.
        context: keys before them.
    """
    text: Any = config.text_config
    linear = 2 * text.num_hidden_layers * layer_weights(config) * tokens
    return linear + 4 * text.num_hidden_layers * text.hidden_size * tokens * (context + tokens)


def update_flops(config: UniMedVLConfig, tokens: int, contexts: list[int]) -> int:
    """Floating point operations of one update that shares nothing, see `pass_flops`: a little more than the package
    needs, which embeds times before the first update and latents once for all contexts, and ends the last layer of a
    block's two markers at its attention.

    Args:
        tokens: latent tokens of the image.
        contexts: key length of each guidance context, as the pass computes it.
    """
    text: Any = config.text_config
    hidden = text.hidden_size
    latents = 2 * 2 * config.latent_dim * hidden * tokens
    time = 2 * (TIME_FEATURES + hidden) * hidden
    return time + sum(latents + pass_flops(config, tokens + 2, context) for context in contexts)


def token_flops(config: UniMedVLConfig, context: int) -> int:
    """Floating point operations of one decoded token after a context, its logits included, see `pass_flops`."""
    text: Any = config.text_config
    return pass_flops(config, 1, context) + 2 * text.hidden_size * text.vocab_size


def prefill_flops(config: UniMedVLConfig, grid: tuple[int, int], tokens: int) -> int:
    """Floating point operations of reading a prompt with an image of `grid` (rows, columns) patches, from the ViT to
    the logits of the last of all `tokens`. Every pair of tokens counts, also those that causality hides: with a large
    image they are few."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    patches, width = grid[0] * grid[1], vision.hidden_size
    layer = 4 * width**2 + 2 * width * vision.intermediate_size
    embedding = 3 * vision.patch_size**2 * width
    connector = (width + text.hidden_size) * text.hidden_size
    weights = vision.num_hidden_layers * layer + embedding + connector
    tower = 2 * weights * patches + 4 * vision.num_hidden_layers * width * patches**2
    return tower + pass_flops(config, tokens, 0) + 2 * text.hidden_size * text.vocab_size


def cache_bytes_per_token(config: UniMedVLConfig, element_size: int = 2) -> int:
    """Bytes of the keys and values of one token in all layers."""
    text: Any = config.text_config
    head = text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * head * element_size
