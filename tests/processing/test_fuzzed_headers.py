"""Headers that say anything: an image or one sentence of ValueError, without a patient's name."""

import contextlib
import io
import struct
import warnings
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.processing.medical_files import PATIENT, make_dicom, make_nifti, read_dicom_file, write_dicom
from unimedvl.processing.dicom_unimedvl import PIXEL_TAGS
from unimedvl.processing.medical_formats_unimedvl import load_medical_image

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore:The DICOM file declares burned-in"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]
EXAMPLES = [200, pytest.param(2000, marks=pytest.mark.slow)]
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
BASES = {
    "gray": make_dicom(np.arange(30, dtype=np.int16).reshape(5, 6)),
    "color": make_dicom(np.arange(90, dtype=np.uint8).reshape(5, 6, 3)),
    "frames": make_dicom(np.arange(60, dtype=np.uint16).reshape(2, 5, 6), frames=2),
}
TEXTS = st.sampled_from(
    ["", " ", "0", "1", "-1", "1e400", "nan", "inf", "1\\2", "\\", "\\1", PATIENT, "RGB", "LINEAR", "4" * 16, "1e-320"]
)
WORDS = st.one_of(st.sampled_from([0, 1, 2, 3, 8, 16, 32, 64, 255, 65535]), st.integers(0, 65535))


def check(content: Any, **options: Any) -> None:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert isinstance(load_medical_image(content, **options), Image.Image)
    except ValueError as error:
        assert len(str(error).split()) >= 4 and "\n" not in str(error) and str(error).endswith(".")
        assert "doe^" not in str(error).lower()
        assert error.__suppress_context__ or error.__context__ is None
    assert not any("doe^" in str(warning.message).lower() for warning in caught)
    # Numbers that overflow on the way are no business of the caller.
    assert not any(issubclass(warning.category, RuntimeWarning) for warning in caught)


@st.composite
def elements(draw, depth: int = 0) -> tuple[str, str, Any]:
    """A keyword that decides about pixels, a VR and a value."""
    name = draw(st.sampled_from(PIXEL_TAGS if depth == 0 else [*PIXEL_TAGS, "LUTDescriptor", "LUTData"]))
    stated = dictionary_VR(tag_for_keyword(name) or 0).split(" or ")
    representation = draw(st.sampled_from([*stated, *stated, "UN"]))
    if representation == "SQ":
        items = []
        for inner in draw(st.lists(st.lists(elements(depth + 1), max_size=3), max_size=2)) if depth < 2 else []:
            item = Dataset()
            for element in inner:
                add(item, *element)
            items.append(item)
        return name, representation, items
    if representation in ("OB", "OW", "UN", "OF", "OD", "OV"):
        content = draw(st.binary(max_size=40))
        return name, representation, content + b"\0" * (-len(content) % 8)
    if representation == "US":
        return name, representation, draw(st.one_of(WORDS, st.lists(WORDS, max_size=4)))
    if representation == "SS":
        return name, representation, draw(st.lists(st.integers(-32768, 32767), max_size=4))
    if representation in ("FL", "FD"):
        return name, representation, draw(st.floats(width=32))
    return name, representation, draw(TEXTS)


def add(dataset: Dataset, name: str, representation: str, value: Any) -> None:
    tag = tag_for_keyword(name)
    assert tag is not None
    # pydicom refuses some values that files have.
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        dataset.add_new(tag, representation, value)


def rewritten(base: str, changes: list, syntax: str) -> bytes | None:
    data = read_dicom_file(BASES[base])
    data.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for change in changes:
            add(data, *change)
        try:
            return write_dicom(data)
        # Not every value can be written.
        except Exception:
            return None


@pytest.mark.parametrize("count", EXAMPLES)
def test_dicom_elements_that_say_anything(count):
    written = [0]

    @settings(max_examples=count, **QUIET)
    @given(
        st.sampled_from(sorted(BASES)),
        st.lists(elements(), min_size=1, max_size=4),
        st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]),
        st.sampled_from([{}, {"window": (40, 400)}, {"percentiles_of": "slice"}]),
    )
    def examined(base, changes, syntax, options):
        content = rewritten(base, changes, syntax)
        if content is not None:
            written[0] += 1
            check(content, **options)

    examined()
    assert written[0] > count / 3


@pytest.mark.parametrize("count", EXAMPLES)
def test_nifti_headers_that_say_anything(count):
    volume = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    whole = {1: make_nifti(volume), 2: nibabel.Nifti2Image(volume, np.eye(4)).to_bytes()}

    @settings(max_examples=count, **QUIET)
    @given(st.data(), st.sampled_from([1, 2]))
    def examined(data, version):
        header_class = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}[version]
        content = bytearray(whole[version])
        fields = header_class.template_dtype.fields
        for name in data.draw(st.lists(st.sampled_from(sorted(set(fields) - {"magic", "sizeof_hdr"})), max_size=4)):
            dtype, offset = fields[name][:2]
            kind = dtype.base.kind
            numbers = st.floats(width=32) if kind == "f" else st.integers(-(2**15), 2**15 - 1)
            place = data.draw(st.integers(0, max(dtype.itemsize // dtype.base.itemsize - 1, 0)))
            size = dtype.base.itemsize
            code = {("f", 4): "f", ("f", 8): "d", ("i", 2): "h", ("i", 4): "i", ("i", 8): "q"}.get((kind, size))
            if code is not None:
                struct.pack_into(f"<{code}", content, offset + place * size, data.draw(numbers))
        plane = data.draw(st.sampled_from([None, "coronal", "axis-1"]))
        check(bytes(content), plane=plane, frame=data.draw(st.sampled_from([None, 0])))

    examined()


def tiff_of(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


TIFFS = {
    "u2": tiff_of(np.arange(42, dtype=np.uint16).reshape(6, 7), photometric="miniswhite"),
    "f8": tiff_of(np.arange(42, dtype=np.float64).reshape(6, 7)),
    "pages": tiff_of(np.arange(84, dtype=np.int64).reshape(2, 6, 7), photometric="minisblack"),
    "color": tiff_of(np.arange(126, dtype=np.float32).reshape(6, 7, 3), photometric="rgb"),
    "packed": tiff_of(np.arange(42, dtype=np.uint32).reshape(6, 7), compression="zlib"),
}
PGM = b"P5 7 6 1023\n" + bytes(84)


@pytest.mark.parametrize("count", EXAMPLES)
def test_tiff_and_netpbm_headers_that_say_anything(count, capfd):
    files = {**TIFFS, "pgm": PGM, "plain": b"P2 # 3\n7 6 1023\n" + b"5 " * 42}

    @settings(max_examples=count, **QUIET)
    @given(st.data(), st.sampled_from(sorted(files)))
    def examined(data, name):
        content = bytearray(files[name])
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(3, min(len(content), 600) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(4, len(content))) :]
        check(bytes(content), frame=data.draw(st.sampled_from([None, 0])))

    examined()
    assert "Traceback" not in capfd.readouterr().err


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "a").write_bytes(BASES["gray"])

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    # Root may read everything, so the system's answer is given here.
    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(ValueError, match="Permission denied"):
        load_medical_image(tmp_path / "series" / "a")
    monkeypatch.undo()
    monkeypatch.setattr("pathlib.Path.iterdir", refused)
    with pytest.raises(ValueError, match="Permission denied"):
        load_medical_image(tmp_path / "series")
