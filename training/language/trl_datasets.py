"""Records as what tuning reads: TRL's conversational data sets, and examples of images to make."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, Record, RecordImage, features
from unimedvl.unimed5m.task_images import shown_image
from unimedvl.unimed5m.templates.words import MODALITY_NAMES
from unimedvl.unimed5m.trainable import check_trainable

from ..data.dataset import EmptyGroupError, published_paths

METHODS = ("sft", "dpo", "grpo")
MODALITY_QUESTION = "What imaging modality is this?"


def read_records(
    folder: str | Path,
    tasks: Sequence[str] = (),
    sources: Sequence[str] = (),
    split: str = "train",
    limit: int | None = None,
) -> list[Record]:
    """Records of a built or published folder.

    Args:
        tasks, sources: values of `sub_task_type` and `dataset` to keep; all if empty.
        split: "train", "validation" or "test".
        limit: keep that many, chosen by their ids and so the same ones in every process; all if None.

    Raises:
        EmptyGroupError: if none is left, with what the folder holds.
    """
    paths = [str(path) for path in published_paths(folder, split)]
    rows = datasets.Dataset.from_parquet(paths, features=features(decode=False))
    kept = [
        index
        for index, (task, source, part) in enumerate(
            zip(rows["sub_task_type"], rows["dataset"], rows["split"], strict=True)
        )
        if (not tasks or task in tasks) and (not sources or source in sources) and part == split
    ]
    if not kept:
        held = Counter(zip(rows["split"], rows["sub_task_type"], strict=True))
        raise EmptyGroupError("", folder, split, held)
    if limit is not None:
        ids = rows["id"]
        kept = sorted(sorted(kept, key=lambda index: _digest(ids[index]))[:limit])
    return [Record.from_row(row) for row in rows.select(kept)]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def conversation(record: Record) -> list[dict[str, Any]]:
    """The messages of an understanding record in TRL's form, with a place for each image where the record has it; the
    images themselves are in the column `images`.

    Raises:
        ValueError: if the record makes images, which language tuning cannot use, or has a turn without a text.
    """
    if record.output_img:
        raise ValueError(f"{record.id} makes an image; language tuning takes records whose answers are text.")
    check_trainable(record)
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    placed = any(IMAGE_PLACEHOLDER in turn.value for turn in record.message)
    waiting = [] if placed else [{"type": "image"}] * len(record.input_img)
    messages = []
    for turn in record.message:
        content: list[dict[str, str]] = []
        if turn.role == "human":
            content, waiting = waiting, []
        for number, piece in enumerate(turn.value.split(IMAGE_PLACEHOLDER)):
            content += [{"type": "image"}] * (number > 0)
            content += [{"type": "text", "text": piece.strip()}] * bool(piece.strip())
        messages.append({"role": roles[turn.role], "content": content})
    return messages


def _bytes(record: Record, image: RecordImage) -> bytes:
    if image.data is None:
        raise ValueError(f"{record.id} has no image data ({image.path}): relink the published records first.")
    return image.data


def generation_examples(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Records that make one image as the examples of Flow-GRPO.

    Returns:
        Dicts with `prompt`, `images` (RGB inputs), `reference` (the record's own image, RGB), `label` (its modality's
        code), and `question` and `answer` about the modality where the record states it.

    Raises:
        ValueError: for a record that makes no image or several, or has more than one question.
    """
    examples = []
    for record in records:
        if len(record.output_img) != 1 or len(record.message) != 2:
            raise ValueError(f"{record.id} is not one instruction for one image: choose other tasks.")
        inputs, (output,) = (
            [shown_image(image) for image in images] for images in (record.input_img, record.output_img)
        )
        example = {
            "prompt": record.message[0].value.replace(IMAGE_PLACEHOLDER, "").strip(),
            "images": inputs,
            "reference": output,
            "label": record.modality,
        }
        if record.modality in MODALITY_NAMES:
            example |= {"question": MODALITY_QUESTION, "answer": MODALITY_NAMES[record.modality]}
        examples.append(example)
    return examples


def _wrong_answers(records: Sequence[Record]) -> Iterator[str | None]:
    """For every record the answer of another one of its source and task, chosen by its id; None where all agree."""
    answers: dict[tuple[str, str], list[str]] = {}
    for record in records:
        answers.setdefault((record.dataset, record.sub_task_type), []).append(record.message[-1].value)
    distinct = {key: sorted(set(values)) for key, values in answers.items()}
    for record in records:
        own = record.message[-1].value
        others = [text for text in distinct[record.dataset, record.sub_task_type] if text != own]
        yield others[int.from_bytes(_digest(record.id)[:8], "big") % len(others)] if others else None


def conversation_data(records: Iterable[Record], method: str) -> datasets.Dataset:
    """Understanding records as the data set that a TRL trainer reads.

    Args:
        records: those that make images raise an error.
        method: "sft" gives the columns `images`, `messages`; "dpo" `images`, `prompt`, `chosen`, `rejected`, where the
            rejected answer is another record's of the same source and task; "grpo" `images`, `prompt`, `answer`.

    Raises:
        ValueError: for an unknown method, or if no record is left.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
    records = list(records)
    rows = []
    for record, wrong in zip(records, _wrong_answers(records), strict=True):
        messages = conversation(record)
        images = [{"bytes": _bytes(record, image), "path": None} for image in record.input_img]
        row: dict[str, Any] = {"images": images}
        if method == "sft":
            row["messages"] = messages
        else:
            row["prompt"], answer = messages[:-1], messages[-1]
            if method == "grpo":
                row["answer"] = answer["content"][0]["text"]
            elif wrong is None:
                continue
            else:
                row |= {
                    "chosen": [answer],
                    "rejected": [{"role": "assistant", "content": [{"type": "text", "text": wrong}]}],
                }
        rows.append(row)
    if not rows:
        raise ValueError("No record is left to train on: every source and task has a single answer.")
    data = datasets.Dataset.from_list(rows)
    return data.cast_column("images", datasets.List(datasets.Image()))
