"""Training loops of the nano's parts that are no stage of the curriculum: they resume where they were stopped."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from unimedvl.training.checkpoints import (
    changed_settings,
    check_names,
    checkpoints,
    keep_newest,
    load_optimizer,
    load_tensors,
    optimizer_steps,
    optimizer_tensors,
    random_state,
    save_tensors,
    set_random_state,
    whole_folder,
)
from unimedvl.utils.json_files import read_json, write_json

EVERY = 200  # steps from checkpoint to checkpoint
STATE = "state.json"
Generator = numpy.random.Generator | torch.Generator


def one_cycle(
    optimizer: torch.optim.Optimizer, rate: float, steps: int, rising: float
) -> torch.optim.lr_scheduler.OneCycleLR:
    """A learning rate that rises to `rate` over a share of the steps, and falls over the others.

    It rises over two steps at least and falls after them: torch divides by the lengths of both parts less one.
    """
    steps = max(steps, 3)
    share = max(rising, 2 / steps)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=share)


class ResumableSteps:
    """The numbers of the steps of a training with AdamW and a schedule, from the last checkpoint in a folder on.

    A step belongs to the next checkpoint when the following number is asked for. The two newest checkpoints stay in
    the folder, so that one that lost a part of a file costs `EVERY` steps; a run that was stopped and resumed
    ends in the same weights as one that was not.

    Raises:
        ValueError: if the checkpoint in the folder was made with other `settings`, is of another model, or is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        total: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: Generator,
        settings: Mapping[str, Any],
    ):
        self.folder, self.total, self.model = Path(folder), total, model
        self.optimizer, self.schedule, self.generator = optimizer, schedule, generator
        self.settings = {"steps": total, **settings}
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.done, self._seconds = 0, 0.0
        self.folder.mkdir(parents=True, exist_ok=True)
        found = checkpoints(self.folder)
        if found:
            self._load(found[-1])
        self._begun, self._started = self.done, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, with its parts before the last checkpoint."""
        return self._seconds + time.perf_counter() - self._started

    def __iter__(self) -> Iterator[int]:
        for step in range(self.done + 1, self.total + 1):
            yield step
            self.done = step
            if step % EVERY == 0 or step == self.total:
                self._save()

    def seconds_left(self, step: int) -> float:
        """Seconds that the steps after this one take at the pace of this part of the run."""
        return (time.perf_counter() - self._started) / (step - self._begun) * (self.total - step)

    def _save(self) -> None:
        state = {
            "settings": self.settings,
            "step": self.done,
            "seconds": self.seconds,
            "schedule": self.schedule.state_dict(),
            "groups": self.optimizer.state_dict()["param_groups"],
            "optimizer steps": optimizer_steps(self.optimizer, self.names),
            "random": random_state(),
            "generator": _state_of(self.generator),
        }
        # Safetensors hold no other order of memory, such as a convolution's channels_last.
        tensors = {
            name: tensor.contiguous()
            for name, tensor in {**self.model.state_dict(), **optimizer_tensors(self.optimizer, self.names)}.items()
        }
        with whole_folder(self.folder / f"checkpoint-{self.done}") as partial:
            save_tensors(tensors, partial)
            write_json(partial / STATE, state)
        keep_newest(self.folder, 2)

    def _load(self, checkpoint: Path) -> None:
        mend = f"choose another --out, or remove {checkpoint} to start anew."
        damaged = f"{checkpoint} is damaged, or of another model: {mend}"
        try:
            state = read_json(checkpoint / STATE)
        except ValueError as error:
            raise ValueError(damaged) from error
        changed = changed_settings(state["settings"], self.settings)
        if changed:
            raise ValueError(f"{checkpoint} was made with another value of {', '.join(changed)}: {mend}")
        try:
            weights = self.model.state_dict()
            check_names(checkpoint, weights)
            load_tensors(weights, checkpoint)
            load_optimizer(self.optimizer, self.names, checkpoint, state["optimizer steps"])
        except ValueError as error:
            raise ValueError(damaged) from error
        for group, stored in zip(self.optimizer.param_groups, state["groups"], strict=True):
            group.update({**stored, "params": group["params"], "betas": tuple(stored["betas"])})
        self.schedule.load_state_dict(state["schedule"])
        set_random_state(state["random"])
        _set_state(self.generator, state["generator"])
        self.done, self._seconds = state["step"], state["seconds"]


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    return generator.bit_generator.state


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.tensor(state, dtype=torch.uint8))
    else:
        generator.bit_generator.state = state
