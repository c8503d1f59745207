"""Small helpers for the texts of constructed tasks."""

from .schema import IMAGE_PLACEHOLDER
from .templates import article, choose


def facts_phrase(description: str, where: str = "", finding: str = "") -> str:
    """The same facts as a phrase that can stand inside a request: "a head CT, axial plane, labelled hemorrhage"."""
    return f"{article(description)} {description}{_tail(where, finding)}"


def facts_sentence(key: str, modality: str, description: str, where: str = "", finding: str = "") -> str:
    """One true sentence about an image from stated facts: "A head CT, axial plane, labelled hemorrhage."

    Args:
        key: id of the record, which chooses the phrasing.
        modality: the short name, "CT".
        description: what the image is, "head CT".
        where: plane or site; empty if unknown.
        finding: label of the source; empty if unknown.
    """
    return choose(
        "facts",
        "gpt",
        key,
        where=f", {where}" if where else "",
        finding=_tail("", finding),
        **cased(modality=modality, description=description),
    )


def _tail(where: str, finding: str) -> str:
    return (f", {where}" if where else "") + (f", labelled {finding}" if finding else "")


def clean(text: str) -> str:
    """The text without surrounding space and without stray image placeholders."""
    return text.replace(IMAGE_PLACEHOLDER, "").strip()


def cased(**values: str) -> dict[str, str]:
    """Every value, and again under a capitalised name with a capital first letter."""
    return values | {name.capitalize(): value[:1].upper() + value[1:] for name, value in values.items()}
