"""Adapters by name: which expert they sit on, and how the base is loaded."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedModel

from unimedvl.modeling_unimedvl.adapters_unimedvl import ADAPTER_TARGETS
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

METHODS = ("lora", "dora", "qlora")
_VIT = r".*vit_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
# Where the adapter sits; "vit" parts also adapt the image encoder.
PRESETS = {
    **ADAPTER_TARGETS,
    "understanding_and_vit": f"({ADAPTER_TARGETS['understanding']}|{_VIT})",
    "both_and_vit": f"({ADAPTER_TARGETS['both']}|{_VIT})",
}


def adapter_config(
    preset: str = "both", method: str = "lora", rank: int = 16, alpha: int | None = None, dropout: float = 0.0
) -> LoraConfig:
    """PEFT's configuration of an adapter.

    Args:
        preset: key of `PRESETS`.
        method: "lora", "dora" (weights split into magnitude and direction), or "qlora" (LoRA on a 4-bit base, see
            `load_with_adapter`).
        rank, alpha, dropout: LoRA's; `alpha` is twice the rank if None.

    Raises:
        ValueError: for an unknown preset or method, or a rank below 1.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, not {rank}.")
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=PRESETS[preset],
        use_dora=method == "dora",
    )


def load_with_adapter(
    checkpoint: str | Path,
    preset: str = "both",
    method: str = "lora",
    gradient_checkpointing: bool = False,
    dtype: torch.dtype | str = "auto",
    rank: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> PeftModel:
    """A checkpoint with a fresh trainable adapter on it.

    Args:
        checkpoint: a folder or a name on the Hub.
        preset, method, rank, alpha, dropout: see `adapter_config`. "qlora" loads the experts in 4 bits (nf4, double
            quantisation); the ViT, the autoencoder and the small projections keep their precision.
        gradient_checkpointing: recompute activations in the backward pass.
        dtype: of the weights that are not quantised, and of the computation.
        options: further arguments of `from_pretrained` (`device_map`, `revision`, ...).
    """
    config = adapter_config(preset, method, rank, alpha, dropout)
    if method == "qlora":
        compute = torch.bfloat16 if dtype == "auto" else dtype
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    model: PreTrainedModel = UniMedVLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype, **options)
    if method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
    elif gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return get_peft_model(model, config)


def merge_adapter(checkpoint: str | Path, adapter: str | Path, output: str | Path, **options: Any) -> None:
    """Write the checkpoint with the adapter's change added to its weights, loadable without PEFT.

    Raises:
        ValueError: if `output` exists and is not empty.
    """
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty: choose another folder.")
    model = UniMedVLForConditionalGeneration.from_pretrained(checkpoint, **options)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(output)
