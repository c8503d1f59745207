"""Small files in the formats that publishers use, written on the spot."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 36), mode: str = "RGB") -> Path:
    """A random image of `size` (width, height) in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def write_mask(path: Path, size: tuple[int, int] = (40, 36), inside: int = 255, outside: int = 0) -> Path:
    """A mask with a rectangle of the value `inside`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.full((size[1], size[0]), outside, dtype=np.uint8)
    mask[8:20, 10:30] = inside
    Image.fromarray(mask).save(path)
    return path


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_table(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_volume(path: Path, seed: int = 0, shape: tuple[int, int, int] = (24, 20, 4), empty: int = 1) -> Path:
    """A NIfTI volume whose first `empty` slices along the last axis are background."""
    voxels = np.random.default_rng(seed).integers(100, 1000, shape).astype(np.int16)
    voxels[:, :, :empty] = 0
    return save_volume(path, voxels)


def save_volume(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path
