"""Random DICOM files: syntax, color space, bits, lookup tables, windows and their packings."""

import dataclasses
import io
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pydicom
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
GRAY = ("MONOCHROME1", "MONOCHROME2")
PACKINGS = ("numbers", "words", "bytes")


@dataclasses.dataclass(frozen=True)
class Table:
    """A modality, VOI or palette lookup table."""

    first: int
    bits: int
    entries: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a file says, without how it is written down."""

    color_space: str
    shape: tuple[int, int]
    allocated: int
    stored: int
    high: int
    signed: bool
    seed: int
    rescale: tuple[float, float] | None = None
    modality: Table | None = None
    window: tuple[float, float, str] | None = None
    voi: Table | None = None
    palettes: tuple[Table, ...] = ()

    @property
    def limits(self) -> tuple[int, int]:
        count = 2**self.stored
        return (-count // 2, count // 2 - 1) if self.signed else (0, count - 1)

    def values(self) -> np.ndarray:
        """Stored values, (H, W) or (H, W, 3)."""
        low, high = self.limits
        shape = self.shape if self.color_space in (*GRAY, "PALETTE COLOR") else (*self.shape, 3)
        generator = np.random.default_rng(self.seed)
        # Half of the scans hold few values, next to the first of a table or the middle of a window.
        if self.seed % 2:
            middle = self.palettes[0].first if self.palettes else (low + high) // 2
            low, high = max(low, middle - 40), min(high, middle + 60)
        return generator.integers(low, high + 1, shape)

    def units(self) -> tuple[float, float]:
        """The least and the largest value that a window or a VOI LUT may be given."""
        if self.modality is not None:
            return 0, 2**self.modality.bits - 1
        slope, intercept = self.rescale or (1, 0)
        ends = sorted(end * slope + intercept for end in self.limits)
        return ends[0], ends[1]


def encoded(scan: Scan, syntax: str, packing: str) -> bytes:
    """A file of a scan, its tables as numbers, as words, or as bytes where entries have 8 bits."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    values = scan.values()
    data.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = scan.color_space
    data.Rows, data.Columns = scan.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = scan.allocated, scan.stored, scan.high
    data.PixelRepresentation = int(scan.signed)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data.PixelData = pixel_bytes(scan, values, order)
    data["PixelData"].VR = "OW" if scan.allocated == 16 or syntax == ImplicitVRLittleEndian else "OB"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if scan.rescale is not None:
            slope, intercept = scan.rescale
            data.RescaleSlope, data.RescaleIntercept = f"{slope:g}", f"{intercept:g}"
        if scan.modality is not None:
            data.ModalityLUTSequence = [table_item(scan.modality, packing, order)]
            data.ModalityLUTSequence[0].ModalityLUTType = "US"
        if scan.voi is not None:
            data.VOILUTSequence = [table_item(scan.voi, packing, order)]
        if scan.window is not None:
            center, width, function = scan.window
            data.WindowCenter, data.WindowWidth, data.VOILUTFunction = f"{center:g}", f"{width:g}", function
        for color, table in zip(("Red", "Green", "Blue"), scan.palettes, strict=False):
            name = f"{color}PaletteColorLookupTable"
            tag = pydicom.datadict.tag_for_keyword(f"{name}Descriptor")
            data.add_new(tag, "SS" if table.first < 0 else "US", descriptor(table))
            setattr(data, f"{name}Data", table_bytes(table, packing, order))
        content = io.BytesIO()
        pydicom.dcmwrite(content, data, enforce_file_format=True)
    return content.getvalue()


def pixel_bytes(scan: Scan, values: np.ndarray, order: str) -> bytes:
    junk = np.random.default_rng(scan.seed + 1).integers(0, 2**scan.allocated, values.shape)
    shift, mask = scan.high + 1 - scan.stored, 2**scan.stored - 1
    cells = ((values & mask) << shift) | (junk & ~(mask << shift) & (2**scan.allocated - 1))
    if scan.color_space in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        # Y1 Y2 CB CR for every two pixels of a row.
        cells = np.stack([cells[:, ::2, 0], cells[:, 1::2, 0], cells[:, ::2, 1], cells[:, ::2, 2]], axis=-1)
    content = cells.astype(f"{order}u{scan.allocated // 8}").tobytes()
    return content + b"\0" * (len(content) % 2)


def descriptor(table: Table) -> list[int]:
    return [len(table.entries), table.first, table.bits]


def table_bytes(table: Table, packing: str, order: str) -> bytes:
    if packing == "bytes" and table.bits == 8:
        entries = bytes(table.entries) + b"\0" * (len(table.entries) % 2)
        words = np.frombuffer(entries, "<u2")
    else:
        words = np.array(table.entries)
    return words.astype(f"{order}u2").tobytes()


def table_item(table: Table, packing: str, order: str) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if table.first < 0 else "US", descriptor(table))
    if packing == "numbers":
        item.add_new("LUTData", "US", list(table.entries))
    else:
        item.add_new("LUTData", "OW", table_bytes(table, packing, order))
    return item


@st.composite
def tables(draw, low: float, high: float, least_bits: int = 8) -> Table:
    """A table for values between two limits, its first value perhaps outside of them."""
    bits = draw(st.sampled_from([bits for bits in (8, 10, 12, 16) if bits >= least_bits]))
    count = draw(st.integers(2, 60))
    # 16 bits state the first value, signed ones only where values may be negative.
    least, most = (-(2**15), 2**15 - 1) if low < 0 else (0, 2**16 - 1)
    first = draw(st.integers(int(max(low, least)), int(min(high, most))))
    seed = draw(st.integers(0, 2**16))
    entries = np.random.default_rng(seed).integers(0, 2**bits, count)
    # In the order of a display, or in none.
    return Table(first, bits, tuple((np.sort(entries) if seed % 2 else entries).tolist()))


@st.composite
def gray_scans(draw, functions: tuple[str, ...], integers_only: bool = False) -> Scan:
    allocated = draw(st.sampled_from([8, 16]))
    stored = draw(st.integers(2 if allocated == 8 else 9, allocated))
    high = draw(st.one_of(st.just(stored - 1), st.integers(stored - 1, allocated - 1)))
    scan = Scan(
        draw(st.sampled_from(GRAY)),
        (draw(st.integers(1, 6)), draw(st.integers(1, 6))),
        allocated,
        stored,
        high,
        draw(st.booleans()),
        draw(st.integers(0, 2**20)),
    )
    kind = draw(st.sampled_from(["none", "rescale", "table"]))
    if kind == "rescale":
        slope = draw(st.integers(1, 4) if integers_only else st.sampled_from([0.25, 0.5, 1, 1.5, 3, -2]))
        intercept = draw(st.integers(-3000, 3000))
        scan = dataclasses.replace(scan, rescale=(slope, intercept))
    elif kind == "table":
        scan = dataclasses.replace(scan, modality=draw(tables(*scan.limits)))
    low, high = scan.units()
    if draw(st.booleans()):
        return dataclasses.replace(scan, voi=draw(tables(low, high)))
    function = draw(st.sampled_from(functions))
    # DCMTK takes no width below 1, whatever the function is.
    least = 1 if function == "LINEAR" or integers_only else 0.125
    center = draw(st.integers(int(2 * low), int(2 * high))) / 2
    width = draw(st.one_of(st.just(least), st.integers(1, max(int(high - low), 1))))
    return dataclasses.replace(scan, window=(center, width, function))


@st.composite
def color_scans(draw, color_spaces: tuple[str, ...]) -> Scan:
    color_space = draw(st.sampled_from(color_spaces))
    columns = draw(st.integers(1, 6))
    if "422" in color_space:
        columns += columns % 2
    shape = draw(st.integers(1, 6)), columns
    seed = draw(st.integers(0, 2**20))
    if color_space != "PALETTE COLOR":
        allocated = draw(st.sampled_from([8, 16])) if color_space == "RGB" else 8
        return Scan(color_space, shape, allocated, allocated, allocated - 1, False, seed)
    allocated = draw(st.sampled_from([8, 16]))
    scan = Scan(color_space, shape, allocated, allocated, allocated - 1, draw(st.booleans()), seed)
    first = draw(tables(*scan.limits))
    bits = draw(st.sampled_from([8, 16]))
    entries = np.random.default_rng(seed).integers(0, 2**bits, (3, len(first.entries))).tolist()
    return dataclasses.replace(scan, palettes=tuple(Table(first.first, bits, tuple(row)) for row in entries))


def dcmtk_levels(content: bytes, folder: Path, *options: str) -> np.ndarray:
    """What DCMTK's dcm2pnm makes of a file, 8 bits."""
    (folder / "file.dcm").write_bytes(content)
    command = ["dcm2pnm", "-O", *options, "+op", str(folder / "file.dcm"), str(folder / "file.ppm")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(folder / "file.ppm"))
