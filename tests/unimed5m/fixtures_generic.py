"""Folders for the generic sources."""

from pathlib import Path

import numpy as np

from tests.processing.medical_files import make_dicom

from .fixtures_files import save_volume, write_image, write_json, write_lines, write_mask, write_table, write_volume
from .fixtures_texts import CAPTION, llava_row

Counts = dict[str, int]


def image_folder(root: Path) -> Counts:
    for split, label in (("train", "polyp"), ("train", "normal_mucosa"), ("test", "polyp")):
        write_image(root / split / label / "1.png")
    return {"diagnosis": 3}


def labels(root: Path) -> Counts:
    rows = [
        {"image": f"images/{n}.png", "label": "glioma", "split": "train", "group": "p1", "age": "60"} for n in "ab"
    ]
    write_table(root / "labels.csv", rows)
    for row in rows:
        write_image(root / row["image"])
    return {"diagnosis": 2}


def segmentation_pairs(root: Path) -> Counts:
    write_json(
        root / "source.json",
        {"modality": "US", "description": "ultrasound image", "classes": {"cyst": [3], "duct": [4]}},
    )
    for name in ("a", "b"):
        write_image(root / "images" / f"{name}.jpg")
        write_mask(root / "masks" / f"{name}.png", inside=3)
    return {"segmentation": 2}


def paired_images(root: Path) -> Counts:
    write_json(root / "source.json", {"modality": "MRI", "origin": "T1-weighted MRI", "target": "T2-weighted MRI"})
    for side in ("input", "target"):
        for name in ("1", "2"):
            write_image(root / side / f"{name}.png")
    return {"cross_modal": 4}


def captions(root: Path) -> Counts:
    write_lines(root / "captions.jsonl", [{"image": "1.png", "caption": CAPTION, "modality": "CT"}])
    write_image(root / "1.png")
    return {"caption": 1, "text_to_image": 1}


def reports(root: Path) -> Counts:
    write_json(root / "reports.json", [{"image": "1.dcm", "report": "Clear lungs.", "modality": "CXR"}])
    root.joinpath("1.dcm").write_bytes(make_dicom(np.arange(40 * 36, dtype=np.uint16).reshape(36, 40)))
    return {"report": 1}


def vqa(root: Path) -> Counts:
    rows = [
        {"image": "1.png", "question": "Is there a mass?", "answer": "No", "A": "", "B": ""},
        {"image": "1.png", "question": "Which organ?", "answer": "B", "A": "Liver", "B": "Kidney"},
    ]
    write_table(root / "vqa.tsv", rows)
    write_image(root / "1.png")
    return {"vqa": 2}


def reasoning(root: Path) -> Counts:
    thought = {"question": "What is the diagnosis?", "reasoning": "The lesion is ...", "answer": "Cyst"}
    write_lines(root / "reasoning.jsonl", [{"image": "1.png", **thought}, thought])
    write_image(root / "1.png")
    return {"reasoning": 2}


def conversations(root: Path) -> Counts:
    write_json(root / "conversations.json", [llava_row("1.png")])
    write_image(root / "1.png")
    return {"vqa": 1}


def dicom_series(root: Path) -> Counts:
    write_json(root / "source.json", {"modality": "CT", "description": "CT slice", "window": [500, 1000]})
    for number in range(2):
        path = root / "series1" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_dicom(np.arange(40 * 36, dtype=np.uint16).reshape(36, 40)))
    return {"super_resolution": 4}


def nifti_volumes(root: Path) -> Counts:
    write_json(root / "source.json", {"modality": "MRI", "classes": {"hippocampus": [1, 2]}})
    write_volume(root / "images" / "a.nii.gz")
    write_volume(root / "images" / "b.nii.gz", 1)
    marked = np.zeros((24, 20, 4), np.uint8)
    marked[4:8, 4:8, 2] = 2
    save_volume(root / "labels" / "a.nii.gz", marked)
    return {"segmentation": 1, "super_resolution": 6}


LAYOUTS = {
    "image-folder": image_folder,
    "labels": labels,
    "segmentation-pairs": segmentation_pairs,
    "paired-images": paired_images,
    "captions": captions,
    "reports": reports,
    "vqa": vqa,
    "reasoning": reasoning,
    "conversations": conversations,
    "dicom-series": dicom_series,
    "nifti-volumes": nifti_volumes,
}
