"""What a training run reads: groups of records with their shares, image sizes and condition dropout."""

import math
from dataclasses import dataclass, field

DROPOUT_SCOPES = ("all", "upstream")
VIT_SOURCES = ("original", "vae")


def check_shift(name: str, value: float) -> None:
    """Raises ValueError where a shift of flow times is no positive number."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, not {value}; 1 is no shift.")


@dataclass
class ImageRange:
    """Sizes that an image is resized to: the shorter side at least `min_side`, the longer at most `max_side` pixels
    (in this order; see `reference_size`), at most `max_pixels` in area."""

    min_side: int
    max_side: int
    max_pixels: int = 14 * 14 * 9 * 1024

    def transform(self, stride: int) -> dict[str, int]:
        """Arguments of `reference_size` for sides that are multiples of `stride` pixels."""
        return {
            "min_image_size": self.min_side,
            "max_image_size": self.max_side,
            "image_stride": stride,
            "max_pixels": self.max_pixels,
        }


@dataclass
class ConditionDropout:
    """Probabilities that a condition is left out, so that guidance has something to compare with (paper, Table 12).

    Attributes:
        text, vit, vae: for every prompt, ViT image and clean VAE image, drawn for each block on its own.
        scope: "all" drops every condition of an image to be made, and the ViT images of understanding; "upstream" is
            what the authors' loaders do: prompts of text-to-image and ViT images of understanding alone.
    """

    text: float = 0.3
    vit: float = 0.05
    vae: float = 0.05
    scope: str = "all"

    def __post_init__(self) -> None:
        for name in ("text", "vit", "vae"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"condition_dropout.{name} must lie in [0, 1], not {getattr(self, name)}.")
        if self.scope not in DROPOUT_SCOPES:
            raise ValueError(
                f"condition_dropout.scope must be one of {', '.join(DROPOUT_SCOPES)}, not {self.scope!r}."
            )


@dataclass
class AugmentationRecipe:
    """Random changes of the images of a group, drawn for each record and epoch; none by default.

    Attributes:
        crop: smallest share of each side that a crop keeps; 1 keeps the whole image.
        flip_horizontal, flip_vertical: mirror half of the samples.
        quarter_turns: turn square images by 0 to 3 quarters.
        brightness, contrast, color: largest relative change of all pixels, of their differences from the mean, and of
            each color channel on its own.
        gamma: largest relative change of the exponent to which all levels between black (0) and white (1) are raised;
            as often above 1 as below.
        invert: share of the records whose images have black and white exchanged, as in films of the other polarity.
        outputs: change the levels (brightness, contrast, color, gamma, inversion) of images that are made as well;
            false where they are masks. Crops, flips and turns always concern all images of a record alike.
    """

    crop: float = 1.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    color: float = 0.0
    gamma: float = 0.0
    invert: float = 0.0
    outputs: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"augmentation.crop must lie in (0, 1], not {self.crop}.")
        for name in ("brightness", "contrast", "color"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augmentation.{name} must lie in [0, 1), not {getattr(self, name)}.")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"augmentation.gamma must be 0 or a positive number, not {self.gamma}.")
        if not 0 <= self.invert <= 1:
            raise ValueError(f"augmentation.invert must lie in [0, 1], not {self.invert}.")

    @property
    def changes(self) -> bool:
        """Whether anything is changed at all."""
        strengths = (1.0 - self.crop, self.brightness, self.contrast, self.color, self.gamma, self.invert)
        return any(strengths) or self.flip_horizontal or self.flip_vertical or self.quarter_turns


@dataclass
class GroupRecipe:
    """Records that are drawn together.

    Attributes:
        name: of the group, in logs.
        path: folder of built or published records; `DataRecipe.path` if empty.
        weight: share of the samples, relative to the other groups.
        kinds, tasks, sources, modalities: values of `main_task_type`, `sub_task_type`, `dataset` and `modality` to
            keep; all if empty.
        split: of the records.
        vae: sizes of images that enter or leave through the autoencoder.
        vit: sizes of images that condition a generated image through the ViT.
        understanding: sizes of images that are only read.
        augmentation: see `AugmentationRecipe`.
        timestep_shift: of the training times, above 0, above 1 for more noise; the run's if None. Where the inputs
            decide the image to be made, little is learned about them while it can be seen through its noise.
        flow_draws: times and noises that each image to be made is learned at in one sample. Its conditions, which are
            most of the tokens of an edit, are then read once for all of them.
    """

    name: str
    path: str = ""
    weight: float = 1.0
    kinds: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    modalities: list[str] = field(default_factory=list)
    split: str = "train"
    vae: ImageRange = field(default_factory=lambda: ImageRange(512, 1024))
    vit: ImageRange = field(default_factory=lambda: ImageRange(224, 518))
    understanding: ImageRange = field(default_factory=lambda: ImageRange(378, 980))
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    timestep_shift: float | None = None
    flow_draws: int = 1

    def __post_init__(self) -> None:
        if self.flow_draws < 1:
            raise ValueError(f"The flow_draws of group {self.name!r} must be 1 or more, not {self.flow_draws}.")
        if self.timestep_shift is not None:
            check_shift(f"The timestep_shift of group {self.name!r}", self.timestep_shift)
        if self.weight <= 0:
            raise ValueError(f"The weight of group {self.name!r} must be above 0, not {self.weight}: leave it out.")


@dataclass
class DataRecipe:
    """The data of a run.

    Attributes:
        groups: at least one.
        path: folder of the records of all groups that name none of their own.
        pack_tokens: length of a packed row.
        sample_tokens: longest sample that is taken, `pack_tokens` if None; longer ones are counted and logged.
        rows_per_batch: packed rows in a micro-batch.
        open_packs: rows that are filled at the same time; more waste less and reorder more.
        condition_dropout: see `ConditionDropout`.
        vit_source: what a conditioning image's ViT view is resized from: the "original", as in upstream's training,
            or its "vae" view, as in the processor.
        latent_cache: folder for the autoencoder's posteriors of images seen before; none if empty.
        workers: processes that decode images, 0 for none.
    """

    groups: list[GroupRecipe]
    path: str = ""
    pack_tokens: int = 18500
    sample_tokens: int | None = None
    rows_per_batch: int = 1
    open_packs: int = 32
    condition_dropout: ConditionDropout = field(default_factory=ConditionDropout)
    vit_source: str = "original"
    latent_cache: str = ""
    workers: int = 0

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("data.groups is empty: name at least one group of records.")
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError("Two groups of data.groups have the same name: give each its own.")
        for group in self.groups:
            group.path = group.path or self.path
            if not group.path:
                raise ValueError(f"Group {group.name!r} has no path: set data.path to a folder of built records.")
        for name in ("pack_tokens", "rows_per_batch", "open_packs"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be 1 or more, not {getattr(self, name)}.")
        changing = [group.name for group in self.groups if group.augmentation.changes]
        if self.latent_cache and changing:
            raise ValueError(
                f"data.latent_cache cannot hold the changing images of group {changing[0]!r}: leave out "
                "latent_cache or the group's augmentation."
            )
        if self.sample_tokens is None:
            self.sample_tokens = self.pack_tokens
        if not 1 <= self.sample_tokens <= self.pack_tokens:
            raise ValueError(f"data.sample_tokens must lie between 1 and pack_tokens, not {self.sample_tokens}.")
        if self.vit_source not in VIT_SOURCES:
            raise ValueError(f"data.vit_source must be one of {', '.join(VIT_SOURCES)}, not {self.vit_source!r}.")
