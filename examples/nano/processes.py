"""Commands that others start: what they use, and how they and all that they have started end."""

import signal
import subprocess

import psutil


def stop(process: subprocess.Popen) -> None:
    """End a command and all that it has started."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with_signal(member, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=20)
    for member in alive:
        with_signal(member, signal.SIGKILL)
    process.wait()


def with_signal(process: psutil.Process, number: int) -> None:
    """Send a signal to a process that may have ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def use_of(pid: int) -> tuple[int, float]:
    """Memory in MiB, and seconds of processors up to now, of a process and all that it has started."""
    total, seconds = 0, 0.0
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            total += process.memory_info().rss
            seconds += sum(process.cpu_times()[:4])  # its own and those of its ended children
    except psutil.NoSuchProcess:
        pass
    return total >> 20, seconds
