"""DICOM and NIfTI files written on the spot."""

import io
import warnings

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

PATIENT = "Doe^Jane"


def make_dicom(array: np.ndarray, frames: int = 0, **tags) -> bytes:
    """A DICOM file of (H, W), (H, W, 3) or, with `frames`, (frames, H, W) stored values, with patient tags."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT, "4711", "19700101"
    color = array.ndim == 3 and not frames
    data.SamplesPerPixel = 3 if color else 1
    data.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        data.PlanarConfiguration = 0
    if frames:
        data.NumberOfFrames = frames
    data.Rows, data.Columns = array.shape[1:] if frames else array.shape[:2]
    data.BitsAllocated = data.BitsStored = array.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PixelData = array.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in tags.items():
            setattr(data, name, value)
    return write_dicom(data)


def write_dicom(data: Dataset) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(content, data, enforce_file_format=True)
    return content.getvalue()


def read_dicom_file(content: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def make_nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_bytes()
