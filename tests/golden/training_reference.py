"""Translation of the reference's sequence plans into blocks, packs and the arguments of a training forward."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, block_layout, dense_mask, pack_samples
from unimedvl.modeling_unimedvl.flow_unimedvl import grid_position_ids, shift_timesteps

from .records import Golden, escape
from .reference import RecordImages, draw, pad_pixels, special_ids

FILE = "train.safetensors"
TRAIN = "train.json"

# Which list of train.json's rows a data set reads, and where its images are named.
ROWS = {"vlm_sft": ("vlm", "image"), "t2i_pretrain": ("t2i", "image"), "unified_edit": ("edit", "image_list")}


@dataclass
class Sample:
    """One training sample: its plan, its blocks and the image of each image block (None for text).

    Attributes:
        plan: the recorded sequence plan.
        blocks: one per plan entry, but one for all frames of a video.
        images: number of the image of each plan entry.
        image_count: images that share the ViT's pixel budget.
    """

    plan: list[dict[str, Any]]
    blocks: list[Block]
    images: list[int | None] = field(default_factory=list)
    image_count: int = 1


def plan_blocks(plan: list[dict], texts: list[list[int]], config) -> list[Block]:
    """Blocks of a sequence plan whose image entries have `image_chw`."""
    remaining = iter(texts)
    blocks: list[Block] = []
    in_video = False
    for entry in plan:
        label = entry["special_token_label"] if entry["special_token_loss"] else None
        if entry["type"] == "text":
            ids = next(remaining)
            blocks.append(Block(BlockKind.TEXT, token_ids=ids, loss=bool(entry["loss"]), next_label=label))
            continue
        vit = entry["type"] == "vit_image"
        cell = config.vision_config.patch_size if vit else config.pixels_per_latent_token
        _, height, width = entry["image_chw"]
        grid = (height // cell, width // cell)
        if in_video:
            blocks[-1].frames.append(grid)
        else:
            kind = BlockKind.VIT if vit else BlockKind.NOISED if entry["loss"] else BlockKind.CLEAN
            blocks.append(Block(kind, grid=grid, next_label=label))
        in_video = not entry.get("split_end", True)
        if in_video:
            blocks[-1].frame_deltas.append(entry["frame_delta"])
    return blocks


def read_sample(golden: Golden, pointer: str, images: RecordImages, config) -> Sample:
    """A recorded sample as blocks, with its texts by name and its images found among the rows of its data set."""
    plan = golden.argument(TRAIN, f"{pointer}/sequence_plan")
    texts = [golden.argument(TRAIN, f"/prompts/{escape(entry['text'])}") for entry in plan if entry["type"] == "text"]
    kind, key = ROWS[golden.argument(TRAIN, f"{pointer}/dataset")]
    sample = Sample(plan, plan_blocks(plan, texts, config))
    candidates = []
    for number in range(len(golden.value(TRAIN, f"/rows/{kind}"))):
        row = image_numbers(golden.argument(TRAIN, f"/rows/{kind}/{number}/{key}"), images)
        instructions = golden.argument(TRAIN, f"/rows/{kind}/{number}/instruction_list")
        captions = golden.argument(TRAIN, f"/rows/{kind}/{number}/captions")
        if captions is None or {entry["text"] for entry in plan if entry["type"] == "text"} <= set(captions.values()):
            candidates += _assignments(plan, row, instructions, images, row_in_order=kind == "vlm")
    different = {tuple(candidate) for candidate in candidates}
    assert len(different) == 1, f"{pointer}: images of the plan are ambiguous: {different}"
    sample.images = candidates[0]
    sample.image_count = len([entry for entry in plan if entry["type"] == "vit_image"]) if kind == "vlm" else 1
    return sample


def _assignments(
    plan, row: list[int], instructions, images: RecordImages, row_in_order: bool
) -> list[list[int | None]]:
    """Images of the plan's entries for every run of the row's images that has the plan's sizes and texts.

    A target, its clean copy and its ViT copy follow one another and are one image; a text or a repeated kind starts
    the next one.
    """
    steps, seen, count, text_numbers = [], set(), -1, []
    for entry in plan:
        if entry["type"] == "text":
            seen = set()
            steps.append(None)
            text_numbers.append((entry["text"], count))
            continue
        form = (entry["type"], entry["loss"])
        if not seen or form in seen:
            seen, count = set(), count + 1
        seen.add(form)
        steps.append(count)
    found = []
    for start in range(len(row) - count):
        window = row[start : start + count + 1]
        if row_in_order and start > 0:
            break
        if instructions is not None and any(text not in instructions[start + before] for text, before in text_numbers):
            continue
        chosen = [None if step is None else window[step] for step in steps]
        if all(
            index is None or entry_size(entry, index, images) == entry["image_chw"]
            for entry, index in zip(plan, chosen, strict=True)
        ):
            found.append(chosen)
    return found


def image_numbers(names: str | list[str], images: RecordImages) -> list[int]:
    """Numbers of the images that a row names by file."""
    files = [path.name for path in images.files]
    return [files.index(name) for name in ([names] if isinstance(names, str) else names)]


def entry_size(entry: dict, index: int, images: RecordImages) -> list[int]:
    """(channels, height, width) of an image after the transform of a plan entry."""
    if entry["type"] == "vae_image":
        return list(images.vae_pixels(index).shape)
    _, grid = images.vit_patches(index)
    return [3, *(side * images.processor.patch_size for side in grid)]


@dataclass
class Pack:
    """Several samples in one row, with everything the reference records about it."""

    config: Any
    samples: list[Sample]

    def __post_init__(self):
        self.tensors = pack_samples([sample.blocks for sample in self.samples], **special_ids(self.config))
        self.kinds = self.tensors["mm_token_type_ids"][0]

    def _kept(self) -> list[Block]:
        return [block for sample in self.samples for block in sample.blocks if not block.dropped]

    def _grids(self, *kinds: BlockKind) -> list[tuple[int, int]]:
        return [grid for block in self._kept() if block.kind in kinds for grid in (block.grid, *block.frames)]

    def latent_blocks(self) -> list[Block]:
        return [block for block in self._kept() if block.kind in (BlockKind.CLEAN, BlockKind.NOISED)]

    def sample_lengths(self) -> list[int]:
        return torch.bincount(self.tensors["sample_ids"][0]).tolist()

    def fields(self) -> dict[str, torch.Tensor]:
        """The reference's packed fields that follow from the layout."""
        config, pack = self.config, self.tensors
        targets = pack["labels"][0, 1:]
        labeled = (targets != -100).nonzero()[:, 0]
        vit_grids = self._grids(BlockKind.VIT)
        latent_grids = self._grids(BlockKind.CLEAN, BlockKind.NOISED)
        latent_side, vit_side = config.max_latent_size, config.vit_max_num_patch_per_side
        fields = {
            "packed_text_ids": pack["input_ids"][0, self.kinds == 0],
            "packed_text_indexes": (self.kinds == BlockKind.TEXT).nonzero()[:, 0],
            "packed_vit_token_indexes": (self.kinds == BlockKind.VIT).nonzero()[:, 0],
            "packed_vae_token_indexes": (self.kinds >= BlockKind.CLEAN).nonzero()[:, 0],
            "mse_loss_indexes": (self.kinds == BlockKind.NOISED).nonzero()[:, 0],
            "ce_loss_indexes": labeled,
            "packed_label_ids": targets[labeled],
            "ce_loss_weights": pack["token_weights"][0, 1:][labeled],
            "packed_position_ids": pack["position_ids"][0],
            "packed_latent_position_ids": _all_ids(latent_grids, latent_side, config.interpolate_pos),
            "packed_vit_position_ids": _all_ids(vit_grids, vit_side, config.interpolate_pos),
            "vit_token_seqlens": torch.tensor([rows * columns for rows, columns in vit_grids]),
        }
        layout = block_layout(pack["mm_token_type_ids"], pack["block_ids"], pack["sample_ids"])
        mask = dense_mask(layout)[0]
        start = 0
        for number, length in enumerate(self.sample_lengths()):
            stop = start + length
            fields[f"attend_{number}"] = mask[start:stop, start:stop]
            assert not mask[start:stop, :start].any() and not mask[start:stop, stop:].any()
            start = stop
        return fields

    def facts(self) -> dict[str, Any]:
        """The same for the records in train.json."""
        return {
            "sample_lens": self.sample_lengths(),
            "sequence_length": self.kinds.shape[0],
            "patchified_vae_latent_shapes": [list(grid) for grid in self._grids(BlockKind.CLEAN, BlockKind.NOISED)],
        }

    def splits(self) -> tuple[list[int], list[str]]:
        """Lengths and attention modes of the reference's splits, one for each block."""
        layout = block_layout(*(self.tensors[name] for name in ("mm_token_type_ids", "block_ids", "sample_ids")))
        lengths, modes, start = [], [], 0
        for block in self._kept():
            grids = [] if block.kind == BlockKind.TEXT else [block.grid, *block.frames]
            length = len(block.token_ids) + 2 if not grids else sum(rows * columns + 2 for rows, columns in grids)
            hidden, in_block = layout.hidden_BS[0, start] > 0, layout.block_ids_BS[0, start] >= 0
            modes.append("noise" if hidden else "full" if in_block else "causal")
            lengths.append(length)
            start += length
        return lengths, modes

    def raw_timesteps(self, seed: int) -> list[float]:
        """The reference's normal draw of each latent image; -inf (flow time 0) for clean ones. A video shares one."""
        random = np.random.RandomState(seed)
        values = []
        for block in self.latent_blocks():
            value = float(random.randn()) if block.kind == BlockKind.NOISED else float("-inf")
            values += [value] * (1 + len(block.frames))
        return values

    def per_latent_token(self, values: torch.Tensor) -> torch.Tensor:
        """One value per latent image, repeated for its tokens."""
        grids = self._grids(BlockKind.CLEAN, BlockKind.NOISED)
        return values.repeat_interleave(torch.tensor([rows * columns for rows, columns in grids]))

    def patches(self, images: RecordImages) -> tuple[torch.Tensor, torch.Tensor]:
        """`pixel_values` and `image_grid_thw` of the ViT blocks that were not dropped."""
        parts, grids = [], []
        for sample in self.samples:
            for block, index in zip(sample.blocks, sample.images, strict=True):
                if block.kind == BlockKind.VIT and not block.dropped:
                    patches, grid = images.vit_patches(index, num_images=sample.image_count)
                    parts.append(patches)
                    grids.append([1, *grid])
        return torch.cat(parts), torch.tensor(grids)

    def latent_pixels(self, images: RecordImages) -> list[torch.Tensor]:
        """Images of the latent blocks that were not dropped."""
        return [
            images.vae_pixels(index)
            for sample in self.samples
            for block, index in zip(sample.blocks, sample.images, strict=True)
            if block.kind in (BlockKind.CLEAN, BlockKind.NOISED) and not block.dropped
        ]


def _all_ids(grids: list[tuple[int, int]], side: int, interpolate: bool) -> torch.Tensor:
    ids = [grid_position_ids(*grid, side, interpolate) for grid in grids]
    return torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64)


def find_dropout(golden: Golden, prefix: str, config, samples: list[Sample]) -> Pack:
    """The pack with the one choice of dropped conditions that gives all recorded layout fields."""
    choices = [
        block
        for sample in samples
        for entry, block in zip(sample.plan, sample.blocks, strict=True)
        if entry["enable_cfg"]
    ]
    lengths = golden.value(TRAIN, f"/{prefix}/sample_lens")
    recorded = {name: golden.recorded(FILE, f"{prefix}.{name}") for name in ("packed_text_ids", "packed_position_ids")}
    found = []
    for dropped in itertools.product((False, True), repeat=len(choices)):
        for block, drop in zip(choices, dropped, strict=True):
            block.dropped = drop
        pack = Pack(config, samples)
        if pack.sample_lengths() != lengths:
            continue
        ours = {
            "packed_text_ids": pack.tensors["input_ids"][0, pack.kinds == 0],
            "packed_position_ids": pack.tensors["position_ids"][0],
        }
        if all(torch.equal(ours[name], recorded[name]) for name in recorded):
            found.append(dropped)
    assert len(found) == 1, f"{prefix}: {len(found)} choices of dropped conditions give the recorded layout"
    for block, drop in zip(choices, found[0], strict=True):
        block.dropped = drop
    return Pack(config, samples)


def forward_arguments(
    model, pack: Pack, images: RecordImages, raw_timesteps: list[float], seed: int, shift: float
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Arguments of a training forward that repeats the reference's, and its draws under their recorded names.

    The reference encodes all images of a pack as one zero-padded batch, which changes the latents of the smaller
    ones; so `latent_values` are cut out of such a batch instead of leaving the encoding to `forward`.
    """
    config = model.config
    pixels = pack.latent_pixels(images)
    padded = pad_pixels(pixels)
    downsample = config.vae_config.downsample
    height, width = padded.shape[2] // downsample, padded.shape[3] // downsample
    tokens = int((pack.kinds >= BlockKind.CLEAN).sum())
    shapes = [[len(pixels), config.vae_config.latent_channels, height, width], [tokens, config.latent_dim]]
    noise_vae, noise_flow = draw(seed, shapes)
    latents = model.model.encode_latents(list(padded), noise=list(noise_vae))
    timesteps = shift_timesteps(torch.tensor(raw_timesteps).sigmoid(), shift)
    patches, grids = pack.patches(images)
    noised = pack.kinds[pack.kinds >= BlockKind.CLEAN] == BlockKind.NOISED
    names = ("input_ids", "mm_token_type_ids", "position_ids", "block_ids", "sample_ids", "labels")
    arguments = {name: pack.tensors[name] for name in names}
    arguments |= {
        "pixel_values": patches,
        "image_grid_thw": grids,
        "latent_values": [
            latent[:, : image.shape[1] // downsample, : image.shape[2] // downsample]
            for latent, image in zip(latents, pixels, strict=True)
        ],
        "flow_noise": noise_flow[noised],
        "flow_timesteps": timesteps,
    }
    draws = {
        "noise_vae": noise_vae,
        "noise_flow": noise_flow,
        "padded_latent": torch.stack(latents),
        "timesteps_after_sigmoid_and_shift": pack.per_latent_token(timesteps),
    }
    return arguments, draws
