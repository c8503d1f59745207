"""The files of sharded work: found by folder, identified by content, written in fixed bytes, read in batches."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unimedvl.utils.whole_files import replacing

# Images dominate a row: a hundred rows keep one batch in tens of megabytes and are the Hub's advice for row groups.
BATCH_ROWS = 100
# The files that state which source a folder's records are from.
MARKS = ("build.json", "augment.json", "qc.json")
RECORD_COLUMNS = ("id", "sub_task_type", "input_img", "message")
UNFINISHED_SUFFIX = ".unfinished"
# Key of the footer's metadata with the SHA-256 of all that precedes the footer.
SEAL = b"unimedvl.sha256"


def shard_paths(folder: str | Path) -> list[Path]:
    """The Parquet shards of a record folder in order (`FOLDER/data/*.parquet`, or `FOLDER/*.parquet`).

    Raises:
        ValueError: where there is none, or where the run that writes the folder was interrupted.
    """
    folder = Path(folder)
    check_finished(folder)
    for place in (folder / "data", folder):
        paths = sorted(place.glob("*.parquet"))
        if paths:
            for path in paths:
                _check_columns(path)
            return paths
    raise ValueError(f"expected Parquet shards in {folder} or {folder / 'data'}, found none; build the records first.")


def _check_columns(path: Path) -> None:
    """Raises ValueError where the file holds something else than records. A damaged file is named where it is read."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return
    missing = [name for name in RECORD_COLUMNS if name not in names]
    if missing:
        raise ValueError(
            f"{path}: expected records with the column {missing[0]}, found {', '.join(names[:6]) or 'none'}."
        )


def record_folders(records: str | Path | Sequence[str | Path]) -> list[Path]:
    """One record folder or several, as a list."""
    return [Path(records)] if isinstance(records, (str, Path)) else [Path(folder) for folder in records]


def build_sources(records: str | Path | Sequence[str | Path]) -> list[str]:
    """The sources that record folders were built from, also through `augment` and `check`; "" where none is stated."""
    found: list[str] = []
    for folder in record_folders(records):
        marks = [json.loads(mark.read_text()) for name in MARKS if (mark := folder / name).is_file()]
        stated = [source for mark in marks for source in mark.get("sources", [mark.get("source", "")])]
        found += stated or [""]
    return sorted(set(found))


def shards_of_all(records: str | Path | Sequence[str | Path]) -> list[Path]:
    """The shards of one or several record folders, folder by folder.

    Raises:
        ValueError: as `shard_paths`, and where two folders are the same or their shards would get one name.
    """
    folders = record_folders(records)
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise ValueError("the same record folder is given twice; name each once.")
    paths = [path for folder in folders for path in shard_paths(folder)]
    names = shard_names(paths)
    if len(set(names)) != len(names):
        raise ValueError("two record folders have the same name and the same shards; rename one of the folders.")
    return paths


def shard_names(paths: Sequence[str | Path]) -> list[str]:
    """A name for each shard: its file's, with its record folder's in front where shards of several folders meet."""
    folders = [Path(path).resolve().parent for path in paths]
    if len(set(folders)) < 2:
        return [Path(path).stem for path in paths]
    names = [folder.parent.name if folder.name == "data" else folder.name for folder in folders]
    return [f"{name}-{Path(path).stem}" for name, path in zip(names, paths, strict=True)]


def check_finished(folder: Path) -> None:
    """Raises ValueError where a run that writes `folder` did not end well: some of its records are missing or old."""
    marks = sorted(path.name for path in (folder / "receipts").glob(f"*{UNFINISHED_SUFFIX}"))
    if marks:
        names = ", ".join(mark.removesuffix(UNFINISHED_SUFFIX) for mark in marks)
        raise ValueError(f"{folder} is unfinished ({names} did not end well); repeat the command that writes it.")


def _unfinished_mark(folder: Path, name: str) -> Path:
    return folder / "receipts" / f"{name}{UNFINISHED_SUFFIX}"


def is_unfinished(folder: Path, name: str) -> bool:
    """Whether the work of that name did not end well in `folder`."""
    return _unfinished_mark(folder, name).exists()


@contextmanager
def unfinished(folder: Path, name: str) -> Iterator[None]:
    """Mark `folder` as unfinished until the block ends without an error; a killed process leaves the mark."""
    mark = _unfinished_mark(folder, name)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    yield
    mark.unlink(missing_ok=True)


def parquet_identity(path: str | Path) -> str:
    """SHA-256 that changes when anything in a Parquet file changes.

    The files of this package are sealed (`parquet_writer`): reading the footer is enough, which keeps resuming cheap
    where a shard is gigabytes. Other files are read whole.

    Raises:
        ValueError: where the file is torn.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little") + 8
        if len(tail) < 8 or tail[4:] != b"PAR1" or length > size:
            raise ValueError(f"{path} is not a complete Parquet file; build it again.")
        if SEAL in (pq.read_metadata(path).metadata or {}):
            file.seek(size - length)
            return hashlib.sha256(file.read()).hexdigest()
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


class _HashingFile(io.BufferedWriter):
    """A file that knows the SHA-256 of what was written to it."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


class SealedWriter(pq.ParquetWriter):
    """A Parquet writer that puts the digest of the file's pages into its footer.

    Sizes and statistics alone would not do: two columns of scores take the same room whatever the scores are.
    """

    def __init__(self, path: str | Path, schema: pa.Schema, **options: Any) -> None:
        self._file = _HashingFile(path)
        metadata = {key: value for key, value in (schema.metadata or {}).items() if key != SEAL}
        super().__init__(self._file, schema.with_metadata(metadata), **options)

    def close(self) -> None:
        """Write the footer with the digest; a second call does nothing."""
        if self.is_open:
            self.add_key_value_metadata({SEAL: self._file.digest.hexdigest()})
            super().close()
            self._file.close()


def parquet_writer(path: str | Path, schema: pa.Schema) -> SealedWriter:
    """A writer with every setting that shapes the bytes held fixed. Image columns are compressed already: their bytes
    are neither dictionary-encoded nor counted into statistics."""
    return SealedWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=["main_task_type", "sub_task_type", "modality", "dataset", "split", "license"],
        write_statistics=["id", "split"],
        store_schema=True,
        version="2.6",
    )


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write a table as one sealed row group, whole or not at all."""
    with replacing(path) as partial, parquet_writer(partial, table.schema) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))


def batches(path: str | Path, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """Stream a shard as tables of at most `rows` rows with the file's own schema metadata (the `datasets` features).

    No batch spans two row groups, and a row group is decoded batch by batch: memory does not depend on the shard's
    size.
    """
    names = list(columns) if columns is not None else None
    with pq.ParquetFile(str(path), pre_buffer=False) as file:
        metadata = file.schema_arrow.metadata
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(rows, row_groups=[group], columns=names):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(metadata)
