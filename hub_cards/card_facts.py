"""The facts of a model card that no file of the checkpoint holds: what whoever publishes it knows, as one YAML file.

Everything else a card says is read off the checkpoint: its configuration, the headers of its weights, the results of
`unimedvl eval`, the settings of an adapter.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unimedvl.training.recipe import from_mapping


@dataclass
class Source:
    """A data set that the weights were trained on.

    Attributes:
        name: as others know it.
        license: its terms, in the words of the source or as an SPDX identifier.
        role: what it taught.
        address: where it is found.
    """

    name: str
    license: str
    role: str
    address: str = ""


@dataclass
class Training:
    """How the weights were made.

    Attributes:
        recipe: file or address of the recipe.
        device: what it ran on.
        duration: time on that device.
        steps: of each part.
        changes: where it differs from the published recipe.
    """

    recipe: str
    device: str
    duration: str
    steps: str
    changes: str = ""


@dataclass
class Figure:
    """A row of the card's own table, for what `unimedvl eval` does not measure.

    Attributes:
        measured: what, on which data.
        number: of samples.
        value: with its interval.
        aim: what was aimed at; empty for none.
        met: whether the aim was met; None for no aim.
    """

    measured: str
    number: int
    value: str
    aim: str = ""
    met: bool | None = None


@dataclass
class Failure:
    """Something that the model gets wrong, for everyone to see.

    Attributes:
        text: what one sees, and why it is so.
        image: file of the folder that shows it; empty for none.
    """

    text: str
    image: str = ""


@dataclass
class Measured:
    """Memory or time of a mode of use on an available device.

    Attributes:
        mode: what was done.
        device: on what.
        memory: peak.
        time: for one call.
    """

    mode: str
    device: str
    memory: str
    time: str


@dataclass
class CardFacts:
    """What a card needs beside the checkpoint itself.

    Attributes:
        title: name for people.
        summary: one paragraph.
        license: identifier that the Hub knows.
        language: of prompts and answers.
        intended_use, out_of_scope: what for, and what not for.
        training: how the weights were made.
        data: what they were trained on.
        limitations: known weaknesses, biases and risks.
        failures: what goes wrong, with images.
        citation: BibTeX.
        protocol: how the evaluation was done: split, prompts, intervals.
        base_model: Hub ids of what it was derived from.
        datasets: Hub ids of the training data.
        tags: further ones.
        figures: rows of a table, see `Figure`.
        measured: memory and time, see `Measured`.
        not_evaluated: why there is no evaluation, where there is none.
        sheets: images of the folder that show what the model makes, with a line each ("file: text").
    """

    title: str
    summary: str
    license: str
    language: list[str]
    intended_use: list[str]
    out_of_scope: list[str]
    training: Training
    data: list[Source]
    limitations: list[str]
    failures: list[Failure]
    citation: str
    protocol: str = ""
    base_model: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    not_evaluated: str = ""
    sheets: dict[str, str] = field(default_factory=dict)


def read_facts(path: str | Path) -> CardFacts:
    """Read the YAML file of a card's facts.

    Raises:
        ValueError: if the file is missing or no YAML, or naming every fact that is missing, empty or of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}: write the facts of the card as YAML (docs/hub.md).")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no facts: write `name: value` lines (docs/hub.md).")
    missing = _missing(CardFacts, values)
    if missing:
        raise ValueError(f"{path} lacks facts that a card states: {', '.join(missing)}.")
    return from_mapping(CardFacts, values, str(path))


def _missing(kind: type, values: Any, prefix: str = "") -> list[str]:
    """Names of the facts without a value, those inside others too."""
    found = []
    for one in dataclasses.fields(kind):
        name, value = prefix + one.name, values.get(one.name) if isinstance(values, dict) else None
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and (value is None or value == "" or value == [] or value == {}):
            found.append(name)
        elif isinstance(one.type, type) and dataclasses.is_dataclass(one.type):
            found += _missing(one.type, value, f"{name}.")
        elif isinstance(value, list) and (inner := _INNER.get(one.name)) is not None:
            found += [
                fact for number, item in enumerate(value) for fact in _missing(inner, item, f"{name}[{number}].")
            ]
    return found


_INNER = {"data": Source, "failures": Failure, "figures": Figure, "measured": Measured}
