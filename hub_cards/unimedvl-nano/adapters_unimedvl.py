"""Where adapters go: regular expressions over module names, and PEFT's default for this architecture."""

from transformers.utils import is_peft_available

_LAYER = r".*language_model\.layers\.\d+\."
_UNDERSTANDING = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_GENERATION = r"(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.(gate|up|down)_proj)"

# Values for `LoraConfig(target_modules=...)`. None of them touches the ViT, the autoencoder or the small projections.
ADAPTER_TARGETS = {
    "understanding": _LAYER + _UNDERSTANDING,
    "generation": _LAYER + _GENERATION,
    "both": _LAYER + f"({_UNDERSTANDING}|{_GENERATION})",
}


def register_default_targets(model_type: str) -> None:
    """Let a PEFT configuration without `target_modules` adapt both experts of this architecture."""
    if is_peft_available():
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[model_type] = ADAPTER_TARGETS["both"]
