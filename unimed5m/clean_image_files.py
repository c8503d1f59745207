"""PNG and JPEG files without what people and cameras wrote into them."""

import re
import struct

# JFIF (APP0), color profiles (APP2) and Adobe's color transform (APP14) decide pixels; EXIF, XMP, IPTC, comments and
# what else applications wrote do not.
JPEG_NOTES = frozenset({*range(0xE0, 0xF0), 0xFE}) - {0xE0, 0xE2, 0xEE}
PNG_NOTES = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"})
END_OF_IMAGE = 0xD9
START_OF_SCAN = 0xDA
# Markers without a length: restarts, the beginning of an image, and a private one.
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
# What may follow the data of a scan: tables, another scan, notes, the end. Anything else there is damage, left to
# whoever decodes it.
AFTER_SCAN = re.compile(rb"\xff+[\xc4\xd9-\xdd\xe0-\xef\xfe]")


def plain_jpeg(data: bytes) -> bytes:
    """The file without EXIF, XMP, IPTC, comments and anything behind its first image.

    A file that ends before its image begins, which nobody can decode, comes back as it is.
    """
    parts, place, scanned = [data[:2]], 2, False
    while place + 2 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF or marker in (0x00, 0xFF):  # filling and junk, which decoders skip
            place += 1
        elif marker == END_OF_IMAGE:
            parts.append(data[place : place + 2])
            return b"".join(parts)
        elif marker in ALONE:
            parts.append(data[place : place + 2])
            place += 2
        else:
            length = struct.unpack(">H", data[place + 2 : place + 4])[0] if place + 4 <= len(data) else len(data)
            end = min(place + 2 + length, len(data))
            if marker == START_OF_SCAN:
                following = AFTER_SCAN.search(data, end)
                end, scanned = following.start() if following else len(data), True
            if marker not in JPEG_NOTES:
                parts.append(data[place:end])
            place = end
    return b"".join(parts) if scanned else data


def plain_png(data: bytes) -> bytes:
    """The file without texts, EXIF, time and anything behind its end; a chunk that is cut stays for the decoder."""
    parts, place = [data[:8]], 8
    while place < len(data):
        kind = data[place + 4 : place + 8]
        length = struct.unpack(">I", data[place : place + 4])[0] if place + 4 <= len(data) else 0
        end = place + 12 + length
        if kind not in PNG_NOTES:
            parts.append(data[place:end])
        if kind == b"IEND":
            break
        place = end
    return b"".join(parts)
