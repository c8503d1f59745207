"""What a view may say, and that a record of a slice is what the command shows a model of it."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import typer
from PIL import Image
from pydicom.dataset import Dataset

from tests.processing.medical_files import PATIENT, make_dicom, make_nifti
from unimedvl.commands.main import app
from unimedvl.commands.shared import load_images
from unimedvl.processing.conversations_unimedvl import conversations_with_images
from unimedvl.processing.medical_formats_unimedvl import load_medical_image, open_image, opened
from unimedvl.processing.view_unimedvl import View
from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.builders.record_images import bytes_image
from unimedvl.unimed5m.schema import Record, RecordImage
from unimedvl.unimed5m.task_images import pixels_of, stored_views

pytestmark = pytest.mark.medium

VIEWS = (
    View(),
    View(window=(40, 400), slice_index=3, plane="coronal", max_pixels=5000),
    View(frame=0, percentiles=(1, 99), percentiles_of="slice", allow_url=True, max_values=9),
    View(plane="axis-2", slice_index=np.int64(7)),
)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_survives_json(view):
    values = json.loads(json.dumps(view.to_dict()))
    limits = {name: getattr(view, name) for name in ("max_pixels", "allow_url", "max_values")}
    assert View.from_dict(values, **limits) == view
    assert not limits.keys() & values.keys()


def test_a_stored_view_can_not_turn_on_the_network():
    with pytest.raises(ValueError, match="allow_url: not a field of a stored view"):
        View.from_dict({"allow_url": True})


@pytest.mark.parametrize(
    "options",
    [
        {"window": 40},
        {"window": (40, 0)},
        {"window": (40, float("nan"))},
        {"frame": -1},
        {"frame": True},
        {"frame": 1.0},
        {"slice_index": -1},
        {"slice_index": "3"},
        {"plane": "oblique"},
        {"plane": "axis-3"},
        {"percentiles": (5, 5)},
        {"percentiles": (0, 101)},
        {"percentiles_of": "series"},
        {"max_pixels": 0},
        {"max_values": 0},
        {"max_pixels": None},
        {"allow_url": "yes"},
    ],
)
def test_wrong_values_get_one_sentence(options):
    with pytest.raises(ValueError) as error:
        View(**options)
    assert next(iter(options)) in str(error.value)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_view_stays_as_it_is():
    with pytest.raises(dataclasses.FrozenInstanceError):
        View().frame = 1  # type: ignore[misc]
    assert View(window=[40, 400]) == View(window=(40.0, 400.0)) and hash(View()) == hash(View())


# ---------------------------------------- a record and the command show the same


def asked(*flags: Any) -> Image.Image:
    """The image that `unimedvl ask` shows the model."""
    command = typer.main.get_command(app).commands["ask"]
    values = command.make_context("ask", [*map(str, flags), "What is shown?"]).params
    view = {name: values[name] for name in ("window", "frame", "plane", "slice_index", "percentiles_of")}
    return load_images(values["image"], allow_url=values["allow_url"], **view)[0]


def graded(shape: tuple[int, int, int], seed: int, dtype: Any) -> np.ndarray:
    """A head in the field of a coil at one end of the volume: its slices have very different percentiles."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    profile = np.exp(-sum((axis - place) ** 2 for axis, place in zip(grid, generator.uniform(-1, 1, 3), strict=True)))
    tissue = (grid**2).sum(axis=0) < 1.2
    values = 900 * profile * tissue * generator.uniform(0.7, 1, shape) + generator.uniform(0, 20, shape)
    return values.astype(dtype)


def turned(degrees: float) -> np.ndarray:
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


FLIPPED = np.diag([-1.0, 1, 1, 1])
PERMUTED = np.array([[0, 0, 1.5, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
OBLIQUE = turned(20) @ np.diag([1.0, -2.0, 1.3, 1])
# Orientation, shape, type of the voxels, slope and intercept.
SCANS = {
    "identity-uint8": (np.eye(4), (24, 20, 7), np.uint8, None),
    "flipped-int16": (FLIPPED, (24, 20, 7), np.int16, None),
    "flipped-scaled": (FLIPPED, (17, 22, 6), np.int16, (0.37, -4.5)),
    "permuted-float32": (PERMUTED, (9, 21, 18), np.float32, None),
    "permuted-uint16": (PERMUTED, (8, 21, 18), np.uint16, (2.0, 0.0)),
    "oblique-float32": (OBLIQUE, (24, 15, 7), np.float32, None),
    "oblique-int16": (OBLIQUE, (24, 15, 7), np.int16, None),
}


def write_scan(path: Path, name: str) -> None:
    affine, shape, dtype, scaling = SCANS[name]
    image = nibabel.Nifti1Image(graded(shape, len(name), dtype), affine)
    if scaling is not None:
        image.header.set_slope_inter(*scaling)
    path.parent.mkdir(parents=True)
    nibabel.save(image, path)


def write_series(folder: Path, signed: bool, tags: dict[str, Any]) -> None:
    """Slices whose names, numbers and places run in three different orders."""
    folder.mkdir(parents=True)
    volume = graded((6, 20, 24), 5, np.int16 if signed else np.uint16)
    for position, name in enumerate("dbface"):
        place = {
            "ImagePositionPatient": [0, 0, 30 - 4 * position],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "InstanceNumber": (position * 5) % 6,
            "SeriesInstanceUID": "1.2.3.4",
        }
        (folder / f"{name}.dcm").write_bytes(make_dicom(volume[position], **place, **tags))


def written_images(record: Record) -> Iterator[tuple[RecordImage, str, View]]:
    """The images of a record that were seen in a file, the file, and how."""
    views = stored_views(record)
    for image in (*record.input_img, *record.output_img):
        if image.path in views:
            yield image, *views[image.path]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", SCANS)
def test_record_of_a_nifti_slice(tmp_path, name, packed):
    path = tmp_path / "set" / "images" / ("scan.nii.gz" if packed else "scan.nii")
    write_scan(path, name)
    seen, changes = set(), []
    for record in get_source("nifti-volumes").records(tmp_path / "set"):
        ((image, source, view),) = written_images(record)
        shown = asked("--image", path, "--slice", view.slice_index)
        assert np.array_equal(pixels_of(image), np.asarray(shown))
        assert np.array_equal(pixels_of(image), np.asarray(open_image(tmp_path / "set" / source, view)))
        seen.add(view.slice_index)
        alone = asked("--image", path, "--slice", view.slice_index, "--percentiles-of", "slice")
        changes.append(np.abs(np.asarray(alone, int) - np.asarray(shown, int)).mean())
    # Slices at the far end of the coil are dark, and far from what their own percentiles make of them.
    assert len(seen) >= 4 and max(changes) > 10


def test_record_of_a_slice_along_an_axis_of_the_file(tmp_path):
    folder = tmp_path / "data" / "case_00000"
    folder.mkdir(parents=True)
    volume = graded((6, 24, 20), 1, np.int16)
    for name, values in (("imaging", volume), ("segmentation", (volume > 300).astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(values, OBLIQUE), folder / f"{name}.nii.gz")
    records = list(get_source("kits").records(tmp_path))
    assert records
    for record in records:
        ((image, source, view),) = written_images(record)
        assert np.array_equal(pixels_of(image), np.asarray(open_image(tmp_path / source, view)))
        flags = ("--plane", view.plane, "--slice", view.slice_index, "--window", *view.window)
        assert np.array_equal(pixels_of(image), np.asarray(asked("--image", tmp_path / source, *flags)))


SERIES: dict[str, tuple[bool, dict[str, Any]]] = {
    "plain": (False, {}),
    "scaled": (True, {"RescaleSlope": "0.5", "RescaleIntercept": "-100"}),
    "inverted": (False, {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0, "PixelSpacing": [1, 2]}),
}


@pytest.mark.parametrize("name", SERIES)
def test_record_of_a_slice_of_a_dicom_series(tmp_path, name):
    folder = tmp_path / "set" / "series"
    write_series(folder, *SERIES[name])
    (folder / "notes.txt").write_text("no slice")
    order = {}
    for record in get_source("dicom-series").records(tmp_path / "set"):
        ((image, source, view),) = written_images(record)
        shown = asked("--image", folder, "--slice", view.slice_index)
        assert np.array_equal(pixels_of(image), np.asarray(shown))
        assert np.array_equal(pixels_of(image), np.asarray(open_image(tmp_path / "set" / source, view)))
        order[view.slice_index] = image.path
    # From the feet to the head, although written from the head.
    assert [order[index] for index in range(6)] == [f"series/{letter}.dcm" for letter in "ecafbd"]


def test_gray_levels_of_a_series_are_those_of_all_its_slices(tmp_path):
    write_series(tmp_path / "series", False, {})
    volume = graded((6, 20, 24), 5, np.uint16)
    low, high = np.percentile(volume, (0.5, 99.5))
    for index in range(6):
        expected = np.rint(np.clip((volume[5 - index] - low) / (high - low), 0, 1) * 255)
        assert np.array_equal(np.asarray(open_image(tmp_path / "series", View(slice_index=index))), expected)


def test_a_folder_that_is_no_single_series_is_read_file_by_file(tmp_path):
    write_series(tmp_path / "set" / "mixed", False, {})
    other = make_dicom(graded((1, 20, 24), 9, np.uint16)[0], SeriesInstanceUID="1.2.9")
    (tmp_path / "set" / "mixed" / "z.dcm").write_bytes(other)
    with pytest.raises(ValueError, match="more than one DICOM series"):
        open_image(tmp_path / "set" / "mixed")
    records = list(get_source("dicom-series").records(tmp_path / "set"))
    assert len(records) == 14
    for record in records:
        ((image, source, view),) = written_images(record)
        assert source == image.path
        assert np.array_equal(pixels_of(image), np.asarray(asked("--image", tmp_path / "set" / source)))


def test_frames_of_an_enhanced_dicom(tmp_path):
    volume = graded((5, 20, 24), 2, np.uint16)
    groups = []
    for frame in range(5):
        group, transformation = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = str(frame + 1), "0"
        group.PixelValueTransformationSequence = [transformation]
        groups.append(group)
    path = tmp_path / "set" / "series" / "scan.dcm"
    path.parent.mkdir(parents=True)
    path.write_bytes(make_dicom(volume, frames=5, PerFrameFunctionalGroupsSequence=groups))
    values = volume * np.arange(1.0, 6)[:, None, None]
    low, high = np.percentile(values, (0.5, 99.5))
    frames = set()
    for record in get_source("dicom-series").records(tmp_path / "set"):
        ((image, _, view),) = written_images(record)
        expected = np.rint(np.clip((values[view.frame] - low) / (high - low), 0, 1) * 255)
        assert np.array_equal(pixels_of(image), expected)
        assert np.array_equal(np.asarray(asked("--image", path, "--frame", view.frame)), expected)
        frames.add(view.frame)
    assert frames == set(range(5))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_pages_of_a_tiff(tmp_path, dtype):
    volume = graded((4, 20, 24), 3, dtype)
    first, *others = (Image.fromarray(page) for page in volume)
    # A thumbnail does not count.
    others.append(Image.fromarray(np.full((5, 6), 60000).astype(dtype)))
    path = tmp_path / "set" / "cyst" / "pages.tif"
    path.parent.mkdir(parents=True)
    first.save(path, save_all=True, append_images=others)
    low, high = np.percentile(volume, (0.5, 99.5))
    (record,) = get_source("image-folder").records(tmp_path / "set")
    assert np.array_equal(pixels_of(record.input_img[0]), np.asarray(asked("--image", path)))
    (source, view) = stored_views(record)[record.input_img[0].path]
    assert (tmp_path / "set" / source) == path
    assert np.array_equal(open_image(path, view), pixels_of(record.input_img[0]))
    for page in range(4):
        expected = np.rint(np.clip((volume[page] - low) / (high - low), 0, 1) * 255)
        image = bytes_image(path.read_bytes(), "pages", View(frame=page))
        assert np.array_equal(pixels_of(image), expected)
        assert np.array_equal(np.asarray(asked("--image", path, "--frame", page)), expected)
    with Image.open(path) as kept:
        kept.seek(2)
        assert np.array_equal(open_image(kept), np.asarray(asked("--image", path, "--frame", 2))) and kept.tell() == 2
    # Its file is closed: the page is all there is.
    assert np.array_equal(open_image(kept), open_image(volume[2]))


def test_an_image_item_may_be_a_stored_view(tmp_path):
    write_scan(tmp_path / "a" / "scan.nii", "oblique-int16")
    view = View(plane="coronal", slice_index=4)
    item = {"type": "image", "image": tmp_path / "a" / "scan.nii", **json.loads(json.dumps(view.to_dict()))}
    ((shown,),) = conversations_with_images([{"role": "user", "content": [item]}], [], False, 20_000_000)
    assert shown.tobytes() == open_image(tmp_path / "a" / "scan.nii", view).tobytes()


def test_a_source_held_open_is_shown_as_one_opened_anew(tmp_path):
    write_scan(tmp_path / "a" / "scan.nii.gz", "flipped-scaled")
    with opened(tmp_path / "a" / "scan.nii.gz") as volume:
        for view in (View(slice_index=1, window=(300, 500)), View(slice_index=2), View(percentiles_of="slice")):
            again = open_image(tmp_path / "a" / "scan.nii.gz", view)
            assert open_image(volume, view).tobytes() == again.tobytes()


def test_one_wide_step_does_not_overflow():
    values = np.array([[-32768] * 5, [32767] * 5], dtype=np.int16)
    assert np.asarray(open_image(values, View(percentiles=(0, 50)))).tolist() == [[0] * 5, [255] * 5]
    low, high = np.percentile(values.astype(float), (0, 50))
    assert high == -0.5 and low == -32768


# ---------------------------------------- spacing

SPACED = {
    "PixelSpacing": ({"PixelSpacing": [3, 1]}, (20, 90)),
    "columns": ({"PixelSpacing": ["0.5", "1.25"]}, (50, 30)),
    "ImagerPixelSpacing": ({"ImagerPixelSpacing": [2, 1]}, (20, 60)),
    "PixelAspectRatio": ({"PixelAspectRatio": [5, 4]}, (20, 38)),
    "spacing before ratio": ({"PixelSpacing": [1, 1], "PixelAspectRatio": [5, 1]}, (20, 30)),
    "not usable": ({"PixelSpacing": [0, 1]}, (20, 30)),
    "nearly square": ({"PixelSpacing": ["1.005", "1"]}, (20, 30)),
}


@pytest.mark.parametrize("name", SPACED)
def test_dicom_pixels_become_square(name):
    tags, size = SPACED[name]
    # A disk in the patient, sampled at the file's spacing, has the same extent in both directions afterwards.
    image = load_medical_image(make_dicom(np.zeros((30, 20), dtype=np.uint8), **tags))
    assert image.size == size


def test_a_round_lesion_is_shown_round():
    # Millimeters from the center, at 3 mm between rows and 1 mm between columns.
    row, column = np.mgrid[-10:11, -30:31]
    disk = ((3.0 * row) ** 2 + column**2 < 20**2).astype(np.uint8) * 255
    shown = np.asarray(load_medical_image(make_dicom(disk, PixelSpacing=[3, 1]))) > 127
    assert shown.shape == (63, 61)
    height, width = shown.any(axis=1).sum(), shown.any(axis=0).sum()
    assert abs(int(height) - 40) <= 3 and abs(int(width) - 40) <= 3
    # The same grid as a NIfTI volume is resampled to the same pixels.
    volume = make_nifti(disk.T[::-1, ::-1, None].astype(np.uint8), np.diag([1.0, 3.0, 1.0, 1.0]))
    again = load_medical_image(volume, window=(127.5, 255))
    assert np.array_equal(np.asarray(load_medical_image(make_dicom(disk, PixelSpacing=[3, 1]))), np.asarray(again))


def test_an_enhanced_file_states_its_spacing_by_frame():
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [2, 1]
    shared.PixelMeasuresSequence = [measures]
    content = make_dicom(np.zeros((2, 10, 12), np.uint8), frames=2, SharedFunctionalGroupsSequence=[shared])
    assert load_medical_image(content, frame=1).size == (12, 20)


def test_a_window_one_wide_is_a_step():
    values = np.arange(6, dtype=np.int16).reshape(1, 6)
    file = make_dicom(values, WindowCenter="3.5", WindowWidth="1")
    assert np.asarray(load_medical_image(file)).tolist() == [[0, 0, 0, 0, 255, 255]]


def test_a_series_never_shows_a_patient_tag(tmp_path):
    write_series(tmp_path / "series", False, {})
    whole = (tmp_path / "series" / "a.dcm").read_bytes()
    assert PATIENT.encode() in whole
    for start in range(132, 900, 41):
        (tmp_path / "series" / "a.dcm").write_bytes(whole[:start] + b"\xff" * 8 + whole[start + 8 :])
        try:
            open_image(tmp_path / "series", View(slice_index=0))
        except ValueError as error:
            assert PATIENT not in str(error) and "4711" not in str(error)
            assert error.__suppress_context__ or error.__context__ is None


def test_a_volume_without_one_voxel_is_still_a_volume():
    values = graded((20, 24, 4), 4, np.float32)
    values[3, 4, 1] = np.nan
    stream = io.BytesIO(make_nifti(values))
    low, high = np.nanpercentile(values, (0.5, 99.5))
    expected = np.nan_to_num(np.rint(np.clip((values[:, :, 1] - low) / (high - low), 0, 1) * 255))
    assert np.array_equal(np.asarray(open_image(stream, View(slice_index=1))), expected.T[::-1, ::-1])
