"""Sheets of images that a nano makes: from words (`--kind words`) or from images (`--kind edits`).

    python -m examples.nano.contact_sheets --model CHECKPOINT --out FILE.png
    python -m examples.nano.contact_sheets --model CHECKPOINT --out FILE.png --kind edits --work WORK [--with-inputs]

A sheet holds generated images only, one row for each prompt or kind of mask: other edits keep what they are made of,
so their results show images of the data sets. With `--with-inputs` they are there too, each kind below what was
edited and what was to be made; such a sheet is not for publishing.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image, ImageDraw
from typer import Option

from unimedvl.checkpoint.folder import open_checkpoint
from unimedvl.checkpoint.provenance import save_generated_image
from unimedvl.unimed5m.schema import Record
from unimedvl.utils.command_line import run_module

from .asking import Nano
from .evaluate import question_of, seen
from .prepare import work_records

PROMPTS = (
    "A fundus photograph",
    "An OCT image",
    "A chest X-ray",
    "A frontal chest radiograph, labeled pneumonia",
    "A CT image of chest",
    "A brain MRI, labeled glioma tumor",
    "A brain MRI, labeled no tumor",
    "A T2 brain MRI",
    "An MRI image of hippocampus",
    "An ultrasound image of fetal head",
    "A colonoscopy image, labeled polyp",
    "An H&E histopathology image, lung, labeled lung adenocarcinoma",
    "An H&E histopathology image, lung, labeled benign lung tissue",
    "A blood smear light microscopy image",
)
# Caption, task, part of the training split ("validation": held out from training), and what `extra` must hold.
EDITS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "Counterfactual, synthetic pairs: a lesion added (held out)",
        "counterfactual",
        "validation",
        {"change": "added"},
    ),
    (
        "Counterfactual, synthetic pairs: removed (held out)",
        "counterfactual",
        "validation",
        {"change": "removed"},
    ),
    ("Virtual staining, bladder (trained on)", "virtual_staining", "train", {}),
    ("Between MRI sequences, to FLAIR (trained on)", "cross_modal", "train", {"target": "FLAIR"}),
    ("Segmentation of polyps (held out)", "segmentation", "validation", {"target": "polyp"}),
    ("Segmentation of fetal heads (held out)", "segmentation", "validation", {"target": "fetal head"}),
    ("Segmentation of optic discs (held out)", "segmentation", "validation", {"target": "optic disc"}),
    ("Segmentation of nuclei (held out)", "segmentation", "validation", {"target": "nuclei region"}),
)
COLUMNS, SCALE, CAPTION, MARGIN = 8, 2, 18, 4


def draw_rows(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """A sheet with a caption above each row of images."""
    side = max(max(image.size) for _, images in rows for image in images) * SCALE
    height = CAPTION + side + MARGIN
    sheet = Image.new("RGB", (MARGIN + COLUMNS * (side + MARGIN), len(rows) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (caption, images) in enumerate(rows):
        pen.text((MARGIN, number * height + 3), caption, fill="black")
        for column, image in enumerate(images):
            place = (MARGIN + column * (side + MARGIN), number * height + CAPTION)
            size = (image.width * SCALE, image.height * SCALE)
            sheet.paste(image.resize(size, Image.Resampling.NEAREST), place)
    return sheet


def contact_sheet(nano: Nano, seed: int = 0) -> Image.Image:
    """One row of generated images for each of `PROMPTS`."""
    made = nano.draw([prompt for prompt in PROMPTS for _ in range(COLUMNS)], "t2i", seed=seed)
    return draw_rows([(prompt, made[n * COLUMNS : (n + 1) * COLUMNS]) for n, prompt in enumerate(PROMPTS)])


def _fits(record: Record, task: str, wanted: dict[str, str]) -> bool:
    if record.sub_task_type != task:
        return False
    extra = json.loads(record.extra)
    return all(extra.get(name) == value for name, value in wanted.items())


def edit_sheet(nano: Nano, work: Path, with_inputs: bool = False, seed: int = 0) -> Image.Image:
    """One row of masks for each of `EDITS` that the records of `work` hold.

    Args:
        work: folder that `prepare` has filled.
        with_inputs: also show what was edited and what was to be made, and the edits that are no masks.
    """
    records = {split: list(work_records(work, split)) for split in ("train", "validation")}
    rows: list[tuple[str, Sequence[Image.Image]]] = []
    for caption, task, split, wanted in EDITS:
        if task != "segmentation" and not with_inputs:
            continue
        fitting = [record for record in records[split] if _fits(record, task, wanted)]
        chosen = fitting[:: max(1, len(fitting) // COLUMNS)][:COLUMNS]
        if not chosen:
            continue
        inputs = [seen(record.input_img[0]) for record in chosen]
        made = nano.draw([question_of(record) for record in chosen], task, inputs, seed)
        if with_inputs:
            rows.append((f"{caption}: input", inputs))
            rows.append((f"{caption}: to be made", [seen(record.output_img[0]) for record in chosen]))
        rows.append((caption, made))
    if not rows:
        raise ValueError(f"{work} holds no record of an edit.")
    return draw_rows(rows)


def main(
    model: Annotated[str, Option(help="Checkpoint folder.")],
    out: Annotated[Path, Option(help="The sheet (PNG).")],
    kind: Annotated[Literal["words", "edits"], Option(help="What is drawn.")] = "words",
    work: Annotated[Path | None, Option(help="Work folder of `prepare`, for edits.")] = None,
    with_inputs: Annotated[
        bool, Option("--with-inputs", help="Show the data sets' images too, and all edits; not for publishing.")
    ] = False,
    seed: int = 0,
) -> None:
    if kind == "edits" and work is None:
        raise ValueError("give the folder of the records with --work.")
    if out.suffix != ".png":
        raise ValueError(f"{out} is no name of a PNG: choose one that ends in .png.")
    nano, checkpoint = Nano(model), open_checkpoint(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "edits":
        assert work is not None
        sheet = edit_sheet(nano, work, with_inputs, seed)
    else:
        sheet = contact_sheet(nano, seed)
    save_generated_image(
        sheet,
        out,
        overwrite=True,
        composite=with_inputs,
        model=checkpoint.name,
        revision=checkpoint.revision,
        seed=seed,
        settings=nano.model.generation_config.task_presets,
    )


if __name__ == "__main__":
    sys.exit(run_module(main))
