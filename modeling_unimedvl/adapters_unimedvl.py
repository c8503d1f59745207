"""Where adapters go: regular expressions over module names, and PEFT's defaults for this architecture."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

_LAYER = r".*language_model\.layers\.\d+\."
_UNDERSTANDING = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_GENERATION = r"(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.(gate|up|down)_proj)"

# Values for `LoraConfig(target_modules=...)`. None of them touches the ViT, the autoencoder or the small projections.
ADAPTER_TARGETS = {
    "understanding": _LAYER + _UNDERSTANDING,
    "generation": _LAYER + _GENERATION,
    "both": _LAYER + f"({_UNDERSTANDING}|{_GENERATION})",
}
_NORMS = r".*language_model\.(layers\.\d+\.(input|post_attention)_layernorm|norm)(_moe_gen)?"
# PEFT matches the names of (IA)^3 by their ends, and the ViT has a `k_proj` and a `v_proj` too. Scaling what enters
# the output projection includes scaling the values; what enters the second MLP layer is scaled as usual.
_IA3 = ("o_proj", "o_proj_moe_gen", "down_proj")
_DEFAULTS = {
    "LORA_TARGET": ADAPTER_TARGETS["both"],
    "ADALORA_TARGET": ADAPTER_TARGETS["both"],
    "LNTUNING_TARGET": _NORMS,
    "IA3_TARGET": _IA3,
    "IA3_FEEDFORWARD": _IA3,
}


def register_default_targets(model_type: str) -> None:
    """Let PEFT configurations without targets adapt both experts of this architecture.

    PEFT looks defaults up by model type, in tables of its own that have no other way in. An entry that is already
    there stays. Where PEFT is not imported nothing happens, for importing it takes longer than loading a small model.
    """
    constants = sys.modules.get("peft.utils.constants")
    if constants is not None:
        for name, targets in _DEFAULTS.items():
            getattr(constants, f"TRANSFORMERS_MODELS_TO_{name}_MODULES_MAPPING").setdefault(model_type, targets)


def refuse_activated_adapters(layer: nn.Module) -> None:
    """Raise a ValueError if an activated LoRA adapts a decoder layer, for rows with latents.

    It adapts each row from a phrase on, counted from the row's end, while rows with latents are split between the
    experts.
    """
    modules: Iterator[Any] = layer.modules()
    for module in modules:
        variants = getattr(module, "lora_variant", None) or {}
        active = () if getattr(module, "disable_adapters", True) else module.active_adapters
        if any(type(variants[name]).__name__.startswith("ALora") for name in active if name in variants):
            raise ValueError(
                "An adapter with alora_invocation_tokens (activated LoRA) adapts text only: disable it, or use a "
                "plain LoRA where images are generated or enter as latents."
            )


class FixedLinear(nn.Module):
    """A linear layer that is not trained and that no adapter or quantizer takes for one of the language model's.

    PEFT's "all-linear" means every `nn.Linear` but the output embeddings, and has no list of exceptions that a model
    could fill. Parameters keep their names.

    Args:
        linear: the layer whose parameters it takes over.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def initialize(self, deviation: float) -> None:
        """Draw the weights anew, normal with this standard deviation, and set the bias to zero."""
        init.normal_(self.weight, std=deviation)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.weight, self.bias)


def fix_linear_layers(module: Any) -> None:
    """Replace every `nn.Linear` within a module by a `FixedLinear`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, FixedLinear(child))
