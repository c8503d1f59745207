"""A sample: what a model is asked, and what its answer is compared with. Made from a record of UniMed-5M."""

import dataclasses
import hashlib
import json
from typing import Any

from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, Record, RecordImage
from unimedvl.unimed5m.task_images import shown_image
from unimedvl.unimed5m.templates import choose

from .metrics.answers import kind_of

# Roles of records -> those of chat templates.
CHAT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_MARK = "\ufdd2"


@dataclasses.dataclass(frozen=True)
class Task:
    """What a kind of record asks for.

    Attributes:
        family: how its answers are scored: "answer", "text", "generation", "translation", "segmentation" or
            "counterfactual".
        writes, draws: whether text and an image are wanted.
        preset: name of the sampler settings for the image.
        primary: the score that the task is judged by.
        better: 1 where a higher primary score is better, -1 where a lower one is.
        max_new_tokens: length limit of the text.
    """

    family: str
    primary: str
    writes: bool = False
    draws: bool = False
    preset: str = ""
    better: int = 1
    max_new_tokens: int = 64


TASKS: dict[str, Task] = {
    "vqa": Task("answer", "accuracy", writes=True),
    "diagnosis": Task("answer", "accuracy", writes=True),
    "reasoning": Task("answer", "accuracy", writes=True, max_new_tokens=512),
    "caption": Task("text", "rouge_l", writes=True, max_new_tokens=128),
    "report": Task("text", "rouge_l", writes=True, max_new_tokens=256),
    "dialogue": Task("text", "rouge_l", writes=True, max_new_tokens=128),
    "text_to_image": Task("generation", "kid", draws=True, preset="t2i", better=-1),
    "planned_text_to_image": Task("generation", "kid", draws=True, preset="t2i", better=-1),
    "virtual_staining": Task("translation", "ssim", draws=True, preset="virtual_staining"),
    "super_resolution": Task("translation", "ssim", draws=True, preset="super_resolution"),
    "cross_modal": Task("translation", "ssim", draws=True, preset="cross_modal"),
    "restoration": Task("translation", "ssim", draws=True, preset="edit"),
    "segmentation": Task("segmentation", "dice", draws=True, preset="segmentation"),
    "counterfactual": Task(
        "counterfactual", "change", writes=True, draws=True, preset="counterfactual", max_new_tokens=128
    ),
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question to a model.

    Attributes:
        id: the record's.
        task: key of `TASKS`.
        messages: the conversation up to the answer: (role, parts), a part being a text or an input image.
        text: the text of the last human turn, without images.
        inputs: the images that the model sees.
        output: the image that it should make, if any.
        reference: the text that it should write, "" if none.
        kind: of an answer, see the metric `vqa_accuracy`.
        options: texts of the options of a multiple-choice question.
        rule: of `vqa_accuracy`, unless a run chooses one; "" for the benchmark's own.
    """

    id: str
    task: str
    modality: str
    dataset: str
    group_id: str
    messages: tuple[tuple[str, tuple[str | RecordImage, ...]], ...]
    text: str
    inputs: tuple[RecordImage, ...]
    output: RecordImage | None
    reference: str
    kind: str = "open"
    options: tuple[str, ...] = ()
    rule: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def conversation(self) -> list[dict[str, Any]]:
        """The messages in the form of transformers' chat templates, images as PIL images."""
        return [
            {
                "role": role,
                "content": [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "image", "image": shown_image(part)}
                    for part in parts
                ],
            }
            for role, parts in self.messages
        ]

    def seed(self, base: int) -> int:
        """The seed of this sample's noise: the same in any order, batch and selection of samples."""
        return int.from_bytes(hashlib.sha256(f"{base}/{self.id}".encode()).digest()[:4], "big")


def sample_of(record: Record, prompt: str = "", choice_prompt: str = "") -> Sample | None:
    """The sample of a record, None for a task that no score exists for.

    Args:
        prompt: a benchmark's own phrasing with {question}, for questions; the record's own phrasing by default.
        choice_prompt: the same with {question} and {options}, for multiple choice.
    """
    if record.sub_task_type not in TASKS or (TASKS[record.sub_task_type].draws and not record.output_img):
        return None
    extra = json.loads(record.extra)
    turns = list(record.message[:-1])
    options = tuple(str(option) for option in extra.get("options", ()))
    # `extra.options` of a record built from lettered options; its answer is the letter.
    template, values = (choice_prompt, options) if options else (prompt, ())
    if template and record.sub_task_type == "vqa" and len(turns) == 1:
        question = plain_question(record, options)
        if question is not None:
            lines = "\n".join(f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(values))
            text = template.format(question=question, options=lines)
            turns = [dataclasses.replace(turns[0], value=IMAGE_PLACEHOLDER * len(record.input_img) + text)]
    messages = _messages(turns, record.input_img)
    reference = record.message[-1].value.replace(IMAGE_PLACEHOLDER, "").strip()
    text = turns[-1].value.replace(IMAGE_PLACEHOLDER, "").strip()
    kind, rule = "open", ""
    if TASKS[record.sub_task_type].family == "answer":
        reference, kind, rule = _answer(record, reference, extra, options)
    return Sample(
        id=record.id,
        task=record.sub_task_type,
        modality=record.modality,
        dataset=record.dataset,
        group_id=record.group_id,
        messages=messages,
        text=text,
        inputs=record.input_img,
        output=record.output_img[0] if record.output_img else None,
        reference=reference,
        kind=kind,
        options=options,
        rule=rule,
        extra=extra,
    )


def final_answer(text: str) -> str:
    """What counts as the answer in a text: everything after the chain of thought."""
    return text.rpartition("</think>")[2].strip()


def _answer(record: Record, text: str, extra: dict[str, Any], options: tuple[str, ...]) -> tuple[str, str, str]:
    """Reference, kind and rule of an answer. What a source states as a value counts where the answer names it."""
    if options:
        return text, "multiple_choice", ""
    if record.sub_task_type == "diagnosis" and "label" in extra:
        return str(extra["label"]), "closed", "contains"
    if isinstance(extra.get("answer"), str):
        value = extra["answer"]
        kind = kind_of(value)
        return value, kind if kind == "yes_no" else "closed", "contains"
    final = final_answer(text)
    kind = kind_of(final)
    if kind == "open" and str(extra.get("answer_type", "")).upper() == "CLOSED":
        kind = "closed"
    return final, kind, ""


def _messages(
    turns: list[Any], images: tuple[RecordImage, ...]
) -> tuple[tuple[str, tuple[str | RecordImage, ...]], ...]:
    places = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
    waiting = list(images)
    messages: list[tuple[str, tuple[str | RecordImage, ...]]] = []
    asked = next(index for index, turn in enumerate(turns) if turn.role == "human")
    for index, turn in enumerate(turns):
        parts: list[str | RecordImage] = []
        if index == asked and not places:
            parts += waiting
        pieces = turn.value.split(IMAGE_PLACEHOLDER)
        for number, piece in enumerate(pieces):
            if number and turn.role == "human":
                parts.append(waiting.pop(0))
            if piece.strip():
                parts.append(piece.strip())
        messages.append((CHAT_ROLES[turn.role], tuple(parts)))
    return tuple(messages)


def plain_question(record: Record, options: tuple[str, ...]) -> str | None:
    """The publisher's question inside the phrasing that the record was built with, None if it was not built so."""
    text = record.message[0].value.replace(IMAGE_PLACEHOLDER, "").lstrip("\n")
    if options:
        lines = "\n".join(f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(options))
        phrasing = choose("multiple_choice", "human", record.id, question=_MARK, options=lines)
    else:
        name = "vqa" if len(record.input_img) == 1 else "vqa_images"
        phrasing = choose(name, "human", record.id, question=_MARK)
    before, _, after = phrasing.partition(_MARK)
    if not (text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)):
        return None
    return text[len(before) : len(text) - len(after)]
