"""A part's steps, one after another in a process of their own: a step that breaks is recorded, the next one runs."""

import importlib
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .architecture import SIZES, Size
from .record import Recorder, machine
from .timing import copy_bytes_per_second, matmul_flops_per_second


class Bench:
    """What the steps of a part share.

    Attributes:
        device, size: where and at what size it runs.
        record: where figures go.
        golden: folder of golden records.
    """

    def __init__(self, device: str, size: Size, record: Recorder, golden: Path, seconds: float):
        self.device = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
        self.size, self.record, self.golden = size, record, golden
        self._ends = time.monotonic() + seconds
        self._shared: dict[str, Any] = {}

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """Something several steps use, made by the first of them."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def forget(self, name: str) -> None:
        """Give up something shared."""
        self._shared.pop(name, None)

    def seconds_left(self, reserve: float = 0.0) -> float:
        """Seconds until the part's limit, less what later steps need."""
        return self._ends - time.monotonic() - reserve

    @property
    def flops_ceiling(self) -> float:
        """Rate of a large bfloat16 product in this process."""
        return self.shared("flops", lambda: matmul_flops_per_second(self.device, self.size.matmul_side))

    @property
    def bytes_ceiling(self) -> float:
        """Rate of a large copy in this process, read and written bytes together."""
        return self.shared("bytes", lambda: copy_bytes_per_second(self.device, self.size.copy_bytes))


def record_ceilings(bench: Bench) -> None:
    """The two rates that shares refer to."""
    part = bench.record.part
    bench.record.measured(f"{part}.ceiling.matmul", bench.flops_ceiling / 1e12, "TFLOP/s")
    bench.record.measured(f"{part}.ceiling.copy", bench.bytes_ceiling / 1e9, "GB/s")


def run_steps(module: str, part: str, output: Path, device: str, size: str, golden: Path, seconds: float) -> None:
    """Run every step of a part's module. Waits for a line on standard input before it touches the device."""
    steps = importlib.import_module(module).STEPS
    sys.stdin.readline()
    record = Recorder(output, part)
    if device.startswith("cuda"):
        torch.cuda.set_device(0)
    if record.document["machine"] is None:
        record.document["machine"] = machine(device)
    record.entry["steps"] = dict.fromkeys((step.__name__ for step in steps), "not_run")
    bench = Bench(device, SIZES[size], record, golden, seconds)
    for step in steps:
        record.entry["steps"][step.__name__] = "running"
        record.save()
        try:
            step(bench)
        except Exception as error:  # any cause is written down under the step's name
            record.error(f"{part}.{step.__name__}", error)
            record.entry["steps"][step.__name__] = "error"
            traceback.print_exc()
        else:
            record.entry["steps"][step.__name__] = "done"
        record.save()
    record.entry["status"] = "done"
    record.save()
