"""Records from unimodal data: one function per task, plain values in, a `Record` out.

Every function takes the `origin` of a sample; its description, license, split and group become the record's. `variant`
distinguishes several records of one sample and task (question number, class); texts are the source's own, and stray
placeholders in them are removed. Images are `RecordImage`s with bytes. Ids, phrasings and drawn images follow from the
origin and the task alone: a rebuilt record is the same, byte for byte.

The place of an output image in the answer is part of the task (paper, section 3.3; the upstream loaders): staining,
super-resolution, segmentation, restoration and text-to-image answer in words first, cross-modal synthesis and
counterfactuals show the image first. `image_first` holds that table.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy

from .planning import Plan
from .schema import IMAGE_PLACEHOLDER, Record, RecordImage, Turn, record_id
from .sentences import cased, clean
from .task_images import class_mask, draw_lesion, drawn_image, lower_resolution, pixels_of
from .templates import choose
from .templates.words import SHORT_NAMES

# Sources whose loaders put the image before the text, whatever the task, and the tasks that do so in any source.
IMAGE_FIRST_DATASETS = frozenset({"icg-cxr", "brats2023", "synthrad2023"})
TEXT_FIRST_DATASETS = frozenset({"vl-health"})
IMAGE_FIRST_TASKS = frozenset({"cross_modal", "counterfactual"})


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a sample comes from; the fields of the same name of `Record`.

    Attributes:
        original_id: name of the sample in its source.
        description: what the image is, as it reads after "this": "chest radiograph".
        extra: values for the record's `extra`.
    """

    dataset: str
    original_id: str
    group_id: str
    split: str
    modality: str
    license: str
    redistributable: str
    provenance: str
    description: str = "medical image"
    license_tier: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def record_id(self, task: str, variant: str = "") -> str:
        """Id of the record of one task made from this sample."""
        return record_id(self.dataset, self.original_id, task, variant)


def image_first(dataset: str, task: str, *, sampled: bool = False) -> bool:
    """Whether the output image stands before the answer's text.

    Args:
        sampled: a segmentation record of the small sample that the authors train image-first.
    """
    if dataset in TEXT_FIRST_DATASETS:
        return False
    return sampled or task in IMAGE_FIRST_TASKS or dataset in IMAGE_FIRST_DATASETS


def vqa(origin: Origin, images: Sequence[RecordImage], question: str, answer: str, variant: str = "") -> Record:
    """A question about one or more images, with people's own answer."""
    key = origin.record_id("vqa", variant)
    human = choose("vqa" if len(images) == 1 else "vqa_images", "human", key, question=clean(question))
    return _understanding(origin, key, "vqa", images, human, clean(answer))


def multiple_choice(
    origin: Origin,
    images: Sequence[RecordImage],
    question: str,
    options: Sequence[str],
    answer: int,
    variant: str = "",
) -> Record:
    """A question with lettered options; `answer` is the index of the right one.

    Raises:
        ValueError: if there is no such option, or more than 26.
    """
    if not 0 <= answer < len(options) <= 26:
        raise ValueError(
            f"{origin.original_id}: expected an answer among 26 options, found {answer} of {len(options)}."
        )
    key = origin.record_id("vqa", variant)
    letters = [chr(ord("A") + index) for index in range(len(options))]
    lines = "\n".join(f"{letter}. {clean(option)}" for letter, option in zip(letters, options, strict=True))
    human = choose("multiple_choice", "human", key, question=clean(question), options=lines)
    extra = {"options": list(options), "answer": answer}
    return _understanding(origin, key, "vqa", images, human, letters[answer], extra)


def diagnosis(origin: Origin, image: RecordImage, label: str, kind: str = "diagnosis", variant: str = "") -> Record:
    """What a label of the source says; `kind` is what the source calls it ("diagnosis", "finding", "disease")."""
    key = origin.record_id("diagnosis", variant)
    values = {"description": origin.description, **cased(label=clean(label), kind=kind)}
    human, gpt = (choose("diagnosis", side, key, **values) for side in ("human", "gpt"))
    return _understanding(origin, key, "diagnosis", [image], human, gpt, {"label": label, "kind": kind})


def presence(
    origin: Origin, image: RecordImage, label: str, truth: str, present: bool, kind: str = "finding", shown: str = ""
) -> Record:
    """A yes-or-no question: is `label` there?

    Args:
        truth: the label that the source states.
        shown: the asked label as it reads after "is there" ("a polyp"); the label itself by default.
    """
    key = origin.record_id("vqa", f"presence/{label}")
    verdict = "Yes" if present else "No"
    words = shown or label
    values = {"description": origin.description, "label": words, "truth": truth, "kind": kind, "verdict": verdict}
    human, gpt = (choose("presence", side, key, **values) for side in ("human", "gpt"))
    return _understanding(origin, key, "vqa", [image], human, gpt, {"answer": verdict.lower()})


def count(origin: Origin, image: RecordImage, things: str, number: int) -> Record:
    """How many of the annotated `things` (a plural) the image has."""
    key = origin.record_id("vqa", f"count/{things}")
    values = {"description": origin.description, "count": str(number), **cased(things=things)}
    human, gpt = (choose("count", side, key, **values) for side in ("human", "gpt"))
    return _understanding(origin, key, "vqa", [image], human, gpt, {"answer": str(number)})


def acquisition(origin: Origin, image: RecordImage, attribute: str, value: str) -> Record:
    """How the image was made: `attribute` is "imaging modality", "plane", "sequence", ..."""
    key = origin.record_id("vqa", f"acquisition/{attribute}")
    values = cased(attribute=attribute, value=value)
    human, gpt = (choose("acquisition", side, key, **values) for side in ("human", "gpt"))
    return _understanding(origin, key, "vqa", [image], human, gpt, {"answer": value})


def reasoning(
    origin: Origin, images: Sequence[RecordImage], question: str, thought: str, answer: str, variant: str = ""
) -> Record:
    """Distilled chain of thought (DCOT); without images a text-only record."""
    key = origin.record_id("reasoning", variant)
    human = choose("reasoning", "human", key, question=clean(question))
    gpt = f"<think>{clean(thought)}</think>\n{clean(answer)}"
    if images:
        return _understanding(origin, key, "reasoning", images, human, gpt)
    return _record(origin, key, "text_only", "reasoning", (), (), human, gpt)


def caption(origin: Origin, images: Sequence[RecordImage], text: str, variant: str = "") -> Record:
    """The source's caption of one image, or of the panels of a figure."""
    key = origin.record_id("caption", variant)
    human = choose("caption" if len(images) == 1 else "caption_images", "human", key)
    return _understanding(origin, key, "caption", images, human, clean(text))


def report(
    origin: Origin, images: Sequence[RecordImage], text: str, variant: str = "", *, note: bool = False
) -> Record:
    """The source's report of a study, or (`note`) its clinical note, which also describes the patient."""
    key = origin.record_id("report", variant)
    human = choose("clinical_note" if note else "report", "human", key, description=origin.description)
    return _understanding(origin, key, "report", images, human, clean(text))


def text_to_image(origin: Origin, image: RecordImage, text: str, variant: str = "") -> Record:
    """An image from its caption."""
    key = origin.record_id("text_to_image", variant)
    human = choose("text_to_image", "human", key, **cased(caption=clean(text).rstrip(".")))
    gpt = choose("text_to_image", "gpt", key, modality=SHORT_NAMES.get(origin.modality, "medical"))
    return _record(origin, key, "image_generation", "text_to_image", (), [image], human, gpt)


def planned_text_to_image(origin: Origin, image: RecordImage, plan: Plan, variant: str = "") -> Record:
    """An image from its caption, with a plan in words before it (caption augmented generation)."""
    key = origin.record_id("planned_text_to_image", variant)
    return _record(
        origin, key, "image_generation", "planned_text_to_image", (), [image], clean(plan.prompt), plan.answer()
    )


def dialogue(origin: Origin, question: str, answer: str, variant: str = "") -> Record:
    """A question and an answer without an image."""
    key = origin.record_id("dialogue", variant)
    human = choose("dialogue", "human", key, question=clean(question))
    return _record(origin, key, "text_only", "dialogue", (), (), human, clean(answer))


def note_dialogue(origin: Origin, note: str, label: str) -> Record:
    """Which diagnosis a clinical note was recorded with; no image."""
    key = origin.record_id("dialogue", "note")
    human = choose("note", "human", key, note=clean(note))
    gpt = choose("note", "gpt", key, **cased(label=label))
    return _record(origin, key, "text_only", "dialogue", (), (), human, gpt, {"label": label})


def writing_dialogue(origin: Origin, facts: Sequence[tuple[str, str]], sentence: str) -> Record:
    """Stated facts turned into a sentence; no image."""
    key = origin.record_id("dialogue", "writing")
    listed = "; ".join(f"{name}: {value}" for name, value in facts)
    human = choose("writing", "human", key, facts=listed)
    return _record(origin, key, "text_only", "dialogue", (), (), human, sentence)


def segmentation(
    origin: Origin,
    image: RecordImage,
    classes: numpy.ndarray,
    values: Sequence[int],
    target: str,
    *,
    sampled: bool = False,
    variant: str = "",
) -> Record:
    """The mask of one class as a black-and-white image.

    Args:
        classes: class numbers, (height, width), in the size of the image.
        values: numbers that belong to the class.
        target: name of the class, as it reads after "the".
        sampled: put the image before the text.

    Raises:
        ValueError: if mask and image differ in size.
    """
    if classes.shape != (image.height, image.width):
        found = "x".join(map(str, classes.shape))
        raise ValueError(
            f"{origin.original_id}: expected a mask of {image.height}x{image.width} like its image, found {found}."
        )
    key = origin.record_id("segmentation", variant or target)
    mask = drawn_image(class_mask(classes, values), f"{origin.original_id}.{target.replace(' ', '_')}.mask.png")
    texts = {"description": origin.description, "target": target}
    extra = {"target": target, "area": round(float(numpy.mean(numpy.isin(classes, list(values)))), 6)}
    return _editing(origin, key, "segmentation", [image], mask, "segmentation", texts, extra, sampled=sampled)


def super_resolution(origin: Origin, image: RecordImage, scale: int, method: str) -> Record:
    """The image from a copy of lower resolution on the same grid (`task_images.lower_resolution`)."""
    key = origin.record_id("super_resolution", f"{scale}/{method}")
    coarse = drawn_image(
        lower_resolution(pixels_of(image), scale, method), f"{origin.original_id}.{method}{scale}.png"
    )
    texts = {"description": origin.description, "scale": str(scale)}
    extra = {"scale": scale, "method": method}
    return _editing(origin, key, "super_resolution", [coarse], image, "super_resolution", texts, extra)


def restoration(origin: Origin, noisy: RecordImage, restored: RecordImage, target: str) -> Record:
    """A clean image from a noisy one of the same place; `target` names the clean one ("an averaged B-scan")."""
    key = origin.record_id("restoration")
    texts = {"description": origin.description, "target": target}
    return _editing(origin, key, "restoration", [noisy], restored, "restoration", texts, {"target": target})


def virtual_staining(origin: Origin, source: RecordImage, stained: RecordImage, target: str) -> Record:
    """Another stain of the same tissue; `target` names it ("HER2 IHC, expression level 3+")."""
    key = origin.record_id("virtual_staining", target)
    texts = {"description": origin.description, "target": target}
    return _editing(origin, key, "virtual_staining", [source], stained, "virtual_staining", texts, {"target": target})


def cross_modal(origin: Origin, source: RecordImage, other: RecordImage, source_name: str, target_name: str) -> Record:
    """The same anatomy in another modality or sequence. For the inverse task call it with both swapped."""
    key = origin.record_id("cross_modal", f"{source_name}/{target_name}")
    texts = {"origin": source_name, "target": target_name}
    return _editing(origin, key, "cross_modal", [source], other, "cross_modal", texts, texts)


def counterfactual(
    origin: Origin, prior: RecordImage, prompt: str, follow_up: RecordImage, explanation: str, variant: str = ""
) -> Record:
    """A real prior image, the request, the real follow-up and the source's explanation of the difference."""
    key = origin.record_id("counterfactual", variant)
    human = choose("counterfactual", "human", key, prompt=clean(prompt), description=origin.description)
    return _record(
        origin, key, "counterfactual_generation", "counterfactual", [prior], [follow_up], human, clean(explanation)
    )


def synthetic_counterfactual(origin: Origin, image: RecordImage, *, removed: bool, bright: bool = True) -> Record:
    """A pair with a drawn lesion: added to the image, or (`removed`) present before and gone after.

    The record says that it is synthetic in `synthetic`, `provenance` and `extra`, and in the words of both turns:
    "artificial" precedes the lesion.

    Args:
        image: at least 32 pixels on each side.
        removed: whether the drawn lesion is in the prior image rather than in the follow-up.
        bright: a lesion lighter than its surroundings (an opacity), or darker.
    """
    key = origin.record_id("counterfactual", "removed" if removed else "added")
    altered, place = draw_lesion(pixels_of(image), int(key[:16], 16), bright=bright)
    drawn = drawn_image(altered, f"{origin.original_id}.lesion.png")
    article = "the" if removed else "an"
    change = f"{article} artificial {'bright' if bright else 'dark'} round lesion in the {place} of the image"
    prior, follow_up = (drawn, image) if removed else (image, drawn)
    library = "counterfactual_remove" if removed else "counterfactual_add"
    texts = {"description": origin.description, "change": change}
    human, gpt = (choose(library, side, key, **texts) for side in ("human", "gpt"))
    origin = dataclasses.replace(origin, provenance=f"{origin.provenance}; synthetic: lesion drawn by a program")
    extra = {"synthetic": "lesion drawn by a program", "change": "removed" if removed else "added", "place": place}
    main = "counterfactual_generation"
    return _record(
        origin, key, main, "counterfactual", [prior], [follow_up], human, gpt, extra, synthetic=True
    )  # fmt: skip


def _understanding(
    origin: Origin,
    key: str,
    task: str,
    images: Sequence[RecordImage],
    human: str,
    gpt: str,
    extra: dict[str, Any] | None = None,
) -> Record:
    return _record(origin, key, "image_understanding", task, images, (), human, gpt, extra)


def _editing(
    origin: Origin,
    key: str,
    task: str,
    inputs: Sequence[RecordImage],
    output: RecordImage,
    library: str,
    texts: dict[str, str],
    extra: dict[str, Any],
    *,
    sampled: bool = False,
) -> Record:
    human, gpt = (choose(library, side, key, **texts) for side in ("human", "gpt"))
    # Some phrasings begin with a field's value.
    human, gpt = (text[:1].upper() + text[1:] for text in (human, gpt))
    return _record(
        origin, key, "multimodal_input_output", task, inputs, [output], human, gpt, extra, sampled=sampled
    )  # fmt: skip


def _record(
    origin: Origin,
    key: str,
    main: str,
    task: str,
    inputs: Sequence[RecordImage],
    outputs: Sequence[RecordImage],
    human: str,
    gpt: str,
    extra: dict[str, Any] | None = None,
    *,
    sampled: bool = False,
    synthetic: bool = False,
) -> Record:
    places = IMAGE_PLACEHOLDER * len(outputs)
    if outputs:
        gpt = f"{places}\n{gpt}" if image_first(origin.dataset, task, sampled=sampled) else f"{gpt}\n{places}"
    if inputs:
        human = f"{IMAGE_PLACEHOLDER * len(inputs)}\n{human}"
    return Record(
        id=key,
        main_task_type=main,
        sub_task_type=task,
        modality=origin.modality,
        dataset=origin.dataset,
        input_img=tuple(inputs),
        output_img=tuple(outputs),
        message=(Turn("human", human), Turn("gpt", gpt)),
        license=origin.license,
        license_tier=origin.license_tier,
        redistributable=origin.redistributable,
        provenance=origin.provenance,
        split=origin.split,
        group_id=origin.group_id,
        synthetic=synthetic,
        extra=json.dumps(origin.extra | (extra or {}), ensure_ascii=False, sort_keys=True),
    )
