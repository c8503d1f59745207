"""Small real models for the tests: every part is the real class at a few thousand parameters."""

import torch

from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

SPECIAL_TOKENS = {
    "pad_token_id": 120,
    "bos_token_id": 121,
    "eos_token_id": 122,
    "vision_start_token_id": 123,
    "vision_end_token_id": 124,
    "latent_token_id": 125,
    "image_token_id": 126,
}


def tiny_config(**changes) -> UniMedVLConfig:
    """A configuration with unusual sizes everywhere, so that a hard-coded one would show."""
    fields = {
        "text_config": {
            "vocab_size": 128,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 6,
        },
        "vae_config": {
            "block_out_channels": [8, 8, 16],
            "layers_per_block": 1,
            "latent_channels": 6,
            "norm_num_groups": 4,
            "sample_size": 32,
        },
        "latent_patch_size": 2,
        "max_latent_size": 12,
        "vit_max_num_patch_per_side": 16,
        **SPECIAL_TOKENS,
    }
    fields.update(changes)
    return UniMedVLConfig(**fields)


def tiny_model(seed: int = 0, **changes) -> UniMedVLForConditionalGeneration:
    """A random float32 model in eval mode. `llm2vae` is given weights, since it starts at zero."""
    torch.manual_seed(seed)
    model = UniMedVLForConditionalGeneration(tiny_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                spread = 0.3 if parameter.dim() > 1 else 0.1
                offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(offset + spread * torch.randn_like(parameter) / max(parameter.shape[-1], 1) ** 0.25)
    model.generation_config.eos_token_id = model.config.eos_token_id
    model.generation_config.pad_token_id = model.config.pad_token_id
    return model
