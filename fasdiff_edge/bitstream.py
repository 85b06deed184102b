"""The file format, version 2: a header of 8 to 12 bytes and a range-coded payload, big-endian.

    byte 0    1        2  3      4 (5 6)              +1       +2 or 4     ...
      +-----+--------+---------+--------------------+---------+-----------+----------
      |0xFA |vvvvssqc| model id| size               | quality | check     | payload
      +-----+--------+---------+--------------------+---------+-----------+----------

  v  format version        s  scale: coded at 1 / 2^s        q  square        c  short check
  model id   first two bytes of the SHA-256 of the integer entropy model
  size       of the image that was encoded and will be returned, in pixels: w-1 (12 bits) and h-1
             (12 bits); if q is set, one byte, side/16 - 1
  quality    in quarter steps, 0..252
  check      of all bytes before it, then the payload; also the seed of the noise. CRC-32 (zlib's);
             if c is set, CRC-16 (polynomial 0x1021, from 0xFFFF)
  payload    everything up to the end of the file; `docs/bitstream.md` describes it

In version 1, which is read as well, q and c are zero. A file of 300 bytes has no bytes to spare:
`pack` writes the shortest header there is.

`unpack` believes nothing that it has not checked; sizes are bounded before anyone allocates.
"""

from __future__ import annotations

import binascii
import zlib
from dataclasses import dataclass

from .errors import BitstreamError

MAGIC = 0xFA
VERSION = 2
OLDEST_VERSION = 1
MAX_SIDE = 4096  # pixels, of 12 bits
MAX_SCALE = 3
MAX_QUALITY = 252  # quarter steps
# The graphs run on at most this many coded pixels, in either direction: it is what bounds the
# memory of a decoder (a 4096 x 4096 image is coded at half size or less).
MAX_CODED_PIXELS = 2048 * 2048
_SHORT_CHECK, _SQUARE = 1, 2  # bits of byte 1
_SQUARE_UNIT = 16  # pixels
# The CRC-16 sees any three flipped bits, and any burst of 16, among at most 32751 bits, its own
# left out. Longer files get a CRC-32.
_SHORT_CHECK_COVERS = 32751 // 8


@dataclass(frozen=True)
class Header:
    """What the bytes before the check say.

    Attributes:
      model_id: 16 bits.
      height, width: of the image, 1..4096 pixels.
      scale: 0..3; the image is coded at 1 / 2**scale.
      quality: in quarter steps, 0..252.
    """

    model_id: int
    height: int
    width: int
    scale: int
    quality: int

    @property
    def coded_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the graphs see, before padding."""
        return coded_size(self.height, self.width, self.scale)

    @property
    def latent_size(self) -> tuple[int, int]:
        """(height, width) of y: the coded size in blocks of 16 pixels, rounded up."""
        height, width = self.coded_size
        return -(-height // 16), -(-width // 16)


def coded_size(height: int, width: int, scale: int) -> tuple[int, int]:
    """(height, width) of an image of `height` x `width` pixels coded at 1 / 2**scale."""
    return -(-height // (1 << scale)), -(-width // (1 << scale))


def _is_square(height: int, width: int) -> bool:
    return height == width and height % _SQUARE_UNIT == 0


def _front_bytes(square: bool) -> int:
    """Bytes of the header before the check."""
    return 6 if square else 8


def payload_limit(height: int, width: int, max_bytes: int) -> int:
    """The largest payload in a file of at most `max_bytes`; less than zero if there is none."""
    front = _front_bytes(_is_square(height, width))
    return max(min(max_bytes - 2, _SHORT_CHECK_COVERS), max_bytes - 4) - front


def pack(header: Header, payload: bytes) -> bytes:
    """Join header and payload into a file.

    Raises:
      BitstreamError: a field outside its range.
    """
    _check_fields(header)
    if not 0 <= header.model_id <= 0xFFFF:
        raise BitstreamError(f"model id {header.model_id} is not 16 bits")
    if square := _is_square(header.height, header.width):
        size = bytes([header.width // _SQUARE_UNIT - 1])
    else:
        size = ((header.width - 1) << 12 | (header.height - 1)).to_bytes(3, "big")
    short = _front_bytes(square) + len(payload) <= _SHORT_CHECK_COVERS
    flags = VERSION << 4 | header.scale << 2 | _SQUARE * square | _SHORT_CHECK * short
    model_id = header.model_id.to_bytes(2, "big")
    front = bytes([MAGIC, flags]) + model_id + size + bytes([header.quality])
    return front + _check_of(front, payload, short) + payload


def _check_of(front: bytes, payload: bytes, short: bool) -> bytes:
    if short:
        return binascii.crc_hqx(payload, binascii.crc_hqx(front, 0xFFFF)).to_bytes(2, "big")
    return zlib.crc32(payload, zlib.crc32(front)).to_bytes(4, "big")


def unpack(data: bytes) -> tuple[Header, int, bytes]:
    """Take a file apart and check all that can be checked without a model.

    Args:
      data: the whole file.
    Returns:
      (header, check, payload): check is the CRC of the file, the seed of the noise.
    Raises:
      BitstreamError: with the reason; the first that applies of: empty, foreign, future
        version, reserved bits set, truncated header, CRC, a field outside its range.
    """
    if not data:
        raise BitstreamError("the file is empty")
    if data[0] != MAGIC:
        raise BitstreamError(
            f"not a FaSDiff-Edge file: it starts with 0x{data[0]:02X}, not 0x{MAGIC:02X}"
        )
    if len(data) == 1:
        raise BitstreamError("truncated: 1 byte, not even a version")
    version, flags = data[1] >> 4, data[1] & 3
    if not OLDEST_VERSION <= version <= VERSION:
        raise BitstreamError(
            f"format version {version} is not supported; this decoder reads versions "
            f"{OLDEST_VERSION} to {VERSION}"
        )
    if version == 1 and flags:
        raise BitstreamError("reserved bits of the header are set")
    square, short = bool(flags & _SQUARE), bool(flags & _SHORT_CHECK)
    front_bytes = _front_bytes(square)
    start = front_bytes + (2 if short else 4)
    if len(data) < start:
        raise BitstreamError(f"truncated: {len(data)} bytes, the header has {start}")
    front, check, payload = data[:front_bytes], data[front_bytes:start], data[start:]
    if check != _check_of(front, payload, short):
        raise BitstreamError("CRC mismatch: the file is damaged or cut short")
    if square:
        height = width = (front[4] + 1) * _SQUARE_UNIT
    else:
        sides = int.from_bytes(front[4:7], "big")
        height, width = (sides & 0xFFF) + 1, (sides >> 12) + 1
    header = Header(
        model_id=int.from_bytes(front[2:4], "big"),
        height=height,
        width=width,
        scale=front[1] >> 2 & 3,
        quality=front[-1],
    )
    _check_fields(header)
    return header, int.from_bytes(check, "big"), payload


def _check_fields(header: Header) -> None:
    if not (1 <= header.height <= MAX_SIDE and 1 <= header.width <= MAX_SIDE):
        raise BitstreamError(
            f"size {header.width} x {header.height} is outside 1..{MAX_SIDE} pixels"
        )
    if not 0 <= header.scale <= MAX_SCALE:
        raise BitstreamError(f"scale {header.scale} is outside 0..{MAX_SCALE}")
    if not 0 <= header.quality <= MAX_QUALITY:
        raise BitstreamError(f"quality {header.quality} is outside 0..{MAX_QUALITY} quarter steps")
    height, width = header.coded_size
    if height * width > MAX_CODED_PIXELS:
        raise BitstreamError(
            f"coded size {width} x {height} is over the format's {MAX_CODED_PIXELS} coded pixels"
        )
