"""Quality control from end to end: measure, decide, apply.

    READ/*.parquet -> measures (coarse, fingerprints, alignment) -> decisions -> OUT/data, dropped, quarantine, qc.json

Measuring and applying are shard jobs (`pipeline`); deciding needs all measurements at once, but only those: hashes,
thumbnails and scores, never images. Records are written once. Every record read gets one row in `decisions`: kept, or
dropped with a reason, so that kept + dropped = read holds per shard, per stage and in total.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unimedvl.utils.claims import keep_out_of_git
from unimedvl.utils.json_files import write_json
from unimedvl.utils.whole_files import replacing

from ..pipeline import (
    Executor,
    Job,
    ShardTask,
    batches,
    beside,
    check_apart,
    measure_job,
    parquet_writer,
    run_job,
    shard_names,
    shard_paths,
    write_table,
)
from ..shards import build_sources, shards_of_all, unfinished
from .alignment import Alignment, Selection, select
from .coarse import DAMAGES, CoarseFilter
from .duplicates import FingerprintTable, find_drops
from .fingerprints import Fingerprints

DECISIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("reported", pa.string()),
        ("s", pa.float64()),
        ("m", pa.float64()),
        ("s_final", pa.float64()),
        ("scope", pa.string()),
    ]
)
STAGES = ("coarse", "duplicates", "alignment")
POORLY_ALIGNED = "poorly_aligned"
# Between the faults of a record that is kept in spite of them.
SEPARATOR = ", "


@dataclass(frozen=True)
class QualitySettings:
    """What quality control does.

    Attributes:
        coarse: the coarse filter. For `unimed-mini` use `CoarseFilter(enforce="none")`: report, keep.
        duplicates: whether near duplicates and leaks are removed.
        benchmarks: name -> folder of test records that no training record may contain.
        alignment: how records are scored, None to leave alignment out.
        selection: which scored records stay.
    """

    coarse: CoarseFilter = field(default_factory=CoarseFilter)
    duplicates: bool = True
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    alignment: Alignment | None = None
    selection: Selection = field(default_factory=Selection)


def quality_control(
    records: str | Path | Sequence[str | Path],
    output: str | Path,
    settings: QualitySettings | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Check the shards of `records`, write the kept ones and the reasons for the others to `output`; returns
    `qc.json`.

    Args:
        records: a record folder, or several: duplicates, leaks and ranks are then looked for across all of them.
        output: a new or empty folder, or one with an earlier check.
        settings: see `QualitySettings`.
        executor: where the shards run; this process by default.

    Raises:
        ValueError: where `records` holds no shards, or where `output` holds something else.
    """
    settings = settings or QualitySettings()
    for name in settings.benchmarks:
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise ValueError(f"benchmarks: expected a name of letters, digits, '-', '_' and '.', found {name!r}.")
    sources, output = shards_of_all(records), Path(output)
    check_apart(sources, output)
    keep_out_of_git(output)
    run_job(measure_job(settings.coarse), sources, output, executor)
    coarse = output / "measures" / settings.coarse.name
    fingerprints = alignment = None
    if settings.duplicates:
        run_job(measure_job(Fingerprints(), skip=coarse), sources, output, executor)
        fingerprints = output / "measures" / Fingerprints.name
        for name, folder in sorted(settings.benchmarks.items()):
            run_job(measure_job(Fingerprints()), shard_paths(folder), output / "benchmarks" / name, executor)
    if settings.alignment is not None:
        run_job(measure_job(settings.alignment, skip=coarse), sources, output, executor)
        alignment = output / "measures" / settings.alignment.name
    names = shard_names(sources)
    decide(names, output, coarse, fingerprints, alignment, settings)
    # Records are never beside the counts of an earlier check.
    with unfinished(output, "summary"):
        receipts = run_job(Job("apply", apply_shard, {}, beside(output / "decisions")), sources, output, executor)
        return summarize(receipts, output, settings, build_sources(records))


def decide(
    names: Sequence[str],
    output: Path,
    coarse: Path,
    fingerprints: Path | None,
    alignment: Path | None,
    settings: QualitySettings,
) -> None:
    """Write `decisions/SHARD.parquet` from the measures. A file that would not change is left alone.

    Only what differs from the coarse verdicts is held in memory, by the record's place among all records.
    """
    changes: dict[int, dict[str, Any]] = {}
    starts = dict(zip(names, _starts([coarse / f"{name}.parquet" for name in names]), strict=True))
    if fingerprints is not None:
        table, places = FingerprintTable(), []
        for name in names:
            table.add(fingerprints / f"{name}.parquet")
            places += [starts[name] + row for row in _column(fingerprints / f"{name}.parquet", "row")]
        benchmarks = []
        for name in sorted(settings.benchmarks):
            first = len(table.ids)
            paths = sorted((output / "benchmarks" / name / "measures" / Fingerprints.name).glob("*.parquet"))
            present = {split for path in paths for split in _column(path, "split")}
            # A benchmark's own training records are no test.
            held_out = next((split for split in ("test", "validation") if split in present), None)
            for path in paths:
                table.add(path, held_out)
            benchmarks.append((name, first, len(table.ids)))
        for index, (reason, detail) in find_drops(table, benchmarks).items():
            changes[places[index]] = {"stage": "duplicates", "reason": reason, "detail": detail}
    if alignment is not None:
        scored, places = [], []
        for name in names:
            for row in pq.read_table(alignment / f"{name}.parquet").to_pylist():
                if starts[name] + row["row"] not in changes:
                    scored.append(row)
                    places.append(starts[name] + row["row"])
        for place, result in zip(places, select(scored, settings.selection), strict=True):
            if not result.pop("keep"):
                if settings.selection.report:
                    result["reported"] = POORLY_ALIGNED
                else:
                    detail = f"s_final {result['s_final']:.4f} is outside the kept share of its {result['scope']}"
                    result.update(stage="alignment", reason=POORLY_ALIGNED, detail=detail)
            changes[place] = result
    for name in names:
        rows = []
        for place, row in enumerate(pq.read_table(coarse / f"{name}.parquet").to_pylist(), start=starts[name]):
            stage = "coarse" if row["reason"] else None
            change = changes.get(place, {})
            both = [entry["reported"] for entry in (row, change) if entry.get("reported")]
            rows.append(
                {
                    **dict.fromkeys(DECISIONS.names),
                    **row,
                    "stage": stage,
                    **change,
                    "reported": SEPARATOR.join(both) or None,
                }
            )
        path = output / "decisions" / f"{name}.parquet"
        decided = pa.Table.from_pylist(rows, schema=DECISIONS)
        if not path.is_file() or not pq.read_table(path).equals(decided):
            write_table(path, decided)


def _starts(paths: Sequence[Path]) -> list[int]:
    """The place of each file's first row among the rows of all."""
    counts = [pq.read_metadata(path).num_rows for path in paths]
    return [sum(counts[:index]) for index in range(len(counts))]


def _column(path: Path, name: str) -> list[Any]:
    return pq.read_table(path, columns=[name])[name].to_pylist()


def apply_shard(task: ShardTask) -> dict[str, Any]:
    """Write one shard's kept records (with their scores), the reasons for the others and the damaged records."""
    output = Path(task.output)
    decisions = pq.read_table(output / "decisions" / f"{task.name}.parquet")
    kept_file, dropped_file = f"data/{task.name}.parquet", f"dropped/{task.name}.parquet"
    quarantine_file = f"quarantine/{task.name}.parquet"
    schema = pq.read_schema(task.source)
    lost = decisions.filter(decisions["reason"].is_valid())
    ledger = lost.select(["row", "id", "stage", "reason", "detail"])
    write_table(output / dropped_file, ledger)
    damaged = not set(DAMAGES).isdisjoint(ledger["reason"].to_pylist())
    start = kept = 0
    with (
        replacing(output / kept_file) as data,
        replacing(output / quarantine_file) as held,
        parquet_writer(data, schema) as writer,
        parquet_writer(held, schema) as quarantine,
    ):
        for batch in batches(task.source):
            part = decisions.slice(start, batch.num_rows)
            start += batch.num_rows
            assert part["id"].equals(batch["id"]), "decisions belong to other records"
            keep = part["reason"].is_null()
            wanted = with_scores(batch.filter(keep), part.filter(keep))
            kept += wanted.num_rows
            if wanted.num_rows:
                writer.write_table(wanted)
            if damaged:
                broken = batch.filter(pa.array([reason in DAMAGES for reason in part["reason"].to_pylist()]))
                if broken.num_rows:
                    quarantine.write_table(broken)
    reasons = Counter(zip(ledger["stage"].to_pylist(), ledger["reason"].to_pylist(), strict=True))
    kept_faults = decisions["reported"].filter(decisions["reason"].is_null()).to_pylist()
    reported = Counter(fault for faults in kept_faults if faults for fault in faults.split(SEPARATOR))
    scored = decisions["s_final"].is_valid().to_pylist().count(True)
    assert kept + lost.num_rows == start == decisions.num_rows
    return {
        "files": [kept_file, dropped_file, quarantine_file],
        "read": start,
        "kept": kept,
        "dropped": {
            stage: {reason: count for (of, reason), count in sorted(reasons.items()) if of == stage}
            for stage in STAGES
        },
        "reported": dict(sorted(reported.items())),
        "scored": scored,
    }


def with_scores(table: pa.Table, decisions: pa.Table) -> pa.Table:
    """The records with their `quality` column; records without a new score keep what they had."""
    if decisions["s_final"].null_count == decisions.num_rows:
        return table
    field = table.schema.field("quality")
    before = table["quality"].to_pylist()
    scores = decisions.select(["s", "m", "s_final", "scope"]).to_pylist()
    values = [old if new["s_final"] is None else new for old, new in zip(before, scores, strict=True)]
    return table.set_column(table.schema.get_field_index("quality"), field, pa.array(values, field.type))


def summarize(
    receipts: Sequence[Mapping[str, Any]], output: Path, settings: QualitySettings, sources: Sequence[str]
) -> dict[str, Any]:
    """Add up the receipts of the shards, check that the counts reconcile and write `qc.json`.

    Returns:
        What `qc.json` holds: records read, kept and dropped, by stage and reason.
    """
    dropped: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    reported: Counter[str] = Counter()
    for receipt in receipts:
        reported.update(receipt["reported"])
        for stage in STAGES:
            dropped[stage].update(receipt["dropped"][stage])
    read = sum(receipt["read"] for receipt in receipts)
    kept = sum(receipt["kept"] for receipt in receipts)
    lost = sum(sum(counts.values()) for counts in dropped.values())
    assert kept + lost == read, f"{kept} kept + {lost} dropped != {read} read"
    stages, left = [], read
    for stage in STAGES:
        gone = sum(dropped[stage].values())
        stages.append(
            {"stage": stage, "read": left, "kept": left - gone, "dropped": dict(sorted(dropped[stage].items()))}
        )
        left -= gone
    summary = {
        "sources": list(sources),
        "read": read,
        "kept": kept,
        "dropped": lost,
        "stages": stages,
        "reported_only": dict(sorted(reported.items())),
        "scored": sum(receipt["scored"] for receipt in receipts),
        "settings": {
            "coarse": dict(settings.coarse.settings()),
            "duplicates": settings.duplicates,
            "benchmarks": sorted(settings.benchmarks),
            "alignment": None if settings.alignment is None else dict(settings.alignment.settings()),
            "selection": None if settings.alignment is None else asdict(settings.selection),
        },
    }
    write_json(output / "qc.json", summary)
    return json.loads((output / "qc.json").read_text(encoding="utf-8"))
