"""Clocks, peaks, ceilings, kernel counts and differences, the same calls on a GPU and in a rehearsal on a CPU."""

import gc
import resource
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.operations import OperationCounter

# Relative rounding error of bfloat16 (8 significant bits) and how many roundings a layer puts on its way: two norms,
# projections, per-head norms, RoPE, attention, output projection, gate, up, their product, down, two sums.
BF16_ROUNDING = 2.0**-8
ROUNDINGS_PER_LAYER = 16


def bf16_tolerance(layers: int) -> float:
    """Relative L2 error that bfloat16 may have against a more exact run of a stack of `layers` layers.

    Independent rounding errors, uniform within half a unit in the last place, add in squares; the factor of two
    covers the parts before and after the stack and the spread between inputs.
    """
    return 2 * BF16_ROUNDING / 3**0.5 * (ROUNDINGS_PER_LAYER * layers) ** 0.5


class Clock:
    """Marks on the device's own time line: CUDA events, or the processor's clock on a CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def intervals(self, warmup: int = 0) -> list[float]:
        """Milliseconds between neighboring marks, without the first `warmup` ones."""
        synchronize(self.device)
        pairs = list(zip(self.marks, self.marks[1:], strict=False))[warmup:]
        if self.device.type == "cuda":
            return [start.elapsed_time(end) for start, end in pairs]
        return [1e3 * (end - start) for start, end in pairs]


def synchronize(device: torch.device) -> None:
    """Wait for the device's work; a CPU has none to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> None:
    """Free unused memory and start `peak_bytes` anew, on a GPU."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def allocated_bytes(device: torch.device) -> int:
    """Bytes that tensors hold now; on a CPU the largest size the process has had."""
    return torch.cuda.memory_allocated() if device.type == "cuda" else peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """Largest number of bytes tensors held since `reset_peak`; on a CPU the largest size the process has had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def milliseconds(function: Callable[[], Any], device: torch.device, repeats: int = 10, warmup: int = 3) -> float:
    """Median time of a call."""
    for _ in range(warmup):
        function()
    clock = Clock(device)
    clock.mark()
    for _ in range(repeats):
        function()
        clock.mark()
    return statistics.median(clock.intervals())


def matmul_flops_per_second(device: torch.device, side: int) -> float:
    """Rate of a square bfloat16 product of random numbers: zeros would run faster than any real data."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / milliseconds(lambda: left @ right, device) * 1e3


def copy_bytes_per_second(device: torch.device, size: int) -> float:
    """Bytes read plus bytes written by a copy within the device's memory."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / milliseconds(lambda: target.copy_(source), device) * 1e3


@contextmanager
def time_guard(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after some seconds. A compiler stuck in C is left to the part's limit."""

    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"not finished after {seconds:.0f} s")

    if seconds <= 0:
        raise TimeoutError("no time was left for it")
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def count_waits(device: torch.device) -> Iterator[list[str]]:
    """What makes the host wait for the device while the block runs, one entry for each wait: on a GPU all that CUDA
    reports, by place (where `set_sync_debug_mode("error")` would raise), on a CPU the operations that read values."""
    found: list[str] = []
    if device.type != "cuda":
        with OperationCounter() as counter:
            yield found
        found += counter.snapshot().synchronizations.elements()
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{entry.filename}:{entry.lineno}" for entry in caught if "synchroniz" in str(entry.message)]


class Profile:
    """Kernels (on a CPU: operators) between `start` and `stop`, and the time in which one ran."""

    def __init__(self, device: torch.device):
        self.device = device
        # On a GPU only its own work is recorded: recording operators as well would slow the host down.
        self.profiler = profile(activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU])

    def start(self) -> None:
        synchronize(self.device)
        self.profiler.__enter__()

    def stop(self) -> None:
        synchronize(self.device)
        self.profiler.__exit__(None, None, None)

    def count_and_busy_milliseconds(self) -> tuple[int, float]:
        """The number of events on the device, and the milliseconds in which at least one ran."""
        wanted = torch.autograd.DeviceType.CUDA if self.device.type == "cuda" else torch.autograd.DeviceType.CPU
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in self.profiler.events() or []
            if event.device_type == wanted and not getattr(event, "is_user_annotation", False)
        )
        assert spans, "the profiler saw no event of the device"
        busy, until = 0.0, spans[0][0]
        for start, end in spans:
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        return len(spans), busy / 1e3


def differences(ours: torch.Tensor, plain: torch.Tensor) -> dict[str, float]:
    """Largest difference, relative L2 distance and cosine of two results, in float64."""
    left = ours.detach().double().flatten()
    right = plain.detach().to(ours.device).double().flatten()
    gap = left - right
    return {
        "max_difference": gap.abs().max().item(),
        "relative_l2": (gap.norm() / right.norm()).item(),
        "cosine": torch.nn.functional.cosine_similarity(left, right, dim=0).item(),
    }
