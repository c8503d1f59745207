"""The golden tests on another device: inputs go there, results come back, and the model does the rest by itself.

Tests hand over and compare CPU tensors. Only the outermost call is moved, so that everything inside the model runs as
it does for a user whose inputs are on the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A value with every tensor in its lists, tuples and dictionaries changed; caches and other objects stay."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _mapped(part, change) for name, part in value.items()})
    if isinstance(value, dict):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(part, change) for part in value)
    return value


class Boundary:
    """The border between the tests and the device.

    Args:
        device: where the model lies.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.returning: list[bool] = []  # for each call that is under way: whether its result goes back

    def enter(self, values: Any) -> Any:
        crossing = False

        def to_device(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal crossing
            crossing = crossing or tensor.device.type == "cpu"
            return tensor.to(self.device)

        outermost = not self.returning
        moved = _mapped(values, to_device) if outermost else values
        self.returning.append(outermost and crossing)
        return moved

    def leave(self, result: Any) -> Any:
        return _mapped(result, torch.Tensor.cpu) if self.returning.pop() else result

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return self.enter((args, kwargs))

    def after(self, module: nn.Module, args: tuple, kwargs: dict, result: Any) -> Any:
        return self.leave(result)

    def __deepcopy__(self, memo: dict) -> "Boundary":
        return self


class ModelOnDevice(UniMedVLForConditionalGeneration):
    """A model behind a boundary."""

    boundary: Boundary

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("do_sample"):
            # The recorded draws are the CPU's: logits come back at every step, and are drawn from there.
            return super().generate(*args, **kwargs)
        args, kwargs = self.boundary.enter((args, kwargs))
        try:
            result = super().generate(*args, **kwargs)
        except BaseException:
            self.boundary.leave(None)
            raise
        return self.boundary.leave(result)


def put_on_device(model: UniMedVLForConditionalGeneration, device: torch.device) -> UniMedVLForConditionalGeneration:
    """Move a model to a device where it answers tests that know only the CPU."""
    model.to(device)
    model.__class__ = ModelOnDevice
    model.boundary = Boundary(device)
    for module in model.modules():
        module.register_forward_pre_hook(model.boundary.before, with_kwargs=True)
        module.register_forward_hook(model.boundary.after, with_kwargs=True, always_call=True)
    return model
