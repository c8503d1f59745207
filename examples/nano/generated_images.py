"""Images that the nano makes from text alone: are they recognized, and are they new?

The judge is a small convolutional network of its own, trained on the real images of the training split to name their
captions; it shares nothing with the nano.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_model, save_model
from torch import nn

from unimedvl.evaluation.metrics.intervals import mean_interval, proportion_interval, ratio_interval
from unimedvl.evaluation.metrics.nearest import nearest, thumbnails
from unimedvl.processing.image_processing_unimedvl import pixels_from_image
from unimedvl.unimed5m.schema import Record

from .asking import Nano
from .captions import ARTICLES
from .model import SIDE
from .prepare import is_image_request, small
from .record_images import CANVAS, RecordImages, images_of, read_images
from .resumable_loop import one_cycle
from .views import views

CLASS_PROMPTS = {
    "nih-chestxray14-subset": "a frontal chest radiograph, labeled {label}",
    "lc25000-lung": "an H&E histopathology image, lung, labeled {label}",
    "brain-tumor-classification": "a brain MRI, labeled {label}",
}
BY_MODALITY, BY_CLASS, CLOSER = MADE = (
    "text to image: modality recognized",
    "text to image: class recognized",
    "text to image: closer to training images than 5 % of real ones",
)
PER_MODALITY, PER_CLASS = 24, 16
JUDGE_STEPS = 1500
CLOSE = 5.0  # percentile of real validation images' distances to training images


def make_judge(captions: int) -> nn.Module:
    """Scores (N, captions) of images (N, 3, SIDE, SIDE) in [-1, 1]."""
    layers: list[nn.Module] = []
    widths = (3, 24, 48, 96, 128)
    for number, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers += [nn.Conv2d(before, after, 3, stride=1 if number == 0 else 2, padding=1), nn.GroupNorm(8, after)]
        layers += [nn.ReLU()]
    layers += [nn.Conv2d(128, 128, 3, padding=1), nn.GroupNorm(8, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, captions))


def train_judge(train: RecordImages, captions: int, steps: int, batch: int = 32, seed: int = 1) -> nn.Module:
    """Train on random views of the training images."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = make_judge(captions).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types no memory format alone
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = one_cycle(optimizer, 2e-3, steps, rising=0.1)
    for _ in range(steps):
        index = torch.multinomial(train.rarity, batch, replacement=True, generator=generator)
        images = views(train, index, generator).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(judge(images), train.captions[index], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def load_judge(work: Path) -> tuple[nn.Module, RecordImages, list[str]]:
    """The judge, the training images, and their captions; a judge is trained once for each work folder."""
    names: list[str] = []
    train = read_images(work, "train", names)
    path = work / "judge.safetensors"
    if not path.is_file():
        save_model(train_judge(train, len(names), JUDGE_STEPS), str(path))
    judge = make_judge(len(names))
    load_model(judge, path)
    return judge.eval(), train, names


@torch.no_grad()
def judged(judge: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Number of the caption that each image gets."""
    return torch.cat([judge(part).argmax(dim=1) for part in images.split(64)])


def as_views(images: Sequence[Image.Image]) -> torch.Tensor:
    """Generated images (N, 3, SIDE, SIDE) in [-1, 1]."""
    assert all(image.size == (SIDE, SIDE) for image in images)
    return torch.stack([torch.from_numpy(pixels_from_image(image.convert("RGB")).copy()) for image in images])


def view_thumbnails(views: torch.Tensor) -> numpy.ndarray:
    """Thumbnails (N, 1024), as the search for copies takes them, of views (N, 3, SIDE, SIDE) in [-1, 1]."""
    levels = ((views.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return thumbnails([Image.fromarray(image) for image in levels])


def caption_label(name: str, labels: Sequence[str]) -> str:
    """The label that a caption ends with, the longest that fits."""
    fitting = [label for label in labels if name.endswith(label)]
    return max(fitting, key=len, default="")


def made_images(nano: Nano, records: Sequence[Record], work: Path, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Recognition by modality and by class, and how close generated images come to training images."""
    judge, train, names = load_judge(work)
    chosen = [record for record in records if is_image_request(record)]
    fits = [max(p.width, p.height) <= CANVAS for p in (record.output_img[0] for record in chosen)]
    reals = images_of([r if fit else small(r) for r, fit in zip(chosen, fits, strict=True)], names)
    shown = torch.cat([views(reals, index, None) for index in torch.arange(len(chosen)).split(64)])
    verdicts = judged(judge, shown)
    kinds = {number: train.modalities[place] for place, number in enumerate(train.captions.tolist())}
    train_views = torch.cat([views(train, index, None) for index in torch.arange(len(train.captions)).split(256)])

    results: dict[str, dict[str, Any]] = {}
    real_hits = [kinds[verdict] == kind for verdict, kind in zip(verdicts.tolist(), reals.modalities, strict=True)]
    prompts, wanted = [], []
    for modality in ARTICLES:
        article = ARTICLES[modality]
        prompts += [article[0].upper() + article[1:]] * PER_MODALITY
        wanted += [modality] * PER_MODALITY
    made = as_views(nano.draw(prompts, "t2i", seed=seed))
    hits = [kinds[verdict] == kind for verdict, kind in zip(judged(judge, made).tolist(), wanted, strict=True)]
    by_modality = {
        kind: sum(hit for hit, other in zip(hits, wanted, strict=True) if other == kind) / PER_MODALITY
        for kind in ARTICLES
    }
    patients = [record.group_id for record in chosen]
    results[BY_MODALITY] = proportion_interval(hits) | {
        "real images": mean_interval([float(hit) for hit in real_hits], patients),
        "by modality": by_modality,
    }
    images, asked = _class_images(nano, chosen, seed + 1000)
    labels = sorted({label for _, label in asked})
    verdict_labels = [caption_label(names[verdict], labels) for verdict in judged(judge, images).tolist()]
    class_hits = [verdict == label for verdict, (_, label) in zip(verdict_labels, asked, strict=True)]
    of_class = [place for place, record in enumerate(chosen) if record.dataset in CLASS_PROMPTS]
    real_class = [float(verdicts[place] == reals.captions[place]) for place in of_class]
    class_patients = [patients[place] for place in of_class]
    # Each generated image comes from noise of its own.
    generated = [float(hit) for hit in class_hits], range(len(class_hits))
    results[BY_CLASS] = proportion_interval(class_hits) | {
        "real images": mean_interval(real_class, class_patients),
        "ratio to real": ratio_interval(generated, (real_class, class_patients)),
        "by class": {
            label: sum(hit for hit, (_, other) in zip(class_hits, asked, strict=True) if other == label) / PER_CLASS
            for label in labels
        },
    }
    results[CLOSER] = _closeness(
        torch.cat([made, images]),
        [*wanted, *("HIS" if source == "lc25000-lung" else _modality_of(source) for source, _ in asked)],
        (shown, reals.modalities),
        (train_views, train.modalities),
    )
    return results


def _modality_of(source: str) -> str:
    return {"nih-chestxray14-subset": "CXR", "brain-tumor-classification": "MRI", "lc25000-lung": "HIS"}[source]


def _class_images(nano: Nano, records: Sequence[Record], seed: int) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    prompts, asked = [], []
    for source, template in CLASS_PROMPTS.items():
        found = {json.loads(record.extra).get("label", "") for record in records if record.dataset == source}
        for label in sorted(found - {""}):
            prompts += [f"Generate an image: {template.format(label=label)}."] * PER_CLASS
            asked += [(source, label)] * PER_CLASS
    return as_views(nano.draw(prompts, "t2i", seed=seed)), asked


def _closeness(
    made: torch.Tensor,
    kinds: Sequence[str],
    real: tuple[torch.Tensor, Sequence[str]],
    train: tuple[torch.Tensor, Sequence[str]],
) -> dict[str, Any]:
    """Share of generated images nearer to a training image of their modality than the nearest 5 % of real ones."""
    close: list[bool] = []
    means: dict[str, list[float]] = {}
    for kind in sorted(set(kinds)):
        pool = view_thumbnails(train[0][torch.tensor([other == kind for other in train[1]])])
        of_kind = torch.tensor([other == kind for other in real[1]])
        if not bool(of_kind.any()):
            continue
        real_distances = nearest(view_thumbnails(real[0][of_kind]), pool)[0]
        distances = nearest(view_thumbnails(made[torch.tensor([other == kind for other in kinds])]), pool)[0]
        close += (distances < numpy.percentile(real_distances, CLOSE)).tolist()
        means[kind] = [255 * float(distances.mean()), 255 * float(real_distances.mean())]
    return proportion_interval(close) | {"mean distance, generated and real, in gray levels": means}
