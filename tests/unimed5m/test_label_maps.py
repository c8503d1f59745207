"""Label maps and volumes as other programs write them, read for records."""

import io
import json
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.processing.png_files import COLOR, PALETTE, png_of
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.builders.record_images import read_levels
from unimedvl.unimed5m.task_images import pixels_of

from .fixtures_files import save_volume, write_image, write_json, write_volume

LABELS = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 3, 3]])


def tiff_of_few_bits(values: np.ndarray, bits: int, photometric: int = 1) -> bytes:
    """A TIFF of 2 or 4 bits, which tifffile alone does not write."""
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(planes.astype(np.uint8).reshape(len(values), -1), axis=1).tobytes()
    tags = [(256, values.shape[1]), (257, len(values)), (258, bits), (259, 1), (262, photometric), (273, 200)]
    tags += [(277, 1), (278, len(values)), (279, len(rows))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<I", 8) + directory + b"\0\0\0\0").ljust(200, b"\0") + rows


def tiff_of(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def netpbm_of(values: np.ndarray, white: int) -> bytes:
    return (
        b"P5 %d %d %d\n" % (values.shape[1], values.shape[0], white)
        + values.astype(">u2" if white > 255 else "u1").tobytes()
    )


def bmp_of(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values.astype(np.uint8)).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(file, "BMP")
    return file.getvalue()


FILES = {
    **{f"{depth}-bit.png": png_of(LABELS, depth) for depth in (2, 4, 8, 16)},
    **{f"{depth}-bit-palette.png": png_of(LABELS, depth, PALETTE) for depth in (2, 4, 8)},
    **{f"{bits}-bit.tif": tiff_of_few_bits(LABELS, bits) for bits in (2, 4)},
    **{f"{bits}-bit-white.tif": tiff_of_few_bits(LABELS, bits, 0) for bits in (2, 4)},
    **{f"{kind}.tif": tiff_of(LABELS.astype(kind)) for kind in "u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8".split()},
    **{
        f"{kind}-white.tif": tiff_of(LABELS.astype(kind), photometric="miniswhite")
        for kind in "u1 u2 u4 u8 i1 i2 i4 f4".split()
    },
    **{f"{white}.pgm": netpbm_of(LABELS, white) for white in (3, 4, 200, 255, 1000, 65535)},
    "plain.pgm": b"P2 4 3 3\n" + b" ".join(b"%d" % label for label in LABELS.ravel()),
    "palette.bmp": bmp_of(LABELS),
}


@pytest.mark.parametrize("name", FILES)
def test_f11_label_maps_keep_their_values(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert np.array_equal(read_levels(tmp_path / name), LABELS)


def test_f11_labels_of_all_bits(tmp_path):
    for depth in (4, 8, 16):
        values = np.array([[0, 1, 2**depth - 2, 2**depth - 1]])
        (tmp_path / "a.png").write_bytes(png_of(values, depth))
        assert np.array_equal(read_levels(tmp_path / "a.png"), values)
    (tmp_path / "bits.png").write_bytes(png_of(LABELS % 2, 1))
    assert np.array_equal(read_levels(tmp_path / "bits.png"), LABELS % 2)
    for kind in ("u4", "i4", "i8", "f8"):
        values = np.array([[0, 1, 2**31 - 1, 70000]]).astype(kind)
        (tmp_path / "a.tif").write_bytes(tiff_of(values))
        assert np.array_equal(read_levels(tmp_path / "a.tif"), values)
    (tmp_path / "large.tif").write_bytes(tiff_of(np.array([[0, 2**32 - 1]], np.uint32)))
    assert read_levels(tmp_path / "large.tif").tolist() == [[0, 2**32 - 1]]


def test_f11_labels_in_16_bit_colors_are_not_guessed(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of(np.repeat(LABELS[..., None], 3, axis=-1), 16, COLOR))
    with pytest.raises(ValueError, match="colors of 16 bits"):
        read_levels(tmp_path / "a.png")


def test_f11_masks_of_few_bits_make_the_records_of_8_bits(tmp_path):
    labels = np.kron(np.array([[0, 1], [2, 0]]), np.ones((20, 20), int))
    for name, content in {"a": png_of(labels, 8), "b": png_of(labels, 4), "c": png_of(labels, 2)}.items():
        write_image(tmp_path / "images" / f"{name}.png", size=(40, 40))
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / "masks" / f"{name}.png").write_bytes(content)
    write_json(tmp_path / "source.json", {"modality": "CT", "classes": {"liver": [1], "spleen": [2]}})
    masks: dict[str, list[np.ndarray]] = {}
    for record in get_source("segmentation-pairs").records(tmp_path):
        masks.setdefault(json.loads(record.extra)["target"], []).append(pixels_of(record.output_img[0]) == 255)
    assert {name: len(found) for name, found in masks.items()} == {"liver": 3, "spleen": 3}
    for found, value in ((masks["liver"], 1), (masks["spleen"], 2)):
        assert all(np.array_equal(mask, labels == value) for mask in found)


# -------------------------------------------------------------------------------------------------- F9: volumes


def rejected(out: Path) -> list[str]:
    return [
        json.loads(line)["reason"] for path in out.glob("rejected/*.jsonl") for line in path.read_text().splitlines()
    ]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_f9_one_voxel_without_a_number_costs_no_record(tmp_path, number):
    for root, holes in (("whole", 0), ("holes", 1)):
        write_volume(tmp_path / root / "images" / "a.nii.gz", empty=0)
        image = nibabel.load(tmp_path / root / "images" / "a.nii.gz")
        values = image.get_fdata().astype(np.float32)
        values[:holes, :holes, :holes] = number
        save_volume(tmp_path / root / "images" / "a.nii.gz", values)
    counts = [len(list(get_source("nifti-volumes").records(tmp_path / root))) for root in ("whole", "holes")]
    assert counts[0] == counts[1] > 0


VOXELS = {
    "complex": np.zeros((8, 9, 4), np.complex64),
    "color": np.zeros((8, 9, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]),
    "transparent": np.zeros((8, 9, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]),
    "nothing": np.full((8, 9, 4), np.nan, np.float32),
    "series": np.ones((8, 9, 4, 3), np.float32),
}


@pytest.mark.parametrize("name", VOXELS)
@pytest.mark.parametrize("folder", ["images", "labels"])
def test_f9_volumes_without_gray_levels_are_set_aside_alone(tmp_path, name, folder):
    write_volume(tmp_path / "in" / "images" / "good.nii.gz", empty=0)
    write_volume(tmp_path / "in" / "images" / "other.nii.gz", empty=0)
    (tmp_path / "in" / folder).mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(VOXELS[name], np.eye(4)), tmp_path / "in" / folder / "other.nii.gz")
    summary = build(get_source("nifti-volumes"), tmp_path / "in", tmp_path / "out", shards=1)
    assert summary["kept"] > 0 and summary["rejected"] == 1
    (reason,) = rejected(tmp_path / "out")
    assert "other.nii.gz" in reason and "Traceback" not in reason and len(reason.split()) > 4


def test_f9_trailing_axes_of_one_are_none_in_images_and_labels(tmp_path):
    write_volume(tmp_path / "images" / "a.nii.gz", empty=0)
    shape = nibabel.load(tmp_path / "images" / "a.nii.gz").shape
    labels = np.zeros(shape, np.uint8)
    labels[4:9, 5:12] = 1
    save_volume(tmp_path / "labels" / "a.nii.gz", labels)
    before = [record.id for record in get_source("nifti-volumes").records(tmp_path)]
    save_volume(tmp_path / "labels" / "a.nii.gz", labels[..., None])
    assert [record.id for record in get_source("nifti-volumes").records(tmp_path)] == before and before
    values = nibabel.load(tmp_path / "images" / "a.nii.gz").get_fdata()
    save_volume(tmp_path / "images" / "a.nii.gz", values[..., None, None].astype(np.float32))
    assert len(list(get_source("nifti-volumes").records(tmp_path))) == len(before)
