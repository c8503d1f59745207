"""Caption augmented generation (paper, appendix A.3): describe the image, fuse with its caption, plan in words.

The writer is any vision-language model behind `Writer`. `TransformersWriter` runs one from a folder or Hub name; the
authors used MedGemma 27B, whose weights were not available for testing here.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from unimedvl.processing.medical_formats_unimedvl import open_image

from .schema import IMAGE_PLACEHOLDER, Record, RecordImage, Turn
from .sentences import cased
from .templates import article, choose

DESCRIBE_PROMPT = (
    "Describe this {modality} image in one continuous paragraph without headings or lists. Move through four levels "
    "without naming them: one sentence on the kind of image and its overall context; two to four lines on the large "
    "anatomical structures; six to twelve sentences on organs and their parts, the longest level; last, special or "
    "incidental findings, or that there are none. Describe only what is visible. Give no diagnosis."
)
FUSE_PROMPT = (
    "Below are a description of a {modality} image and its original caption. Merge them into one paragraph with the "
    "same four levels. Never change the anatomical site that the caption names, and add only details that can be "
    'checked in the image. Begin with "{opening}".\n\nDescription: {description}\n\nCaption: {caption}'
)
THINK_PROMPT = (
    "You are about to create this {modality} image. Between <think> and </think> say what you will generate and why: "
    'pathology, anatomy, the character of the modality. Then write "{closing}" and a list of bullet points with what '
    "the image displays. Speak as the image's creator, not as an observer.\n\nClinical description: {description}"
)
REWRITE_PROMPT = (
    "Rewrite this sentence from a dialogue about medical images in other words. Keep its meaning, every name, number "
    "and place, and whether it is a request or an answer. Write the sentence only.\n\n{text}"
)
# Tasks whose words are all templates; texts that people wrote are never rewritten.
REWRITTEN_TASKS = frozenset({"segmentation", "super_resolution", "restoration", "virtual_staining", "cross_modal"})
OPENING = "Please generate a realistic {modality} image showing"
CLOSING = "Here is the generated {modality} image that displays:"


class Writer(Protocol):
    """A model that writes text about images."""

    def write(self, prompt: str, images: Sequence[bytes]) -> str:
        """The answer to `prompt` about the encoded `images` (none, one or several)."""
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a planned text-to-image record says.

    Attributes:
        prompt: the human turn.
        thought: the reasoning between <think> and </think>.
        display: the announcement and the bullet points that follow.
    """

    prompt: str
    thought: str
    display: str

    def answer(self) -> str:
        """The gpt turn, without the image."""
        return f"<think>{self.thought}</think>\n{self.display}"


class CaptionAugmenter:
    """The three steps with one writer."""

    def __init__(self, writer: Writer):
        self.writer = writer

    def plan(self, image: RecordImage, caption: str, modality: str) -> Plan:
        """Write the plan of one image.

        Raises:
            ValueError: if the writer does not keep to the form that a step asks for, or the image has no bytes.
        """
        if image.data is None:
            raise ValueError(f"{image.path}: expected image bytes to plan from, found a path only.")
        images = [image.data]
        description = self.writer.write(DESCRIBE_PROMPT.format(modality=modality), images).strip()
        opening, closing = OPENING.format(modality=modality), CLOSING.format(modality=modality)
        fused = self.writer.write(
            FUSE_PROMPT.format(modality=modality, opening=opening, description=description, caption=caption), images
        ).strip()
        if not fused.startswith(opening):
            raise ValueError(f"fused caption: expected it to start with {opening!r}, found {fused[:60]!r}.")
        answer = self.writer.write(
            THINK_PROMPT.format(modality=modality, closing=closing, description=fused), images
        ).strip()
        match = re.fullmatch(rf"<think>(.+?)</think>\s*({re.escape(closing)}\s*[-*•].+)", answer, re.DOTALL)
        if match is None:
            raise ValueError(f"plan: expected <think>...</think>, {closing!r} and a list, found {answer[:60]!r}.")
        if IMAGE_PLACEHOLDER in fused + answer:
            raise ValueError(f"plan: expected words only, found {IMAGE_PLACEHOLDER}.")
        return Plan(fused, match[1].strip(), match[2].strip())


def rewrite(record: Record, writer: Writer) -> Record:
    """An interleaved record in the writer's words, for diversity (paper, section 3.1).

    Images, their places and everything else stay; `extra` keeps the template's words under "template".

    Raises:
        ValueError: if the record's words are not a template's, or the writer's answer is empty or has a placeholder.
    """
    if record.sub_task_type not in REWRITTEN_TASKS:
        raise ValueError(
            f"record {record.id!r}: expected a templated task to rewrite, found {record.sub_task_type!r}."
        )
    turns = []
    for turn in record.message:
        parts = re.split(f"({re.escape(IMAGE_PLACEHOLDER)})", turn.value)
        spoken = [place for place, part in enumerate(parts) if part.strip() and part != IMAGE_PLACEHOLDER]
        if len(spoken) > 1:
            raise ValueError(f"record {record.id!r}: expected one sentence beside its images, found {turn.value!r}.")
        for place in spoken:
            old = parts[place].strip()
            new = " ".join(writer.write(REWRITE_PROMPT.format(text=old), ()).split())
            if not new or IMAGE_PLACEHOLDER in new:
                raise ValueError(f"record {record.id!r}: expected a rewritten sentence, found {new!r}.")
            parts[place] = parts[place].replace(old, new)
        turns.append(Turn(turn.role, "".join(parts)))
    extra = json.loads(record.extra) | {"template": [turn.value for turn in record.message]}
    return record.replace(
        message=tuple(turns), synthetic=True, extra=json.dumps(extra, ensure_ascii=False, sort_keys=True)
    )


def plan_from_facts(key: str, caption: str, modality: str, facts: Sequence[tuple[str, str]]) -> Plan:
    """A plan from what a source states, without a model.

    Args:
        key: id of the record.
        caption: the sentence that the prompt carries.
        modality: as it reads before "image": "chest X-ray".
        facts: names and values, such as ("anatomy", "chest").
    """
    listed = "; ".join(f"{name} {value}" for name, value in facts)
    kind = f"{article(modality)} {modality} image"
    thought = f"The image has to look like {kind}. Known facts: {listed}. Nothing else may be added."
    display = "\n".join(
        [choose("plan", "gpt", key, modality=modality), *(f"- {name}: {value}" for name, value in facts)]
    )
    return Plan(choose("planned_text_to_image", "human", key, **cased(caption=caption.rstrip("."))), thought, display)


class TransformersWriter:
    """A vision-language model of the transformers library, loaded on first use.

    Args:
        model: folder or Hub name of a model that `AutoModelForImageTextToText` loads.
        max_new_tokens: longest answer.
        trust_remote_code: whether code in the model's repository may run.
    """

    def __init__(self, model: str, max_new_tokens: int = 512, *, trust_remote_code: bool = False):
        self.name = model
        self.max_new_tokens = max_new_tokens
        self.trust_remote_code = trust_remote_code
        self._loaded: tuple[Any, Any] | None = None

    def write(self, prompt: str, images: Sequence[bytes]) -> str:
        """The model's greedy answer."""
        processor, model = self._load()
        content: list[dict[str, Any]] = [
            {"type": "image", "image": open_image(data).convert("RGB")} for data in images
        ]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            options = {"trust_remote_code": self.trust_remote_code}
            self._loaded = (
                AutoProcessor.from_pretrained(self.name, **options),
                AutoModelForImageTextToText.from_pretrained(self.name, dtype="auto", **options).eval(),
            )
        return self._loaded
