"""Generated images as DICOM: public tools read them, they say that they are synthetic, and describe no patient."""

import shutil
import subprocess

import numpy
import pydicom
import pytest
from PIL import Image

from unimedvl.checkpoint.dicom_capture import read_dicom_capture, save_dicom_capture
from unimedvl.checkpoint.provenance import provenance_record, save_generated_image
from unimedvl.commands.main import main
from unimedvl.processing.medical_formats_unimedvl import open_image

FIELDS = {
    "model": "owner/name",
    "revision": "0123abc" * 6,
    "seed": 7,
    "settings": {"preset": "t2i", "num_inference_steps": 4},
    "prompt": "chest X-ray of Jane Doe, 中文",
    "input_hashes": ["ab" * 32],
}


def gray() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB")


def colored() -> Image.Image:
    # An odd number of bytes, which DICOM has to pad.
    pixels = numpy.random.default_rng(0).integers(0, 256, (15, 17, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("make", [gray, colored])
def test_round_trip(make, tmp_path):
    image, path = make(), tmp_path / "out.dcm"
    record = save_dicom_capture(image, path, **FIELDS)
    assert read_dicom_capture(path) == record == provenance_record(**FIELDS)
    dataset = pydicom.dcmread(path)
    assert dataset.SyntheticData == "YES" and list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
    pixels = dataset.pixel_array
    assert (pixels == numpy.asarray(image.convert("L" if pixels.ndim == 2 else "RGB"))).all()
    assert open_image(path).convert("RGB").tobytes() == image.tobytes()
    (maker,) = dataset.ContributingEquipmentSequence
    for fact in (FIELDS["model"], FIELDS["revision"], "seed=7", record["prompt_sha256"]):
        assert fact in maker.ContributionDescription


def test_no_patient_and_no_prompt_unless_it_is_asked_for(tmp_path):
    save_dicom_capture(gray(), tmp_path / "out.dcm", **FIELDS)
    save_dicom_capture(gray(), tmp_path / "kept.dcm", keep_prompt=True, **FIELDS)
    dataset = pydicom.dcmread(tmp_path / "out.dcm")
    patient = [element for element in dataset if element.tag.group == 0x0010]
    assert len(patient) == 4 and all(element.is_empty for element in patient)
    assert b"Jane" not in (tmp_path / "out.dcm").read_bytes()
    assert read_dicom_capture(tmp_path / "kept.dcm")["prompt"] == FIELDS["prompt"]


def test_every_file_is_an_object_of_its_own(tmp_path):
    for name in ("first.dcm", "second.dcm"):
        save_dicom_capture(gray(), tmp_path / name, **FIELDS)
    first, second = (pydicom.dcmread(tmp_path / name) for name in ("first.dcm", "second.dcm"))
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert first[name].value != second[name].value


def test_what_cannot_be_written_or_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.dcm"):
        save_dicom_capture(gray(), tmp_path / "out.png", **FIELDS)
    with pytest.raises(ValueError, match="characters"):
        save_dicom_capture(gray(), tmp_path / "out.dcm", **{**FIELDS, "prompt": "x" * 20_000, "keep_prompt": True})
    save_generated_image(gray(), tmp_path / "out.png", **FIELDS)
    with pytest.raises(ValueError, match="not a readable DICOM"):
        read_dicom_capture(tmp_path / "out.png")
    foreign = pydicom.data.get_testdata_file("CT_small.dcm", read=False)
    with pytest.raises(ValueError, match="no unimedvl record"):
        read_dicom_capture(foreign)
    assert not (tmp_path / "out.dcm").exists()


@pytest.mark.parametrize("make", [gray, colored])
def test_dcmdump_reads_it(make, tmp_path):
    if shutil.which("dcmdump") is None:
        pytest.skip("dcmdump is missing, so no program but pydicom has read the files: apt-get install dcmtk")
    record = save_dicom_capture(make(), tmp_path / "out.dcm", **FIELDS)
    command = ["dcmdump", "+L", str(tmp_path / "out.dcm")]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in ("(0008,001c) CS [YES]", "DERIVED\\SECONDARY", record["prompt_sha256"], record["model"]):
        assert words in dump


@pytest.mark.parametrize("make", [gray, colored])
def test_dciodvfy_finds_no_error(make, tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is missing, so the files were not held to the standard: apt-get install dicom3tools")
    save_dicom_capture(make(), tmp_path / "out.dcm", **FIELDS)
    checked = subprocess.run(["dciodvfy", str(tmp_path / "out.dcm")], capture_output=True, text=True)
    lines = (checked.stdout + checked.stderr).splitlines()
    assert any(line.startswith("SC") for line in lines), lines
    # Dictionaries of dicom3tools from before Synthetic Data became part of the standard.
    newer = "is not a recognized standard attribute - (0x0008,0x001c)"
    assert not [line for line in lines if line.startswith("Error") and newer not in line], lines


@pytest.mark.medium
def test_the_command_writes_captures(tmp_path, capsys):
    arguments = ["generate", "a chest X-ray", "--num-images", "2", "--steps", "2", "--seed", "3", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "made.dcm")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "made.png")]) == 0
    for number in (1, 2):
        record = read_dicom_capture(tmp_path / f"made-{number}.dcm")
        assert record["seed"] == 3 and record["settings"]["index"] == number - 1
        same = open_image(tmp_path / f"made-{number}.dcm").convert("RGB")
        assert same.tobytes() == open_image(tmp_path / f"made-{number}.png").convert("RGB").tobytes()
