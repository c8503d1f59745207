"""Adapters: which layers they sit on, how the base below them is loaded, and what becomes of them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from unimedvl.modeling_unimedvl.adapters_unimedvl import ADAPTER_TARGETS
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

from .tuning_recipe import AdapterRecipe

_VIT = r".*vit_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


def adapter_config(recipe: AdapterRecipe) -> LoraConfig:
    """PEFT's configuration of an adapter."""
    targets = ADAPTER_TARGETS[recipe.experts]
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank if recipe.alpha is None else recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=f"({targets}|{_VIT})" if recipe.vit else targets,
        use_dora=recipe.method == "dora",
    )


def load_with_adapter(
    checkpoint: str | Path,
    recipe: AdapterRecipe,
    dtype: torch.dtype | str = "auto",
    gradient_checkpointing: bool = False,
    **options: Any,
) -> PeftModel:
    """A checkpoint with a fresh trainable adapter on it, whose weights are float32.

    Args:
        checkpoint: a folder or a name on the Hub.
        recipe: "nf4" in it loads the experts in 4 bits with double quantization; the ViT, the autoencoder and the
            small projections keep their precision.
        dtype: of the base weights that are not quantized, and of the computation with those that are.
        gradient_checkpointing: recompute activations in the backward pass.
        options: further arguments of `from_pretrained` (`device_map`, `revision`, ...).
    """
    if recipe.quantize == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        )
    model: PreTrainedModel = UniMedVLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype, **options)
    reentrant = {"use_reentrant": False}
    if recipe.quantize:
        model = prepare_model_for_kbit_training(model, gradient_checkpointing, reentrant)
    elif gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
    return get_peft_model(model, adapter_config(recipe))


def bare_model(model: nn.Module) -> Any:
    """The model below its adapter, or the model itself if it has none."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def merge_adapter(checkpoint: str | Path, adapter: str | Path, output: str | Path, **options: Any) -> None:
    """Write the checkpoint with the adapter's change added to its weights, loadable without PEFT.

    An adapter that was trained on a 4-bit base is added to the full weights.

    Args:
        options: further arguments of `from_pretrained` of the checkpoint.

    Raises:
        ValueError: if `output` exists and is not empty, or `adapter` holds no adapter.
    """
    output, adapter = Path(output), Path(adapter)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty: choose another folder.")
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} holds no adapter_config.json: give the folder of a saved adapter.")
    model = UniMedVLForConditionalGeneration.from_pretrained(checkpoint, **options)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(output)
