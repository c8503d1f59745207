"""What specialists reach on the tasks of the nano's ViT: small networks of one task, trained on the same rows.

    python -m examples.nano.vision_specialists --work WORK --teacher CACHE --result FILE [--steps 400]
                                               [--model CHECKPOINT]

For each source whose images are hard to name: a small convolutional network (evaluation/specialists) and a linear
probe of EfficientNet-lite2, on the held-out part of the training split; by grouped folds over all rows where that part
is small. For masks, one U-Net of all kinds. With `--model` also a linear probe of that checkpoint's frozen ViT, on
held-out rows alone, however few: it was trained on the labels of all others.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy
import torch
import torch.nn.functional as F
from typer import Option

from unimedvl.checkpoint.loading import load
from unimedvl.evaluation.metrics.masks import dice
from unimedvl.evaluation.specialists.networks import AnswerNetwork, UNet
from unimedvl.evaluation.specialists.train import fit
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import write_json

from .probes import FEWEST_HELD_OUT, classified, cross_validated, grouped_folds, probe
from .record_images import Masks, RecordImages
from .teacher_features import teach
from .vision_data import read_corpus
from .vision_measures import pooled_features
from .vision_network import VisionPretraining

SIDE = 64  # of the specialists' images, as in their own training


def squares(images: RecordImages) -> torch.Tensor:
    """Images stretched to squares, float (N, 3, SIDE, SIDE) in [-1, 1], as the specialists take them."""
    return _stretched(images.pixels, images.sizes) / 127.5 - 1


def _stretched(pixels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    made = [
        F.interpolate(image[None, :, :height, :width].float(), (SIDE, SIDE), mode="bicubic", antialias=True)
        for image, (height, width) in zip(pixels, sizes.int().tolist(), strict=True)
    ]
    return torch.cat(made).clamp(0, 255)


Named = Callable[[numpy.ndarray, numpy.ndarray], numpy.ndarray]


def small_network(pixels: torch.Tensor, classes: numpy.ndarray, steps: int, seed: int) -> Named:
    """A function that trains the convolutional network on some places and names the classes of others."""

    def named(fitted: numpy.ndarray, left: numpy.ndarray) -> numpy.ndarray:
        torch.manual_seed(seed)
        known, numbers = numpy.unique(classes[fitted], return_inverse=True)
        truth, inputs = torch.from_numpy(numbers), pixels[fitted]
        network = AnswerNetwork(len(known))

        def loss(chosen: list[int]) -> torch.Tensor:
            return F.cross_entropy(network(inputs[chosen], [""] * len(chosen)), truth[chosen])

        fit(network, len(fitted), loss, steps, seed)
        with torch.no_grad():
            return known[network(pixels[left], [""] * len(left)).argmax(dim=1).numpy()]

    return named


def linear_probe(features: numpy.ndarray, classes: numpy.ndarray) -> Named:
    """A function that fits a linear probe to some places and names the classes of others."""
    return lambda fitted, left: probe(features[fitted], classes[fitted]).predict(features[left])


def judged(
    named: Named, train: numpy.ndarray, held_out: numpy.ndarray, classes: numpy.ndarray, groups: list[str]
) -> dict[str, float]:
    """Accuracy and number of images: on the held-out places, or by folds over all of them where these are few."""
    if len(held_out) >= FEWEST_HELD_OUT:
        return {"accuracy": float((named(train, held_out) == classes[held_out]).mean()), "number": len(held_out)}
    right = sum(int((named(a, b) == classes[b]).sum()) for a, b in grouped_folds(classes, groups))
    return {"accuracy": right / len(classes), "number": len(classes), "folds": 5}


def unet_overlaps(
    train: tuple[RecordImages, Masks], held_out: tuple[RecordImages, Masks], kinds: list[str], steps: int, seed: int
) -> dict[str, float]:
    """Mean Dice of a U-Net of all kinds of masks, by kind."""
    torch.manual_seed(seed)
    network = UNet(len(kinds), residual=False)

    def pairs(images: RecordImages, masks: Masks) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = images.sizes[masks.images]
        inputs = _stretched(images.pixels[masks.images], sizes) / 127.5 - 1
        return inputs, (_stretched(masks.pixels[:, None], sizes)[:, 0] > 127.5).float()

    inputs, truths = pairs(*train)
    numbers = train[1].kinds

    def loss(chosen: list[int]) -> torch.Tensor:
        logits = network(inputs[chosen])[torch.arange(len(chosen)), numbers[chosen]]
        truth, share = truths[chosen], logits.sigmoid()
        overlap = (2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1)
        return F.binary_cross_entropy_with_logits(logits, truth) + 1 - overlap

    fit(network, len(numbers), loss, steps, seed)
    inputs, truths = pairs(*held_out)
    found: dict[str, list[float]] = defaultdict(list)
    with torch.no_grad():
        for place, kind in enumerate(held_out[1].kinds.tolist()):
            drawn = network(inputs[place : place + 1])[0, kind] > 0
            found[kinds[kind]].append(dice(drawn.numpy(), truths[place].numpy() > 0.5))
    return {kind: round(sum(values) / len(values), 4) for kind, values in sorted(found.items())}


def frozen_features(model: str, *parts: RecordImages) -> numpy.ndarray:
    """Means over the patches of the features (N, D) of a checkpoint's ViT, of all images in their order."""
    network = VisionPretraining(load(model, dtype="float32", device="cpu").model.model.vit_model, 1, 1)
    return torch.cat([pooled_features(network, images) for images in parts]).numpy()


def compare(
    work: Path, teacher: Path, steps: int, mask_steps: int, seed: int = 0, model: str | None = None
) -> dict[str, dict]:
    """Every specialist by task, and a probe of a checkpoint's ViT where it is named."""
    corpus = read_corpus(work, teacher)
    assert corpus.teacher is not None
    (train, _), (held_out, _) = corpus.train, corpus.held_out
    pooled = torch.cat([corpus.teacher.pooled, teach(held_out, teacher).pooled]).numpy()
    frozen = None if model is None else frozen_features(model, train, held_out)
    pixels = torch.cat([squares(train), squares(held_out)])
    count = len(train.captions)
    found: dict[str, dict] = {}
    others = classified(held_out)
    for source, (places, labels) in classified(train).items():
        more, their_labels = others.get(source, ([], numpy.array([], dtype=labels.dtype)))
        rows = numpy.array([*places, *(count + place for place in more)])
        classes = numpy.concatenate([labels, their_labels])
        groups = [train.groups[place] for place in places] + [held_out.groups[place] for place in more]
        fitted, left = numpy.arange(len(places)), numpy.arange(len(places), len(rows))
        features = pooled[rows]
        small = small_network(pixels[rows], classes, steps, seed)
        started = time.perf_counter()
        found[source] = {
            "majority": float(max(numpy.unique(classes, return_counts=True)[1]) / len(classes)),
            "linear probe": judged(linear_probe(features, classes), fitted, left, classes, groups),
            "linear probe by folds": cross_validated(features, classes, groups),
            "small network": judged(small, fitted, left, classes, groups),
        }
        if frozen is not None and len(left):
            hits = linear_probe(frozen[rows], classes)(fitted, left) == classes[left]
            found[source]["linear probe of the model's ViT"] = {"accuracy": float(hits.mean()), "number": len(left)}
        print(json.dumps({source: found[source]}), f"{time.perf_counter() - started:.0f} s", flush=True)
    if mask_steps:
        found["masks"] = unet_overlaps(corpus.train, corpus.held_out, corpus.kinds, mask_steps, seed)
        print(json.dumps(found["masks"]), flush=True)
    return found


def main(
    work: Annotated[Path, Option(help="Folder that `prepare` has filled.")],
    teacher: Annotated[Path, Option(help="Folder of the features of EfficientNet-lite2.")],
    result: Annotated[Path, Option(help="JSON file of the figures.")],
    steps: Annotated[int, Option(help="Of each convolutional network.")] = 400,
    mask_steps: Annotated[int, Option(help="Of the U-Net; 0 for none.")] = 400,
    model: Annotated[str | None, Option(help="Checkpoint whose ViT is probed.")] = None,
    seed: int = 0,
) -> None:
    found = compare(work, teacher, steps, mask_steps, seed, model)
    settings = {"steps": steps, "mask_steps": mask_steps, "side": SIDE, "seed": seed}
    write_json(result, {**settings, "tasks": found})


if __name__ == "__main__":
    sys.exit(run_module(main))
