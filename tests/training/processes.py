"""Runs in processes of their own, forked from one that has the libraries loaded: as good as new ones, and quick."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["unimedvl.training.run"])


def _work(arguments: list[str], output: Path, environment: dict[str, str], file_bytes: int | None) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.environ.update(environment)
    if file_bytes is not None:
        # Writing more is then an error and no signal.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    # The number of threads is part of the bits.
    torch.set_num_threads(1)
    from unimedvl.training.run import main

    code = main(arguments)
    sys.stdout.flush()
    # As a process ends that has no other business, whatever threads a broken connection left.
    os._exit(code)


def _own_bytes() -> int:
    """Memory that is this process's alone: no mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _measure_loading(model: Path, output: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    from accelerate import PartialState

    from unimedvl.checkpoint.folder import open_checkpoint
    from unimedvl.training.curriculum.sharding import load_sharded
    from unimedvl.training.data_recipe import DataRecipe, GroupRecipe
    from unimedvl.training.recipe import TrainingRecipe

    state = PartialState(cpu=True)
    before, peak, done = _own_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    recipe = TrainingRecipe("model", "output", DataRecipe([GroupRecipe("all", "records")]), 1, bf16=False)
    load_sharded(open_checkpoint(model), recipe, state.device)
    done.set()
    watcher.join()
    output.write_text(str(peak - before))
    os._exit(0)


def peak_while_loading(model: Path, folder: Path, processes: int) -> list[int]:
    """Bytes that each process took at most while a checkpoint was loaded in shares."""
    outputs = [folder / f"peak-{rank}" for rank in range(processes)]
    started = []
    for environment, output in zip(_environments(processes), outputs, strict=True):
        started.append(_CONTEXT.Process(target=_measure_loading, args=(model, output, environment)))
        started[-1].start()
    for process in started:
        process.join(300)
    return [int(output.read_text()) for output in outputs]


def _environments(processes: int) -> list[dict[str, str]]:
    """What torchrun gives every process."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


class Run:
    """A run of a recipe in one process or several, which talk over gloo as under torchrun."""

    def __init__(self, path: Path, overrides: Sequence[str] = (), processes: int = 1, file_bytes: int | None = None):
        self.outputs = [path.with_suffix(f".{rank}.log") for rank in range(processes)]
        self.processes = []
        for environment, output in zip(_environments(processes), self.outputs, strict=True):
            arguments = ([str(path), *overrides], output, environment, file_bytes)
            self.processes.append(_CONTEXT.Process(target=_work, args=arguments))
        for process in self.processes:
            process.start()

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def kill(self, rank: int | None = None) -> None:
        """SIGKILL, which nothing can catch, to one process or all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            process.kill()

    def wait(self, timeout: float = 300) -> list[int | None]:
        """The exit codes; whatever runs longer is killed."""
        for process in self.processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def said(self, rank: int = 0) -> str:
        return self.outputs[rank].read_text() if self.outputs[rank].exists() else ""

    def errors(self, rank: int = 0) -> list[str]:
        """Lines that the command ended with."""
        return [line for line in self.said(rank).splitlines() if line.startswith("python -m unimedvl.training.run: ")]


def finish(path: Path, *overrides: str, processes: int = 1) -> Run:
    """Run to the end, which must be a good one."""
    run = Run(path, overrides, processes)
    codes = run.wait(120)
    assert codes == [0] * processes, "\n".join(run.said(rank) for rank in range(processes))
    return run
