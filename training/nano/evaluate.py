"""Measure a nano checkpoint: does it name the modality of the validation images, and how do its own pictures look.

    python -m unimedvl.training.nano.evaluate --data FOLDER --model CHECKPOINT [--sheet FILE.png] [--out RESULT.json]

Everything goes through the public interface: the checkpoint folder, the processor, `generate`. The sheet holds
generated images only.
"""

import argparse
import collections
import json
import math
import os
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from unimedvl.loading import load

from .samples import HELD_OUT_MODALITY_QUESTIONS, MODALITY_WORDS, Row, load_rows

QUESTIONS = ("What imaging modality is this?", "What imaging modality is shown?")
SHEET_PROMPTS = (
    "A chest X-ray showing no finding.",
    "A chest X-ray showing pneumonia.",
    "A CT scan of the chest.",
    "An MRI scan showing glioma tumor.",
    "An MRI scan of the hippocampus.",
    "An ultrasound image of a fetal head.",
    "An endoscopy image showing a polyp.",
    "A histopathology image showing lung adenocarcinoma.",
    "A microscopy image of a blood smear.",
    "An OCT scan of choroidal neovascularization.",
)


def modalities_named(answer: str) -> set[str]:
    """Codes of the modalities that an answer names, by `MODALITY_WORDS`."""
    answer = answer.lower()
    return {code for code, words in MODALITY_WORDS.items() if any(word in answer for word in words)}


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    z, share = 1.96, correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return centre - half, centre + half


def ask(model, processor, images: list[Image.Image], question: str, batch_size: int = 32) -> list[str]:
    """Greedy answers to one question about each image."""
    answers = []
    for start in range(0, len(images), batch_size):
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image in images[start : start + batch_size]
        ]
        inputs = processor.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        answers += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def modality_accuracy(model, processor, rows: list[Row], question: str) -> dict:
    """How many of the rows with a stated modality are answered with that modality and no other."""
    rows = [row for row in rows if row.modality in MODALITY_WORDS]
    answers = ask(model, processor, [row.image for row in rows], question)
    wrong = collections.Counter()
    for row, answer in zip(rows, answers, strict=True):
        if modalities_named(answer) != {row.modality}:
            wrong[f"{row.modality} -> {answer}"] += 1
    correct = len(rows) - sum(wrong.values())
    return {
        "question": question,
        "correct": correct,
        "total": len(rows),
        "accuracy": correct / len(rows),
        "interval": wilson_interval(correct, len(rows)),
        "wrong": dict(wrong.most_common()),
    }


def draw(model, processor, prompt: str, count: int, seed: int) -> list[Image.Image]:
    """`count` pictures for one prompt with the checkpoint's own settings for text to image."""
    conversation = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    inputs = processor.apply_chat_template(
        conversation, generation_mode="image", tokenize=True, return_dict=True, return_tensors="pt"
    )
    pixels = model.generate(
        **inputs,
        generation_mode="image",
        preset="t2i",
        num_images_per_prompt=count,
        generator=torch.Generator().manual_seed(seed),
        show_progress=False,
    )
    return processor.post_process_multimodal_output(pixels, generation_mode="image")


def contact_sheet(model, processor, columns: int = 6, scale: int = 2, seed: int = 0) -> Image.Image:
    """One row of generated pictures for each of `SHEET_PROMPTS`, with the prompt above it."""
    rows = [(prompt, draw(model, processor, prompt, columns, seed)) for prompt in SHEET_PROMPTS]
    side, caption, margin = rows[0][1][0].width * scale, 18, 4
    width = margin + columns * (side + margin)
    sheet = Image.new("RGB", (width, len(rows) * (caption + side + margin)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (prompt, pictures) in enumerate(rows):
        top = index * (caption + side + margin)
        pen.text((margin, top + 3), prompt, fill="black")
        for column, picture in enumerate(pictures):
            place = (margin + column * (side + margin), top + caption)
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=os.environ.get("UNIMED_MINI"), help="data folder (default: $UNIMED_MINI)")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--sheet", help="write a contact sheet of generated images here (PNG)")
    parser.add_argument("--out", help="write the figures here (JSON)")
    arguments = parser.parse_args(argv)
    if not arguments.data:
        parser.error("give the folder of the mini data set with --data or in UNIMED_MINI")
    model, processor, _ = load(arguments.model)
    rows = load_rows(arguments.data, "validation")
    results = []
    for question in (*QUESTIONS, *HELD_OUT_MODALITY_QUESTIONS):
        result = modality_accuracy(model, processor, rows, question)
        results.append(result)
        low, high = result["interval"]
        share = f"{result['correct']}/{result['total']} = {result['accuracy']:.1%}"
        print(f"{share} (95 % interval {low:.1%} to {high:.1%})  {question}  wrong: {result['wrong']}")
    if arguments.out:
        Path(arguments.out).write_text(json.dumps({"modality": results}, indent=2) + "\n")
    if arguments.sheet:
        contact_sheet(model, processor).save(arguments.sheet)


if __name__ == "__main__":
    main()
