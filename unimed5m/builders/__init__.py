"""Sources of records: `list_sources()` names them, `get_source(name)` gives one.

Named sources read the layout in which a data set is published; generic ones read plain folders and tables. Nothing is
fetched: a person downloads a set under its terms and points the source at the folder.
"""

from .base import Card, LeftOut, Source
from .named import public_datasets
from .registry import get_source, list_sources, markdown_table, table_of_sources
from .unimed5m import UniMed5M

__all__ = [
    "Card",
    "LeftOut",
    "Source",
    "UniMed5M",
    "get_source",
    "list_sources",
    "markdown_table",
    "public_datasets",
    "table_of_sources",
]
