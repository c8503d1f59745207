"""Rows of the annotation files that publishers ship, one at a time: JSON, JSON lines, CSV, TSV and pickled lists."""

import codecs
import csv
import gzip
import io
import json
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

# Characters read at once from a JSON array.
CHUNK = 1 << 20
# GMAI-MMBench keeps whole images in the cells of its table.
csv.field_size_limit(1 << 30)

# What files begin with that say how they are encoded; that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
REMEDY = (
    "save the table as UTF-8, or state the encoding of a table of your own in source.json, such as "
    '"encoding": "cp1252" for Windows in western Europe'
)

Row = dict[str, Any]


def rows(path: Path, encoding: str = "utf-8") -> Iterator[Row]:
    """The rows of a table, in its order, without reading it whole (pickles excepted).

    The format follows from the name: `.json` (an array of objects, or an object of objects, whose keys become the
    column `_key`), `.jsonl`, `.csv`, `.tsv`, `.pkl`, each also with `.gz` appended. Empty CSV cells are "". Names in
    the first line of CSV lose the spaces around them, and a column without one is called after its place, "column 3".

    Args:
        path: the file.
        encoding: of a file without a byte order mark, which counts first (UTF-8, UTF-16 and UTF-32 of either order).

    Raises:
        ValueError: one line naming the file, for anything that is not a table of that format, or one in which a column
            or a key of an object stands twice.
    """
    suffix = _suffix_of(path)
    if suffix not in _READERS:
        raise ValueError(f"{path}: expected a table ({', '.join(sorted(_READERS))}), found {path.name}.")
    number = 0
    try:
        with _opened(path) as stream:
            for row in _READERS[suffix](stream, suffix, _encoding_of(stream, suffix, encoding)):
                if not isinstance(row, dict):
                    raise ValueError(f"expected rows with named columns, found {type(row).__name__}")
                yield row
                number += 1
    except UnicodeDecodeError as error:
        if error.encoding.startswith(("utf-16", "utf_16", "utf-32", "utf_32")):
            # Their lines end in several bytes, of which a byte of the text may be one.
            found = f"{error.reason}: get it again"
            raise ValueError(f"{path}: expected text in {error.encoding}, found {found}.") from error
        found = f"the byte 0x{error.object[error.start]:02x}{_undecodable_line(path, error.encoding)}"
        raise ValueError(f"{path}: expected text in {error.encoding}, found {found}: {REMEDY}.") from error
    except _RepeatedKey as error:
        raise ValueError(f"{path}: row {number + 1}: expected each key once, found {error} twice.") from error
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


def _encoding_of(stream: IO[bytes], suffix: str, encoding: str) -> str:
    """The encoding that the file's first bytes state, else the given one."""
    start = cast(io.BufferedReader, stream).peek(4)[:4]
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), "")
    if not marked and encoding == "utf-8" and b"\0" in start and suffix != ".pkl":
        raise ValueError(
            'zero bytes, as in UTF-16 without its mark: save the table as UTF-8, or state "encoding": "utf-16-le" (or '
            '"utf-16-be") in source.json'
        )
    return marked or encoding


def _undecodable_line(path: Path, encoding: str) -> str:
    """Where the first line is that cannot be decoded, in words; "" where it is none of them."""
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return f" in line {number}"
    return ""


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
        if len(row) == 1 and any(divider in found for divider in ";\t|"):
            found += ", which one other character divides: save the table with commas, or as .tsv with tabs"
        raise ValueError(f"{path}: expected the columns {', '.join(names)}, found {found}.")


class _RepeatedKey(ValueError):
    """A key that an object has twice: of its two values one would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _RepeatedKey(repr(next(name for name, count in counts.items() if count > 1)))
    return row


def _json_lines(stream: IO[bytes], suffix: str, encoding: str) -> Iterator[Any]:
    for line in io.TextIOWrapper(stream, encoding=encoding, newline="\n"):
        if line.strip():
            yield json.loads(line, object_pairs_hook=_object)


def _separated(stream: IO[bytes], suffix: str, encoding: str) -> Iterator[Any]:
    text = io.TextIOWrapper(stream, encoding=encoding, newline="")
    # Strict: a quote that is never closed would make one cell of all the rows that follow.
    reader = csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        reader.fieldnames = _column_names(reader.fieldnames or ())
        for row in reader:
            yield {("" if name is None else name): ("" if value is None else value) for name, value in row.items()}
    except csv.Error as error:
        place = f"line {reader.reader.line_num}: {error}"
        raise ValueError(f"{place}; there or before, a quotation mark may not be closed") from error


def _column_names(header: Sequence[str]) -> list[str]:
    names = [name.strip("\ufeff \t\xa0") or f"column {place}" for place, name in enumerate(header, 1)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"the column {repeated[0]!r} stands twice: keep one, or give it another name")
    return names


def _json(stream: IO[bytes], suffix: str, encoding: str) -> Iterator[Any]:
    """The elements of a top-level array, decoded as they arrive: PubMedVision's array is a gigabyte."""
    # Not with ijson: it refuses NaN, which pandas and Python's json write, and its errors quote the file's text, which
    # may be a patient's.
    text = io.TextIOWrapper(stream, encoding=encoding)
    buffer = text.read(CHUNK).lstrip()
    if buffer[:1] == "{":
        for key, row in json.loads(buffer + text.read(), object_pairs_hook=_object).items():
            yield {"_key": key, **row} if isinstance(row, dict) else row
        return
    if buffer[:1] != "[":
        raise ValueError("neither an array nor an object of rows")
    decoder, position = json.JSONDecoder(object_pairs_hook=_object), 1
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


def _pickled(stream: IO[bytes], suffix: str, encoding: str) -> Iterator[Any]:
    content = _PlainUnpickler(stream).load()
    if not isinstance(content, list):
        raise ValueError(f"a pickled {type(content).__name__} instead of a list")
    yield from content


_READERS: dict[str, Callable[[IO[bytes], str, str], Iterator[Any]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _separated,
    ".tsv": _separated,
    ".pkl": _pickled,
}
