"""The paper's figures as data, with what does not add up in them."""

import functools
import json
from pathlib import Path
from typing import Any


@functools.cache
def paper_tables() -> dict[str, Any]:
    """The content of `paper.json`: {benchmark: {table, metric, unit, rows, notes}}."""
    tables: dict[str, Any] = json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))
    return tables


def paper_rows(key: str) -> dict[str, Any] | None:
    """The table of a benchmark, None where the paper has none.

    Returns:
        table (its number in the paper), columns, rows {model: values in the columns' order}, notes (inconsistencies,
        and what the paper leaves open).
    """
    return paper_tables().get(key) if key else None
