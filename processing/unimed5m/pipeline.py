"""Sharded, resumable work over record shards, with the same bytes on one process, many processes or Ray.

A job is a pure function from one input shard to the files of one output shard. Nothing a shard writes depends on
another shard, on the process that writes it or on the clock, so the executor cannot show in the result:

* `LocalExecutor` maps the shards with `datasets`, in one process or in several;
* `RayExecutor` maps them with Ray Data (extra `ray`).

Every file is written beside its place and renamed into it; a receipt is written last. A shard with a receipt of the
same job over the same input is finished and never done again; everything else is done anew. A run that was killed
at any moment is resumed by starting it again.
"""

import functools
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy
import pyarrow as pa
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

# Images dominate a row: a hundred rows keep one batch in tens of megabytes and are the Hub's advice for row groups.
BATCH_ROWS = 100
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class ShardTask:
    """One shard of one job: `source` is the input file, `name` the stem of everything the shard writes."""

    name: str
    source: str
    output: str


ShardFunction = Callable[[ShardTask], Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """A named step over shards.

    `function` is a picklable callable of one `ShardTask`; it returns the counts that go into the receipt. `settings`
    is a JSON mapping of everything besides the input bytes that decides the output. `extra_inputs` names, per shard,
    further files that the output depends on.
    """

    name: str
    function: ShardFunction
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra_inputs: Callable[[ShardTask], Sequence[Path]] | None = None


class Executor(Protocol):
    def run(self, job: "Job", tasks: Sequence[ShardTask]) -> None: ...


def shard_paths(folder: str | Path) -> list[Path]:
    """The Parquet shards of a record folder in order (`FOLDER/*.parquet`, or `FOLDER/data/*.parquet`).

    Raises ValueError where there is none.
    """
    folder = Path(folder)
    for place in (folder / "data", folder):
        paths = sorted(place.glob("*.parquet"))
        if paths:
            return paths
    raise ValueError(f"expected Parquet shards in {folder} or {folder / 'data'}, found none; build the records first")


def parquet_identity(path: str | Path) -> str:
    """SHA-256 over the size and the footer of a Parquet file, which holds every column chunk's place and statistics.

    Reading the footer alone keeps resuming cheap where a shard is gigabytes.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if len(tail) < 8 or tail[4:] != b"PAR1":
            raise ValueError(f"{path} is not a complete Parquet file; build it again")
        length = int.from_bytes(tail[:4], "little") + 8
        file.seek(max(0, size - length))
        return hashlib.sha256(str(size).encode() + file.read()).hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A place to write a file that appears under `path` complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    yield partial
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: str | Path, value: Any) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def parquet_writer(path: str | Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer with every setting that shapes the bytes held fixed. Image columns are compressed already: their bytes
    are neither dictionary-encoded nor counted into statistics."""
    return pq.ParquetWriter(
        str(path),
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=["main_task_type", "sub_task_type", "modality", "dataset", "split", "license"],
        write_statistics=["id", "split"],
        store_schema=True,
        version="2.6",
    )


def write_table(path: str | Path, table: pa.Table) -> None:
    with replacing(path) as partial, parquet_writer(partial, table.schema) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))


def batches(path: str | Path, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """Stream a shard as tables of at most `rows` rows with the file's own schema metadata (the `datasets` features).

    Batches follow the row groups, so memory does not depend on the shard's size.
    """
    with pq.ParquetFile(str(path), pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(columns) if columns is not None else None)
            for start in range(0, table.num_rows, rows):
                yield table.slice(start, rows)


def receipt_path(task: ShardTask, job: str) -> Path:
    return Path(task.output) / "receipts" / job / f"{task.name}.json"


def fingerprint(job: Job, task: ShardTask) -> str:
    inputs = [parquet_identity(task.source)]
    for path in job.extra_inputs(task) if job.extra_inputs else ():
        inputs.append(parquet_identity(path))
    text = json.dumps({"job": job.name, "settings": job.settings, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_finished(job: Job, task: ShardTask) -> bool:
    path = receipt_path(task, job.name)
    if not path.is_file():
        return False
    receipt = json.loads(path.read_text(encoding="utf-8"))
    output = Path(task.output)
    return receipt["fingerprint"] == fingerprint(job, task) and all(
        (output / name).is_file() for name in receipt["files"]
    )


def run_shard(job: Job, task: ShardTask) -> dict[str, Any]:
    """Do one shard unless its receipt says it is done; returns the receipt.

    The function's mapping may hold "files": paths relative to the output folder that must exist for the receipt to
    count; the other entries are counts.
    """
    if not is_finished(job, task):
        mark = fingerprint(job, task)
        before = _files_of(receipt_path(task, job.name))
        result = dict(job.function(task))
        files = sorted(result.pop("files", []))
        for name in before - set(files):
            (Path(task.output) / name).unlink(missing_ok=True)
        write_json(receipt_path(task, job.name), {"fingerprint": mark, "files": files, **result})
    return json.loads(receipt_path(task, job.name).read_text(encoding="utf-8"))


def _files_of(receipt: Path) -> set[str]:
    return set(json.loads(receipt.read_text(encoding="utf-8"))["files"]) if receipt.is_file() else set()


def _forget_others(job: Job, output: Path, names: set[str]) -> None:
    """Remove what the job once wrote for shards that are no longer among its inputs."""
    for receipt in (output / "receipts" / job.name).glob("*.json"):
        if receipt.stem not in names:
            for name in _files_of(receipt):
                (output / name).unlink(missing_ok=True)
            receipt.unlink()


class LocalExecutor:
    """Maps shards on this machine with `datasets`, in `processes` processes."""

    def __init__(self, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"the number of processes must be 1 or more, found {processes}")
        self.processes = processes

    def run(self, job: Job, tasks: Sequence[ShardTask]) -> None:
        import datasets

        rows = datasets.Dataset.from_list([task.__dict__ for task in tasks])
        # The map's own result is only the list of names: it lives in a folder that goes with the run.
        with tempfile.TemporaryDirectory(prefix="unimed5m-") as folder:
            rows.map(
                _LocalCall(job, os.getpid()),
                remove_columns=rows.column_names,
                num_proc=min(self.processes, len(tasks)) if self.processes > 1 else None,
                load_from_cache_file=False,
                cache_file_name=str(Path(folder) / "map.arrow"),
                new_fingerprint=hashlib.sha256(job.name.encode()).hexdigest()[:16],
                desc=job.name,
            )


@dataclass(frozen=True)
class _LocalCall:
    """One row of the map. `driver` is the process whose death ends the workers, None where others look after them."""

    job: Job
    driver: int | None = None

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        if self.driver is not None and self.driver != os.getpid():
            _end_with(self.driver)
        run_shard(self.job, ShardTask(**row))
        return {"done": row["name"]}


@functools.cache
def _end_with(driver: int) -> None:
    """End this process when its parent is gone. A pool's workers outlive a killed driver and would wait for ever."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayExecutor:
    """Maps shards with Ray Data on `workers` workers of the cluster that `ray.init` finds (or starts here)."""

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"the number of workers must be 1 or more, found {workers}")
        self.workers = workers

    def run(self, job: Job, tasks: Sequence[ShardTask]) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("the Ray executor needs the extra `ray`: pip install 'unimedvl[ray]'") from error
        if not ray.is_initialized():
            ray.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False)
        # One block per shard lets every worker take the next shard as soon as it is free.
        rows = ray.data.from_items([task.__dict__ for task in tasks], override_num_blocks=len(tasks))
        done = rows.map(_LocalCall(job), concurrency=self.workers).take_all()
        assert {row["done"] for row in done} == {task.name for task in tasks}


def run_job(
    job: Job,
    sources: Sequence[str | Path],
    output: str | Path,
    executor: Executor | None = None,
) -> list[dict[str, Any]]:
    """Run a job over input shards and return the receipts in shard order.

    Finished shards are skipped, so calling it again after a crash resumes, and calling it again after success does
    nothing. Raises ValueError where two inputs share a name.
    """
    names = [Path(source).stem for source in sources]
    if len(set(names)) != len(names):
        raise ValueError("two input shards have the same file name; give every shard a name of its own")
    tasks = [
        ShardTask(name, str(Path(source).resolve()), str(Path(output).resolve()))
        for name, source in zip(names, sources, strict=True)
    ]
    _forget_others(job, Path(output), set(names))
    for stale in Path(output).rglob(f"*{PARTIAL_SUFFIX}"):
        stale.unlink(missing_ok=True)
    waiting = [task for task in tasks if not is_finished(job, task)]
    if waiting:
        logger.info("%s: %d of %d shards to do", job.name, len(waiting), len(tasks))
        (executor or LocalExecutor()).run(job, waiting)
    return [run_shard(job, task) for task in tasks]


# --- The two kinds of batch function ---------------------------------------------------------------------------------


class Measure(Protocol):
    """A pure batch function: a table of records to a table of measurements with the column `id`.

    `settings` decide the result together with the records; `columns` are the record columns that it reads (all where
    None). Models are loaded on the first call, in the process that calls.
    """

    name: str
    schema: pa.Schema

    @property
    def columns(self) -> Sequence[str] | None: ...

    def settings(self) -> Mapping[str, Any]: ...

    def __call__(self, table: pa.Table) -> pa.Table: ...


@dataclass(frozen=True)
class MeasureShard:
    """Writes `OUTPUT/measures/NAME/SHARD.parquet`: a row per record measured, with its place in the shard (`row`).

    With `skip` (a folder of such tables with a column `reason`), records with a reason are not measured.
    """

    measure: Measure
    skip: str | None = None

    def __call__(self, task: ShardTask) -> dict[str, Any]:
        target = f"measures/{self.measure.name}/{task.name}.parquet"
        skipped = set() if self.skip is None else _rows_with_reason(Path(self.skip) / f"{task.name}.parquet")
        schema = self.measure.schema.insert(0, pa.field("row", pa.int64()))
        read = measured = 0
        with replacing(Path(task.output) / target) as partial, pq.ParquetWriter(str(partial), schema) as writer:
            for batch in batches(task.source, self.measure.columns):
                places = numpy.arange(read, read + batch.num_rows)
                read += batch.num_rows
                wanted = numpy.array([place not in skipped for place in places.tolist()], dtype=bool)
                if not wanted.any():
                    continue
                result = self.measure(batch if wanted.all() else batch.filter(pa.array(wanted)))
                writer.write_table(result.add_column(0, schema.field(0), pa.array(places[wanted])))
                measured += result.num_rows
        return {"files": [target], "read": read, "measured": measured}


def _rows_with_reason(path: Path) -> set[int]:
    table = pq.read_table(path, columns=["row", "reason"])
    return set(table.filter(table["reason"].is_valid())["row"].to_pylist())


def measure_job(measure: Measure, skip: Path | None = None) -> Job:
    """The job of a measure. `skip` is the measures folder whose reasons exclude records."""
    folder = None if skip is None else str(skip)
    extra = None if skip is None else beside(skip)
    return Job(f"measure-{measure.name}", MeasureShard(measure, folder), measure.settings(), extra)


@dataclass(frozen=True)
class _Beside:
    """The file of the same shard in another folder."""

    folder: str

    def __call__(self, task: ShardTask) -> list[Path]:
        return [Path(self.folder) / f"{task.name}.parquet"]


def beside(folder: str | Path) -> Callable[[ShardTask], Sequence[Path]]:
    return _Beside(str(folder))
