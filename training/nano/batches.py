"""Training samples of the nano: pictures to latents once, then rows to blocks to padded batches."""

import collections
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from transformers import PreTrainedTokenizerBase

from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, pack_samples
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.processing.image_processing_unimedvl import patchify_pixels, pixels_from_image, resize_image

from . import samples as words
from .samples import Row

SIDE = 64  # longer side in pixels of every picture the nano reads and writes
TEXT_DROPOUT = 0.1
IMAGE_DROPOUT = 0.07  # both views of the input image together, so that the image-free guidance branch is trained
VIT_DROPOUT = 0.05


def image_transform(stride: int) -> dict[str, int]:
    """The resize rule of the nano's image processor: longer side `SIDE`, both sides multiples of `stride` pixels."""
    return {"max_image_size": SIDE, "min_image_size": SIDE, "image_stride": stride}


@dataclass
class Picture:
    """An RGB picture with its posterior, `mean` and `deviation` of the scaled latent (C, h, w), float32."""

    image: Image.Image
    mean: torch.Tensor | None = None
    deviation: torch.Tensor | None = None

    def latent(self) -> torch.Tensor:
        return self.mean + self.deviation * torch.randn_like(self.mean)


@dataclass
class Example:
    """One view of a row: the picture, and the pictures an instruction can turn it into."""

    row: Row
    picture: Picture
    blurred: Picture | None
    target: Picture | None
    masks: list[tuple[str, Picture]]

    @property
    def whole(self) -> bool:
        """Whether this is the view that the processor makes; only that one is kept blurred as well."""
        return self.blurred is not None

    def pictures(self) -> list[Picture]:
        pictures = [self.picture, self.blurred, self.target, *(picture for _, picture in self.masks)]
        return [picture for picture in pictures if picture is not None]


@dataclass
class Sample:
    """Blocks of one sample with the images of its ViT blocks and the latents of its VAE blocks, in order."""

    blocks: list[Block]
    images: list[Image.Image] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)


def make_examples(
    rows: list[Row], autoencoder: AutoencoderKL, stride: int, views: int, seed: int = 0
) -> list[Example]:
    """`views` views of every row: the whole picture as the processor resizes it (also blurred by a factor of 4), then
    square crops of 85-100 % of the shorter side, mirrored half of the time (never a chest film: left is left)."""
    random = np.random.default_rng(seed)
    examples = []
    for row in rows:
        for view in range(views):
            change = _whole(stride) if view == 0 else _square_crop(row, random)
            image = change(row.image)
            small = image.resize((image.width // 4, image.height // 4), Image.BICUBIC)
            blurred = Picture(small.resize(image.size, Image.BICUBIC)) if view == 0 else None
            masks = [(name, Picture(change(mask))) for name, mask in row.mask_images()]
            target = Picture(change(row.target)) if row.target is not None else None
            examples.append(Example(row, Picture(image), blurred, target, masks))
    _encode([picture for example in examples for picture in example.pictures()], autoencoder)
    return examples


def _whole(stride: int):
    return lambda image: resize_image(image, image_transform(stride))


def _square_crop(row: Row, random: np.random.Generator):
    short = min(row.image.size)
    side = short * random.uniform(0.85, 1.0)
    left = random.uniform(0, row.image.width - side)
    top = random.uniform(0, row.image.height - side)
    mirrored = row.modality != "CXR" and random.random() < 0.5

    def change(image: Image.Image) -> Image.Image:
        crop = image.resize((SIDE, SIDE), Image.BICUBIC, box=(left, top, left + side, top + side))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop

    return change


@torch.no_grad()
def _encode(pictures: list[Picture], autoencoder: AutoencoderKL) -> None:
    """Fill in the posteriors, pictures of equal size together."""
    scale, shift = autoencoder.config.scaling_factor, autoencoder.config.shift_factor
    pictures = sorted(pictures, key=lambda picture: picture.image.size)
    start = 0
    while start < len(pictures):
        stop = start + 1
        while stop < min(len(pictures), start + 64) and pictures[stop].image.size == pictures[start].image.size:
            stop += 1
        pixels = torch.stack([torch.from_numpy(pixels_from_image(picture.image)) for picture in pictures[start:stop]])
        posterior = autoencoder.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist
        for picture, mean, deviation in zip(pictures[start:stop], posterior.mean, posterior.std, strict=True):
            picture.mean, picture.deviation = scale * (mean - shift), scale * deviation
        start = stop


class SampleMaker:
    """Draws samples of the three kinds; every random choice comes from one seeded generator."""

    def __init__(
        self, examples: list[Example], tokenizer: PreTrainedTokenizerBase, config: UniMedVLConfig, seed: int = 0
    ):
        self.tokenizer, self.config = tokenizer, config
        self.random = np.random.default_rng(seed)
        named = [example for example in examples if example.row.modality in words.MODALITY_NAMES]
        self.named = self._balanced(named)
        diagnosed = [example for example in named if example.row.source not in words.SOURCE_SUBJECTS]
        self.labelled = self._balanced([example for example in diagnosed if example.row.label])
        self.asked = self._balanced([example for example in examples if example.row.questions])
        self.square = self._balanced([example for example in named if example.picture.image.size == (SIDE, SIDE)])
        self.masked = self._balanced([example for example in named if example.masks])
        self.paired = self._balanced([example for example in named if example.target is not None])
        self.whole = self._balanced([example for example in examples if example.whole])
        self.all = self._balanced(examples)

    @staticmethod
    def _balanced(examples: list[Example]) -> tuple[list[Example], np.ndarray]:
        """The examples and their cumulative weights.

        The pictures of one source and subject count together by the square root of their number, and so do the
        subjects of one modality; whole pictures, which people ask about, count twice as much as crops.
        """
        groups = [(example.row.modality, example.row.source, example.row.subjects()) for example in examples]
        sizes = collections.Counter(groups)
        totals = collections.Counter()
        for group, size in sizes.items():
            totals[group[0]] += size**0.5
        weights = [sizes[group] ** -0.5 * totals[group[0]] ** -0.5 for group in groups]
        weights = [(1 + example.whole) * weight for example, weight in zip(examples, weights, strict=True)]
        return examples, np.cumsum(weights) / sum(weights) if examples else np.zeros(0)

    def _draw(self, pool: tuple[list[Example], np.ndarray]) -> Example:
        examples, cumulative = pool
        return examples[min(int(np.searchsorted(cumulative, self.random.random())), len(examples) - 1)]

    def _choose(self, options):
        return options[self.random.integers(len(options))]

    def _text(self, text: str, **settings) -> Block:
        return Block(BlockKind.TEXT, token_ids=self.tokenizer.encode(text, add_special_tokens=False), **settings)

    def _question(self, text: str) -> str:
        """As people type it: now and then without capitals or without the final mark."""
        text = text.lower() if self.random.random() < 0.2 else text
        return text.rstrip("?.") if self.random.random() < 0.15 else text

    def _vit_block(self, image: Image.Image, **settings) -> Block:
        patch = self.config.vision_config.patch_size
        return Block(BlockKind.VIT, grid=(image.height // patch, image.width // patch), **settings)

    def _latent_block(self, kind: BlockKind, latent: torch.Tensor, **settings) -> Block:
        patch = self.config.latent_patch_size
        return Block(kind, grid=(latent.shape[1] // patch, latent.shape[2] // patch), **settings)

    def understanding(self) -> Sample:
        """Image, question, answer: the modality (most), the stated label, or a clinician's pair of VQA-RAD."""
        choice = self.random.random()
        if choice < 0.2 and self.asked[0]:
            example = self._draw(self.asked)
            question, answer = self._choose(example.row.questions)
        elif choice < 0.45 and self.labelled[0]:
            example = self._draw(self.labelled)
            question, answer = self._choose(words.LABEL_QUESTIONS), example.row.label
        else:
            example = self._draw(self.named)
            question = self._choose(words.MODALITY_QUESTIONS).format(noun=self._choose(words.MODALITY_NOUNS))
            answer = words.MODALITY_NAMES[example.row.modality]
        image = example.picture.image
        blocks = [self._vit_block(image), self._text(self._question(question)), self._text(answer, loss=True)]
        return Sample(blocks, images=[image])

    def prompt(self, row: Row) -> str:
        """A request for a picture like that of `row`."""
        phrase = self._choose(words.MODALITY_PHRASES[row.modality])
        subjects = row.subjects()
        if subjects and self.random.random() < 0.75:
            text = self._choose(words.GENERATION_TEMPLATES).format(phrase=phrase, subject=self._choose(subjects))
        else:
            text = self._choose(words.BARE_GENERATION_TEMPLATES).format(phrase=phrase)
        return self._question(text[0].upper() + text[1:])

    def text_to_image(self) -> Sample:
        """Prompt, then the picture as flow target."""
        example = self._draw(self.square)
        latent = example.picture.latent()
        text = self._text(self.prompt(example.row), dropped=self.random.random() < TEXT_DROPOUT)
        return Sample([text, self._latent_block(BlockKind.NOISED, latent)], latents=[latent])

    def editing(self) -> Sample:
        """Input image (VAE and ViT), instruction, then the result as flow target."""
        choice = self.random.random()
        if choice < 0.5 and self.masked[0]:
            example = self._draw(self.masked)
            name, result = self._choose(example.masks)
            source, text = example.picture, self._choose(words.SEGMENTATION_TEMPLATES).format(name=name)
        elif choice < 0.6 and self.paired[0]:
            example = self._draw(self.paired)
            source, result = example.picture, example.target
            text = self._choose(words.TRANSLATION_TEMPLATES).format(target=example.row.target_kind)
        elif choice < 0.85:
            example = self._draw(self.whole)
            source, result = example.blurred, example.picture
            text = self._choose(words.SUPER_RESOLUTION_TEMPLATES)
        else:
            example = self._draw(self.all)
            source, result, text = example.picture, example.picture, self._choose(words.RECONSTRUCTION_TEMPLATES)
        clean, target = source.latent(), result.latent()
        no_image = self.random.random() < IMAGE_DROPOUT
        no_vit = no_image or self.random.random() < VIT_DROPOUT
        no_text = not no_image and self.random.random() < TEXT_DROPOUT
        blocks = [
            self._latent_block(BlockKind.CLEAN, clean, dropped=no_image),
            self._vit_block(source.image, dropped=no_vit),
            self._text(self._question(text), dropped=no_text),
            self._latent_block(BlockKind.NOISED, target),
        ]
        return Sample(blocks, [] if no_vit else [source.image], [target] if no_image else [clean, target])


PADDING = {"mm_token_type_ids": 0, "position_ids": 0, "block_ids": -1, "sample_ids": -1, "labels": -100}


def collate(samples: list[Sample], config: UniMedVLConfig) -> dict:
    """Arguments of `UniMedVLForConditionalGeneration.forward`: one sample a row, padded on the right.

    Rows attend only to themselves, so on a CPU short rows cost far less than one long pack.
    """
    names = ("bos_token_id", "eos_token_id", "vision_start_token_id", "vision_end_token_id")
    token_ids = {name: getattr(config, name) for name in (*names, "image_token_id", "latent_token_id")}
    packs = [pack_samples([sample.blocks], **token_ids) for sample in samples]
    length = max(pack["input_ids"].shape[1] for pack in packs)
    batch = {}
    for name, padding in {"input_ids": config.pad_token_id, **PADDING}.items():
        columns = [F.pad(pack[name][0], (0, length - pack[name].shape[1]), value=padding) for pack in packs]
        batch[name] = torch.stack(columns)
    images = [image for sample in samples for image in sample.images]
    if images:
        patch = config.vision_config.patch_size
        patches = [patchify_pixels(pixels_from_image(image), patch) for image in images]
        batch["pixel_values"] = torch.from_numpy(np.concatenate(patches))
        grids = [(1, image.height // patch, image.width // patch) for image in images]
        batch["image_grid_thw"] = torch.tensor(grids)
    latents = [latent for sample in samples for latent in sample.latents]
    if latents:
        batch["latent_values"] = latents
    return batch
