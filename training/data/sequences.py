"""From a record to the blocks of a training sample (paper, section 3.1, and upstream's loaders).

| sample | blocks |
|---|---|
| understanding | system texts, images (ViT) and questions in their order, answers with the text loss |
| text only | question, answer |
| text to image | prompt, the answer's text, noised image |
| editing | for each input image clean VAE and ViT, instruction, the answer's text, noised image |
| counterfactual | as editing, with the noised image before its explanation |

Where an image to be made stands in its answer is the record's word (see `Record`).
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind
from unimedvl.processing.image_processing_unimedvl import reference_size
from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, Record, Turn

from ..data_recipe import ConditionDropout, GroupRecipe
from .augmentation import Augmentation, draw_augmentation

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class ImageSize:
    """An image of which only the size is known."""

    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Outline:
    """The part of a record that its layout depends on, read without its images; fields as in `Record`."""

    id: str
    sub_task_type: str
    modality: str
    input_img: tuple[ImageSize, ...]
    output_img: tuple[ImageSize, ...]
    message: tuple[Turn, ...]


@dataclass(frozen=True)
class SampleImage:
    """One view of one image, in the order of the blocks.

    Attributes:
        output: whether it is the record's `output_img[index]` or `input_img[index]`.
        index: which one.
        steps: sizes (width, height) in pixels that it is resized to one after the other.
        latent: whether it enters through the autoencoder (clean or noised) or the ViT.
    """

    output: bool
    index: int
    steps: tuple[tuple[int, int], ...]
    latent: bool


@dataclass
class TrainingSample:
    """Blocks of one sample with the views of its images; dropped blocks have none.

    Attributes:
        record_id, task, modality, group: where it comes from.
        epoch: how often its group was read through before.
        num_tokens: tokens that it takes in a pack.
        augmentation: random changes of its images, the same for all.
        timestep_shift: of the times of its noised images; the run's if None.
    """

    record_id: str
    task: str
    modality: str
    group: str
    epoch: int
    blocks: list[Block] = field(default_factory=list)
    images: list[SampleImage] = field(default_factory=list)
    augmentation: Augmentation | None = None
    timestep_shift: float | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that the sample takes in a pack, markers included."""
        return sum(block_tokens(block) for block in self.blocks)


def block_tokens(block: Block) -> int:
    """Tokens of a block with its two markers."""
    if block.dropped:
        return 0
    if block.token_ids is not None:
        return len(block.token_ids) + 2
    assert block.grid is not None
    return block.grid[0] * block.grid[1] + 2


def sample_seed(seed: int, epoch: int, record_id: str, purpose: str) -> int:
    """A seed for one use of one record in one epoch, the same in every process and on every machine."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}/{record_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


class Layout:
    """Lays records of a group out as samples.

    Args:
        group: image sizes and name.
        dropout: of conditions.
        vit_source: see `DataRecipe`.
        encode: text to token ids, without special tokens.
        vit_patch: pixels of a ViT patch.
        latent_token: pixels of a latent token.
        seed: of the run; with epoch and record id it decides what is dropped.
    """

    def __init__(
        self,
        group: GroupRecipe,
        dropout: ConditionDropout,
        vit_source: str,
        encode: Encode,
        vit_patch: int,
        latent_token: int,
        seed: int,
    ):
        self.group, self.dropout, self.vit_source, self.encode, self.seed = group, dropout, vit_source, encode, seed
        self.vit_patch, self.latent_token = vit_patch, latent_token

    def __call__(self, record: Record | Outline, epoch: int) -> TrainingSample:
        """The sample of a record, which needs no image data but its sizes.

        Raises:
            ValueError: if an image's size is unknown, or the record has nothing to train on.
        """
        sample = TrainingSample(
            record.id,
            record.sub_task_type,
            record.modality,
            self.group.name,
            epoch,
            timestep_shift=self.group.timestep_shift,
        )
        draw = random.Random(sample_seed(self.seed, epoch, record.id, "dropout"))
        _Builder(self, record, sample, draw).build()
        images = (*record.input_img, *record.output_img)
        square = all(image.width == image.height for image in images)
        change = sample_seed(self.seed, epoch, record.id, "augmentation")
        sample.augmentation = draw_augmentation(self.group.augmentation, change, square)
        if not any(block.loss or block.kind == BlockKind.NOISED for block in sample.blocks):
            raise ValueError(f"{record.id} has neither an answer nor an image to train on.")
        return sample


class _Builder:
    def __init__(self, layout: Layout, record: Record | Outline, sample: TrainingSample, draw: random.Random):
        self.layout, self.record, self.sample, self.draw = layout, record, sample, draw
        self.makes_images = bool(record.output_img)
        self.seen = {"human": 0, "gpt": 0}

    def build(self) -> None:
        turns = self.record.message
        for number, turn in enumerate(turns):
            pieces = turn.value.split(IMAGE_PLACEHOLDER)
            first = turns[number].role not in [earlier.role for earlier in turns[:number]]
            last_of_role = turns[number].role not in [later.role for later in turns[number + 1 :]]
            images = self.record.input_img if turn.role == "human" else self.record.output_img
            unplaced = not any(IMAGE_PLACEHOLDER in other.value for other in turns if other.role == turn.role)
            if unplaced and turn.role == "human" and first:
                self.images(len(images), turn.role, more=False)
            for index, piece in enumerate(pieces):
                if index > 0:
                    self.images(1, turn.role, more=number + 1 < len(turns))
                text = (
                    " ".join(piece.split()) if not self.record.input_img and not self.makes_images else piece.strip()
                )
                if text:
                    self.text(text, answer=turn.role == "gpt")
            if unplaced and turn.role == "gpt" and last_of_role:
                self.images(len(images), turn.role, more=False)

    def images(self, count: int, role: str, more: bool) -> None:
        for _ in range(count):
            index = self.seen[role]
            self.seen[role] += 1
            if role == "gpt":
                # Noised blocks take no position and are seen by no other block: several are draws of one image.
                for _ in range(self.layout.group.flow_draws):
                    self.latent(True, index, BlockKind.NOISED)
                if not more:
                    continue
            if self.makes_images:
                self.latent(role == "gpt", index, BlockKind.CLEAN)
            self.vit(role == "gpt", index)

    def dropped(self, condition: str) -> bool:
        dropout = self.layout.dropout
        chosen = self.draw.random() < getattr(dropout, condition)
        understanding_image = condition == "vit" and not self.makes_images
        if dropout.scope == "upstream":
            prompt = condition == "text" and self.makes_images and not self.record.input_img
            return chosen and (prompt or understanding_image)
        return chosen and (self.makes_images or understanding_image)

    def text(self, text: str, answer: bool) -> None:
        ids = self.layout.encode(text)
        dropped = not answer and self.dropped("text")
        self.sample.blocks.append(Block(BlockKind.TEXT, token_ids=ids, loss=answer, dropped=dropped))

    def size(self, output: bool, index: int) -> tuple[int, int]:
        image = (self.record.output_img if output else self.record.input_img)[index]
        if image.width < 1 or image.height < 1:
            raise ValueError(f"{self.record.id}: the size of {image.path} is unknown; build the records again.")
        return image.width, image.height

    def latent(self, output: bool, index: int, kind: BlockKind) -> None:
        unit = self.layout.latent_token
        size = reference_size(*self.size(output, index), **self.layout.group.vae.transform(unit))
        dropped = kind == BlockKind.CLEAN and self.dropped("vae")
        self.image(Block(kind, grid=(size[1] // unit, size[0] // unit), dropped=dropped), output, index, (size,), True)

    def vit(self, output: bool, index: int) -> None:
        patch, group = self.layout.vit_patch, self.layout.group
        size, steps = self.size(output, index), []
        if self.makes_images and self.layout.vit_source == "vae":
            size = reference_size(*size, **group.vae.transform(self.layout.latent_token))
            steps.append(size)
        images = 1 if self.makes_images else max(1, len(self.record.input_img))
        sizes = group.vit if self.makes_images else group.understanding
        size = reference_size(*size, **sizes.transform(patch), num_images=images)
        block = Block(BlockKind.VIT, grid=(size[1] // patch, size[0] // patch), dropped=self.dropped("vit"))
        self.image(block, output, index, (*steps, size), False)

    def image(self, block: Block, output: bool, index: int, steps: tuple[tuple[int, int], ...], latent: bool) -> None:
        self.sample.blocks.append(block)
        if not block.dropped:
            self.sample.images.append(SampleImage(output, index, steps, latent))
