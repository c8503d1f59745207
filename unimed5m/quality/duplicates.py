"""Near duplicates, leakage between splits and contamination by benchmarks, from fingerprints.

Two images are the same image when their perceptual hashes differ in at most `MAX_DISTANCE` of 64 bits and their
16x16 thumbnails correlate at 0.97 or more: hashes alone confuse standard views such as frontal chest films. Candidates
come from exact matches of hash bands: of `MAX_DISTANCE` + 1 bands, at least one is untouched by the differing bits.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pyarrow.parquet as pq

from .fingerprints import short_digest

MAX_DISTANCE = 6
MIN_CORRELATION = 0.97
# Held-out records are never dropped for the sake of training records.
SPLIT_RANK = {"test": 0, "validation": 1, "train": 2}
_PAIR_BLOCK = 4_000_000


@dataclass
class FingerprintTable:
    """The fingerprints of a list of records in order."""

    ids: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    """Unique across sources: sets with the same patients number them alike."""
    contents: list[str] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    images: list[list[int]] = field(default_factory=list)
    """Per record, indices into `hashes`: equal images share an index."""
    hashes: list[int] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known: dict[tuple[int, int], int] = {}

    def add(self, path: str | Path, split: str | None = None) -> int:
        """Append a measured shard, of it the records of `split` if given; returns how many were added."""
        rows = [row for row in pq.read_table(path).to_pylist() if split in (None, row["split"])]
        for row in rows:
            self.ids.append(row["id"])
            self.splits.append(row["split"])
            self.groups.append(row["group_id"])
            self.contents.append(row["content_hash"])
            self.texts.append(row["text"])
            entry = []
            for code, small in zip(row["hashes"], row["thumbnails"], strict=True):
                key = (code, short_digest(small))
                if key not in self._known:
                    self._known[key] = len(self.hashes)
                    self.hashes.append(code)
                    self.thumbnails.append(small)
                entry.append(self._known[key])
            self.images.append(entry)
        return len(rows)


def band_masks(bands: int) -> list[int]:
    """64 bits cut into `bands` runs of nearly equal length, as masks."""
    edges = [round(64 * number / bands) for number in range(bands + 1)]
    return [((1 << (high - low)) - 1) << low for low, high in zip(edges, edges[1:], strict=False)]


def close_pairs(hashes: Sequence[int], distance: int = MAX_DISTANCE) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """All index pairs (i, j), i < j, of hashes that differ in at most `distance` bits, in blocks; a pair may come
    twice.
    """
    codes = numpy.asarray(hashes, dtype=numpy.uint64)
    for mask in band_masks(distance + 1):
        band = codes & numpy.uint64(mask)
        order = numpy.argsort(band, kind="stable")
        starts = numpy.flatnonzero(numpy.r_[True, band[order][1:] != band[order][:-1]])
        for start, end in zip(starts, numpy.r_[starts[1:], len(order)], strict=True):
            if end - start < 2:
                continue
            group = order[start:end]
            rows = max(1, _PAIR_BLOCK // len(group))
            for first in range(0, len(group), rows):
                left = group[first : first + rows]
                near = numpy.bitwise_count(codes[left][:, None] ^ codes[group][None, :]) <= distance
                a, b = numpy.nonzero(near)
                a, b = left[a], group[b]
                ordered = a < b
                if ordered.any():
                    yield a[ordered], b[ordered]


def neighbors(
    table: FingerprintTable, distance: int = MAX_DISTANCE, correlation: float = MIN_CORRELATION
) -> dict[int, set[int]]:
    """For each image that has any, the other images that are the same by hash and thumbnail.

    Args:
        table: fingerprints; images are indices into its `hashes`.
        distance: most bits, of 64, in which two hashes of the same image differ.
        correlation: least Pearson correlation of their thumbnails, in [-1, 1].

    Returns:
        Image -> the same images, in both directions; images without any are absent.
    """
    found: dict[int, set[int]] = defaultdict(set)
    for left, right in close_pairs(table.hashes, distance):
        for start in range(0, len(left), 100_000):
            a, b = left[start : start + 100_000], right[start : start + 100_000]
            agree = _correlation(_pixels(table, a), _pixels(table, b)) >= correlation
            for one, other in zip(a[agree].tolist(), b[agree].tolist(), strict=True):
                found[one].add(other)
                found[other].add(one)
    return found


def _pixels(table: FingerprintTable, indices: numpy.ndarray) -> numpy.ndarray:
    data = b"".join(table.thumbnails[index] for index in indices)
    return numpy.frombuffer(data, dtype=numpy.uint8).reshape(len(indices), -1).astype(numpy.float32)


def _correlation(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    scale = numpy.linalg.norm(a, axis=1) * numpy.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / numpy.maximum(scale, 1e-12)


def find_drops(table: FingerprintTable, benchmarks: Sequence[tuple[str, int, int]] = ()) -> dict[int, tuple[str, str]]:
    """Which records to drop: index -> (reason, detail).

    Reasons, in order: `contaminated_group`, `contaminated_image` and `contaminated_text` (a training or validation
    record shares the source's group or an image, or, where both have none, the text with a benchmark); `leak_group`
    and `leak_image` (its group or image is also in a split that outranks its own: test, then validation, then
    train); `duplicate` (equal content, or equal text about the same images, as an earlier record of its split).

    Args:
        table: fingerprints of the records, followed by those of the benchmarks.
        benchmarks: (name, first, end) of each benchmark's rows in the table. Benchmark rows are never dropped.
    """
    near = neighbors(table)
    records = min((first for _, first, _ in benchmarks), default=len(table.ids))
    drops: dict[int, tuple[str, str]] = {}
    test_images: dict[int, str] = {}
    test_texts: dict[int, str] = {}
    test_groups: dict[str, str] = {}
    for name, first, end in benchmarks:
        for index in range(first, end):
            if table.groups[index]:
                test_groups.setdefault(table.groups[index], f"{name}: {table.ids[index]}")
            for image in table.images[index]:
                test_images.setdefault(image, f"{name}: {table.ids[index]}")
            if not table.images[index]:
                test_texts.setdefault(table.texts[index], f"{name}: {table.ids[index]}")
    for index in range(records):
        if table.splits[index] == "test":
            continue
        if table.groups[index] in test_groups:
            drops[index] = ("contaminated_group", test_groups[table.groups[index]])
            continue
        for image in table.images[index]:
            hit = next((other for other in (image, *sorted(near.get(image, ()))) if other in test_images), None)
            if hit is not None:
                drops[index] = ("contaminated_image", test_images[hit])
                break
        if index not in drops and not table.images[index] and table.texts[index] in test_texts:
            drops[index] = ("contaminated_text", test_texts[table.texts[index]])
    _find_leaks(table, near, records, drops)
    _find_duplicates(table, near, records, drops)
    return drops


def _find_leaks(
    table: FingerprintTable, near: dict[int, set[int]], records: int, drops: dict[int, tuple[str, str]]
) -> None:
    groups: dict[str, tuple[int, int]] = {}
    images: dict[int, tuple[int, int]] = {}
    for index in range(records):
        if index in drops:
            continue
        place = (SPLIT_RANK[table.splits[index]], index)
        if table.groups[index]:
            groups[table.groups[index]] = min(place, groups.get(table.groups[index], place))
        for image in table.images[index]:
            images[image] = min(place, images.get(image, place))
    for index in range(records):
        if index in drops:
            continue
        rank = SPLIT_RANK[table.splits[index]]
        owner = groups.get(table.groups[index])
        if owner is not None and owner[0] < rank:
            drops[index] = ("leak_group", f"{table.groups[index]} is in {table.splits[owner[1]]}")
            continue
        for image in table.images[index]:
            best = min(images[other] for other in (image, *near.get(image, ())) if other in images)
            if best[0] < rank:
                drops[index] = ("leak_image", f"same image as {table.ids[best[1]]} in {table.splits[best[1]]}")
                break


def _find_duplicates(
    table: FingerprintTable, near: dict[int, set[int]], records: int, drops: dict[int, tuple[str, str]]
) -> None:
    contents: dict[tuple[str, str], int] = {}
    seen: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for index in range(records):
        if index in drops:
            continue
        split, images, text = table.splits[index], table.images[index], table.texts[index]
        earlier = contents.get((split, table.contents[index]))
        if earlier is None and images:
            candidates = {other for key in (images[0], *near.get(images[0], ())) for other in seen[split, text, key]}
            for other in sorted(candidates):
                theirs = table.images[other]
                if len(theirs) == len(images) and all(
                    mine == its or its in near.get(mine, ()) for mine, its in zip(images, theirs, strict=True)
                ):
                    earlier = other
                    break
        if earlier is not None:
            drops[index] = ("duplicate", f"of {table.ids[earlier]}")
            continue
        contents[split, table.contents[index]] = index
        if images:
            seen[split, text, images[0]].append(index)
