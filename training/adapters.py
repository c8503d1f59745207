"""Adapters: which layers they sit on, how the base below them is loaded, and what becomes of them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from unimedvl.checkpoint import merging
from unimedvl.checkpoint.adapter_folder import keep_order_of_weights, open_adapter, record_base
from unimedvl.checkpoint.cards import adapter_card
from unimedvl.checkpoint.folder import Checkpoint, Place, open_checkpoint
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
    checkpoint: str | Path | Checkpoint,
    recipe: AdapterRecipe,
    dtype: torch.dtype | str = "auto",
    gradient_checkpointing: bool = False,
    **options: Any,
) -> PeftModel:
    """A checkpoint with a fresh trainable adapter on it, whose weights are float32.

    Args:
        checkpoint: a folder, a name on the Hub, or what `open_checkpoint` found there.
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
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint, options.pop("revision", None))
    model: PreTrainedModel = UniMedVLForConditionalGeneration.from_pretrained(
        checkpoint.directory, dtype=dtype, **options
    )
    keep_order_of_weights(model)
    reentrant = {"use_reentrant": False}
    if recipe.quantize:
        model = prepare_model_for_kbit_training(model, gradient_checkpointing, reentrant)
    elif gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
    adapted = get_peft_model(model, adapter_config(recipe))
    assert isinstance(adapted, PeftModel)
    config = adapted.peft_config[adapted.active_adapter]
    # Found again from any folder: not the path of a download, nor one that counts from here.
    config.base_model_name_or_path, config.revision = checkpoint.source
    return adapted


def bare_model(model: nn.Module) -> Any:
    """The model below its adapter, or the model itself if it has none."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def save_model(model: Any, folder: Path) -> None:
    """Write a model into a folder; an adapter without its base, with a record of the base's weights and a card."""
    model.save_pretrained(str(folder))
    if not isinstance(model, PeftModel):
        return
    config = model.peft_config[model.active_adapter]
    assert config.base_model_name_or_path is not None, "load_with_adapter names the base"
    base = open_checkpoint(config.base_model_name_or_path, config.revision)
    record_base(folder, base, "nf4" if getattr(bare_model(model), "is_loaded_in_4bit", False) else "")
    card = adapter_card(open_adapter(Place(folder, folder.name, None)), base)
    (folder / "README.md").write_text(card, encoding="utf-8")


def merge_adapter(
    checkpoint: str | Path, adapter: str | Path, output: str | Path, dtype: str | torch.dtype = "auto"
) -> None:
    """Former form of `unimedvl.checkpoint.merging.merge_adapter`, which goes with the next release.

    Args:
        checkpoint, adapter, output, dtype: `base`, `adapter`, `output` and `dtype` of the present form.

    Raises:
        ValueError: as there.
    """
    warnings.warn(
        "unimedvl.training.adapters.merge_adapter(checkpoint, adapter, output) goes with the next release: call "
        "unimedvl.checkpoint.merging.merge_adapter(adapter, output, base=checkpoint).",
        FutureWarning,
        stacklevel=2,
    )
    merging.merge_adapter(adapter, output, base=checkpoint, dtype=str(dtype).removeprefix("torch."))
