"""Rewards by name: of answers for TRL's GRPO, of images for Flow-GRPO.

A text reward has TRL's form, `reward(completions, **columns) -> list[float]`, where a completion is a list of messages
or a string. An image reward is `reward(images, examples) -> list[float]`. All lie in [0, 1] unless said otherwise.
Rewards are the numbers that a benchmark reports (`unimedvl.evaluation.metrics`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from PIL import Image

from unimedvl.evaluation.metrics import images, masks
from unimedvl.evaluation.metrics.answers import is_right, kind_of, normalized
from unimedvl.evaluation.metrics.classifiers import ImageClassifier
from unimedvl.evaluation.metrics.texts import rouge_scores

THOUGHT = re.compile(r"\A\s*<think>(?P<thought>.*?)</think>(?P<answer>.*)\Z", re.DOTALL)
# In dB: a reward has to be finite, and equal images have an infinite ratio.
MOST_PSNR = 60.0


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion in either of TRL's forms."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def final_answer(text: str) -> str:
    """What follows the thought, or the whole text if there is none."""
    thought = THOUGHT.match(text)
    return (thought["answer"] if thought else text).strip()


def answer_match(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """1 where the answer is right by the rule `normalized` of `metrics.answers`, and one is expected.

    So a question answered by "yes" or "no" may be answered by a sentence that holds exactly one of the two.
    """
    scores = []
    for completion, expected in zip(completions, answer, strict=True):
        given = final_answer(completion_text(completion))
        scores.append(float(normalized(expected) != "" and is_right(given, expected, kind_of(expected))))
    return scores


def think_format(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 where there is exactly one thought, not empty, before an answer that is not empty."""
    scores = []
    for completion in completions:
        text = completion_text(completion)
        thought = THOUGHT.match(text)
        once = text.count("<think>") == 1 and text.count("</think>") == 1
        scores.append(float(bool(thought and once and thought["thought"].strip() and thought["answer"].strip())))
    return scores


def report_overlap(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """ROUGE-L F1 with the reference report."""
    return [
        rouge_scores(final_answer(completion_text(completion)), expected)["rouge_l"]
        for completion, expected in zip(completions, answer, strict=True)
    ]


TEXT_REWARDS: dict[str, Callable[..., list[float]]] = {
    "answer_match": answer_match,
    "think_format": think_format,
    "report_overlap": report_overlap,
}


def dice(images: Sequence[Image.Image], examples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Dice overlap of the generated mask with `reference`'s (`metrics.masks.dice`)."""
    return [masks.dice(image, example["reference"]) for image, example in zip(images, examples, strict=True)]


def psnr(generated: Sequence[Image.Image], examples: Sequence[Mapping[str, Any]]) -> list[float]:
    """PSNR to `reference` in dB (`metrics.images.psnr`), at most `MOST_PSNR`, which equal images get."""
    ratios = [images.psnr(image, example["reference"]) for image, example in zip(generated, examples, strict=True)]
    return [MOST_PSNR if ratio is None else min(MOST_PSNR, ratio) for ratio in ratios]


def ssim(generated: Sequence[Image.Image], examples: Sequence[Mapping[str, Any]]) -> list[float]:
    """Structural similarity to `reference`, in [-1, 1] (`metrics.images.ssim`)."""
    return [images.ssim(image, example["reference"]) for image, example in zip(generated, examples, strict=True)]


class AnswerReward:
    """How probable the model finds the expected answer to a question about the generated image.

    The understanding half judges the generating half, without the adapter that is being trained: the judge never
    changes. Examples give `question` and `answer`. The reward is the geometric mean of the probabilities of the
    answer's tokens.
    """

    def __init__(self, model: torch.nn.Module, processor: Any):
        self.model, self.processor = model, processor

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], examples: Sequence[Mapping[str, Any]]) -> list[float]:
        conversations = []
        for image, example in zip(images, examples, strict=True):
            if not {"question", "answer"} <= example.keys():
                raise ValueError("The reward 'answer' needs examples with `question` and `answer`: name another one.")
            content = [{"type": "image", "image": image}, {"type": "text", "text": example["question"]}]
            answer = [{"type": "text", "text": example["answer"]}]
            conversations.append([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
        encode = {
            "tokenize": True,
            "return_dict": True,
            "return_tensors": "pt",
            "padding": True,
            "padding_side": "right",
            "return_assistant_tokens_mask": True,
        }
        inputs = self.processor.apply_chat_template(conversations, **encode)
        answered = torch.as_tensor(inputs.pop("assistant_masks")).bool()[:, 1:]
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
            logits = self.model(**inputs).logits
        log_probabilities = logits[:, :-1].float().log_softmax(dim=-1)
        chosen = log_probabilities.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0].cpu()
        return ((chosen * answered).sum(dim=1) / answered.sum(dim=1)).exp().tolist()


class ClassifierReward:
    """Probability that an independent image classifier gives to the example's `label`.

    Args:
        checkpoint: a folder or Hub name for transformers' image classification.
    """

    def __init__(self, checkpoint: str):
        self.classifier = ImageClassifier(checkpoint, local_only=False)

    def __call__(self, images: Sequence[Image.Image], examples: Sequence[Mapping[str, Any]]) -> list[float]:
        known = self.classifier.labels
        unknown = sorted({example["label"] for example in examples} - known.keys())
        if unknown:
            raise ValueError(f"The classifier knows the labels {', '.join(sorted(known))}, not {', '.join(unknown)}.")
        probabilities = self.classifier(images)
        return [float(probabilities[row, known[example["label"]]]) for row, example in enumerate(examples)]


IMAGE_REWARDS: dict[str, Callable[..., list[float]]] = {"dice": dice, "psnr": psnr, "ssim": ssim}


def image_rewards(
    weights: Mapping[str, float], model: torch.nn.Module, processor: Any
) -> dict[str, tuple[Callable[..., list[float]], float]]:
    """Functions and weights of image rewards by name, as `FlowGRPOTrainer` reads them.

    Args:
        weights: by name: of `IMAGE_REWARDS`, "answer" (`AnswerReward` with `model`), or "classifier:CHECKPOINT"
            (`ClassifierReward`).

    Raises:
        ValueError: for an unknown name.
    """
    found: dict[str, tuple[Callable[..., list[float]], float]] = {}
    for name, weight in weights.items():
        function: Callable[..., list[float]]
        if name in IMAGE_REWARDS:
            function = IMAGE_REWARDS[name]
        elif name == "answer":
            function = AnswerReward(model, processor)
        elif name.startswith("classifier:"):
            function = ClassifierReward(name.partition(":")[2])
        else:
            known = ", ".join([*IMAGE_REWARDS, "answer", "classifier:CHECKPOINT"])
            raise ValueError(f"rewards must name some of {known}, not {name!r}.")
        found[name] = function, weight
    return found
