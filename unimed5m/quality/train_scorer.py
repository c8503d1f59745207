"""Train the compact image-text scorer on the training split of built records.

    python -m unimedvl.unimed5m.quality.train_scorer RECORDS OUT [--epochs 20] [--max-images N]

Writes the scorer and the neighbor table of the captioner that goes with it to OUT. Minutes on one CPU core.
"""

import hashlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
from typer import Argument, Option

from unimedvl.utils.command_line import run_module

from ..pipeline import batches, shard_paths
from ..task_images import open_stored_image
from .record_texts import ALIGNED_TASKS, described_image, original_text
from .scorer import CompactScorer, RetrievalCaptioner, pixels

logger = logging.getLogger(__name__)
COLUMNS = ("sub_task_type", "dataset", "split", "input_img", "output_img", "message")
EPOCHS = 20
TEXTS_PER_IMAGE = 4


@dataclass(frozen=True)
class Pairs:
    """Different images and what is said of each.

    Attributes:
        images: uint8 (N, 3, 64, 64).
        texts: N lists of one text or more.
        sources: N names of sources.
    """

    images: numpy.ndarray
    texts: list[list[str]]
    sources: list[str]


def read_pairs(records: str | Path, split: str = "train", limit: int | None = None) -> Pairs:
    """The images of a split's records whose text describes an image, each once, with their texts, captions first.

    Args:
        records: folder of built records.
        split: "train", "validation" or "test".
        limit: number of images in a random part; all by default.

    Raises:
        ValueError: where no record of the split has a text about an image that decodes.
    """
    places: dict[bytes, int] = {}
    images: list[numpy.ndarray] = []
    texts: list[list[str]] = []
    sources: list[str] = []
    for path in shard_paths(records):
        for batch in batches(path, COLUMNS):
            for row in batch.to_pylist():
                if row["split"] != split or row["sub_task_type"] not in ALIGNED_TASKS:
                    continue
                data = described_image(row)
                if data is None:
                    continue
                digest = hashlib.sha256(data).digest()
                if digest not in places:
                    try:
                        images.append(pixels(open_stored_image(data)))
                    except ValueError:
                        # Damaged files are the coarse filter's to report; nothing can be trained on them.
                        continue
                    places[digest] = len(texts)
                    texts.append([])
                    sources.append(row["dataset"])
                said = texts[places[digest]]
                said.insert(0 if row["sub_task_type"] == "caption" else len(said), original_text(row))
    if not images:
        raise ValueError(f"expected {split} records with an image and a text about it in {records}, found none.")
    chosen = numpy.random.default_rng(0).permutation(len(images))[:limit] if limit else range(len(images))
    return Pairs(
        numpy.stack([images[place] for place in chosen]),
        [texts[place] for place in chosen],
        [sources[place] for place in chosen],
    )


def train(
    pairs: Pairs, epochs: int = EPOCHS, batch: int = 32, learning_rate: float = 1e-3, seed: int = 0
) -> CompactScorer:
    """Fit the contrastive loss of CLIP in both directions; equal texts count as matching each other's images.

    Batches are filled source by source: distinguishing images of one source is hard.

    Args:
        pairs: images and their texts.
        epochs: passes over the images.
        batch: images per step.
        learning_rate: highest learning rate of AdamW on the one-cycle schedule; words get ten times of it.
        seed: of the weights, the order and the augmentation.

    Returns:
        The trained scorer, in evaluation mode.
    """
    torch.manual_seed(seed)
    scorer = CompactScorer().train()
    text_parameters = [*scorer.text.parameters(), *scorer.project.parameters()]
    # A word's vector moves only in the batches that hold the word.
    groups: list[dict[str, Any]] = [
        {"params": [*scorer.image.parameters(), scorer.scale]},
        {"params": text_parameters, "lr": 10 * learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.05)
    steps = max(1, len(pairs.texts) // batch)
    highest = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=epochs * steps, pct_start=0.15)
    generator = numpy.random.default_rng(seed)
    for epoch in range(epochs):
        order, total, started = _order(pairs.sources, batch, generator), 0.0, time.monotonic()
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            words, match = _said(pairs.texts, chosen, generator)
            image = scorer.encode_images(torch.from_numpy(_augment(pairs.images[chosen], generator)))
            logits = image @ scorer.encode_texts(words).T * scorer.scale.exp()
            loss = _ranking(logits, match) + _ranking(logits.T, match.T)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        logger.info("epoch %d: loss %.3f, %.0f s", epoch + 1, total / steps, time.monotonic() - started)
    return scorer.eval()


def _ranking(logits: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row with its matches, all equally wanted."""
    wanted = match / match.sum(dim=1, keepdim=True)
    return -(torch.log_softmax(logits, dim=1) * wanted).sum(dim=1).mean()


def _order(sources: Sequence[str], batch: int, generator: numpy.random.Generator) -> numpy.ndarray:
    """All places, in runs of up to `batch` of one source."""
    runs: list[numpy.ndarray] = []
    names = numpy.asarray(sources)
    for name in sorted(set(sources)):
        members = generator.permutation(numpy.flatnonzero(names == name))
        runs += [members[start : start + batch] for start in range(0, len(members), batch)]
    return numpy.concatenate([runs[place] for place in generator.permutation(len(runs))])


def _said(
    texts: Sequence[Sequence[str]], chosen: numpy.ndarray, generator: numpy.random.Generator
) -> tuple[list[str], torch.Tensor]:
    """Up to four texts of each image, each text once, and which image (row) each text (column) describes."""
    columns: dict[str, int] = {}
    marks: list[tuple[int, int]] = []
    for row, place in enumerate(chosen):
        for number in generator.permutation(len(texts[place]))[:TEXTS_PER_IMAGE]:
            marks.append((row, columns.setdefault(texts[place][number], len(columns))))
    match = torch.zeros(len(chosen), len(columns))
    match[[row for row, _ in marks], [column for _, column in marks]] = 1.0
    return list(columns), match


def _augment(images: numpy.ndarray, generator: numpy.random.Generator) -> numpy.ndarray:
    """Shift by up to five pixels, change contrast and brightness a little. No mirroring: texts name sides."""
    side = images.shape[-1]
    padded = numpy.pad(images, ((0, 0), (0, 0), (5, 5), (5, 5)), mode="edge")
    corners = generator.integers(0, 11, size=(len(images), 2))
    shifted = [
        image[:, top : top + side, left : left + side] for image, (top, left) in zip(padded, corners, strict=True)
    ]
    gain, lift = (generator.uniform(low, high, size=(len(images), 1, 1, 1)) for low, high in ((0.8, 1.2), (-15, 15)))
    return numpy.clip(numpy.stack(shifted) * gain + lift, 0, 255).astype(numpy.uint8)


def main(
    records: Annotated[Path, Argument(help="Folder of built records.")],
    output: Annotated[Path, Argument(help="Folder for the scorer.")],
    epochs: int = EPOCHS,
    max_images: Annotated[int | None, Option(help="Train on a random part of this size.")] = None,
) -> None:
    """Train a scorer on built records and save it with the texts of its images."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pairs = read_pairs(records, limit=max_images)
    scorer = train(pairs, epochs)
    scorer.save(output)
    with torch.inference_mode():
        parts = [scorer.encode_images(chunk) for chunk in torch.from_numpy(pairs.images).split(64)]
    RetrievalCaptioner(scorer, torch.cat(parts).numpy(), [said[0] for said in pairs.texts]).save(output)
    logger.info("scorer of %d images in %s", len(pairs.texts), output)


if __name__ == "__main__":
    sys.exit(run_module(main))
