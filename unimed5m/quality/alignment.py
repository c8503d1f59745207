"""Image-text alignment: S_final = 0.5 S + M, the better half kept (paper, section 3.1, equation 2).

S is the largest cosine between the original text and five machine captions of the image, both embedded by a text
encoder; M is the similarity that an image-text encoder gives to image and text. The captions serve scoring only: kept
records keep their text. The paper says that both scores are normalized to [0, 1] and neither how nor within what
records are ranked; here

* `affine` (default) maps every cosine c to (1 + c) / 2, which needs no other record, and `minmax` stretches the
  scores of the ranking scope to [0, 1];
* the scope is `global`, `modality` or `source`; every record carries it in `quality.scope`.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy
import pyarrow as pa
from PIL import Image

from ..task_images import open_stored_image
from .record_texts import ALIGNED_TASKS, described_image, original_text

CAPTIONS = 5
NORMALIZATIONS = ("affine", "minmax")
SCOPES = ("global", "modality", "source")
# Arithmetic differs in the last bits between machines; scores are kept to what they mean.
DECIMALS = 5


class Captioner(Protocol):
    """Writes captions of images. `name` identifies model and settings."""

    name: str

    def caption(self, images: Sequence[Image.Image], count: int) -> list[list[str]]:
        """`count` captions of each image, the same for the same image whatever else is in the batch."""
        ...


class TextEncoder(Protocol):
    """Embeds texts. `name` identifies model and settings."""

    name: str

    def encode(self, texts: Sequence[str]) -> numpy.ndarray:
        """Unit vectors, float32 (texts, dimensions)."""
        ...


class ImageTextEncoder(Protocol):
    """Embeds images and texts into one space. `name` identifies model and settings."""

    name: str

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> numpy.ndarray:
        """The cosine of each image with its text, float32 (images,)."""
        ...


@dataclass(frozen=True)
class AlignmentModels:
    """The three models of the alignment score (paper, section 3.1)."""

    captioner: Captioner
    text_encoder: TextEncoder
    image_text_encoder: ImageTextEncoder


_loaded: dict[str, AlignmentModels] = {}


@dataclass(frozen=True)
class Alignment:
    """Measures the raw cosines S and M of the records whose text describes an image; others get nulls.

    Attributes:
        load: makes the models; called once per process, so it must be picklable.
        models: a name for what `load` makes; part of the settings that decide the result.
        captions: per image (the paper's K).
        tasks: the sub-tasks scored.
    """

    load: Callable[[], AlignmentModels]
    models: str
    captions: int = CAPTIONS
    tasks: tuple[str, ...] = ALIGNED_TASKS

    name = "alignment"
    columns: ClassVar[Sequence[str]] = (
        "id", "sub_task_type", "modality", "dataset", "split", "input_img", "output_img", "message",
    )  # fmt: skip
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "sub_task_type", "modality", "dataset", "split")),
            ("s", pa.float64()),
            ("m", pa.float64()),
        ]
    )

    def settings(self) -> Mapping[str, Any]:
        """What the scores depend on besides the records, JSON-safe."""
        return {"models": self.models, "captions": self.captions, "tasks": list(self.tasks)}

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        places, images, texts = [], [], []
        for place, row in enumerate(rows):
            data = described_image(row) if row["sub_task_type"] in self.tasks else None
            if data is None:
                continue
            try:
                images.append(open_stored_image(data))
            except ValueError:
                # The coarse filter drops it with the reason; without an image there is nothing to score.
                continue
            places.append(place)
            texts.append(original_text(row))
        result: list[dict[str, Any]] = [
            {**{key: row[key] for key in self.schema.names[:5]}, "s": None, "m": None} for row in rows
        ]
        if places:
            if self.models not in _loaded:
                _loaded[self.models] = self.load()
            s, m = score(_loaded[self.models], images, texts, self.captions)
            for place, one, other in zip(places, s.tolist(), m.tolist(), strict=True):
                result[place].update(s=round(one, DECIMALS), m=round(other, DECIMALS))
        return pa.Table.from_pylist(result, schema=self.schema)


def score(
    models: AlignmentModels, images: Sequence[Image.Image], texts: Sequence[str], captions: int = CAPTIONS
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The raw scores of images with texts (paper, section 3.1).

    Args:
        images: RGB, one per text.
        texts: the original texts.
        captions: machine captions per image (the paper's K).

    Returns:
        S and M, cosines in [-1, 1], float64 (images,) each.
    """
    s = text_similarity(models.text_encoder, texts, caption_once(models.captioner, images, captions))
    return s, numpy.asarray(models.image_text_encoder.similarity(images, texts), dtype=numpy.float64)


def caption_once(captioner: Captioner, images: Sequence[Image.Image], count: int) -> list[list[str]]:
    """The captions of each image; an image that comes several times, as it does with several questions, is captioned
    once.
    """
    digests = [hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest() for image in images]
    first = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    places = sorted(first.values())
    written = dict(zip(places, captioner.caption([images[place] for place in places], count), strict=True))
    return [written[first[digest]] for digest in digests]


def text_similarity(encoder: TextEncoder, texts: Sequence[str], captions: Sequence[Sequence[str]]) -> numpy.ndarray:
    """The largest cosine of each text with any of its captions, float64 (texts,)."""
    if not texts:
        return numpy.zeros(0)
    flat = [caption for group in captions for caption in group]
    encoded = numpy.asarray(encoder.encode([*texts, *flat]), dtype=numpy.float64)
    result = numpy.empty(len(texts))
    start = len(texts)
    for index, group in enumerate(captions):
        result[index] = (encoded[start : start + len(group)] @ encoded[index]).max()
        start += len(group)
    return result


def normalize(values: numpy.ndarray, how: str = "affine") -> numpy.ndarray:
    """Map cosines to [0, 1].

    Args:
        values: cosines in [-1, 1], (records,); for "minmax" those of one ranking scope, at least one.
        how: "affine" gives (1 + c) / 2, "minmax" stretches to the whole range; equal values become 0.5.

    Raises:
        ValueError: for another `how`.
    """
    if how not in NORMALIZATIONS:
        raise ValueError(f"expected a normalization out of {', '.join(NORMALIZATIONS)}, found {how!r}.")
    if how == "affine":
        return numpy.clip((1.0 + values) / 2.0, 0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else numpy.full_like(values, 0.5)


def final_scores(
    s: numpy.ndarray, m: numpy.ndarray, how: str = "affine"
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Normalized S and M in [0, 1], and S_final = 0.5 S + M in [0, 1.5] (equation 2), (records,) each."""
    s, m = normalize(s, how), normalize(m, how)
    return s, m, 0.5 * s + m


@dataclass(frozen=True)
class Selection:
    """How scored records are ranked.

    Attributes:
        keep: share in (0, 1] of the best records of a scope that stay.
        scope: within what records are ranked and `minmax` scales: one of `SCOPES`.
        normalization: one of `NORMALIZATIONS`.
        splits: those whose records are ranked; other splits are only scored.
        report: the records beyond `keep` stay as well and are reported.
    """

    keep: float = 0.5
    scope: str = "modality"
    normalization: str = "affine"
    splits: tuple[str, ...] = ("train",)
    report: bool = False

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"expected a ranking scope out of {', '.join(SCOPES)}, found {self.scope!r}.")
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"expected the kept share in (0, 1], found {self.keep}.")
        normalize(numpy.zeros(1), self.normalization)

    def scope_of(self, row: Mapping[str, Any]) -> str:
        """The name of a record's ranking scope, "" for the global one."""
        return {"global": "", "modality": row["modality"], "source": row["dataset"]}[self.scope]


def select(rows: Sequence[Mapping[str, Any]], selection: Selection) -> list[dict[str, Any]]:
    """For each measured record: its `s`, `m`, `s_final` and `scope` (None where unscored) and `keep`.

    Ranking runs over the scored records of the ranked splits, best first, equal scores by id; of n records in a scope
    the first ceil(keep * n) stay.
    """
    result: list[dict[str, Any]] = [{"s": None, "m": None, "s_final": None, "scope": None, "keep": True} for _ in rows]
    scopes: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row["s"] is not None and row["m"] is not None:
            scopes[selection.scope_of(row)].append(index)
    for members in scopes.values():
        s, m, final = final_scores(
            numpy.array([rows[index]["s"] for index in members]),
            numpy.array([rows[index]["m"] for index in members]),
            selection.normalization,
        )
        for place, index in enumerate(members):
            result[index].update(
                s=round(float(s[place]), DECIMALS),
                m=round(float(m[place]), DECIMALS),
                s_final=round(float(final[place]), DECIMALS),
                scope=selection.scope,
            )
        ranked = [index for index in members if rows[index]["split"] in selection.splits]
        ranked.sort(key=lambda index: (-result[index]["s_final"], rows[index]["id"]))
        for index in ranked[math.ceil(selection.keep * len(ranked)) :]:
            result[index]["keep"] = False
    return result


def shuffled_texts(
    texts: Sequence[str], blocks: Sequence[Any], seed: int = 0, facts: Sequence[Any] | None = None
) -> list[str | None]:
    """Each text replaced by another one of its block, with the block's frequencies.

    Args:
        texts: the true texts.
        blocks: of each text, the block within which it is exchanged.
        seed: of the draws.
        facts: what each text says; texts with equal facts are as true as one another and are not exchanged. By
            default texts are equal only if their words are.

    Returns:
        A false text for each entry, None where the block has none.
    """
    members: dict[Any, list[int]] = defaultdict(list)
    for index, block in enumerate(blocks):
        members[block].append(index)
    known = facts if facts is not None else texts
    result: list[str | None] = [None] * len(texts)
    generator = numpy.random.default_rng(seed)
    for _, indices in sorted(members.items(), key=lambda item: str(item[0])):
        for index in indices:
            others = [other for other in indices if texts[other] != texts[index] and known[other] != known[index]]
            if others:
                result[index] = texts[others[int(generator.integers(len(others)))]]
    return result
