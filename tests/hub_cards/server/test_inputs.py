"""Input images within limits of pixels, which are read in the files' headers."""

import asyncio
import gzip
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hub_cards.server.running import png_bytes
from unimedvl.hub_cards.server.budget import Budget
from unimedvl.hub_cards.server.inputs import Inputs
from unimedvl.hub_cards.server.settings import Limits, Settings
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor


def inputs(max_pixels: int | None = None, **limits: Any) -> Inputs:
    most = UniMedVLImageProcessor().max_image_pixels if max_pixels is None else max_pixels
    return Inputs(Settings(notice="n", limits=Limits(**limits)), most, Budget(1 << 20))


def opened(reader: Inputs, *files: bytes) -> list[Image.Image]:
    """The images of files as those of one request."""

    async def run() -> list[Image.Image]:
        return await reader.read(lambda reading: [reading.open(content, None) for content in files])

    return asyncio.run(run())


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header is right and whose pixels cannot be decoded."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"junk") + chunk(b"IEND", b"")


def shade(width: int, height: int) -> bytes:
    return png_bytes(Image.new("L", (width, height), 9))


def test_a_large_image_is_refused_before_it_is_decoded():
    with pytest.raises(ValueError, match="5000 x 5000 pixels, more than this server's limit") as raised:
        opened(inputs(), png_of_size(5_000, 5_000))
    # In words for who sends it, not for who writes Python.
    assert "max_" not in str(raised.value)
    # One that would fit is decoded.
    with pytest.raises(ValueError, match="damaged"):
        opened(inputs(), png_of_size(4_000, 5_000))


@pytest.mark.parametrize(("server", "processor"), [(3_000, 1_000), (1_000, 3_000)])
def test_the_smaller_limit_of_server_and_processor_holds(server, processor):
    reader = inputs(processor, pixels=server)
    assert opened(reader, shade(40, 25))[0].size == (40, 25)
    with pytest.raises(ValueError, match="limit of 1000: send it smaller"):
        opened(reader, shade(41, 25))


def test_the_images_of_a_request_have_a_limit_together():
    reader = inputs(pixels=1_000, total_pixels=2_500)
    small = shade(40, 25)
    assert len(opened(reader, small, small, shade(20, 25))) == 3
    for files in ((small, small, shade(21, 25)), (small, small, shade(20, 25), shade(1, 1))):
        with pytest.raises(ValueError, match="more than 2500 pixels together"):
            opened(reader, *files)
    # Each request has its own.
    assert len(opened(reader, small, small)) == 2


def deep_tiff(pages: int) -> bytes:
    stream, page = io.BytesIO(), Image.new("I;16", (40, 25), 700)
    page.save(stream, "TIFF", save_all=True, append_images=[page] * (pages - 1))
    return stream.getvalue()


def packed_volume(depth: int) -> bytes:
    nibabel = pytest.importorskip("nibabel")
    volume = nibabel.Nifti1Image(np.zeros((40, 25, depth), np.int16), np.eye(4))
    return gzip.compress(volume.to_bytes())


@pytest.mark.parametrize("make", [deep_tiff, packed_volume])
def test_what_is_read_for_one_slice_has_a_limit_too(make):
    reader = inputs(pixels=1_000, total_pixels=5_000)
    assert opened(reader, make(5))[0].size == (40, 25)
    with pytest.raises(ValueError, match="6000 (values|voxels)"):
        opened(reader, make(6))
