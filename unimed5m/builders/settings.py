"""What `source.json` in the folder of a generic source may say."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from ..schema import MODALITIES
from .base import PUBLIC_PLACES
from .image_names import same_name
from .named import public_datasets

SETTINGS = "source.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `source.json` may say; an unknown name is an error.

    Attributes:
        dataset: name in the records; the folder's name by default.
        modality: one of `MODALITIES`; rows of tables may have a column of that name.
        description: what an image is, without an article ("knee MRI slice").
        license, license_tier, redistributable, url: as in `Card`.
        classes: structure -> values in the masks; by default one structure, everything that is not 0.
        origin, target: what the two sides of image pairs are.
        both_directions: whether image pairs also become records from target to origin.
        group: regular expression that is searched in every image's path below the folder; what its first pair of
            parentheses matches is the group, the patient in `patient03_slice2.png` for "(patient[0-9]+)". Images of a
            group are in one split. By default an image, series or volume is its own group.
        window: (center, width) for dicom-series and nifti-volumes; other sources refuse it.
        encoding: of a table without a byte order mark, as Python names it ("cp1252" for Windows in western Europe).
    """

    dataset: str = ""
    modality: str = "RAD"
    description: str = "medical image"
    license: str = "not stated"
    license_tier: str = "C"
    redistributable: str = "unclear"
    url: str = ""
    classes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    origin: str = "source-domain"
    target: str = "target-domain"
    both_directions: bool = True
    group: str = ""
    window: tuple[float, float] | None = None
    encoding: str = "utf-8"

    def group_of(self, path: str) -> str:
        """The group that an image's path names, relative to the folder; "" where `group` is not set.

        Raises:
            ValueError: if the path does not match: an image without its patient would be on any side of a split.
        """
        if not self.group:
            return ""
        found = re.search(same_name(self.group), same_name(path))
        if found is None or not found[1]:
            raise ValueError(f"{path}: expected a match of the group {self.group!r} in {SETTINGS}, found none.")
        return found[1]


def read_settings(root: Path) -> Settings:
    """The folder's settings.

    Raises:
        ValueError: one line, for an unknown name or modality.
    """
    path = root / SETTINGS
    values: Any = {}
    if path.is_file():
        try:
            # Bytes: editors of Windows write a byte order mark, which json then understands.
            values = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: expected a JSON object, found a problem: {error}.") from error
    known = {field.name for field in dataclasses.fields(Settings)}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(values).__name__}.")
    if not set(values) <= known:
        raise ValueError(f"{path}: expected only {', '.join(sorted(known))}, found {', '.join(map(str, values))}.")
    for name, value in values.items():
        _check_setting(path, name, value)
    settings = Settings(**{"dataset": root.resolve().name, **values})
    if settings.dataset.startswith(PUBLIC_PLACES) or settings.url.startswith(PUBLIC_PLACES):
        raise ValueError(f"{path}: dataset, url: expected none that begins with {' or '.join(PUBLIC_PLACES)}.")
    if settings.dataset in public_datasets():
        raise ValueError(
            f"{path}: dataset: {settings.dataset!r} is the name of a published data set: build it with its own "
            "source, or state another name here (the folder's own is taken otherwise)."
        )
    if settings.modality not in MODALITIES:
        raise ValueError(f"{path}: expected a modality of {', '.join(MODALITIES)}, found {settings.modality!r}.")
    if settings.both_directions and settings.origin == settings.target:
        raise ValueError(
            f"{path}: expected two names in origin and target, found {settings.origin!r} twice: "
            "give them different names, or set both_directions to false."
        )
    return settings


def _check_setting(path: Path, name: str, value: Any) -> None:
    numbers = (int, float)
    if name == "classes":
        right = isinstance(value, dict) and all(
            isinstance(levels, list) and levels and all(type(level) is int for level in levels)
            for levels in value.values()
        )
        expected = "structures with lists of whole numbers"
    elif name == "window":
        right = isinstance(value, list) and len(value) == 2 and all(type(part) in numbers for part in value)
        expected = "center and width, two numbers"
    elif name == "both_directions":
        right, expected = isinstance(value, bool), "true or false"
    elif name == "url":
        right, expected = (
            isinstance(value, str) and (not value or "://" in value),
            "an address such as https://..., or nothing",
        )
    elif name == "encoding":
        right, expected = _is_encoding(value), "an encoding that Python knows, such as utf-8, cp1252 or gb18030"
    elif name == "group":
        right, expected = _is_pattern(value), "a regular expression with parentheses around the group's name"
    else:
        right, expected = isinstance(value, str) and bool(value), "a text"
    if not right:
        raise ValueError(f"{path}: {name}: expected {expected}, found {value!r}.")


def _is_encoding(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool("a".encode(value))
    except (LookupError, ValueError):
        return False


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value).groups > 0
    except re.error:
        return False
