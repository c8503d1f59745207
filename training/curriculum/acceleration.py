"""What of a recipe makes steps faster or smaller without changing their numbers."""

import functools
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from ..recipe import TrainingRecipe


def kept_operations() -> list[Any]:
    """Operations whose results selective checkpointing keeps: matrix products and attention, by far the costliest to
    repeat; norms, RoPE and activations are cheap to repeat and would take most of the memory."""
    aten = torch.ops.aten
    products = [aten.mm.default, aten.addmm.default, aten.bmm.default]
    attention = [
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,
    ]
    return [*products, *attention]


def checkpoint_activations(model: PreTrainedModel, policy: str) -> None:
    """Recompute activations of every layer in the backward pass.

    Args:
        model: without what PEFT or Accelerate put around it.
        policy: see `TrainingRecipe.checkpointing_policy`.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if policy == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, kept_operations())
    # Its name since transformers 5.23, where the former one warns.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable(options)


def accelerate_model(model: Any, recipe: TrainingRecipe, **compile_options: Any) -> None:
    """Attention, checkpointing and compilation as a recipe says; before layers are sharded, if they are.

    Args:
        model: the bare model.
        recipe: see `TrainingRecipe`.
        compile_options: of `torch.compile`, besides `dynamic`.

    Raises:
        ValueError: if the attention needs a package that is missing.
    """
    try:
        for part in (model.model.language_model, model.model.vit_model):
            part.set_attn_implementation(recipe.attention)
    except ImportError as error:
        raise ValueError(
            f"attention: {recipe.attention} cannot be used here: {' '.join(str(error).split())}"
        ) from error
    if recipe.gradient_checkpointing:
        checkpoint_activations(model, recipe.checkpointing_policy)
    if recipe.compile:
        # Every pack has lengths of its own: one graph for all of them instead of one for each.
        model.compile_repeated_blocks(dynamic=True, **compile_options)
