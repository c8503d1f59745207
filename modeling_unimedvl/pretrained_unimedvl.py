"""What all parts of the model share: capabilities, initialization, and the modules that initialization must know."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .adapters_unimedvl import FixedLinear
from .compilation_unimedvl import RegionalCompilationMixin
from .configuration_unimedvl import UniMedVLConfig
from .flow_unimedvl import sinusoidal_position_table


class ZeroInitLinear(nn.Linear):
    """A linear layer that starts at zero, so an untrained model predicts a velocity of 0 (BAGEL's `llm2vae`)."""


class PositionEmbedding(nn.Module):
    """Frozen sin-cos table, looked up by grid position."""

    def __init__(self, side: int, hidden_size: int):
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(sinusoidal_position_table(hidden_size, side), requires_grad=False)

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        return self.pos_embed[position_ids.to(self.pos_embed.device)]


class UniMedVLPreTrainedModel(RegionalCompilationMixin, PreTrainedModel):
    """Capabilities shared by all parts."""

    config_class = UniMedVLConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    output_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["UniMedVLDecoderLayer", "SiglipEncoderLayer", "AutoencoderKL"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def get_encoder(self, modality: str | None = None):
        """The ViT for `modality="image"`; otherwise as in transformers."""
        vision = getattr(self.base_model, "vit_model", None)
        return vision if modality == "image" and vision is not None else super().get_encoder(modality)

    def set_encoder(self, encoder, modality: str | None = None):
        """Inverse of `get_encoder`."""
        if modality == "image" and hasattr(self.base_model, "vit_model"):
            self.base_model.vit_model = encoder
        else:
            super().set_encoder(encoder, modality)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, ZeroInitLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PositionEmbedding):
            init.copy_(module.pos_embed, sinusoidal_position_table(module.pos_embed.shape[1], module.side))
        elif isinstance(module, FixedLinear):
            module.initialize(0.02)
        else:
            super()._init_weights(module)
