"""Rows of the annotation files that publishers ship, one at a time: JSON, JSON lines, CSV, TSV and pickled lists."""

import csv
import gzip
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

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
    suffix = _suffix_of(path)
    if suffix not in _READERS:
        raise ValueError(f"{path}: expected a table ({', '.join(sorted(_READERS))}), found {path.name}.")
    try:
        with _opened(path) as stream:
            for row in _READERS[suffix](stream, suffix):
                if not isinstance(row, dict):
                    raise ValueError(f"expected rows with named columns, found {type(row).__name__}")
                yield row
    except (ValueError, csv.Error, pickle.UnpicklingError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a {suffix[1:]} table, found a problem: {str(error).rstrip('.')}."
        ) from error


def is_table(path: Path) -> bool:
    """Whether `rows` reads files of that name."""
    return _suffix_of(path) in _READERS


def _opened(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        # A GzipFile reads as any binary stream does; typeshed derives it from another class.
        return cast(IO[bytes], gzip.open(path))
    return open(path, "rb")


def _suffix_of(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


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
    # Strict: a quote that is never closed would make one cell of all the rows that follow.
    reader = csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        for row in reader:
            yield {("" if name is None else name): ("" if value is None else value) for name, value in row.items()}
    except csv.Error as error:
        place = f"line {reader.reader.line_num}: {error}"
        raise ValueError(f"{place}; there or before, a quotation mark may not be closed") from error


def _json(stream: IO[bytes], suffix: str) -> Iterator[Any]:
    """The elements of a top-level array, decoded as they arrive: PubMedVision's array is a gigabyte."""
    # Not with ijson: it refuses NaN, which pandas and Python's json write, and its errors quote the file's text, which
    # may be a patient's.
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


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[Any]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _separated,
    ".tsv": _separated,
    ".pkl": _pickled,
}
