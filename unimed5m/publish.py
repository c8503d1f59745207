"""From checked records to a data set repository that `load_dataset` reads and `push_to_hub` takes.

    OUT/README.md                    card: YAML configs, balance, licenses, intended use, access
    OUT/data/CONFIG/SPLIT-SHARD.parquet      records with their images, where the license lets them be passed on
    OUT/metadata/CONFIG/SPLIT-SHARD.parquet  the other records without images and texts: hashes, paths, license
    OUT/LICENSES/SOURCE.txt, OUT/ACKNOWLEDGMENTS.md, OUT/RELINKING.md, OUT/statistics.json, OUT/plots/

Configs are the task types. `relink.relink` gives the metadata records back to someone who has the sources.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from unimedvl.utils.json_files import write_json
from unimedvl.utils.whole_files import replacing

from .builders import public_datasets
from .builders.base import PUBLIC_PLACES
from .builders.record_images import IMAGE_SUFFIXES
from .dataset_card import write_card
from .pipeline import Executor, Job, ShardTask, check_apart, run_job
from .schema import ARROW_SCHEMA, SPLITS
from .shards import (
    BATCH_ROWS,
    batches,
    check_finished,
    is_unfinished,
    parquet_identity,
    parquet_writer,
    shard_names,
    shards_of_all,
    unfinished,
)

# Large images make a row group of fewer rows: a shard holds one unwritten group per config and split in memory.
GROUP_BYTES = 16 * 2**20
# The first words of `redistributable` that let images be embedded; everything else is published as metadata.
EMBED = ("yes",)
FORMAT_SUFFIXES = frozenset({*IMAGE_SUFFIXES, ".dcm", ".nii", ".gz"})
# What records say in `extra` about the task; other names there are a source's own columns.
TASK_FACTS = frozenset(
    ("answer", "area", "change", "kind", "label", "method", "options", "place", "scale", "synthetic", "target")
)
# What a published folder consists of; nothing else that may lie there is uploaded.
PUBLISHED = [
    "README.md",
    "LICENSE.md",
    "ACKNOWLEDGMENTS.md",
    "RELINKING.md",
    "statistics.json",
    "LICENSES/*.txt",
    "plots/*.png",
    "data/*/*.parquet",
    "metadata/*/*.parquet",
]
COUNTED = ("main_task_type", "sub_task_type", "modality", "dataset", "license_tier")


def may_embed(redistributable: str | None, license_tier: str | None, allowed: Sequence[str] = EMBED) -> bool:
    """Whether a record's own statement of what may be passed on starts with one of the allowed words.

    A bare "yes" is enough; a qualified one ("yes (author statement, no formal license)") only in license tier A,
    unless its words are among those allowed.
    """
    statement = (redistributable or "").lower()
    if any(word != "yes" and statement.startswith(word) for word in allowed):
        return True
    return "yes" in allowed and (statement == "yes" or (statement.startswith("yes") and license_tier == "A"))


@dataclass(frozen=True)
class PublishShard:
    """Splits one shard by config and split, with images or without.

    Attributes:
        embed: see `may_embed`.
        public: data sets whose names of files and groups are public already.
        key: of the digests that replace all other names.
    """

    embed: tuple[str, ...]
    public: frozenset[str]
    key: str

    def __call__(self, task: ShardTask) -> dict[str, Any]:
        rows: Counter[str] = Counter()
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        sources: dict[str, dict[str, Any]] = {}
        files: dict[str, _PartWriter] = {}
        read = 0
        with ExitStack() as stack:
            for batch in batches(task.source):
                read += batch.num_rows
                batch = without_names(batch.cast(ARROW_SCHEMA), self.public, self.key)
                keys = self._keys(batch)
                for key in sorted(set(keys)):
                    part = batch.filter(pa.array([other == key for other in keys]))
                    kind, config, split = key
                    if kind == "metadata":
                        part = without_content(part)
                    # Built shards are called "train-00000-of-00008" already.
                    name = f"{kind}/{config}/{split}-{task.name.removeprefix(f'{split}-')}.parquet"
                    if name not in files:
                        files[name] = stack.enter_context(_PartWriter(Path(task.output) / name))
                    files[name].add(part)
                    rows[f"{kind}/{config}/{split}"] += part.num_rows
                _count(batch, counts, sources)
        size = sum((Path(task.output) / name).stat().st_size for name in files)
        return {
            "files": sorted(files),
            "read": read,
            "bytes": size,
            "rows": dict(sorted(rows.items())),
            "counts": {name: dict(sorted(values.items())) for name, values in sorted(counts.items())},
            "sources": sources,
        }

    def _keys(self, batch: pa.Table) -> list[tuple[str, str, str]]:
        names = ("redistributable", "license_tier", "sub_task_type", "split")
        columns = (batch[name].to_pylist() for name in names)
        return [
            ("data" if may_embed(statement, tier, self.embed) else "metadata", config_name(task), split)
            for statement, tier, task, split in zip(*columns, strict=True)
        ]


class _PartWriter:
    """Gathers the rows of one published file, which come a few per batch, into row groups worth a request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "_PartWriter":
        partial = self._stack.enter_context(replacing(self._path))
        self._writer = self._stack.enter_context(parquet_writer(partial, ARROW_SCHEMA))
        return self

    def add(self, part: pa.Table) -> None:
        self._waiting.append(part)
        if sum(table.num_rows for table in self._waiting) >= BATCH_ROWS:
            whole = pa.concat_tables(self._waiting)
            self._writer.write_table(whole.slice(0, BATCH_ROWS))
            self._waiting = [whole.slice(BATCH_ROWS)]
        elif sum(table.nbytes for table in self._waiting) >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if sum(table.num_rows for table in self._waiting):
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting = []

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is None:
            self._flush()
        return self._stack.__exit__(*error)


def config_name(sub_task_type: str) -> str:
    """The config of a task: its name with anything that a path or a YAML key would trip over replaced.

    The names that the card gives to configs of its own stay free.
    """
    name = "".join(letter if letter.isalnum() else "_" for letter in sub_task_type.lower()) or "other"
    return f"task_{name}" if name == "all" or name.startswith("metadata_") else name


def without_content(table: pa.Table) -> pa.Table:
    """The records with every image's bytes, the conversation and the source's own columns removed.

    A report is as little ours to pass on as its image. Ids, hashes, paths, sizes, license, split and scores stay.
    """
    for name in ("input_img", "output_img"):
        values = [[{**image, "image": None} for image in row or []] for row in table[name].to_pylist()]
        table = _with_column(table, name, values)
    table = _with_column(table, "message", [[]] * table.num_rows)
    return _with_column(table, "extra", ["{}"] * table.num_rows)


def without_names(table: pa.Table, public: Collection[str], key: str) -> pa.Table:
    """The records with names of files and groups that nobody has published yet exchanged for keyed digests.

    Folder names, file names and tables of a user's own data may name patients. Records of the data sets in `public`,
    and those whose provenance names a public copy, are left as they are. For the others `group_id` and the images'
    paths become digests, provenance the address of the source alone, and `extra` keeps `TASK_FACTS` only. Ids are
    digests already; texts are left to whoever publishes them.
    """
    columns = {name: table[name].to_pylist() for name in ("dataset", "provenance", "group_id", "extra")}
    images = {name: table[name].to_pylist() for name in ("input_img", "output_img")}
    touched = False
    for row in range(table.num_rows):
        dataset, provenance = columns["dataset"][row], columns["provenance"][row]
        if dataset in public or provenance.startswith(PUBLIC_PLACES):
            continue
        touched = True
        columns["group_id"][row] = f"{dataset}/{_keyed(key, columns['group_id'][row])}"
        address = provenance.split(" ")[0]
        columns["provenance"][row] = address if "://" in address else dataset
        facts = {name: value for name, value in json.loads(columns["extra"][row]).items() if name in TASK_FACTS}
        columns["extra"][row] = json.dumps(facts, ensure_ascii=False, sort_keys=True)
        for name in images:
            images[name][row] = [
                {**image, "path": _keyed(key, image["path"]) + _format_suffix(image["path"])}
                if image["path"]
                else image
                for image in images[name][row] or []
            ]
    if not touched:
        return table
    for name, values in [*columns.items(), *images.items()]:
        table = _with_column(table, name, values)
    return table


def _keyed(key: str, text: str) -> str:
    return hashlib.blake2b(text.encode(), key=bytes.fromhex(key), digest_size=8).hexdigest()


def _format_suffix(path: str) -> str:
    """The end of a file's name where it is a format's, "" where it may be anything else."""
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if suffix in FORMAT_SUFFIXES else ""


def cited(provenance: str) -> str:
    """The public place that a provenance names, without the path of one sample: repository and commit, or address."""
    if provenance.startswith(PUBLIC_PLACES):
        return ":".join(provenance.split(":")[:2])
    return provenance.split(" ")[0]


def _with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def _count(batch: pa.Table, counts: dict[str, Counter[str]], sources: dict[str, dict[str, Any]]) -> None:
    names = [*COUNTED, "split", "license", "redistributable", "provenance", "synthetic"]
    for row in batch.select(names).to_pylist():
        for name in COUNTED:
            counts[name][row[name]] += 1
        counts["split"][row["split"]] += 1
        counts["modality x task"][f"{row['modality']} / {row['sub_task_type']}"] += 1
        counts["synthetic"][str(bool(row["synthetic"])).lower()] += 1
        place = cited(row["provenance"])
        source = sources.setdefault(row["dataset"], {"records": 0, "licenses": {}, "provenance": place})
        source["records"] += 1
        terms = f"{row['license']} | redistribution: {row['redistributable']}"
        source["licenses"][terms] = source["licenses"].get(terms, 0) + 1


def publish(
    records: str | Path | Sequence[str | Path],
    output: str | Path,
    name: str = "UniMed-5M",
    embed: Sequence[str] = EMBED,
    executor: Executor | None = None,
    public: Collection[str] = (),
) -> dict[str, Any]:
    """Write the repository folder of `records` to `output` and return its statistics.

    Args:
        records: folder of record shards, built or checked, or several.
        output: folder to write; a second call resumes or does nothing.
        name: title of the card.
        embed: see `may_embed`. Add "non-commercial" only where the repository itself is under such terms.
        public: further data sets whose names of files and groups may be published as they are (`without_names`).

    Raises:
        ValueError: where `records` holds no record or is unfinished, or where `output` holds anything else.
    """
    output, sources = Path(output), shards_of_all(records)
    stems = set(shard_names(sources))
    if any(f"{split}-{stem}" in stems for split in SPLITS for stem in stems):
        raise ValueError(f"two shards in {records} differ in a leading split name only; give them other names.")
    known = public_datasets().union(public)
    # Nobody without the records can compute it, and equal records give equal digests.
    key = hashlib.sha256("".join(parquet_identity(path) for path in sources).encode()).hexdigest()
    settings = {"embed": list(embed), "public": sorted(known), "key": key}
    job = Job("publish", PublishShard(tuple(embed), frozenset(known), key), settings)
    check_apart(sources, output)
    earlier = output / "receipts"
    if (
        output.exists()
        and any(output.iterdir())
        and not (earlier / "publish").exists()
        and not is_unfinished(output, "card")
    ):
        raise ValueError(f"{output} holds other files; choose a new folder for the repository.")
    # Records without the card that describes them are not published.
    with unfinished(output, "card"):
        receipts = run_job(job, sources, output, executor)
        statistics = add_up(receipts)
        if not statistics["records"]:
            raise ValueError(f"the shards of {records} hold no record; there is nothing to publish.")
        write_card(output, name, statistics)
        write_json(output / "statistics.json", statistics)
    return statistics


def add_up(receipts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all shards. Every record read is in exactly one published file."""
    rows: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    sources: dict[str, dict[str, Any]] = {}
    for receipt in receipts:
        rows.update(receipt["rows"])
        for name, values in receipt["counts"].items():
            counts[name].update(values)
        for name, values in receipt["sources"].items():
            source = sources.setdefault(name, {"records": 0, "licenses": {}, "provenance": values["provenance"]})
            source["records"] += values["records"]
            for terms, count in values["licenses"].items():
                source["licenses"][terms] = source["licenses"].get(terms, 0) + count
    read = sum(receipt["read"] for receipt in receipts)
    assert sum(rows.values()) == read, f"{sum(rows.values())} records published, {read} read"
    embedded = sum(count for key, count in rows.items() if key.startswith("data/"))
    return {
        "records": read,
        "with_images": embedded,
        "metadata_only": read - embedded,
        "bytes": sum(receipt["bytes"] for receipt in receipts),
        "configs": _configs(rows),
        "counts": {name: dict(sorted(values.items())) for name, values in sorted(counts.items())},
        "sources": dict(sorted(sources.items())),
    }


def _configs(rows: Mapping[str, int]) -> dict[str, dict[str, dict[str, int]]]:
    """kind -> config -> split -> records, splits in the order of `SPLITS`."""
    configs: dict[str, dict[str, dict[str, int]]] = {}
    for key, count in sorted(
        rows.items(), key=lambda item: (item[0].split("/")[:2], SPLITS.index(item[0].split("/")[2]))
    ):
        kind, config, split = key.split("/")
        configs.setdefault(kind, {}).setdefault(config, {})[split] = count
    return configs


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool = True,
    revision: str | None = None,
    files: Sequence[str] = PUBLISHED,
    message: str = "Publish records",
) -> str:
    """Upload a published folder as a data set repository and return its address. Uses the token of `hf auth login`.

    Files of an earlier upload that are published no longer are deleted from the repository.

    Args:
        folder: what `publish` wrote.
        repo_id: "name/repository"; made if missing.
        private: whether a new repository is private.
        revision: branch; the default one if None.
        files: what is sent, as paths or patterns.
        message: of the commit.

    Raises:
        ValueError: where the folder was not published, or not completely.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    check_published(folder)
    api = HfApi()
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=str(folder),
        revision=revision,
        allow_patterns=list(files),
        delete_patterns=PUBLISHED,
        commit_message=message,
    )
    return str(address)


def check_published(folder: Path) -> None:
    """Raises ValueError where the folder was not published, or not completely."""
    if not (folder / "statistics.json").is_file():
        raise ValueError(
            f"expected a published folder, found no statistics.json in {folder}; publish the records first."
        )
    check_finished(folder)
