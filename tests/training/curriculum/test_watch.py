"""Numbers of steps stay on the device until they are looked at, and a bad one is still named exactly."""

import math

import pytest
import torch
from transformers import TrainerCallback

from benchmarks.operations import OperationCounter
from unimedvl.training.checkpoints import checkpoints
from unimedvl.training.curriculum.trainer import UniMedVLTrainer
from unimedvl.training.curriculum.watch import StepWatch
from unimedvl.training.data.collate import BatchInfo, SampleInfo
from unimedvl.training.run import main, run


def info(name: str) -> BatchInfo:
    return BatchInfo([SampleInfo(name, "vqa", "CXR", "all", 0, 0, 1, 0, 5)], 5, {})


def watched(losses: list[list[float]], norms: list[float], spike_factor: float = 0.0) -> StepWatch:
    """A watch after steps of these losses; step 2's second micro-batch is on the record "2b"."""
    watch = StepWatch(spike_factor, "out")
    for number, (parts, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        for letter, loss in zip("abcd", parts, strict=False):
            watch.add_loss(torch.tensor(loss), info(f"{number}{letter}"))
        watch.end_step(number, torch.tensor(norm))
    return watch


def test_the_first_loss_that_is_no_number_is_named_with_its_step_and_records():
    watch = watched([[1.0, 1.0], [1.0, math.nan], [math.nan, 1.0]], [1.0, math.nan, math.nan])
    with pytest.raises(ValueError, match="loss is nan at step 2, on the records 2b; the last .* out is untouched"):
        watch.read()


def test_a_norm_that_is_not_finite_names_the_whole_step():
    watch = watched([[1.0, 1.0], [1.0, 1.0]], [1.0, math.inf])
    with pytest.raises(ValueError, match="The norm of the gradients is inf at step 2, on the records 2a, 2b;"):
        watch.read()


def test_a_loss_that_jumps_is_named_however_late_it_is_read():
    losses = [[1e6], *([loss] for loss in (2.0, 2.0, 2.0, 5.9) * 25), [3.0, 3.1], [2.0]]
    watch = watched(losses, [1.0] * len(losses), spike_factor=3.0)
    with pytest.raises(ValueError, match="jumped to 6.1, more than 3 times its median, at step 102.* 102a, 102b;"):
        watch.read()
    assert list(watch.recent) == pytest.approx([loss for parts in losses[1:-2] for loss in parts])


def test_what_was_read_is_not_read_again():
    watch = watched([[1.0]], [1.0])
    watch.read()
    with OperationCounter() as counter:
        watch.read()
    assert not counter.snapshot().synchronizations


class Waits(TrainerCallback):
    """Counts what makes the host wait within each step, from its first micro-batch to its end."""

    def __init__(self):
        self.steps, self.counter = [], None

    def on_step_begin(self, args, state, control, **kwargs):
        self.counter = OperationCounter().__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.counter.__exit__(None, None, None)
        self.steps.append(dict(self.counter.snapshot().synchronizations))


@pytest.mark.medium
@pytest.mark.parametrize("changes", [{}, {"spike_factor": 3.0, "accumulation": 2}, {"gradient_checkpointing": True}])
def test_no_step_waits_for_the_device(recipe, monkeypatch, changes):
    counter = Waits()
    train = UniMedVLTrainer.train

    def counted(self, *args, **kwargs):
        self.add_callback(counter)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(UniMedVLTrainer, "train", counted)
    run(recipe("run", steps=3, log_steps=3, save_steps=3, **changes), [])
    assert counter.steps == [{}, {}, {}]


@pytest.mark.medium
def test_a_bad_step_between_two_logs_is_named_and_never_saved(recipe, tmp_path, capsys):
    optimizer = {"learning_rate": 1e30, "warmup_steps": 0}
    path = recipe("diverging", optimizer=optimizer, steps=6, log_steps=6, save_steps=4)
    assert main([str(path)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    # The first step's loss is sound, its update is not: the second's says so, before the fourth is saved.
    assert "at step 2, on the records" in line and "-train" in line and "untouched" in line
    assert checkpoints(tmp_path / "diverging") == []
