"""Losses in parts are the losses of the whole, at the memory of a part."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.live_memory import live_bytes
from unimedvl.modeling_unimedvl.losses_unimedvl import flow_loss, label_losses, mean_over, weighted_mean

WORDS, WIDTH, LABELS = 4096, 16, 300


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WORDS, bias=False)


def drawn(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, torch.randint(WORDS, (count,), generator=generator)


def outcome(head, losses, hidden):
    head.zero_grad()
    weights = torch.linspace(0.5, 1.5, len(losses))
    (losses * weights).sum().backward()
    return losses.detach(), hidden.grad, head.weight.grad


@pytest.mark.parametrize("count", [0, 1, 7, 64, 65, LABELS])
def test_parts_have_the_losses_and_gradients_of_the_whole(head, count):
    hidden, labels = drawn(count)
    parts = outcome(head, label_losses(head, hidden, labels, rows_at_once=64), hidden)
    hidden, labels = drawn(count)
    logits = F.linear(hidden, head.weight)
    plain = logits.logsumexp(dim=-1) - logits.gather(1, labels[:, None])[:, 0]
    for ours, expected in zip(parts, outcome(head, plain, hidden), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_parts_are_computed_in_float32_under_autocast(head):
    hidden, labels = drawn(LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        parts = label_losses(head, hidden, labels, rows_at_once=64)
        whole = label_losses(head, hidden, labels)
    assert parts.dtype == torch.float32
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


def test_the_logits_of_a_part_are_the_most_that_exists(head):
    """Logits in half precision, their float32 copy, its logarithm and its gradient: of a part, not of all labels."""

    def peak(rows_at_once: int):
        hidden, labels = drawn(LABELS)
        head.zero_grad()
        with live_bytes() as live, torch.autocast("cpu", torch.bfloat16):
            label_losses(head, hidden, labels, rows_at_once).sum().backward()
        return live

    whole, parts = peak(LABELS), peak(30)
    assert whole.largest == LABELS * WORDS * 4
    assert parts.largest == max(30 * WORDS * 4, WORDS * WIDTH * 4)
    # What does not depend on the labels, the head's gradient, is small here: ten parts need about a tenth.
    assert parts.peak < 0.2 * whole.peak


def test_the_head_is_called_and_not_only_its_weight_read(head):
    """An adapter on the head changes the losses, which a function of `head.weight` would miss."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.shift = head, nn.Parameter(torch.randn(WORDS))

        def forward(self, hidden):
            return self.inner(hidden) + self.shift

    hidden, labels = drawn(LABELS)
    shifted = Shifted()
    expected = F.cross_entropy(head(hidden) + shifted.shift, labels, reduction="none")
    torch.testing.assert_close(label_losses(shifted, hidden, labels, 64), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count, divisor", [(4, 4), (torch.tensor(4), 4), (0, 1), (torch.tensor(0), 1)])
def test_a_count_may_lie_on_the_device(count, divisor):
    assert mean_over(torch.tensor(6.0), count) == 6.0 / divisor


def test_weighted_means():
    losses = torch.tensor([1.0, 3.0])
    assert weighted_mean(losses, torch.tensor([3.0, 1.0])) == 1.5
    assert weighted_mean(losses, torch.zeros(2)) == 0.0


def test_the_flow_loss_counts_tokens():
    velocity, target = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert flow_loss(velocity, target) == pytest.approx((2.5 + 2.0) / 2)
    assert flow_loss(velocity, target, 9) == pytest.approx((2.5 + 2.0) / 9)
    assert flow_loss(velocity[:0], target[:0]) == 0.0
