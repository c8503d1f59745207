"""An exponential average of the weights that are trained."""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from .sharding import local, reshard


# Not `torch.optim.swa_utils.AveragedModel`, which copies the whole model with its frozen parts, nor diffusers'
# `EMAModel`, whose decay grows with the step and whose averages have no names: a checkpoint stores these by name, each
# process its own share.
class WeightAverage:
    """average = decay * average + (1 - decay) * weight after every optimizer step, of trainable weights only.

    The averages live where the weights do: under FSDP each process holds the average of its own share.

    Args:
        model: whose weights at this moment are the start.
        decay: 0.995 in the paper.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.averages = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights in after an optimizer step, all of them in one operation."""
        parameters = dict(model.named_parameters())
        averages = [local(average) for average in self.averages.values()]
        torch._foreach_lerp_(averages, [local(parameters[name]) for name in self.averages], 1 - self.decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by "average.NAME", as a checkpoint holds them."""
        return {f"average.{name}": average for name, average in self.averages.items()}

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Swap weights and averages; twice is as if never."""
        reshard(model)
        parameters = dict(model.named_parameters())
        for name, average in self.averages.items():
            held = local(average).clone()
            local(average).copy_(local(parameters[name]))
            local(parameters[name]).copy_(held)


class AverageWeights(TrainerCallback):
    """Moves a trainer's average after each of its optimizer steps."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.average is not None:
            self.trainer.average.update(self.trainer.bare)
