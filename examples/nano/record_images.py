"""The images of the nano's records as tensors, with their captions and their masks.

Shape legend: N images, M masks.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy
import torch
from PIL import Image

from unimedvl.unimed5m.schema import Record

from .captions import UNNAMED_LABELS
from .model import SIDE
from .not_medical import NOT_MEDICAL_SOURCE
from .prepare import MARGIN, image_of, is_image_request, work_records

CANVAS = round(SIDE * MARGIN)  # longer side in pixels of the records' images
MIRRORED = ("CFP", "CT", "MRI", "US", "HIS", "ENDO", "OCT")  # left is left in a chest film
TURNED = ("HIS", "ENDO")
UNCAPTIONED = -100  # what cross-entropy ignores
# Their input images are drawn, or lowered in resolution.
CHANGED_INPUTS = ("super_resolution", "restoration", "counterfactual")


@dataclass
class RecordImages:
    """Images with what the records state about them.

    Attributes:
        pixels: uint8 (N, 3, CANVAS, CANVAS), each image in the upper left and black beside it.
        sizes: float (N, 2), height and width in pixels.
        captions: int64 (N,), the number of the caption among all, or UNCAPTIONED.
        modalities, sources, labels, groups, digests: of each image; the digest is that of its file.
    """

    pixels: torch.Tensor
    sizes: torch.Tensor
    captions: torch.Tensor
    modalities: list[str]
    sources: list[str]
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    @cached_property
    def rarity(self) -> torch.Tensor:
        """How often to draw each image (N,): by one over the square root of how often its caption occurs."""
        captions = self.captions.cpu()
        stated = captions != UNCAPTIONED
        counts = torch.bincount(captions[stated])
        return torch.where(stated, counts[captions.clamp(min=0)].float() ** -0.5, 0.0)

    @cached_property
    def mirrored(self) -> torch.Tensor:
        """Whether an image may be mirrored, bool (N,)."""
        return torch.tensor([modality in MIRRORED for modality in self.modalities])

    @cached_property
    def turned(self) -> torch.Tensor:
        """Whether an image may lie on any side, bool (N,)."""
        return torch.tensor([modality in TURNED for modality in self.modalities])

    def to(self, device: str | torch.device) -> "RecordImages":
        """The same with pixels, sizes and captions on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "sizes", "captions")}
        return replace(self, **moved)


@dataclass
class Masks:
    """Masks of images.

    Attributes:
        pixels: uint8 (M, CANVAS, CANVAS), 0 or 255.
        images: int64 (M,), the place of the masked image among all.
        kinds: int64 (M,), the number of what is masked among all kinds.
    """

    pixels: torch.Tensor
    images: torch.Tensor
    kinds: torch.Tensor

    @cached_property
    def rarity(self) -> torch.Tensor:
        """How often to draw each mask (M,): by one over the square root of how often its kind occurs."""
        kinds = self.kinds.cpu()
        return torch.bincount(kinds)[kinds].float() ** -0.5

    def to(self, device: str | torch.device) -> "Masks":
        """The same on a device."""
        return Masks(self.pixels.to(device), self.images.to(device), self.kinds.to(device))


def caption_of(record: Record) -> str:
    """What the source states about the image, in the words of its caption."""
    if record.dataset == NOT_MEDICAL_SOURCE:
        return "not medical"
    extra = json.loads(record.extra)
    label = "" if record.dataset in UNNAMED_LABELS else extra.get("label", "")
    return f"{extra.get('submodality', '')} {extra.get('anatomy', '')} {label}".strip()


def states_image(record: Record) -> bool:
    """Whether a record says all that is known of its image: a built request for it, or that it is not medical."""
    return is_image_request(record) or record.dataset == NOT_MEDICAL_SOURCE


def structure_of(record: Record) -> str:
    """What the record's mask shows, as "source: structure"."""
    return f"{record.dataset}: {json.loads(record.extra)['target']}"


def on_canvas(image: Image.Image) -> torch.Tensor:
    """An image of at most CANVAS pixels a side as uint8 (3, CANVAS, CANVAS), in the upper left."""
    array = numpy.asarray(image.convert("RGB"))
    canvas = numpy.zeros((3, CANVAS, CANVAS), dtype=numpy.uint8)
    canvas[:, : array.shape[0], : array.shape[1]] = array.transpose(2, 0, 1)
    return torch.from_numpy(canvas)


def images_of(
    records: Iterable[Record],
    names: list[str],
    naming: Callable[[Record], str | None] = caption_of,
) -> RecordImages:
    """The images of small records.

    Args:
        names: collects their captions.
        naming: the caption of a record's image; None where nothing is stated.
    """
    found: dict[str, list] = {name: [] for name in RecordImages.__dataclass_fields__}
    for record in records:
        caption = naming(record)
        if caption is not None and caption not in names:
            names.append(caption)
        image = image_of(record)
        found["pixels"].append(on_canvas(image))
        found["sizes"].append((image.height, image.width))
        found["captions"].append(UNCAPTIONED if caption is None else names.index(caption))
        found["modalities"].append(record.modality)
        found["sources"].append(record.dataset)
        found["labels"].append(json.loads(record.extra).get("label", ""))
        found["groups"].append(record.group_id)
        found["digests"].append((*record.output_img, *record.input_img)[0].sha256)
    return RecordImages(
        torch.stack(found.pop("pixels")),
        torch.tensor(found.pop("sizes")).float(),
        torch.tensor(found.pop("captions")),
        **found,
    )


def read_images(work: Path, split: str, names: list[str]) -> RecordImages:
    """One image for each built request for an image; `names` collects the captions.

    Raises:
        ValueError: where there is none.
    """
    records = list(filter(is_image_request, work_records(work, split)))
    if not records:
        raise ValueError(f"{work} holds no image of its {split} part: build more records.")
    return images_of(records, names)


def read_everything(work: Path, split: str, names: list[str], kinds: list[str]) -> tuple[RecordImages, Masks]:
    """Every image once, with a caption where a request states what it shows, and every mask.

    Args:
        names: collects the captions.
        kinds: collects what is masked.

    Raises:
        ValueError: where there is no requested image or no mask.
    """
    stated: dict[str, Record] = {}
    others: dict[str, Record] = {}
    masked: list[Record] = []
    for record in work_records(work, split):
        if is_image_request(record):
            stated.setdefault(record.output_img[0].sha256, record)
        elif record.input_img and record.sub_task_type not in CHANGED_INPUTS:
            for image in record.input_img:
                if max(image.width, image.height) <= CANVAS:
                    others.setdefault(image.sha256, record.replace(input_img=(image,), output_img=()))
            if record.sub_task_type == "segmentation":
                masked.append(record)
    if not stated:
        raise ValueError(f"{work} holds no image of its {split} part: build more records.")
    if not masked:
        raise ValueError(f"{work} holds no segmentation record of its {split} part: build records that have masks.")
    chosen = list(stated.values()) + [record for digest, record in others.items() if digest not in stated]
    images = images_of(chosen, names, lambda record: caption_of(record) if states_image(record) else None)
    places = {digest: place for place, digest in enumerate(images.digests)}
    structures = [structure_of(record) for record in masked]
    kinds.extend(sorted(set(structures) - set(kinds)))
    pixels = torch.stack([on_canvas(image_of(record)).amax(dim=0) for record in masked])
    masks = Masks(
        (pixels > 127).to(torch.uint8) * 255,
        torch.tensor([places[record.input_img[0].sha256] for record in masked]),
        torch.tensor([kinds.index(structure) for structure in structures]),
    )
    return images, masks
