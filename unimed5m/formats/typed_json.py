"""Values of foreign columns as JSON, each with its type: what Arrow columns hold besides texts, numbers and lists.

A value that JSON keeps as it is stays readable; any other becomes a list of its type's name and its content, at any
depth: `["bytes", "AP8="]`, `["date", "2025-01-31"]`, `["list", [...]]`, `["dict", [[key, value], ...]]`.
"""

import base64
import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy
import pandas

_MICROSECOND = datetime.timedelta(microseconds=1)


def is_plain(value: Any) -> bool:
    """Whether JSON gives the value back with its type and the order of its keys."""
    if type(value) is dict:
        return all(type(key) is str and is_plain(part) for key, part in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def packed(value: Any) -> Any:
    """A value of any of the types below as a JSON value.

    Raises:
        ValueError: for a value of another type.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, numpy.generic) and not isinstance(value, numpy.datetime64 | numpy.timedelta64):
        return packed(value.item())
    for kind, (type_, pack, _) in _KINDS.items():
        if type(value) is type_:
            return [kind, pack(value)]
    raise ValueError(
        f"expected numbers, texts, times, bytes, lists or structures of them in a foreign column, found {value!r:.60}."
    )


def unpacked(value: Any) -> Any:
    """The value of `packed`."""
    if not isinstance(value, list):
        return value
    kind, content = value
    return _KINDS[kind][2](content)


# A subclass comes with its own type: pandas' times hold the nanoseconds that Python's lack.
_KINDS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "bytes": (bytes, lambda value: base64.b64encode(value).decode("ascii"), base64.b64decode),
    "list": (list, lambda value: [packed(part) for part in value], lambda parts: [unpacked(part) for part in parts]),
    # The entries of maps.
    "tuple": (
        tuple,
        lambda value: [packed(part) for part in value],
        lambda parts: tuple(unpacked(part) for part in parts),
    ),
    "dict": (
        dict,
        lambda value: [[packed(key), packed(part)] for key, part in value.items()],
        lambda pairs: {unpacked(key): unpacked(part) for key, part in pairs},
    ),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "microseconds": (datetime.timedelta, lambda value: value // _MICROSECOND, lambda count: count * _MICROSECOND),
    "timestamp": (
        pandas.Timestamp,
        lambda value: [value.value, None if value.tz is None else str(value.tz)],
        lambda parts: pandas.Timestamp(parts[0], tz="UTC").tz_convert(parts[1]),
    ),
    "nanoseconds": (pandas.Timedelta, lambda value: value.value, pandas.Timedelta),
    "decimal": (Decimal, str, Decimal),
}
