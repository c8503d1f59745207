"""Making the images of constructed tasks: masks, lowered resolution, drawn lesions. All deterministic.

Arrays are (height, width) or (height, width, 3), uint8. Images made here are stored as PNG, so that nothing is lost;
images of a source keep the bytes that the source stored.
"""

import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy
from PIL import ExifTags, Image, UnidentifiedImageError

from unimedvl.processing.medical_formats_unimedvl import open_image
from unimedvl.processing.pixel_windows_unimedvl import convert_to_rgb
from unimedvl.processing.view_unimedvl import View

from .clean_image_files import plain_jpeg, plain_png
from .schema import Record, RecordImage
from .templates.words import CENTRAL_PLACE, HORIZONTAL_PLACES, VERTICAL_PLACES

RESAMPLING = ("bicubic", "k-space")
# Gray levels between a drawn lesion and its surroundings.
LEAST_DIFFERENCE = 80.0


def stored_image(data: bytes, path: str) -> RecordImage:
    """A source's encoded image as it is.

    Raises:
        ValueError: if the bytes are no image that PIL knows.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        # PIL's own sentence names an object by its address, which differs from run to run.
        raise ValueError(f"{path}: expected an image, found {len(data)} bytes of no known format.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: expected an image, found {len(data)} bytes that cannot be read ({error})."
        ) from error
    return RecordImage(data, path, height, width)


def upright_image(data: bytes, path: str) -> RecordImage:
    """A PNG or JPEG file without comments and EXIF, which may name a patient; pixels are not encoded again.

    A file whose EXIF says that it lies on a side or is mirrored becomes an upright PNG instead.

    Raises:
        ValueError: if the bytes are no image that PIL knows.
    """
    source_image = stored_image(data, path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                # It turns the image, and windows more than 8 bits.
                return encoded_image(open_image(data), path)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: the image cannot be decoded ({error}).") from error
    plain = plain_jpeg(data) if data.startswith(b"\xff\xd8") else plain_png(data)
    return RecordImage(plain, path, source_image.height, source_image.width)


def encoded_image(image: Image.Image, path: str) -> RecordImage:
    """A PIL image as PNG, in gray or color."""
    return drawn_image(_gray_or_color(image), path)


def _gray_or_color(image: Image.Image) -> numpy.ndarray:
    gray = image.mode in ("1", "L", "LA") and image.info.get("transparency") is None
    return numpy.asarray(image.convert("L") if gray else convert_to_rgb(image))


def open_stored_image(data: bytes) -> Image.Image:
    """Decode an image completely and show it as a model sees it: RGB, windowed where it has more levels.

    Raises:
        ValueError: one line, where the bytes are no complete image.
    """
    return convert_to_rgb(open_image(data))


def shown_image(stored: RecordImage) -> Image.Image:
    """A record's image as a model is shown it: RGB, transparency on white, windowed where it has more levels.

    Raises:
        ValueError: one line that names the image, if the record holds its path only or it cannot be decoded.
    """
    if stored.data is None:
        raise ValueError(f"{stored.path}: the record holds no image bytes; relink the published records first.")
    try:
        return open_stored_image(stored.data)
    except ValueError as error:
        raise ValueError(f"{stored.path} cannot be read: {error}") from error


def view_entry(source: str, view: View) -> dict[str, Any]:
    """How a record remembers where an image was seen, a value of `views` in its `extra`.

    Args:
        source: the file, or the folder of a DICOM series, below the source's folder.
        view: what `open_image` was asked to show of it.
    """
    return {"source": source, **view.to_dict()}


def with_views(record: Record) -> Record:
    """A record that remembers in `extra.views` where its images were seen, as their builder noted on them."""
    seen = {image.path: dict(image.view) for image in (*record.input_img, *record.output_img) if image.view}
    if not seen:
        return record
    extra = json.loads(record.extra)
    extra["views"] = {**seen, **extra.get("views", {})}
    return dataclasses.replace(record, extra=json.dumps(extra, ensure_ascii=False, sort_keys=True))


def stored_views(record: Record) -> dict[str, tuple[str, View]]:
    """Where the images of a record were seen: its images' paths -> (file below the source's folder, view).

    `open_image` of that file with that view gives the image's pixels anew. Images without an entry are stored as
    their files were, or made from others.
    """
    entries = json.loads(record.extra).get("views", {})
    return {
        path: (entry["source"], View.from_dict({name: entry[name] for name in entry if name != "source"}))
        for path, entry in entries.items()
    }


def drawn_image(pixels: numpy.ndarray, path: str) -> RecordImage:
    """Pixels as a PNG."""
    buffer = io.BytesIO()
    # Level and optimization are fixed here because the bytes of a build must not depend on a library's defaults.
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6, optimize=False)
    return RecordImage(buffer.getvalue(), path, pixels.shape[0], pixels.shape[1])


def pixels_of(source_image: RecordImage) -> numpy.ndarray:
    """The decoded pixels, gray images as (height, width), others as (height, width, 3) RGB.

    Gray levels beyond 8 bits are windowed as `open_image` windows them.

    Raises:
        ValueError: if the image has no bytes or cannot be decoded.
    """
    if source_image.data is None:
        raise ValueError(f"{source_image.path}: expected image bytes, found a path only.")
    try:
        with Image.open(io.BytesIO(source_image.data)) as image:
            if image.mode.startswith(("I", "F")):
                # PIL's own conversion would make everything above 255 white.
                return numpy.asarray(open_image(source_image.data))
            return _gray_or_color(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{source_image.path}: the image cannot be decoded (no known format).") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{source_image.path}: the image cannot be decoded ({error}).") from error


def index_mask(source_image: RecordImage) -> numpy.ndarray:
    """The class numbers of a mask image (gray or palette), (height, width) uint8.

    Raises:
        ValueError: if the image has no bytes.
    """
    if source_image.data is None:
        raise ValueError(f"{source_image.path}: expected a mask's bytes, found a path only.")
    with Image.open(io.BytesIO(source_image.data)) as image:
        return numpy.asarray(image if image.mode in ("L", "P") else image.convert("L"))


def class_mask(classes: numpy.ndarray, values: Sequence[int]) -> numpy.ndarray:
    """White where the mask has one of `values`, black elsewhere; (height, width) uint8."""
    return numpy.where(numpy.isin(classes, list(values)), 255, 0).astype(numpy.uint8)


def lower_resolution(pixels: numpy.ndarray, scale: int, method: str) -> numpy.ndarray:
    """The image as a scan with `scale` times coarser resolution shows it, on the grid of the original.

    Args:
        pixels: the sharp image.
        scale: 2 or 4 (any factor that leaves at least one sample works).
        method: "bicubic" samples down and up again; "k-space" keeps the central 1/scale of the spatial frequencies in
            each direction, as a magnetic resonance scanner with a smaller matrix measures them.

    Raises:
        ValueError: for an unknown method or a scale that leaves nothing.
    """
    height, width = pixels.shape[:2]
    if method not in RESAMPLING:
        raise ValueError(f"method: expected one of {', '.join(RESAMPLING)}, found {method!r}.")
    if scale < 2 or scale > min(height, width):
        raise ValueError(f"scale: expected 2 to {min(height, width)} for a {height}x{width} image, found {scale}.")
    if method == "bicubic":
        small = Image.fromarray(pixels).resize((-(-width // scale), -(-height // scale)), Image.Resampling.BICUBIC)
        return numpy.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    spectrum = numpy.fft.fftshift(numpy.fft.fft2(pixels.astype(numpy.float64), axes=(0, 1)), axes=(0, 1))
    keep = numpy.zeros((height, width), dtype=bool)
    rows, columns = max(height // scale, 1), max(width // scale, 1)
    top, left = height // 2 - rows // 2, width // 2 - columns // 2
    keep[top : top + rows, left : left + columns] = True
    spectrum[~keep] = 0
    image = numpy.fft.ifft2(numpy.fft.ifftshift(spectrum, axes=(0, 1)), axes=(0, 1))
    # Magnitude, as scanners reconstruct; it also removes the small imaginary part of an even-sized window.
    return numpy.clip(numpy.rint(numpy.abs(image)), 0, 255).astype(numpy.uint8)


def draw_lesion(pixels: numpy.ndarray, seed: int, *, bright: bool) -> tuple[numpy.ndarray, str]:
    """Blend a soft elliptic spot into the image.

    Args:
        pixels: the image, at least 32 pixels on each side.
        seed: decides place, size, shape and strength.
        bright: a spot lighter than its surroundings (an opacity), or darker.

    Returns:
        The altered image, of the shape and type of `pixels`, and the place in words: one of `VERTICAL_PLACES` and one
        of `HORIZONTAL_PLACES` ("upper left"), or `CENTRAL_PLACE`.

    Raises:
        ValueError: if the image is too small.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < 32:
        raise ValueError(f"expected an image of at least 32x32 to draw a lesion in, found {height}x{width}.")
    generator = numpy.random.default_rng(seed)
    gray = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    color = 225.0 if bright else 20.0
    row, column = _inner_place(gray, color, generator)
    short = min(height, width)
    radii = generator.uniform(0.05, 0.1, size=2) * short
    angle = generator.uniform(0, numpy.pi)
    y, x = numpy.mgrid[:height, :width].astype(numpy.float64)
    along = (x - column) * numpy.cos(angle) + (y - row) * numpy.sin(angle)
    across = (y - row) * numpy.cos(angle) - (x - column) * numpy.sin(angle)
    distance = numpy.hypot(along / radii[0], across / radii[1])
    opacity = generator.uniform(0.5, 0.75) / (1 + numpy.exp((distance - 1) / 0.12))
    if pixels.ndim == 3:
        opacity = opacity[..., None]
    altered = numpy.rint(pixels * (1 - opacity) + color * opacity).astype(numpy.uint8)
    vertical = VERTICAL_PLACES[min(int(3 * row / height), 2)]
    horizontal = HORIZONTAL_PLACES[min(int(3 * column / width), 2)]
    central = (vertical, horizontal) == (VERTICAL_PLACES[1], HORIZONTAL_PLACES[1])
    return altered, CENTRAL_PLACE if central else f"{vertical} {horizontal}"


def _inner_place(gray: numpy.ndarray, color: float, generator: numpy.random.Generator) -> tuple[float, float]:
    """A point in the inner half of the image, not on empty background, where a spot of that color can be seen."""
    height, width = gray.shape
    places = []
    for row in numpy.linspace(0.25, 0.75, 9) * height:
        for column in numpy.linspace(0.25, 0.75, 9) * width:
            size = max(min(height, width) // 16, 2)
            patch = gray[int(row) - size : int(row) + size, int(column) - size : int(column) + size]
            if patch.mean() > 12:
                places.append((abs(color - float(patch.mean())), float(row), float(column)))
    places = places or [(0.0, height / 2, width / 2)]
    # Half of the difference is the least that is drawn; where no place has enough, the best one is taken.
    candidates = [place for place in places if place[0] >= LEAST_DIFFERENCE] or [max(places)]
    _, row, column = candidates[int(generator.integers(len(candidates)))]
    return row, column
