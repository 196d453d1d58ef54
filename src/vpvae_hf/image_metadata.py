"""Removes metadata from image files and checks JPEG files. It reads their bytes: decoders stop at damaged metadata."""

import re
import struct
import zlib

# Tags of TIFF that decide pixels: size, coding, colours, place, orientation, tiles, alpha, JPEG and YCbCr.
_TIFF_PIXELS = frozenset((*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 301, *range(317, 321),
                          *range(322, 326), 332, *range(338, 342), 347, *range(512, 533)))  # fmt: skip


def is_jpeg(file: bytes) -> bool:
    """Whether a file begins as a JPEG does."""
    return file.startswith(b"\xff\xd8")


def without_metadata(file: bytes) -> bytes:
    """A PNG, WebP, JPEG or TIFF file without metadata that affect no pixel; intact orientation and transparency stay.

    It raises all kinds of errors for damaged files.
    """
    if is_jpeg(file):
        return _jpeg_without_metadata(file)
    plain = {b"\x89PNG": _png_without_metadata, b"RIFF": _webp_without_metadata}.get(file[:4], _tiff_without_metadata)
    return plain(file)


def has_all_scans(file: bytes) -> bool:
    """Whether the scans of a JPEG give all bits of all 64 coefficients, of as many components as its frame has."""
    frame = re.search(rb"\xff[\xc0-\xc2\xc9\xca]..\x08....(.)", file, re.DOTALL)
    found = set()
    for scan in re.finditer(rb"\xff\xda..", file, re.DOTALL):
        number, place = file[scan.end()], scan.end() + 1
        first, last, bits = file[place + 2 * number : place + 2 * number + 3]
        if bits & 15 == 0:
            found |= {(file[place + 2 * each], k) for each in range(number) for k in range(first, last + 1)}
    return len(found) == 64 * frame[1][0]


def _png_without_metadata(file: bytes) -> bytes:
    kept, place = [file[:8]], 8
    while place < len(file):
        length, kind = struct.unpack_from(">I4s", file, place)
        chunk = file[place : place + length + 12]
        sound = len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        critical = not kind[0] & 32  # the bit that marks a small letter
        if critical or kind == b"tRNS" or (kind == b"eXIf" and sound):
            kept.append(chunk)
        place += length + 12
        if kind == b"IDAT" and len(chunk) < length + 12:
            break
    return b"".join(kept)


def _webp_without_metadata(file: bytes) -> bytes:
    kept, place, flags = [], 12, 0
    while place + 8 <= len(file):
        kind, length = struct.unpack_from("<4sI", file, place)
        chunk = file[place : place + 8 + length + length % 2]
        if kind == b"EXIF" and len(chunk) >= 8 + length:
            flags = 8
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF") or (kind == b"EXIF" and flags):
            kept.append(chunk)
        place += len(chunk)
    if kept[0].startswith(b"VP8X"):  # its flags announce a colour profile, EXIF and XMP
        kept[0] = kept[0][:8] + bytes([kept[0][8] & ~0x2C | flags]) + kept[0][9:]
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff_without_metadata(file: bytes) -> bytes:
    """The file with another directory at its end, which has only the tags that decide pixels."""
    order = {b"II": "<", b"MM": ">"}[file[:2]]
    big = struct.unpack_from(order + "H", file, 2)[0] == 43
    pointer, count, size, place = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    start = struct.unpack_from(order + pointer, file, place)[0]
    number = struct.unpack_from(order + count, file, start)[0]
    start += struct.calcsize(order + count)
    tags = [file[at : at + size] for at in range(start, min(start + number * size, len(file)), size)]
    tags = [tag for tag in tags if struct.unpack_from(order + "H", tag)[0] in _TIFF_PIXELS]
    file += bytes(len(file) % 2)
    directory = struct.pack(order + count, len(tags)) + b"".join(tags) + struct.pack(order + pointer, 0)
    end = struct.pack(order + pointer, len(file))
    return file[:place] + end + file[place + len(end) :] + directory


def _jpeg_without_metadata(file: bytes) -> bytes:
    kept, place = [file[:2]], 2
    while file[place + 1] != 0xDA:  # the first scan
        if file[place] != 0xFF:
            raise ValueError("it has no marker where one belongs")
        kind, (length,) = file[place + 1], struct.unpack_from(">H", file, place + 2)
        segment = file[place : place + 2 + length]
        exif, adobe = kind == 0xE1 and segment[4:10] == b"Exif\0\0", kind == 0xEE and length >= 14  # colours
        if not (0xE0 <= kind <= 0xEF or kind == 0xFE) or exif or adobe:
            kept.append(segment)
        place += len(segment)
    return b"".join(kept) + file[place:]
