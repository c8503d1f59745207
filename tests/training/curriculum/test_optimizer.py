"""AdamW and averages over all weights at once: the numbers of one weight after another, in a few operations."""

import copy
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny_model import tiny_model
from unimedvl.training.curriculum.ema import WeightAverage
from unimedvl.training.curriculum.parameter_groups import make_optimizer
from unimedvl.training.recipe import OptimizerRecipe


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def give_gradients(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.randn(weight.shape, generator=generator)


def adamw_by_hand(model, rates, steps, recipe):
    """Loshchilov and Hutter 2019, algorithm 2, in float64, weight by weight."""
    first, second = recipe.betas
    values = {name: weight.detach().double() for name, weight in model.named_parameters() if weight.requires_grad}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in values.items()}
    for step in range(1, steps + 1):
        give_gradients(model, step)
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue
            gradient, (mean, square) = weight.grad.double(), moments[name]
            mean.mul_(first).add_(gradient, alpha=1 - first)
            square.mul_(second).add_(gradient**2, alpha=1 - second)
            values[name] = values[name] * (1 - rates(name) * recipe.weight_decay)
            scale = (square / (1 - second**step)).sqrt() + recipe.eps
            values[name] = values[name] - rates(name) * (mean / (1 - first**step)) / scale
    return values


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fused_steps_are_those_of_the_algorithm(weight_decay):
    recipe = OptimizerRecipe(learning_rate=1e-2, learning_rates={"vit": 1e-3}, eps=1e-8, weight_decay=weight_decay)
    model = tiny_model()
    expected = adamw_by_hand(
        copy.deepcopy(model), lambda name: 1e-3 if name.startswith("model.vit_model") else 1e-2, 3, recipe
    )
    optimizer = make_optimizer(model, recipe)
    for step in (1, 2, 3):
        give_gradients(model, step)
        optimizer.step()
    for name, value in expected.items():
        torch.testing.assert_close(model.get_parameter(name).detach().double(), value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_step_is_one_operation_for_each_group():
    model = tiny_model()
    optimizer = make_optimizer(model, OptimizerRecipe())
    give_gradients(model, 0)
    optimizer.step()
    with Operations() as operations:
        optimizer.step()
    assert operations.counts["_fused_adamw_"] == len(optimizer.param_groups) == 3
    updates = {name: count for name, count in operations.counts.items() if not name.startswith("profiler::")}
    assert sum(updates.values()) == 2 * len(optimizer.param_groups)  # the other one counts steps


def test_averages_of_all_weights_move_in_one_operation():
    model = tiny_model()
    average = WeightAverage(model, 0.9)
    before = {name: value.clone() for name, value in average.averages.items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    with Operations() as operations:
        average.update(model)
    assert operations.counts["_foreach_lerp_"] == 1 and operations.counts.total() == 1
    for name, value in average.averages.items():
        expected = 0.9 * before[name].double() + 0.1 * model.get_parameter(name).double()
        torch.testing.assert_close(value.double(), expected.detach(), rtol=0, atol=1e-6)
        # The same bits as one weight after another.
        assert torch.equal(value, before[name].lerp(model.get_parameter(name).detach(), 1 - 0.9))
