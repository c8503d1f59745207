"""How far drawn images are from real ones, modality by modality, for two releases in one run.

    python -m examples.nano.frechet --model NEW [--before OLD] --records BUILT --out FILE.json [--count 100]

The Frechet distance is that of `unimedvl.evaluation`, in the features of EfficientNet-lite0 (ImageNet), which teaches
nothing in this recipe and was fixed before any training. All images, real ones too, are resized to 64 pixels first, so
that releases of different sizes compare. Real images are those of the training split, which are most. Distances of few
images are biased upwards: the distance between two halves of the real images is given beside them.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
from PIL import Image
from torch import nn
from typer import Option

from unimedvl.evaluation.metrics.distributions import frechet_distance
from unimedvl.evaluation.metrics.image_features import FeatureExtractor, ModuleFeatures
from unimedvl.unimed5m.schema import Record
from unimedvl.unimed5m.task_images import shown_image
from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import write_json

from .asking import Nano
from .captions import ARTICLES
from .imagenet import efficientnet
from .prepare import is_image_request, read_records

SIDE = 64
FEATURE_SIDE = 224


class Lite0(nn.Module):
    """Pooled features (N, 1280) of EfficientNet-lite0 from pixels in [0, 255]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = efficientnet("lite0", "the Frechet distance")

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(pixels_NCHW / 127.5 - 1).mean(dim=(2, 3))


def lite0_features() -> FeatureExtractor:
    """The extractor of this measure."""
    return ModuleFeatures(Lite0(), "efficientnet-lite0", FEATURE_SIDE)


def square(image: Image.Image) -> Image.Image:
    """The whole image at 64 x 64 pixels."""
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def real_images(records: Iterable[Record]) -> dict[str, list[Image.Image]]:
    """The images that records ask for, by modality, of which there are at least two."""
    found: dict[str, list[Image.Image]] = {}
    for record in filter(is_image_request, records):
        found.setdefault(record.modality, []).append(square(shown_image(record.output_img[0])))
    return {modality: found[modality] for modality in ARTICLES if len(found.get(modality, [])) > 1}


def features_of(extractor: FeatureExtractor, images: Mapping[str, Sequence[Image.Image]]) -> dict[str, numpy.ndarray]:
    """Features (N, 1280) of the images of each modality, all at 64 x 64 pixels."""
    return {modality: extractor([square(image) for image in found]) for modality, found in images.items()}


def distances(
    drawn: Mapping[str, numpy.ndarray], real: Mapping[str, numpy.ndarray], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Frechet distance by modality of drawn to real images, and between two halves of the real ones, from features."""
    found: dict[str, dict[str, Any]] = {}
    generator = numpy.random.default_rng(seed)
    for modality, features in sorted(drawn.items()):
        order = generator.permutation(len(real[modality]))
        halves = real[modality][order[::2]], real[modality][order[1::2]]
        found[modality] = {
            "distance": frechet_distance(features, real[modality]),
            "halves of real images": frechet_distance(*halves) if len(order) > 3 else None,
            "drawn": len(features),
            "real": len(order),
        }
    return found


def draw_modalities(nano: Nano, modalities: Sequence[str], count: int, seed: int) -> dict[str, list[Image.Image]]:
    """So many images of each modality, asked for by its name alone."""
    made = {}
    for place, modality in enumerate(modalities):
        article = ARTICLES[modality]
        made[modality] = nano.draw([article[0].upper() + article[1:]] * count, "t2i", seed=seed + place * count)
        print(f"{modality}: {count} images drawn", flush=True)
    return made


def main(
    model: Annotated[str, Option(help="Checkpoint folder.")],
    records: Annotated[str, Option(help="Folder of built unimed-mini records.")],
    out: Annotated[Path, Option(help="Write the figures here (JSON).")],
    before: Annotated[str | None, Option(help="Checkpoint of the release before.")] = None,
    count: Annotated[int, Option(help="Images of each modality.", min=2)] = 100,
    seed: int = 0,
) -> None:
    """Draw, compare with real images, and write the distances."""
    extractor = lite0_features()
    real = features_of(extractor, real_images(read_records(records, "train")))
    modalities = list(real)
    report: dict[str, Any] = {"features": extractor.name, "side": SIDE, "seed": seed}
    for name, folder in (("after", model), ("before", before)):
        if folder is not None:
            drawn = draw_modalities(Nano(folder), modalities, count, seed)
            report[name] = distances(features_of(extractor, drawn), real)
            print(name, json.dumps(report[name]), flush=True)
    if before is not None:
        report["ratio"] = {
            name: report["after"][name]["distance"] / report["before"][name]["distance"] for name in report["after"]
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, report)


if __name__ == "__main__":
    sys.exit(run_module(main))
