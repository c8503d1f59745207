"""Chest radiographs with words: MIMIC-CXR, CheXpert Plus, Medical-Diff-VQA, ICG-CXR."""

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .. import tasks
from ..schema import Record
from .base import Card, LeftOut, Source, split_of
from .publisher_texts import kept
from .readers import TableRow, TableSource
from .record_images import file_image
from .source_texts import report_sections, report_text
from .tables import columns, rows

# MIMIC-CXR's patients are in three sets, those of CheXpert Plus in two.
MIMIC, CHEXPERT = "mimic-cxr", "chexpert-plus"
MIMIC_SPLITS = ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-split.csv.gz")
RADIOGRAPH = "chest radiograph"
MIMIC_LICENSE = "PhysioNet Credentialed Health Data License 1.5.0"


def _study_folder(root: Path, subject: str, study: str) -> Path:
    """Folder of a study's images as PhysioNet files them: files/p10/p10000032/s50414267."""
    return root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"


def _mimic(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    subject, study, image = row["subject_id"], row["study_id"], row["dicom_id"]
    images = _study_folder(folder, subject, study)
    path = next(
        (images / f"{image}{suffix}" for suffix in (".jpg", ".dcm") if (images / f"{image}{suffix}").is_file()), None
    )
    if path is None:
        raise ValueError(f"{source.name}: expected {images / image}.jpg or .dcm, found no such file.")
    places = (folder / "mimic-cxr-reports" / "files", folder / "files")
    texts = (place / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt" for place in places)
    report = next((text for text in texts if text.is_file()), None)
    if report is None:
        raise ValueError(f"{source.name}: expected the report s{study}.txt, found no such file.")
    text = report_text(*report_sections(report.read_text(encoding="utf-8")))
    # Old reports have no headings; without sections there is nothing that is surely about the image.
    if not text:
        raise LeftOut(f"{source.name}: the report s{study} has neither findings nor an impression.")
    origin = source.origin(f"s{study}/{image}", f"p{subject}", split_of(row["split"]), "CXR", description=RADIOGRAPH)
    yield tasks.report(origin, [file_image(path, folder)], text)


def _chexpert(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    text = report_text(row["section_findings"], row["section_impression"])
    if not text:
        raise LeftOut(f"{source.name}: {row['path_to_image']} has neither findings nor an impression.")
    name = Path(row["path_to_image"])
    path = next(
        (folder / name.with_suffix(s) for s in (".png", ".jpg", ".dcm") if (folder / name.with_suffix(s)).is_file()),
        None,
    )
    if path is None:
        raise ValueError(f"{source.name}: expected {folder / name} (or .png), found no such file.")
    extra = kept(row, "frontal_lateral", "ap_pa")
    origin = source.origin(
        name.as_posix(), name.parts[1], split_of(row["split"]), "CXR", description=RADIOGRAPH, extra=extra
    )
    yield tasks.report(origin, [file_image(path, folder)], text)


@cache
def _first_images(table: Path) -> dict[str, str]:
    """Study -> image of Medical-Diff-VQA's list of studies."""
    found: dict[str, str] = {}
    for position, row in enumerate(rows(table)):
        if position == 0:
            columns(row, table, "study_id", "dicom_id")
        found.setdefault(_number(row["study_id"]), row["dicom_id"])
    return found


@cache
def _patient_splits(table: Path) -> dict[str, str]:
    """Patient -> split of MIMIC-CXR."""
    return {row["subject_id"]: split_of(row["split"]) for row in rows(table)}


def _number(text: str) -> str:
    """An identifier that a table's writer may have turned into a float."""
    return text.removesuffix(".0")


def _difference(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    images = _first_images(folder / "mimic_all.csv")
    splits = _patient_splits(source.need(folder, *MIMIC_SPLITS))
    # Questions about a difference show the reference first, as the earlier study.
    studies = [_number(row["study_id"])]
    if row["question_type"] == "difference":
        studies.insert(0, _number(row["ref_id"]))
    paths = []
    for study in studies:
        if study not in images:
            raise ValueError(f"{source.name}: expected study {study} in mimic_all.csv, found no such row.")
        paths.append(_study_folder(folder, _number(row["subject_id"]), study) / f"{images[study]}.jpg")
    origin = source.origin(
        f"{unit.table.stem}#{unit.position}",
        f"p{_number(row['subject_id'])}",
        splits.get(_number(row["subject_id"]), ""),
        "CXR",
        "/".join(f"s{study}" for study in studies),
        description=RADIOGRAPH,
        extra={"question_type": row["question_type"]},
    )
    yield tasks.vqa(origin, [file_image(path, folder) for path in paths], row["question"], row["answer"])


@dataclasses.dataclass
class IcgCxr(Source):
    """Pairs of a prior and a follow-up radiograph, each in a folder with its description."""

    def units(self, root: Path) -> Iterator[Path]:
        yield from self.files(root, "*/pa/*/**/*.json")

    def records_of(self, root: Path, unit: Path) -> Iterator[Record]:
        try:
            about = json.loads(unit.read_text(encoding="utf-8"))
            prompt, explanation = about["progression-description"], about["changes-of-findings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{unit}: expected progression-description and changes-of-findings, found a problem: {error!r}."
            ) from error
        parts = unit.relative_to(root).parts
        patient = next((part for part in reversed(parts[:-2]) if part.startswith("p") and part != "pa"), parts[-3])
        family = {"mimic_cxr": MIMIC, "chexpertplus": CHEXPERT}.get(parts[0], self.family)
        # CheXpert Plus numbers its patients without a prefix of its own: patient00023 is p00023 here.
        group = patient.replace("p", "patient", 1) if family == CHEXPERT else patient
        split = next((split_of(part) for part in parts[1:-3] if part in ("train", "valid", "val", "test")), "")
        named = dataclasses.replace(self, family=family)
        origin = named.origin(f"{parts[0]}/{patient}/{unit.stem}", group, split, "CXR", description=RADIOGRAPH)
        prior, follow_up = (file_image(unit.with_name(f"{unit.stem}-{side}-reg.png"), root) for side in ("ref", "flu"))
        yield tasks.counterfactual(origin, prior, prompt, follow_up, explanation)


SOURCES: tuple[Source, ...] = (
    TableSource(
        name="mimic-cxr",
        card=Card(
            title="MIMIC-CXR (with MIMIC-CXR-JPG)",
            url="https://physionet.org/content/mimic-cxr-jpg/2.1.0/",
            license=MIMIC_LICENSE,
            license_read=False,
            license_tier="C",
            redistributable="no",
            layout="mimic-cxr-2.0.0-split.csv(.gz), files/p10/p10000032/s50414267/*.jpg and mimic-cxr-reports/files/",
            layout_source="https://github.com/wenruifan/mmai-hackathon/blob/0e6da3098b81242b716a5cac2f94b407929c48e0/"
            "mmai25_hackathon/docs/cxr.md (images and split table); reports as on the data set's PhysioNet page",
            paper="Table 20: report generation; size not stated",
            notes="Findings and impression only; a report without these headings gives no record. DICOM images of "
            "MIMIC-CXR itself are read as well. Every image of a study gets the study's report.",
        ),
        tasks=("report",),
        family=MIMIC,
        tables=dict.fromkeys(MIMIC_SPLITS, ""),
        first_only=True,
        needs=("dicom_id", "study_id", "subject_id", "split"),
        images=(".",),
        read=_mimic,
        needs_files=("files",),
    ),
    TableSource(
        name="chexpert-plus",
        card=Card(
            title="CheXpert Plus",
            url="https://aimi.stanford.edu/datasets/chexpert-plus",
            license="Stanford University Dataset Research Use Agreement",
            license_read=False,
            license_tier="C",
            redistributable="no",
            layout="df_chexpert_plus_240401.csv (path_to_image, section_findings, section_impression, split) and PNG/",
            layout_source="https://github.com/Stanford-AIMI/chexpert-plus/blob/"
            "475f85ce7bb604f58548cde0a4fd82779f45d7a4/README.md (the table and its sections)",
            paper="Table 15: 223K, report understanding",
            notes="The images' folder is not shown there: PNG/PNG, PNG and the folder itself are tried.",
        ),
        tasks=("report",),
        family=CHEXPERT,
        tables={"df_chexpert_plus_240401.csv": ""},
        needs=("path_to_image", "section_findings", "section_impression", "split"),
        images=("PNG/PNG", "PNG", "."),
        read=_chexpert,
    ),
    TableSource(
        name="medical-diff-vqa",
        card=Card(
            title="Medical-Diff-VQA",
            url="https://physionet.org/content/medical-diff-vqa/1.0.0/",
            license=MIMIC_LICENSE,
            license_read=False,
            license_tier="C",
            redistributable="no",
            layout="mimic_pair_questions.csv and mimic_all.csv beside files/ and the split table of MIMIC-CXR-JPG",
            layout_source="https://github.com/Holipori/EKAID/blob/4fdd58e4d1125bfeb5a79483712d2715f5c26e1f/"
            "model/dataset_preparation.py (the authors' reader of the questions)",
            paper="Table 15: 129K, caption and entity recognition",
            notes="Copy or link the two tables into the folder of MIMIC-CXR-JPG, which has the images. Splits are "
            "MIMIC-CXR's, by patient: those of the question table are by question.",
        ),
        tasks=("vqa",),
        family=MIMIC,
        tables={"mimic_pair_questions.csv": ""},
        needs=("study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split"),
        images=(".",),
        read=_difference,
        needs_files=("mimic_all.csv", "files"),
    ),
    IcgCxr(
        name="icg-cxr",
        card=Card(
            title="ICG-CXR",
            url="https://github.com/Masaaki-75/progemu",
            license="Constraints of MIMIC-CXR and CheXpert Plus, as the set's README says",
            license_tier="C",
            redistributable="no",
            layout="chexpertplus/pa/1/... and mimic_cxr/pa/1/...: ID.json, ID-ref-reg.png and ID-flu-reg.png per pair",
            layout_source="https://github.com/Masaaki-75/progemu/blob/167fec79bf3078615ab5f1d1dd6b16b5bdff1e15/"
            "README.md and .../4a59f3310d765989bb15030ca6f1fdad0786f03a/emu3/train/datasets_ti2ti.py",
            paper="Table 15: 10K, counterfactual",
            notes="A split that the path does not state is decided by the patient.",
        ),
        tasks=("counterfactual",),
    ),
)
