"""Question answering benchmarks: VQA-RAD, SLAKE, PathVQA, OmniMedVQA, GMAI-MMBench."""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path

from .. import tasks
from ..schema import Record
from .base import Card, LeftOut, Source
from .publisher_texts import choice, kept
from .readers import TableRow, TableSource
from .record_images import bytes_image, named_image
from .source_texts import modality_of, options_in
from .tables import Row

RESOURCES = (
    "https://github.com/openmedlab/Awesome-Medical-Dataset/blob/53ed534647507d2f4df8cb08e6b1352ea908362b/resources"
)


def _rad_split(row: Row) -> str:
    """The publisher marks his test questions in the kind of phrase: test_freeform, test_para."""
    return "test" if str(row["phrase_type"]).startswith("test") else "train"


def _rad_image(row: Row) -> str:
    return str(row["image_name"])


def _vqa_rad(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    name = str(row["image_name"])
    origin = source.origin(
        f"qid{row['qid']}#{unit.position}",
        name,
        unit.split,
        "CXR" if row.get("image_organ") == "CHEST" else "RAD",
        name,
        extra=kept(row, "answer_type", "question_type", "image_organ", "phrase_type"),
    )
    yield tasks.vqa(origin, [named_image(folder, name)], row["question"], str(row["answer"]))


def _slake(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    name = row["img_name"]
    modality = {"MRI": "MRI", "CT": "CT", "X-Ray": "CXR"}.get(row.get("modality", ""), "RAD")
    extra = kept(row, "qid", "q_lang", "location", "answer_type", "content_type", "base_type")
    origin = source.origin(
        f"{unit.table.stem}#{unit.position}", name.split("/")[0], unit.split, modality, name, extra=extra
    )
    yield tasks.vqa(origin, [named_image(folder, name)], row["question"], str(row["answer"]))


def _path_vqa(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    name = row["img_id"]
    answers = row["label"]
    if not answers:
        raise LeftOut(f"{unit.table.name}: question {row['question_id']} has no answer.")
    part = unit.table.stem.split("_")[0]
    extra = kept(row, "question_id", "answer_type", "question_type")
    origin = source.origin(
        f"{part}#{unit.position}", name, unit.split, "HIS", name, description="pathology image", extra=extra
    )
    image = named_image(folder, f"{part}/{name}.jpg")
    # Answers carry their agreement; the first is the one that was given.
    yield tasks.vqa(origin, [image], row["sent"], str(next(iter(answers))))


def _omnimedvqa(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    name = row["image_path"]
    options = options_in(row, "option_A", "option_B", "option_C", "option_D")
    extra = kept(row, "question_id", "dataset", "question_type", "modality_type")
    modality = modality_of(str(row.get("modality_type", "")))
    origin = source.origin(f"{unit.table.stem}#{unit.position}", name, unit.split, modality, name, extra=extra)
    yield choice(origin, [named_image(folder, name)], row["question"], options, str(row["gt_answer"]))


def _gmai_mmbench(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    # The answers of the test split are held back.
    if not row.get("answer"):
        raise LeftOut(f"{unit.table.name}: question {row['index']} has no public answer.")
    try:
        content = base64.b64decode(row["image"], validate=True)
    except binascii.Error as error:
        place = f"{unit.table}: row {unit.position + 1}"
        raise ValueError(f"{place}: expected a base64 image, found a problem: {error}.") from error
    stated = " ".join(str(row.get(name, "")) for name in ("modality", "category", "l2-category", "question"))
    extra = kept(
        row, "category", "l2-category", "modality", "clinical vqa task", "department", "perceptual granularity"
    )
    origin = source.origin(
        f"{unit.table.stem}#{unit.position}",
        f"{unit.table.stem}#{unit.position}",
        unit.split,
        modality_of(stated),
        extra=extra,
    )
    options = options_in(row, *"ABCDE")
    image = bytes_image(content, f"{unit.table.name}#{unit.position}")
    yield choice(origin, [image], row["question"], options, row["answer"])


SOURCES: tuple[Source, ...] = (
    TableSource(
        name="vqa-rad",
        card=Card(
            title="VQA-RAD",
            url="https://osf.io/89kps/",
            license="CC0 1.0",
            license_tier="A",
            redistributable="yes",
            layout="VQA_RAD Dataset Public.json and VQA_RAD Image Folder/",
            layout_source=f"{RESOURCES}/VQA-RAD.md",
            paper="Table 16; in the authors' training mix as well",
            notes="The publisher's test questions share images with his training questions; training questions about "
            "images of the test are left out.",
        ),
        tasks=("vqa",),
        tables={"VQA_RAD Dataset Public.json": ""},
        needs=("image_name", "question", "answer", "qid", "phrase_type"),
        images=("VQA_RAD Image Folder",),
        read=_vqa_rad,
        row_split=_rad_split,
        row_group=_rad_image,
    ),
    TableSource(
        name="slake",
        card=Card(
            title="SLAKE",
            url="https://huggingface.co/datasets/BoKelvin/SLAKE",
            license="CC BY 4.0",
            license_tier="A",
            redistributable="yes",
            layout="train.json, validate.json, test.json and imgs/xmlab1/source.jpg",
            layout_source=f"{RESOURCES}/SLAKE.md",
            paper="Table 16; in the authors' training mix as well",
            notes="English and Chinese questions; extra.q_lang says which.",
        ),
        tasks=("vqa",),
        tables={
            "train.json": "train",
            "validate.json": "validation",
            "validation.json": "validation",
            "test.json": "test",
        },
        needs=("img_name", "question", "answer", "qid"),
        images=("imgs",),
        read=_slake,
    ),
    TableSource(
        name="path-vqa",
        card=Card(
            title="PathVQA",
            url="https://github.com/UCSD-AI4H/PathVQA",
            license="MIT for the repository; images from textbooks and the PEIR library",
            license_tier="C",
            redistributable="unclear",
            layout="split/qas/train_vqa.pkl, val_vqa.pkl, test_vqa.pkl and split/images/train/train_0000.jpg",
            layout_source=f"{RESOURCES}/PathVQA.md",
            paper="Table 16; in the authors' training mix as well",
            notes="The pickles are read by an unpickler that refuses everything but plain lists, texts and numbers.",
        ),
        tasks=("vqa",),
        tables={
            "**/qas/train_vqa.pkl": "train",
            "**/qas/val_vqa.pkl": "validation",
            "**/qas/test_vqa.pkl": "test",
        },
        needs=("img_id", "label", "question_id", "sent"),
        images=("split/images", "pvqa/images", "images"),
        read=_path_vqa,
    ),
    TableSource(
        name="omnimedvqa",
        card=Card(
            title="OmniMedVQA",
            url="https://huggingface.co/datasets/foreverbeliever/OmniMedVQA",
            license="Per upstream set; open-access part",
            license_tier="C",
            redistributable="unclear",
            layout="QA_information/Open-access/*.json and Images/",
            layout_source="https://huggingface.co/datasets/foreverbeliever/OmniMedVQA/blob/"
            "1ba51c28fc0773bdf7efb8396e5bcfd4227e22da/README.md",
            paper="Table 1 benchmark",
            notes="Everything is test data. The restricted part has questions without images and is not read.",
        ),
        tasks=("vqa",),
        tables={"QA_information/Open-access/*.json": "test"},
        needs=("question_id", "question", "gt_answer", "image_path", "option_A"),
        images=(".",),
        read=_omnimedvqa,
        needs_files=("Images",),
    ),
    TableSource(
        name="gmai-mmbench",
        card=Card(
            title="GMAI-MMBench",
            url="https://huggingface.co/datasets/OpenGVLab/GMAI-MMBench",
            license="Apache-2.0 as stated by the card; images per upstream set",
            license_tier="C",
            redistributable="unclear",
            layout="GMAI-MMBench_VAL.tsv (index, image in base64, question, A to E, answer)",
            layout_source="https://huggingface.co/datasets/VLMEval/GMAI-MMBench/tree/main (d4677fd) and "
            "https://github.com/open-compass/VLMEvalKit/blob/9ede1af0143acf7d4c2e41858ffe1624c5f42bf8/"
            "vlmeval/dataset/image_mcq.py",
            paper="Table 1 benchmark (validation set)",
            notes="Rows of the test tables have no answers and give no records.",
        ),
        tasks=("vqa",),
        tables={
            "GMAI-MMBench_VAL.tsv": "validation",
            "GMAI_mm_bench_VAL*.tsv": "validation",
            "GMAI*TEST*.tsv": "test",
        },
        needs=("index", "image", "question", "A", "B"),
        images=(),
        read=_gmai_mmbench,
    ),
)
