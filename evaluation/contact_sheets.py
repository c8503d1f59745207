"""Sheets of images in rows, with lines of text above each row and a caption above each image."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

CELL = 128
CAPTION = 14
# White pixels right of and below an image.
GAP = 3
# Pixels that a letter of a caption takes, and the least width of a sheet in cells.
LETTER, LEAST_CELLS = 6, 5
# What stands above a row, and its images with their captions.
Row = tuple[Sequence[str], Sequence[tuple[str, Image.Image]]]


def draw_rows(rows: Sequence[Row], cell: int = CELL) -> Image.Image:
    """A sheet of rows; an image keeps its proportions, and small ones show their pixels.

    Args:
        rows: (lines of text, [(caption, image), ..]); a caption may have several lines, and what does not fit is cut.
        cell: pixels that each image takes, with the gap to the next one.
    """
    width = max(LEAST_CELLS, *(len(cells) for _, cells in rows)) * cell
    heights = [(len(lines) + _lines_of(cells)) * CAPTION + cell for lines, cells in rows]
    page = Image.new("RGB", (width, sum(heights)), "white")
    pen = ImageDraw.Draw(page)
    top = 0
    for (lines, cells), height in zip(rows, heights, strict=True):
        for number, line in enumerate(lines):
            pen.text((2, top + number * CAPTION), line[: width // LETTER], fill="black")
        captions = top + len(lines) * CAPTION
        for column, (caption, image) in enumerate(cells):
            page.paste(fitted(image, cell - GAP), (column * cell, top + height - cell))
            for number, line in enumerate(caption.split("\n")):
                pen.text((column * cell + 2, captions + number * CAPTION), line[: cell // LETTER], fill="dimgray")
        top += height
    return page


def _lines_of(cells: Sequence[tuple[str, Image.Image]]) -> int:
    return max((caption.count("\n") + 1 for caption, _ in cells), default=0)


def fitted(image: Image.Image, side: int = CELL) -> Image.Image:
    """The image in RGB with `side` pixels on its longer side; enlarged without interpolation."""
    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
