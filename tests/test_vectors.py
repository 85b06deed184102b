"""Golden streams: files of format version 1 decode to the same symbols for ever.

tests/vectors/make_vectors.py made them with the Python reference. The C++ twin of this test,
tests/cpp/verify_vectors.cpp, runs on any machine without Python.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fasdiff_edge import _core, bitstream

VECTORS = Path(__file__).resolve().parent / "vectors"
V1 = VECTORS / "v1"
INDEX = json.loads((V1 / "index.json").read_text())
STREAMS = INDEX["streams"]
# The index itself is pinned: neither it nor what it names may change.
INDEX_SHA256 = "e182e793f23eba622186c4b7105042b50921f0a954901a228287a993a4b24ca1"

each_stream = pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream["file"])


@pytest.fixture(scope="module")
def model() -> _core.EntropyModel:
    return _core.EntropyModel((V1 / INDEX["entropy_model"]).read_bytes())


def symbols_sha256(latents: tuple[np.ndarray, ...]) -> str:
    return hashlib.sha256(b"".join(a.astype("<i4").tobytes() for a in latents)).hexdigest()


def test_the_vectors_are_the_released_ones() -> None:
    assert hashlib.sha256((V1 / "index.json").read_bytes()).hexdigest() == INDEX_SHA256
    model_file = (V1 / INDEX["entropy_model"]).read_bytes()
    assert hashlib.sha256(model_file).hexdigest() == INDEX["entropy_model_sha256"]
    assert INDEX["entropy_model_sha256"].startswith(INDEX["model_id"])
    for stream in STREAMS:
        file = (V1 / stream["file"]).read_bytes()
        assert hashlib.sha256(file).hexdigest() == stream["file_sha256"]
    named = {stream["file"] for stream in STREAMS} | {INDEX["entropy_model"], "index.json"}
    assert {path.name for path in V1.iterdir()} == named


@each_stream
def test_header(stream: dict[str, Any]) -> None:
    file = (V1 / stream["file"]).read_bytes()
    fields = _core.parse_header(file)
    assert fields == (
        1,
        stream["scale"],
        int(INDEX["model_id"], 16),
        stream["width"],
        stream["height"],
        stream["quality"],
    )
    header, crc, payload = bitstream.unpack(file)
    assert (header.scale, header.model_id, header.width) == fields[1:4]
    assert (header.height, header.quality) == fields[4:6]
    assert list(header.latent_size) == stream["latent"]
    assert (crc, payload) == (int.from_bytes(file[8:12], "big"), file[12:])
    assert bitstream.pack(header, payload) == file


@each_stream
def test_decodes_and_encodes_again(stream: dict[str, Any], model: _core.EntropyModel) -> None:
    payload = (V1 / stream["file"]).read_bytes()[12:]
    latents = model.decode(payload, stream["quality"], *stream["latent"])
    assert symbols_sha256(latents) == stream["symbols_sha256"]
    assert model.encode(*latents, stream["quality"]) == payload


def test_the_vectors_use_every_table_and_the_escape(model: _core.EntropyModel) -> None:
    tables: set[int] = set()
    farthest = 0
    for stream in STREAMS:
        payload = (V1 / stream["file"]).read_bytes()[12:]
        _, z, y = model.decode(payload, stream["quality"], *stream["latent"])
        base, table = model.indexes(z, y, stream["quality"])
        tables |= set(table.ravel().tolist())
        farthest = max(farthest, int(np.abs(y - base).max()))
    assert tables == set(range(4 * model.num_scales))
    assert farthest > 32000


def damaged_headers() -> dict[str, tuple[bytes, str]]:
    """name -> (file, a word of the reason that both parsers give)."""
    good = (V1 / STREAMS[0]["file"]).read_bytes()

    def sealed(front: bytes) -> bytes:
        return front + zlib.crc32(front + good[12:]).to_bytes(4, "big") + good[12:]

    front = good[:8]
    return {
        "foreign": (b"\x89PNG" + good[4:], "not a FaSDiff-Edge file"),
        "future": (sealed(front[:1] + b"\x20" + front[2:]), "version"),
        "future and short": (b"\xfa\x20", "version"),
        "short": (good[:11], "12"),
        "reserved": (sealed(front[:1] + b"\x11" + front[2:]), "reserved"),
        "bit flip": (good[:20] + bytes([good[20] ^ 4]) + good[21:], "CRC"),
        "cut": (good[:-1], "CRC"),
        "quality": (sealed(front[:7] + b"\xfd"), "quality"),
        "too many pixels": (sealed(front[:4] + b"\xff\xff\xff" + front[7:]), "pixels"),
    }


@pytest.mark.parametrize("name", damaged_headers())
def test_both_header_parsers_refuse_the_same_files(name: str) -> None:
    file, word = damaged_headers()[name]
    with pytest.raises(_core.StreamError, match=word):
        _core.parse_header(file)
    with pytest.raises(bitstream.BitstreamError, match=word):
        bitstream.unpack(file)


def test_both_header_parsers_agree_on_random_headers() -> None:
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(2000):
        front = bytearray(rng.bytes(8))
        front[0] = 0xFA
        if rng.random() < 0.9:
            front[1] = 0x10 | int(rng.integers(4)) << 2
        file = bytes(front) + zlib.crc32(front).to_bytes(4, "big")
        try:
            fields = _core.parse_header(file)
        except _core.StreamError:
            with pytest.raises(bitstream.BitstreamError):
                bitstream.unpack(file)
            continue
        accepted += 1
        header, _, _ = bitstream.unpack(file)
        assert fields[1:] == (
            header.scale,
            header.model_id,
            header.width,
            header.height,
            header.quality,
        )
    assert 500 < accepted < 1900


def test_the_generator_refuses_to_overwrite() -> None:
    before = {path.name: path.read_bytes() for path in V1.iterdir()}
    command = [sys.executable, str(VECTORS / "make_vectors.py"), str(V1)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "never rewritten" in result.stderr
    assert {path.name: path.read_bytes() for path in V1.iterdir()} == before
