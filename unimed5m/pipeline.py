"""Sharded, resumable work over record shards, with the same bytes on one process, many processes or Ray.

A job is a pure function from one input shard to the files of one output shard. Nothing a shard writes depends on
another shard, on the process that writes it or on the clock, so the executor cannot show in the result:

* `LocalExecutor` maps the shards with `datasets`, in one process or in several;
* `RayExecutor` maps them with Ray Data (extra `ray`).

Every file is written beside its place and renamed into it; a receipt is written last. A shard with a receipt of the
same job over the same input is finished and never done again; everything else is done anew. Before a shard is done,
its receipt is emptied and then names each file before that takes its place: whatever a killed run leaves is found and
replaced or removed. A run that was killed at any moment is resumed by starting it again.
"""

# Not datatrove's executors or `datasets.map` alone: neither promises equal bytes from every executor, nor checks files
# that are there against the input they were made from.

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy
import pyarrow as pa
import pyarrow.parquet as pq

from unimedvl.utils.claims import only_writer
from unimedvl.utils.json_files import write_json
from unimedvl.utils.whole_files import before_replacing, remove_partials, replacing

from .shards import (
    BATCH_ROWS,
    batches,
    parquet_identity,
    parquet_writer,
    shard_names,
    shard_paths,
    unfinished,
    write_table,
)

__all__ = [
    "BATCH_ROWS",
    "Executor",
    "Job",
    "LocalExecutor",
    "Measure",
    "MeasureShard",
    "RayExecutor",
    "ShardTask",
    "batches",
    "beside",
    "check_apart",
    "measure_job",
    "parquet_identity",
    "parquet_writer",
    "run_job",
    "run_shard",
    "shard_paths",
    "write_table",
]

logger = logging.getLogger(__name__)


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

    Attributes:
        name: of the job's receipts.
        function: a picklable callable of one `ShardTask` that writes its files with `replacing`. It returns "files",
            their paths relative to the output folder, and counts; both go into the receipt.
        settings: a JSON mapping of everything besides the input bytes that decides the output.
        extra_inputs: names, per shard, further Parquet files that the output depends on.
        writes_records: whether the folder holds no whole set of records while the job is unfinished.
    """

    name: str
    function: ShardFunction
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra_inputs: Callable[[ShardTask], Sequence[Path]] | None = None
    writes_records: bool = True


class Executor(Protocol):
    """Runs a job's shards in some order and place; returns when every one has its receipt."""

    def run(self, job: "Job", tasks: Sequence[ShardTask]) -> None: ...


def receipt_path(task: ShardTask, job: str) -> Path:
    """Where the receipt of one shard of a job lies."""
    return Path(task.output) / "receipts" / job / f"{task.name}.json"


def fingerprint(job: Job, task: ShardTask) -> str:
    """SHA-256 of all that a shard's result follows from: the job, its settings, its inputs, this package's version."""
    inputs = [parquet_identity(task.source)]
    for path in job.extra_inputs(task) if job.extra_inputs else ():
        inputs.append(parquet_identity(path))
    # A rule may change with the package while its settings stay the same.
    parts = {"job": job.name, "version": importlib.metadata.version("unimedvl"), "settings": job.settings}
    text = json.dumps(parts | {"inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_finished(job: Job, task: ShardTask) -> bool:
    """Whether a shard's receipt is of this job and these inputs, and its files have the sizes that it names."""
    receipt = _read(receipt_path(task, job.name))
    return receipt["fingerprint"] == fingerprint(job, task) and receipt["files"] == _sizes(task, receipt["files"])


def run_shard(job: Job, task: ShardTask) -> dict[str, Any]:
    """Do one shard unless its receipt says it is done; returns the receipt: fingerprint, files (name -> bytes) and
    the function's counts.
    """
    path, output = receipt_path(task, job.name), Path(task.output)
    if not is_finished(job, task):
        mark = fingerprint(job, task)
        known = set(_read(path)["files"])

        def note(file: Path) -> None:
            if file == path or not file.is_relative_to(output):
                return
            name = file.relative_to(output).as_posix()
            if name not in known:
                known.add(name)
                write_json(path, _unfinished(known))

        write_json(path, _unfinished(known))
        token = before_replacing.set(note)
        try:
            result = dict(job.function(task))
        finally:
            before_replacing.reset(token)
        files = set(result.pop("files", []))
        for name in known - files:
            (output / name).unlink(missing_ok=True)
        sizes = _sizes(task, files)
        assert None not in sizes.values(), f"{job.name} did not write what it says: {sizes}"
        write_json(path, {"fingerprint": mark, "files": sizes, **result})
    return _read(path)


def _read(receipt: Path) -> dict[str, Any]:
    return json.loads(receipt.read_text(encoding="utf-8")) if receipt.is_file() else _unfinished(())


def _unfinished(files: Collection[str]) -> dict[str, Any]:
    """A receipt that vouches for nothing; it names the files that may be there."""
    return {"fingerprint": None, "files": dict.fromkeys(files)}


def _sizes(task: ShardTask, names: Iterable[str]) -> dict[str, int | None]:
    """Bytes of each file below the task's output folder, None where there is none."""
    paths = {name: Path(task.output) / name for name in names}
    return {name: path.stat().st_size if path.is_file() else None for name, path in paths.items()}


def _forget(receipts: Iterable[Path], output: Path) -> None:
    """Remove what a job once wrote for shards that are no longer among its inputs."""
    for receipt in receipts:
        for name in _read(receipt)["files"]:
            (output / name).unlink(missing_ok=True)
        receipt.unlink()


class LocalExecutor:
    """Maps shards on this machine with `datasets`, in `processes` processes."""

    def __init__(self, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"the number of processes must be 1 or more, found {processes}.")
        self.processes = processes

    def run(self, job: Job, tasks: Sequence[ShardTask]) -> None:
        import datasets
        from multiprocess import util

        several = self.processes > 1 and len(tasks) > 1
        call = _ShardCall(job, several)
        # The pool's workers and the manager of its queue alike, from their first moment and not their first shard.
        util.register_after_fork(call, _ShardCall.started)
        rows = datasets.Dataset.from_list([task.__dict__ for task in tasks])
        # The map's own result is only the list of names: it lives in a folder that goes with the run.
        with tempfile.TemporaryDirectory(prefix="unimed5m-") as folder:
            rows.map(
                call,
                remove_columns=rows.column_names,
                num_proc=min(self.processes, len(tasks)) if several else None,
                load_from_cache_file=False,
                cache_file_name=str(Path(folder) / "map.arrow"),
                new_fingerprint=hashlib.sha256(job.name.encode()).hexdigest()[:16],
                desc=job.name,
            )


@dataclass(frozen=True)
class _ShardCall:
    """One row of the map. `child`: in a process that must not outlive the one that started it."""

    job: Job
    child: bool = False

    def started(self) -> None:
        if self.child:
            _end_with_parent()

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        # A process that was not forked knows of no start but this.
        self.started()
        run_shard(self.job, ShardTask(**row))
        return {"done": row["name"]}


@functools.cache
def _end_with_parent() -> None:
    """End this process when its parent is gone. A pool's workers outlive a killed driver and would wait for ever."""
    import multiprocess

    parent = multiprocess.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayExecutor:
    """Maps shards with Ray Data on `workers` workers of the cluster that `RAY_ADDRESS` names, or of one made here."""

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"the number of workers must be 1 or more, found {workers}.")
        self.workers = workers

    def run(self, job: Job, tasks: Sequence[ShardTask]) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("the Ray executor needs the extra `ray`: pip install 'unimedvl[ray]'") from error
        if not ray.is_initialized():
            # A cluster that is there has its own number of processors, and refuses another.
            local: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": self.workers}
            ray.init(include_dashboard=False, log_to_driver=False, **local)
        # One block per shard lets every worker take the next shard as soon as it is free.
        rows = ray.data.from_items([task.__dict__ for task in tasks], override_num_blocks=len(tasks))
        done = rows.map(_ShardCall(job), compute=ray.data.TaskPoolStrategy(size=self.workers)).take_all()
        assert {row["done"] for row in done} == {task.name for task in tasks}


def check_apart(sources: Iterable[str | Path], output: str | Path) -> None:
    """Raises ValueError where results would be written among the records that they are made from."""
    output = Path(output).resolve()
    if any(Path(source).resolve().parent in (output, output / "data") for source in sources):
        raise ValueError(f"{output} holds the records that are read; choose another folder for the result.")


def run_job(
    job: Job,
    sources: Sequence[str | Path],
    output: str | Path,
    executor: Executor | None = None,
) -> list[dict[str, Any]]:
    """Run a job over input shards and return the receipts in shard order.

    Finished shards are skipped, so calling it again after a crash resumes, and calling it again after success does
    nothing. Until it is done, the folder's records are not read (`shard_paths`).

    Raises:
        ValueError: where two inputs share a name, where the output folder is the one that holds the records, or where
            another run is writing it.
    """
    check_apart(sources, output)
    output = Path(output).resolve()
    names = shard_names(sources)
    if len(set(names)) != len(names):
        raise ValueError("two input shards have the same file name; give every shard a name of its own.")
    tasks = [
        ShardTask(name, str(Path(source).resolve()), str(output)) for name, source in zip(names, sources, strict=True)
    ]
    with only_writer(output, output / "receipts" / ".lock"):
        remove_partials(output)
        others = [path for path in (output / "receipts" / job.name).glob("*.json") if path.stem not in names]
        waiting = [task for task in tasks if not is_finished(job, task)]
        with unfinished(output, job.name) if job.writes_records else nullcontext():
            _forget(others, output)
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
        with replacing(Path(task.output) / target) as partial, parquet_writer(partial, schema) as writer:
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
    function = MeasureShard(measure, folder)
    return Job(f"measure-{measure.name}", function, measure.settings(), extra, writes_records=False)


@dataclass(frozen=True)
class _Beside:
    """The file of the same shard in another folder."""

    folder: str

    def __call__(self, task: ShardTask) -> list[Path]:
        return [Path(self.folder) / f"{task.name}.parquet"]


def beside(folder: str | Path) -> Callable[[ShardTask], Sequence[Path]]:
    """For `Job.extra_inputs`: the file of the same shard in another folder."""
    return _Beside(str(folder))
