"""The vision part: a SigLIP transformer over images of any size, and the connector to the language model.

Shape legend: I images, P patches, D hidden.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoder

from .attention_unimedvl import AttentionPieces, spans_of_lengths, takes_spans
from .configuration_unimedvl import UniMedVLConfig, UniMedVLVisionConfig
from .flow_unimedvl import image_of_cells
from .pretrained_unimedvl import UniMedVLPreTrainedModel


class UniMedVLVisionEmbeddings(nn.Module):
    """Linear patch embedding plus a learned table indexed by grid position."""

    def __init__(self, config: UniMedVLVisionConfig, num_positions: int):
        super().__init__()
        assert isinstance(config.patch_size, int)
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(num_positions, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values.to(self.position_embedding.weight.dtype))
        return patches + self.position_embedding(position_ids.to(patches.device))


class UniMedVLVisionAttention(SiglipAttention):
    """SigLIP attention that takes spans in the place of a mask."""

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, **kwargs):
        """As in SigLIP; the weights are None for spans."""
        if not isinstance(attention_mask, AttentionPieces):
            return super().forward(hidden_states, attention_mask, **kwargs)
        query_BHPE, key_BHPE, value_BHPE = (
            projection(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        (mixed_BPHE,) = attention_mask.attend(self, query_BHPE, key_BHPE, value_BHPE, self.scale, dropout)
        return self.out_proj(mixed_BPHE.flatten(2)), None


class UniMedVLVisionModel(UniMedVLPreTrainedModel):
    """SigLIP encoder over images of any size; each image attends only to itself."""

    config_class = UniMedVLVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: UniMedVLVisionConfig, num_positions: int):
        super().__init__(config)
        self.embeddings = UniMedVLVisionEmbeddings(config, num_positions)
        self.encoder = SiglipEncoder(config)  # type: ignore[arg-type]  # SigLIP itself passes a vision configuration
        for layer in self.encoder.layers:
            # Another way to attend over the same weights: nothing is made or drawn anew.
            layer.self_attn.__class__ = UniMedVLVisionAttention
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        lengths: list[int] | torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = False,
    ) -> torch.Tensor | BaseModelOutput:
        """Encode patches (sum of lengths, patch values) to features (sum of lengths, vision hidden size).

        Args:
            pixel_values: patches of all images, one image after another.
            position_ids: rows of the position table.
            lengths: patches of each image; a tensor where a compiler does not see their values.
            output_hidden_states: return the states before the layers and after each one, laid out like the features.
            output_attentions: return the weights of each layer, (1, heads, P, P), over all images; eager attention
                only.
            return_dict: return a `BaseModelOutput` instead of the features alone.
        """
        patches_PD = self.embeddings(pixel_values, position_ids)
        # All images lie in one row, so that none is padded to the size of another.
        hidden_1PD = patches_PD[None]
        mask: Any
        if takes_spans(self.config._attn_implementation) and not isinstance(lengths, torch.Tensor):
            mask = spans_of_lengths(lengths)
        else:
            mask = self._separating_mask(patches_PD, torch.as_tensor(lengths).to(patches_PD.device, non_blocking=True))
        attentions: list[torch.Tensor] = []
        hidden_states: list[torch.Tensor] = []
        hooks = []
        layers: list[Any] = list(self.encoder.layers)
        if output_hidden_states:
            hidden_states.append(hidden_1PD)
            hooks = [
                layer.register_forward_hook(lambda _, args, output: hidden_states.append(output)) for layer in layers
            ]
        if output_attentions:
            hooks += [
                layer.self_attn.register_forward_hook(lambda _, args, output: attentions.append(output[1]))
                for layer in layers
            ]
        encoded_1PD = self.encoder(hidden_1PD, attention_mask=mask).last_hidden_state
        for hook in hooks:
            hook.remove()

        features_PD = self.post_layernorm(encoded_1PD[0])
        if not return_dict:
            return features_PD
        return BaseModelOutput(
            last_hidden_state=features_PD,
            hidden_states=tuple(states_1PD[0] for states_1PD in hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _separating_mask(self, patches_PD: torch.Tensor, lengths_I: torch.Tensor) -> Any:
        if lengths_I.shape[0] == 1:
            return None
        image_P = image_of_cells(lengths_I, patches_PD.shape[0])

        def same_image(batch, head, query, key):
            return image_P[query] == image_P[key]

        return create_bidirectional_mask(self.config, patches_PD[None], None, and_mask_function=same_image)


class Connector(nn.Module):
    """Two layers from the ViT's width to the language model's."""

    def __init__(self, config: UniMedVLConfig):
        super().__init__()
        hidden_size = config.text_config.hidden_size
        self.fc1 = nn.Linear(config.vision_config.hidden_size, hidden_size)
        self.activation_fn = ACT2FN[config.connector_act]
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(features)))
