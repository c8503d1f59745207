"""Losses and gradient norms stay on the device during a run, and are looked at together.

Reading a number from a GPU makes the host wait until all its work is done. A run therefore reads its numbers where it
logs or saves, and judges every step since the last time then: no checkpoint is ever written of a step that is not
sound.
"""

import logging
import math
import statistics
from collections import deque
from dataclasses import dataclass, field

import torch

from ..checkpoints import gather
from ..data.collate import BatchInfo

logger = logging.getLogger(__name__)


@dataclass
class _Step:
    """One optimizer step of this process: the losses of its micro-batches, their records, the norm of gradients."""

    number: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    records: list[list[str]] = field(default_factory=list)
    norm: torch.Tensor | None = None


class StepWatch:
    """Keeps the numbers of steps until `read`, which judges them.

    Args:
        spike_factor: see `TrainingRecipe`.
        output_dir: where the run's checkpoints lie.
    """

    def __init__(self, spike_factor: float, output_dir: str):
        self.spike_factor, self.output_dir = spike_factor, output_dir
        # Losses of the last steps, which a checkpoint keeps.
        self.recent: deque[float] = deque(maxlen=100)
        self._steps: list[_Step] = []
        self._open = _Step()

    def add_loss(self, loss: torch.Tensor, info: BatchInfo) -> None:
        """Take in the part of a step's loss that comes from a micro-batch, a scalar."""
        self._open.losses.append(loss.detach().float())
        self._open.records.append([sample.record_id for sample in info.samples])

    def end_step(self, number: int, norm: torch.Tensor) -> None:
        """Take in the norm of the gradients of a step, a scalar; steps count from 1."""
        self._open.number, self._open.norm = number, norm.detach().float()
        self._steps.append(self._open)
        self._open = _Step()

    def read(self) -> None:
        """Judge the steps since the last time; every process calls it.

        Raises:
            ValueError: for the first step whose loss or norm is not finite, or whose loss has jumped, naming the
                records that it was on.
        """
        if not self._steps:
            return
        numbers = [number for step in self._steps for number in (*step.losses, step.norm) if number is not None]
        values = iter(torch.stack(numbers).tolist())
        own = [([next(values) for _ in step.losses], step.records, next(values)) for step in self._steps]
        steps, self._steps = [step.number for step in self._steps], []
        for number, *processes in zip(steps, *gather(own), strict=True):
            self._judge(number, processes)

    def _judge(self, number: int, processes: list[tuple[list[float], list[list[str]], float]]) -> None:
        records = [name for _, names, _ in processes for batch in names for name in batch]
        for losses, names, _ in processes:
            for loss, batch in zip(losses, names, strict=True):
                if not math.isfinite(loss):
                    self._stop(f"The loss is {loss}", number, batch)
        norm = processes[0][2]
        if not norm < math.inf:
            self._stop(f"The norm of the gradients is {norm}", number, records)
        if norm == 0.0 and number == 1:
            logger.warning("no gradient reaches what is trained: the first samples do not use it")
        if self.spike_factor:
            self._check_spike(sum(sum(losses) for losses, _, _ in processes), number, records)

    def _check_spike(self, loss: float, number: int, records: list[str]) -> None:
        factor = self.spike_factor
        if len(self.recent) == self.recent.maxlen and loss > factor * statistics.median(self.recent):
            self._stop(f"The loss jumped to {loss:.4g}, more than {factor:g} times its median,", number, records)
        self.recent.append(loss)

    def _stop(self, what: str, number: int, records: list[str]) -> None:
        raise ValueError(
            f"{what} at step {number}, on the records {', '.join(records)}; the last checkpoint in {self.output_dir} "
            "is untouched."
        )
