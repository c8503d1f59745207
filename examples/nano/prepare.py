"""What the nano's curriculum starts from: its records, its tokenizer and a checkpoint of untrained weights.

    python -m examples.nano.prepare --records BUILT --out WORK --autoencoder FOLDER [--vision FOLDER]

BUILT holds the records of `unimedvl data build --source unimed-mini`. WORK receives `records` (small images, short
answers; `train` and, as its `validation` split, the part of BUILT's training split that is held out by group for
choices), `tokenizer`, and `start`, the first stage's checkpoint. BUILT's validation split is never read.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy
import pyarrow.parquet as parquet
from PIL import Image
from typer import Option

from unimedvl.processing.image_processing_unimedvl import reference_size
from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, Record, RecordImage, Turn, from_table, to_table
from unimedvl.unimed5m.shards import batches, shard_paths, write_table
from unimedvl.unimed5m.task_images import drawn_image, pixels_of, shown_image
from unimedvl.unimed5m.templates.words import MODALITY_NAMES
from unimedvl.utils.claims import claim_folder
from unimedvl.utils.command_line import run_module
from unimedvl.utils.digests import hash_file
from unimedvl.utils.json_files import read_json

from .captions import (
    GRADED,
    REFERABLE_QUESTION,
    detailed_prompt,
    finding_of,
    label_of,
    number_of,
    plain_prompt,
    referable,
)
from .contrasts import CALLED, NOT_MEDICAL, Facts, contrast_records
from .model import SIDE, UNIT, VISION_FILE, image_transform
from .not_medical import not_medical_images
from .start import prepare_start
from .tokenizer import train_tokenizer
from .windows import views_of

# The demonstrations show images from these, so no nano checkpoint may have seen them.
EXCLUDED_SOURCES = ("skimage", "mni152-2009a")
TIERS = ("A", "B")
# Room for crops: images are kept larger than the model reads them by this factor.
MARGIN = 1.375
# One in so many groups of a source is held out for choices; sources of few groups are needed whole.
HELD_OUT_SHARE = 16
FEWEST_GROUPS = 25
# All questions about one image are also asked in a row, in so many orders, at most so many in each.
CONVERSATION_ORDERS = 4
LONGEST_CONVERSATION = 6
ASKED_TASKS = ("modality", "diagnosis", "referable", "vqa", "caption", "contrast")
SUPER_RESOLUTION = 4
# Masks of fewer white pixels in the nano's size, such as those of microaneurysms, are left out.
FEWEST_MASK_PIXELS = 8

MODALITY_QUESTIONS = (
    "What imaging modality is this?",
    "Which imaging modality is shown?",
    "What kind of image is this?",
    "Which modality was used?",
    "Name the imaging modality.",
    "What is the modality of this image?",
)


def small_image(source_image: RecordImage, factor: float) -> RecordImage:
    """The image with `factor` times the sides that the model reads, as PNG."""
    if not source_image.width:
        raise ValueError(f"{source_image.path} has no size: build the records again.")
    width, height = reference_size(source_image.width, source_image.height, **image_transform(UNIT))
    image = Image.fromarray(pixels_of(source_image))
    image = image.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
    return drawn_image(numpy.asarray(image), f"{source_image.path}.{factor:g}.png")


def small(record: Record, factor: float = MARGIN) -> Record:
    """The record with small images."""
    shrunk = {name: tuple(small_image(item, factor) for item in getattr(record, name)) for name in IMAGES}
    return record.replace(**shrunk)


IMAGES = ("input_img", "output_img")


def _origin(record: Record, extra: dict) -> tasks.Origin:
    return tasks.Origin(
        dataset=record.dataset,
        original_id=extra["source_id"],
        group_id=record.group_id,
        split=record.split,
        modality=record.modality,
        license=record.license,
        redistributable=record.redistributable,
        provenance=record.provenance,
        description=extra["submodality"].partition(" (")[0].partition(",")[0],
        license_tier=record.license_tier,
        extra={name: extra[name] for name in ("source_id", "anatomy", "label") if name in extra},
    )


def _answered(record: Record, answer: str) -> Record:
    return record.replace(message=(*record.message[:-1], Turn("gpt", answer)))


def nano_records(record: Record) -> Iterator[Record]:
    """What the nano is trained on of one built record: small images and answers of few words.

    Answers of labels and of yes-or-no questions are the label and the word alone, images are made without a sentence
    beside them. Every image with a stated modality also becomes a question for it, in other windows too, requests in
    plain words and with all that is known, and a pair for super-resolution at the nano's own size (the built pairs
    are sharper than the nano can see). A grade of diabetic retinopathy also becomes a question whether to refer.
    """
    extra = json.loads(record.extra)
    task = record.sub_task_type
    if task in ("super_resolution", "restoration", "report"):
        return
    shrunk = small(record)
    if task == "diagnosis":
        yield _answered(shrunk, label_of(record.dataset, extra))
        refer = referable(extra["label"]) if record.dataset == GRADED else None
        if refer is not None:
            asked = Turn("human", f"{IMAGE_PLACEHOLDER}\n{REFERABLE_QUESTION}")
            answer = Turn("gpt", "yes" if refer else "no")
            yield shrunk.replace(id=f"{record.id}-referable", sub_task_type="referable", message=(asked, answer))
    elif task == "vqa" and "answer" in extra:
        yield _answered(shrunk, str(extra["answer"]))
    elif task == "segmentation" and not _is_visible(record):
        return
    elif task in ("segmentation", "cross_modal", "virtual_staining"):
        yield _answered(shrunk, IMAGE_PLACEHOLDER)
    elif task == "text_to_image":
        yield _answered(shrunk, IMAGE_PLACEHOLDER)
        yield from _shown(record, shrunk, extra)
    else:
        yield shrunk


def _is_visible(record: Record) -> bool:
    """Whether anything of the mask is left at the size in which the nano draws it."""
    return bool((pixels_of(small_image(record.output_img[0], 1.0)) > 127).sum() >= FEWEST_MASK_PIXELS)


def _shown(record: Record, shrunk: Record, extra: dict) -> Iterator[Record]:
    plain = (Turn("human", plain_prompt(record, extra)), Turn("gpt", IMAGE_PLACEHOLDER))
    yield shrunk.replace(id=f"{record.id}-plain", message=plain)
    (image,) = shrunk.output_img
    detailed = (Turn("human", detailed_prompt(record, extra, pixels_of(image))), Turn("gpt", IMAGE_PLACEHOLDER))
    yield shrunk.replace(id=f"{record.id}-detailed", message=detailed)
    origin = _origin(record, extra)
    yield _modality_question(record, origin, image)
    exact = small(record, 1.0).output_img[0]
    sharpened = tasks.super_resolution(origin, exact, SUPER_RESOLUTION, "bicubic")
    yield _answered(sharpened, IMAGE_PLACEHOLDER)
    yield from _windows(record, shrunk, extra)


def _modality_question(record: Record, origin: tasks.Origin, image: RecordImage, view: str = "") -> Record:
    asked = tasks.acquisition(origin, image, "imaging modality", MODALITY_NAMES[record.modality])
    question = asked.message[0].value
    number = number_of(f"modality{view}/{record.id}")
    if number % 2:
        question = f"{IMAGE_PLACEHOLDER}\n{MODALITY_QUESTIONS[number // 2 % len(MODALITY_QUESTIONS)]}"
    message = (Turn("human", question), Turn("gpt", MODALITY_NAMES[record.modality]))
    # The built question of one image in three has the id of this one; a name of its own keeps ids unique.
    return asked.replace(id=f"{asked.id}-modality{view}", sub_task_type="modality", message=message)


def _windows(record: Record, shrunk: Record, extra: dict) -> Iterator[Record]:
    """Questions about the image in other windows, and requests for it in those that have a name."""
    (image,) = record.output_img
    stored = extra.get("window")
    views = views_of(pixels_of(image), record.modality, stored, number_of(f"window/{record.id}"))
    for name, pixels in views:
        suffix = f"-{name.replace(' ', '-')}"
        view = small_image(drawn_image(pixels, f"{image.path}{suffix}.png"), MARGIN)
        yield _modality_question(record, _origin(record, extra), view, suffix)
        if stored:
            prompt = detailed_prompt(record, extra | {"view": name}, pixels)
            message = (Turn("human", prompt), Turn("gpt", IMAGE_PLACEHOLDER))
            yield shrunk.replace(id=f"{record.id}{suffix}-detailed", output_img=(view,), message=message)


def conversations(records: list[Record], orders: int = CONVERSATION_ORDERS) -> Iterator[Record]:
    """All questions about one image in one record, in several orders: most tokens of a question are its image's.

    Args:
        records: those of one image, each of one question and its answer.
        orders: records to make; one for a single question would repeat it.
    """
    if len(records) < 2:
        return
    for order in range(orders):
        draw = numpy.random.default_rng(number_of(f"{records[0].id}/{order}"))
        chosen = [records[index] for index in draw.permutation(len(records))][:LONGEST_CONVERSATION]
        turns = [
            Turn(turn.role, turn.value.replace(IMAGE_PLACEHOLDER, "").strip()) for r in chosen for turn in r.message
        ]
        turns[0] = Turn("human", f"{IMAGE_PLACEHOLDER}\n{turns[0].value}")
        yield records[0].replace(
            id=f"{records[0].id}-conversation-{order}", sub_task_type="conversation", message=tuple(turns)
        )


def not_medical_records(split: str) -> Iterator[Record]:
    """The question for the modality of images that have none."""
    for origin, image in not_medical_images(round(SIDE * MARGIN), split):
        asked = tasks.acquisition(origin, image, "imaging modality", NOT_MEDICAL)
        question = MODALITY_QUESTIONS[number_of(f"modality/{asked.id}") % len(MODALITY_QUESTIONS)]
        message = (Turn("human", f"{IMAGE_PLACEHOLDER}\n{question}"), Turn("gpt", NOT_MEDICAL))
        yield asked.replace(id=f"{asked.id}-modality", sub_task_type="modality", message=message)


def facts_of(records: Iterable[Record]) -> list[Facts]:
    """What is known of the input image of each record, which is one for each image."""
    found = []
    for record in records:
        anatomy = json.loads(record.extra).get("anatomy", "")
        modality = record.modality if record.modality in CALLED else ""
        found.append(Facts(record, modality, anatomy, finding_of(record), record.dataset))
    return found


def _held_out(record: Record, groups: dict[str, set[str]]) -> bool:
    if len(groups[record.dataset]) < FEWEST_GROUPS:
        return False
    return number_of(f"held out/{record.dataset}/{record.group_id}") % HELD_OUT_SHARE == 0


def read_records(folder: str | Path, split: str) -> Iterator[Record]:
    """The built records of a split that a nano may see, or be asked about."""
    for path in shard_paths(folder):
        for table in batches(path):
            for row in table.to_pylist():
                wanted = row["split"] == split and row["license_tier"] in TIERS
                if wanted and row["dataset"] not in EXCLUDED_SOURCES:
                    yield Record.from_row(row)


def shard_of(records: Path, split: str) -> Path:
    """The one file of a split of the nano's records."""
    return records / "data" / f"{split}-00000-of-00001.parquet"


def work_records(work: Path, split: str) -> Iterator[Record]:
    """What `prepare` has written: "train", or "validation", the part of the training split that no training saw.

    Raises:
        ValueError: where it has written nothing.
    """
    shard = shard_of(work / "records", split)
    if not shard.is_file():
        raise ValueError(f"{work} holds no records of a nano: run `python -m examples.nano.prepare` first.")
    for table in batches(shard):
        yield from from_table(table)


def record_digests(work: Path) -> dict[str, str]:
    """SHA-256 of what `prepare` has written, by split."""
    return {split: hash_file(shard_of(work / "records", split)) for split in ("train", "validation")}


def is_image_request(record: Record) -> bool:
    """Whether this is the one record of an image that states what it shows: its built request."""
    return record.sub_task_type == "text_to_image" and not record.id.endswith(("-plain", "-detailed"))


def keep_start(work: Path, out: Path) -> None:
    """Make `out` and note there which untrained checkpoint its runs start from.

    Raises:
        ValueError: if there is none, or if runs in `out` started from another.
    """
    start = work / "start" / "model.safetensors"
    if not start.is_file():
        raise ValueError(
            f"{work} holds no untrained checkpoint: run `python -m examples.nano.prepare` with --autoencoder first."
        )
    words = {"sha256": f"the untrained checkpoint, here {work / 'start'}"}
    claim_folder(out, {"sha256": hash_file(start)}, mark="start.json", kind="series of runs", words=words)


def prepare_records(built: str | Path, folder: Path) -> dict[str, int]:
    """Write the nano's records; returns how many of each task."""
    groups: dict[str, set[str]] = {}
    for path in shard_paths(built):
        table = parquet.read_table(path, columns=["dataset", "group_id", "split"])
        for row in table.filter(table["split"].to_numpy() == "train").to_pylist():
            groups.setdefault(row["dataset"], set()).add(row["group_id"])
    made: dict[str, list[Record]] = {"train": [], "validation": []}
    for record in read_records(built, "train"):
        split = "validation" if _held_out(record, groups) else "train"
        made[split] += [derived.replace(split=split) for derived in nano_records(record)]
    for split, records in made.items():
        records += not_medical_records(split)
        records += contrast_records(facts_of(r for r in records if r.sub_task_type == "modality"))
    asked: dict[tuple[str, str], list[Record]] = {}
    for record in made["train"]:
        if record.sub_task_type in ASKED_TASKS:
            asked.setdefault((record.dataset, record.input_img[0].sha256), []).append(record)
    talks = [record for records in asked.values() for record in conversations(sorted(records, key=lambda r: r.id))]
    made["train"] += talks
    for split, records in made.items():
        records.sort(key=lambda record: record.id)
        write_table(shard_of(folder, split), to_table(records))
    counts = Counter(f"{split}/{record.sub_task_type}" for split, records in made.items() for record in records)
    return dict(sorted(counts.items()))


def texts(folder: Path) -> list[str]:
    """Every text of the training records, for the tokenizer."""
    table = parquet.read_table(shard_of(folder, "train"), columns=["message"])
    turns = (turn["value"] for row in table.to_pylist() for turn in row["message"])
    return [turn.replace(IMAGE_PLACEHOLDER, "").strip() for turn in turns]


def image_of(record: Record) -> Image.Image:
    """The first image that the record makes or shows, in RGB."""
    return shown_image((*record.output_img, *record.input_img)[0])


def main(
    records: Annotated[str, Option(help="Folder of built unimed-mini records.")],
    out: Annotated[Path, Option(help="Work folder.")],
    autoencoder: Annotated[
        str | None, Option(help="Folder of a trained autoencoder, or a checkpoint that holds one.")
    ] = None,
    vision: Annotated[Path | None, Option(help="Folder of a pre-trained ViT (examples/nano/vision.py).")] = None,
    vocabulary: int = 2048,
    seed: int = 0,
) -> None:
    started = time.perf_counter()
    if vision is not None and not autoencoder:
        raise ValueError("a start with --vision needs --autoencoder too.")
    if autoencoder:
        # Wrong folders are reported before the work.
        read_json(Path(autoencoder) / "config.json")
        if vision is not None and not (vision / VISION_FILE).is_file():
            raise ValueError(f"{vision} holds no pre-trained ViT: see examples/nano/vision.py.")
    if not shard_of(out / "records", "validation").exists():  # the last file that is written
        counts = prepare_records(records, out / "records")
        print(json.dumps(counts), f"{time.perf_counter() - started:.0f} s", flush=True)
    if not (out / "tokenizer" / "tokenizer.json").exists():
        entries = len(train_tokenizer(texts(out / "records"), out / "tokenizer", vocabulary))
        print(f"tokenizer: {entries} entries", flush=True)
    if autoencoder:
        size = prepare_start(out, autoencoder, vision, seed)
        print(f"start: {size} parameters of side {SIDE} in {out / 'start'}", flush=True)


if __name__ == "__main__":
    sys.exit(run_module(main))
