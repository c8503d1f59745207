"""From checked records to a data set repository that `load_dataset` reads and `push_to_hub` takes.

    OUT/README.md                    card: YAML configs, balance, licences, intended use, access
    OUT/data/CONFIG/SPLIT-SHARD.parquet      records with their images, where the licence lets them be passed on
    OUT/metadata/CONFIG/SPLIT-SHARD.parquet  the other records without images: path and SHA-256 of each
    OUT/LICENSES/SOURCE.txt, OUT/ACKNOWLEDGMENTS.md, OUT/RELINKING.md, OUT/statistics.json, OUT/plots/

Configs are the task types. `relink` puts the images back into the metadata records of someone who has the sources.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .pipeline import Executor, Job, ShardTask, batches, parquet_writer, replacing, run_job, shard_paths, write_json
from .publish_card import write_card
from .schema import ARROW_SCHEMA, SPLITS

# The first words of `redistributable` that let images be embedded; everything else is published as metadata.
EMBED = ("yes",)
COUNTED = ("main_task_type", "sub_task_type", "modality", "dataset", "license_tier")


def may_embed(redistributable: str | None, allowed: Sequence[str] = EMBED) -> bool:
    """Whether a record's own statement of what may be passed on starts with one of the allowed words."""
    return any((redistributable or "").lower().startswith(word) for word in allowed)


@dataclass(frozen=True)
class PublishShard:
    """Splits one shard by config and split, with images or without."""

    embed: tuple[str, ...] = EMBED

    def __call__(self, task: ShardTask) -> dict[str, Any]:
        files: set[str] = set()
        rows: Counter[str] = Counter()
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        sources: dict[str, dict[str, Any]] = {}
        read = 0
        with ExitStack() as stack:
            writers: dict[str, Any] = {}
            for batch in batches(task.source):
                read += batch.num_rows
                batch = batch.cast(ARROW_SCHEMA)
                keys = self._keys(batch)
                for key in sorted(set(keys)):
                    part = batch.filter(pa.array([other == key for other in keys]))
                    kind, config, split = key
                    if kind == "metadata":
                        part = without_images(part)
                    # Built shards are called "train-00000-of-00008" already.
                    name = f"{kind}/{config}/{split}-{task.name.removeprefix(f'{split}-')}.parquet"
                    if name not in writers:
                        path = stack.enter_context(replacing(Path(task.output) / name))
                        writers[name] = stack.enter_context(parquet_writer(path, ARROW_SCHEMA))
                    writers[name].write_table(part)
                    files.add(name)
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
        columns = (batch[name].to_pylist() for name in ("redistributable", "sub_task_type", "split"))
        return [
            ("data" if may_embed(allowed, self.embed) else "metadata", config_name(task), split)
            for allowed, task, split in zip(*columns, strict=True)
        ]


def config_name(sub_task_type: str) -> str:
    """The config of a task: its name with anything that a path or a YAML key would trip over replaced."""
    return "".join(letter if letter.isalnum() else "_" for letter in sub_task_type.lower()) or "other"


def without_images(table: pa.Table) -> pa.Table:
    """The records with every image's bytes removed; path, size and SHA-256 stay."""
    for name in ("input_img", "output_img"):
        field = table.schema.field(name)
        values = [[{**picture, "image": None} for picture in row or []] for row in table[name].to_pylist()]
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    return table


def _count(batch: pa.Table, counts: dict[str, Counter[str]], sources: dict[str, dict[str, Any]]) -> None:
    names = [*COUNTED, "split", "license", "redistributable", "provenance", "synthetic"]
    for row in batch.select(names).to_pylist():
        for name in COUNTED:
            counts[name][row[name]] += 1
        counts["split"][row["split"]] += 1
        counts["modality x task"][f"{row['modality']} / {row['sub_task_type']}"] += 1
        counts["synthetic"][str(bool(row["synthetic"])).lower()] += 1
        source = sources.setdefault(row["dataset"], {"records": 0, "licenses": {}, "provenance": row["provenance"]})
        source["records"] += 1
        terms = f"{row['license']} | redistribution: {row['redistributable']}"
        source["licenses"][terms] = source["licenses"].get(terms, 0) + 1


def publish(
    records: str | Path,
    output: str | Path,
    name: str = "UniMed-5M",
    embed: Sequence[str] = EMBED,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Write the repository folder of `records` to `output` and return its statistics.

    Args:
        records: folder of record shards, built or checked.
        output: folder to write; a second call resumes or does nothing.
        name: title of the card.
        embed: first words of `redistributable` whose records keep their images. Add "non-commercial" only where the
            repository itself is under such terms.

    Raises:
        ValueError: where `records` holds no shards.
    """
    output, sources = Path(output), shard_paths(records)
    stems = {path.stem for path in sources}
    if any(f"{split}-{stem}" in stems for split in SPLITS for stem in stems):
        raise ValueError(f"two shards in {records} differ in a leading split name only; give them other names")
    job = Job("publish", PublishShard(tuple(embed)), {"embed": list(embed)})
    receipts = run_job(job, sources, output, executor)
    statistics = add_up(receipts)
    write_json(output / "statistics.json", statistics)
    write_card(output, name, statistics)
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


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True, revision: str | None = None) -> str:
    """Upload a published folder as a data set repository and return its address. Uses the token of `hf auth login`.

    Raises ValueError where the folder was not published.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not (folder / "statistics.json").is_file():
        raise ValueError(
            f"expected a published folder, found no statistics.json in {folder}; publish the records first"
        )
    api = HfApi()
    address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=str(folder),
        revision=revision,
        ignore_patterns=["receipts/**", "*.partial"],
        commit_message="Publish records",
    )
    return str(address)


def relink(published: str | Path, sources: str | Path, output: str | Path) -> dict[str, int]:
    """Put images back into metadata-only records.

    `sources` holds records with images, built by this package from the sources' own downloads (`unimedvl data build`).
    Images are found by SHA-256, so a relinked image is the one that was checked. Writes `OUTPUT/data/*.parquet` and
    returns how many records were relinked and how many are still missing an image (they are left out).
    """
    published, output = Path(published), Path(output)
    paths = shard_paths(sources)
    places = _image_places(paths)
    found = missing = 0
    for path in sorted((published / "metadata").glob("*/*.parquet")):
        target = output / "data" / f"{path.parent.name}-{path.name}"
        with replacing(target) as partial, parquet_writer(partial, ARROW_SCHEMA) as writer:
            for batch in batches(path):
                rows = batch.to_pylist()
                images = _read_images(paths, places, rows)
                linked = [_with_images(row, images) for row in rows]
                complete = [row for row in linked if row is not None]
                found, missing = found + len(complete), missing + len(rows) - len(complete)
                if complete:
                    writer.write_table(pa.Table.from_pylist(complete, schema=ARROW_SCHEMA))
    return {"relinked": found, "missing": missing}


def _pictures(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*(row["input_img"] or []), *(row["output_img"] or [])]


def _image_places(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """SHA-256 -> (file, row group) of every image, from the digest columns alone."""
    places: dict[str, tuple[int, int]] = {}
    for number, path in enumerate(paths):
        with pq.ParquetFile(path) as file:
            columns = [f"{name}.list.element.sha256" for name in ("input_img", "output_img")]
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group, columns=columns).to_pylist():
                    places.update((picture["sha256"], (number, group)) for picture in _pictures(row))
    return places


def _read_images(
    paths: Sequence[Path], places: Mapping[str, tuple[int, int]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, bytes]:
    """The images that a batch of metadata records needs, as far as they are there."""
    wanted = {picture["sha256"] for row in rows for picture in _pictures(row)}
    images: dict[str, bytes] = {}
    for number, group in sorted({places[digest] for digest in wanted if digest in places}):
        with pq.ParquetFile(paths[number]) as file:
            table = file.read_row_group(group, columns=["input_img", "output_img"])
        for row in table.to_pylist():
            for picture in _pictures(row):
                if picture["sha256"] in wanted and picture["image"] is not None:
                    images[picture["sha256"]] = picture["image"]["bytes"]
    return images


def _with_images(row: dict[str, Any], images: Mapping[str, bytes]) -> dict[str, Any] | None:
    for name in ("input_img", "output_img"):
        for picture in row[name] or []:
            if picture["sha256"] not in images:
                return None
            picture["image"] = {"bytes": images[picture["sha256"]], "path": None}
    return row
