"""Counts count what they say, and those of the tree are no worse than the stored ones."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import counts
from benchmarks.cases import SMALL
from benchmarks.counts import CASES, RESULTS, closed_forms, measure, worse
from benchmarks.operations import OperationCounter
from benchmarks.reference_size import reference_config
from unimedvl.checkpoint.compute import token_flops, update_flops

STORED = json.loads((RESULTS / "counts.json").read_text())


def counted(function):
    with OperationCounter() as counter:
        function()
    return counter.snapshot()


def test_views_are_no_operations_and_writes_in_place_allocate_nothing():
    rows = torch.ones(8, 4)
    assert counted(lambda: rows.view(4, 8).transpose(0, 1)[1:]).summary() == {
        "operations": 0,
        "megabytes_allocated": 0,
        "gigaflop": 0,
        "synchronizations": 0,
    }
    found = counted(lambda: rows.add_(1).mul_(2))
    assert found.operations == {"add_": 1, "mul_": 1} and found.allocated == 0
    assert counted(lambda: (rows + 1).exp_()).allocated == rows.numel() * 4


def test_products_and_attention_cost_what_the_formulas_say():
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert counted(lambda: left @ right).flops == 2 * 3 * 5 * 7
    query, key = torch.ones(1, 8, 6, 16, requires_grad=True), torch.ones(1, 8, 10, 16)
    forward = 2 * 2 * 8 * 6 * 10 * 16
    assert counted(lambda: F.scaled_dot_product_attention(query, key, key)).flops == forward
    both = counted(lambda: F.scaled_dot_product_attention(query, key, key).sum().backward())
    # The backward pass makes the scores once more, and four gradients of products.
    assert both.flops == forward * (1 + 5 / 2)


def test_convolutions_cost_what_torch_says():
    image, layer = torch.ones(1, 3, 8, 8), torch.nn.Conv2d(3, 4, 3)
    with FlopCounterMode(display=False) as torch_counter:
        layer(image)
    assert counted(lambda: layer(image)).flops == torch_counter.get_total_flops() > 0


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: rows.sum().item(),
        lambda rows: rows.tolist(),
        lambda rows: rows.nonzero(),
        lambda rows: rows[rows > 0],
        lambda rows: bool(rows.any()),
        lambda rows: rows.repeat_interleave(torch.ones(4, dtype=torch.long)),
    ],
)
def test_what_waits_for_a_device_is_counted(function):
    assert counted(lambda: function(torch.ones(4))).synchronizations.total() == 1


def test_what_does_not_wait_is_not_counted():
    rows = torch.ones(4)
    assert not counted(lambda: torch.where(rows > 0, rows, 0)[torch.tensor([0, 2])]).synchronizations


def test_the_difference_of_snapshots_is_what_lies_between():
    rows = torch.ones(4)
    with OperationCounter() as counter:
        rows.exp()
        before = counter.snapshot()
        rows.sin()
        rows.sin()
    assert (counter.snapshot() - before).operations == {"sin": 2}


def test_closed_forms_repeat_the_audit():
    """8.758 GFLOP of a branch at 256 pixels, without the embedding of time, is the audit's figure."""
    config = reference_config()
    branch = update_flops(config, 256, [318])
    assert round((branch - 2 * (256 + 512) * 512) / 1e9, 3) == 8.758
    assert update_flops(config, 256, [318, 0]) == closed_forms(config)["text to image, update, 256 pixels"]
    assert token_flops(config, 100) - token_flops(config, 99) == 4 * 6 * 512


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.medium if "edit" in name or "training" in name else ()) for name in SMALL],
)
def test_counts_are_no_worse_than_the_stored_ones(name):
    ((_, found),) = measure([name])
    assert not worse(name, found["ours"], STORED["cases"][name]["ours"])


def test_a_change_for_the_worse_is_one_clear_line():
    before = {"operations": 100, "synchronizations": 1, "gigaflop": 2.0}
    assert not worse("token", {"operations": 102, "synchronizations": 1, "gigaflop": 1.0}, before)
    assert worse("token", {"operations": 103, "synchronizations": 2, "gigaflop": 2.0}, before) == [
        "token: operations 103, at most 102",
        "token: synchronizations 2, at most 1",
    ]


def test_the_command_refuses_counts_that_grew(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "SMALL", ("decode, context 64",))
    stored = json.loads((RESULTS / "counts.json").read_text())
    stored["cases"]["decode, context 64"]["ours"]["operations"] -= 100
    (tmp_path / "counts.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="decode, context 64: operations"):
        counts.main(small=True, to=tmp_path)
    with pytest.raises(ValueError, match="leave out --small"):
        counts.main(small=True, update=True, to=tmp_path)
    with pytest.raises(ValueError, match="with --update"):
        counts.main(small=True, to=tmp_path / "nowhere")


def test_a_count_that_fell_is_to_be_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(counts, "SMALL", ("decode, context 64",))
    stored = json.loads((RESULTS / "counts.json").read_text())
    stored["cases"]["decode, context 64"]["ours"]["operations"] += 100
    (tmp_path / "counts.json").write_text(json.dumps(stored))
    counts.main(small=True, to=tmp_path)
    assert "store them with --update: decode, context 64" in capsys.readouterr().out


def test_every_case_is_stored():
    assert list(STORED["cases"]) == list(CASES)
    assert {name: found["branches"] for name, found in STORED["evaluations"].items()} == {
        "text to image": 90,
        "edit, guided in (0.4, 1]": 131,
        "edit": 147,
    }
