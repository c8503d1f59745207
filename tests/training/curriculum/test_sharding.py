"""Units of FSDP2: layers, embedding and head, also with compiled layers and a head that is called in parts."""

import os
import socket

import pytest
import torch
import torch.distributed as distributed
from torch import multiprocessing, nn

from tests.modeling_unimedvl.test_plans import drawn_batch
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.losses_unimedvl import label_losses
from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan
from unimedvl.training.curriculum.acceleration import accelerate_model
from unimedvl.training.curriculum.sharding import is_sharded, shard
from unimedvl.training.data_recipe import DataRecipe, GroupRecipe
from unimedvl.training.recipe import TrainingRecipe

pytestmark = pytest.mark.medium

PROCESSES = 2


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def in_processes(function, *arguments) -> None:
    """Run `function(rank, mesh, *arguments)` in processes that know each other; whatever one raises is raised here."""
    multiprocessing.spawn(_join, (free_port(), function, arguments), nprocs=PROCESSES)


def _join(rank: int, port: int, function, arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    function(rank, distributed.init_device_mesh("cpu", (PROCESSES,)), *arguments)
    distributed.destroy_process_group()


def drawn_labels(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one rank fewer labels than one part takes, of the other several parts."""
    generator, count = torch.Generator().manual_seed(rank), (7, 70)[rank]
    hidden = torch.randn(count, 8, generator=generator).requires_grad_()
    return hidden, torch.randint(32, (count,), generator=generator)


def check_head(rank, mesh) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 32, bias=False)
    parts = []
    for other in range(PROCESSES):
        hidden, labels = drawn_labels(other)
        label_losses(head, hidden, labels).sum().backward()
        parts.append(hidden.grad)
    expected = head.weight.grad / PROCESSES
    head.zero_grad()
    distributed.fsdp.fully_shard(head, mesh=mesh, reshard_after_forward=False)
    hidden, labels = drawn_labels(rank)
    label_losses(head, hidden, labels, rows_at_once=16).sum().backward()
    torch.testing.assert_close(hidden.grad, parts[rank])
    torch.testing.assert_close(head.weight.grad.full_tensor(), expected)


def check_model(rank, mesh) -> None:
    recipe = TrainingRecipe(
        "model",
        "output",
        DataRecipe([GroupRecipe("all", "records")]),
        1,
        compile=True,
        attention="eager",
        gradient_checkpointing=True,
        checkpointing_policy="selective",
    )
    whole, spread = tiny_model().train(), tiny_model().train()
    accelerate_model(spread, recipe, backend="eager")
    shard(spread, mesh, bf16=False)
    assert is_sharded(spread)
    units = [module for module in spread.modules() if isinstance(module, distributed.fsdp.FSDPModule)]
    assert len(units) == len(spread.repeated_blocks()) + 3
    for owner in (spread.lm_head, spread.get_input_embeddings()):
        assert isinstance(owner, distributed.fsdp.FSDPModule)
    drawn, _ = drawn_batch(whole.config, 3 + rank, pixels=False)
    inputs = {**drawn, "plan": PackPlan.from_batch(drawn)}
    losses = []
    for model in (whole, spread):
        losses.append(model(**inputs, skip_logits=True).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    for name, weight in whole.named_parameters():
        if weight.requires_grad:
            mean = torch.zeros_like(weight) if weight.grad is None else weight.grad
            distributed.all_reduce(mean)
            found = spread.get_parameter(name).grad.full_tensor()
            torch.testing.assert_close(
                found, mean / PROCESSES, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("check", [check_head, pytest.param(check_model, marks=pytest.mark.slow)])
def test_shares_have_the_gradients_of_the_whole(check):
    in_processes(check)
