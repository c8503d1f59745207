"""A folder in the layout of the compact data, with drawn images: the tests need no data set."""

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet as parquet
from PIL import Image

_TEXTS = (
    "modality submodality source label label_kind mask_classes mask_origin target_kind report anatomy plane license "
    "license_tier redistributable original_id group_id provenance notes phash id split"
).split()
_IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
_QUESTION = pyarrow.struct(
    [(name, pyarrow.string()) for name in ("question", "answer", "answer_type", "official_split")]
)
SCHEMA = pyarrow.schema(
    [(name, _IMAGE) for name in ("image", "mask", "target_image")]
    + [(name, pyarrow.string()) for name in _TEXTS]
    + [("tasks", pyarrow.list_(pyarrow.string())), ("labels", pyarrow.list_(pyarrow.string()))]
    + [("qa", pyarrow.list_(_QUESTION))]
    + [(name, pyarrow.int32()) for name in ("native_width", "native_height", "width", "height")]
)


def drawing(seed: int, color: bool = False, kind: str = "PNG", size: tuple[int, int] = (48, 64)) -> bytes:
    """A smooth random image of height and width `size`, encoded."""
    generator = numpy.random.default_rng(seed)
    coarse = generator.integers(40, 180, size=(6, 8, 3) if color else (6, 8), dtype=numpy.uint8)
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def _mask(values: tuple[int, ...]) -> bytes:
    classes = numpy.zeros((48, 64), dtype=numpy.uint8)
    for index, value in enumerate(values):
        classes[8:30, 4 + 15 * index : 14 + 15 * index] = value
    buffer = io.BytesIO()
    Image.fromarray(classes).save(buffer, format="PNG")
    return buffer.getvalue()


def _row(source: str, split: str, index: int, **values: Any) -> dict[str, Any]:
    name = f"{source}-{split}-{index}"
    # An image of its own for every row.
    seed = zlib.crc32(name.encode())
    row: dict[str, Any] = dict.fromkeys(_TEXTS, "") | {"mask": None, "target_image": None, "qa": [], "labels": []}
    row |= {"image": drawing(seed), "modality": "CXR", "submodality": "frontal chest radiograph", "tasks": []}
    row |= {"source": source, "split": split, "id": name, "original_id": f"{name}.png", "group_id": f"{source}:{name}"}
    row |= {"license": "CC0", "license_tier": "A", "redistributable": "yes", "provenance": f"drawn:{name}"}
    row |= {"native_width": 64, "native_height": 48, "width": 64, "height": 48, "phash": f"{seed:016x}"} | values
    for column in ("image", "mask", "target_image"):
        if row[column] is not None:
            row[column] = {"bytes": row[column], "path": None}
    return row


def labeled_row(source: str, split: str, index: int, labels: list[str], **values: Any) -> dict[str, Any]:
    """A row with labels; `values` replace its other columns."""
    values = {"label_kind": "finding (text-mined)", "tasks": ["classification"]} | values
    return _row(source, split, index, labels=labels, label="; ".join(labels), **values)


def rows(split: str, count: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of every kind that the real folder has, by (tier, source)."""
    lungs = {"mask": _mask((1, 2)), "mask_classes": json.dumps({"1": "left lung", "2": "right lung"})}
    numbers = range(count)
    found = {
        ("A", "nih-chestxray14-subset"): [
            labeled_row("nih-chestxray14-subset", split, i, ["no finding" if i % 2 else "pneumonia"], plane="PA")
            for i in numbers
        ],
        ("A", "vqa-rad"): [
            _row(
                "vqa-rad",
                split,
                i,
                modality="RAD",
                submodality="radiology (mixed)",
                qa=[
                    {"question": q, "answer": a, "answer_type": "other", "official_split": "train"}
                    for q, a in (("where is the lesion?", "left lobe"), ("is it large?", "no"))
                ],
            )
            for i in numbers
        ],
        ("B", "covid-chestxray"): [
            labeled_row(
                "covid-chestxray",
                split,
                i,
                ["COVID-19", "ARDS"] if i % 2 else ["COVID-19"],
                label_kind="diagnosis",
                report=f"Patchy opacities in both lungs, film {i}.",
                license_tier="B",
                **lungs,
            )
            for i in numbers
        ],
        ("A", "tcia-brain-tumor-progression"): [
            labeled_row(
                "tcia-brain-tumor-progression",
                split,
                i,
                ["T2"],
                modality="MRI",
                submodality="T2",
                label_kind="sequence",
                target_kind="FLAIR MRI",
                tasks=["paired_translation"],
                target_image=drawing(1000 + i),
                plane="axial",
            )
            for i in numbers
        ],
        ("C", "duke-sdoct-dt1"): [
            _row(
                "duke-sdoct-dt1",
                split,
                i,
                modality="OCT",
                submodality="SD-OCT B-scan (Bioptigen)",
                tasks=["paired_restoration"],
                target_kind="registered, averaged low-noise B-scan",
                target_image=drawing(2000 + i, kind="JPEG"),
                license_tier="C",
            )
            for i in numbers
        ],
        ("A", "bccd"): [
            labeled_row(
                "bccd",
                split,
                i,
                [f"RBC: {9 + i}", "WBC: 1"],
                label_kind="annotated cell count",
                modality="HIS",
                submodality="blood smear light microscopy",
                image=drawing(zlib.crc32(f"cells {split} {i}".encode()), color=True, kind="JPEG"),
            )
            for i in numbers
        ],
    }
    stained = ("virtual_staining", "hematoxylin"), ("segmentation_map", "segmentation map (red, blue)")
    found["B", "deepliif-sample"] = [
        _row(
            "deepliif-sample",
            split,
            i,
            modality="HIS",
            submodality="IHC (hematoxylin + marker)",
            tasks=[task],
            target_kind=kind,
            image=drawing(zlib.crc32(f"tissue {split} {i}".encode()), color=True),
            target_image=drawing(3100 + i, color=True),
            license_tier="B",
        )
        for i in numbers
        for task, kind in [stained[i % 2]]
    ]
    return found


def write_folder(root: Path, count: int = 12) -> Path:
    """Write the folder with `count` training rows per source, and a third as many validation rows."""
    for split, number in (("train", count), ("validation", count // 3)):
        for (tier, source), values in rows(split, number).items():
            path = root / f"tier_{tier}" / source / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(pyarrow.Table.from_pylist(values, schema=SCHEMA), path)
    return root
