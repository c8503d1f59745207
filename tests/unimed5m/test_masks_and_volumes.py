"""Masks and label volumes mean what their files say, and damaged files are set aside alone."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.builders.record_images import LEAST_LOSSY_STEP, read_levels, read_volume
from unimedvl.unimed5m.schema import Record
from unimedvl.unimed5m.task_images import pixels_of

from .fixtures_files import save_volume, write_image, write_json, write_volume

MARKED = np.zeros((36, 40), np.uint8)
MARKED[8:20, 10:30] = 1


def records_of(name: str, root: Path) -> list[Record]:
    return list(get_source(name).records(root))


def mask_of(record: Record) -> np.ndarray:
    return pixels_of(record.output_img[0]) == 255


def write_pair(root: Path, stem: str, mask: Image.Image, suffix: str = ".png") -> None:
    write_image(root / "images" / f"{stem}.png")
    (root / "masks").mkdir(exist_ok=True)
    mask.save(root / "masks" / f"{stem}{suffix}")


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint16, np.float32])
def test_label_numbers_beyond_a_byte_do_not_wrap(tmp_path, kind):
    """1041 is 17 in eight bits, 1003 is 235, 512 is background: FreeSurfer's atlas has such numbers."""
    write_volume(tmp_path / "images" / "a.nii.gz", empty=0)
    labels = np.zeros((24, 20, 4), kind)
    places = {"hippocampus": (17, np.s_[1:4, 1:4, 2]), "cortex": (1003, np.s_[6:9, 6:9, 2])}
    for value, place in [*places.values(), (1041, np.s_[12:16, 12:16, 2]), (512, np.s_[18:20, 18:20, 2])]:
        labels[place] = value
    save_volume(tmp_path / "labels" / "a.nii.gz", labels)
    write_json(
        tmp_path / "source.json", {"modality": "MRI", "classes": {n: [value] for n, (value, _) in places.items()}}
    )
    found = {
        json.loads(record.extra)["target"]: mask_of(record).sum() for record in records_of("nifti-volumes", tmp_path)
    }
    assert found == {"hippocampus": 9, "cortex": 9}
    (tmp_path / "source.json").unlink()
    assert [mask_of(record).sum() for record in records_of("nifti-volumes", tmp_path)] == [9 + 9 + 16 + 4]


def test_labels_keep_to_the_grid_of_the_image(tmp_path):
    # Rows lie 2 mm apart, columns 1 mm.
    voxels = nibabel.Nifti1Image(np.arange(12, dtype=np.int32).reshape(1, 3, 4) * 1000, np.diag([1.0, 2.0, 1.0, 1.0]))
    nibabel.save(voxels, tmp_path / "v.nii")
    volume = read_volume(tmp_path / "v.nii", slice_axis=0)
    assert volume.marked(0, [5000]).shape == (6, 4) and volume.marked(0, [5000]).sum() == 2
    image = volume.image(0, "v")
    assert volume.marked(0).shape == (image.height, image.width) and volume.marked(0).sum() == 22


def test_an_image_has_the_mask_of_its_whole_name(tmp_path):
    """Names that are DICOM's numbers have points in them, and one can be the beginning of another."""
    sizes = {}
    for index, stem in enumerate(["1.2.3", "1.2.3.4", "a[1]", "a*"], 1):
        mask = np.zeros((36, 40), np.uint8)
        mask[:index, :index] = 255
        write_pair(tmp_path, stem, Image.fromarray(mask))
        sizes[f"images/{stem}.png"] = index**2
    found = {record.input_img[0].path: mask_of(record).sum() for record in records_of("segmentation-pairs", tmp_path)}
    assert found == sizes


@pytest.mark.parametrize("classes", [{}, {"cyst": [255]}])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "1", "P", "JPEG"])
def test_transparency_and_seams_are_no_part_of_a_mask(tmp_path, mode, classes):
    mask, suffix = Image.fromarray(MARKED * 255), ".png"
    if mode == "JPEG":
        suffix = ".jpg"
    elif mode == "CMYK":
        mask, suffix = mask.convert("RGB").convert("CMYK"), ".tif"
    elif mode == "P":
        mask = Image.fromarray(MARKED * 255, "L").convert("P", palette=Image.Palette.WEB)
        mask.putpalette([0, 0, 0] * 255 + [255, 255, 255])
        mask.putdata((MARKED * 255).ravel())
    else:
        mask = mask.convert(mode)
    write_pair(tmp_path, "a", mask, suffix)
    write_json(tmp_path / "source.json", {"classes": {} if mode == "1" else classes})
    record = records_of("segmentation-pairs", tmp_path)[0]
    assert np.mean(mask_of(record) == (MARKED == 1)) >= (0.98 if mode == "JPEG" else 1.0)


def test_a_lossy_mask_without_a_structure_is_empty(tmp_path):
    """Noise around black is no structure."""
    noise = np.random.default_rng(0).integers(0, 12, (36, 40), dtype=np.uint8)
    write_pair(tmp_path, "a", Image.fromarray(noise), ".jpg")
    reasons: dict[str, str] = {}
    assert list(get_source("segmentation-pairs").records(tmp_path, problem=reasons.__setitem__)) == []
    assert "holds nothing to make a record of" in reasons["images/a.png"]


def test_close_classes_are_not_read_from_a_lossy_mask(tmp_path):
    Image.fromarray(MARKED * 3).save(tmp_path / "m.jpg")
    with pytest.raises(
        ValueError, match=f"at least {LEAST_LOSSY_STEP} apart .* found classes of 3, 4: save the masks"
    ):
        read_levels(tmp_path / "m.jpg", [3, 4])
    Image.fromarray(MARKED * 3).save(tmp_path / "m.png")
    assert set(np.unique(read_levels(tmp_path / "m.png", [3, 4]))) == {0, 3}
    levels = np.where(MARKED, 128, 0).astype(np.uint8)
    levels[25:35, 5:15] = 255
    Image.fromarray(levels).save(tmp_path / "m.jpg", quality=60)
    assert set(np.unique(read_levels(tmp_path / "m.jpg", [128, 255]))) == {0, 128, 255}


def test_a_gigantic_mask_is_set_aside(tmp_path, monkeypatch):
    write_pair(tmp_path, "a", Image.fromarray(MARKED * 255))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="a.png: expected a mask image, found a problem: .*decompression bomb"):
        read_levels(tmp_path / "masks" / "a.png")


def damaged_in_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60] = bytes(60)
    path.write_bytes(content)


def damaged_at_the_end(path: Path) -> None:
    """Voxels beyond those that the header counts hide the checksum from readers that stop."""
    content = gzip.decompress(path.read_bytes())
    packed = bytearray(gzip.compress(content + bytes(100_000)))
    packed[-6] ^= 0xFF
    path.write_bytes(packed)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("change", [damaged_in_the_middle, damaged_at_the_end, cut])
def test_a_damaged_volume_is_set_aside_alone(tmp_path, change):
    ramp = np.add.outer(np.linspace(0, 900, 64), np.add.outer(np.linspace(0, 900, 64), np.arange(8) * 7))
    for name in ("a", "b"):
        save_volume(tmp_path / "in" / f"{name}.nii.gz", ramp.astype(np.int16))
    change(tmp_path / "in" / "b.nii.gz")
    with pytest.raises(ValueError, match="b.nii.gz: expected a NIfTI volume, found a problem: "):
        read_volume(tmp_path / "in" / "b.nii.gz")
    summary = build(get_source("nifti-volumes"), tmp_path / "in", tmp_path / "out", shards=1)
    assert summary["rejected"] == 1 and summary["kept"] == 16


def test_a_volume_with_absurd_voxels_gets_one_line(tmp_path):
    path = write_volume(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    # The distance in pixdim, and the one in the sform, which counts.
    content[80:84] = content[280:284] = np.float32(1e20).tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected voxels of like height and width, found 1 and 1e[+]20 mm"):
        read_volume(path)
