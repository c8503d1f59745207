"""What makes steps faster or smaller changes no loss and no gradient, and does what its name says."""

import copy
from collections import Counter

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from tests.live_memory import live_bytes
from tests.modeling_unimedvl.test_plans import drawn_batch
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan
from unimedvl.training.curriculum.acceleration import accelerate_model
from unimedvl.training.data_recipe import DataRecipe, GroupRecipe
from unimedvl.training.recipe import TrainingRecipe

pytestmark = pytest.mark.medium


def recipe(**changes) -> TrainingRecipe:
    return TrainingRecipe("model", "output", DataRecipe([GroupRecipe("all", "records")]), 1, **changes)


def learner(options: dict | None = None, **changes):
    model = tiny_model().train()
    accelerate_model(model, recipe(**changes), **(options or {}))
    return model


def batch(model, seed: int) -> dict:
    drawn, _ = drawn_batch(model.config, seed, pixels=False)
    return {**drawn, "plan": PackPlan.from_batch(drawn)}


def step(model, inputs: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs, skip_logits=True).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_step(left, right, inputs: dict, tolerance: float) -> None:
    (loss, gradients), (other_loss, others) = step(left, inputs), step(right, inputs)
    torch.testing.assert_close(loss, other_loss, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=tolerance, atol=tolerance, msg=name)


class Products(TorchDispatchMode):
    """Counts matrix products and attention."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in ("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def measured(model, inputs: dict) -> tuple[int, Counter[str]]:
    """Bytes that are alive at most during a step, and the products of it."""
    with Products() as products:
        step(model, inputs)
    model.zero_grad()
    with live_bytes() as live:
        model(**inputs, skip_logits=True).loss.backward()
    return live.peak, products.counts


def test_checkpointing_changes_nothing_but_memory_and_work():
    plain = learner()
    inputs = batch(plain, 3)
    full, selective = (
        learner(gradient_checkpointing=True, checkpointing_policy=policy) for policy in ("full", "selective")
    )
    for other in (full, selective):
        assert_same_step(plain, other, inputs, 0.0)
    (most, products), (least, repeated), (between, kept) = (measured(one, inputs) for one in (plain, full, selective))
    assert least < between < most
    # Selective checkpointing repeats no product; full checkpointing repeats all of the layers.
    assert kept == products
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert products[attention] > 0 and repeated[attention] == 2 * products[attention]
    assert repeated.total() > 1.2 * products.total()


# "eager" runs the graphs as they were traced; "aot_eager" traces the backward pass too, as compilers of GPUs do.
@pytest.mark.parametrize(
    "policy, backend",
    [("none", "eager"), ("selective", "eager"), pytest.param("selective", "aot_eager", marks=pytest.mark.slow)],
)
def test_compiled_layers_are_one_graph_for_each_kind_and_all_lengths(policy, backend):
    torch.compiler.reset()
    changes = {} if policy == "none" else {"gradient_checkpointing": True, "checkpointing_policy": policy}
    counter = CompileCounterWithBackend(backend)
    # `fullgraph` raises where a layer breaks into several graphs. Flex attention has no backward pass on a CPU.
    compiled = learner({"backend": counter, "fullgraph": True}, compile=True, attention="eager", **changes)
    plain = learner()
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for seed in (3, 4, 5):
        assert_same_step(plain, compiled, batch(plain, seed), 1e-5)
    # Packs of three lengths, two layers of each kind, the ViT's with and without a mask; a traced backward pass looks
    # at sizes once more.
    assert len(plain.repeated_blocks()) == 4
    assert counter.frame_count <= (3 if backend == "eager" else 6)


def test_compiled_layers_attend_by_spans_between_their_graphs():
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled, plain = learner({"backend": counter}, compile=True), learner()
    compiled_once = 0
    for seed in (3, 4, 5):
        assert_same_step(plain, compiled, batch(plain, seed), 1e-5)
        compiled_once = compiled_once or counter.frame_count
    # Further packs, of other lengths, need no further graphs.
    assert counter.frame_count == compiled_once > 0


def test_recomputed_layers_are_compiled_as_one_graph_only():
    with pytest.raises(ValueError, match="needs attention: flex_attention"):
        recipe(compile=True, gradient_checkpointing=True)


def test_a_copy_of_a_compiled_model_is_whole():
    compiled = learner({"backend": "eager"}, compile=True)
    twin = copy.deepcopy(compiled)
    assert_same_step(compiled, twin, batch(compiled, 3), 1e-6)
