"""Rows of the mini data set, the words asked about them, and the pictures made from them.

The data folder holds one parquet file per source and split, `tier_A/<source>/<split>.parquet` and
`tier_B/<source>/<split>.parquet`. The sources in `EXCLUDED_SOURCES` stay out of every nano checkpoint, because the
demonstrations show pictures from them.
"""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet
from PIL import Image

EXCLUDED_SOURCES = ("skimage", "mni152-2009a")

MODALITY_NAMES = {
    "CFP": "Colour fundus photography",
    "CT": "Computed tomography (CT)",
    "CXR": "Chest X-ray (radiograph)",
    "ENDO": "Endoscopy (colonoscopy)",
    "HIS": "Histopathology (microscopy)",
    "MRI": "Magnetic resonance imaging (MRI)",
    "OCT": "Optical coherence tomography (OCT)",
    "US": "Ultrasound (sonography)",
}
"""What the nano answers to a question about the modality, by the modality code of the data."""

MODALITY_WORDS = {
    "CFP": ("fundus",),
    "CT": ("computed tomography", "(ct)"),
    "CXR": ("x-ray", "radiograph"),
    "ENDO": ("endoscopy", "colonoscopy"),
    "HIS": ("histopathology", "microscopy"),
    "MRI": ("magnetic resonance", "mri"),
    "OCT": ("coherence",),
    "US": ("ultrasound", "sonography"),
}
"""Lower-case words that name a modality in an answer; an answer names the modality if it holds one of its words and
none of another modality's."""

MODALITY_NOUNS = (
    "imaging modality",
    "modality",
    "imaging technique",
    "imaging method",
    "medical imaging modality",
    "type of imaging",
    "type of scan",
    "type of medical image",
    "kind of image",
    "kind of scan",
)
MODALITY_QUESTIONS = (
    "What {noun} is this?",
    "What {noun} is this image?",
    "What {noun} is shown?",
    "What {noun} is shown in this picture?",
    "What {noun} was used?",
    "What {noun} is depicted here?",
    "Which {noun} is this?",
    "Which {noun} is it?",
    "Which {noun} do you see?",
    "Which {noun} was used to take this image?",
    "Which {noun} produced this picture?",
    "What is the {noun}?",
    "What is the {noun} of this image?",
    "With which {noun} was this image taken?",
    "Name the {noun}.",
    "Identify the {noun} of this picture.",
    "State the {noun} of the image.",
    "Tell me the {noun} of this medical image.",
    "Can you say which {noun} this is?",
    "Please name the {noun}.",
)
HELD_OUT_MODALITY_QUESTIONS = (
    "Which imaging modality can be seen here?",
    "What modality was used to acquire this picture?",
    "By which imaging technique was this medical image made?",
)
"""Phrasings that no training sample uses; the evaluation asks them too."""

LABEL_QUESTIONS = (
    "What is the diagnosis?",
    "What is the finding in this image?",
    "Which diagnosis fits this image?",
    "What finding is seen here?",
    "What does this image show?",
    "Is there a disease, and which?",
)
"""Asked where the label column states a diagnosis or finding: not of the sources in `SOURCE_SUBJECTS`."""

MODALITY_PHRASES = {
    "CFP": ("a colour fundus photograph",),
    "CT": ("a CT scan", "a computed tomography image"),
    "CXR": ("a chest X-ray", "a chest radiograph"),
    "ENDO": ("an endoscopy image", "a colonoscopy image"),
    "HIS": ("a histopathology image", "a microscopy image"),
    "MRI": ("an MRI scan", "a magnetic resonance image"),
    "OCT": ("an OCT scan", "an optical coherence tomography image"),
    "US": ("an ultrasound image", "a sonogram"),
    "RAD": ("a radiology image",),
}

SOURCE_SUBJECTS = {
    "bccd": ("a blood smear",),
    "hc18": ("a fetal head", "the head of a fetus"),
    "kvasir-seg": ("a polyp", "a polyp in the colon"),
    "msd-hippocampus": ("the hippocampus",),
    "tcga-lung-ct": ("the chest", "the lungs"),
    "totalsegmentator-example": ("the abdomen",),
    "monuseg": ("tissue with nuclei", "cell nuclei"),
    "deepliif-sample": ("bladder tissue with an immunohistochemistry stain",),
    "tcia-brain-tumor-progression": ("a brain tumor",),
}
"""What a picture shows, for sources whose label column does not say it in words."""

GENERATION_TEMPLATES = (
    "{phrase} showing {subject}.",
    "{phrase} of {subject}.",
    "Generate {phrase} showing {subject}.",
    "Create {phrase} of {subject}.",
    "{phrase} with {subject}.",
    "Synthesize {phrase} showing {subject}.",
)
BARE_GENERATION_TEMPLATES = ("{phrase}.", "Generate {phrase}.", "Create {phrase}.", "Draw {phrase}.", "{phrase}")

SEGMENTATION_TEMPLATES = (
    "Segment the {name}.",
    "Segment the {name} in this image.",
    "Draw the mask of the {name}.",
    "Generate a segmentation mask of the {name}.",
)
SUPER_RESOLUTION_TEMPLATES = (
    "Increase the resolution of this image.",
    "Upscale this image four times.",
    "Super-resolve this image.",
    "Make this blurred image sharp.",
)
RECONSTRUCTION_TEMPLATES = ("Reconstruct this image.", "Reproduce the image.", "Copy this image.")
TRANSLATION_TEMPLATES = (
    "Translate this image into {target}.",
    "Synthesize {target} from this image.",
    "Turn this image into {target}.",
)


@dataclass
class Row:
    """One row of the data with its pictures decoded.

    `image` and `target` (paired target) are RGB PIL images of one size; `mask` holds class indices in the same size,
    resized without interpolation; `mask_classes` maps an index to its name.
    """

    image: Image.Image
    modality: str
    source: str
    label: str = ""
    submodality: str = ""
    target: Image.Image | None = None
    target_kind: str = ""
    mask: Image.Image | None = None
    mask_classes: dict[int, str] = field(default_factory=dict)
    report: str = ""
    questions: list[tuple[str, str]] = field(default_factory=list)

    def subjects(self) -> tuple[str, ...]:
        """Words for what the picture shows, empty when the source does not state it."""
        if self.source in SOURCE_SUBJECTS:
            return SOURCE_SUBJECTS[self.source]
        return (self.label,) if self.label else ()

    def mask_images(self) -> list[tuple[str, Image.Image]]:
        """One `(class name, white-on-black RGB picture)` for each class that covers at least one pixel."""
        if self.mask is None:
            return []
        indices = np.asarray(self.mask)
        pictures = []
        for index, name in self.mask_classes.items():
            if (indices == index).any():
                white = Image.fromarray(np.where(indices == index, 255, 0).astype(np.uint8))
                pictures.append((name, white.convert("RGB")))
        return pictures


def _rgb(cell: dict) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"])).convert("RGB")


def _indices(cell: dict) -> Image.Image:
    return Image.fromarray(np.asarray(Image.open(io.BytesIO(cell["bytes"]))))


def _asks_for_modality(question: str) -> bool:
    # VQA-RAD's pictures come without a stated modality, and its terse answers would compete with `MODALITY_NAMES`.
    about = ("modality", "type of im", "kind of im", "kind of scan", "image taken")
    return any(words in question.lower() for words in about)


def load_rows(data: str | Path, split: str, short_side: int | None = None) -> list[Row]:
    """Read every row of tiers A and B of `split` ("train" or "validation") except the excluded sources, in file order.

    With `short_side` the pictures are scaled (bicubic) until their shorter side has so many pixels, to save memory and
    time. Raises ValueError when the folder holds no such file.
    """
    files = sorted(file for tier in ("tier_A", "tier_B") for file in Path(data).glob(f"{tier}/*/{split}.parquet"))
    files = [file for file in files if file.parent.name not in EXCLUDED_SOURCES]
    if not files:
        raise ValueError(f"{data} holds no tier_A/*/{split}.parquet: pass the folder of the mini data set with --data")
    rows = []
    for file in files:
        for record in pyarrow.parquet.read_table(file).to_pylist():
            image = _rgb(record["image"])
            scale = short_side / min(image.size) if short_side else 1.0
            size = (round(image.width * scale), round(image.height * scale))
            target, mask = record["target_image"], record["mask"]
            classes = json.loads(record["mask_classes"]) if record["mask_classes"] else {}
            rows.append(
                Row(
                    image=image.resize(size, Image.BICUBIC),
                    modality=record["modality"],
                    source=record["source"],
                    label=record["label"] or "",
                    submodality=record["submodality"] or "",
                    target=_rgb(target).resize(size, Image.BICUBIC) if target else None,
                    target_kind=record["target_kind"] or "",
                    mask=_indices(mask).resize(size, Image.NEAREST) if mask else None,
                    mask_classes={int(index): name for index, name in classes.items()},
                    report=record["report"] or "",
                    questions=[
                        (pair["question"], pair["answer"])
                        for pair in record["qa"] or []
                        if not _asks_for_modality(pair["question"])
                    ],
                )
            )
    return rows


def corpus(rows: list[Row]) -> list[str]:
    """Every text the nano is asked, answers or is told in training, for the tokenizer."""
    texts = [
        *MODALITY_NOUNS,
        *MODALITY_QUESTIONS,
        *LABEL_QUESTIONS,
        *MODALITY_NAMES.values(),
        *RECONSTRUCTION_TEMPLATES,
    ]
    texts += [*SUPER_RESOLUTION_TEMPLATES, *SEGMENTATION_TEMPLATES]
    texts += [*GENERATION_TEMPLATES, *TRANSLATION_TEMPLATES]
    texts += [phrase for phrases in MODALITY_PHRASES.values() for phrase in phrases]
    for row in rows:
        texts += [row.label, row.submodality, row.report, row.target_kind, *row.subjects(), *row.mask_classes.values()]
        texts += [MODALITY_NAMES.get(row.modality, ""), *MODALITY_PHRASES[row.modality]]
        texts += [text for pair in row.questions for text in pair]
    return [text for text in texts if text]
