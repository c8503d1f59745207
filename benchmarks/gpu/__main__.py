"""Correctness, speed and memory of the 14B architecture on one GPU, in less than four minutes.

    python -m benchmarks.gpu [--parts correctness denoise decode train memory] [--out outputs/gpu]
                              [--after RECORD] [--plan]
    python -m benchmarks.gpu --size tiny --device cpu          # the rehearsal

Writes OUT/gpu.json after every figure, OUT/gpu.log and OUT/gpu.txt. The exit code is 1 where a comparison failed or
could not be made, and 0 otherwise: any other error is a figure with its cause. docs/gpu.md explains the figures.
"""

import argparse  # typer may be missing on the machine
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from .record import ROOT, SCHEMA, failures, new_document, table, write_whole


@dataclass(frozen=True)
class Part:
    """A part of the run: the module whose `STEPS` it runs, its time limit, and what the time goes to."""

    name: str
    module: str
    seconds: float
    plan: str = ""


PARTS = (
    Part("correctness", "benchmarks.gpu.correctness", 82, "golden records 50, modes 22, flex and compiled 10"),
    Part("denoise", "benchmarks.gpu.denoise", 70, "weights 3, 36 updates 6, images 25, block 2, compiled at most 34"),
    Part("decode", "benchmarks.gpu.decode", 36, "weights 2, dynamic cache 6, image 2, static cache 4, compiled 22"),
    Part("train", "benchmarks.gpu.train", 22, "weights 4, full steps 4, LoRA steps 4, flex attention and compiled 10"),
    Part("memory", "benchmarks.gpu.memory", 28, "understanding 4, everything 6, NF4 6, int8 6, float8 6"),
)


def unmeasured_first(parts: list[Part], earlier: dict[str, Any]) -> list[Part]:
    """Parts in the order in which they lack figures in an earlier record: those with none, those that were cut or in
    which a step broke, the rest."""

    def rank(part: Part) -> int:
        entry = earlier["parts"].get(part.name, {})
        if all(figure["value"] is None for figure in entry.get("figures", [])):
            return 0
        whole = entry["status"] == "done" and all(figure["status"] != "error" for figure in entry["figures"])
        return 2 if whole else 1

    return sorted(parts, key=rank)


def read_earlier(path: Path) -> dict[str, Any]:
    """An earlier record.

    Raises:
        ValueError: if the file cannot be read or holds something else.
    """
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an earlier record: {error}") from error
    if not isinstance(earlier, dict) or earlier.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no record of this script: its schema is not {SCHEMA}")
    return earlier


def plan(limits: dict[str, float]) -> str:
    """A table of the parts with their limits in seconds and what the time goes to."""
    plans = {part.name: part.plan for part in PARTS}
    rows = [f"{name:12} {seconds:4.0f} s  {plans[name]}" for name, seconds in limits.items()]
    return "\n".join([*rows, f"{'together':12} {sum(limits.values()):4.0f} s at most"])


def supervise(parts: list[Part], output: Path, device: str, size: str, golden: Path) -> dict[str, Any]:
    """Run parts one after another, each in a child that is killed at its limit; returns the record.

    The next child imports its libraries while the present one measures, and waits for its turn before it touches the
    device.
    """
    children: list[subprocess.Popen] = []
    with (output.parent / "gpu.log").open("a") as log:
        try:
            children.append(_start(parts[0], output, device, size, golden, log))
            for number, part in enumerate(parts):
                if number + 1 < len(parts):
                    children.append(_start(parts[number + 1], output, device, size, golden, log))
                _watch(children[number], part, output)
        finally:
            for child in children:
                _kill(child)
    return json.loads(output.read_text())


def _start(part: Part, output: Path, device: str, size: str, golden: Path, log: IO[str]) -> subprocess.Popen:
    arguments = [part.module, part.name, str(output), device, size, str(golden), str(part.seconds)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
    )


def _kill(child: subprocess.Popen) -> None:
    """End a child with everything it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _watch(child: subprocess.Popen, part: Part, output: Path) -> None:
    """Give a child its turn, and write down how it ended."""
    started = time.monotonic()
    assert child.stdin is not None
    try:
        child.stdin.write(b"go\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # It ended while importing: its exit code is written down below, the cause is in the log.
    try:
        child.wait(timeout=part.seconds)
        reason = None if child.returncode == 0 else f"ended with exit code {child.returncode}, see gpu.log"
    except subprocess.TimeoutExpired:
        reason = f"stopped at its limit of {part.seconds:.0f} s"
    _kill(child)
    document = json.loads(output.read_text())
    entry = document["parts"][part.name]
    entry["seconds"] = round(time.monotonic() - started, 1)
    if reason is not None:
        entry |= {"status": "stopped", "reason": reason}
        for step, state in entry["steps"].items():
            if state in ("running", "not_run"):
                name = f"{part.name}.{step}"
                entry["figures"].append(
                    {"name": name, "value": None, "unit": "", "status": "not_run", "reason": reason}
                )
    write_whole(output, document)


def main(arguments: list[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "gpu")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--limit", nargs="+", default=[], metavar="PART=SECONDS")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden" / "fixtures", metavar="DIR")
    parser.add_argument("--after", type=Path, metavar="RECORD", help="parts without a figure in this record run first")
    parser.add_argument("--plan", action="store_true", help="print the seconds of each part and end")
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        from .run import run_steps

        module, name, output, device, size, golden, seconds = chosen.child
        run_steps(module, name, Path(output), device, size, Path(golden), float(seconds))
        return 0
    parts = [part for part in PARTS if part.name in chosen.parts]
    if chosen.after is not None:
        try:
            parts = unmeasured_first(parts, read_earlier(chosen.after))
        except ValueError as error:
            parser.error(str(error))
    limits = {part.name: part.seconds for part in parts}
    for setting in chosen.limit:
        name, _, seconds = setting.partition("=")
        if name not in limits or not seconds.replace(".", "", 1).isdigit():
            parser.error(f"--limit takes PART=SECONDS for the parts that run ({', '.join(limits)}), not {setting}")
        limits[name] = float(seconds)
    if chosen.plan:
        print(plan(limits))
        return 0
    parts = [replace(part, seconds=limits[part.name]) for part in parts]
    document = start_record(parts, chosen.out, chosen.device, chosen.size)
    document = supervise(parts, chosen.out / "gpu.json", chosen.device, chosen.size, chosen.golden.resolve())
    shown = table(document)
    failed = failures(document)
    shown += "\n\n" + ("\n".join(["failed:", *failed]) if failed else "no comparison failed")
    (chosen.out / "gpu.txt").write_text(shown + "\n")
    print(shown)
    return 1 if failed else 0


def start_record(parts: list[Part], folder: Path, device: str, size: str) -> dict[str, Any]:
    """An empty record in a folder, for these parts."""
    folder.mkdir(parents=True, exist_ok=True)
    document = new_document({"device": device, "size": size, "seconds": {part.name: part.seconds for part in parts}})
    for part in parts:
        document["parts"][part.name] = {
            "status": "not_run",
            "seconds": None,
            "limit_seconds": part.seconds,
            "steps": {},
            "figures": [],
        }
    write_whole(folder / "gpu.json", document)
    (folder / "gpu.log").write_text("")
    return document


if __name__ == "__main__":
    sys.exit(main())
