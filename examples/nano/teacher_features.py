"""The features that the teacher (examples/nano/teacher.py) has of the records' images, computed once.

EfficientNet-lite0 teaches nothing: the Frechet distance of generated images is taken in its features.

Shape legend: N images, C captions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from .probes import FOLDS, grouped_folds, probe
from .record_images import CANVAS, UNCAPTIONED, RecordImages
from .teacher import Teacher
from .views import map_views

TEACHER_SIDE = 260  # pixels
# (last block of the stage, cells of a side, pixels of a cell); cells are centered and may reach beyond the image.
STAGES = {"middle": (14, 17, 16), "last": (20, 9, 32)}
PART = 256  # images in a file of the cache


@dataclass
class TeacherFeatures:
    """Features of images over their canvas.

    Attributes:
        maps: float16 (N, channels, cells, cells) of each stage, every channel of mean 0 and variance 1 over all.
        pooled: float32 (N, 1280), means of the last features over the cells that lie on the image.
    """

    maps: dict[str, torch.Tensor]
    pooled: torch.Tensor

    @cached_property
    def standardized(self) -> torch.Tensor:
        """The pooled features (N, 1280), every channel of mean 0 and variance 1 over all."""
        return (self.pooled - self.pooled.mean(dim=0)) / (self.pooled.std(dim=0) + 1e-4)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of all maps together, and of the pooled features."""
        return sum(maps.shape[1] for maps in self.maps.values()), self.pooled.shape[1]

    def views(self, index: torch.Tensor, theta: torch.Tensor, cells: int) -> torch.Tensor:
        """Features (N, cells * cells, channels) of views at the places `theta` of the images `index`."""
        seen = []
        for name, maps in self.maps.items():
            _, side, pixels = STAGES[name]
            seen.append(map_views(maps[index].to(theta.dtype), theta, cells, side * pixels / TEACHER_SIDE))
        return torch.cat(seen, dim=1).flatten(2).transpose(1, 2)

    def to(self, device: str | torch.device) -> "TeacherFeatures":
        """The same on a device."""
        return TeacherFeatures({name: maps.to(device) for name, maps in self.maps.items()}, self.pooled.to(device))


@torch.no_grad()
def _features(teacher: Teacher, images: RecordImages, index: torch.Tensor) -> dict[str, torch.Tensor]:
    pixels = images.pixels[index].float() / 127.5 - 1
    inputs = F.interpolate(pixels, (TEACHER_SIDE, TEACHER_SIDE), mode="bicubic", align_corners=False).clamp(-1, 1)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    levels = teacher.levels(inputs, tuple(block for block, _, _ in STAGES.values()))
    found = {name: level.half().contiguous().cpu() for name, level in zip(STAGES, levels, strict=True)}
    top = F.relu6(teacher.network._bn1(teacher.network._conv_head(levels[-1])))
    extent = (images.sizes[index] / CANVAS * top.shape[-1]).round().clamp(min=1)
    places = torch.arange(top.shape[-1], device=top.device)
    inside = (places[None, :, None] < extent[:, 0, None, None]) & (places[None, None] < extent[:, 1, None, None])
    pooled = (top * inside[:, None]).sum(dim=(2, 3)) / inside.sum(dim=(1, 2))[:, None]
    return {**found, "pooled": pooled.cpu().contiguous()}


def teach(images: RecordImages, cache: Path, device: str | torch.device = "cpu", batch: int = 4) -> TeacherFeatures:
    """The features of images, read from a folder as far as it holds them and computed once otherwise.

    Args:
        cache: folder of the features; a run that was killed resumes within PART images.
        device: where the teacher runs.

    Raises:
        ValueError: if something has to be computed and the teacher's packages are not installed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    teacher: Teacher | None = None
    parts = []
    moved = images.to(device)
    for index in torch.arange(len(images.digests)).split(PART):
        name = hashlib.sha256("".join(images.digests[place] for place in index.tolist()).encode()).hexdigest()
        path = cache / f"{name[:32]}.safetensors"
        if not path.is_file():
            teacher = Teacher().to(device) if teacher is None else teacher
            found = [_features(teacher, moved, some.to(device)) for some in index.split(batch)]
            whole = {key: torch.cat([part[key] for part in found]) for key in found[0]}
            partial = path.with_suffix(".partial")
            save_file(whole, partial)
            partial.rename(path)
        parts.append(load_file(path))
    maps = {}
    for name in STAGES:
        stacked = torch.cat([part[name] for part in parts])
        some = stacked[:: max(1, len(stacked) // 512)].float()
        mean, deviation = some.mean(dim=(0, 2, 3)), some.std(dim=(0, 2, 3))
        for place in torch.arange(len(stacked)).split(PART):
            normalized = (stacked[place].float() - mean[:, None, None]) / deviation[:, None, None]
            stacked[place] = normalized.half()
        maps[name] = stacked
    return TeacherFeatures(maps, torch.cat([part["pooled"] for part in parts]))


def soft_captions(pooled: torch.Tensor, images: RecordImages, captions: int, seed: int = 0) -> torch.Tensor:
    """What linear probes of the teacher's features say of each image's caption, (N, captions).

    There is one probe for each source, and it has not seen the image: it was fitted on the other four of five folds
    by group. Where a source has one caption, or too few images or groups, its images keep their own.
    """
    numbers = images.captions.cpu()
    stated = numbers != UNCAPTIONED
    soft = F.one_hot(numbers.clamp(min=0), captions).float() * stated[:, None]
    for source in sorted(set(images.sources)):
        places = [i for i, name in enumerate(images.sources) if name == source and stated[i]]
        labels, groups = numbers[places].numpy(), _groups(images, places)
        fewest = min(numpy.bincount(labels)[numpy.unique(labels)], default=0)
        if len(set(labels.tolist())) < 2 or fewest < FOLDS or len(set(groups)) < FOLDS:
            continue
        features = pooled[places].cpu().numpy()
        for fitted, left in grouped_folds(labels, groups, seed):
            found = probe(features[fitted], labels[fitted])
            rows = torch.tensor([places[i] for i in left])
            soft[rows] = 0.0
            said = torch.from_numpy(found.predict_proba(features[left])).float()
            soft[rows[:, None], torch.from_numpy(found.classes_)[None]] = said
    return soft


def _groups(images: RecordImages, places: Sequence[int]) -> list[str]:
    return [images.groups[place] for place in places]
