"""The same few questions twice: in their publishers' folders, and in the columns of their copies on the Hub."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
from PIL import Image, ImageDraw

from unimedvl.evaluation.harnesses.hub_sets import HUB_SETS
from unimedvl.utils.json_files import write_json

OPEN_QUESTIONS = (
    ("What imaging modality is this?", "X-ray"),
    ("Is this a chest X-ray?", "Yes"),
    ("Is there a pneumothorax? ", "no"),
    ("Which organ is shown?", "Lungs"),
    ("  Is the heart enlarged?", "No"),
    ("Where is the lesion?", "right upper lobe"),
    ("What color is the stain?", "purple"),
    ("Is this an MRI of the brain?", "yes"),
    ("How many kidneys are visible?", "2"),
    ("What is the plane of this image?", "axial"),
    ("Is the {liver} normal, as <image> shows?", "yes"),
)
# Answers other than yes and no that VQA-RAD calls closed. Its copy on the Hub does not say so.
CLOSED_ANSWERS = ("axial",)
CHOICES: tuple[tuple[str, tuple[str | None, ...], str], ...] = (
    ("What imaging technique was used?", ("PET scan", "CT scan", "Blood test", "Fundus imaging"), "Fundus imaging"),
    ("Which organ is this?", ("Heart", "Lung", None, None), "Lung"),
    ("Which modality is this image?", ("A. X-ray", "B. MRI", "C. CT", "D. Ultrasound"), "MRI"),
    ("Is there a tumor in this image?", ("Yes", "No", "", ""), "No"),
    ("What disease is shown here?", ("Pneumonia", "", "Edema", "None of these"), "Edema"),
    ("What grade does the lesion have?", ("A", "B", "C", "D"), "C"),
    ("Which stain is this?", ("Hematoxylin", "Trichrome", "PAS", "Silver"), "a stain of no option"),
    ("Which bacterium is it?", ("E. coli", "H. pylori", "S. aureus", "none"), "H. pylori"),
    ("Which bone is broken?", ("Tibia", "Femur", "Radius", "Ulna"), "Radius"),
)


def _drawn(number: int, width: int, height: int) -> Image.Image:
    """A gray body with a brighter spot on a dark ground."""
    image = Image.new("L", (width, height), 8)
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.1, width * 0.9, height * 0.9), fill=70 + 12 * number)
    place = (0.25 + 0.05 * number) % 0.7
    draw.ellipse((width * place, height * 0.4, width * (place + 0.2), height * 0.6), fill=230)
    return image


def _jpeg(number: int) -> bytes:
    """A JPEG file: gray, color, of four inks, or lying on its side by its EXIF entry."""
    gray = _drawn(number, 90 - 3 * number, 60 + 2 * number)
    mode = ("L", "RGB", "CMYK", "RGB")[number % 4]
    options: dict[str, Any] = {}
    if number % 4 == 3:
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    return _encoded(gray.convert(mode), "JPEG", **options)


def _png(number: int) -> bytes:
    """A PNG file: gray, transparent at the edge, of 16 bits, or with a palette."""
    gray = _drawn(number, 64 + 4 * number, 64)
    kind = number % 4
    if kind == 1:
        image = Image.merge("RGBA", (gray, gray, gray, gray.point(lambda level: 255 if level > 8 else 0)))
    elif kind == 2:
        image = Image.fromarray(numpy.asarray(gray).astype(numpy.uint16) * 37)
    else:
        image = gray if kind == 0 else gray.convert("P")
    return _encoded(image, "PNG")


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _vqa_rad(folder: Path) -> list[dict[str, Any]]:
    rows, copies = [], []
    for number, (question, answer) in enumerate(OPEN_QUESTIONS):
        name = f"synpic{number}.jpg"
        _write(folder / "VQA_RAD Image Folder" / name, _jpeg(number))
        rows.append(
            {
                "qid": str(number),
                "image_name": name,
                "image_organ": "CHEST",
                "phrase_type": "test_freeform",
                "answer_type": "CLOSED" if answer.lower() in ("yes", "no", *CLOSED_ANSWERS) else "OPEN",
                "question": question,
                "answer": answer,
            }
        )
        copies.append({"image": {"bytes": _jpeg(number), "path": name}, "question": question, "answer": answer})
    write_json(folder / "VQA_RAD Dataset Public.json", rows)
    return copies


def _path_vqa(folder: Path) -> list[dict[str, Any]]:
    rows, copies = [], []
    for number, (question, answer) in enumerate(OPEN_QUESTIONS):
        name = f"test_{number:04d}"
        _write(folder / "split" / "images" / "test" / f"{name}.jpg", _jpeg(number + 1))
        rows.append({"img_id": name, "label": {answer: 1}, "question_id": number, "sent": question})
        image = {"bytes": _jpeg(number + 1), "path": f"{name}.jpg"}
        copies.append({"image": image, "question": question, "answer": answer})
    _write(folder / "split" / "qas" / "test_vqa.pkl", pickle.dumps(rows))
    return copies


def _omnimedvqa(folder: Path) -> list[dict[str, Any]]:
    rows, copies = [], []
    for number, (question, options, answer) in enumerate(CHOICES):
        name = f"Images/Set/{number}.png"
        _write(folder / name, _png(number))
        about: dict[str, Any] = {"question_id": str(number), "question": question, "gt_answer": answer}
        about |= {"dataset": "Set", "question_type": "Other"}
        about |= {f"option_{letter}": option for letter, option in zip("ABCD", options, strict=True)}
        rows.append(about | {"image_path": name, "modality_type": "Fundus Photography"})
        copies.append(about | {"image": {"bytes": _png(number), "path": name}, "modality": "Fundus Photography"})
    write_json(folder / "QA_information" / "Open-access" / "Set.json", rows)
    return copies


WRITERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "vqa_rad": _vqa_rad,
    "path_vqa": _path_vqa,
    "omnimedvqa": _omnimedvqa,
}


def write_sets(root: Path) -> None:
    """Write the folders PUBLISHED/NAME, as publishers have them, and HUB/OWNER/NAME, parquet files as on the Hub."""
    for name, writer in WRITERS.items():
        copies = writer(root / "published" / name)
        table = datasets.Dataset.from_list(copies).cast_column("image", datasets.Image())
        folder = root / "hub" / HUB_SETS[name].repository / "data"
        folder.mkdir(parents=True)
        table.to_parquet(folder / "test-00000-of-00001.parquet")
