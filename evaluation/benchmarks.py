"""The named benchmarks: which records of which source are asked, how, and by which rule.

Publishers' folders are read by the builders of `unimedvl.unimed5m`, which cite the layout of each. A path
may also be a folder of built records. Splits, prompts and rules are stated here because the paper leaves them open
(paper, section 6): figures are comparable with the paper's only as far as its protocol is known.
"""

import dataclasses
import hashlib
import heapq
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from unimedvl.unimed5m.build import find_source
from unimedvl.unimed5m.schema import SPLITS, Record
from unimedvl.unimed5m.shards import batches, parquet_identity, shard_paths

from .samples import TASKS, Sample, sample_of

SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
LETTER = "{question}\n{options}\nAnswer with the letter of the right option."
# Into how many parts a publisher's folder is walked; the share of parts done gives the remaining time.
PARTS = 20
# Training records of each task that baselines are fitted to.
TRAINING_LIMIT = 20_000
TRAINING_IMAGES = 6_000
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        source: builder of the publisher's layout; "" for any folder of built records.
        splits: the splits that are asked.
        tasks: the tasks that count.
        languages: of the questions (`extra.q_lang`); all if empty.
        extra: values that `extra` must have, such as the scale of super-resolution.
        prompt, choice_prompt: see `samples.sample_of`; the records' own phrasing if empty.
        rule: of `vqa_accuracy`, for answers of no stated value.
        paper: key of the paper's table in `paper.json`.
        note: what to know before comparing a figure.
    """

    name: str
    source: str
    splits: tuple[str, ...]
    tasks: tuple[str, ...]
    languages: tuple[str, ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()
    prompt: str = ""
    choice_prompt: str = ""
    rule: str = "normalized"
    paper: str = ""
    note: str = ""

    def keeps(self, record: Record, extra: dict[str, Any]) -> bool:
        """Whether a record belongs to the benchmark."""
        return record.split in self.splits and record.sub_task_type in self.tasks and self.wants(extra)

    def wants(self, extra: dict[str, Any]) -> bool:
        """Whether a record's `extra` is of the benchmark: language, scale and the like, in any split."""
        if self.languages and extra.get("q_lang") not in self.languages:
            return False
        return all(extra.get(name) == value for name, value in self.extra)


def _vqa(name: str, source: str, split: str = "test", **others: Any) -> Benchmark:
    return Benchmark(
        name,
        source,
        (split,),
        ("vqa",),
        prompt=SHORT_ANSWER,
        choice_prompt=LETTER,
        rule="medevalkit",
        **({"paper": name} | others),
    )


def _segmentation(name: str, source: str = "", split: str = "test") -> Benchmark:
    return Benchmark(
        name,
        source or name,
        (split,),
        ("segmentation",),
        paper=name,
        note="The paper names neither splits nor prompts. Mask: bright pixels of the generated image.",
    )


def _cross_modal(name: str, source: str, **others: Any) -> Benchmark:
    return Benchmark(name, source, ("test",), ("cross_modal",), **others)


BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        "unimed-mini",
        "unimed-mini",
        ("validation",),
        tuple(TASKS),
        note="Validation split of the compact collection; every task family. No published figures.",
    ),
    Benchmark(
        "records",
        "",
        ("test",),
        tuple(TASKS),
        note="Your own built records, in their own phrasing; every task family. No published figures.",
    ),
    _vqa("vqa-rad", "vqa-rad", note="Publisher's test questions; the paper says accuracy over open and closed."),
    _vqa("slake", "slake", note="Both languages."),
    _vqa("slake-en", "slake", languages=("en",), paper="slake"),
    _vqa("slake-zh", "slake", languages=("zh",), paper=""),
    _vqa("path-vqa", "path-vqa"),
    _vqa("omnimedvqa", "omnimedvqa", note="Open-access part only."),
    _vqa("gmai-mmbench", "gmai-mmbench", "validation"),
    Benchmark(
        "text-to-image",
        "",
        ("validation", "test"),
        ("text_to_image", "planned_text_to_image"),
        paper="text-to-image",
        note="A folder of built records; validation and test are the 20 % that the paper tests on. The paper states "
        "neither extractor nor number of images.",
    ),
    Benchmark("bci", "bci", ("test",), ("virtual_staining",), paper="bci"),
    Benchmark(
        "ixi-sr4",
        "ixi",
        ("test",),
        ("super_resolution",),
        extra=(("scale", 4), ("method", "k-space")),
        paper="ixi-sr4",
        note="4x by k-space truncation, subjects of our test split; HealthGPT's own figure for IXI differs by 14 dB.",
    ),
    _cross_modal("brats-t2-flair", "brats2023", extra=(("origin", "T2-weighted MRI"),), paper="brats-t2-flair"),
    _cross_modal("brats-flair-t2", "brats2023", extra=(("origin", "T2-FLAIR MRI"),), paper="brats-flair-t2"),
    _cross_modal("synthrad-brain", "synthrad2023-brain", note="Figure 21 of the paper is qualitative."),
    _cross_modal("synthrad-pelvis", "synthrad2023-pelvis", note="Figure 21 of the paper is qualitative."),
    Benchmark(
        "icg-cxr",
        "icg-cxr",
        ("test",),
        ("counterfactual",),
        paper="icg-cxr",
        note="The paper's classifier, labels and threshold are not published.",
    ),
    Benchmark(
        "mimic-cxr", "mimic-cxr", ("test",), ("report",), paper="mimic-cxr", note="Findings and impression together."
    ),
    _segmentation("kits"),
    _segmentation("qata-cov19"),
    _segmentation("busi"),
    _segmentation("cvc-clinicdb"),
    _segmentation("glas"),
    _segmentation("isic2018"),
    _segmentation("kvasir-seg"),
    _segmentation("refuge"),
)
_BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: one line with the names there are.
    """
    if name not in _BY_NAME:
        raise ValueError(f"benchmark: expected one of {', '.join(_BY_NAME)}, found {name!r}.")
    return _BY_NAME[name]


class BenchmarkData:
    """The samples and the training records of a benchmark in one folder, always in the same order."""

    def __init__(
        self,
        benchmark: Benchmark,
        folder: str | Path,
        limit: int | None = None,
        tasks: Collection[str] = (),
        splits: Collection[str] = (),
    ):
        """
        Args:
            splits: ask these splits instead of the benchmark's own.
            limit: the largest number of samples of each task: of record folders a random choice (by hash, always the
                same), of publishers' folders the first ones.
            tasks: only these tasks.

        Raises:
            ValueError: one line, for a folder that does not hold the benchmark.
        """
        if unknown := set(splits) - set(SPLITS):
            raise ValueError(f"split: expected some of {', '.join(SPLITS)}, found {', '.join(sorted(unknown))}.")
        self.benchmark = dataclasses.replace(benchmark, splits=tuple(splits)) if splits else benchmark
        self.folder, self.limit, self.left_out = Path(folder), limit, 0
        # Training samples of each task that `training` chose among, once it has been walked.
        self.training_counts: dict[str, int] = {}
        self.tasks = tuple(task for task in benchmark.tasks if not tasks or task in tasks)
        if not self.tasks:
            raise ValueError(
                f"{benchmark.name} has the tasks {', '.join(benchmark.tasks)}, none of {', '.join(tasks)}."
            )
        if not self.folder.is_dir():
            raise ValueError(f"{benchmark.name}: there is no folder {self.folder}.")
        self.paths = self._record_shards()
        limits = None if limit is None else dict.fromkeys(self.tasks, limit)
        if self.paths:
            self._require_samples()
        self.chosen = self._choose(self.benchmark.splits, limits) if self.paths and limits else None

    def _require_samples(self) -> None:
        """Raises ValueError where a record folder holds nothing to ask, naming the split: before a model is loaded."""
        held: Counter[str] = Counter()
        for path in self.paths:
            columns = parquet.read_table(path, columns=["split", "sub_task_type"]).to_pydict()
            kinds = list(zip(columns["split"], columns["sub_task_type"], strict=True))
            if any(split in self.benchmark.splits and task in self.tasks for split, task in kinds):
                return
            held.update(f"{split}/{task}" for split, task in kinds)
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(held.items()))
        raise ValueError(f"{self._nothing()}; it holds {found or 'nothing'}: choose another --split or --tasks.")

    def _nothing(self) -> str:
        tasks = "" if len(self.tasks) == len(TASKS) else f"{' or '.join(self.tasks)} "
        splits = " or ".join(self.benchmark.splits)
        return f"{self.benchmark.name}: {self.folder} holds no {tasks}record of the split {splits}"

    def _record_shards(self) -> list[Path]:
        """The shards of a folder of built records; none for a publisher's folder."""
        is_built = (self.folder / "build.json").is_file() or any(self.folder.glob("data/*.parquet"))
        if is_built or not self.benchmark.source:
            return shard_paths(self.folder)
        return []

    def _choose(self, splits: Collection[str], limits: dict[str, int]) -> dict[str, set[str]]:
        """Ids of a random choice of each task's records: the given number of those with the smallest digests."""
        names: dict[str, list[tuple[int, str]]] = {task: [] for task in self.tasks}
        for path in self._paths_of(splits):
            columns = parquet.read_table(path, columns=["id", "sub_task_type", "split", "extra"]).to_pylist()
            for row in columns:
                if row["sub_task_type"] not in names or row["split"] not in splits:
                    continue
                if self.benchmark.wants(json.loads(row["extra"])):
                    names[row["sub_task_type"]].append((_order(row["id"]), row["id"]))
        return {task: {name for _, name in heapq.nsmallest(limits[task], found)} for task, found in names.items()}

    def _paths_of(self, splits: Collection[str]) -> list[Path]:
        """Shards that may hold a split, which the file names of our builds say."""
        known = {"train", "validation", "test"}
        return [
            path for path in self.paths if path.name.split("-")[0] in splits or path.name.split("-")[0] not in known
        ]

    def samples(self) -> Iterator[tuple[float, Sample]]:
        """(share of the folder walked before it, sample), in order.

        Raises:
            ValueError: one line, if the folder holds no sample of the benchmark.
        """
        counts = dict.fromkeys(self.tasks, 0)
        found = False
        for share, record in self._records(self.benchmark.splits):
            if record.sub_task_type not in counts or not self.benchmark.keeps(record, _extra(record)):
                continue
            if self.chosen is not None and record.id not in self.chosen[record.sub_task_type]:
                continue
            if self.limit is not None and counts[record.sub_task_type] >= self.limit:
                if all(count >= self.limit for count in counts.values()):
                    break
                continue
            sample = sample_of(record, self.benchmark.prompt, self.benchmark.choice_prompt)
            if sample is not None:
                found = True
                counts[record.sub_task_type] += 1
                yield share, sample
        if not found:
            raise ValueError(f"{self._nothing()}.")

    def training(self) -> Iterator[Sample]:
        """Samples of the training split: of each task a random choice by hash of at most `TRAINING_LIMIT`, or
        `TRAINING_IMAGES` where there are images to draw.

        A publisher's folder is walked once, and nobody knows then what comes: of it these are the samples whose hash
        is among the smallest up to there, which is all of that choice and some more of the early ones.
        """
        limits = {task: TRAINING_IMAGES if TASKS[task].draws else TRAINING_LIMIT for task in self.tasks}
        chosen = self._choose(("train",), limits) if self.paths else None
        smallest: dict[str, list[int]] = {task: [] for task in self.tasks}
        self.training_counts = dict.fromkeys(self.tasks, 0)
        for _, record in self._records(("train",)):
            task = record.sub_task_type
            if task not in limits or record.split != "train" or not self.benchmark.wants(_extra(record)):
                continue
            self.training_counts[task] += 1
            if chosen is not None and record.id not in chosen[task]:
                continue
            if chosen is None and not _among(smallest[task], limits[task], _order(record.id)):
                continue
            sample = sample_of(record, self.benchmark.prompt, self.benchmark.choice_prompt)
            if sample is not None:
                yield sample

    def _records(self, splits: Collection[str]) -> Iterator[tuple[float, Record]]:
        if self.paths:
            yield from self._stored_records(splits)
            return
        source = find_source(self.benchmark.source)
        self.left_out = 0
        # The compact collection compares whole files before its first record.
        parts = 1 if self.benchmark.source == "unimed-mini" else PARTS
        for part in range(parts):
            for split in splits:
                for record in source.records(self.folder, split, (part, parts), self._leave_out):
                    yield part / parts, record

    def _leave_out(self, name: str, reason: str) -> None:
        """A unit that cannot be read, or is left out on purpose: the rest still counts."""
        self.left_out += 1
        logger.info("%s: %s", name, reason)

    def _stored_records(self, splits: Collection[str]) -> Iterator[tuple[float, Record]]:
        paths = self._paths_of(splits)
        total = sum(parquet.read_metadata(path).num_rows for path in paths)
        done = 0
        for path in paths:
            for table in batches(path):
                for row in table.to_pylist():
                    done += 1
                    if row["split"] in splits and row["sub_task_type"] in self.tasks:
                        yield (done - 1) / total, Record.from_row(row)

    def fingerprint(self) -> str:
        """A digest that changes with the folder's content."""
        digest = hashlib.sha256(self.benchmark.name.encode())
        if self.paths:
            for path in self.paths:
                digest.update(parquet_identity(path).encode())
        else:
            source: Any = find_source(self.benchmark.source)
            digest.update(source.fingerprint(self.folder).encode())
        return digest.hexdigest()


def _order(record_id: str) -> int:
    """A place in a random order that is the same everywhere."""
    return int.from_bytes(hashlib.sha256(record_id.encode()).digest(), "big")


def _among(smallest: list[int], count: int, number: int) -> bool:
    """Whether a number is among the `count` smallest so far; keeps them, negated, as a heap."""
    if len(smallest) < count:
        heapq.heappush(smallest, -number)
        return True
    return heapq.heappushpop(smallest, -number) != -number


def _extra(record: Record) -> dict[str, Any]:
    extra: dict[str, Any] = json.loads(record.extra)
    return extra
