"""All sources by name, and what their cards say as a table."""

from . import generic
from .base import UNVERIFIED, Source
from .named import NAMED

_SOURCES = {source.name: source for source in (*generic.SOURCES, *NAMED)}
assert len(_SOURCES) == len(generic.SOURCES) + len(NAMED), "two sources have one name"


def list_sources(named_only: bool = False) -> list[Source]:
    """All sources, generic ones first."""
    return list(NAMED) if named_only else list(_SOURCES.values())


def get_source(name: str) -> Source:
    """The source of that name.

    Raises:
        ValueError: one line with the names there are.
    """
    if name not in _SOURCES:
        raise ValueError(f"source: expected one of {', '.join(sorted(_SOURCES))}, found {name!r}.")
    return _SOURCES[name]


def table_of_sources(named_only: bool = False) -> list[dict[str, str]]:
    """One row per source for people: name, title, tasks, license, layout and where the layout is shown."""
    return [
        {
            "name": source.name,
            "title": source.card.title,
            "tasks": ", ".join(source.tasks),
            "license": source.card.license_words,
            "tier": source.card.license_tier,
            "redistributable": source.card.redistributable,
            "url": source.card.url,
            "layout": source.card.layout,
            "layout source": source.card.layout_source,
            "paper": source.card.paper,
            "notes": source.card.notes,
        }
        for source in list_sources(named_only)
    ]


def markdown_table() -> str:
    """The named sources as a Markdown table, generated from their cards."""
    titles = ("name", "dataset", "tasks", "license", "redistribution", "where to get", "layout shown by")
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for source in NAMED:
        card = source.card
        shown = card.layout_source if card.verified else UNVERIFIED
        made = ", ".join(task.replace("_", " ") for task in source.tasks)
        cells = (f"`{source.name}`", card.title, made, card.license_words, card.redistributable, card.url, shown)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
