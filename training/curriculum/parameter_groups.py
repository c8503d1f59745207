"""Which weights are trained, at which learning rate."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from ..recipe import OptimizerRecipe


def part_of(name: str) -> str:
    """The part that a parameter belongs to: "llm", "vit", "vae" or "others"."""
    bare = name.removeprefix("base_model.model.").removeprefix("model.")
    for prefix, part in (("language_model.", "llm"), ("lm_head.", "llm"), ("vit_model.", "vit"), ("vae.", "vae")):
        if bare.startswith(prefix):
            return part
    return "others"


def freeze_parts(model: nn.Module, frozen: Iterable[str]) -> None:
    """Freeze the named parts; weights that are never trained (tables, the autoencoder) stay as they are.

    "und" detaches the understanding expert's stream instead: its weights stay in the optimizer without gradients,
    and the text head may still be trained (BAGEL's `freeze_und`).
    """
    frozen = set(frozen)
    for name, parameter in model.named_parameters():
        if part_of(name) in frozen:
            parameter.requires_grad_(False)
    config: Any = model.config
    config.text_config.freeze_und = "und" in frozen


def training_settings(config: Any) -> tuple[float, float, bool]:
    """What a configuration says of training: the weights of both losses, and whether understanding is detached."""
    return config.ce_loss_weight, config.mse_loss_weight, config.text_config.freeze_und


@contextlib.contextmanager
def with_training_settings(config: Any, settings: tuple[float, float, bool]) -> Iterator[None]:
    """Let a configuration have these `training_settings` within the block."""
    now = training_settings(config)
    config.ce_loss_weight, config.mse_loss_weight, config.text_config.freeze_und = settings
    try:
        yield
    finally:
        config.ce_loss_weight, config.mse_loss_weight, config.text_config.freeze_und = now


def make_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """Fused AdamW with one group for each part that is trained, and for each name in `learning_rates`.

    Raises:
        ValueError: if nothing is trained, or a name of `learning_rates` begins no trained weight's.
    """
    prefixes = sorted((name for name in recipe.learning_rates if "." in name), key=len, reverse=True)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = next((prefix for prefix in prefixes if name.startswith(prefix)), part_of(name))
            groups.setdefault(group, []).append(parameter)
    if not groups:
        raise ValueError("No weight is left to train: shorten `freeze`.")
    unused = [prefix for prefix in prefixes if prefix not in groups]
    if unused:
        raise ValueError(f"optimizer.learning_rates: no trained weight's name begins with {unused[0]!r}.")
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": recipe.learning_rates.get(group, recipe.learning_rate), "part": group}
            for group, parameters in groups.items()
        ],
        betas=(recipe.betas[0], recipe.betas[1]),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: OptimizerRecipe, steps: int):
    """The schedule of a run of `steps`: the first step of a warm-up has a learning rate of 0, as upstream."""
    if recipe.schedule == "constant":
        return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=recipe.warmup_steps)
    return get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=recipe.warmup_steps,
        num_training_steps=steps,
        scheduler_specific_kwargs={"min_lr": recipe.min_learning_rate},
    )
