"""Cost of building, checking and publishing synthetic records at several sizes: time, memory, bytes.

    python -m benchmarks.unimed5m_scale WORK [--sizes 20000,60000,200000] [--processes 1] [--to benchmarks/results]

Each size runs in a process of its own, in a folder below WORK that is removed afterwards. Writes
TO/unimed5m_scale.json and TO/unimed5m_scale.png. Peak memory is the largest sum of the proportional set sizes (PSS) of
that process and all its descendants, sampled ten times a second: a page that several processes share counts once.
Linux only, since only there the kernel reports it. "largest_process_bytes" is the kernel's own record of the largest
resident set that any one of them had, which no sampling can miss.
"""

import io
import json
import multiprocessing
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy
import psutil
from PIL import Image
from typer import Option

from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.pipeline import LocalExecutor
from unimedvl.unimed5m.publish import publish
from unimedvl.unimed5m.quality.coarse import CoarseFilter
from unimedvl.unimed5m.quality.control import QualitySettings, quality_control
from unimedvl.unimed5m.schema import Record, RecordImage, Turn, record_id
from unimedvl.utils.command_line import comma_separated, run_module

from .origin import origin

RESULTS = Path(__file__).with_name("results")
MEMORY_LIMIT = 2 * 2**30
SHARD_RECORDS = 5_000
SIDE = 128
# One in so many records is too small, one in so many has damaged bytes: the filter has something to find.
SMALL_EVERY, DAMAGED_EVERY = 50, 1_000


class SyntheticSource:
    """`count` records with a drawn JPEG of 128x128 pixels each, made anew from the record's number."""

    name = "synthetic"

    def __init__(self, count: int) -> None:
        self.count = count

    def fingerprint(self, root: Path) -> str:
        return f"synthetic {self.count}"

    def records(
        self,
        root: Path,
        split: str | None = None,
        shard: tuple[int, int] = (0, 1),
        problem: Callable[[str, str], None] | None = None,
    ) -> Iterator[Record]:
        index, count = shard
        for number in range(self.count * index // count, self.count * (index + 1) // count):
            yield synthetic_record(number)


def synthetic_record(number: int) -> Record:
    side = SIDE - 8 if number % SMALL_EVERY == 7 else SIDE
    generator = numpy.random.default_rng(number)
    field = generator.integers(0, 256, size=(8, 8), dtype=numpy.uint8)
    buffer = io.BytesIO()
    Image.fromarray(field).resize((side, side), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=85)
    data = buffer.getvalue()
    if number % DAMAGED_EVERY == 11:
        data = data[: len(data) // 2]
    return Record(
        id=record_id("synthetic", str(number), "caption", ""),
        main_task_type="image_understanding",
        sub_task_type="caption",
        modality=("CT", "MRI", "CXR", "HIS")[number % 4],
        dataset="synthetic",
        input_img=(RecordImage(data, f"{number}.jpg", side, side),),
        output_img=(),
        message=(Turn("human", "<image>\nDescribe the image."), Turn("gpt", f"A drawn field with number {number}.")),
        license="CC0",
        license_tier="A",
        redistributable="yes",
        provenance="drawn",
        split="validation" if number % 10 == 0 else "train",
        group_id=str(number),
        synthetic=True,
    )


class PeakMemory:
    """Samples the proportional set sizes of this process and its descendants until `stop`."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.1):
            total = 0
            for member in (process, *process.children(recursive=True)):
                try:
                    total += member.memory_full_info().pss
                except psutil.NoSuchProcess:
                    # It ended between the listing and the look.
                    continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self.peak


def bytes_below(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def measure(size: int, folder: Path, processes: int) -> dict[str, Any]:
    """Build, check and publish `size` records below `folder`; returns counts, seconds, bytes and peak memory."""
    executor, memory, seconds = LocalExecutor(processes), PeakMemory(), {}
    began = time.monotonic()
    build(SyntheticSource(size), folder, folder / "built", shards=max(1, size // SHARD_RECORDS), executor=executor)
    seconds["build"] = time.monotonic() - began
    began = time.monotonic()
    settings = QualitySettings(CoarseFilter(enforce="all"), duplicates=False)
    checked = quality_control(folder / "built", folder / "checked", settings, executor)
    seconds["check"] = time.monotonic() - began
    began = time.monotonic()
    published = publish(folder / "checked", folder / "published", executor=executor)
    seconds["publish"] = time.monotonic() - began
    assert checked["read"] == size and published["records"] == checked["kept"]
    total = sum(seconds.values())
    peak = memory.stop()
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "records": size,
        "processes": processes,
        "kept": checked["kept"],
        "dropped": checked["stages"][0]["dropped"],
        "seconds": {**{name: round(value, 2) for name, value in seconds.items()}, "total": round(total, 2)},
        "records_per_second": round(size / total, 1),
        "milliseconds_per_record": round(1000 * total / size, 4),
        "bytes_per_record": round(bytes_below(folder / "published") / published["records"], 1),
        "peak_bytes": peak,
        "largest_process_bytes": 1024 * largest,
    }


def line(results: list[dict[str, Any]]) -> dict[str, float]:
    """The straight line of least squares through (records, seconds), and how far the sizes are from it."""
    sizes = numpy.array([result["records"] for result in results], dtype=float)
    seconds = numpy.array([result["seconds"]["total"] for result in results])
    slope, start = numpy.polyfit(sizes, seconds, 1)
    deviation = numpy.abs(slope * sizes + start - seconds).max() / seconds.max()
    return {
        "milliseconds_per_record": round(float(1000 * slope), 4),
        "seconds_at_zero": round(float(start), 2),
        "largest_relative_deviation": round(float(deviation), 4),
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = [result["records"] for result in results]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in ("total", "build", "check", "publish"):
        left.plot(sizes, [result["seconds"][name] for result in results], marker="o", label=name)
    fitted = line(results)
    ends = numpy.array([0, max(sizes)])
    fit = fitted["milliseconds_per_record"] / 1000 * ends + fitted["seconds_at_zero"]
    left.plot(ends, fit, color="#999999", linestyle=":", label="line through total")
    left.set(xlabel="records", ylabel="seconds", title="Time", xlim=(0, None), ylim=(0, None))
    left.legend()
    right.plot(sizes, [result["peak_bytes"] / 2**30 for result in results], marker="o", color="#440154")
    right.axhline(MEMORY_LIMIT / 2**30, color="#999999", linestyle="--")
    right.set(xlabel="records", ylabel="GiB", title="Peak memory (PSS)", xlim=(0, None), ylim=(0, 2.2))
    for axes in (left, right):
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main(
    work: Path,
    sizes: Annotated[str, Option(metavar="A,B", help="Numbers of records: two or more.")] = "20000,60000,200000",
    processes: int = 1,
    to: Path = RESULTS,
) -> None:
    counts = {int(size) for size in comma_separated(sizes)}
    if len(counts) < 2:
        raise ValueError("a line needs two different --sizes or more.")
    to.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for size in sorted(counts):
        folder = work / f"records-{size}"
        shutil.rmtree(folder, ignore_errors=True)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            results.append(pool.submit(measure, size, folder, processes).result())
        shutil.rmtree(folder)
        print(json.dumps(results[-1]), flush=True)
    report = {
        "origin": origin(),
        "image": f"{SIDE}x{SIDE} JPEG",
        "memory_within_limit": all(result["peak_bytes"] < MEMORY_LIMIT for result in results),
        "line": line(results),
        "sizes": results,
    }
    (to / "unimed5m_scale.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(results, to / "unimed5m_scale.png")


if __name__ == "__main__":
    sys.exit(run_module(main))
