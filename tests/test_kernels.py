"""The Triton kernels against the C++: on a GPU where there is one, in the interpreter elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
pytest.importorskip("triton", reason="the extra `triton` is not installed")

from fasdiff_edge import _core
from fasdiff_edge.errors import BitstreamError
from fasdiff_edge.kernels import frequency
from fasdiff_edge.kernels.range_decoder import BatchRangeDecoder

REPOSITORY = Path(__file__).resolve().parent.parent
DEVICES = [
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is not on"),
    ),
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    ),
]
SIZES = [(1, 1, 1), (2, 3, 5), (1, 15, 33), (3, 16, 16), (1, 70, 50), (1, 20, 530)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("count", "height", "width"), SIZES)
def test_split_and_merge_equal_the_core(device: str, count: int, height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    bands = frequency.split_bands(torch.from_numpy(images).to(device))
    expected = np.stack([_core.split_bands(image) for image in images])
    np.testing.assert_allclose(bands.cpu().numpy(), expected, rtol=0, atol=2e-6)
    merged = frequency.merge_bands(bands, height, width).cpu().numpy()
    np.testing.assert_array_equal(merged, images)


def test_merge_clamps_and_rounds_as_the_core(device: str) -> None:
    rng = np.random.default_rng(0)
    bands = rng.normal(0, 1.5, (2, 48, 8, 12)).astype(np.float32)
    bands.ravel()[rng.integers(0, bands.size, 9)] = [9, -9, 30, -30, 3e3, -3e3, 1e6, -1e6, 0]
    expected = np.stack([_core.merge_bands(one, 29, 41) for one in bands])
    merged = frequency.merge_bands(torch.from_numpy(bands).to(device), 29, 41).cpu().numpy()
    # fused multiply-adds of a GPU may fall to the other side of a half
    assert np.abs(merged.astype(int) - expected).max() <= 1
    assert (merged == expected).mean() > 0.999
    assert (expected == 0).any() and (expected == 255).any()
    bands[0, 0, 0, 0] = np.nan
    assert (frequency.merge_bands(torch.from_numpy(bands).to(device), 32, 48)[0, :4, :4] == 0).all()


def test_arguments_of_split_and_merge_are_checked() -> None:
    for images in (
        torch.zeros(1, 4, 4, 3),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(1, 4, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 0, 4, 3, dtype=torch.uint8),
        torch.zeros(1, 4, 8, 3, dtype=torch.uint8)[:, :, ::2],
    ):
        with pytest.raises(ValueError, match="images must"):
            frequency.split_bands(images)
    for bands in (torch.zeros(1, 47, 4, 4), torch.zeros(48, 4, 4), torch.zeros(0, 48, 4, 4)):
        with pytest.raises(ValueError, match="bands must"):
            frequency.merge_bands(bands, 16, 16)
    for height, width in ((0, 16), (17, 16), (16, 33)):
        with pytest.raises(ValueError, match="are not those of"):
            frequency.merge_bands(torch.zeros(1, 48, 4, 4), height, width)


# -- range decoding --------------------------------------------------------------------------------
def random_tables(rng: np.random.Generator) -> list[reference.Table]:
    """Narrow and wide, with a likely escape in one."""
    tables = [
        reference.laplace_table(scale, mean) for scale in (0.2, 3.0, 40.0) for mean in (0, 0.3)
    ]
    return [*tables, reference.random_table(rng, 5), reference.Table(-1, (1, 2, 1, 65532))]


def plain(tables: list[reference.Table]) -> list[tuple[int, np.ndarray]]:
    return [(table.offset, np.array(table.frequencies)) for table in tables]


def streams(
    rng: np.random.Generator, tables: list[reference.Table], counts: int, length: int
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Payloads from the C++ coder, and the tables and values [streams, length] that they hold."""
    core = _core.EntropyModel(reference.serialise(reference.table_model(tables)))
    which = rng.integers(0, len(tables), (counts, length)).astype(np.int32)
    values = np.zeros_like(which)
    payloads = []
    for n in range(counts):
        for i, t in enumerate(which[n]):
            table = tables[t]
            weights = np.array(table.frequencies) / 65536
            drawn = int(rng.choice(len(weights), p=weights))
            far = int(rng.integers(1, 3000))
            values[n, i] = table.offset + drawn + (far if drawn == table.count else 0)
            if drawn == table.count and rng.random() < 0.5:
                values[n, i] = table.offset - far
        payloads.append(_core.range_encode(values[n], which[n].astype(np.uint16), core))
    return payloads, which, values


def test_batches_decode_what_the_core_encoded(device: str) -> None:
    """Streams of different lengths in bytes, in two calls that share the state."""
    rng = np.random.default_rng(1)
    tables = random_tables(rng)
    payloads, which, values = streams(rng, tables, 5, 40)
    assert len({len(payload) for payload in payloads}) > 2
    decoder = BatchRangeDecoder(payloads, plain(tables), device)
    indexes = torch.from_numpy(which).to(device)
    first = decoder.decode(indexes[:, :13].contiguous())
    decoder.check(finished=False)
    rest = decoder.decode(indexes[:, 13:].contiguous())
    decoder.check(finished=True)
    np.testing.assert_array_equal(torch.cat([first, rest], 1).cpu().numpy(), values)


def test_nothing_to_decode(device: str) -> None:
    tables = random_tables(np.random.default_rng(2))
    decoder = BatchRangeDecoder([b"", b""], plain(tables), device)
    assert decoder.decode(torch.zeros((2, 0), dtype=torch.int32, device=device)).shape == (2, 0)
    decoder.check(finished=True)


def test_damaged_streams_are_named(device: str) -> None:
    rng = np.random.default_rng(3)
    tables = random_tables(rng)
    payloads, which, values = streams(rng, tables, 3, 60)
    indexes = torch.from_numpy(which).to(device)
    cut = [payloads[0], payloads[1][:8], payloads[2]]
    decoder = BatchRangeDecoder(cut, plain(tables), device)
    decoded = decoder.decode(indexes).cpu().numpy()
    np.testing.assert_array_equal(decoded[[0, 2]], values[[0, 2]])
    with pytest.raises(BitstreamError, match="stream 1: "):
        decoder.check(finished=True)
    longer = [payloads[0], payloads[1], payloads[2] + b"\1\2\3\4"]
    decoder = BatchRangeDecoder(longer, plain(tables), device)
    np.testing.assert_array_equal(decoder.decode(indexes).cpu().numpy(), values)
    decoder.check(finished=False)
    with pytest.raises(BitstreamError, match="stream 2: bytes are left"):
        decoder.check(finished=True)


def test_random_bytes_end(device: str) -> None:
    """Whatever the bytes are: values, or a status that says why not; never a hang."""
    rng = np.random.default_rng(4)
    tables = random_tables(rng)
    core = _core.EntropyModel(reference.serialise(reference.table_model(tables)))
    payloads = [rng.bytes(int(n)) for n in rng.integers(0, 30, 8)] + [b"\xff" * 12, b"\0" * 12]
    which = rng.integers(0, len(tables), (len(payloads), 30)).astype(np.int32)
    decoder = BatchRangeDecoder(payloads, plain(tables), device)
    decoder.decode(torch.from_numpy(which).to(device))
    refused = decoder._status.cpu().numpy() != 0
    for payload, row, bad in zip(payloads, which, refused, strict=True):
        try:
            _core.range_decode(payload, row.astype(np.uint16), core)
        except _core.StreamError as error:
            assert bad or "bytes are left" in str(error) or "outside" in str(error)
        else:
            assert not bad


def test_arguments_of_the_decoder_are_checked() -> None:
    tables = plain(random_tables(np.random.default_rng(5)))
    with pytest.raises(ValueError, match="no payload"):
        BatchRangeDecoder([], tables, "cpu")
    with pytest.raises(ValueError, match="table 1 do not sum"):
        BatchRangeDecoder([b""], [tables[0], (0, np.array([1, 2]))], "cpu")
    decoder = BatchRangeDecoder([b"", b""], tables, "cpu")
    for wrong, reason in (
        (torch.zeros((2, 3)), "int32"),
        (torch.zeros(3, dtype=torch.int32), "int32"),
        (torch.zeros((1, 3), dtype=torch.int32), "int32"),
        (torch.zeros((3, 2), dtype=torch.int32).T, "contiguous"),
        (torch.full((2, 1), len(tables), dtype=torch.int32), "outside"),
        (torch.full((2, 1), -1, dtype=torch.int32), "outside"),
    ):
        with pytest.raises(ValueError, match=reason):
            decoder.decode(wrong)


# -- ahead of time ---------------------------------------------------------------------------------
def test_every_kernel_compiles_for_every_device(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    script = REPOSITORY / "export" / "compile_triton.py"
    command = [sys.executable, str(script), str(tmp_path / "out")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for kernel in ("split", "merge", "range_decode"):
        for target in ("sm_72", "sm_87", "sm_89", "sm_90", "sm_110"):
            cubin = (tmp_path / "out" / f"{kernel}.{target}.cubin").read_bytes()
            assert cubin[:4] == b"\x7fELF" and len(cubin) > 5000
            assert f"| {kernel} | {target} | {len(cubin)} |" in result.stdout
    assert "| Jetson AGX Orin | sm_87 | 205 |" in result.stdout
