"""Files as people upload them: of one patient who does not exist, and whose name must appear nowhere."""

import shutil
from pathlib import Path

import nibabel
import numpy
import pydicom
from PIL import Image

PATIENT, NUMBER = "Doe^Jane", "MRN4711"


def dicom(path: Path, place: float = 0.0, level: int | None = None) -> Path:
    """A CT slice with a patient's tags, perhaps of one gray level, at a place along the body."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm", read=False))
    dataset.PatientName, dataset.PatientID = PATIENT, NUMBER
    dataset.ImagePositionPatient = [0, 0, place]
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    if level is not None:
        dataset.PixelData = numpy.full_like(dataset.pixel_array, level).tobytes()
    dataset.save_as(path)
    return path


def nifti(path: Path, shape: tuple[int, ...] = (10, 12, 14)) -> Path:
    """A volume of noise in which every voxel differs."""
    voxels = numpy.random.default_rng(0).normal(0, 500, shape).astype(numpy.float32)
    image = nibabel.Nifti1Image(voxels, numpy.eye(4))
    image.header["descrip"] = PATIENT.encode()
    nibabel.save(image, path)
    return path


def png(path: Path) -> Path:
    """A photograph-like image."""
    Image.radial_gradient("L").convert("RGB").save(path)
    return path


def cached(folder: Path, file: Path) -> str:
    """A copy of a file where Gradio would keep it: in a folder named after its contents."""
    place = folder / f"cache-{file.name}"
    place.mkdir(parents=True)
    return str(shutil.copy2(file, place))
