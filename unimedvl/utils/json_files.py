"""JSON files: read with one-line errors, written complete or not at all."""

import json
from pathlib import Path
from typing import Any

from .whole_files import replacing


def read_json(path: str | Path, missing: str = "get the whole checkpoint") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        missing: what a user does who has no such file, for the message.

    Raises:
        ValueError: if there is no such file, or if it holds no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: {missing}.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): get it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object: get it again.")
    return content


def write_json(path: str | Path, value: Any, indent: int = 1) -> None:
    """Write a value with sorted keys, complete or not at all."""
    with replacing(path) as partial:
        text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
