"""What `unimedvl serve` gains by batching, how long requests wait under load, and what its start costs in memory.

    python -m benchmarks.serving [throughput] [waiting] [start]

Throughput and waiting are measured with the shipped checkpoint and the official client, as ratios within a round: two
servers of the same settings but for the batch are asked in turn. Requests per second of 8 clients are put beside those
of one client that sends one request after another, and beside 8 clients of a server that batches nothing.

The start is that of a random bfloat16 checkpoint of 3 GB: peaks of resident memory, and time until it answers, of the
server and of a plain `from_pretrained` that reads every weight once.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.hub_cards.server.load import Outcome, mixed, run_load
from tests.hub_cards.server.running import Running, serving
from unimedvl.checkpoint.folder import NANO_DIRECTORY

from .origin import origin
from .start import RESULTS, environment, spread, write_wide_checkpoint

ROUNDS = 5
CLIENTS = 8
TOKENS = 32
# Of 13 in the checkpoint of over 1 GB.
LAYERS_OF_3_GB = 40
PLAIN = """
import sys, torch
from benchmarks.start import read_weights
from unimedvl import UniMedVLForConditionalGeneration
print(read_weights(UniMedVLForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.bfloat16)))
"""


def texts(number: int) -> str:
    """Questions without images."""
    return "text"


def generations(number: int) -> str:
    """Prompts of new images."""
    return "generation"


def rate(server: Running, count: int, clients: int, kind_of: Callable[[int], str]) -> tuple[float, list[Outcome]]:
    """Requests per second of a load, and what became of each."""
    started = time.monotonic()
    outcomes = run_load(server, count, clients, kind_of, TOKENS)
    seconds = time.monotonic() - started
    assert all(outcome.status == 200 for outcome in outcomes if outcome.kind != "refused")
    return count / seconds, outcomes


def measure_throughput(folder: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Requests per second of 8 clients, as ratios."""
    report: dict[str, Any] = {"clients": CLIENTS, "rounds": rounds, "tokens of an answer": TOKENS}
    with serving(folder) as batched, serving(folder, ["--text-batch", "1", "--image-batch", "1"]) as single:
        for name, kind_of, count in (("text", texts, 48), ("images of equal settings", generations, 32)):
            for server in (batched, single):
                rate(server, 2 * CLIENTS, CLIENTS, kind_of)
            to_one, to_single = [], []
            for _ in range(rounds):
                together = rate(batched, count, CLIENTS, kind_of)[0]
                to_one.append(together / rate(batched, count // 4, 1, kind_of)[0])
                to_single.append(together / rate(single, count, CLIENTS, kind_of)[0])
            report[name] = {
                "8 clients to one client": spread(to_one),
                "8 clients to 8 clients without batches": spread(to_single),
            }
        rows, batches = (batched.metric(f'unimedvl_batch_rows_{part}{{kind="text"}}') for part in ("sum", "count"))
        report["rows of a batch of texts, mean"] = round(rows / batches, 2)
    return report


def quantiles(outcomes: list[Outcome]) -> tuple[float, float]:
    """Median and 95th percentile of the seconds."""
    seconds = sorted(outcome.seconds for outcome in outcomes if outcome.kind != "refused")
    return statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]


def measure_waiting(folder: Path, count: int = 96) -> dict[str, Any]:
    """Times until an answer under loads of 8 clients, as ratios to the median of one request alone."""
    report: dict[str, Any] = {"clients": CLIENTS, "requests": count}
    with serving(folder) as server:
        for name, kind_of in (("text", texts), ("generation", generations)):
            rate(server, 8, 1, kind_of)
            alone = quantiles(rate(server, 24, 1, kind_of)[1])[0]
            middle, late = quantiles(rate(server, count, CLIENTS, kind_of)[1])
            beside = [outcome for outcome in rate(server, 2 * count, CLIENTS, mixed)[1] if outcome.kind == name]
            mixed_middle, mixed_late = quantiles(beside)
            report[name] = {
                "p50 to one alone": round(middle / alone, 2),
                "p95 to one alone": round(late / alone, 2),
                "p50 to one alone, in a mixed load": round(mixed_middle / alone, 2),
                "p95 to one alone, in a mixed load": round(mixed_late / alone, 2),
            }
    return report


class Peak(threading.Thread):
    """The most resident memory of a process, sampled until it is asked for."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._process, self._over, self.most = psutil.Process(pid), threading.Event(), 0
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.005):
            try:
                self.most = max(self.most, self._process.memory_info().rss)
            except psutil.NoSuchProcess:
                return

    def end(self) -> int:
        self._over.set()
        self.join()
        return self.most


def write_checkpoint(folder: Path) -> None:
    """The 3 GB checkpoint, with the processor of the shipped one."""
    write_wide_checkpoint(folder, "1GB", num_hidden_layers=LAYERS_OF_3_GB)
    for path in NANO_DIRECTORY.glob("*"):
        if path.name.startswith(("tokenizer", "processor_config", "chat_template", "generation_config")):
            (folder / path.name).write_bytes(path.read_bytes())


def measure_start(folder: Path) -> dict[str, Any]:
    """Peaks of memory and times of the server's start beside plain `from_pretrained`."""
    place = folder / "three-gigabytes"
    write_checkpoint(place)
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", PLAIN, str(place)], env=environment(), stdout=subprocess.PIPE
    ) as child:
        peak = Peak(child.pid)
        assert child.stdout is not None
        weights = int(child.stdout.read())
        plain_seconds = time.monotonic() - started
        plain = peak.end()
    started = time.monotonic()
    peaks: list[Peak] = []
    with serving(folder, ["--model", str(place)], started=lambda process: peaks.append(Peak(process.pid))) as server:
        ready_seconds = time.monotonic() - started
        with server.http(timeout=600) as client:
            question = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
            assert client.post("/v1/chat/completions", json=question).status_code == 200
            # The other half of the weights.
            made = client.post("/v1/images/generations", json={"prompt": "a", "steps": 1, "size": "64x64"})
            assert made.status_code == 200, made.text
        served = peaks[0].end()
    return {
        "weights, GB": round(weights / 1e9, 2),
        "plain from_pretrained, resident peak to weights": round(plain / weights, 3),
        "server with one answer and one image, resident peak to weights": round(served / weights, 3),
        "server's resident peak to plain's": round(served / plain, 3),
        "server's seconds until ready to plain's": round(ready_seconds / plain_seconds, 2),
    }


MEASURES = {"throughput": measure_throughput, "waiting": measure_waiting, "start": measure_start}


def main(names: list[str]) -> None:
    path = RESULTS / "serving.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    report["origin"] = origin(kept=report.get("origin") if names else None)
    for name in names or MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            report[name] = MEASURES[name](Path(folder))
        # A run that is cut short keeps what it has.
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
