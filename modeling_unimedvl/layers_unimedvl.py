"""Norm, rotation and gated unit with few passes over memory.

Compilers and GPUs, which have a fused kernel, are given the plain formulas. On a processor the same values come from
fewer operations, to the bit the same with and without gradients; without them, tensors that nobody else can see are
written in place.

Shape legend: B batch, S sequence, H heads, E head dimension, D hidden.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm, Qwen2RotaryEmbedding


def may_write(*modules: Any) -> bool:
    """Whether what modules returned may be overwritten: no gradient and no hook will look at it again.

    Wrappers, such as those of adapters, may return what a module inside of them returned.
    """
    if torch.is_grad_enabled() or torch.nn.modules.module._global_forward_hooks:
        return False
    return not any(
        part._forward_hooks
        for module in modules
        for part in ((module,) if type(module) is nn.Linear else module.modules())
    )


def add_residual(residual: torch.Tensor, change: torch.Tensor, part: Any, last: Any) -> torch.Tensor:
    """`residual + change`, written over `change` where that is allowed.

    Args:
        part, last: the module that returned `change`, and the module inside of it whose result it is.
    """
    # Under autocast the residual is more exact than what was computed from it.
    fits = change.dtype == residual.dtype and change.shape == residual.shape
    may = fits and not part._forward_hooks and may_write(last)
    return change.add_(residual) if may else residual + change


@functools.cache
def _scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


class UniMedVLRMSNorm(Qwen2RMSNorm):
    """Root mean square norm over the last dimension, in float32."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        width = hidden_states.shape[-1]
        plain = type(hidden_states) is torch.Tensor and hidden_states.device.type == "cpu"
        if not plain or torch.compiler.is_compiling():
            # Under autocast the two types differ, which the fused kernel does not take.
            kind = torch.promote_types(hidden_states.dtype, self.weight.dtype)
            return F.rms_norm(hidden_states.to(kind), (width,), self.weight.to(kind), self.variance_epsilon)
        length = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(_scalar(self.variance_epsilon), length, length, value=1 / width).rsqrt()
        normed = hidden_states * scale
        if normed.dtype == self.weight.dtype == hidden_states.dtype and not torch.is_grad_enabled():
            return normed.mul_(self.weight)
        return self.weight * normed.to(hidden_states.dtype)


class UniMedVLRotaryEmbedding(Qwen2RotaryEmbedding):
    """Rotary embedding whose frequencies stay in float32 when the model is cast."""

    def turns(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for `rotated`, (B, S, 1, E) in the type of `x`; the sines of the first half are negative.

        Args:
            x: names the type and the device.
            position_ids: int64 (B, S).
        """
        cos_BSE, sin_BSE = self(x, position_ids)
        half = sin_BSE.shape[-1] // 2
        signed_BSE = torch.cat([-sin_BSE[..., :half], sin_BSE[..., half:]], dim=-1)
        return cos_BSE[:, :, None], signed_BSE[:, :, None]

    def _apply(self, fn, recurse=True):
        exact = {name: getattr(self, name) for name in ("inv_freq", "original_inv_freq")}
        super()._apply(fn, recurse)
        for name, frequencies in exact.items():
            moved = getattr(self, name)
            if moved.dtype != frequencies.dtype:
                self._buffers[name] = frequencies.to(moved.device)
        return self


def rotated(states_BSHE: torch.Tensor, cos_BS1E: torch.Tensor, sin_BS1E: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys by `UniMedVLRotaryEmbedding.turns`; channel e belongs to channel e + E / 2."""
    swapped = states_BSHE.roll(states_BSHE.shape[-1] // 2, dims=-1)
    turned = states_BSHE * cos_BS1E
    add = torch.addcmul if torch.is_grad_enabled() else torch.Tensor.addcmul_
    return add(turned, swapped, sin_BS1E)


class UniMedVLMLP(Qwen2MLP):
    """Gated unit: `down(activation(gate(x)) * up(x))`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if not may_write(self.gate_proj, self.up_proj, self.act_fn):
            return self.down_proj(self.act_fn(gate) * up)
        active = (
            F.silu(gate, inplace=True) if isinstance(self.act_fn, (nn.SiLU, SiLUActivation)) else self.act_fn(gate)
        )
        return self.down_proj(active.mul_(up))
