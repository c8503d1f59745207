"""Translation of the reference's terms into the package's: contexts, answers, caches, images."""

import re
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, block_layout, pack_samples, rope_position_ids
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.flow_unimedvl import grid_position_ids
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.outputs_unimedvl import images_from_pixels

from .on_device import put_on_device
from .records import Golden

JSON = "infer.json"
MARKER_NAMES = {
    "bos_token_id": "<|im_start|>",
    "eos_token_id": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}


class RecordImages:
    """The folder's images through the package's image processor, numbered as in infer.json.

    Attributes:
        files: where they lie.
        processor: configured with the two transforms of infer.json or train.json.
    """

    def __init__(self, golden: Golden, transforms: str = JSON):
        count = len(golden.value(JSON, "/images"))
        self.files = [golden.folder / golden.argument(JSON, f"/images/{index}/file") for index in range(count)]
        vit = golden.argument(transforms, "/vit_transform")
        self.processor = UniMedVLImageProcessor(
            patch_size=golden.value(JSON, "/config/vit/patch_size"),
            understanding_transform=vit,
            vae_transform=golden.argument(transforms, "/vae_transform"),
            vit_transform=vit,
        )
        self._tensors: dict[tuple, dict[str, torch.Tensor]] = {}

    def index_of(self, name: str) -> int | None:
        """Number of the image that an input like "image1" means, None for the name of a prompt."""
        match = re.fullmatch(r"image(\d+)", name)
        return int(match[1]) if match else None

    def tensors(self, index: int, **settings) -> dict[str, torch.Tensor]:
        """Output of the image processor for one image."""
        key = (index, *sorted(settings.items()))
        if key not in self._tensors:
            self._tensors[key] = self.processor(self.files[index], return_tensors="pt", **settings)
        return self._tensors[key]

    def vae_pixels(self, index: int) -> torch.Tensor:
        """(3, H, W) for the autoencoder."""
        return self.tensors(index, generation_mode="image")["latent_pixel_values"][0]

    def vit_patches(
        self, index: int, after_vae: bool = False, num_images: int = 1
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Patches and their (rows, columns) for the ViT, from the original or from the image resized for the VAE."""
        pipeline = "chain" if after_vae else "direct"
        tensors = self.tensors(index, generation_mode="text", pipeline=pipeline, num_images=num_images)
        _, rows, columns = tensors["image_grid_thw"][0].tolist()
        return tensors["pixel_values"], (rows, columns)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """The image of float pixels (3, H, W) as the processor makes it, (H, W, 3)."""
    return torch.tensor(np.asarray(images_from_pixels([pixels])[0]))


def draw(seed: int, shapes: list[list[int]]) -> list[torch.Tensor]:
    """Normal draws in order from a fresh CPU generator, as the reference makes them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def special_ids(config) -> dict[str, int]:
    """The arguments of `pack_samples` that name tokens."""
    names = ("bos_token_id", "eos_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(config, name) for name in (*names, "image_token_id", "latent_token_id")}


def position_ids_of(
    golden: Golden, file: str, name: str, grids: list[tuple[int, int]], side: int, interpolate: bool
) -> torch.Tensor:
    """Rows of a position table for several grids, by the model's rule.

    The fixtures' README names the extrapolating rule for single modules, whatever the model does: where a record has
    exactly those ids, they are taken instead.
    """
    extrapolated, ours = (
        torch.cat([grid_position_ids(*grid, side, rule) for grid in grids]) for rule in (False, interpolate)
    )
    if golden.has_tensor(file, name) and torch.equal(golden.recorded(file, name).long(), extrapolated):
        return extrapolated
    return ours


def decode(ids: list[int], config) -> str:
    """The fixtures' substitute tokenizer, and the reference's cut around it: what follows BOS, up to EOS."""
    ours = ("bos_token_id", "eos_token_id", "vision_start_token_id", "vision_end_token_id")
    names = {getattr(config, key): name for key, name in zip(ours, MARKER_NAMES.values(), strict=True)}
    text = " ".join(names.get(token, f"t{token}") for token in ids)
    return text.split("<|im_end|>")[0].split("<|im_start|>")[1]


@dataclass
class Context:
    """A sequence of blocks with the tensors of its images, grown the way the reference's inferencer grows its cache.

    Attributes:
        blocks: the blocks in order.
        patches, grids: ViT patches of each ViT block and their (rows, columns).
        latent_pixels: pixels (3, H, W) of each VAE block.
    """

    config: object
    blocks: list[Block] = field(default_factory=list)
    patches: list[torch.Tensor] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    latent_pixels: list[torch.Tensor] = field(default_factory=list)

    def text(self, ids: list[int]) -> "Context":
        self.blocks.append(Block(BlockKind.TEXT, token_ids=list(ids)))
        return self

    def vit(self, patches: torch.Tensor, grid: tuple[int, int]) -> "Context":
        self.blocks.append(Block(BlockKind.VIT, grid=grid))
        self.patches.append(patches)
        self.grids.append(grid)
        return self

    def vae(self, pixels: torch.Tensor) -> "Context":
        cell = self.config.pixels_per_latent_token
        self.blocks.append(Block(BlockKind.CLEAN, grid=(pixels.shape[1] // cell, pixels.shape[2] // cell)))
        self.latent_pixels.append(pixels)
        return self

    def pack(self) -> dict[str, torch.Tensor]:
        return pack_samples([self.blocks], **special_ids(self.config))

    def segments(self) -> list[slice]:
        """The place of each block in the sequence."""
        lengths = [
            2 + (len(block.token_ids) if block.kind == BlockKind.TEXT else block.grid[0] * block.grid[1])
            for block in self.blocks
        ]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]

    def inputs(self, generation_prompt: bool = False) -> dict[str, torch.Tensor]:
        """Arguments of `forward` and `generate`, as a processor would make them."""
        pack = self.pack()
        names = ("input_ids", "mm_token_type_ids")
        inputs = {name: pack[name] for name in names}
        if generation_prompt:
            tail = {"input_ids": self.config.bos_token_id, "mm_token_type_ids": 0}
            inputs = {name: torch.cat([inputs[name], torch.tensor([[tail[name]]])], dim=1) for name in names}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if self.patches:
            inputs["pixel_values"] = torch.cat(self.patches)
            inputs["image_grid_thw"] = torch.tensor([[1, *grid] for grid in self.grids])
        if self.latent_pixels:
            inputs["latent_pixel_values"] = pad_pixels(self.latent_pixels)
            inputs["latent_image_sizes"] = torch.tensor([pixels.shape[1:] for pixels in self.latent_pixels])
        return inputs

    def position_ids(self) -> torch.Tensor:
        """RoPE ids that `forward` gives the context's tokens, (S,)."""
        return rope_position_ids(block_layout(self.inputs()["mm_token_type_ids"]))[0]

    def next_position(self) -> int:
        """The reference's RoPE counter after the context, 0 for an empty one."""
        return int(self.position_ids()[-1]) + 1 if self.blocks else 0


def pad_pixels(pixels: list[torch.Tensor]) -> torch.Tensor:
    """Stack images (3, H, W), zero padded at the bottom and right."""
    height, width = (max(image.shape[axis] for image in pixels) for axis in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in pixels])


def left_pad(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One batch of single inputs, padded on the left; image tensors follow one another."""
    width = max(inputs["input_ids"].shape[1] for inputs in batch)
    padded = {}
    for name in ("input_ids", "mm_token_type_ids", "attention_mask"):
        rows = [inputs[name][0] for inputs in batch]
        padded[name] = torch.stack([F.pad(row, (width - row.shape[0], 0)) for row in rows])
    for name in ("pixel_values", "image_grid_thw"):
        if any(name in inputs for inputs in batch):
            padded[name] = torch.cat([inputs[name] for inputs in batch if name in inputs])
    return padded


@dataclass
class Answer:
    """What greedy decoding or sampling gave.

    Attributes:
        ids: BOS and the ids before the end token, as the reference returns them.
        logits: float (steps, vocabulary) of every step the reference takes.
        margin: smallest distance of the two best logits over those steps.
    """

    ids: list[int]
    logits: torch.Tensor
    margin: float


def answer(model, context: Context, max_length: int, eos_token_id: int | None = None, **options) -> Answer:
    """Continue a context by text. The reference's `max_length` counts BOS; its last prediction is thrown away."""
    eos_token_id = model.config.eos_token_id if eos_token_id is None else eos_token_id
    inputs = context.inputs(generation_prompt=True)
    output = model.generate(
        **inputs,
        max_new_tokens=max_length,
        eos_token_id=eos_token_id,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if eos_token_id in new:
        new = new[: new.index(eos_token_id)]
    ids = [model.config.bos_token_id, *new[: max_length - 1]]
    logits = torch.cat(output.logits)[: len(ids)]
    return Answer(ids, logits, top2_margin(logits))


def top2_margin(logits: torch.Tensor) -> float:
    best = logits.topk(2, dim=-1).values
    return (best[..., 0] - best[..., 1]).min().item()


def cache_tokens(cache, layer: int, valid: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer as (token, head, dim), samples one after another; `valid` (B, S) drops padding."""
    layers = cache.layers[layer]
    keys, values = layers.keys.transpose(1, 2), layers.values.transpose(1, 2)
    if valid is None:
        return keys.flatten(0, 1), values.flatten(0, 1)
    return keys[valid.bool()], values[valid.bool()]


def merged_places(cached: list[int], new: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's packed order, sample by sample: cached tokens, then new ones. Places of both."""
    old_places, new_places, start = [], [], 0
    for old_length, new_length in zip(cached, new, strict=True):
        old_places += range(start, start + old_length)
        new_places += range(start + old_length, start + old_length + new_length)
        start += old_length + new_length
    return torch.tensor(old_places, dtype=torch.int64), torch.tensor(new_places, dtype=torch.int64)


def our_name(name: str) -> str:
    """Our name of a weight of the reference."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    for theirs, ours in (("language_model.model.", "language_model."), ("vit_model.vision_model.", "vit_model.")):
        if name.startswith(theirs):
            return f"model.{ours}{name.removeprefix(theirs)}"
    return f"model.{name}"


def load_model(golden: Golden, freeze_und: bool = False) -> UniMedVLForConditionalGeneration:
    """The checkpoint of the folder, read in the upstream layout, in float32.

    There are no tokenizer files in it, so the special tokens are given; so are the fields that the reference takes
    from its code and not from a file. The two placeholder ids never reach an embedding.
    """
    special_tokens = golden.value(JSON, "/special_tokens")
    fields = golden.value(JSON, "/config/bagel") | {
        "bos_token_id": special_tokens["bos_token_id"],
        "eos_token_id": special_tokens["eos_token_id"],
        "vision_start_token_id": special_tokens["start_of_image"],
        "vision_end_token_id": special_tokens["end_of_image"],
    }
    config = UniMedVLConfig.from_pretrained(golden.folder / "ckpt", **fields)
    config.text_config.freeze_und = freeze_und
    model = UniMedVLForConditionalGeneration.from_pretrained(
        golden.folder / "ckpt", config=config, dtype=torch.float32
    )
    return (model if golden.device == torch.device("cpu") else put_on_device(model, golden.device)).eval()
