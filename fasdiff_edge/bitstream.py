"""The file format, version 1: a 12-byte header and a range-coded payload. All of it big-endian.

     byte 0    1        2  3      4  5  6              7        8  9 10 11   12 ...
       +-----+--------+---------+--------------------+---------+-----------+----------
       |0xFA |vvvvssrr| model id|w-1 (12)  h-1 (12)  | quality | CRC-32    | payload
       +-----+--------+---------+--------------------+---------+-----------+----------

  v  format version, 1        s  scale: coded at 1 / 2^s       r  reserved, zero
  model id   first two bytes of the SHA-256 of the integer entropy model
  w, h       size of the image that was encoded and will be returned, in pixels
  quality    in quarter steps, 0..252
  CRC-32     zlib's, of bytes 0..7 followed by the payload; also the seed of the noise
  payload    everything up to the end of the file; `docs/bitstream.md` describes it

`unpack` believes nothing that it has not checked; sizes are bounded before anyone allocates.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from .errors import BitstreamError

MAGIC = 0xFA
VERSION = 1
HEADER_BYTES = 12
MAX_SIDE = 4096  # pixels, of 12 bits
MAX_SCALE = 3
MAX_QUALITY = 252  # quarter steps
# The graphs run on at most this many coded pixels, in either direction: it is what bounds the
# memory of a decoder (a 4096 x 4096 image is coded at half size or less).
MAX_CODED_PIXELS = 2048 * 2048


@dataclass(frozen=True)
class Header:
    """What the first eight bytes say.

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


def pack(header: Header, payload: bytes) -> bytes:
    """Join header and payload into a file.

    Raises:
      BitstreamError: a field outside its range.
    """
    _check_fields(header)
    if not 0 <= header.model_id <= 0xFFFF:
        raise BitstreamError(f"model id {header.model_id} is not 16 bits")
    size = (header.width - 1) << 12 | (header.height - 1)
    front = struct.pack(
        ">BBH3sB",
        MAGIC,
        VERSION << 4 | header.scale << 2,
        header.model_id,
        size.to_bytes(3, "big"),
        header.quality,
    )
    return front + struct.pack(">I", zlib.crc32(payload, zlib.crc32(front))) + payload


def unpack(data: bytes) -> tuple[Header, int, bytes]:
    """Take a file apart and check all that can be checked without a model.

    Args:
      data: the whole file.
    Returns:
      (header, crc, payload): crc is the CRC-32 of the file, the seed of the noise.
    Raises:
      BitstreamError: with the reason; the first that applies of: empty, foreign, future
        version, truncated header, reserved bits set, CRC, a field outside its range.
    """
    if not data:
        raise BitstreamError("the file is empty")
    if data[0] != MAGIC:
        raise BitstreamError(
            f"not a FaSDiff-Edge file: it starts with 0x{data[0]:02X}, not 0x{MAGIC:02X}"
        )
    if len(data) > 1 and data[1] >> 4 != VERSION:
        raise BitstreamError(
            f"format version {data[1] >> 4} is not supported; this decoder reads version {VERSION}"
        )
    if len(data) < HEADER_BYTES:
        raise BitstreamError(f"truncated: {len(data)} bytes, the header has {HEADER_BYTES}")
    _, flags, model_id, size, quality, crc = struct.unpack(">BBH3sBI", data[:HEADER_BYTES])
    if flags & 3:
        raise BitstreamError("reserved bits of the header are set")
    payload = data[HEADER_BYTES:]
    if zlib.crc32(payload, zlib.crc32(data[:8])) != crc:
        raise BitstreamError("CRC mismatch: the file is damaged or cut short")
    sides = int.from_bytes(size, "big")
    header = Header(
        model_id=model_id,
        height=(sides & 0xFFF) + 1,
        width=(sides >> 12) + 1,
        scale=flags >> 2 & 3,
        quality=quality,
    )
    _check_fields(header)
    return header, crc, payload


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
