"""The losses of a forward pass.

Shape legend: A labeled tokens, D hidden, N noised tokens, L latent token dimension.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# Labels whose logits exist at one time: 1.2 GB in float32 at 152,000 words.
ROWS_AT_ONCE = 2048


def _cross_entropy(head: nn.Module, hidden_AD: torch.Tensor, labels_A: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(hidden_AD).float(), labels_A, reduction="none")


def _is_spread(head: nn.Module) -> bool:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(head, FSDPModule)


# Not torch's `linear_cross_entropy`, which takes the head's weight: a head that is sharded, quantized, compiled or
# carries an adapter has to be called.
def label_losses(
    head: nn.Module, hidden_AD: torch.Tensor, labels_A: torch.Tensor, rows_at_once: int = ROWS_AT_ONCE
) -> torch.Tensor:
    """Cross entropy of each label, float32 (A,), without the logits of all labels at one time.

    Logits are made for `rows_at_once` labels and, for more than that, made again in the backward pass: of 20,000
    labels at 152,000 words, 12 GB of float32 and as much of their gradient. A head whose weights are spread over ranks
    is called once: every call is a collective, and ranks with more labels would call it more often than others.

    Args:
        head: hidden states to logits.
        hidden_AD: hidden states from which the labels are predicted.
        labels_A: int64.
        rows_at_once: labels of a part.
    """
    if hidden_AD.shape[0] <= rows_at_once or _is_spread(head):
        return _cross_entropy(head, hidden_AD, labels_A)
    parts = zip(hidden_AD.split(rows_at_once), labels_A.split(rows_at_once), strict=True)
    losses = [checkpoint(_cross_entropy, head, hidden, labels, use_reentrant=False) for hidden, labels in parts]
    return torch.cat(losses)


def mean_over(total: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """A sum over a count that may lie on the device; 0 counts as 1."""
    return total / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def weighted_mean(losses_A: torch.Tensor, weights_A: torch.Tensor) -> torch.Tensor:
    """Mean of losses by weights, 0 where all weights are."""
    smallest = torch.finfo(losses_A.dtype).tiny
    return (losses_A * weights_A).sum() / weights_A.sum().clamp(min=smallest)


def flow_loss(
    velocity_NL: torch.Tensor, target_NL: torch.Tensor, count: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean squared error of velocities over their elements and over `count` tokens, those that there are if None."""
    error_N = ((velocity_NL - target_NL) ** 2).mean(dim=-1)
    return mean_over(error_N.sum(), error_N.shape[0] if count is None else count)
