"""Pre-training of the nano's ViT: which caption belongs to an image, and where in it a structure lies.

    python -m examples.nano.vision --work WORK --out FOLDER [--steps 3600]

The paper's ViT comes pre-trained on image-text pairs (SigLIP 2); the nano's is trained on its own records. They hold a
few dozen different captions, so the contrast of images and texts is a choice among all captions, and a mean of
the features with one vector for each caption decides. The feature of a patch also decides which of its pixels belong
to a structure, by a linear map for each kind of mask, where SigLIP 2 learns to localize. Vectors and maps are thrown
away.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_model
from torch import nn
from transformers import AutoTokenizer
from typer import Option

from unimedvl.evaluation.metrics.masks import dice
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLVAEConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLModel
from unimedvl.unimed5m.schema import Record
from unimedvl.utils.command_line import run_module

from .captions import UNNAMED_LABELS
from .model import SIDE, TABLE_SIDE, VISION_FILE, VIT_PATCH, build_config, initialize_vision
from .prepare import image_of, is_image_request, record_digests, work_records
from .resumable_loop import EVERY, ResumableSteps

CANVAS = 88  # longer side in pixels of the records' images
MIRRORED = ("CT", "MRI", "US", "HIS", "ENDO", "OCT")  # left is left in a chest film
TURNED = ("HIS", "ENDO")
# Sources whose captions are distinguished by what the image shows, not by what kind of image it is.
FOCUS = ("brain-tumor-classification", "nih-chestxray14-subset", "lc25000-lung")


@dataclass
class RecordImages:
    """`pixels` uint8 (N, 3, CANVAS, CANVAS) with the image in the upper left, its `sizes` (N, 2) as (height, width),
    the number of its caption among all, its modality and its source."""

    pixels: torch.Tensor
    sizes: torch.Tensor
    captions: torch.Tensor
    modalities: list[str]
    sources: list[str]

    @cached_property
    def rarity(self) -> torch.Tensor:
        """How often to draw each image (N,): by one over the square root of how often its caption occurs."""
        return torch.bincount(self.captions)[self.captions].float() ** -0.5


def caption_of(record: Record) -> str:
    """What the source states about the image, in the words of its caption."""
    extra = json.loads(record.extra)
    label = "" if record.dataset in UNNAMED_LABELS else extra.get("label", "")
    return f"{extra.get('submodality', '')} {extra.get('anatomy', '')} {label}".strip()


def structure_of(record: Record) -> str:
    """What the record's mask shows, as "source: structure"."""
    return f"{record.dataset}: {json.loads(record.extra)['target']}"


def read_images(work: Path, split: str, names: list[str]) -> RecordImages:
    """One image for each built request for an image; `names` collects the captions.

    Raises:
        ValueError: where there is none.
    """
    records = list(filter(is_image_request, work_records(work, split)))
    if not records:
        raise ValueError(f"{work} holds no image of its {split} part: build more records.")
    return images_of(records, names)


def read_masked_images(work: Path, split: str, names: list[str]) -> tuple[RecordImages, torch.Tensor]:
    """The images of the segmentation records with their masks (see `masked_views`); `names` collects what is
    masked in the place of captions."""
    records = [record for record in work_records(work, split) if record.sub_task_type == "segmentation"]
    if not records:
        raise ValueError(f"{work} holds no segmentation record of its {split} part: build records that have masks.")
    shown = [record.replace(output_img=record.input_img) for record in records]
    masks = torch.stack([torch.from_numpy(_on_canvas(image_of(record))).amax(dim=0) for record in records])
    return images_of(shown, names, structure_of), (masks > 127).to(torch.uint8) * 255


def _on_canvas(image: Image.Image) -> numpy.ndarray:
    array = numpy.asarray(image)
    canvas = numpy.zeros((3, CANVAS, CANVAS), dtype=numpy.uint8)
    canvas[:, : array.shape[0], : array.shape[1]] = array.transpose(2, 0, 1)
    return canvas


def images_of(
    records: Iterable[Record], names: list[str], naming: Callable[[Record], str] = caption_of
) -> RecordImages:
    """The images of small records; `names` collects their captions, or what `naming` puts in their place."""
    pixels, sizes, captions, modalities, sources = [], [], [], [], []
    for record in records:
        caption = naming(record)
        if caption not in names:
            names.append(caption)
        image = image_of(record)
        pixels.append(torch.from_numpy(_on_canvas(image)))
        sizes.append((image.height, image.width))
        captions.append(names.index(caption))
        modalities.append(record.modality)
        sources.append(record.dataset)
    return RecordImages(torch.stack(pixels), torch.tensor(sizes).float(), torch.tensor(captions), modalities, sources)


def views(originals: RecordImages, index: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Square views (N, 3, SIDE, SIDE) in [-1, 1]: random ones, or with no generator the central squares."""
    pixels = originals.pixels[index].float() / 127.5 - 1.0
    shorter = originals.sizes[index].min(dim=1).values
    grid = _grid(originals, index, shorter, generator)
    images = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return images if generator is None else _lit(images, generator)


def masked_views(
    originals: RecordImages, masks: torch.Tensor, index: torch.Tensor, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of whole images, black beside them, and of their masks (N, SIDE, SIDE) in [0, 1].

    Args:
        masks: uint8 (N, CANVAS, CANVAS), 0 or 255.
    """
    pixels = originals.pixels[index].float() / 127.5
    longer = originals.sizes[index].max(dim=1).values
    grid = _grid(originals, index, longer, generator)
    both = torch.cat([pixels, masks[index].float()[:, None] / 255], dim=1)
    sampled = F.grid_sample(both, grid, padding_mode="zeros", align_corners=False)
    images = sampled[:, :3] - 1.0
    return (images if generator is None else _lit(images, generator)), sampled[:, 3]


def _uniform(count: int, generator: torch.Generator | None, low: float, high: float) -> torch.Tensor:
    if generator is None:
        return torch.full((count,), (low + high) / 2)
    return torch.rand(count, generator=generator) * (high - low) + low


def _grid(
    images: RecordImages, index: torch.Tensor, side: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """Where to sample squares of at most `side` canvas pixels, for `grid_sample`."""
    sizes, count = images.sizes[index], len(index)

    def uniform(low: float, high: float) -> torch.Tensor:
        return _uniform(count, generator, low, high)

    side = side * (uniform(0.7, 1.0) if generator else 1.0)
    center = sizes / 2 + (sizes - side[:, None]) * torch.stack([uniform(-0.5, 0.5), uniform(-0.5, 0.5)], dim=1)
    angle = uniform(-0.2, 0.2)
    mirror = torch.ones(count)
    if generator is not None:
        free = torch.tensor([images.modalities[i] in MIRRORED for i in index.tolist()])
        mirror = torch.where(free & (uniform(0, 1) < 0.5), -1.0, 1.0)
        turned = torch.tensor([images.modalities[i] in TURNED for i in index.tolist()])
        angle = angle + turned * (uniform(0, 4).floor() * math.pi / 2)
    cosine, sine = angle.cos() * side / CANVAS, angle.sin() * side / CANVAS
    offset = center * 2 / CANVAS - 1
    theta = torch.stack(
        [
            torch.stack([cosine * mirror, -sine, offset[:, 1]], 1),
            torch.stack([sine * mirror, cosine, offset[:, 0]], 1),
        ],
        dim=1,
    )
    return F.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False)


def _lit(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images in [-1, 1] in other light."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return _uniform(len(images), generator, low, high)

    light = (images + 1) / 2
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    light = (light - mean) * uniform(0.75, 1.25)[:, None, None, None] + mean
    gains = torch.stack([uniform(0.95, 1.05) for _ in range(3)], dim=1) * uniform(0.8, 1.2)[:, None]
    return (light * gains[:, :, None, None]).clamp(0, 1) * 2 - 1


def patches(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, SIDE, SIDE) to rows (N * patches, VIT_PATCH * VIT_PATCH * 3), each (py, px, channel)."""
    rows = SIDE // VIT_PATCH
    split = images.reshape(len(images), 3, rows, VIT_PATCH, rows, VIT_PATCH).permute(0, 2, 4, 3, 5, 1)
    return split.reshape(len(images) * rows * rows, -1)


class CaptionChoice(nn.Module):
    """The ViT with a vector for each caption, and for each kind of mask a map from a patch's feature to its pixels."""

    def __init__(self, vit: nn.Module, captions: int, kinds: int):
        super().__init__()
        config: Any = vit.config
        self.vit, self.head = vit, nn.Linear(config.hidden_size, captions)
        self.mask_head = nn.Linear(config.hidden_size, kinds * VIT_PATCH**2)
        rows = torch.arange(SIDE // VIT_PATCH)
        self.positions = (rows[:, None] * TABLE_SIDE + rows[None, :]).flatten()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, patches, width) of views (N, 3, SIDE, SIDE)."""
        length = len(self.positions)
        features = self.vit(patches(images), self.positions.repeat(len(images)), [length] * len(images))
        return features.reshape(len(images), length, -1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores (N, captions) of views (N, 3, SIDE, SIDE)."""
        return self.head(self.features(images).mean(dim=1))

    def masks(self, features: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Scores (N, SIDE, SIDE) of the pixels, from features (N, patches, width) and kinds of mask (N,)."""
        rows = SIDE // VIT_PATCH
        scores = self.mask_head(features).reshape(len(features), rows, rows, -1, VIT_PATCH, VIT_PATCH)
        chosen = scores[torch.arange(len(features)), :, :, kinds]
        return chosen.permute(0, 1, 3, 2, 4).reshape(len(features), SIDE, SIDE)


def mask_loss(scores: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the pixels plus one minus the soft overlap of each image, means over images (N, H, W)."""
    shares = scores.sigmoid()
    overlap = 2 * (shares * masks).sum(dim=(1, 2)) / (shares.sum(dim=(1, 2)) + masks.sum(dim=(1, 2)) + 1.0)
    return F.binary_cross_entropy_with_logits(scores, masks) + (1 - overlap).mean()


@torch.no_grad()
def overlaps(model: CaptionChoice, originals: RecordImages, masks: torch.Tensor) -> dict[str, float]:
    """Mean Dice over the images of each source."""
    model.eval()
    found: dict[str, list[float]] = {}
    for index in torch.arange(len(originals.captions)).split(64):
        images, real = masked_views(originals, masks, index, None)
        drawn = model.masks(model.features(images), originals.captions[index]) > 0
        for place, mask, truth in zip(index.tolist(), drawn.numpy(), (real > 0.5).numpy(), strict=True):
            found.setdefault(originals.sources[place], []).append(dice(mask, truth))
    model.train()
    return {f"Dice {source}": round(sum(values) / len(values), 3) for source, values in sorted(found.items())}


@torch.no_grad()
def accuracy(model: CaptionChoice, images: RecordImages) -> dict[str, float]:
    """Share of images whose caption scores highest, over all and for each source."""
    model.eval()
    right: Counter[str] = Counter()
    for index in torch.arange(len(images.captions)).split(64):
        chosen = model(views(images, index, None)).argmax(dim=1)
        for place, hit in zip(index.tolist(), (chosen == images.captions[index]).tolist(), strict=True):
            right[images.sources[place]] += hit
            right["all"] += hit
    model.train()
    totals = Counter(images.sources) + Counter({"all": len(images.captions)})
    return {name: round(right[name] / totals[name], 3) for name in sorted(totals)}


def pretrain(
    work: Path,
    folder: Path,
    steps: int,
    batch: int = 24,
    rate: float = 1e-3,
    seed: int = 0,
    focus: float = 4.0,
) -> tuple[nn.Module, dict]:
    """Train for `steps`, from the last checkpoint in `folder` on; returns the ViT and what was measured on the
    held-out part.

    Args:
        batch: images of a step, and as many with masks.
        focus: how much more often than by `Images.rarity` the images of `FOCUS` are drawn.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    names: list[str] = []
    train, held_out = (read_images(work, split, names) for split in ("train", "validation"))
    kinds: list[str] = []
    masked, masked_held_out = (read_masked_images(work, split, kinds) for split in ("train", "validation"))
    model = CaptionChoice(untrained(work), len(names), len(kinds)).train()
    rarity = train.rarity * torch.tensor([focus if source in FOCUS else 1.0 for source in train.sources])
    decayed = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    plain = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    settings = {"batch": batch, "rate": rate, "seed": seed, "focus": focus, **record_digests(work)}
    course, total = ResumableSteps(folder, steps, model, optimizer, schedule, generator, settings), 0.0

    def measure() -> dict:
        return {**accuracy(model, held_out), **overlaps(model, *masked_held_out)}

    for step in course:
        index = torch.multinomial(rarity, batch, replacement=True, generator=generator)
        drawn = torch.multinomial(masked[0].rarity, batch, replacement=True, generator=generator)
        others, masks = masked_views(*masked, drawn, generator)
        features = model.features(torch.cat([views(train, index, generator), others]))
        scores = model.head(features[:batch].mean(dim=1))
        loss = F.cross_entropy(scores, train.captions[index], label_smoothing=0.1)
        loss = loss + mask_loss(model.masks(features[batch:], masked[0].captions[drawn]), masks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % EVERY == 0 and step < steps:
            found = {"step": step, "loss": total / EVERY, **measure()}
            print(json.dumps(found), f"{course.seconds_left(step):.0f} s left", flush=True)
            total = 0.0
    measured = {"steps": steps, "seconds": round(course.seconds), **measure()}
    print(json.dumps(measured), flush=True)
    return model.vit, measured


def untrained(work: Path) -> nn.Module:
    """A ViT of random weights (see `initialize_vision`)."""
    config = build_config(AutoTokenizer.from_pretrained(work / "tokenizer"), UniMedVLVAEConfig().to_dict())
    vit = UniMedVLModel(config).vit_model
    initialize_vision(vit)
    return vit


def main(
    work: Annotated[Path, Option(help="Folder that `prepare` has filled.")],
    out: Annotated[Path, Option(help="Folder of the weights.")],
    steps: int = 3600,
    batch: Annotated[int, Option(help="Images, and as many with masks.")] = 24,
    rate: float = 1e-3,
    focus: Annotated[float, Option(help="Weight of the sources of `FOCUS`.")] = 4.0,
    seed: int = 0,
) -> None:
    vit, measured = pretrain(work, out, steps, batch=batch, rate=rate, seed=seed, focus=focus)
    save_model(vit, str(out / VISION_FILE))
    (out / "vision.json").write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_module(main))
