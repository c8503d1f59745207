"""Rows of the annotation files that publishers ship, one at a time: JSON, JSON lines, CSV, TSV and pickled lists."""

import csv
import gzip
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# Characters read at once from a JSON array.
CHUNK = 1 << 20
# GMAI-MMBench keeps whole images in the cells of its table.
csv.field_size_limit(1 << 30)

Row = dict[str, Any]


def rows(path: Path) -> Iterator[Row]:
    """The rows of a table, in its order, without reading it whole (pickles excepted).

    The format follows from the name: `.json` (an array of objects, or an object of objects, whose keys become the
    column `_key`), `.jsonl`, `.csv`, `.tsv`, `.pkl`, each also with `.gz` appended. Empty CSV cells are "".

    Raises:
        ValueError: one line naming the file, for anything that is not a table of that format.
    """
    name = path.name.removesuffix(".gz")
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _separated, ".tsv": _separated, ".pkl": _pickled}
    suffix = Path(name).suffix.lower()
    if suffix not in readers:
        raise ValueError(f"{path}: expected a table ({', '.join(sorted(readers))}), found {path.name}.")
    try:
        with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as stream:
            for row in readers[suffix](stream, suffix):
                if not isinstance(row, dict):
                    raise ValueError(f"expected rows with named columns, found {type(row).__name__}")
                yield row
    except (ValueError, UnicodeDecodeError, csv.Error, pickle.UnpicklingError, EOFError, OSError) as error:
        raise ValueError(f"{path}: expected a {suffix[1:]} table, found a problem: {error}.") from error


def columns(row: Row, path: Path, *names: str) -> None:
    """Check that a row has the columns a reader needs.

    Raises:
        ValueError: one line with the missing columns and those that are there.
    """
    missing = [name for name in names if name not in row]
    if missing:
        found = ", ".join(sorted(map(str, row))[:12])
        raise ValueError(f"{path}: expected the columns {', '.join(names)}, found {found}.")


def _json_lines(stream: IO[bytes], suffix: str) -> Iterator[Any]:
    for line in stream:
        if line.strip():
            yield json.loads(line)


def _separated(stream: IO[bytes], suffix: str) -> Iterator[Any]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    for row in csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ","):
        yield {("" if name is None else name): ("" if value is None else value) for name, value in row.items()}


def _json(stream: IO[bytes], suffix: str) -> Iterator[Any]:
    """The elements of a top-level array, decoded as they arrive: PubMedVision's array is a gigabyte."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    buffer = text.read(CHUNK).lstrip()
    if buffer[:1] == "{":
        for key, row in json.loads(buffer + text.read()).items():
            yield {"_key": key, **row} if isinstance(row, dict) else row
        return
    if buffer[:1] != "[":
        raise ValueError("neither an array nor an object of rows")
    decoder, position = json.JSONDecoder(), 1
    while True:
        while buffer[position : position + 1].isspace() or buffer[position : position + 1] == ",":
            position += 1
        if buffer[position : position + 1] == "]":
            return
        try:
            row, position = decoder.raw_decode(buffer, position)
        except json.JSONDecodeError:
            more = text.read(CHUNK)
            if not more:
                raise
            buffer, position = buffer[position:] + more, 0
            continue
        yield row


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, texts and numbers; a pickle that wants anything else could run code and is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"the pickle holds a {module}.{name}, and only plain lists are read")


def _pickled(stream: IO[bytes], suffix: str) -> Iterator[Any]:
    content = _PlainUnpickler(stream).load()
    if not isinstance(content, list):
        raise ValueError(f"a pickled {type(content).__name__} instead of a list")
    yield from content
