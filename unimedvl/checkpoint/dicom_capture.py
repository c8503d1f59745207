"""Generated images as DICOM: secondary captures that say they are synthetic and how they were made.

What the PNG files of `provenance.py` hold in text chunks stands here in attributes of the Secondary Capture Image
object (DICOM part 3, A.8.1):

* Synthetic Data (0008,001C) is YES, Image Type DERIVED\\SECONDARY, Conversion Type SYN (synthetic image);
* Derivation Description (0008,2111) says it in words;
* Contributing Equipment Sequence (0018,A001) names software, model and revision, with seed and hash of the prompt;
* Image Comments (0020,4000) hold the whole record, the JSON object of `provenance_record`.

The file describes no patient: name, id, birth date and sex are there and empty, as the standard wants of them where
they are unknown, and nothing is copied from any input. Every file is a study and a series of its own.
"""

import datetime
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .provenance import check_output_path, provenance_record, writing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

DICOM_SUFFIX = ".dcm"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Of the code that says what a device contributed (CID 7005), and of the coding scheme it comes from.
PROCESSING_EQUIPMENT = ("109102", "DCM", "Processing Equipment")
STATEMENT = "Made by a generative AI model: synthetic, not for diagnosis."
# Characters that the standard allows in values of type LO, ST and LT.
LONG_STRING, SHORT_TEXT, LONG_TEXT = 64, 1024, 10240


def save_dicom_capture(
    image: Image.Image, path: str | os.PathLike, *, overwrite: bool = False, **record_fields: Any
) -> dict[str, Any]:
    """Write a generated image as a DICOM secondary capture with its provenance, all or nothing.

    Args:
        image: the generated image; one whose channels are equal is stored as MONOCHROME2, any other as RGB, 8 bits.
        path: a file name ending in `.dcm`; its folder must exist.
        overwrite: replace a file that is already there.
        record_fields: the arguments of `provenance_record`.

    Returns:
        The record that was written.

    Raises:
        ValueError: if pydicom is missing, the name does not end in `.dcm`, the record has more than 10,240
            characters, the folder does not exist or cannot be written, or the file exists and `overwrite` is false.
    """
    target = check_output_path(path, overwrite=overwrite, suffixes=(DICOM_SUFFIX,))
    record = provenance_record(**record_fields)
    dataset = _capture(image, record)
    with writing(target) as partial:
        dataset.save_as(partial, enforce_file_format=True)
    return record


def read_dicom_capture(path: str | os.PathLike) -> dict[str, Any]:
    """The record of a file written by `save_dicom_capture`.

    Raises:
        ValueError: if the file is no DICOM file, or carries no record.
    """
    _require_pydicom()
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    name = Path(path).name
    try:
        dataset = dcmread(path, specific_tags=["SyntheticData", "ImageComments"])
    except (OSError, InvalidDicomError) as error:
        raise ValueError(f"{name!r} is not a readable DICOM file: give one that this package wrote.") from error
    try:
        record = json.loads(dataset.get("ImageComments") or "")
    except ValueError:
        record = None
    if dataset.get("SyntheticData") != "YES" or not isinstance(record, dict):
        raise ValueError(f"{name!r} carries no unimedvl record: it was not written by this package.")
    return record


def _require_pydicom() -> None:
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise ValueError('DICOM files need pydicom: pip install "unimedvl[medical]".') from None


def _capture(image: Image.Image, record: dict[str, Any]) -> "FileDataset":
    _require_pydicom()
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    if len(text) > LONG_TEXT:
        raise ValueError(f"the record has {len(text)} characters, and DICOM holds {LONG_TEXT}: leave the prompt out.")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(SECONDARY_CAPTURE)
    # Without a prefix pydicom makes UIDs from random UUIDs, which need no registered root.
    meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    now = datetime.datetime.now()
    day, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SECONDARY_CAPTURE, meta.MediaStorageSOPInstanceUID
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = day, time
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
        setattr(dataset, name, "")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(prefix=None), generate_uid(prefix=None)
    dataset.StudyDate, dataset.StudyTime = day, time
    dataset.ReferringPhysicianName = dataset.StudyID = dataset.AccessionNumber = ""
    dataset.Modality, dataset.ConversionType = "OT", "SYN"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.Laterality = ""
    dataset.SeriesDescription = "Synthetic: AI-generated, not for diagnosis"
    dataset.ContentDate, dataset.ContentTime = day, time
    dataset.PatientOrientation = ""
    dataset.Manufacturer = "unimedvl"
    dataset.ManufacturerModelName = _short(record["model"])
    dataset.SoftwareVersions = _short(record["software"])
    dataset.DerivationDescription = STATEMENT
    dataset.ContributingEquipmentSequence = [_equipment(record, day + time)]
    dataset.ImageComments = text
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    _set_pixels(dataset, image)
    return dataset


def _equipment(record: dict[str, Any], moment: str) -> "Dataset":
    """The item that names the model as the equipment which made the image."""
    from pydicom.dataset import Dataset

    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = PROCESSING_EQUIPMENT
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.Manufacturer = "unimedvl"
    item.ManufacturerModelName = _short(record["model"])
    item.SoftwareVersions = [_short(record["software"]), _short(str(record["revision"]))]
    item.ContributionDateTime = moment
    facts = [f"{name}={record.get(name)}" for name in ("model", "revision", "seed", "prompt_sha256")]
    item.ContributionDescription = "; ".join(facts)[:SHORT_TEXT]
    return item


def _short(text: str) -> str:
    """A text as a value of type LO, in which a backslash would begin another value."""
    return text.replace("\\", "/")[:LONG_STRING]


def _set_pixels(dataset: "Dataset", image: Image.Image) -> None:
    import numpy

    pixels = numpy.asarray(image.convert("RGB"))
    is_gray = bool((pixels == pixels[..., :1]).all())
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.SamplesPerPixel = 1 if is_gray else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if is_gray else "RGB"
    if not is_gray:
        dataset.PlanarConfiguration = 0
    content = (pixels[..., 0] if is_gray else pixels).tobytes()
    # Values are of even length.
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"
