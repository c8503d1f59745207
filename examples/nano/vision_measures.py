"""What a ViT in training is judged by, on images in the form in which the nano reads them.

Shape legend: N images, D hidden, C captions.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from unimedvl.evaluation.metrics.masks import dice
from unimedvl.processing.image_processing_unimedvl import reference_size

from .captions import FIRST_REFERABLE, GRADED, GRADES
from .model import SIDE, VIT_PATCH, image_transform
from .probes import classified
from .record_images import UNCAPTIONED, Masks, RecordImages
from .vision_network import VisionPretraining, whole_mask

BATCH = 64


def shown(images: RecordImages, side: int = SIDE) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Images as the nano's processor resizes them: batches of one size, as places and float (n, 3, h, w) in
    [-1, 1]."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, (height, width) in enumerate(images.sizes.int().tolist()):
        found[height, width].append(place)
    for (height, width), places in sorted(found.items()):
        wide, high = reference_size(width, height, **image_transform(VIT_PATCH, side))
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            pixels = images.pixels[some, :, :height, :width].float()
            small = F.interpolate(pixels, (high, wide), mode="bicubic", antialias=True).clamp(0, 255)
            yield some, small / 127.5 - 1


@torch.no_grad()
def pooled_features(network: VisionPretraining, images: RecordImages, side: int = SIDE) -> torch.Tensor:
    """Means of the features over the patches, float32 (N, D) on the processor."""
    pooled = torch.zeros(len(images.captions), network.caption_head.in_features)
    network.eval()
    for places, batch in shown(images, side):
        pooled[places] = network.features(batch).mean(dim=1).float().cpu()
    network.train()
    return pooled


@torch.no_grad()
def measure(
    network: VisionPretraining,
    images: RecordImages,
    masks: Masks,
    names: Sequence[str],
    kinds: Sequence[str],
    side: int = SIDE,
) -> dict[str, dict[str, float]]:
    """What the heads make of images.

    Returns:
        "accuracy" and "cross-entropy" (nats) of the captions by source and over all, with "referable" for
        retinopathy; mean "Dice" by kind of mask, at the size at which the nano reads the images, and the mean over
        kinds; "number" of images and masks of each.
    """
    places_of: dict[int, list[int]] = defaultdict(list)
    for number, place in enumerate(masks.images.tolist()):
        places_of[place].append(number)
    logits = torch.zeros(len(images.captions), len(names))
    overlaps: dict[str, list[float]] = defaultdict(list)
    network.eval()
    for places, batch in shown(images, side):
        features = network.features(batch)
        logits[places] = network.captions(features).float().log_softmax(dim=1).cpu()
        pairs = [(row, number) for row, place in enumerate(places) for number in places_of[place]]
        if not pairs:
            continue
        rows, numbers = (torch.tensor(column, device=batch.device) for column in zip(*pairs, strict=True))
        drawn = whole_mask(network.masks(features[rows], masks.kinds[numbers]), *batch.shape[-2:]) > 0
        height, width = images.sizes[places[0]].int().tolist()
        truth = masks.pixels[numbers, :height, :width].float()[:, None]
        real = F.interpolate(truth, batch.shape[-2:], mode="bilinear", antialias=True)[:, 0] > 127.5
        for mask, other, kind in zip(drawn.cpu(), real.cpu(), masks.kinds[numbers].tolist(), strict=True):
            if other.any():  # lesions of a pixel or two are lost at this size
                overlaps[kinds[kind]].append(dice(mask.numpy(), other.numpy()))
    network.train()
    found = _caption_measures(logits, images, names)
    means = {kind: sum(values) / len(values) for kind, values in sorted(overlaps.items())}
    found["Dice"] = {**means, "mean": sum(means.values()) / len(means)}
    found["number"] |= {kind: len(values) for kind, values in sorted(overlaps.items())}
    return {name: {key: round(value, 4) for key, value in values.items()} for name, values in found.items()}


def _caption_measures(logits: torch.Tensor, images: RecordImages, names: Sequence[str]) -> dict[str, dict[str, float]]:
    truth = images.captions.cpu()
    sets = {name: [i for i, source in enumerate(images.sources) if source == name] for name in set(images.sources)}
    sets["all"] = list(range(len(truth)))
    found: dict[str, dict[str, float]] = {"accuracy": {}, "cross-entropy": {}, "number": {}}
    for name, places in sorted(sets.items()):
        stated = [place for place in places if truth[place] != UNCAPTIONED]
        if stated:
            right = logits[stated].argmax(dim=1) == truth[stated]
            found["accuracy"][name] = float(right.float().mean())
            found["cross-entropy"][name] = float(F.nll_loss(logits[stated], truth[stated]))
            found["number"][name] = len(stated)
    graded = classified(images).get(GRADED)
    if graded is not None:
        places, classes = graded
        referable = torch.tensor([any(grade in name for grade in GRADES[FIRST_REFERABLE:]) for name in names])
        said = logits[places].exp()[:, referable].sum(dim=1) > 0.5
        found["accuracy"]["referable"] = float((said.numpy() == (classes == "referable")).mean())
        found["number"]["referable"] = len(places)
    return found
