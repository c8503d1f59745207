"""PNG files of few bits, which Pillow does not write."""

import struct
import zlib

import numpy as np

GRAY, COLOR, PALETTE = 0, 2, 3


def png_of(values: np.ndarray, depth: int, kind: int = GRAY) -> bytes:
    """A PNG of (H, W) or (H, W, 3) values of 1, 2, 4, 8 or 16 bits."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1).astype(np.uint16)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        lines = [np.packbits(row).tobytes() for row in bits.astype(np.uint8).reshape(height, -1)]
    palette = bytes(range(256)) + bytes(range(256)) + bytes(range(256))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        *([(b"PLTE", palette[: 3 * 2**depth])] if kind == PALETTE else []),
        (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content
