"""Samples of a micro-batch to the arguments of `UniMedVLForConditionalGeneration.forward`.

All noise is drawn here, from a generator of each sample's own: what a sample is trained on does not depend on its
neighbors, the process, the number of processes, or on whether the run was interrupted.

Shape legend: see `forward`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from PIL import Image

from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind, pack_samples
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.flow_unimedvl import shift_timesteps
from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan
from unimedvl.processing.image_processing_unimedvl import patchify_pixels, pixels_from_image
from unimedvl.unimed5m.schema import Record
from unimedvl.unimed5m.task_images import shown_image

from .posterior_cache import LatentCache, LatentInput, latent_key
from .sequences import SampleImage, TrainingSample, sample_seed

# What padding tokens hold; they belong to no sample, so nothing attends to them.
_PADDING = {"mm_token_type_ids": 0, "position_ids": 0, "block_ids": -1, "sample_ids": -1, "labels": -100}
_TOKENS = ("pad", "bos", "eos", "vision_start", "vision_end", "image", "latent")


@dataclass
class SampleInfo:
    """What became of one sample.

    Attributes:
        record_id, task, modality, group, epoch: see `TrainingSample`.
        row: of the micro-batch.
        label_tokens, flow_tokens: tokens that carry the text and the flow loss.
        num_tokens: all its tokens.
    """

    record_id: str
    task: str
    modality: str
    group: str
    epoch: int
    row: int
    label_tokens: int
    flow_tokens: int
    num_tokens: int


@dataclass
class BatchInfo:
    """What a trainer wants to know about a micro-batch.

    Attributes:
        samples: row by row; the n-th of a row has `sample_ids` n.
        capacity: tokens that its rows could hold; the rest is padding.
        state: of the planner after this micro-batch.
        latent_inputs: images for `scaled_latents` where a cache is used.
    """

    samples: list[SampleInfo]
    capacity: int
    state: dict[str, Any]
    latent_inputs: list[LatentInput] = field(default_factory=list)


class Collator:
    """Makes micro-batches.

    Args:
        config: of the model.
        seed: of the noise.
        timestep_shift: of the training times of samples that name none; the model's own if None.
        cache: of posteriors, or None to hand pixels to the model.
    """

    def __init__(
        self,
        config: UniMedVLConfig,
        seed: int,
        timestep_shift: float | None = None,
        cache: LatentCache | None = None,
    ):
        self.config, self.seed, self.cache = config, seed, cache
        self.shift = config.timestep_shift if timestep_shift is None else timestep_shift
        self.token_ids = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in _TOKENS}

    def __call__(
        self, rows: list[list[tuple[TrainingSample, Record]]], pack_tokens: int, state: dict[str, Any]
    ) -> dict[str, Any]:
        """One micro-batch; all of `forward`'s arguments with its `PackPlan`, and a `BatchInfo` under "info".

        Args:
            rows: samples of every packed row with their records.
            pack_tokens: what a row could hold.
            state: of the planner.

        Raises:
            ValueError: if an image cannot be read or has another size than its record says, naming the record.
        """
        token_ids = {name: value for name, value in self.token_ids.items() if name != "pad_token_id"}
        packs = [pack_samples([sample.blocks for sample, _ in row], **token_ids) for row in rows]
        length = max(pack["input_ids"].shape[1] for pack in packs)
        batch: dict[str, Any] = {}
        for name, padding in {"input_ids": self.token_ids["pad_token_id"], **_PADDING}.items():
            columns = [F.pad(pack[name][0], (0, length - pack[name].shape[1]), value=padding) for pack in packs]
            batch[name] = torch.stack(columns)
        info = BatchInfo([], len(rows) * pack_tokens, state)
        views = _Views()
        for number, row in enumerate(rows):
            for sample, record in row:
                info.samples.append(_sample_info(sample, number))
                self._read(sample, record, views)
        batch |= self._images(views, info)
        plan = PackPlan.from_batch(batch)
        # What the trainer counts by is what the model computes on.
        assert len(plan.labeled_A) == sum(sample.label_tokens for sample in info.samples)
        assert len(plan.rows.noised_N) == sum(sample.flow_tokens for sample in info.samples)
        batch |= {"plan": plan, "info": info}
        return batch

    def _read(self, sample: TrainingSample, record: Record, views: "_Views") -> None:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, sample.epoch, sample.record_id, "noise"))
        decoded: dict[tuple[bool, int], Image.Image] = {}
        change = sample.augmentation
        vision: Any = self.config.vision_config
        vae: Any = self.config.vae_config

        def view(image: SampleImage) -> numpy.ndarray:
            place = (image.output, image.index)
            if place not in decoded:
                opened = _open(record, image)
                decoded[place] = opened if change is None else change.geometry(opened)
            resized = decoded[place]
            for size in image.steps:
                resized = resized.resize(size, Image.Resampling.BICUBIC)
            pixels = pixels_from_image(resized)
            return pixels if change is None else change.intensity(pixels, image.output)

        kinds = [block.kind for block in sample.blocks if block.token_ids is None and not block.dropped]
        for image, kind in zip(sample.images, kinds, strict=True):
            if not image.latent:
                patch = vision.patch_size
                views.patches.append(patchify_pixels(view(image), patch))
                width, height = image.steps[-1]
                views.grids.append((1, height // patch, width // patch))
                continue
            width, height = image.steps[-1]
            factor = vae.downsample
            shape = (vae.latent_channels, height // factor, width // factor)
            item = LatentInput("", torch.randn(shape, generator=generator))
            if self.cache is not None:
                item.key = latent_key(_image(record, image).sha256, image.steps)
                item.mean, item.deviation = self.cache.get(item.key) or (None, None)
            if item.mean is None:
                item.pixels = torch.from_numpy(numpy.ascontiguousarray(view(image)))
            views.latents.append(item)
            views.sizes.append((height, width))
            time = torch.zeros(())
            if kind == BlockKind.NOISED:
                shift = self.shift if sample.timestep_shift is None else sample.timestep_shift
                time = shift_timesteps(torch.randn((), generator=generator).sigmoid(), shift)
                unit = self.config.pixels_per_latent_token
                tokens = (height // unit) * (width // unit)
                views.noise.append(torch.randn(tokens, self.config.latent_dim, generator=generator))
            views.times.append(time)

    def _images(self, views: "_Views", info: BatchInfo) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        values: dict[str, torch.Tensor | list[torch.Tensor]] = {}
        if views.patches:
            values["pixel_values"] = torch.from_numpy(numpy.concatenate(views.patches))
            values["image_grid_thw"] = torch.tensor(views.grids)
        if not views.latents:
            return values
        values["flow_timesteps"] = torch.stack(views.times)
        if views.noise:
            values["flow_noise"] = torch.cat(views.noise)
        if self.cache is not None:
            info.latent_inputs = views.latents
            return values
        height, width = (max(size[axis] for size in views.sizes) for axis in (0, 1))
        padded = torch.zeros(len(views.latents), 3, height, width)
        for row, item in zip(padded, views.latents, strict=True):
            assert item.pixels is not None
            row[:, : item.pixels.shape[1], : item.pixels.shape[2]] = item.pixels
        values["latent_pixel_values"] = padded
        values["latent_image_sizes"] = torch.tensor(views.sizes)
        values["vae_noise"] = [item.noise for item in views.latents]
        return values


def to_device(inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Tensors, also in lists, and plans on a device, without waiting for it where they come from pinned memory."""

    def move(value: Any) -> Any:
        if isinstance(value, (torch.Tensor, PackPlan)):
            return value.to(device, non_blocking=True)
        return [move(entry) for entry in value] if isinstance(value, list) else value

    return {name: move(value) for name, value in inputs.items()}


@dataclass
class _Views:
    """Images of a micro-batch in the order of their blocks."""

    patches: list[numpy.ndarray] = field(default_factory=list)
    grids: list[tuple[int, int, int]] = field(default_factory=list)
    latents: list[LatentInput] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    times: list[torch.Tensor] = field(default_factory=list)
    noise: list[torch.Tensor] = field(default_factory=list)


def _sample_info(sample: TrainingSample, row: int) -> SampleInfo:
    labels = sum(len(block.token_ids or ()) + 1 for block in sample.blocks if block.loss)
    noised = [block.grid or (0, 0) for block in sample.blocks if block.kind == BlockKind.NOISED]
    return SampleInfo(
        sample.record_id,
        sample.task,
        sample.modality,
        sample.group,
        sample.epoch,
        row,
        labels,
        sum(rows * columns for rows, columns in noised),
        sample.num_tokens,
    )


def _image(record: Record, image: SampleImage):
    return (record.output_img if image.output else record.input_img)[image.index]


def _open(record: Record, image: SampleImage) -> Image.Image:
    stored = _image(record, image)
    try:
        opened = shown_image(stored)
    except ValueError as error:
        raise ValueError(f"{record.id}: {error}") from error
    if opened.size != (stored.width, stored.height):
        raise ValueError(
            f"{record.id}: {stored.path} has {opened.width} x {opened.height} pixels, its record says "
            f"{stored.width} x {stored.height}; build the records again."
        )
    return opened
