"""Damaged files through the Python layer: BitstreamError with a reason, or symbols; nothing else.

The large fuzz test, 20,000 mutants under AddressSanitizer and UBSan, is tests/cpp/fuzz_streams.cpp;
`make test` runs it. This one checks that what it exercises arrives in Python as the right error.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RunPython
from reference import seal, take_apart

from fasdiff_edge import bitstream
from fasdiff_edge.entropy_model import EntropyModel
from fasdiff_edge.errors import BitstreamError, ModelError

VECTORS = Path(__file__).resolve().parent / "vectors"


def files_of(folder: Path) -> list[bytes]:
    index = json.loads((folder / "index.json").read_text())
    return [(folder / stream["file"]).read_bytes() for stream in index["streams"]]


FILES = {name: files_of(VECTORS / name) for name in ("v1", "v5")}
ALL_FILES = [file for files in FILES.values() for file in files]


@pytest.fixture(params=FILES)
def version(request: pytest.FixtureRequest) -> str:
    """Golden files of each version of the entropy model file."""
    return str(request.param)


@pytest.fixture
def model(version: str) -> EntropyModel:
    return EntropyModel((VECTORS / version / "entropy_model.bin").read_bytes())


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    out = bytearray(data)
    kind = rng.integers(5)
    at = int(rng.integers(len(out))) if out else 0
    if kind == 0 and out:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del out[at:]
    elif kind == 2:
        out[at:at] = rng.bytes(int(rng.integers(1, 20)))
    elif kind == 3:
        out[at:] = rng.bytes(int(rng.integers(1, 200)))
    else:
        out[at:] = bytes([rng.choice([0, 255])]) * (len(out) - at)
    return bytes(out)


def decode(model: EntropyModel, file: bytes) -> None:
    """As a decoder does: header, then levels, of which a symbol has 16 but under version 1."""
    header, _, payload = bitstream.unpack(file)
    levels = model.decode(payload, header.quality, header.latent_size)
    unit = 1 << model._core.unit_bits
    for part in (levels.s, levels.z, levels.y):
        assert part.min(initial=0) >= -32768 * unit and part.max(initial=0) <= 32767 * unit


def test_mutants_with_the_old_checksum_are_refused() -> None:
    rng = np.random.default_rng(0)
    mutants = 0
    while mutants < 1000:
        original = ALL_FILES[rng.integers(len(ALL_FILES))]
        file = damage(rng, original)
        if file == original:
            continue
        mutants += 1
        with pytest.raises(BitstreamError):
            bitstream.unpack(file)


def test_mutants_with_a_new_checksum_reach_the_entropy_decoder(
    version: str, model: EntropyModel
) -> None:
    files = FILES[version]
    rng = np.random.default_rng(1)
    reasons: dict[str, int] = {}
    decoded = 0
    for _ in range(1000):
        front, _, payload = take_apart(files[rng.integers(len(files))])
        file = seal(front[:-1] + bytes([rng.integers(253)]), damage(rng, payload))
        bitstream.unpack(file)  # the header is fine: what follows is the entropy decoder's word
        try:
            decode(model, file)
            decoded += 1
        except BitstreamError as error:
            reasons[str(error)] = reasons.get(str(error), 0) + 1
    assert decoded + sum(reasons.values()) == 1000
    assert decoded > 0
    assert any("ends before" in reason for reason in reasons)
    assert any("bytes are left" in reason for reason in reasons)


@pytest.mark.parametrize("file", ALL_FILES, ids=len)
def test_every_truncation_is_refused(file: bytes) -> None:
    for size in range(len(file)):
        with pytest.raises(BitstreamError):
            bitstream.unpack(file[:size])


@pytest.mark.parametrize("file", [*FILES["v1"][:3], *FILES["v5"][:3]], ids=len)
def test_every_bit_flip_is_refused(file: bytes) -> None:
    for i in range(len(file)):
        for bit in range(8):
            with pytest.raises(BitstreamError):
                bitstream.unpack(file[:i] + bytes([file[i] ^ 1 << bit]) + file[i + 1 :])


def test_mutants_of_the_model_are_refused_or_work(version: str) -> None:
    data = (VECTORS / version / "entropy_model.bin").read_bytes()
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(300):
        out = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            out[int(rng.integers(len(out)))] = int(rng.integers(256))
        try:
            mutant = EntropyModel(bytes(out))
        except ModelError as error:
            assert str(error)
            refused += 1
            continue
        try:
            mutant.decode(rng.bytes(300), int(rng.integers(253)), (4, 4))
        except BitstreamError as error:
            assert str(error)
    assert 0 < refused < 300


HUGE = """
import resource, sys
from fasdiff_edge import bitstream
from fasdiff_edge.entropy_model import EntropyModel
from fasdiff_edge.errors import BitstreamError

model = EntropyModel(open(sys.argv[1], "rb").read())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for payload in (b"", b"\\x55" * 100, b"\\xff" * 100_000):
    header = bitstream.Header(model_id=0, height=4096, width=4096, scale=1, quality=252)
    unpacked, _, payload = bitstream.unpack(bitstream.pack(header, payload))
    try:
        model.decode(payload, unpacked.quality, unpacked.latent_size)
    except BitstreamError:
        print("refused")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_huge_size_takes_little_memory(run_python: RunPython, version: str) -> None:
    """The largest size that a header can name, with next to nothing behind it."""
    result = run_python("-c", HUGE, VECTORS / version / "entropy_model.bin")
    assert result.returncode == 0, result.stderr
    *outcomes, megabytes = result.stdout.decode().split()
    assert outcomes == ["refused"] * 3
    assert int(megabytes) < 64
