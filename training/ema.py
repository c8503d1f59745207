"""An exponential average of the weights that are trained."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class WeightAverage:
    """average = decay * average + (1 - decay) * weight after every optimiser step, of trainable weights only.

    The averages live where the weights do: under FSDP each process holds the average of its own shard.

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
        """Take the weights in after an optimiser step."""
        parameters = dict(model.named_parameters())
        for name, average in self.averages.items():
            average.lerp_(parameters[name], 1 - self.decay)

    def save(self, path: Path) -> None:
        save_file({name: average.cpu().contiguous() for name, average in self.averages.items()}, path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Raises ValueError if the file averages other weights."""
        loaded = load_file(path)
        if loaded.keys() != self.averages.keys():
            other = sorted(loaded.keys() ^ self.averages.keys())[0]
            raise ValueError(f"{path} does not fit the weights that this run trains ({other}): check `freeze`.")
        for name, average in self.averages.items():
            average.copy_(loaded[name])

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Swap weights and averages; twice is as if never."""
        parameters = dict(model.named_parameters())
        for name, average in self.averages.items():
            held = average.clone()
            average.copy_(parameters[name])
            parameters[name].copy_(held)
