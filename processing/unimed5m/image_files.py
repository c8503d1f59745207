"""PNG and JPEG files without what people and cameras wrote into them."""

import struct

# EXIF and XMP, IPTC, comments. JFIF (APP0), colour profiles (APP2) and Adobe's colour transform (APP14) decide pixels.
JPEG_NOTES = frozenset({0xE1, 0xED, 0xFE})
PNG_NOTES = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"})


def plain_jpeg(data: bytes) -> bytes:
    """The file without EXIF, XMP, IPTC and comments; a file of another structure comes back as it is."""
    parts, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:  # the picture itself follows
            parts.append(data[place:])
            return b"".join(parts)
        end = place + 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
        if marker not in JPEG_NOTES:
            parts.append(data[place:end])
        place = end
    return data


def plain_png(data: bytes) -> bytes:
    """The file without texts, EXIF and time; a file of another structure comes back as it is."""
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        end = place + 12 + struct.unpack(">I", data[place : place + 4])[0]
        kind = data[place + 4 : place + 8]
        if kind not in PNG_NOTES:
            parts.append(data[place:end])
        place = end
        if kind == b"IEND":
            return b"".join(parts)
    return data
