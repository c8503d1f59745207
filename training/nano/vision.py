"""Pre-training of the nano's ViT: which caption belongs to a picture.

    python -m unimedvl.training.nano.vision --work WORK --out FOLDER [--steps 2800]

The paper's ViT comes pre-trained on image-text pairs (SigLIP 2); the nano's learns from its own records. They hold a
few dozen different captions, so the contrast of images and texts is a choice among all captions, and a mean of
the features with one vector for each caption decides. The vectors are thrown away.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoTokenizer

from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLVAEConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLModel
from unimedvl.processing.unimed5m.schema import Record
from unimedvl.processing.unimed5m.shards import batches

from .model import SIDE, TABLE_SIDE, VISION_FILE, VIT_PATCH, build_config
from .prepare import UNNAMED_LABELS, picture_of

CANVAS = 88  # longer side in pixels of the records' pictures
MIRRORED = ("CT", "MRI", "US", "HIS", "ENDO", "OCT")  # left is left in a chest film
TURNED = ("HIS", "ENDO")
# Sources whose captions are told apart by what the picture shows, not by what kind of picture it is.
FOCUS = ("brain-tumor-classification", "nih-chestxray14-subset", "lc25000-lung")


@dataclass
class Pictures:
    """`pixels` uint8 (N, 3, CANVAS, CANVAS) with the picture in the upper left, its `sizes` (N, 2) as (height, width),
    its caption's number, and its modality."""

    pixels: torch.Tensor
    sizes: torch.Tensor
    captions: torch.Tensor
    modalities: list[str]
    sources: list[str]


def caption_of(record: Record) -> str:
    """What the source states about the picture, in the words of its caption."""
    extra = json.loads(record.extra)
    label = "" if record.dataset in UNNAMED_LABELS else extra.get("label", "")
    return f"{extra.get('submodality', '')} {extra.get('anatomy', '')} {label}".strip()


def read_pictures(work: Path, split: str, names: list[str]) -> Pictures:
    """One picture for each built request for a picture; `names` collects the captions."""
    tables = batches(work / "records" / "data" / f"{split}-00000-of-00001.parquet")
    rows = (row for table in tables for row in table.to_pylist())
    wanted = (row for row in rows if row["sub_task_type"] == "text_to_image" and not row["id"].endswith("-plain"))
    return pictures_of((Record.from_row(row) for row in wanted), names)


def pictures_of(records: Iterable[Record], names: list[str]) -> Pictures:
    """The pictures of small records; `names` collects the captions."""
    pixels, sizes, captions, modalities, sources = [], [], [], [], []
    for record in records:
        caption = caption_of(record)
        if caption not in names:
            names.append(caption)
        array = numpy.asarray(picture_of(record))
        canvas = numpy.zeros((3, CANVAS, CANVAS), dtype=numpy.uint8)
        canvas[:, : array.shape[0], : array.shape[1]] = array.transpose(2, 0, 1)
        pixels.append(torch.from_numpy(canvas))
        sizes.append(array.shape[:2])
        captions.append(names.index(caption))
        modalities.append(record.modality)
        sources.append(record.dataset)
    return Pictures(torch.stack(pixels), torch.tensor(sizes).float(), torch.tensor(captions), modalities, sources)


def views(pictures: Pictures, index: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Square views (N, 3, SIDE, SIDE) in [-1, 1]: random ones, or with no generator the central squares."""
    pixels = pictures.pixels[index].float() / 127.5 - 1.0
    sizes, count = pictures.sizes[index], len(index)

    def uniform(low: float, high: float) -> torch.Tensor:
        if generator is None:
            return torch.full((count,), (low + high) / 2)
        return torch.rand(count, generator=generator) * (high - low) + low

    side = sizes.min(dim=1).values * (uniform(0.7, 1.0) if generator else 1.0)
    centre = sizes / 2 + (sizes - side[:, None]) * torch.stack([uniform(-0.5, 0.5), uniform(-0.5, 0.5)], dim=1)
    angle = uniform(-0.2, 0.2)
    mirror = torch.ones(count)
    if generator is not None:
        free = torch.tensor([pictures.modalities[i] in MIRRORED for i in index.tolist()])
        mirror = torch.where(free & (uniform(0, 1) < 0.5), -1.0, 1.0)
        turned = torch.tensor([pictures.modalities[i] in TURNED for i in index.tolist()])
        angle = angle + turned * (uniform(0, 4).floor() * math.pi / 2)
    cosine, sine = angle.cos() * side / CANVAS, angle.sin() * side / CANVAS
    offset = centre * 2 / CANVAS - 1
    theta = torch.stack(
        [
            torch.stack([cosine * mirror, -sine, offset[:, 1]], 1),
            torch.stack([sine * mirror, cosine, offset[:, 0]], 1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False)
    images = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    if generator is not None:
        light = (images + 1) / 2
        mean = light.mean(dim=(1, 2, 3), keepdim=True)
        light = (light - mean) * uniform(0.75, 1.25)[:, None, None, None] + mean
        gains = torch.stack([uniform(0.95, 1.05) for _ in range(3)], dim=1) * uniform(0.8, 1.2)[:, None]
        images = (light * gains[:, :, None, None]).clamp(0, 1) * 2 - 1
    return images


def patches(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, SIDE, SIDE) to rows (N * patches, VIT_PATCH * VIT_PATCH * 3), each (py, px, channel)."""
    rows = SIDE // VIT_PATCH
    split = images.reshape(len(images), 3, rows, VIT_PATCH, rows, VIT_PATCH).permute(0, 2, 4, 3, 5, 1)
    return split.reshape(len(images) * rows * rows, -1)


class CaptionChoice(nn.Module):
    """The ViT with a vector for each caption."""

    def __init__(self, vit: nn.Module, captions: int):
        super().__init__()
        self.vit, self.head = vit, nn.Linear(vit.config.hidden_size, captions)
        rows = torch.arange(SIDE // VIT_PATCH)
        self.positions = (rows[:, None] * TABLE_SIDE + rows[None, :]).flatten()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores (N, captions) of views (N, 3, SIDE, SIDE)."""
        length = len(self.positions)
        features = self.vit(patches(images), self.positions.repeat(len(images)), [length] * len(images))
        return self.head(features.reshape(len(images), length, -1).mean(dim=1))


@torch.no_grad()
def accuracy(model: CaptionChoice, pictures: Pictures) -> dict[str, float]:
    """Share of pictures whose caption scores highest, over all and for each source."""
    model.eval()
    right: Counter[str] = Counter()
    for index in torch.arange(len(pictures.captions)).split(64):
        chosen = model(views(pictures, index, None)).argmax(dim=1)
        for place, hit in zip(index.tolist(), (chosen == pictures.captions[index]).tolist(), strict=True):
            right[pictures.sources[place]] += hit
            right["all"] += hit
    model.train()
    totals = Counter(pictures.sources) + Counter({"all": len(pictures.captions)})
    return {name: round(right[name] / totals[name], 3) for name in sorted(totals)}


def pretrain(
    work: Path,
    steps: int,
    batch: int = 32,
    rate: float = 1e-3,
    seed: int = 0,
    start: Path | None = None,
    focus: float = 1.0,
) -> tuple[nn.Module, dict]:
    """Train for `steps`; returns the ViT and what was measured on the held-out part.

    Args:
        start: weights to go on from.
        focus: how much more often than by the square root of a caption's number the pictures of `FOCUS` are drawn.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    names: list[str] = []
    train, held_out = (read_pictures(work, split, names) for split in ("train", "validation"))
    vae = UniMedVLVAEConfig().to_dict()
    config = build_config(AutoTokenizer.from_pretrained(work / "tokenizer"), vae)
    model = CaptionChoice(UniMedVLModel(config).vit_model, len(names))
    if start is not None:
        load_model(model.vit, start / VISION_FILE)
    counts = Counter(train.captions.tolist())
    weights = torch.tensor([counts[caption] ** -0.5 for caption in train.captions.tolist()])
    weights *= torch.tensor([focus if source in FOCUS else 1.0 for source in train.sources])
    decayed = [parameter for parameter in model.parameters() if parameter.ndim == 2 and parameter.requires_grad]
    plain = [parameter for parameter in model.parameters() if parameter.ndim != 2 and parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    started, total = time.perf_counter(), 0.0
    measured: dict = {}
    for step in range(1, steps + 1):
        index = torch.multinomial(weights, batch, replacement=True, generator=generator)
        scores = model(views(train, index, generator))
        loss = F.cross_entropy(scores, train.captions[index], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 200 == 0 or step == steps:
            seconds = time.perf_counter() - started
            measured = {"steps": step, "seconds": round(seconds), "loss": total / 200, **accuracy(model, held_out)}
            print(json.dumps(measured), f"{seconds / step * (steps - step):.0f} s left", flush=True)
            total = 0.0
    return model.vit, measured


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", required=True, help="folder that `prepare` has filled")
    parser.add_argument("--out", required=True, help="folder of the weights")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", help="folder of weights to go on from")
    parser.add_argument("--focus", type=float, default=1.0, help="weight of the sources of `FOCUS`")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    start = Path(arguments.start) if arguments.start else None
    vit, measured = pretrain(
        Path(arguments.work),
        arguments.steps,
        rate=arguments.rate,
        seed=arguments.seed,
        start=start,
        focus=arguments.focus,
    )
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    save_model(vit, str(out / VISION_FILE))
    (out / "vision.json").write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
