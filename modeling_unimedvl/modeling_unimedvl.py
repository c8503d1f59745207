"""UniMedVL: SigLIP vision transformer, FLUX autoencoder and a Qwen2 Mixture-of-Transformers in one model.

Understanding and generation tokens share every attention layer but own separate norms, projections and MLPs (UniMedVL
section 3.3, after BAGEL). Both kinds travel as two contiguous streams and are joined in sequence order only for
attention, so a pass without latents never touches a generation weight. Text is predicted by cross entropy, images by
rectified flow on autoencoder latents.

Shape legend: B batch, S sequence, K keys, D hidden, H heads, G key/value heads, E head dimension, U understanding
tokens, T generation (latent) tokens, N noised tokens, M latent images, I ViT images, P patches, L latent token
dimension, C latent channels.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward
from transformers.utils import ModelOutput, can_return_tuple

from .adapters_unimedvl import fix_linear_layers, refuse_activated_adapters
from .attention_unimedvl import AttentionPieces, attend_to_all, attention_spans, takes_spans
from .blocks_unimedvl import (
    BlockKind,
    BlockLayout,
    block_layout,
    build_attention_mask,
    rope_position_ids,
)
from .caches_unimedvl import first_position, growing_cache, layer_cache, note_images
from .configuration_unimedvl import UniMedVLConfig, UniMedVLTextConfig
from .engines_unimedvl import UniMedVLEngineMixin, runs_in_engine
from .flow_unimedvl import (
    TASK_PRESETS,
    TIME_FEATURES,
    check_grids,
    grid_position_ids,
    grids_position_ids,
    timestep_features,
    unpatchify_latents,
)
from .generation_unimedvl import UniMedVLGenerationMixin
from .layers_unimedvl import UniMedVLMLP, UniMedVLRMSNorm, UniMedVLRotaryEmbedding, add_residual, rotated
from .loading_unimedvl import GENERATION_WEIGHTS, UniMedVLLoadingMixin, diffusers_module
from .losses_unimedvl import flow_loss, label_losses, mean_over, weighted_mean
from .noised_blocks_unimedvl import BlockAttention, NoisedBlocks
from .noising_unimedvl import flow_tokens
from .packing_unimedvl import named_samples, samples_of_restarts, sequence_bounds, shared_image_positions
from .plans_unimedvl import PackPlan, TokenRows, labeled_rows
from .pretrained_unimedvl import PositionEmbedding, UniMedVLPreTrainedModel, ZeroInitLinear
from .vision_unimedvl import Connector, UniMedVLVisionModel


class ExpertRouting(NamedTuple):
    """Routing of the tokens of a (B, S) batch: rows of the flattened batch for each expert, and the inverse order."""

    und_index_U: torch.Tensor
    gen_index_T: torch.Tensor
    restore_index: torch.Tensor
    batch_size: int

    @classmethod
    def from_rows(cls, rows: TokenRows, batch_size: int) -> "ExpertRouting":
        return cls(rows.und_U, rows.gen_T, rows.restore, batch_size)

    def split(self, states_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(self.gen_index_T):
            # Rows stay whole: activated LoRA counts from their ends.
            return states_BS, states_BS[:, :0]
        flat = states_BS.flatten(0, 1)
        return flat[self.und_index_U.to(flat.device)], flat[self.gen_index_T.to(flat.device)]

    def join(self, und_U: torch.Tensor, gen_T: torch.Tensor) -> torch.Tensor:
        if not len(self.gen_index_T):
            # The sum of nothing is zero, and lets the other expert's parameters have gradients.
            return und_U + gen_T.sum().to(und_U.device)
        # With the layers spread over devices, the two experts' parts can come from different ones.
        together = torch.cat([und_U, gen_T.to(und_U.device)])
        return together[self.restore_index.to(und_U.device)].unflatten(0, (self.batch_size, -1))


class MarkerRouting(NamedTuple):
    """Routing of blocks whose two markers come first in each of R rows: both kinds of token stay contiguous.

    After the last layer nobody looks at the markers any more, so that they need not be kept.
    """

    rows: int
    keeps_markers: bool

    def split(self, states_RSD: list[torch.Tensor]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Streams of all rows, of states given in pieces of neighboring rows."""

        def stream(parts: list[torch.Tensor]) -> torch.Tensor:
            return (torch.cat(parts) if len(parts) > 1 else parts[0]).flatten(0, 1)

        markers = stream([part[:, :2] for part in states_RSD]) if self.keeps_markers else None
        return markers, stream([part[:, 2:] for part in states_RSD])

    def join(self, und_U: torch.Tensor, gen_T: torch.Tensor) -> torch.Tensor:
        gen_T = gen_T.to(und_U.device)
        return torch.cat([part.unflatten(0, (self.rows, -1)) for part in (und_U, gen_T)], dim=1)


class UniMedVLAttention(nn.Module):
    """Joint attention of both experts: projection, per-head norm, RoPE, one softmax over all tokens."""

    def __init__(self, config: UniMedVLTextConfig, layer_idx: int, visual_gen: bool):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        assert config.num_key_value_heads is not None
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        query_size = config.num_attention_heads * self.head_dim
        key_size = config.num_key_value_heads * self.head_dim
        for suffix in ("", "_moe_gen") if visual_gen else ("",):
            self.add_module(f"q_proj{suffix}", nn.Linear(config.hidden_size, query_size, bias=True))
            self.add_module(f"k_proj{suffix}", nn.Linear(config.hidden_size, key_size, bias=True))
            self.add_module(f"v_proj{suffix}", nn.Linear(config.hidden_size, key_size, bias=True))
            self.add_module(f"o_proj{suffix}", nn.Linear(query_size, config.hidden_size, bias=False))
            self.add_module(f"q_norm{suffix}", UniMedVLRMSNorm(self.head_dim, eps=config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", UniMedVLRMSNorm(self.head_dim, eps=config.rms_norm_eps))

    def _project_understanding(self, und_UD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads = (-1, self.head_dim)
        query = self.q_norm(self.q_proj(und_UD).unflatten(-1, heads))
        key = self.k_norm(self.k_proj(und_UD).unflatten(-1, heads))
        return query, key, self.v_proj(und_UD).unflatten(-1, heads)

    def _project_generation(self, gen_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads = (-1, self.head_dim)
        query = self.q_norm_moe_gen(self.q_proj_moe_gen(gen_TD).unflatten(-1, heads))
        key = self.k_norm_moe_gen(self.k_proj_moe_gen(gen_TD).unflatten(-1, heads))
        return query, key, self.v_proj_moe_gen(gen_TD).unflatten(-1, heads)

    def forward(
        self,
        und_UD: torch.Tensor,
        gen_TD: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        attention_mask: torch.Tensor | AttentionPieces | None,
        routing: ExpertRouting | MarkerRouting | None,
        past_key_values: Cache | CacheLayerMixin | None = None,
        freeze_und: bool = False,
        **kwargs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        states: tuple[torch.Tensor, ...] = self._project_understanding(und_UD)
        if freeze_und:
            states = tuple(state.detach() for state in states)
        if routing is not None:
            assert gen_TD is not None, "a routing comes with generation tokens"
            states = tuple(
                routing.join(und, gen) for und, gen in zip(states, self._project_generation(gen_TD), strict=True)
            )
        query_BSHE, key_BSGE, value_BSGE = states
        if position_embeddings is not None:
            query_BSHE, key_BSGE = (rotated(part, *position_embeddings) for part in (query_BSHE, key_BSGE))
        query_BHSE, key_BGSE, value_BGSE = (part.transpose(1, 2) for part in (query_BSHE, key_BSGE, value_BSGE))
        if isinstance(past_key_values, CacheLayerMixin):
            key_BGSE, value_BGSE = past_key_values.update(key_BGSE, value_BGSE)
        elif past_key_values is not None:
            key_BGSE, value_BGSE = past_key_values.update(key_BGSE, value_BGSE, self.layer_idx)
        dropout, weights = self.config.attention_dropout if self.training else 0.0, None
        if isinstance(attention_mask, AttentionPieces):
            pieces = attention_mask.attend(self, query_BHSE, key_BGSE, value_BGSE, self.scaling, dropout)
        elif attention_mask is None and query_BHSE.shape[2] == 1 and self.config._attn_implementation == "sdpa":
            pieces = [attend_to_all(self, query_BHSE, key_BGSE, value_BGSE, self.scaling, dropout)]
        else:
            attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
            mixed_BSHE, weights = attend(
                self,
                query_BHSE,
                key_BGSE,
                value_BGSE,
                attention_mask,
                dropout=dropout,
                scaling=self.scaling,
                **kwargs,
            )
            # Engines with a cache of their own return rows of all heads.
            pieces = [mixed_BSHE.reshape(query_BSHE.shape)]
        mixed = [piece.flatten(2) for piece in pieces]
        if routing is None:
            return self.o_proj(mixed[0]), None, weights
        und, gen = routing.split(mixed) if isinstance(routing, MarkerRouting) else routing.split(mixed[0])
        return None if und is None else self.o_proj(und), self.o_proj_moe_gen(gen), weights


class UniMedVLDecoderLayer(GradientCheckpointingLayer):
    """One layer with two full sets of norms, projections and MLPs around the joint attention."""

    def __init__(self, config: UniMedVLTextConfig, layer_idx: int, visual_gen: bool):
        super().__init__()
        self.config = config
        self.self_attn = UniMedVLAttention(config, layer_idx, visual_gen)
        self.mlp = UniMedVLMLP(config)
        self.input_layernorm = UniMedVLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = UniMedVLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if visual_gen:
            self.mlp_moe_gen = UniMedVLMLP(config)
            self.input_layernorm_moe_gen = UniMedVLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.post_attention_layernorm_moe_gen = UniMedVLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        und_UD: torch.Tensor,
        gen_TD: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        attention_mask: torch.Tensor | AttentionPieces | None,
        routing: ExpertRouting | MarkerRouting | None,
        past_key_values: Cache | CacheLayerMixin | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        freeze_und = self.training and self.config.freeze_und
        mixed_UD, mixed_TD, weights = self.self_attn(
            self.input_layernorm(und_UD),
            None if routing is None else self.input_layernorm_moe_gen(gen_TD),
            position_embeddings,
            attention_mask,
            routing,
            past_key_values,
            freeze_und,
            **kwargs,
        )
        attention, finished_UD = self.self_attn, None
        if mixed_UD is not None:
            und_UD = add_residual(und_UD, mixed_UD, attention, attention.o_proj)
            changed_UD = self.mlp(self.post_attention_layernorm(und_UD))
            und_UD = add_residual(und_UD, changed_UD, self.mlp, self.mlp.down_proj)
            finished_UD = und_UD.detach() if freeze_und else und_UD
        if routing is not None:
            assert gen_TD is not None and mixed_TD is not None
            gen_TD = add_residual(gen_TD, mixed_TD, attention, attention.o_proj_moe_gen)
            changed_TD = self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen_TD))
            gen_TD = add_residual(gen_TD, changed_TD, self.mlp_moe_gen, self.mlp_moe_gen.down_proj)
        return finished_UD, gen_TD, weights


@dataclass
class UniMedVLModelOutput(ModelOutput):
    """Output of `UniMedVLModel`.

    Attributes:
        last_hidden_state: (B, S, D) after the final norm of each token's expert.
        past_key_values: the cache, when `use_cache`.
        hidden_states: tuple of (B, S, D), the embeddings and every layer, when requested.
        attentions: tuple of (B, H, S, K), when requested (eager attention only).
        velocity: (N, L) predicted flow velocity of the noised tokens, in sequence order.
        flow_target: (N, L) `noise - latent` of the same tokens.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    velocity: torch.Tensor | None = None
    flow_target: torch.Tensor | None = None


@dataclass
class UniMedVLOutput(ModelOutput):
    """Output of `UniMedVLForConditionalGeneration`.

    Attributes:
        loss: `ce_loss_weight * ce_loss + mse_loss_weight * mse_loss` over the parts that are present.
        ce_loss: mean cross entropy of the labeled tokens.
        mse_loss: mean squared velocity error of the noised tokens.
        logits: (B, S, V), or (number of labels, V) for a pack with labels; None with `skip_logits`.
        label_losses: cross entropy of each label, float32 (number of labels,), without gradients.
        velocity, flow_target, past_key_values, hidden_states, attentions: see `UniMedVLModelOutput`.
    """

    loss: torch.Tensor | None = None
    ce_loss: torch.Tensor | None = None
    mse_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    label_losses: torch.Tensor | None = None
    velocity: torch.Tensor | None = None
    flow_target: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class UniMedVLTextModel(UniMedVLPreTrainedModel):
    """Qwen2 Mixture-of-Transformers over ready-made embeddings."""

    config_class = UniMedVLTextConfig
    input_modalities = ("text",)

    def __init__(self, config: UniMedVLTextConfig, visual_gen: bool = True):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [UniMedVLDecoderLayer(config, index, visual_gen) for index in range(config.num_hidden_layers)]
        )
        self.norm = UniMedVLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if visual_gen:
            self.norm_moe_gen = UniMedVLRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = UniMedVLRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | AttentionPieces | None,
        routing: ExpertRouting | None = None,
        past_key_values: Cache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        input_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, tuple | None, tuple | None]:
        """Run all layers.

        Args:
            inputs_embeds: (B, S, D).
            position_ids: RoPE ids, int64 (B, S).
            input_ids: int64 (B, S), embedded where there are no `inputs_embeds`.
            attention_mask: ready mask in the form of the attention implementation, pieces of attention that need no
                mask, or None for plain causal.
            routing: which tokens are generation tokens; None when there are none.

        Returns:
            final hidden states (B, S, D), all hidden states or None, all attention weights or None.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        position_embeddings = self.rotary_emb.turns(inputs_embeds, position_ids)
        und, gen = (inputs_embeds, None) if routing is None else routing.split(inputs_embeds)
        if self.config.freeze_und and self.training:
            und = und.detach()
        hidden_states = [inputs_embeds] if output_hidden_states else None
        attentions: list[torch.Tensor] | None = [] if output_attentions else None
        for index, layer in enumerate(self.layers):
            compiled = layer._compiled_call_impl is not None
            cache = layer_cache(past_key_values, index) if compiled else past_key_values
            und, gen, weights = layer(
                und, gen, position_embeddings, attention_mask, routing, past_key_values=cache, **kwargs
            )
            if attentions is not None:
                attentions.append(weights)
            if hidden_states is not None and layer is not self.layers[-1]:
                hidden_states.append(und if routing is None else routing.join(und, gen))
        final = self.norm(und)
        if self.config.freeze_und and self.training:
            final = final.detach()
        if routing is not None:
            final = routing.join(final, self.norm_moe_gen(gen))
        if hidden_states is not None:
            hidden_states.append(final)
        all_hidden_states = None if hidden_states is None else tuple(hidden_states)
        return final, all_hidden_states, None if attentions is None else tuple(attentions)

    def denoise(
        self, und_UD: torch.Tensor, gen_TD: torch.Tensor, attention: BlockAttention, rows: int
    ) -> torch.Tensor:
        """Run all layers over noised blocks, and return the final states (T, D) of their latent tokens.

        Args:
            und_UD, gen_TD: markers, two for each row, and latent tokens of all rows.
            attention: to contexts whose keys were turned back by the RoPE id of the block, so that nothing rotates
                here: rotating queries and keys by one angle leaves their products as they are.
            rows: R.
        """
        for index, layer in enumerate(self.layers):
            # A compiled layer serves all, the last one too.
            keeps_markers = layer is not self.layers[-1] or layer._compiled_call_impl is not None
            routing = MarkerRouting(rows, keeps_markers)
            und_UD, gen_TD, _ = layer(und_UD, gen_TD, None, attention.layer(index), routing)
        return self.norm_moe_gen(gen_TD)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of the flow time, through a two-layer MLP."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self.mlp(timestep_features(timesteps).to(dtype))


class UniMedVLModel(UniMedVLLoadingMixin, UniMedVLEngineMixin, UniMedVLPreTrainedModel):
    """All parts but the language head: embeds text, images and latents, runs the Mixture-of-Transformers."""

    omitted_prefix = "model."

    def __init__(self, config: UniMedVLConfig):
        by_engine = runs_in_engine(config)
        if by_engine:
            config.visual_gen = False
        super().__init__(config)
        hidden_size = config.text_config.hidden_size
        self.language_model = UniMedVLTextModel(config.text_config, visual_gen=config.visual_gen)
        num_positions = config.vision_config.num_positions or config.vit_max_num_patch_per_side**2
        self.vit_model = UniMedVLVisionModel(config.vision_config, num_positions)
        self.connector = Connector(config)
        self.vit_pos_embed = PositionEmbedding(config.vit_max_num_patch_per_side, hidden_size)
        if config.visual_gen:
            self.vae2llm = nn.Linear(config.latent_dim, hidden_size)
            self.llm2vae = ZeroInitLinear(hidden_size, config.latent_dim)
            self.time_embedder = TimestepEmbedder(hidden_size)
            self.latent_pos_embed = PositionEmbedding(config.max_latent_size, hidden_size)
            autoencoder = diffusers_module("diffusers").AutoencoderKL
            self.vae = autoencoder(**config.vae_config.autoencoder_arguments())
            fix_linear_layers(self.vae)
        unused = [] if config.visual_gen else GENERATION_WEIGHTS
        # An engine loads the head by itself, but by this list.
        self._keys_to_ignore_on_load_unexpected = unused if by_engine else [r"^lm_head\.", *unused]
        self.freeze_fixed_parts()
        self.post_init()

    def freeze_fixed_parts(self):
        """Take the position tables and the autoencoder out of training, as every stage of the recipe does."""
        self.vit_pos_embed.requires_grad_(False)
        if self.config.visual_gen:
            self.latent_pos_embed.requires_grad_(False)
            self.vae.requires_grad_(False)

    def get_input_embeddings(self):
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value):
        self.language_model.embed_tokens = value

    def require_generation(self):
        """Raise a ValueError when the model was loaded for understanding only."""
        if not self.config.visual_gen:
            raise ValueError(
                "This model was loaded for understanding only (visual_gen=False): reload it without that argument "
                "to use images as VAE latents or to generate images."
            )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Features of ViT patches.

        Args:
            pixel_values: float (sum of patches, patch_size**2 * channels), rows row-major over each image's patches,
                values ordered (row, column, channel), in [-1, 1].
            image_grid_thw: int64 (I, 3), (1, rows, columns) in patches.
            output_hidden_states, output_attentions: return those of the ViT too, see `UniMedVLVisionModel`.

        Returns:
            `last_hidden_state` (sum of patches, vision hidden size), the ViT's features, and `pooler_output`, the
            language-model input rows (patches, D) of each image.

        Raises:
            ValueError: if a grid exceeds the position table or the counts disagree.
        """
        self.warn_of_causal_images(pixel_values.device)
        vision = self.config.vision_config
        if output_hidden_states is None:
            output_hidden_states = bool(getattr(vision, "output_hidden_states", False))
        if output_attentions is None:
            output_attentions = bool(vision.output_attentions)
        rows_PD, encoded = self._vision_rows(pixel_values, image_grid_thw, output_hidden_states, output_attentions)
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.last_hidden_state,
            pooler_output=rows_PD.split(image_grid_thw.prod(dim=-1).tolist()),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _vision_rows(
        self,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        grids: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[torch.Tensor, BaseModelOutput]:
        """Language-model input rows (sum of patches, D) of all images, and the ViT's output. `grids` are those of
        `image_grid_thw` where the host knows them."""
        side, interpolate = self.config.vit_max_num_patch_per_side, self.config.interpolate_pos
        lengths: list[int] | torch.Tensor = image_grid_thw.prod(dim=-1)
        if not torch.compiler.is_compiling():
            # What a compiler could not decide is checked where values are known.
            grids = image_grid_thw[:, 1:].tolist() if grids is None else grids
            lengths = [rows * columns for rows, columns in grids]
            check_grids(grids, pixel_values.shape[0], side)
        position_ids = grids_position_ids(image_grid_thw[:, 1:], pixel_values.shape[0], side, interpolate)
        encoded = self.vit_model(
            pixel_values, position_ids, lengths, output_hidden_states, output_attentions, return_dict=True
        )
        rows_PD = self.connector(encoded.last_hidden_state)
        return rows_PD + self.vit_pos_embed(position_ids).to(rows_PD), encoded

    @torch.no_grad()
    def encode_latents(
        self,
        images: list[torch.Tensor],
        noise: list[torch.Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sample_mode: str = "sample",
    ) -> list[torch.Tensor]:
        """Encode images to scaled latents; images of equal size share a pass, others never see each other's padding.

        Args:
            images: float (3, H, W) each, in [-1, 1], sides multiples of the pixels per latent token.
            noise: posterior noise (C, H / downsample, W / downsample) for each image; overrides `generator`.
            generator: one for all draws, or one for each image.
            sample_mode: "sample" draws from the posterior as the reference does, "mode" takes its mean.

        Returns:
            float32 latents (C, H / downsample, W / downsample), `scaling_factor * (z - shift_factor)`.

        Raises:
            ValueError: for another sample_mode or noise of a wrong count or shape.
        """
        self.require_generation()
        randn_tensor = diffusers_module("diffusers.utils.torch_utils").randn_tensor
        if sample_mode not in ("sample", "mode"):
            raise ValueError(f"vae_sample_mode must be 'sample' or 'mode', not {sample_mode!r}.")
        if noise is not None and len(noise) != len(images):
            raise ValueError(
                f"vae_noise has {len(noise)} tensors for {len(images)} conditioning images: give one each."
            )
        latents = []
        for index, (mean, deviation) in enumerate(self.encode_posteriors(images)):
            draw = torch.zeros_like(mean)
            if sample_mode == "sample" and noise is not None:
                draw = noise[index]
                if draw.shape != mean.shape:
                    raise ValueError(
                        f"vae_noise[{index}] has shape {tuple(draw.shape)}, expected {tuple(mean.shape)}."
                    )
            elif sample_mode == "sample":
                source = generator[index] if isinstance(generator, list) else generator
                draw = randn_tensor((1, *mean.shape), generator=source, device=mean.device)[0]
            latents.append(self.posterior_latent(mean, deviation, draw))
        return latents

    @torch.no_grad()
    def encode_posteriors(self, images: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Mean and deviation of each image's posterior, float32 (C, H / downsample, W / downsample), unscaled.

        Args:
            images: see `encode_latents`.
        """
        self.require_generation()
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(tuple(image.shape), []).append(index)
        posteriors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for indices in by_size.values():
            pixels = self._for_autoencoder(torch.stack([images[index] for index in indices]))
            batch = self.vae.encode(pixels).latent_dist
            for row, index in enumerate(indices):
                posteriors[index] = (batch.mean[row].float(), batch.std[row].float())
        return [posteriors[index] for index in range(len(images))]

    def posterior_latent(self, mean: torch.Tensor, deviation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The scaled latent, float32 (C, h, w), that normal noise picks from a posterior: `scaling_factor *
        (mean + deviation * noise - shift_factor)`."""
        config = self.config.vae_config
        return config.scaling_factor * (mean + deviation * noise.to(mean) - config.shift_factor)

    @torch.no_grad()
    def decode_latents(self, latents: list[torch.Tensor]) -> list[torch.Tensor]:
        """Decode scaled latents (C, h, w) to float32 pixels (3, h * downsample, w * downsample), about [-1, 1]."""
        self.require_generation()
        config = self.config.vae_config
        pixels: dict[int, torch.Tensor] = {}
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, latent in enumerate(latents):
            by_size.setdefault(tuple(latent.shape), []).append(index)
        for indices in by_size.values():
            scaled = torch.stack([latents[index] for index in indices])
            # Convolutions are faster with channels last, on processors too, and keep the order of what they are given.
            # Not in encoding: its other order of sums moves gradients of training beyond the golden tolerance.
            shifted = scaled / config.scaling_factor + config.shift_factor
            raw = self._for_autoencoder(shifted, torch.channels_last)
            decoded = self.vae.decode(raw).sample.float()
            for row, index in enumerate(indices):
                pixels[index] = decoded[row]
        return [pixels[index] for index in range(len(latents))]

    def _for_autoencoder(
        self, tensor: torch.Tensor, memory_format: torch.memory_format = torch.preserve_format
    ) -> torch.Tensor:
        # Not the autoencoder's own `device` and `dtype`: they walk through all its modules at every call. Offloaded
        # weights lie on the meta device until a hook brings them in, together with their inputs.
        weight = self.vae.encoder.conv_in.weight
        device = tensor.device if weight.is_meta else weight.device
        return tensor.to(device, weight.dtype, memory_format=memory_format)

    def embed_latent_tokens(
        self,
        tokens_TL: torch.Tensor,
        timesteps_M: torch.Tensor,
        image_index_T: torch.Tensor,
        position_ids_T: torch.Tensor,
    ) -> torch.Tensor:
        """Language-model input rows (T, D) of latent tokens.

        Args:
            tokens_TL: latent tokens, noised or clean.
            timesteps_M: flow time in [0, 1] of each image (0 = clean).
            image_index_T: the image of each token.
            position_ids_T: rows of the latent position table.
        """
        dtype = self.language_model.norm.weight.dtype
        embeds_TD = self.vae2llm(tokens_TL.to(dtype))
        time_TD = self.time_embedder(timesteps_M, dtype)[image_index_T]
        return embeds_TD + time_TD.to(embeds_TD) + self.latent_pos_embed(position_ids_T).to(embeds_TD)

    def token_kinds(self, input_ids_BS: torch.Tensor) -> torch.Tensor:
        """`mm_token_type_ids` read off the placeholders: ViT patches and clean latents."""
        vit = (input_ids_BS == self.config.image_token_id).long()
        return vit + 2 * (input_ids_BS == self.config.latent_token_id).long()

    def embedded_kinds(self, inputs_embeds_BSD: torch.Tensor) -> torch.Tensor:
        """`mm_token_type_ids` of embeddings in which the placeholders of images are still embedded as tokens."""
        ids = torch.tensor([self.config.image_token_id, self.config.latent_token_id], device=inputs_embeds_BSD.device)
        vit_D, latent_D = self.get_input_embeddings()(ids)
        latent_BS = (inputs_embeds_BSD == latent_D).all(dim=-1)
        return (inputs_embeds_BSD == vit_D).all(dim=-1).long() + 2 * latent_BS

    def latent_grid(self, tokens_TL: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Latent tokens (rows * columns, L) as a latent (C, h, w)."""
        return unpatchify_latents(tokens_TL, rows, columns, self.config.latent_patch_size)

    def latent_position_ids(self, rows: int, columns: int) -> torch.Tensor:
        """Rows of the latent position table for a grid of latent tokens, int64 (rows * columns,)."""
        return grid_position_ids(rows, columns, self.config.max_latent_size, self.config.interpolate_pos)

    def _attention_mask(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict | None,
        past_key_values: Cache | None,
        layout: BlockLayout | None,
        plan: PackPlan | None,
    ) -> torch.Tensor | AttentionPieces | None:
        config = self.config.text_config
        if isinstance(attention_mask, dict):
            return attention_mask["full_attention"]
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        if layout is not None and takes_spans(config._attn_implementation) and not torch.compiler.is_compiling():
            past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
            # A cache of fixed size keeps its shapes, so that what reads it can be compiled.
            if past_key_values is None or not past_key_values.is_compileable:
                if plan is not None and attention_mask is None and past_key_values is None:
                    spans = plan.spans
                else:
                    spans = attention_spans(layout, attention_mask, int(past_length))
                if spans is not None:
                    return spans
        return build_attention_mask(config, inputs_embeds, attention_mask, past_key_values, layout)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        latent_pixel_values: torch.Tensor | None = None,
        latent_image_sizes: torch.Tensor | None = None,
        latent_values: list[torch.Tensor] | None = None,
        vae_noise: list[torch.Tensor] | None = None,
        vae_sample_mode: str = "sample",
        generator: torch.Generator | list[torch.Generator] | None = None,
        block_ids: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        flow_noise: torch.Tensor | None = None,
        flow_timesteps: torch.Tensor | None = None,
        plan: PackPlan | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> UniMedVLModelOutput:
        """Merge text, ViT and latent inputs and run the language model. Arguments: see
        `UniMedVLForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if position_ids is not None and position_ids.dim() == 3:
            # What `get_rope_index` made: the three are equal.
            position_ids = position_ids[0]
        batch_size, length = inputs_embeds.shape[:2]
        has_latents = latent_pixel_values is not None or latent_values is not None
        has_layout = pixel_values is not None or has_latents or block_ids is not None or sample_ids is not None
        rows = None
        if plan is not None:
            plan.require_fit(batch_size, length)
            rows, has_layout = plan.rows, True
        if mm_token_type_ids is None and has_layout:
            mm_token_type_ids = (
                self.embedded_kinds(inputs_embeds) if input_ids is None else self.token_kinds(input_ids)
            )
        if mm_token_type_ids is not None:
            # PEFT puts virtual tokens before a prompt, as embeddings without kinds: they are text.
            virtual = length - mm_token_type_ids.shape[1] if input_ids is None else 0
            mm_token_type_ids = F.pad(mm_token_type_ids.to(inputs_embeds.device), (virtual, 0))
        if mm_token_type_ids is not None and length > 1:
            # Embeddings may hold the features of ViT images already. A compiler cannot look, and takes them for such.
            has_pixels, looks = pixel_values is not None or input_ids is None, not torch.compiler.is_compiling()
            if looks:
                rows = TokenRows.from_kinds(mm_token_type_ids) if rows is None else rows
                self._require_images(rows, has_pixels, has_latents)
            if input_ids is None and not has_layout:
                has_layout = rows is None or rows.vit_P.shape[0] + rows.gen_T.shape[0] > 0
        layout = None
        if plan is not None:
            layout, position_ids = plan.layout, plan.position_ids_BS
        elif has_layout:
            assert mm_token_type_ids is not None
            layout = block_layout(mm_token_type_ids, block_ids, sample_ids)
        holds_images = has_layout and (sample_ids is None or pixel_values is not None or has_latents)

        if pixel_values is not None:
            assert mm_token_type_ids is not None
            inputs_embeds = self._merge_image_features(
                inputs_embeds, mm_token_type_ids, pixel_values, image_grid_thw, rows, plan
            )
        elif self.training and self._vision_is_trained():
            inputs_embeds = inputs_embeds + self._idle_vision_term().to(inputs_embeds)

        routing, flow_target = None, None
        if has_latents:
            refuse_activated_adapters(self.language_model.layers[0])
        if has_latents or (self.training and self.config.visual_gen):
            self.require_generation()
            latents = [] if latent_values is None else list(latent_values)
            if latent_values is None and latent_pixel_values is not None:
                sizes = latent_image_sizes if plan is None else plan.latent_sizes
                latents = self.input_latents(latent_pixel_values, sizes, vae_noise, generator, vae_sample_mode)
            if not has_latents:
                rows = TokenRows.all_text(batch_size * length, inputs_embeds.device)
            elif rows is None:
                assert mm_token_type_ids is not None
                rows = TokenRows.from_kinds(mm_token_type_ids)
            routing = ExpertRouting.from_rows(rows, batch_size)
            flow = flow_tokens(self.config, latents, rows, flow_noise, flow_timesteps, check_times=plan is None)
            embeds_TD = self.embed_latent_tokens(
                flow.tokens_TL, flow.timesteps_M, flow.image_index_T, flow.position_ids_T
            )
            flow_target = flow.target_NL
            und_UD, _ = routing.split(inputs_embeds)
            inputs_embeds = routing.join(und_UD, embeds_TD.to(inputs_embeds))

        if past_key_values is None and block_ids is None and plan is None:
            layout, position_ids = self._packed_layout(layout, position_ids, attention_mask, inputs_embeds, kwargs)
        if use_cache is None:
            # Neither packs nor noised images are continued, recomputed layers would write to the cache twice, and an
            # exported graph returns tensors.
            recomputed = self.training and self.language_model.gradient_checkpointing
            noised = flow_target is not None and flow_target.shape[0] > 0
            packed = layout is not None and layout.sample_ids_BS is not None
            never = recomputed or noised or packed or torch.compiler.is_exporting()
            use_cache = self.config.text_config.use_cache and not never
        if use_cache and past_key_values is None:
            past_key_values = growing_cache(self.config.text_config)
        if position_ids is None:
            position_ids = self._default_position_ids(inputs_embeds, attention_mask, layout, past_key_values)
        mask = self._attention_mask(inputs_embeds, attention_mask, past_key_values, layout, plan)
        if holds_images and past_key_values is not None:
            assert layout is not None
            past_length = int(past_key_values.get_seq_length())
            note_images(past_key_values, position_ids, layout.block_ids_BS, attention_mask, past_length)
        if output_hidden_states is None:
            output_hidden_states = bool(getattr(self.config, "output_hidden_states", False))
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        hidden_BSD, hidden_states, attentions = self.language_model(
            inputs_embeds,
            position_ids,
            mask,
            routing=routing,
            past_key_values=past_key_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        velocity = None
        if routing is not None:
            _, gen_TD = routing.split(hidden_BSD)
            assert rows is not None
            velocity = self.llm2vae(gen_TD.flatten(0, -2)[rows.noised_N]).float()
        return UniMedVLModelOutput(
            last_hidden_state=hidden_BSD,
            past_key_values=past_key_values,
            hidden_states=hidden_states,
            attentions=attentions,
            velocity=velocity,
            flow_target=flow_target,
        )

    def _packed_layout(
        self,
        layout: BlockLayout | None,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        kwargs: dict,
    ) -> tuple[BlockLayout | None, torch.Tensor | None]:
        """Layout and RoPE ids with the samples that the caller did not name, see `packing_unimedvl`.

        Ids that the caller counted through images become those of the blocks.
        """
        implementation = self.config.text_config._attn_implementation
        ready_made = attention_mask is not None and (isinstance(attention_mask, dict) or attention_mask.dim() != 2)
        if ready_made or implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
            # Engines that keep keys and values themselves mark their requests alike, and build no mask here.
            return layout, position_ids
        batch_size, length = inputs_embeds.shape[:2]
        if position_ids is not None:
            position_ids = position_ids.to(inputs_embeds.device).expand(batch_size, -1)
        samples = None if layout is None else layout.sample_ids_BS
        if samples is None:
            samples = named_samples(kwargs, batch_size, length)
        if samples is None and position_ids is not None:
            samples = samples_of_restarts(position_ids, attention_mask, layout)
            if not torch.compiler.is_compiling() and not bool(samples.any()):
                samples = None
        if samples is None and layout is None:
            return None, position_ids
        if layout is None:
            kinds = torch.zeros(batch_size, length, dtype=torch.long, device=inputs_embeds.device)
            packed = block_layout(kinds, sample_ids_BS=samples)
        else:
            packed = replace(layout, sample_ids_BS=samples)
        derived = rope_position_ids(packed, attention_mask)
        position_ids = derived if position_ids is None else shared_image_positions(position_ids, derived, packed)
        if layout is None and "flash" in (implementation or ""):
            if attention_mask is not None and not bool((attention_mask > 0).all()):
                raise ValueError(
                    f"{implementation} cannot keep the samples of a padded pack apart: pack without padding or load "
                    "the model with attn_implementation='sdpa' or 'flex_attention'."
                )
            assert samples is not None
            kwargs |= sequence_bounds(samples)
            return None, position_ids
        return packed, position_ids

    def _require_images(self, rows: TokenRows, has_pixels: bool, has_latents: bool):
        """Raise a ValueError if the sequence holds image placeholders but no images came with it."""
        missing = [("pixel_values", not has_pixels and rows.vit_P.shape[0] > 0)]
        missing.append(("latent_pixel_values", not has_latents and rows.gen_T.shape[0] > 0))
        for name, is_missing in missing:
            if is_missing:
                raise ValueError(
                    f"The sequence holds image placeholders but {name} is missing: pass everything that the processor "
                    "returned."
                )

    def _merge_image_features(
        self,
        inputs_embeds: torch.Tensor,
        mm_token_type_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor | None,
        rows: TokenRows | None,
        plan: PackPlan | None,
    ) -> torch.Tensor:
        if image_grid_thw is None:
            raise ValueError("pixel_values needs image_grid_thw: pass both as the processor returned them.")
        grids = None if plan is None else plan.vit_grids
        features = self._vision_rows(pixel_values, image_grid_thw, grids=grids)[0].to(inputs_embeds)
        if torch.compiler.is_compiling():
            # A compiler does not know how many rows there are, and compares no enumeration with a tensor.
            where = mm_token_type_ids == int(BlockKind.VIT)
            return inputs_embeds.masked_scatter(where[..., None], features)
        rows = TokenRows.from_kinds(mm_token_type_ids) if rows is None else rows
        if rows.vit_P.shape[0] != features.shape[0]:
            raise ValueError(
                f"The images make {features.shape[0]} patches but the sequence holds {rows.vit_P.shape[0]} image "
                "placeholders: pass text and images from one processor call."
            )
        return inputs_embeds.flatten(0, 1).index_copy(0, rows.vit_P, features).view_as(inputs_embeds)

    def _vision_is_trained(self) -> bool:
        parts = (self.vit_model, self.connector)
        return any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def _idle_vision_term(self) -> torch.Tensor:
        """Zero that depends on every ViT weight: distributed training then reduces the same gradients on all ranks."""
        size = self.config.vision_config.num_channels * self.config.vision_config.patch_size**2
        blank = torch.zeros(1, size, device=self.vit_model.device)
        one = torch.ones(1, 3, dtype=torch.long, device=blank.device)
        return 0.0 * self._vision_rows(blank, one, grids=[(1, 1)])[0].sum()

    def input_latents(
        self,
        pixels: torch.Tensor,
        sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        noise: list[torch.Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sample_mode: str = "sample",
    ) -> list[torch.Tensor]:
        """Scaled latents of images as the processor returns them: cut to their sizes, then see `encode_latents`.

        Args:
            pixels: `latent_pixel_values`, float (M, 3, H, W).
            sizes: `latent_image_sizes`, int64 (M, 2), or the same on the host; nothing is cut when missing.
        """
        images = list(pixels)
        if sizes is not None:
            if len(sizes) != len(images):
                raise ValueError(
                    f"latent_image_sizes describes {len(sizes)} images but latent_pixel_values holds {len(images)}: "
                    "pass both as the processor returned them."
                )
            known = sizes.tolist() if isinstance(sizes, torch.Tensor) else sizes
            images = [image[:, :height, :width] for image, (height, width) in zip(images, known, strict=True)]
        return self.encode_latents(images, noise, generator, sample_mode)

    def _default_position_ids(self, inputs_embeds, attention_mask, layout, past_key_values) -> torch.Tensor:
        batch_size, length = inputs_embeds.shape[:2]
        usable = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2 else None
        if layout is None:
            layout = block_layout(torch.zeros(batch_size, length, dtype=torch.long, device=inputs_embeds.device))
        positions = rope_position_ids(layout, usable)
        if past_key_values is None:
            return positions
        return positions + first_position(past_key_values, usable, batch_size, length)

    def prefill_attention_mask(
        self, mm_token_type_ids: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache
    ):
        """Ready mask of a prompt for a cache of fixed size, by the same block rules as `forward`."""
        shape_only = torch.empty(*mm_token_type_ids.shape, 0, dtype=self.dtype, device=mm_token_type_ids.device)
        layout = block_layout(mm_token_type_ids)
        return build_attention_mask(self.config.text_config, shape_only, attention_mask, past_key_values, layout)

    def predict_velocity(self, tokens_MTL: torch.Tensor, time_D: torch.Tensor, blocks: NoisedBlocks) -> torch.Tensor:
        """Velocity (R, T, L) of noised image blocks that follow cached contexts.

        A block's two markers are placed before its latents: inside a bidirectional block with one RoPE id the order
        changes nothing, and it keeps both experts' tokens contiguous.

        Args:
            tokens_MTL: noised latent tokens of M images, float32; every image is a block in R / M rows, one for each
                branch of guidance.
            time_D: embedding of the flow time, (1, D), from `time_embedder`.
            blocks: what does not change over the steps.
        """
        images, length = tokens_MTL.shape[:2]
        dtype = self.language_model.norm.weight.dtype
        embeds_MTD = self.vae2llm(tokens_MTL.to(dtype))
        embeds_MTD = embeds_MTD + time_D.to(embeds_MTD) + blocks.position_embeds_MTD.to(embeds_MTD)
        markers_2D = self.get_input_embeddings()(blocks.marker_ids)
        gen_TD = embeds_MTD.to(markers_2D).repeat(blocks.rows // images, 1, 1).flatten(0, 1)
        final_TD = self.language_model.denoise(
            markers_2D.repeat(blocks.rows, 1), gen_TD, blocks.attention, blocks.rows
        )
        return self.llm2vae(final_TD).unflatten(0, (blocks.rows, length)).to(tokens_MTL)


class UniMedVLForConditionalGeneration(UniMedVLLoadingMixin, UniMedVLPreTrainedModel, UniMedVLGenerationMixin):
    """UniMedVL with its language head: losses for training, `generate` for text, images and both in turn.

    Example:

        model = AutoModelForMultimodalLM.from_pretrained(repo, trust_remote_code=True)
        ids = model.generate(**inputs, max_new_tokens=64)
        images = model.generate(**image_inputs, generation_mode="image", preset="t2i")
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}
    # Two losses with two token counts: a plain Trainer averages over micro-batches, ours passes both counts.
    accepts_loss_kwargs = False

    def __init__(self, config: UniMedVLConfig):
        super().__init__(config)
        self.model = UniMedVLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if not config.visual_gen:
            self._keys_to_ignore_on_load_unexpected = GENERATION_WEIGHTS
        self.post_init()
        self.generation_config.task_presets = copy.deepcopy(TASK_PRESETS)
        # Otherwise transformers drops the presets when it reads the saved file.
        self.generation_config._from_model_config = False

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs):
        """Features of ViT patches, see `UniMedVLModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_grid_thw, **kwargs)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        latent_pixel_values: torch.Tensor | None = None,
        latent_image_sizes: torch.Tensor | None = None,
        latent_values: list[torch.Tensor] | None = None,
        vae_noise: list[torch.Tensor] | None = None,
        vae_sample_mode: str = "sample",
        generator: torch.Generator | list[torch.Generator] | None = None,
        block_ids: torch.Tensor | None = None,
        sample_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        token_weights: torch.Tensor | None = None,
        flow_noise: torch.Tensor | None = None,
        flow_timesteps: torch.Tensor | None = None,
        plan: PackPlan | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_flow_tokens_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> UniMedVLOutput:
        """Predict text and flow velocities, with their losses where targets are given.

        Args:
            input_ids: int64 (B, S). Ids at patch and latent positions are placeholders.
            attention_mask: (B, S) or (B, past + S), 1 for tokens, 0 for padding on either side.
            position_ids: RoPE ids, int64 (B, S); derived from the blocks when missing. Without a cache, a row that
                counts the tokens of an image is replaced by the derived ids.
            mm_token_type_ids: int64 (B, S): 0 text and markers, 1 ViT patch, 2 clean VAE latent token, 3 noised
                (target) VAE latent token. Read off the placeholders when missing.
            pixel_values: float (sum of patches, patch_size**2 * 3) in [-1, 1], see `UniMedVLModel.get_image_features`.
            image_grid_thw: int64 (I, 3), (1, rows, columns) in patches.
            latent_pixel_values: float (M, 3, H, W) in [-1, 1], images that enter as VAE latents (clean and noised, in
                sequence order), zero padded at the bottom and right.
            latent_image_sizes: int64 (M, 2), (height, width) in pixels without the padding.
            latent_values: list of M scaled latents (C, H / downsample, W / downsample) instead of pixels.
            vae_noise: list of M posterior noises, shaped like the latents.
            vae_sample_mode: "sample" (reference) or "mode" for the posterior mean.
            generator: for the posterior draws.
            block_ids: int64 (B, S), block of each token, -1 for text; only needed for multi-frame blocks.
            sample_ids: int64 (B, S), sample of each token in a pack, -1 for padding. With `labels`, `logits` then
                holds the labeled rows only. When missing, samples are also found where `position_ids` start again,
                and in `cu_seq_lens_q` and `seq_idx`.
            labels: int64 (B, S), the ids to predict (shifted here), -100 to ignore; or those of the positions in
                `logits_to_keep` alone, as some trainers pass them.
            token_weights: loss weights, float (B, S); the cross entropy becomes the mean weighted by them.
            flow_noise: float (N, L), noise of the noised tokens; drawn when missing.
            flow_timesteps: float (M,) in [0, 1] after sigmoid and shift, one for each latent image (entries of clean
                images are ignored); drawn when missing: `shift(sigmoid(normal))` with `config.timestep_shift`.
            plan: what is read off the batch otherwise, for packs with labels; saves the host all waiting.
                `flow_timesteps` are then not checked.
            logits_to_keep: as in transformers, an int (last positions) or an index tensor.
            skip_logits: with labels, return none and compute the loss in parts, see `label_losses`.
            use_cache: return `past_key_values`; by default the text configuration's, and off for packs, noised images
                and gradient checkpointing.
            num_items_in_batch, num_flow_tokens_in_batch: divisors of the two losses over an accumulation window;
                the counts of this call when missing.
            **kwargs: handed on to the attention function.

        Raises:
            ValueError: if images, placeholders, labels, noise or timesteps do not fit each other.
        """
        if "label_weights" in kwargs:
            warnings.warn("The argument label_weights is called token_weights now.", FutureWarning, stacklevel=2)
            former = kwargs.pop("label_weights")
            token_weights = former if token_weights is None else token_weights
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            mm_token_type_ids=mm_token_type_ids,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            latent_pixel_values=latent_pixel_values,
            latent_image_sizes=latent_image_sizes,
            latent_values=latent_values,
            vae_noise=vae_noise,
            vae_sample_mode=vae_sample_mode,
            generator=generator,
            block_ids=block_ids,
            sample_ids=sample_ids,
            flow_noise=flow_noise,
            flow_timesteps=flow_timesteps,
            plan=plan,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        hidden_BSD = outputs.last_hidden_state
        logits, losses_A, ce_loss = None, None, None
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if labels is None:
            logits = self.lm_head(hidden_BSD[:, kept])
        else:
            if labels.shape != hidden_BSD.shape[:2]:
                hidden_BSD = hidden_BSD[:, kept]
            if labels.shape != hidden_BSD.shape[:2]:
                raise ValueError("labels need an entry for every token, or for every position of logits_to_keep.")
            labels = labels.to(hidden_BSD.device)
            rows_A = labeled_rows(labels) if plan is None else plan.labeled_A
            logits, losses_A = self._label_losses(hidden_BSD, labels, rows_A, sample_ids is not None, skip_logits)
            if token_weights is not None:
                weights_A = F.pad(token_weights.to(losses_A.device)[:, 1:], (0, 1)).flatten()[rows_A]
                ce_loss = weighted_mean(losses_A, weights_A)
            else:
                ce_loss = mean_over(
                    losses_A.sum(), losses_A.shape[0] if num_items_in_batch is None else num_items_in_batch
                )
        mse_loss = None
        if outputs.velocity is not None and (self.training or outputs.velocity.shape[0] > 0):
            mse_loss = flow_loss(outputs.velocity, outputs.flow_target, num_flow_tokens_in_batch)
        parts = [(self.config.ce_loss_weight, ce_loss), (self.config.mse_loss_weight, mse_loss)]
        weighted = [weight * part for weight, part in parts if part is not None]
        return UniMedVLOutput(
            loss=sum(weighted) if weighted else None,
            ce_loss=ce_loss,
            mse_loss=mse_loss,
            logits=logits,
            label_losses=None if losses_A is None else losses_A.detach(),
            velocity=outputs.velocity,
            flow_target=outputs.flow_target,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _label_losses(
        self, hidden_BSD: torch.Tensor, labels: torch.Tensor, rows_A: torch.Tensor, packed: bool, skip_logits: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Logits, where they are wanted, and the cross entropy of each label."""
        labels_A = F.pad(labels[:, 1:], (0, 1), value=-100).flatten()[rows_A]
        hidden_AD = hidden_BSD.flatten(0, 1)[rows_A]
        if skip_logits:
            return None, label_losses(self.lm_head, hidden_AD, labels_A)
        # A pack is long and the vocabulary is wide: only the rows that carry a label are projected.
        logits = self.lm_head(hidden_AD if packed else hidden_BSD)
        kept = logits if packed else logits.flatten(0, 1)[rows_A]
        return logits, F.cross_entropy(kept.float(), labels_A, reduction="none")


# Saving then copies the code next to the weights; `config.auto_map` names the other auto classes.
UniMedVLConfig.register_for_auto_class()
UniMedVLModel.register_for_auto_class("AutoModel")
UniMedVLForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")

__all__ = [
    "UniMedVLForConditionalGeneration",
    "UniMedVLModel",
    "UniMedVLOutput",
    "UniMedVLPreTrainedModel",
    "UniMedVLTextModel",
    "UniMedVLVisionModel",
]
