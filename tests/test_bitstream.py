"""The file header: literal bytes, every field, every way to be wrong, and the document."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from reference import crc16, pack_file, seal, take_apart

from fasdiff_edge import BitstreamError, _core
from fasdiff_edge.bitstream import (
    MAX_CODED_PIXELS,
    Header,
    pack,
    payload_limit,
    unpack,
)

HEADER = Header(model_id=0x1234, height=320, width=256, scale=1, quality=128)
SQUARE = Header(model_id=0x1234, height=256, width=256, scale=0, quality=128)
# The examples of docs/bitstream.md, with the payload "face", and the first as version 1 had it.
GOLDEN = bytes.fromhex("fa 25 12 34 0f f1 3f 80") + bytes.fromhex("8021") + b"face"
GOLDEN_SQUARE = bytes.fromhex("fa 23 12 34 0f 80") + bytes.fromhex("b915") + b"face"
GOLDEN_1 = bytes.fromhex("fa 14 12 34 0f f1 3f 80") + bytes.fromhex("e0753508") + b"face"
ALL_GOLDEN = (GOLDEN, GOLDEN_SQUARE, GOLDEN_1)


def test_golden_headers() -> None:
    assert pack(HEADER, b"face") == GOLDEN
    assert unpack(GOLDEN) == (HEADER, 0x8021, b"face")
    assert pack(SQUARE, b"face") == GOLDEN_SQUARE
    assert unpack(GOLDEN_SQUARE) == (SQUARE, 0xB915, b"face")
    assert unpack(GOLDEN_1) == (HEADER, 0xE0753508, b"face")
    for file in ALL_GOLDEN:
        header, _, _ = unpack(file)
        version, *fields = _core.parse_header(file)
        assert version == (1 if file is GOLDEN_1 else 2)
        assert tuple(fields) == (
            header.scale,
            header.model_id,
            header.width,
            header.height,
            header.quality,
        )


def test_the_document_has_the_golden_headers(repository: Path) -> None:
    text = (repository / "docs" / "bitstream.md").read_text()
    assert GOLDEN[:8].hex(" ").upper() in text
    assert GOLDEN_SQUARE.hex(" ").upper() in text


def test_crc_of_the_document(repository: Path) -> None:
    assert crc16(b"123456789") == 0x29B1
    assert "0x29B1" in (repository / "docs" / "bitstream.md").read_text()


@pytest.mark.parametrize(
    "header",
    [
        Header(0, 1, 1, 0, 0),
        Header(0xFFFF, 4096, 4096, 1, 252),
        Header(1, 1024, 4096, 0, 7),
        Header(2, 4096, 1, 3, 251),
        Header(3, 33, 4095, 2, 1),
        Header(4, 16, 16, 3, 1),
        Header(5, 100, 100, 2, 1),
    ],
)
@pytest.mark.parametrize("payload", [b"", b"\0", bytes(range(256)), bytes(5000)])
def test_round_trip(header: Header, payload: bytes) -> None:
    data = pack(header, payload)
    fields = (header.width, header.height, header.quality, header.scale)
    assert data == pack_file(payload, header.model_id, *fields)
    front, check, _ = take_apart(data)
    assert len(front) == (6 if header.height == header.width and header.width % 16 == 0 else 8)
    assert len(data) == len(front) + len(check) + len(payload)
    assert len(check) == (4 if len(payload) > 4093 else 2)
    crc = zlib.crc32(front + payload) if len(check) == 4 else crc16(front + payload)
    assert unpack(data) == (header, crc, payload)
    assert _core.parse_header(data) == (
        2,
        header.scale,
        header.model_id,
        header.width,
        header.height,
        header.quality,
    )


@pytest.mark.parametrize("sides", [(256, 256), (320, 256), (40, 40)])
def test_payload_limit_is_exact(sides: tuple[int, int]) -> None:
    """A payload of so many bytes fits, one more does not; around the change of check as well."""
    for max_bytes in (13, 300, 4000, *range(4080, 4110), 9000):
        limit = payload_limit(*sides, max_bytes)
        header = Header(0, *sides, scale=0, quality=0)
        sizes = [len(pack(header, bytes(count))) for count in (limit, limit + 1)]
        assert sizes[0] <= max_bytes < sizes[1]
    assert payload_limit(*sides, 1) < 0


def test_random_headers_round_trip() -> None:
    random = np.random.default_rng(1)
    for _ in range(500):
        scale = int(random.integers(1, 4))  # at which any size is allowed
        height, width = (int(side) for side in random.integers(1, 4097, 2))
        if random.random() < 0.3:
            height = width = 16 * -(-width // 16)
        header = Header(
            model_id=int(random.integers(0x10000)),
            height=height,
            width=width,
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


FRONT, FRONT_1, FRONT_SQUARE = GOLDEN[:8], GOLDEN_1[:8], GOLDEN_SQUARE[:6]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xfa", "truncated: 1 byte"),
        (GOLDEN[:9], "truncated: 9 bytes, the header has 10"),
        (GOLDEN_SQUARE[:7], "truncated: 7 bytes, the header has 8"),
        (GOLDEN_1[:11], "truncated: 11 bytes, the header has 12"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "not a FaSDiff-Edge file: it starts with 0x89"),
        (b"\xff\xd8\xff", "not a FaSDiff-Edge file"),
        (seal(b"\xfa\x34" + FRONT[2:]), "format version 3 is not supported"),
        (b"\xfa\x30", "format version 3 is not supported"),
        (seal(b"\xfa\x04" + FRONT[2:]), "format version 0 is not supported"),
        (seal(b"\xfa\x15" + FRONT_1[2:]), "reserved bits"),
        (seal(b"\xfa\x16" + FRONT_1[2:]), "reserved bits"),
        (GOLDEN[:-1], "CRC mismatch"),
        (GOLDEN + b"\0", "CRC mismatch"),
        (GOLDEN_SQUARE + b"\0", "CRC mismatch"),
        (GOLDEN_1[:-1], "CRC mismatch"),
        (seal(FRONT[:7] + b"\xfd"), "quality 253"),
        (seal(FRONT_SQUARE[:5] + b"\xff"), "quality 255"),
        (seal(FRONT_1[:7] + b"\xff"), "quality 255"),
        (seal(b"\xfa\x10\x12\x34\xff\xff\xff\x80"), "coded size 4096 x 4096"),
        (seal(b"\xfa\x20\x12\x34\xff\xf4\x00\x80"), "coded size 4096 x 1025"),
        (seal(b"\xfa\x22\x12\x34\x80\x80"), "coded size 2064 x 2064"),
    ],
)
def test_refusals_give_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BitstreamError, match=re.escape(reason)):
        unpack(data)


@pytest.mark.parametrize("golden", ALL_GOLDEN, ids=["version 2", "square", "version 1"])
def test_every_truncation_and_every_flipped_bit_is_refused(golden: bytes) -> None:
    for length in range(len(golden)):
        with pytest.raises(BitstreamError):
            unpack(golden[:length])
    for bit in range(8 * len(golden)):
        damaged = bytearray(golden)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            unpack(bytes(damaged))


def test_a_short_check_sees_three_flipped_bits() -> None:
    """What is promised of the CRC-16, in the longest file that has it."""
    random = np.random.default_rng(3)
    payload = random.bytes(4093 - 6)
    file = pack(SQUARE, payload)
    assert len(take_apart(file)[1]) == 2
    for _ in range(300):
        damaged = bytearray(file)
        # not in byte 1, which would move the check
        for bit in random.choice(8 * len(file) - 16, int(random.integers(1, 4)), replace=False):
            damaged[2 + bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError, match="CRC"):
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
