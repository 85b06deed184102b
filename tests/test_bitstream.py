"""The 12-byte header: literal bytes, every field, every way to be wrong, and the document."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from fasdiff_edge import BitstreamError, _core
from fasdiff_edge.bitstream import (
    HEADER_BYTES,
    MAX_CODED_PIXELS,
    Header,
    pack,
    unpack,
)

HEADER = Header(model_id=0x1234, height=320, width=256, scale=1, quality=128)
# The example of docs/bitstream.md, with the payload "face".
GOLDEN = bytes.fromhex("fa 14 12 34 0f f1 3f 80") + bytes.fromhex("e0753508") + b"face"


def seal(front: bytes, payload: bytes = b"") -> bytes:
    """A file of eight header bytes and a payload, with the CRC that belongs to them."""
    return front + struct.pack(">I", zlib.crc32(front + payload)) + payload


def test_golden_header() -> None:
    assert pack(HEADER, b"face") == GOLDEN
    assert unpack(GOLDEN) == (HEADER, 0xE0753508, b"face")


def test_the_document_has_the_golden_header(repository: Path) -> None:
    text = (repository / "docs" / "bitstream.md").read_text()
    assert GOLDEN[:8].hex(" ").upper() in text


@pytest.mark.parametrize(
    "header",
    [
        Header(0, 1, 1, 0, 0),
        Header(0xFFFF, 4096, 4096, 1, 252),
        Header(1, 1024, 4096, 0, 7),
        Header(2, 4096, 1, 3, 251),
        Header(3, 33, 4095, 2, 1),
    ],
)
@pytest.mark.parametrize("payload", [b"", b"\0", bytes(range(256))])
def test_round_trip(header: Header, payload: bytes) -> None:
    data = pack(header, payload)
    assert len(data) == HEADER_BYTES + len(payload)
    crc = zlib.crc32(data[:8] + payload)
    assert unpack(data) == (header, crc, payload)
    assert _core.parse_header(data) == (
        1,
        header.scale,
        header.model_id,
        header.width,
        header.height,
        header.quality,
    )


def test_random_headers_round_trip() -> None:
    random = np.random.default_rng(1)
    for _ in range(500):
        scale = int(random.integers(1, 4))  # at which any size is allowed
        header = Header(
            model_id=int(random.integers(0x10000)),
            height=int(random.integers(1, 4097)),
            width=int(random.integers(1, 4097)),
            scale=scale,
            quality=int(random.integers(253)),
        )
        payload = random.bytes(int(random.integers(40)))
        assert unpack(pack(header, payload))[::2] == (header, payload)


@pytest.mark.parametrize(
    ("size", "scale", "coded", "latent"),
    [
        ((256, 256), 0, (256, 256), (16, 16)),
        ((257, 255), 0, (257, 255), (17, 16)),
        ((257, 255), 1, (129, 128), (9, 8)),
        ((33, 32), 3, (5, 4), (1, 1)),
        ((1, 1), 3, (1, 1), (1, 1)),
        ((4096, 4096), 1, (2048, 2048), (128, 128)),
    ],
)
def test_sizes(
    size: tuple[int, int], scale: int, coded: tuple[int, int], latent: tuple[int, int]
) -> None:
    header = Header(0, *size, scale, 0)
    assert header.coded_size == coded
    assert header.latent_size == latent


FRONT = GOLDEN[:8]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xfa", "truncated: 1 bytes"),
        (GOLDEN[:11], "truncated: 11 bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "not a FaSDiff-Edge file: it starts with 0x89"),
        (b"\xff\xd8\xff", "not a FaSDiff-Edge file"),
        (seal(b"\xfa\x24" + FRONT[2:]), "format version 2 is not supported"),
        (b"\xfa\x20", "format version 2 is not supported"),
        (seal(b"\xfa\x04" + FRONT[2:]), "format version 0 is not supported"),
        (seal(b"\xfa\x15" + FRONT[2:]), "reserved bits"),
        (seal(b"\xfa\x16" + FRONT[2:]), "reserved bits"),
        (GOLDEN[:-1], "CRC mismatch"),
        (GOLDEN + b"\0", "CRC mismatch"),
        (seal(FRONT[:7] + b"\xfd"), "quality 253"),
        (seal(FRONT[:7] + b"\xff"), "quality 255"),
        (seal(b"\xfa\x10\x12\x34\xff\xff\xff\x80"), "coded size 4096 x 4096"),
        (seal(b"\xfa\x10\x12\x34\xff\xf4\x00\x80"), "coded size 4096 x 1025"),
    ],
)
def test_refusals_give_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BitstreamError, match=re.escape(reason)):
        unpack(data)


def test_every_truncation_and_every_flipped_bit_is_refused() -> None:
    for length in range(len(GOLDEN)):
        with pytest.raises(BitstreamError):
            unpack(GOLDEN[:length])
    for bit in range(8 * len(GOLDEN)):
        damaged = bytearray(GOLDEN)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            unpack(bytes(damaged))


@pytest.mark.parametrize(
    "header",
    [
        Header(0, 4097, 32, 1, 0),
        Header(0, 32, 0, 0, 0),
        Header(0, 32, 32, 4, 0),
        Header(0, 32, 32, 0, 253),
        Header(0, 2048, 2049, 0, 0),
        Header(0x10000, 32, 32, 0, 0),
    ],
)
def test_impossible_headers_are_not_written(header: Header) -> None:
    with pytest.raises(BitstreamError):
        pack(header, b"")


def test_limit_of_coded_pixels_is_the_documents(repository: Path) -> None:
    assert MAX_CODED_PIXELS == 2048 * 2048
    assert "at most 2048 * 2048" in (repository / "docs" / "bitstream.md").read_text()


def document_table(repository: Path) -> list[int]:
    """The upper half of the noise table, as printed in the document."""
    text = (repository / "docs" / "bitstream.md").read_text()
    block = text.split("`TABLE[255]`, is")[1].split("```")[1]
    return [int(word) for word in block.split()]


def test_noise_table_of_the_document(repository: Path) -> None:
    quantiles = [4096 * NormalDist().inv_cdf((t + 0.5) / 256) for t in range(128, 256)]
    assert document_table(repository) == [round(value) for value in quantiles]


@pytest.mark.parametrize("seed", [0, 1, 0x4A16D0A4, 0xFFFFFFFF])
def test_noise_is_the_documents(repository: Path, seed: int) -> None:
    upper = document_table(repository)
    table = [-value for value in reversed(upper)] + upper
    expected = []
    for i in range(3000):
        x = (i * 0x9E3779B97F4A7C15 + (seed + 1) * 0xD1B54A32D192ED03) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        x = x ^ x >> 31
        total = table[x >> 56] + table[x >> 48 & 255]
        expected.append(np.float32(total) * np.float32(0.000172633489))
    assert np.array_equal(_core.noise(seed, 3000), np.array(expected, np.float32))


def test_noise_is_about_unit_normal() -> None:
    noise = _core.noise(7, 200_000)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1.0) < 0.01
    for threshold in (1.0, 2.0):
        share = float((noise > threshold).mean())
        assert abs(share - NormalDist().cdf(-threshold)) < 0.005
