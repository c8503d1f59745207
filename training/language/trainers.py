"""Tuning the understanding half with TRL: supervised (SFT), from preferences (DPO), from rewards (GRPO)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from ..rewards import TEXT_REWARDS
from .trl_datasets import METHODS

_CONFIGS = {"sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig}


def language_arguments(method: str, output_dir: str | Path, settings: Mapping[str, Any]) -> Any:
    """TRL's arguments of a method, with what this model needs: no truncation, which would cut image blocks, all
    columns kept, for SFT a loss on the answers alone; and the processor where there is no GPU.

    Args:
        method: "sft", "dpo" or "grpo".
        output_dir: checkpoints and logs.
        settings: fields of TRL's configuration class, which win over ours.

    Raises:
        ValueError: for an unknown method or field.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
    known = {field.name for field in dataclasses.fields(_CONFIGS[method])}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"{_CONFIGS[method].__name__} has no setting {', '.join(unknown)}.")
    values: dict[str, Any] = {"output_dir": str(output_dir), "remove_unused_columns": False, "report_to": "none"}
    values["use_cpu"] = not torch.cuda.is_available()
    if method != "grpo":
        values["max_length"] = None
    if method == "sft":
        values["assistant_only_loss"] = True
    return _CONFIGS[method](**{**values, **settings})


def language_trainer(
    method: str,
    model: PreTrainedModel | PeftModel,
    processor: Any,
    arguments: Any,
    train_data: datasets.Dataset,
    eval_data: datasets.Dataset | None = None,
    rewards: Sequence[str] = ("answer_match",),
) -> SFTTrainer | DPOTrainer | GRPOTrainer:
    """A TRL trainer ready to `train()`.

    Args:
        model: with its adapter (`adapters.load_with_adapter`), or bare to train everything that requires gradients.
        arguments: from `language_arguments`.
        train_data, eval_data: from `trl_datasets.conversation_data` for the same method.
        rewards: names from `rewards.TEXT_REWARDS`, for GRPO; their weights are `reward_weights` of the arguments.

    Raises:
        ValueError: for an unknown reward.
    """
    common = {
        "model": model,
        "args": arguments,
        "train_dataset": train_data,
        "eval_dataset": eval_data,
        "processing_class": processor,
    }
    if method == "sft":
        return SFTTrainer(**common)
    if method == "dpo":
        return DPOTrainer(**common)
    unknown = sorted(set(rewards) - TEXT_REWARDS.keys())
    if unknown or not rewards:
        raise ValueError(f"rewards must name some of {', '.join(TEXT_REWARDS)}, not {', '.join(unknown) or 'none'}.")
    functions: list[Any] = [TEXT_REWARDS[name] for name in rewards]
    return GRPOTrainer(reward_funcs=functions, **common)
