"""What an image file says about itself before anything is decoded.

PNG, JPEG and WebP only. Sizes come first so that a decompression bomb is refused unopened; the
orientation of EXIF is read here because OpenCV drops it together with the alpha channel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import ImageError

_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Probe:
    """Attributes of an image file.

    Attributes:
      format: "PNG", "JPEG" or "WebP".
      height, width: in pixels, as stored (before orientation).
      orientation: EXIF, 1..8; 1 where there is none or it makes no sense.
      unknown_cmyk: a JPEG of four components without Adobe's mark, whose polarity is unknown.
    """

    format: str
    height: int
    width: int
    orientation: int = 1
    unknown_cmyk: bool = False


def probe(data: bytes) -> Probe:
    """Read the header of an image file.

    Raises:
      ImageError: not PNG, JPEG or WebP, or its header is damaged.
    """
    try:
        if data.startswith(_PNG):
            return _probe_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _probe_jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _probe_webp(data)
    except (struct.error, IndexError) as error:
        raise ImageError(f"the image file is damaged: {error}") from error
    raise ImageError("not an image file that can be read: PNG, JPEG and WebP can")


def _probe_png(data: bytes) -> Probe:
    if data[12:16] != b"IHDR":
        raise ImageError("the PNG file is damaged: it does not start with IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    orientation = 1
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
    return Probe("PNG", height, width, orientation)


def _probe_jpeg(data: bytes) -> Probe:
    orientation, adobe = 1, False
    for marker, body in _jpeg_segments(data):
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation(body[6:])
        elif marker == 0xEE and body.startswith(b"Adobe"):
            adobe = True
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width, components = struct.unpack_from(">BHHB", body)
            return Probe("JPEG", height, width, orientation, components == 4 and not adobe)
    raise ImageError("the JPEG file is damaged: no frame header")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, body) up to the first scan."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ImageError("the JPEG file is damaged: a marker is missing")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def _probe_webp(data: bytes) -> Probe:
    size: tuple[int, int] | None = None
    orientation = 1
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"VP8X" and size is None:
            size = (
                int.from_bytes(body[4:7], "little") + 1,
                int.from_bytes(body[7:10], "little") + 1,
            )
        elif kind == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", body, 6)
            size = (width & 0x3FFF, height & 0x3FFF)
        elif kind == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", body, 1)
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"EXIF":
            orientation = _orientation(body.removeprefix(b"Exif\0\0"))
        at += 8 + length + (length & 1)
    if size is None:
        raise ImageError("the WebP file is damaged: no image in it")
    return Probe("WebP", size[1], size[0], orientation)


def _orientation(exif: bytes) -> int:
    """Orientation of an EXIF block (a TIFF header and directory); 1 where it has none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, directory)
        for index in range(count):
            at = directory + 2 + 12 * index
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, at)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:  # metadata is not worth refusing a picture for
        return 1
    return 1
