"""Lookup tables of DICOM files: modality, VOI and palette color, in every packing and byte order.

pydicom's own `apply_modality_lut`, `apply_voi` and `apply_color_lut` swap no words of OW elements in big-endian files,
take 8-bit entries stored one per word for packed ones, and count in the type of the image or of the table, in which
larger values wrap around.
"""

from typing import Any, NamedTuple

import numpy as np

COLORS = ("Red", "Green", "Blue")
DISCRETE, LINEAR, INDIRECT = 0, 1, 2


class LookupTable(NamedTuple):
    """A lookup table (DICOM part 3, C.11.1.1 and C.7.6.3.1.5).

    Attributes:
        entries: (n,) uint16.
        first: the value that leads to the first entry; smaller ones do as well, larger than the last to the last.
        bits: of an entry; white is 2 ** bits - 1.
    """

    entries: np.ndarray
    first: int
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Entries (uint16) of numbers of any real dtype and shape."""
        indices = np.rint(np.nan_to_num(values)) if values.dtype.kind == "f" else values
        # Clipped as a float first: not every float has an int64.
        last = self.first + len(self.entries) - 1
        clipped = np.clip(indices.astype(np.float64), self.first, last).astype(np.int64)
        return self.entries[clipped - self.first]


def lookup_table(item: Any, is_signed: bool, syntax: Any) -> LookupTable | None:
    """The table in an item of a Modality LUT or VOI LUT Sequence.

    Args:
        item: the pydicom data set.
        is_signed: whether the values that are looked up may be negative; the first of them is then read as signed.
        syntax: the transfer syntax of the file, a UID of pydicom.

    Returns:
        The table; None where the item states none.
    """
    if _is_missing(item, "LUTDescriptor") or _is_missing(item, "LUTData"):
        return None
    count, first, bits = _descriptor(item["LUTDescriptor"], is_signed, syntax)
    entries, bits = _entries(_words(item["LUTData"], syntax), count, bits)
    return LookupTable(entries, first, bits)


def palette(dataset: Any, is_signed: bool, syntax: Any) -> list[LookupTable]:
    """The red, green and blue tables of a file of PALETTE COLOR, segmented ones expanded.

    Args:
        dataset: the pydicom data set.
        is_signed: whether stored values are signed.
        syntax: the transfer syntax of the file, a UID of pydicom.

    Raises:
        ValueError: for tables that are missing or damaged; it may quote anything.
    """
    tables = []
    for color in COLORS:
        name = f"{color}PaletteColorLookupTable"
        count, first, bits = _descriptor(dataset[f"{name}Descriptor"], is_signed, syntax)
        if _is_missing(dataset, f"{name}Data"):
            words = _words(dataset[f"Segmented{name}Data"], syntax)
            entries = _unpacked_segments(words, count, bits)
        else:
            entries, bits = _entries(_words(dataset[f"{name}Data"], syntax), count, bits)
        tables.append(LookupTable(entries, first, bits))
    return tables


def _is_missing(dataset: Any, name: str) -> bool:
    return name not in dataset or dataset[name].is_empty


def _words(element: Any, syntax: Any) -> np.ndarray:
    """The value of an element as (n,) uint16, whatever its VR: numbers (US, SS) or bytes (OW, OB, UN)."""
    value = element.value
    if not isinstance(value, bytes | bytearray):
        return np.atleast_1d(np.asarray(value, dtype=np.int64)).astype(np.uint16)
    # Bytes have no order, and unknown elements come from files of implicit VR, which are little-endian.
    order = "<" if syntax.is_little_endian or element.VR in ("OB", "UN") else ">"
    return np.frombuffer(bytes(value) + b"\0" * (len(value) % 2), dtype=f"{order}u2").astype(np.uint16)


def _descriptor(element: Any, is_signed: bool, syntax: Any) -> tuple[int, int, int]:
    """Number of entries, first value and bits per entry.

    The VR of the descriptor is "US or SS", and it holds for the first value only. Implicit VR does not say which, and
    what pydicom reads there follows from the stored values, which a rescale may have changed.
    """
    count, first, bits = (int(word) for word in _words(element, syntax))
    if first >= 2**15 and (is_signed or (element.VR == "SS" and not syntax.is_implicit_VR)):
        first -= 2**16
    return count or 2**16, first, bits if 1 <= bits <= 16 else 16


def _entries(words: np.ndarray, count: int, bits: int) -> tuple[np.ndarray, int]:
    """Entries and their bits: one in each word, or two, the first of them in the lower byte."""
    if len(words) < count and (bits <= 8 or len(words) == (count + 1) // 2):
        return _low_bytes_first(words)[:count], min(bits, 8)
    entries = words[:count]
    if not len(entries):
        raise ValueError("a lookup table without entries")
    return (entries & 0xFF if bits <= 8 else entries), bits


def _low_bytes_first(words: np.ndarray) -> np.ndarray:
    return np.stack([words & 0xFF, words >> 8], axis=-1).ravel()


def _unpacked_segments(words: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Entries of a segmented table, whose numbers are words, or bytes where entries have 8 bits."""
    readings = [(_low_bytes_first(words), 1), (words, 2)] if bits <= 8 else [(words, 2)]
    for numbers, size in readings:
        entries = _expanded(numbers.tolist(), size, count)
        if len(entries) == count:
            return np.array(entries, dtype=np.uint16)
    raise ValueError("segments of a lookup table that do not give its number of entries")


def _expanded(numbers: list[int], size: int, count: int) -> list[int]:
    """Expand segments (DICOM part 3, C.7.9.2) of numbers of `size` bytes each; [] for what is none."""
    entries: list[int] = []
    starts: list[int] = []
    position = 0

    def add(start: int) -> int:
        """Add a discrete or linear segment; returns where it ends."""
        kind, length = numbers[start], numbers[start + 1]
        if kind == DISCRETE:
            entries.extend(numbers[start + 2 : start + 2 + length])
            return start + 2 + length
        if kind != LINEAR or not entries:
            raise IndexError
        # From the entry before, which is not repeated, to the one stated.
        entries.extend(np.rint(np.linspace(entries[-1], numbers[start + 2], length + 1)[1:]).astype(int).tolist())
        return start + 3

    try:
        while len(entries) < count:
            if numbers[position] != INDIRECT:
                starts.append(position)
                position = add(position)
                continue
            copied, words = numbers[position + 1], 4 // size
            low = numbers[position + 2 : position + 2 + words]
            offset = sum(number << (8 * size * place) for place, number in enumerate(low))
            # The standard counts bytes, several programs count numbers.
            first = starts.index(offset // size if offset % size == 0 and offset // size in starts else offset)
            for start in starts[first : first + copied]:
                if len(entries) < count:
                    add(start)
            position += 2 + words
    except (IndexError, ValueError):
        return []
    return entries
