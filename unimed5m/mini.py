"""`unimed-mini`: records of every task from a folder of compact real images.

The folder holds one Parquet file per license tier, source and split (`tier_A/SOURCE/train.parquet`), with an image
per row and, where the source has them, a mask, a paired image, labels, questions, a clinical note. Nothing about an
image is made up here: texts come from the source or restate its entries. The exception are counterfactuals, for which
no real pairs exist: a lesion is drawn, and the record says so.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from . import tasks
from .planning import plan_from_facts
from .schema import Record, RecordImage
from .sentences import facts_phrase, facts_sentence
from .task_images import index_mask, pixels_of, stored_image
from .templates.words import MODALITY_NAMES, SHORT_NAMES

NAME = "unimed-mini"
SPLITS = ("train", "validation")

# Labels that state an absence; a yes-or-no question asks about the other labels of the source.
NEGATIVE_LABELS = frozenset(
    {
        "no finding",
        "no tumor",
        "no hemorrhage",
        "no cataract",
        "normal",
        "non-covid-19",
        "non-contrast",
        "benign lung tissue",
        "healthy",
        "no apparent retinopathy",
        "macular edema risk 0",
    }
)
# Sources with labeled normals in which a drawn lesion is visible, and whether the lesion is brighter than tissue.
LESION_SOURCES = {
    "nih-chestxray14-subset": True,
    "head-ct-hemorrhage": True,
    "brain-tumor-classification": True,
    "busi": False,
}
# Labels as they read after "is there"; the others read well as they are.
LABEL_NOUNS = {
    "benign": "a benign lesion",
    "malignant": "a malignant lesion",
    "glioma tumor": "a glioma",
    "meningioma tumor": "a meningioma",
    "pituitary tumor": "a pituitary tumor",
    "hemorrhage": "a hemorrhage",
    "cataract": "a cataract",
    "Streptococcus": "a Streptococcus infection",
    "Pneumocystis": "a Pneumocystis infection",
    "Legionella": "a Legionella infection",
    "Klebsiella": "a Klebsiella infection",
    "macular edema risk 1": "a macular edema risk of grade 1",
    "macular edema risk 2": "a macular edema risk of grade 2",
}
# Labels that go along with others: where they are not stated they need not be absent.
ACCOMPANYING_LABELS = frozenset({"ARDS"})
# What labels are called in questions; text mining finds words in a report, not findings in an image.
LABEL_KINDS = {"finding (text-mined)": "label"}
CELLS = {"RBC": "red blood cells", "WBC": "white blood cells", "Platelets": "platelets"}
VIEWS = {
    "axial": "axial plane",
    "coronal": "coronal plane",
    "sagittal": "sagittal plane",
    "pa": "posteroanterior view",
    "ap": "anteroposterior view",
    "ap supine": "anteroposterior supine view",
    "l": "lateral view",
    "right eye": "right eye",
    "left eye": "left eye",
}
# Descriptions that end otherwise ("colonoscopy") name an examination, not an image.
IMAGE_NOUNS = frozenset({"radiograph", "photograph", "B-scan", "CT", "MRI", "ultrasound", "template"})
# Kinds of label that describe how the image was made, and what to call them in a question.
ACQUISITION_KINDS = {"sequence": "MRI sequence", "acquisition": "contrast phase", "stain": "staining method"}

# Hounsfield units that black and white have in a slice of a CT volume.
WINDOW = re.compile(r"window (?P<low>-?\d+)\.\.(?P<high>-?\d+) HU")

# One in this many images also becomes such a record; the questions are easy and the images would repeat too often.
MODALITY_QUESTION_SHARE = 3
SUPER_RESOLUTION_SHARE = 4
PLANNED_SHARE = 4
WRITING_SHARE = 8
SAMPLED_SEGMENTATION_SHARE = 8


class MiniSource:
    """Reads the folder.

    Args:
        tiers: license tiers to use ("A", "B", "C").
    """

    name = NAME

    def __init__(self, tiers: Collection[str] = ("A", "B", "C")):
        self.tiers = tuple(sorted(tiers))

    def fingerprint(self, root: Path) -> str:
        """Digest of the names and sizes of the files that a build reads."""
        files = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in self._files(root, SPLITS)]
        return hashlib.sha256(json.dumps([self.tiers, files]).encode()).hexdigest()

    def records(
        self,
        root: Path,
        split: str | None = None,
        shard: tuple[int, int] = (0, 1),
        problem: Callable[[str, str], None] | None = None,
    ) -> Iterator[Record]:
        """The records of one shard, in the order of the files' rows.

        Args:
            root: the data folder.
            split: "train" or "validation"; both by default.
            shard: (index, count); every row belongs to exactly one shard.
            problem: called with the id of a row that cannot be read, and the reason; without it such a row raises.

        Raises:
            ValueError: if the folder does not have the layout.
        """
        index, count = shard
        position = 0
        for path in self._files(root, SPLITS if split is None else (split,)):
            context = _Context(path)
            for row in _rows(path):
                if position % count == index:
                    try:
                        yield from _row_records(row, context)
                    except ValueError as error:
                        if problem is None:
                            raise
                        problem(str(row["id"]), f"{path.relative_to(root).as_posix()}: {row['id']}: {error}")
                position += 1

    def _files(self, root: Path, splits: Collection[str]) -> list[Path]:
        root = Path(root)
        found = sorted(root.glob("tier_*/*/*.parquet"))
        files = [
            path for path in found if path.stem in splits and path.parents[1].name.removeprefix("tier_") in self.tiers
        ]
        if not found:
            entries = sorted(path.name for path in root.iterdir())[:5] if root.is_dir() else "no such folder"
            raise ValueError(f"{root}: expected tier_A/SOURCE/train.parquet and the like, found {entries}.")
        missing = sorted(set(self.tiers) - {path.parents[1].name.removeprefix("tier_") for path in found})
        if not files and missing:
            raise ValueError(f"{root}: expected license tiers {', '.join(self.tiers)}, found none of {missing}.")
        return files


class _Context:
    """What the rows of one file have to be compared with: labels of the source, repeated images, pair directions."""

    def __init__(self, path: Path):
        columns = ["id", "phash", "source", "label_kind", "labels", "label", "target_kind", "image"]
        self.labels: set[str] = set()
        self.directions: set[tuple[str, str]] = set()
        self.repeated: set[str] = set()
        seen: set[bytes] = set()
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64, columns=columns):
            for row in batch.to_pylist():
                self.labels.update(row["labels"] or [])
                if row["label_kind"] == "sequence":
                    self.directions.add((row["label"], _pair_name(row["target_kind"])))
                digest = hashlib.sha256(row["image"]["bytes"]).digest()
                if digest in seen:
                    self.repeated.add(row["id"])
                seen.add(digest)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=32):
        yield from batch.to_pylist()


def _one_in(share: int, row: dict[str, Any], purpose: str) -> bool:
    digest = hashlib.sha256(f"{purpose}/{row['id']}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % share == 0


def _row_records(row: dict[str, Any], context: _Context) -> Iterator[Record]:
    origin = _origin(row)
    image = _image(row, "image")
    if row["qa"]:
        for number, pair in enumerate(row["qa"]):
            extra = {"answer_type": pair["answer_type"], "official_split": pair["official_split"]}
            answered = _with_extra(origin, extra)
            yield tasks.vqa(answered, [image], pair["question"], pair["answer"], str(number))
    if row["label"]:
        yield from _label_records(row, context, origin, image)
    if row["report"]:
        yield tasks.report(origin, [image], row["report"], note=True)
        if row["label"]:
            yield tasks.note_dialogue(origin, row["report"], " and ".join(row["labels"]))
    if row["mask"] is not None:
        yield from _segmentations(row, origin, image)
    if row["target_image"] is not None:
        yield from _pairs(row, context, origin, image)
    if row["modality"] in MODALITY_NAMES and row["id"] not in context.repeated:
        yield from _descriptions(row, origin, image)


def _origin(row: dict[str, Any]) -> tasks.Origin:
    extra: dict[str, Any] = {
        name: row[name] for name in ("original_id", "submodality", "anatomy", "plane", "label") if row[name]
    }
    extra["source_id"] = row["id"]
    window = WINDOW.search(row["notes"] or "")
    if window:
        extra["window"] = [int(window["low"]), int(window["high"])]
    description = row["submodality"].partition(" (")[0].partition(",")[0]
    if row["modality"] == "RAD":
        description = "radiology image"
    elif row["label_kind"] == "sequence":
        description = f"{row['submodality']} brain MRI"
    elif description.split()[-1] not in IMAGE_NOUNS:
        description += " image"
    return tasks.Origin(
        dataset=row["source"],
        original_id=row["id"],
        group_id=row["group_id"],
        split=row["split"],
        modality=row["modality"],
        license=row["license"],
        license_tier=row["license_tier"],
        redistributable=row["redistributable"],
        provenance=row["provenance"],
        description=description,
        extra=extra,
    )


def _with_extra(origin: tasks.Origin, extra: dict[str, Any]) -> tasks.Origin:
    return tasks.Origin(**{**vars(origin), "extra": origin.extra | extra})


def _image(row: dict[str, Any], column: str) -> RecordImage:
    data = row[column]["bytes"]
    suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
    role = "" if column == "image" else f".{column.removesuffix('_image')}"
    return stored_image(data, f"{row['source']}/{row['id']}{role}.{suffix}")


def _label_records(
    row: dict[str, Any], context: _Context, origin: tasks.Origin, image: RecordImage
) -> Iterator[Record]:
    kind = _kind(row)
    if kind == "annotated cell count":
        for entry in row["labels"]:
            name, _, number = entry.partition(": ")
            yield tasks.count(origin, image, CELLS[name], int(number))
        return
    if kind in ACQUISITION_KINDS:
        if row["id"] not in context.repeated:
            yield tasks.acquisition(origin, image, ACQUISITION_KINDS[kind], row["label"])
        return
    truth = " and ".join(row["labels"])
    yield tasks.diagnosis(origin, image, truth, kind)
    positive = sorted(label for label in context.labels if label.lower() not in NEGATIVE_LABELS)
    stated = [label for label in positive if label in row["labels"]]
    absent = [label for label in positive if label not in ACCOMPANYING_LABELS and _excluded(label, row["labels"])]
    # Without a label that this one excludes the answer would always be yes.
    if stated and any(_excluded(label, stated) for label in context.labels) and not (absent and _one_in(2, row, "no")):
        asked = stated[int(origin.record_id("vqa", "presence")[:8], 16) % len(stated)]
        yield tasks.presence(origin, image, asked, truth, True, kind, LABEL_NOUNS.get(asked, ""))
    elif absent:
        asked = absent[int(origin.record_id("vqa", "presence")[:8], 16) % len(absent)]
        yield tasks.presence(origin, image, asked, truth, False, kind, LABEL_NOUNS.get(asked, ""))
    if row["source"] in LESION_SOURCES and row["label"].lower() in NEGATIVE_LABELS:
        removed = _one_in(2, row, "removed")
        yield tasks.synthetic_counterfactual(origin, image, removed=removed, bright=LESION_SOURCES[row["source"]])


def _kind(row: dict[str, Any]) -> str:
    """What the source's label is called in a question."""
    return LABEL_KINDS.get(row["label_kind"], row["label_kind"].partition(" (")[0])


def _excluded(label: str, stated: Collection[str]) -> bool:
    """Whether an image with the stated labels does not have this one; a sessile polyp is a polyp as well."""
    for other in stated:
        same = label.lower() == other.lower()
        negative = not NEGATIVE_LABELS.isdisjoint((label.lower(), other.lower()))
        words, others = set(label.lower().split()), set(other.lower().split())
        if same or (not negative and (words <= others or others <= words)):
            return False
    return True


def _segmentations(row: dict[str, Any], origin: tasks.Origin, image: RecordImage) -> Iterator[Record]:
    classes = index_mask(_image(row, "mask"))
    sampled = _one_in(SAMPLED_SEGMENTATION_SHARE, row, "sampled")
    origin = _with_extra(origin, {"mask_origin": row["mask_origin"]})
    for value, target in sorted(json.loads(row["mask_classes"]).items()):
        if (classes == int(value)).any():
            name = "nuclei region" if target == "nucleus" else target
            yield tasks.segmentation(origin, image, classes, [int(value)], name, sampled=sampled)


def _pair_name(target_kind: str) -> str:
    return target_kind.removesuffix(" MRI")


def _pairs(row: dict[str, Any], context: _Context, origin: tasks.Origin, image: RecordImage) -> Iterator[Record]:
    other = _image(row, "target_image")
    kinds = Counter(row["tasks"])
    if kinds["virtual_staining"]:
        yield tasks.virtual_staining(origin, image, other, row["target_kind"])
    if kinds["paired_restoration"]:
        yield tasks.restoration(origin, image, other, f"a {row['target_kind']}".replace("a averaged", "an averaged"))
    if kinds["paired_translation"]:
        names = (row["label"], _pair_name(row["target_kind"]))
        yield tasks.cross_modal(origin, image, other, *names)
        if names[::-1] not in context.directions:
            yield tasks.cross_modal(origin, other, image, *names[::-1])
    if kinds["segmentation_map"]:
        yield from _nuclei(origin, image, other)


def _nuclei(origin: tasks.Origin, image: RecordImage, colors: RecordImage) -> Iterator[Record]:
    """Masks from a map that shows positive nuclei in red and negative ones in blue."""
    red, _, blue = pixels_of(colors).astype(int).transpose(2, 0, 1)
    for target, classes in (("positive nuclei region", red - blue > 64), ("negative nuclei region", blue - red > 64)):
        if classes.any():
            yield tasks.segmentation(origin, image, classes.astype("uint8"), [1], target)


def _descriptions(row: dict[str, Any], origin: tasks.Origin, image: RecordImage) -> Iterator[Record]:
    """Records that need an image and its stated facts only."""
    view = VIEWS.get(row["plane"].lower(), "")
    acquired = row["label_kind"] in (*ACQUISITION_KINDS, "annotated cell count")
    finding = "" if acquired else " and ".join(row["labels"] or [])
    facts = [("modality", MODALITY_NAMES[row["modality"]]), ("image type", origin.description)]
    side = "laterality" if view.endswith("eye") else "view"
    facts += [(name, value) for name, value in (("anatomy", row["anatomy"]), (side, view)) if value]
    site = row["anatomy"] if row["anatomy"] and row["anatomy"] not in origin.description else ""
    where = ", ".join(part for part in (site, view) if part)
    facts += [(_kind(row), finding)] if finding else []

    phrase = facts_phrase(origin.description, where, finding)

    def sentence(task: str) -> str:
        modality = SHORT_NAMES[row["modality"]]
        return facts_sentence(origin.record_id(task), modality, origin.description, where, finding)

    if _one_in(MODALITY_QUESTION_SHARE, row, "modality"):
        yield tasks.acquisition(origin, image, "imaging modality", MODALITY_NAMES[row["modality"]])
    if view and _one_in(MODALITY_QUESTION_SHARE, row, "view"):
        yield tasks.acquisition(origin, image, side, view)
    yield tasks.caption(origin, [image], sentence("caption"))
    yield tasks.text_to_image(origin, image, phrase)
    if _one_in(PLANNED_SHARE, row, "planned"):
        key = origin.record_id("planned_text_to_image")
        plan = plan_from_facts(key, phrase, SHORT_NAMES[row["modality"]], facts)
        yield tasks.planned_text_to_image(origin, image, plan)
    if _one_in(WRITING_SHARE, row, "writing"):
        yield tasks.writing_dialogue(origin, facts, sentence("dialogue"))
    # What was enlarged before has no detail that a model could be trained to restore.
    enlarged = "upsampled" in (row["notes"] or "")
    if not enlarged and (row["modality"] == "MRI" or _one_in(SUPER_RESOLUTION_SHARE, row, "super_resolution")):
        scale = 2 if _one_in(2, row, "scale") else 4
        method = "k-space" if row["modality"] == "MRI" and _one_in(2, row, "k-space") else "bicubic"
        yield tasks.super_resolution(origin, image, scale, method)
