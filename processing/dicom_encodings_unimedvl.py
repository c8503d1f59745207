"""How DICOM files are recognized, encoded and compressed, and what to say of those that nothing here decodes."""

import importlib
import importlib.util
import re
import struct
from typing import Any

DEFLATED_TRANSFER_SYNTAX = "1.2.840.10008.1.2.1.99"
BROKEN = "The DICOM file is truncated or damaged: export it again, or check it with dciodvfy."
# pydicom inflates such files without a limit.
DEFLATED = "The DICOM file is deflated as a whole: convert it with dcmconv +te first."
# Enough of a file to recognize it by.
HEADER_BYTES = 540
# Files without a preamble start with these groups: meta information, or identification.
FIRST_GROUPS = (0x0002, 0x0008)
VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
LONG_REPRESENTATIONS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
# No element of identification is longer than a page of text.
MAX_FIRST_LENGTH = 1024
FIRST_ELEMENTS = 3
# Packages that decode what pydicom and Pillow alone do not, by the UIDs' last parts below 1.2.840.10008.1.2.4.
JPEG_PACKAGES = ("pylibjpeg", "pylibjpeg-libjpeg")
JPEG_2000_PACKAGES = ("pylibjpeg", "pylibjpeg-openjpeg")
PACKAGES = {
    **dict.fromkeys(("50", "51", "57", "70", "80", "81"), JPEG_PACKAGES),
    **dict.fromkeys(("90", "91", "201", "202", "203"), JPEG_2000_PACKAGES),
}
# Of the standard; anything else in place of a UID may name a patient.
STANDARD_UID = re.compile(r"1\.2\.840\.10008\.1\.2(\.\d{1,3}){1,3}")
# Younger than pydicom 3.0.
YOUNGER_NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
COMPRESSED_UIDS = "1.2.840.10008.1.2.4."
END_OF_CODESTREAM = b"\xff\xd9"


def is_dicom(header: bytes) -> bool:
    """Whether the first `HEADER_BYTES` bytes of a file announce DICOM, with a preamble or without.

    Without one the file has to begin with plausible elements of group 2 or 8, whatever it is called.
    """
    return header[128:132] == b"DICM" or any(_begins_with_elements(header, order) for order in "<>")


def _begins_with_elements(header: bytes, order: str) -> bool:
    position, last, found = 0, (0, 0), 0
    while found < FIRST_ELEMENTS and position + 8 <= len(header):
        group, number = struct.unpack_from(f"{order}HH", header, position)
        if (group, number) <= last or (not found and group not in FIRST_GROUPS):
            return False
        kind = header[position + 4 : position + 6]
        if kind in LONG_REPRESENTATIONS:
            if position + 12 > len(header):
                break
            (length,) = struct.unpack_from(f"{order}I", header, position + 8)
            start = position + 12
        elif kind in VALUE_REPRESENTATIONS:
            (length,) = struct.unpack_from(f"{order}H", header, position + 6)
            start = position + 8
        # There is no implicit VR in big-endian files.
        elif order == "<":
            (length,) = struct.unpack_from("<I", header, position + 4)
            start = position + 8
        else:
            return False
        # A sequence: what came before it decides.
        if length > MAX_FIRST_LENGTH:
            return found > 0 and (kind == b"SQ" or length == 0xFFFFFFFF)
        if length % 2:
            return False
        position, last, found = start + length, (group, number), found + 1
    return found > 0 and position > 8


def dicom_libraries() -> tuple[Any, Any]:
    """Import pydicom and pydicom.pixels.

    Raises:
        ValueError: where they are not installed.
    """
    try:
        return importlib.import_module("pydicom"), importlib.import_module("pydicom.pixels")
    except ImportError:
        raise ValueError('DICOM files need pydicom: pip install "unimedvl[medical]".') from None


def transfer_syntax(stream: Any, pydicom: Any) -> str | None:
    """Read the transfer syntax of a file's meta information, without the data set behind it.

    Args:
        stream: the file, at its start, where it is left.
        pydicom: the module.

    Returns:
        The UID, or None for a file without meta information.
    """
    if stream.read(132)[128:] != b"DICM":
        stream.seek(0)
    if stream.read(2) != b"\x02\x00":
        stream.seek(0)
        return None
    stream.seek(-2, 1)
    meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    stream.seek(0)
    return meta.get("TransferSyntaxUID")


def dataset_syntax(dataset: Any, pydicom: Any) -> Any:
    """The transfer syntax UID of a data set that was read, by its own encoding where the file states none."""
    stated = dataset.file_meta.get("TransferSyntaxUID")
    if stated:
        return pydicom.uid.UID(stated)
    is_implicit, is_little_endian = dataset.original_encoding
    if is_implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if is_little_endian else pydicom.uid.ExplicitVRBigEndian


def undecodable(syntax: Any) -> str:
    """The sentence on a transfer syntax that nothing installed decodes; it names standard ones only.

    Args:
        syntax: the pydicom UID.
    """
    # A UID that pydicom does not know is its own name.
    name = YOUNGER_NAMES.get(str(syntax), syntax.name)
    if not STANDARD_UID.fullmatch(syntax):
        named = "a transfer syntax that is none of the standard's"
    else:
        named = str(syntax) if name == str(syntax) else f"{name} ({syntax})"
    packages = _packages(syntax)
    if not packages:
        remedy = "no Python package decodes it for pydicom, convert it with gdcmconv --raw or dcm4che's dcm2dcm first"
    else:
        remedy = f"pip install {' '.join(packages)}, or decompress it with gdcmconv --raw"
    return f"The DICOM file is compressed as {named}, which no installed decoder reads: {remedy}."


def may_be_undecodable(syntax: Any, frame: bytes) -> bool:
    """Whether a frame that no installed decoder read is whole, so that one which is not installed may read it.

    Args:
        syntax: the pydicom UID.
        frame: its compressed bytes.
    """
    # Their modules are called pylibjpeg, libjpeg and openjpeg.
    modules = [name.rsplit("-", 1)[-1] for name in _packages(syntax)]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    # Fill bytes may follow, and one for an even length.
    return bool(missing) and frame.rstrip(b"\0\xff").endswith(END_OF_CODESTREAM)


def _packages(syntax: Any) -> tuple[str, ...]:
    return PACKAGES.get(syntax.removeprefix(COMPRESSED_UIDS), ()) if syntax.startswith(COMPRESSED_UIDS) else ()
