"""Configuration of UniMedVL: a text, a vision and an autoencoder part, and the numbers that join them.

Nothing in the model code holds a size of its own: patch sizes, latent channels, position tables, scales and
special token ids are read from here.
"""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, configuration_utils
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig

from .adapters_unimedvl import register_default_targets
from .upstream_layout_unimedvl import is_upstream_layout, upstream_config_dict

AUTO_MAP = {
    "AutoConfig": "configuration_unimedvl.UniMedVLConfig",
    "AutoModel": "modeling_unimedvl.UniMedVLModel",
    "AutoModelForMultimodalLM": "modeling_unimedvl.UniMedVLForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_unimedvl.UniMedVLForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_unimedvl.UniMedVLForConditionalGeneration",
}


class UniMedVLTextConfig(Qwen2Config):
    """The Mixture-of-Transformers language model: Qwen2 fields, plus `freeze_und`.

    `freeze_und=True` cuts the gradient of the whole understanding stream while training (the reference detaches
    its activations, so generation weights also lose the gradient that would reach them through it).
    """

    model_type = "unimedvl_text"
    base_config_key = "text_config"
    # Both experts are split alike, since their heads meet in one attention; the norms of a head see whole heads.
    base_model_tp_plan = {
        **Qwen2Config.base_model_tp_plan,
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.q_proj_moe_gen": "colwise",
        "layers.*.self_attn.k_proj_moe_gen": "colwise",
        "layers.*.self_attn.v_proj_moe_gen": "colwise",
        "layers.*.self_attn.q_norm_moe_gen": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm_moe_gen": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj_moe_gen": "rowwise",
        "layers.*.mlp_moe_gen.gate_proj": "colwise",
        "layers.*.mlp_moe_gen.up_proj": "colwise",
        "layers.*.mlp_moe_gen.down_proj": "rowwise",
    }

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int | None = 4
    freeze_und: bool = False

    @property
    def mrope_section(self) -> list[int]:
        """The frequencies of each of three RoPE ids of a token, by which engines let the tokens of an image share one:
        the three are equal here."""
        half = (getattr(self, "head_dim", None) or self.hidden_size // self.num_attention_heads) // 2
        return [half - 2 * (half // 3), half // 3, half // 3]

    def __post_init__(self, **kwargs):
        if self.rope_parameters is None and "rope_theta" not in kwargs:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 1000000.0}
        super().__post_init__(**kwargs)


class UniMedVLVisionConfig(SiglipVisionConfig):
    """The SigLIP vision transformer, without a pooling head.

    `num_positions` is the number of rows of its learned position table; by default the square of
    `UniMedVLConfig.vit_max_num_patch_per_side`, whose grid positions index it.
    """

    model_type = "unimedvl_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    num_attention_heads: int = 16
    image_size: int | list[int] | tuple[int, int] = 980
    patch_size: int | list[int] | tuple[int, int] = 14
    vision_use_head: bool = False
    num_positions: int | None = None


class UniMedVLVAEConfig(PreTrainedConfig):
    """The fields of diffusers' `AutoencoderKL`; the defaults are those of the FLUX.1 autoencoder.

    A latent is `scaling_factor * (z - shift_factor)` for an encoder sample `z`.
    """

    model_type = "unimedvl_vae"
    base_config_key = "vae_config"

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: list[str] | None = None
    up_block_types: list[str] | None = None
    block_out_channels: list[int] | tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    act_fn: str = "silu"
    mid_block_add_attention: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    force_upcast: bool = True
    sample_size: int = 1024
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159

    def __post_init__(self, **kwargs):
        self.block_out_channels = list(self.block_out_channels)
        levels = len(self.block_out_channels)
        if self.down_block_types is None:
            self.down_block_types = ["DownEncoderBlock2D"] * levels
        if self.up_block_types is None:
            self.up_block_types = ["UpDecoderBlock2D"] * levels
        super().__post_init__(**kwargs)

    @property
    def downsample(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def autoencoder_arguments(self) -> dict:
        """Collect the keyword arguments of `diffusers.AutoencoderKL`."""
        names = (
            "in_channels",
            "out_channels",
            "down_block_types",
            "up_block_types",
            "block_out_channels",
            "layers_per_block",
            "latent_channels",
            "norm_num_groups",
            "act_fn",
            "mid_block_add_attention",
            "use_quant_conv",
            "use_post_quant_conv",
            "force_upcast",
            "sample_size",
            "scaling_factor",
            "shift_factor",
        )
        return {name: getattr(self, name) for name in names}


PARTS: dict[str, type[PreTrainedConfig]] = {
    "text_config": UniMedVLTextConfig,
    "vision_config": UniMedVLVisionConfig,
    "vae_config": UniMedVLVAEConfig,
}
# Transformers before 5.20, which vLLM and ms-swift still want, knows `sub_configs` only and leaves making them to us.
_PartOfConfig: Any = getattr(configuration_utils, "SubConfigSpec", None)


class UniMedVLConfig(PreTrainedConfig):
    """Configuration of `UniMedVLForConditionalGeneration`; the defaults are those of the 14B (7B active) release.

    Args:
        text_config, vision_config, vae_config: the three parts, as objects or dictionaries.
        visual_gen (bool): build the generation expert and the autoencoder. `from_pretrained(..., visual_gen=False)`
            loads for understanding only and leaves them out of memory.
        latent_patch_size (int): latent cells per token along one side.
        max_latent_size (int): side of the latent position table, in tokens.
        vit_max_num_patch_per_side (int): side of the ViT position table, in patches.
        connector_act (str): activation between the two connector layers.
        interpolate_pos (bool): spread a grid over the whole position table instead of counting from its corner.
        timestep_shift (float): shift of the timesteps drawn in training (paper 3.3; BAGEL uses 1.0, then 4.0).
        ce_loss_weight, mse_loss_weight (float): weights of the two losses in `loss` (the paper trains at 0.25 : 1).
        bos_token_id, eos_token_id (int): text turn markers, `<|im_start|>` and `<|im_end|>`.
        vision_start_token_id, vision_end_token_id (int): image markers.
        image_token_id, latent_token_id (int): placeholders of ViT patches and of VAE latent tokens.
    """

    model_type = "unimedvl"
    sub_configs = PARTS
    sub_configs_defaults = {} if _PartOfConfig is None else {name: _PartOfConfig(part) for name, part in PARTS.items()}
    base_model_fsdp_plan = {}
    # vLLM then attends in both directions inside of an image, where its kernels can.
    is_mm_prefix_lm = True
    # A Trainer's `compute_metrics` then gets the logits alone.
    keys_to_ignore_at_inference = ["past_key_values", "ce_loss", "mse_loss", "label_losses", "velocity", "flow_target"]

    if TYPE_CHECKING:
        # What the fields below hold once they are built, and what the constructor takes for them.
        text_config: UniMedVLTextConfig
        vision_config: UniMedVLVisionConfig
        vae_config: UniMedVLVAEConfig

        def __init__(
            self,
            text_config: dict[str, Any] | PreTrainedConfig | None = None,
            vision_config: dict[str, Any] | PreTrainedConfig | None = None,
            vae_config: dict[str, Any] | PreTrainedConfig | None = None,
            **settings: Any,
        ) -> None: ...
    else:
        text_config: dict | PreTrainedConfig | None = None
        vision_config: dict | PreTrainedConfig | None = None
        vae_config: dict | PreTrainedConfig | None = None
    visual_gen: bool = True
    latent_patch_size: int = 2
    max_latent_size: int = 64
    vit_max_num_patch_per_side: int = 70
    connector_act: str = "gelu_pytorch_tanh"
    interpolate_pos: bool = False
    timestep_shift: float = 1.0
    ce_loss_weight: float = 1.0
    mse_loss_weight: float = 1.0
    bos_token_id: int = 151644
    eos_token_id: int | list[int] = 151645
    pad_token_id: int | None = 151643
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    image_token_id: int = 151655
    latent_token_id: int = 151654
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        for name, part in PARTS.items():
            given = getattr(self, name)
            if not isinstance(given, PreTrainedConfig):
                setattr(self, name, part(**(given or {})))
        super().__post_init__(**kwargs)
        if getattr(self, "auto_map", None) is None:
            self.auto_map = dict(AUTO_MAP)

    @property
    def latent_dim(self) -> int:
        """Numbers in one latent token."""
        return self.latent_patch_size**2 * self.vae_config.latent_channels

    @property
    def pixels_per_latent_token(self) -> int:
        """Image pixels covered by one latent token along one side."""
        return self.latent_patch_size * self.vae_config.downsample

    def to_dict(self) -> dict[str, Any]:
        """Collect the fields, as in transformers.

        PEFT asks for them right before it looks up where adapters of this model type go, so by then its table has to
        know.
        """
        register_default_targets(self.model_type)
        return super().to_dict()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Read `config.json`, or derive the fields from a folder in the upstream BAGEL / UniMedVL layout.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            **kwargs: as in transformers; `visual_gen` and special token ids replace what an upstream folder states.

        Raises:
            ValueError: for an upstream folder whose files are missing or contradict one another.
        """
        if is_upstream_layout(pretrained_model_name_or_path):
            return upstream_config_dict(pretrained_model_name_or_path, overrides=kwargs), kwargs
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)


# `transformers serve` looks classes up in this table, and in transformers itself, by name: it asks no auto class.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.setdefault(UniMedVLConfig.model_type, "UniMedVLForConditionalGeneration")

__all__ = ["UniMedVLConfig", "UniMedVLTextConfig", "UniMedVLVAEConfig", "UniMedVLVisionConfig"]
