"""Sheets show every image at its place, with room for all of the text."""

import numpy
from PIL import Image

from unimedvl.evaluation.contact_sheets import CAPTION, CELL, GAP, draw_rows, fitted

RED, BLUE = Image.new("RGB", (20, 10), "red"), Image.new("L", (300, 600), 40)


def test_images_stand_in_their_cells_below_the_text():
    page = draw_rows([(("title", "values"), [("a", RED), ("b\nc", BLUE)]), ((), [("d", RED)])])
    first = 4 * CAPTION
    assert page.height == first + CELL + CAPTION + CELL and page.width >= 2 * CELL
    assert page.getpixel((0, first)) == (255, 0, 0) and page.getpixel((CELL - GAP - 1, first)) == (255, 0, 0)
    assert page.getpixel((CELL, first)) == (40, 40, 40)
    assert page.getpixel((CELL - 1, first)) == (255, 255, 255)
    assert page.getpixel((0, first + CELL + CAPTION)) == (255, 0, 0)


def test_longer_text_takes_no_place_of_images():
    short, long = (draw_rows([((), [("name" * repeats, RED)])], 64) for repeats in (1, 500))
    assert short.size == long.size
    assert numpy.array_equal(numpy.asarray(short)[CAPTION:], numpy.asarray(long)[CAPTION:])


def test_small_images_show_their_pixels():
    pixels = numpy.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
    shown = numpy.asarray(fitted(Image.fromarray(pixels), 64))
    assert numpy.array_equal(shown[::8, ::8], pixels) and numpy.array_equal(shown[7::8, 7::8], pixels)
    assert fitted(BLUE, 64).size == (32, 64)
