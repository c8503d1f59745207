"""Damaged files of every kind that the application takes, and what no answer to them may hold."""

import re
from pathlib import Path

import numpy
from hypothesis import HealthCheck
from hypothesis import strategies as st
from PIL import Image

from tests.hub_cards.ui import uploads

MAX_SECONDS, MAX_BYTES = 10, 4 << 30
# Of the file, which people name after patients.
NAME = "Smith-4711.bin"
SECRETS = (uploads.PATIENT, uploads.NUMBER, "Smith")


def seeds_in(folder: Path) -> list[bytes]:
    """Contents of a good file of each kind."""
    Image.fromarray(numpy.arange(400, dtype=numpy.uint16).reshape(20, 20) * 100).save(folder / "deep.tif")
    Image.radial_gradient("L").save(folder / "a.jpg")
    numpy.save(folder / "a.npy", numpy.zeros((8, 9), dtype=numpy.float32))
    paths = [
        uploads.dicom(folder / "a.dcm"),
        uploads.nifti(folder / "a.nii", (4, 5, 6)),
        uploads.nifti(folder / "a.nii.gz", (4, 5, 6)),
        uploads.png(folder / "a.png"),
        *(folder / name for name in ("deep.tif", "a.jpg", "a.npy")),
    ]
    return [path.read_bytes() for path in paths]


@st.composite
def mutations(draw) -> list[tuple[int, int, bytes]]:
    """Pieces of a file that are replaced: where (in millionths of its length), how many bytes, and by what."""
    piece = st.tuples(st.integers(0, 10**6), st.integers(0, 64), st.binary(max_size=64))
    # Headers decide most, and lie in front.
    front = st.tuples(st.integers(0, 20_000), st.integers(0, 8), st.binary(max_size=8))
    return draw(st.lists(st.one_of(piece, front), min_size=1, max_size=6))


def mutated(content: bytes, pieces: list[tuple[int, int, bytes]], length: int) -> bytes:
    """The content with its pieces replaced, cut to a length in percent."""
    for place, count, new in pieces:
        start = place * len(content) // 10**6
        content = content[:start] + new + content[start + count :]
    return content[: length * len(content) // 100]


def forget_peak(process: int | str = "self") -> None:
    """Measure the most memory of a process anew."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def peak_bytes(process: int | str = "self") -> int:
    """The most resident memory of a process since it was measured anew."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


CASE = {"which": st.integers(0, 6), "pieces": mutations(), "length": st.sampled_from([100, 100, 100, 99, 60, 5])}
OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
