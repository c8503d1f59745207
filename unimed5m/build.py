"""Building record shards from a source: sharded, resumable, the same bytes however the work is spread.

OUT/plan/SHARD.parquet      what each shard has to read; the input of the job (`pipeline`)
OUT/data/SPLIT-00000-of-00008.parquet   the records; a shard has a file for every split it found records of
OUT/rejected/SHARD.jsonl    records that are not valid and samples that could not be read: `id` and `reason`
OUT/build.json              source and counts; written last

The number of shards belongs to the build, the number of processes does not.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy
import pyarrow
import pyarrow.parquet as parquet

from unimedvl.utils.claims import claim_folder
from unimedvl.utils.json_files import write_json
from unimedvl.utils.whole_files import replacing

from .pipeline import Executor, Job, ShardTask, run_job
from .record_index import text_digests
from .schema import ARROW_SCHEMA, SPLITS, Record, to_table
from .shards import BATCH_ROWS, parquet_writer, unfinished, write_table
from .trainable import check_trainable

PLAN_SCHEMA = pyarrow.schema(
    [("source", pyarrow.string()), ("index", pyarrow.int64()), ("count", pyarrow.int64()), ("state", pyarrow.string())]
)


class RecordSource(Protocol):
    """Anything that records are read from: `MiniSource` and every builder."""

    name: str

    def records(
        self,
        root: Path,
        split: str | None = None,
        shard: tuple[int, int] = (0, 1),
        problem: Callable[[str, str], None] | None = None,
    ) -> Iterator[Record]:
        """The records of every `shard[1]`-th unit of the folder, beginning with number `shard[0]`, in a fixed order.

        Args:
            problem: called with the name of a sample that cannot be read, and with the reason in one line; without it
                such a sample raises.

        Raises:
            ValueError: one line with what was expected and what was found.
        """
        ...


def find_source(name: str, tiers: tuple[str, ...] | None = None) -> RecordSource:
    """The source of that name.

    Args:
        name: "unimed-mini" or a named builder.
        tiers: license tiers to keep, for `unimed-mini`.

    Raises:
        ValueError: if there is none, or if tiers are chosen for another source.
    """
    from .mini import NAME, MiniSource

    if name == NAME:
        return MiniSource() if tiers is None else MiniSource(tiers)
    if tiers is not None:
        raise ValueError(f"license tiers can be chosen for {NAME} only, not for {name}.")
    from .builders import get_source

    return get_source(name)


def build(
    source: RecordSource, root: str | Path, output: str | Path, shards: int = 8, executor: Executor | None = None
) -> dict[str, Any]:
    """Build all records of a source.

    A build that was interrupted is continued by calling it again; finished shards are kept. The same call on finished
    work only checks it.

    Args:
        source: what to read with.
        root: the source's folder.
        output: a new or empty folder, or one with an earlier run of the same build.
        shards: into how many parts the work is cut.
        executor: where the shards run; this process by default.

    Returns:
        `build.json`: source, version, counts of records `read`, `kept` and `rejected`, and of kept records per split
        and task.

    Raises:
        ValueError: for a folder that the source cannot read, an output folder with another build, no valid record at
            all, or a group or id that appears where it must not.
    """
    root, output = Path(root).resolve(), Path(output)
    if shards < 1:
        raise ValueError(f"the number of shards must be 1 or more, found {shards}.")
    settings = {
        "source": source.name,
        "version": importlib.metadata.version("unimedvl"),
        "shards": shards,
        "state": _state(source, root),
    }
    words = {"state": "the source's folder or options"}
    claim_folder(output, settings, mark="settings.json", kind="build", words=words)
    plans = []
    for index in range(shards):
        name = f"{index:05d}-of-{shards:05d}"
        plans.append(output / "plan" / f"{name}.parquet")
        row = {"source": source.name, "index": index, "count": shards, "state": settings["state"]}
        if not plans[-1].exists():
            write_table(plans[-1], pyarrow.Table.from_pylist([row], schema=PLAN_SCHEMA))
    job = Job("build", BuildShard(source, str(root)), settings)
    # What is checked only at the end is not read before, nor after if it fails.
    with unfinished(output, "check of the build"):
        receipts = run_job(job, plans, output, executor)
        counts = Counter[str]()
        for receipt in receipts:
            counts.update(receipt["tasks"])
        summary = {
            **settings,
            **{name: sum(receipt[name] for receipt in receipts) for name in ("read", "kept", "rejected")},
            "tasks": dict(sorted(counts.items())),
        }
        assert summary["kept"] + summary["rejected"] == summary["read"]
        if not summary["kept"]:
            first = _first_reason(output / "rejected") or "nothing was read."
            raise ValueError(
                f"{source.name}: no valid record in {root}; reasons in {output / 'rejected'}, first: {first}"
            )
        check_splits(sorted((output / "data").glob("*.parquet")))
        write_json(output / "build.json", summary)
    return summary


def _first_reason(folder: Path) -> str:
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                return json.loads(line)["reason"]
    return ""


def _state(source: RecordSource, root: Path) -> str:
    """A digest of the source's options and its folder's content, where the source can compute it cheaply."""
    fingerprint = getattr(source, "fingerprint", None)
    return fingerprint(root) if fingerprint is not None else hashlib.sha256(str(root).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class BuildShard:
    """Writes the records of one shard; the function of the build's job."""

    source: RecordSource
    root: str

    def __call__(self, task: ShardTask) -> dict[str, Any]:
        plan = parquet.read_table(task.source).to_pylist()[0]
        output, tasks, files = Path(task.output), Counter[str](), [f"rejected/{task.name}.jsonl"]
        kept = 0
        with ExitStack() as stack:
            # A reason may quote what is wrong: a name that is no text in UTF-8.
            rejected = stack.enter_context(
                open(
                    stack.enter_context(replacing(output / files[0])),
                    "w",
                    encoding="utf-8",
                    errors="backslashreplace",
                )
            )
            reasons: list[dict[str, str]] = []
            writers: dict[str, _SplitWriter] = {}

            def problem(name: str, line: str) -> None:
                # A path of this machine may name a person.
                reasons.append({"id": name, "reason": line.replace(f"{self.root}{os.sep}", "")})

            records = self.source.records(Path(self.root), None, (plan["index"], plan["count"]), problem)
            for record in records:
                try:
                    record.validate()
                    check_trainable(record)
                except ValueError as error:
                    reasons.append({"id": record.id, "reason": str(error)})
                    continue
                if record.split not in writers:
                    files.append(f"data/{record.split}-{task.name}.parquet")
                    writers[record.split] = stack.enter_context(_SplitWriter(output / files[-1]))
                writers[record.split].add(record)
                tasks[f"{record.split}/{record.sub_task_type}"] += 1
                kept += 1
            rejected.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in reasons)
        return {
            "files": files,
            "read": kept + len(reasons),
            "kept": kept,
            "rejected": len(reasons),
            "tasks": dict(sorted(tasks.items())),
        }


class _SplitWriter:
    """Collects records into row groups of a fixed number of rows, whatever order of calls filled them."""

    def __init__(self, path: Path):
        self._stack = ExitStack()
        self._path = path
        self._waiting: list[Record] = []

    def __enter__(self) -> "_SplitWriter":
        partial = self._stack.enter_context(replacing(self._path))
        self._writer = self._stack.enter_context(parquet_writer(partial, ARROW_SCHEMA))
        return self

    def add(self, record: Record) -> None:
        self._waiting.append(record)
        if len(self._waiting) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(to_table(self._waiting))
            self._waiting = []

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is None:
            self._flush()
        return self._stack.__exit__(*error)


def check_splits(paths: list[Path]) -> None:
    """Check that no id appears twice and no group is in two splits.

    Memory is 8 bytes per record and per group: only digests are held.

    Raises:
        ValueError: naming the first id or group.
    """
    ids: list[numpy.ndarray] = []
    groups: dict[str, list[numpy.ndarray]] = {split: [] for split in SPLITS}
    for path in paths:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=10_000, columns=["id", "group_id", "split"]):
            columns = batch.to_pydict()
            ids.append(text_digests(columns["id"]))
            for split in set(columns["split"]):
                pairs = zip(columns["group_id"], columns["split"], strict=True)
                groups[split].append(text_digests([group for group, place in pairs if place == split]))
    digests, counts = numpy.unique(_joined(ids), return_counts=True)
    if counts.max(initial=1) > 1:
        name = _value_of_digest(paths, "id", int(digests[counts > 1][0]), "provenance")
        raise ValueError(
            f"two records of {name!r} have the same id: the source names two samples alike (files that differ in "
            "their ending only, or a line that stands twice); rename or remove one."
        )
    present = [(split, numpy.unique(_joined(found))) for split, found in groups.items() if found]
    for number, (first, left) in enumerate(present):
        for second, right in present[number + 1 :]:
            shared = numpy.intersect1d(left, right)
            if len(shared):
                name = _value_of_digest(paths, "group_id", int(shared[0]), "group_id")
                raise ValueError(
                    f"group {name!r} and {len(shared) - 1} others are in both {first} and {second}: a patient or "
                    "slide must be on one side."
                )


def _joined(arrays: list[numpy.ndarray]) -> numpy.ndarray:
    return numpy.concatenate([numpy.empty(0, numpy.uint64), *arrays])


def _value_of_digest(paths: list[Path], column: str, digest: int, wanted: str) -> str:
    """The `wanted` column of the first record whose `column` has this digest."""
    for path in paths:
        columns = parquet.read_table(path, columns=list({column, wanted})).to_pydict()
        for value, name in zip(columns[column], columns[wanted], strict=True):
            if int(text_digests([value])[0]) == digest:
                return name
    raise AssertionError("the value came from these files")
