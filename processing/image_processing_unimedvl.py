"""Image processor: the resize arithmetic and pixel layout of the BAGEL / UniMedVL reference, in numpy and PIL."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ImagesKwargs

from .call_arguments_unimedvl import name_in_parent
from .medical_formats_unimedvl import open_image
from .pixel_windows_unimedvl import MAX_IMAGE_PIXELS, convert_to_rgb
from .view_unimedvl import View

GENERATION_MODES = ("text", "image", "interleaved")
PIPELINES = ("direct", "chain")
# Default of BAGEL's ImageTransform: 14 * 14 * 9 * 1024.
DEFAULT_MAX_PIXELS = 1_806_336
TRANSFORM_FIELDS = {"max_image_size", "min_image_size", "image_stride", "max_pixels"}

# uint8 level -> float32 in [-1, 1] with the reference's operations in its order: divide by 255, subtract 0.5, divide
# by 0.5. A table of 256 values gives the same bits as computing every pixel.
_PIXEL_VALUE_OF_LEVEL = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


class UniMedVLImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of `UniMedVLImageProcessor`, saved with it and overridable per call; its docstring explains them."""

    patch_size: int
    understanding_transform: dict
    vae_transform: dict
    vit_transform: dict
    pipeline: str | None
    max_image_pixels: int


def reference_size(
    width: int,
    height: int,
    max_image_size: int,
    min_image_size: int,
    image_stride: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    num_images: int = 1,
) -> tuple[int, int]:
    """Size `(width, height)` in pixels after the resize of the BAGEL reference.

    Every rounding is Python's `round` (half to even) and each side is a multiple of `image_stride`, at least one.
    1. Scale so that the longer side is at most `max_image_size`, or else so that the shorter is at least
       `min_image_size`.
    2. If the area exceeds `max_pixels / num_images`, scale both sides by the RATIO of the areas. (Its square root
       would do; the reference shrinks further, and the weights were trained that way.)
    3. If the longer side still exceeds `max_image_size`, scale it down; the shorter side may end below the minimum.

    Args:
        width, height: of the original, in pixels.
        max_image_size, min_image_size: bounds of the longer and the shorter side, in pixels.
        image_stride: every side becomes a multiple of it, in pixels.
        max_pixels: bound of the area.
        num_images: images in the sample, which share `max_pixels`; the reference counts them in understanding
            training only.

    Raises:
        ValueError: for sizes below one pixel.
    """
    if min(width, height, max_image_size, min_image_size, image_stride, max_pixels, num_images) < 1:
        raise ValueError("Image sizes, limits, strides and image counts must be at least 1: pass positive integers.")

    def snapped(side: int) -> int:
        return max(image_stride, int(round(side / image_stride) * image_stride))

    def scaled(width: int, height: int, scale: float) -> tuple[int, int]:
        return snapped(round(width * scale)), snapped(round(height * scale))

    scale = min(max_image_size / max(width, height), 1.0)
    scale = max(scale, min_image_size / min(width, height))
    width, height = scaled(width, height, scale)
    if width * height > max_pixels / num_images:
        width, height = scaled(width, height, max_pixels / num_images / (width * height))
    if max(width, height) > max_image_size:
        width, height = scaled(width, height, max_image_size / max(width, height))
    return width, height


def pixels_from_image(image: Image.Image) -> np.ndarray:
    """(3, H, W) float32 in [-1, 1] of an RGB image."""
    return _PIXEL_VALUE_OF_LEVEL[np.asarray(image)].transpose(2, 0, 1)


def patchify_pixels(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """(3, H, W) -> (H/patch * W/patch, patch * patch * 3): rows row-major over the patches, each (py, px, channel)."""
    channels, height, width = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    assert (rows * patch_size, columns * patch_size) == (height, width)
    patches = pixels.reshape(channels, rows, patch_size, columns, patch_size).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(patches.reshape(rows * columns, patch_size * patch_size * channels))


def flatten_images(images: Any) -> list:
    """Any nesting of lists of images, 4-D arrays and 4-D tensors as one flat list; None entries are left out."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [image for entry in images for image in flatten_images(entry)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def images_of_texts(images: Any, counts: list[int], image_token: str) -> list[list]:
    """Give each text its images.

    Args:
        images: flat, or one list per text.
        counts: placeholders of each text.
        image_token: the placeholder, for the message.

    Raises:
        ValueError: if there are other images than placeholders.
    """
    flat = flatten_images(images)
    nested = isinstance(images, list | tuple) and any(isinstance(entry, list | tuple) for entry in images)
    given = [len(flatten_images(entry)) for entry in images] if nested else None
    if sum(counts) != len(flat) or (given is not None and len(given) == len(counts) and given != counts):
        raise ValueError(
            f"The texts hold {counts} {image_token} placeholders but {given or len(flat)} images were given: write "
            "one placeholder per image, or use apply_chat_template, which does."
        )
    remaining = iter(flat)
    return [[next(remaining) for _ in range(count)] for count in counts]


class UniMedVLImageProcessor(PilBackend):
    """Images to the tensors of UniMedVL, bit-equal to the reference for plain 8-bit images.

    The settings below are saved in `processor_config.json` and can be overridden in every call, which takes the
    arguments of `preprocess`. A transform is a dict of `max_image_size`, `min_image_size`, `image_stride` and
    optionally `max_pixels`, see `reference_size`.

    Args:
        understanding_transform (dict): for the ViT in text mode (the reference's question answering and training).
        vae_transform (dict): for the images the VAE encodes in image and interleaved mode; its stride is VAE stride
            times latent patch, the pixels one latent token covers.
        vit_transform (dict): for the ViT where the image also goes through the VAE. (387 is upstream's value.)
        pipeline (str | None): "chain" resizes with `vae_transform` first and feeds that image to VAE and ViT, as the
            reference's InterleaveInferencer does; "direct" gives the ViT the original. None is "direct" with
            `understanding_transform` in text mode, "chain" otherwise. "chain" in text mode uses `vit_transform`.
        patch_size (int): side in pixels of a ViT patch; divides the strides of both ViT transforms.
        max_image_pixels (int): larger inputs are refused (the reference's limit is 20,000,000).

    Raises:
        ValueError: for impossible settings.
    """

    model_input_names = ["pixel_values", "image_grid_thw", "latent_pixel_values", "latent_image_sizes"]
    valid_kwargs = UniMedVLImageProcessorKwargs
    _auto_class = "AutoImageProcessor"

    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    resample = Image.Resampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]

    patch_size = 14
    # Qwen2-VL's name: tokens per side of a merged block. Trainers read it to count image tokens.
    merge_size = 1
    understanding_transform = {
        "max_image_size": 980,
        "min_image_size": 378,
        "image_stride": 14,
        "max_pixels": 2_007_040,
    }
    vae_transform = {
        "max_image_size": 1024,
        "min_image_size": 32,
        "image_stride": 16,
        "max_pixels": DEFAULT_MAX_PIXELS,
    }
    vit_transform = {
        "max_image_size": 980,
        "min_image_size": 387,
        "image_stride": 14,
        "max_pixels": DEFAULT_MAX_PIXELS,
    }
    pipeline = None
    max_image_pixels = MAX_IMAGE_PIXELS

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        settings = self._settings({})
        for name in ("understanding_transform", "vae_transform", "vit_transform"):
            setattr(self, name, settings[name])

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs) -> "UniMedVLImageProcessor":
        """Make an image processor of saved settings; `from_pretrained` calls this.

        Raises:
            ValueError: for a `backend` other than "pil", or for impossible settings.
        """
        backend = kwargs.pop("backend", None)
        if backend not in (None, "pil"):
            raise ValueError(f"backend={backend!r}: this image processor works with PIL alone; leave backend out.")
        return super().from_dict(image_processor_dict, **kwargs)

    def _settings(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """The settings of one call, checked."""
        own = sorted(UniMedVLImageProcessorKwargs.__annotations__.keys() - ImagesKwargs.__annotations__.keys())
        unknown = sorted(overrides.keys() - set(own))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not a setting of this image processor; use {', '.join(own)}.")
        settings = {name: getattr(self, name) for name in own}
        settings.update({name: value for name, value in overrides.items() if value is not None})
        if settings["pipeline"] not in (None, *PIPELINES):
            raise ValueError(f"pipeline={settings['pipeline']!r}: choose 'direct', 'chain' or None.")
        for name in ("understanding_transform", "vae_transform", "vit_transform"):
            settings[name] = _checked_transform(name, settings[name])
        for name in ("understanding_transform", "vit_transform"):
            if settings[name]["image_stride"] % settings["patch_size"]:
                raise ValueError(f"{name}: make image_stride a multiple of patch_size={settings['patch_size']}.")
        return settings

    def preprocess(
        self,
        images: Any,
        generation_mode: str = "text",
        num_images: int = 1,
        allow_url: bool = False,
        return_tensors: str | None = None,
        **overrides,
    ) -> BatchFeature:
        """Make the tensors of images; calling the image processor calls this.

        Args:
            images: whatever `open_image` takes, in any nesting.
            generation_mode: "text", "image" or "interleaved".
            num_images: how many images share the pixel budget of a sample (1 at inference).
            allow_url: fetch images given as http(s) URLs. Refused by default.
            return_tensors: "pt", "np" or None (as "np").
            **overrides: settings of the class for this call.

        Returns:
            `pixel_values`, float32 (sum of patches, patch_size**2 * 3) in [-1, 1], each row ordered (row, column,
            channel); `image_grid_thw`, int64 (N, 3), rows (1, patch rows, patch columns). In image and interleaved
            mode also `latent_pixel_values`, float32 (N, 3, H, W) in [-1, 1], zero padded at the bottom and the right,
            and `latent_image_sizes`, int64 (N, 2), (height, width) in pixels without the padding. Without images it
            is empty.

        Raises:
            ValueError: for unreadable images and impossible settings.
        """
        if generation_mode not in GENERATION_MODES:
            raise ValueError(f"generation_mode={generation_mode!r}: choose one of {', '.join(GENERATION_MODES)}.")
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors={return_tensors!r}: choose 'pt', 'np' or None.")
        settings = self._settings(overrides)
        view = View(max_pixels=settings["max_image_pixels"], allow_url=allow_url)
        patches, grids, latents = [], [], []
        for image in flatten_images(images):
            image = convert_to_rgb(open_image(image, view))
            vit_image, vae_image = self._resized(image, generation_mode, num_images, settings)
            patches.append(patchify_pixels(pixels_from_image(vit_image), settings["patch_size"]))
            grids.append((1, *(side // settings["patch_size"] for side in reversed(vit_image.size))))
            if generation_mode != "text":
                assert vae_image is not None, "every mode with latents resizes for the VAE"
                latents.append(pixels_from_image(vae_image))
        if not patches:
            return BatchFeature({}, tensor_type=return_tensors)
        data = {"pixel_values": np.concatenate(patches), "image_grid_thw": np.array(grids, dtype=np.int64)}
        if latents:
            sizes = np.array([latent.shape[1:] for latent in latents], dtype=np.int64)
            padded = np.zeros((len(latents), 3, *sizes.max(axis=0)), dtype=np.float32)
            for row, latent in zip(padded, latents, strict=True):
                row[:, : latent.shape[1], : latent.shape[2]] = latent
            data |= {"latent_pixel_values": padded, "latent_image_sizes": sizes}
        return BatchFeature(data, tensor_type=return_tensors)

    def patch_grid(self, height: int, width: int, **overrides) -> tuple[int, int]:
        """Count the ViT patches of an image in text mode, without reading it.

        Args:
            height, width: of the image, in pixels.
            **overrides: settings of the class for this call.

        Returns:
            Rows and columns of patches.

        Raises:
            ValueError: for impossible settings or sizes.
        """
        num_images = overrides.pop("num_images", 1)
        settings = self._settings(overrides)
        stages = (
            ("vae_transform", "vit_transform") if settings["pipeline"] == "chain" else ("understanding_transform",)
        )
        for stage in stages:
            width, height = reference_size(width, height, **settings[stage], num_images=num_images)
        return height // settings["patch_size"], width // settings["patch_size"]

    def _resized(
        self, image: Image.Image, generation_mode: str, num_images: int, settings: dict[str, Any]
    ) -> tuple[Image.Image, Image.Image | None]:
        """The RGB images the ViT and the VAE see."""
        pipeline = settings["pipeline"] or ("direct" if generation_mode == "text" else "chain")
        vit_transform = settings["vit_transform"]
        vae_image = None
        if generation_mode != "text" or pipeline == "chain":
            vae_image = resize_image(image, settings["vae_transform"], num_images)
        elif pipeline == "direct":
            vit_transform = settings["understanding_transform"]
        vit_source = vae_image if pipeline == "chain" else image
        assert vit_source is not None, "the chain begins with the image for the VAE"
        return resize_image(vit_source, vit_transform, num_images), vae_image


def resize_image(image: Image.Image, transform: dict[str, int], num_images: int = 1) -> Image.Image:
    """Resize with PIL's bicubic filter to the size of `reference_size`; an equal size returns a copy of the pixels."""
    return image.resize(reference_size(*image.size, **transform, num_images=num_images), Image.Resampling.BICUBIC)


def _checked_transform(name: str, transform: Any) -> dict[str, int]:
    fields = transform.keys() if isinstance(transform, dict) else set()
    if not TRANSFORM_FIELDS - {"max_pixels"} <= fields <= TRANSFORM_FIELDS:
        raise ValueError(
            f"{name} must be a dict of max_image_size, min_image_size, image_stride and optionally max_pixels."
        )
    transform = {"max_pixels": DEFAULT_MAX_PIXELS, **transform}
    for key, value in transform.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}[{key!r}] is {value!r}: pass a positive whole number of pixels.")
    return {key: int(value) for key, value in transform.items()}


name_in_parent(__name__)
