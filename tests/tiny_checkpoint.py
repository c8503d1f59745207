"""A whole tiny checkpoint: model, tokenizer and processor, saved as users save theirs."""

from pathlib import Path

from tests.tiny import make_tokenizer
from tests.tiny_model import tiny_config, tiny_model
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor


def tiny_processor() -> UniMedVLProcessor:
    """The processor that fits `tiny_config`: patches of 6 pixels, latent tokens of 8, images of at most 48."""
    config = tiny_config()
    patch, token = config.vision_config.patch_size, config.pixels_per_latent_token
    vit = {"max_image_size": 8 * patch, "min_image_size": 2 * patch, "image_stride": patch}
    vae = {"max_image_size": 6 * token, "min_image_size": 2 * token, "image_stride": token}
    image_processor = UniMedVLImageProcessor(
        patch_size=patch, understanding_transform=vit, vit_transform=vit, vae_transform=vae
    )
    return UniMedVLProcessor(image_processor, make_tokenizer())


def tiny_checkpoint(directory: str | Path, seed: int = 0, **text_changes):
    """Save a random model (with changes to its text part) and its processor into `directory`; returns both."""
    processor = tiny_processor()
    tokenizer = processor.tokenizer
    text = {**tiny_config().text_config.to_dict(), "vocab_size": len(tokenizer), **text_changes}
    tokens = {
        "bos": "<|im_start|>",
        "eos": "<|im_end|>",
        "pad": "<|endoftext|>",
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "latent": "<|vision_pad|>",
        "image": "<|image_pad|>",
    }
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    model = tiny_model(seed, text_config=text, **ids)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return model, processor


def sharp_checkpoint(directory: str | Path, seed: int = 0):
    """Save a random model whose heads have a size that engines take, and whose scores are so large that another mask
    or other positions show; returns model and processor."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96}
    model, processor = tiny_checkpoint(directory, seed, **sizes)
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm.weight.data.mul_(4)
    model.save_pretrained(directory)
    return model, processor
