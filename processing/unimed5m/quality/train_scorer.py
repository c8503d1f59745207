"""Train the compact image-text scorer on the training split of built records.

    python -m unimedvl.processing.unimed5m.quality.train_scorer RECORDS OUT [--epochs 12] [--max-records N]

Writes the scorer and the neighbour table of the captioner that goes with it to OUT. Minutes on one CPU core.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

from ..pipeline import batches, shard_paths
from .pictures import DAMAGED, open_picture
from .scorer import CompactScorer, RetrievalCaptioner, pixels
from .text import ALIGNED_TASKS, described_image, original_text

logger = logging.getLogger(__name__)
COLUMNS = ("sub_task_type", "split", "input_img", "output_img", "message")


def read_pairs(records: str | Path, split: str = "train", limit: int | None = None) -> tuple[numpy.ndarray, list[str]]:
    """Images uint8 (N, 3, 64, 64) and texts of the records of a split whose text describes an image."""
    images, texts = [], []
    for path in shard_paths(records):
        for batch in batches(path, COLUMNS):
            for row in batch.to_pylist():
                if row["split"] != split or row["sub_task_type"] not in ALIGNED_TASKS:
                    continue
                data = described_image(row)
                if data is None:
                    continue
                try:
                    images.append(pixels(open_picture(data, "RGB")))
                except DAMAGED:
                    # Damaged files are the coarse filter's to report; nothing can be learned from them.
                    continue
                texts.append(original_text(row))
    if not images:
        raise ValueError(f"expected {split} records with an image and a text about it in {records}, found none")
    if limit is not None and len(images) > limit:
        chosen = numpy.random.default_rng(0).permutation(len(images))[:limit]
        images, texts = [images[place] for place in chosen], [texts[place] for place in chosen]
    return numpy.stack(images), texts


def train(
    images: numpy.ndarray, texts: Sequence[str], epochs: int = 12, batch: int = 64, rate: float = 2e-3, seed: int = 0
) -> CompactScorer:
    """Fit the sigmoid loss of SigLIP over all pairs of a batch; equal texts count as matching each other."""
    torch.manual_seed(seed)
    scorer = CompactScorer().train()
    optimiser = torch.optim.AdamW(scorer.parameters(), lr=rate, weight_decay=0.05)
    steps = max(1, len(texts) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps)
    generator = numpy.random.default_rng(seed)
    for epoch in range(epochs):
        order, total, started = generator.permutation(len(texts)), 0.0, time.monotonic()
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            chunk = torch.from_numpy(_augment(images[chosen], generator))
            words = [texts[place] for place in chosen]
            logits = scorer.encode_images(chunk) @ scorer.encode_texts(words).T * scorer.scale.exp() + scorer.bias
            match = torch.tensor([[one == other for other in words] for one in words], dtype=torch.float32)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, match, reduction="sum") / len(words)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        logger.info("epoch %d: loss %.3f, %.0f s", epoch + 1, total / steps, time.monotonic() - started)
    return scorer.eval()


def _augment(images: numpy.ndarray, generator: numpy.random.Generator) -> numpy.ndarray:
    """Shift by up to four pixels and change the brightness a little. No mirroring: texts name sides."""
    up, left = generator.integers(-4, 5, size=2)
    shifted = numpy.roll(images, (up, left), axis=(2, 3)).astype(numpy.float32)
    gain = generator.uniform(0.85, 1.15, size=(len(images), 1, 1, 1))
    return numpy.clip(shifted * gain, 0, 255).astype(numpy.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of built records")
    parser.add_argument("output", type=Path, help="folder for the scorer")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--max-records", type=int, default=None, help="train on a random part of this size")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    images, texts = read_pairs(options.records, limit=options.max_records)
    scorer = train(images, texts, options.epochs)
    scorer.save(options.output)
    with torch.inference_mode():
        parts = [
            scorer.encode_images(torch.from_numpy(images[start : start + 64])) for start in range(0, len(images), 64)
        ]
    RetrievalCaptioner(scorer, torch.cat(parts).numpy(), texts).save(options.output)
    logger.info("scorer of %d records in %s", len(texts), options.output)


if __name__ == "__main__":
    main()
