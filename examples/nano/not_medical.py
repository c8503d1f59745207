"""Images whose right answer is that they are not medical: images that Python packages ship, and drawn textures.

They are read from the installed packages and never copied into the repository. Those that tests from outside
show to a nano (a cat, a cup of coffee, an astronaut) are left out. Everything is drawn from a seed: the same images
for the same versions of the packages.
"""

import importlib.resources
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from unimedvl.unimed5m.schema import RecordImage
from unimedvl.unimed5m.task_images import drawn_image
from unimedvl.unimed5m.tasks import Origin

# Package, license, folder, files.
PACKAGED = (
    ("sklearn", "CC-BY-2.0", "datasets/images", ("china.jpg", "flower.jpg")),
    ("matplotlib", "PSF-based", "mpl-data/sample_data", ("logo2.png", "Minduka_Present_Blue_Pack.png")),
    (
        "skimage",
        "public domain or CC0-1.0",
        "data",
        (
            "brick.png",
            "camera.png",
            "clock_motion.png",
            "coins.png",
            "color.png",
            "grass.png",
            "gravel.png",
            "horse.png",
            "hubble_deep_field.jpg",
            "logo.png",
            "moon.png",
            "motorcycle_left.png",
            "page.png",
            "rocket.jpg",
            "text.png",
        ),
    ),
)
NO_MODALITY = "none"
NOT_MEDICAL_SOURCE = "not-medical"
CROPS = 16  # of each image of a package
TEXTURES = 240
WORDS = "the report of a train to the sea and what it cost when rain fell on stone bread and iron".split()


def packaged_images() -> Iterator[tuple[str, str, str, Image.Image]]:
    """Name, license, provenance and the image in RGB, for every one whose package is installed."""
    for package, license_name, folder, names in PACKAGED:
        try:
            root = importlib.resources.files(package)
        except ModuleNotFoundError:
            continue
        for name in names:
            path = Path(str(root)) / folder / name
            if path.is_file():
                with Image.open(path) as opened:
                    image = opened.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                yield (
                    f"{package}/{name}",
                    license_name,
                    f"pypi {package}: {folder}/{name}",
                    Image.alpha_composite(white, image).convert("RGB"),
                )


def crop(image: Image.Image, side: int, generator: numpy.random.Generator) -> Image.Image:
    """A random square of 30 to 100 % of the shorter side, turned, mirrored, and sometimes recolored."""
    size = int(min(image.size) * generator.uniform(0.3, 1.0))
    left, top = (int(generator.uniform(0, length - size + 1)) for length in image.size)
    made = image.crop((left, top, left + size, top + size)).resize((side, side), Image.Resampling.BICUBIC)
    made = made.rotate(90 * int(generator.integers(4)))
    if generator.random() < 0.5:
        made = made.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return recolored(made, generator)


def recolored(image: Image.Image, generator: numpy.random.Generator) -> Image.Image:
    """A third as they are, a third gray, the others with their channels exchanged or inverted."""
    kind = generator.integers(6)
    if kind < 2:
        return image
    if kind < 4:
        return image.convert("L").convert("RGB")
    levels = numpy.asarray(image)[..., generator.permutation(3)]
    return Image.fromarray(255 - levels if kind == 5 else numpy.ascontiguousarray(levels))


def spectrum(side: int, generator: numpy.random.Generator) -> Image.Image:
    """Noise whose amplitude falls with frequency, from white to clouds."""
    rows, columns = numpy.fft.fftfreq(side)[:, None], numpy.fft.rfftfreq(side)[None]
    frequency = numpy.hypot(rows, columns)
    frequency[0, 0] = 1.0
    weight = frequency ** -generator.uniform(0.0, 2.2)
    channels = []
    for _ in range(3 if generator.random() < 0.6 else 1):
        values = numpy.fft.irfft2(numpy.fft.rfft2(generator.standard_normal((side, side))) * weight, s=(side, side))
        low, high = numpy.percentile(values, (1, 99))
        channels.append(numpy.clip((values - low) / (high - low + 1e-9), 0, 1))
    levels = numpy.stack(channels * (3 // len(channels)), axis=-1)
    return Image.fromarray((255 * levels).astype(numpy.uint8))


def stripes(side: int, generator: numpy.random.Generator) -> Image.Image:
    """Waves, checks, gradients and plain colors."""
    rows, columns = numpy.mgrid[:side, :side] / side
    angle = generator.uniform(0, math.pi)
    along = numpy.cos(angle) * columns + numpy.sin(angle) * rows
    across = numpy.sin(angle) * columns - numpy.cos(angle) * rows
    count = generator.uniform(1, 16)
    share = {
        0: along,
        1: 0.5 + 0.5 * numpy.sin(2 * math.pi * count * along),
        2: ((numpy.floor(count * along) + numpy.floor(count * across)) % 2),
        3: numpy.zeros_like(along),
        4: numpy.hypot(rows - 0.5, columns - 0.5),
    }[int(generator.integers(5))]
    first, second = generator.uniform(0, 255, (2, 3))
    share = numpy.clip(share, 0, 1)[..., None]
    return Image.fromarray((share * first + (1 - share) * second).astype(numpy.uint8))


def shapes(side: int, generator: numpy.random.Generator) -> Image.Image:
    """Some disks, boxes, lines and polygons of plain colors, sharp or blurred."""

    def color() -> tuple[int, int, int]:
        red, green, blue = generator.integers(0, 256, 3).tolist()
        return red, green, blue

    image = Image.new("RGB", (side, side), color())
    pen = ImageDraw.Draw(image)
    for _ in range(int(generator.integers(1, 9))):
        corners = sorted(generator.uniform(0, side, 2)), sorted(generator.uniform(0, side, 2))
        box = (corners[0][0], corners[1][0], corners[0][1], corners[1][1])
        kind = int(generator.integers(4))
        if kind == 0:
            pen.ellipse(box, fill=color())
        elif kind == 1:
            pen.rectangle(box, fill=color())
        elif kind == 2:
            pen.line(box, fill=color(), width=int(generator.integers(1, 8)))
        else:
            pen.polygon([tuple(point) for point in generator.uniform(0, side, (5, 2)).tolist()], fill=color())
    return image.filter(ImageFilter.GaussianBlur(2.0)) if generator.random() < 0.3 else image


def page(side: int, generator: numpy.random.Generator) -> Image.Image:
    """Lines of text on paper, or bars and a curve between axes."""
    ink, paper = (20, 20, 20), tuple(generator.integers(225, 256, 3).tolist())
    image = Image.new("RGB", (side, side), paper)
    pen = ImageDraw.Draw(image)
    if generator.random() < 0.5:
        size = int(generator.integers(7, 20))
        font = ImageFont.load_default(size=size)
        for top in range(4, side, size + 3):
            words = " ".join(generator.choice(WORDS, int(generator.integers(4, 12))))
            pen.text((4, top), words, fill=ink, font=font)
        return image
    low = side - 12
    pen.line((12, 6, 12, low, side - 6, low), fill=ink, width=2)
    count = int(generator.integers(3, 9))
    tops = generator.uniform(10, low, count)
    width = (side - 24) / count
    color = tuple(generator.integers(0, 256, 3).tolist())
    for number, top in enumerate(tops.tolist()):
        left = 16 + number * width
        pen.rectangle((left, top, left + 0.7 * width, low), fill=color)
    pen.line([(16 + (n + 0.35) * width, top) for n, top in enumerate(generator.uniform(8, low, count))], fill=ink)
    return image


DRAWN: tuple[Callable[[int, numpy.random.Generator], Image.Image], ...] = (spectrum, stripes, shapes, page)


def not_medical_images(side: int, split: str, seed: int = 0) -> Iterator[tuple[Origin, RecordImage]]:
    """All of them, `side` pixels wide and high. The crops of one image are one group, and so in one split.

    Args:
        split: "train", or "validation" for the part that no training sees, one image of a package in eight.
    """
    for number, (name, license_name, provenance, packaged) in enumerate(packaged_images()):
        if (number % 8 == 5) != (split == "validation"):
            continue
        generator = numpy.random.default_rng((seed, number))
        for place in range(CROPS):
            origin = _origin(f"{name}#{place}", name, split, license_name, provenance)
            yield origin, drawn_image(numpy.asarray(crop(packaged, side, generator)), f"{name}.{place}.png")
    for number in range(TEXTURES):
        if (number % 16 == 5) != (split == "validation"):
            continue
        generator = numpy.random.default_rng((seed, 1000 + number))
        make = DRAWN[number % len(DRAWN)]
        name = f"{make.__name__}-{number}"
        made = recolored(make(side, generator), generator) if make is not page else page(side, generator)
        origin = _origin(name, name, split, "Apache-2.0", f"drawn by examples/nano: {make.__name__}")
        yield origin, drawn_image(numpy.asarray(made), f"{name}.png")


def _origin(name: str, group: str, split: str, license_name: str, provenance: str) -> Origin:
    return Origin(
        dataset=NOT_MEDICAL_SOURCE,
        original_id=name,
        group_id=f"{NOT_MEDICAL_SOURCE}/{group}",
        split=split,
        modality=NO_MODALITY,
        license=license_name,
        redistributable="yes",
        provenance=provenance,
        description="image",
        license_tier="A",
        extra={"source_id": name},
    )
