"""Golden streams: files of each format version decode to the same symbols for ever.

tests/vectors/make_vectors.py made them with the Python reference, each folder with an entropy model
file of its own version. The C++ twin of this test, tests/cpp/verify_vectors.cpp, runs on any
machine without Python.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import seal, take_apart

from fasdiff_edge import _core, bitstream

VECTORS = Path(__file__).resolve().parent / "vectors"
V1, V5 = VECTORS / "v1", VECTORS / "v5"
# The indexes themselves are pinned: neither they nor what they name may change.
INDEX_SHA256 = {
    V1: "e182e793f23eba622186c4b7105042b50921f0a954901a228287a993a4b24ca1",
    V5: "e74921bd8c62dc6c8477db1e9c5fb72dbfc1a96d7ce19b9997cdc8381ee9dd35",
}
INDEXES = {folder: json.loads((folder / "index.json").read_text()) for folder in INDEX_SHA256}


@dataclass(frozen=True)
class Stream:
    """A golden file and what the index says of it."""

    folder: Path
    says: dict[str, Any]

    @property
    def file(self) -> bytes:
        return (self.folder / self.says["file"]).read_bytes()

    @property
    def payload(self) -> bytes:
        return take_apart(self.file)[2]

    @property
    def model_id(self) -> int:
        return int(INDEXES[self.folder]["model_id"], 16)

    def decode(self, model: _core.EntropyModel) -> tuple[np.ndarray, ...]:
        return model.decode(self.payload, self.says["quality"], *self.says["latent"])


STREAMS = [Stream(folder, says) for folder, index in INDEXES.items() for says in index["streams"]]

each_folder = pytest.mark.parametrize("folder", INDEXES, ids=lambda folder: folder.name)
each_stream = pytest.mark.parametrize(
    "stream", STREAMS, ids=lambda stream: f"{stream.folder.name}-{stream.says['file']}"
)


@pytest.fixture(scope="module")
def models() -> dict[Path, _core.EntropyModel]:
    """The frozen model of each folder."""
    return {
        folder: _core.EntropyModel((folder / index["entropy_model"]).read_bytes())
        for folder, index in INDEXES.items()
    }


def symbols_sha256(latents: tuple[np.ndarray, ...]) -> str:
    return hashlib.sha256(b"".join(a.astype("<i4").tobytes() for a in latents)).hexdigest()


@each_folder
def test_the_vectors_are_the_released_ones(folder: Path) -> None:
    index = INDEXES[folder]
    assert hashlib.sha256((folder / "index.json").read_bytes()).hexdigest() == INDEX_SHA256[folder]
    model_file = (folder / index["entropy_model"]).read_bytes()
    assert hashlib.sha256(model_file).hexdigest() == index["entropy_model_sha256"]
    assert index["entropy_model_sha256"].startswith(index["model_id"])
    streams = [stream for stream in STREAMS if stream.folder == folder]
    for stream in streams:
        assert hashlib.sha256(stream.file).hexdigest() == stream.says["file_sha256"]
    named = {stream.says["file"] for stream in streams} | {index["entropy_model"], "index.json"}
    assert {path.name for path in folder.iterdir()} == named


def test_each_folder_has_its_version(models: dict[Path, _core.EntropyModel]) -> None:
    assert [models[folder].version for folder in (V1, V5)] == [1, 5]
    assert models[V5].group_scans == [3, 2, 1, 2], "every kind of scan"
    assert models[V5].group_starts == [0, 0, 100, 150], "a residual of two groups"


@each_stream
def test_header(stream: Stream) -> None:
    says = stream.says
    fields = _core.parse_header(stream.file)
    assert fields == (
        INDEXES[stream.folder]["format_version"],
        says["scale"],
        stream.model_id,
        says["width"],
        says["height"],
        says["quality"],
    )
    header, check, payload = bitstream.unpack(stream.file)
    assert (header.scale, header.model_id, header.width) == fields[1:4]
    assert (header.height, header.quality) == fields[4:6]
    assert list(header.latent_size) == says["latent"]
    assert check == int.from_bytes(take_apart(stream.file)[1], "big")
    assert payload == stream.payload
    again = bitstream.pack(header, payload)
    if fields[0] == 1:  # what is read of it is written as a shorter file
        assert bitstream.unpack(again)[::2] == (header, payload)
        assert len(again) < len(stream.file)
    else:
        assert again == stream.file


@each_stream
def test_decodes_and_encodes_again(stream: Stream, models: dict[Path, _core.EntropyModel]) -> None:
    model = models[stream.folder]
    latents = stream.decode(model)
    assert symbols_sha256(latents) == stream.says["symbols_sha256"]
    assert model.encode(*latents, stream.says["quality"]) == stream.payload


@each_folder
def test_the_vectors_use_every_table_and_the_escape(
    folder: Path, models: dict[Path, _core.EntropyModel]
) -> None:
    model = models[folder]
    tables: set[int] = set()
    farthest = 0
    for stream in STREAMS:
        if stream.folder != folder:
            continue
        latents = stream.decode(model)
        base, table = model.indexes(*latents, stream.says["quality"])
        tables |= set(table.ravel().tolist())
        farthest = max(farthest, int(np.abs(latents[2] - base).max()) >> model.unit_bits)
    assert tables == set(range(model.num_scales * (4 if folder == V1 else 1)))
    assert farthest > 32000


def damaged_headers() -> dict[str, tuple[bytes, str]]:
    """name -> (file, a word of the reason that both parsers give)."""
    good = STREAMS[0].file
    front, _, payload = take_apart(good)

    def sealed(front: bytes) -> bytes:
        return seal(front, payload)

    return {
        "foreign": (b"\x89PNG" + good[4:], "not a FaSDiff-Edge file"),
        "future": (sealed(front[:1] + b"\x30" + front[2:]), "version"),
        "future and short": (b"\xfa\x30", "version"),
        "no version": (good[:1], "truncated"),
        "short": (good[:11], "truncated"),
        "short of the shortest": (seal(b"\xfa\x23\x12\x34\x0f\x40")[:7], "truncated"),
        "reserved": (sealed(front[:1] + b"\x11" + front[2:]), "reserved"),
        "bit flip": (good[:20] + bytes([good[20] ^ 4]) + good[21:], "CRC"),
        "cut": (good[:-1], "CRC"),
        "quality": (sealed(front[:7] + b"\xfd"), "quality"),
        "too many pixels": (sealed(front[:4] + b"\xff\xff\xff" + front[7:]), "pixels"),
        "too large a square": (seal(b"\xfa\x23\x12\x34\xff\x40", payload), "pixels"),
        "bit flip, short check": (seal(b"\xfa\x23\x12\x34\x0f\x40") + b"\1", "CRC"),
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
        if rng.random() < 0.4:
            front[1] = 0x10 | int(rng.integers(4)) << 2
        elif rng.random() < 0.9:
            front[1] = 0x20 | int(rng.integers(16))
            if front[1] & 2:
                del front[6:]
        file = seal(bytes(front), rng.bytes(3))
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


@each_folder
def test_the_generator_refuses_to_overwrite(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, str(VECTORS / "make_vectors.py"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "never rewritten" in result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
