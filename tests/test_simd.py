"""Every instruction set that this build and machine have gives the same integers and bands.

The C++ tests compare each with the definition (tests/cpp/core_tests.cpp); here each is compared
with the reference in Python through the bindings, whole streams included, and the choice is tested.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reference
from conftest import RunPython
from reference import Layer

from fasdiff_edge import _core, cpu
from fasdiff_edge.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
PATHS: list[str] = _core.cpu_info()["available"]
POSITIONS = {
    "all": lambda i, j: i + j >= 0,
    "even": lambda i, j: (i + j) % 2 == 0,
    "odd": lambda i, j: (i + j) % 2 == 1,
    "even_even": lambda i, j: (i % 2 == 0) & (j % 2 == 0),
    "odd_odd": lambda i, j: (i % 2 == 1) & (j % 2 == 1),
}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn."""
    chosen = _core.cpu_info()["chosen"]
    _core.set_cpu_path(request.param)
    yield str(request.param)
    _core.set_cpu_path(chosen)


# -- integer networks ------------------------------------------------------------------------------
def core_net(layers: list[Layer], max_input: int) -> _core.IntegerNet:
    return _core.IntegerNet(
        [(a.weight.astype(np.int8), a.bias.astype(np.int32), a.shift, a.lo, a.hi) for a in layers],
        max_input,
    )


def interleaved(x: np.ndarray, rubbish: int) -> np.ndarray:
    """int64 [C, H, W] as int16 [H, W, C rounded up to 8]."""
    channels, height, width = x.shape
    out = np.full((height, width, -(-channels // 8) * 8), rubbish, np.int16)
    out[..., :channels] = x.transpose(1, 2, 0)
    return out


def check_net(layers: list[Layer], x: np.ndarray, max_input: int) -> None:
    net = core_net(layers, max_input)
    expected = reference.run_net(layers, x.astype(np.int64)).transpose(1, 2, 0)
    rows, columns = np.indices(x.shape[1:])
    for positions, wanted in POSITIONS.items():
        out = net.run(interleaved(x, min(max_input, 32767)), positions)
        masked = np.where(wanted(rows, columns)[..., None], expected, 0)
        np.testing.assert_array_equal(out, masked, err_msg=positions)


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_equal_reference(path: str, seed: int) -> None:
    """Channel counts around those of vectors and chunks, odd sizes, sparse and dense input."""
    rng = np.random.default_rng(seed)
    counts = [1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 96, 129, 257]
    for _ in range(4):
        cin, hidden, cout = (int(rng.choice(counts)) for _ in range(3))
        height, width = (int(rng.integers(1, 8)) for _ in range(2))
        high = int(rng.choice([127, 128, 300]))
        layers = [
            reference.random_layer(rng, cin, hidden, 3, -high, high),
            reference.random_layer(rng, hidden, cout, int(rng.choice([1, 3])), -2047, 2047),
        ]
        max_input = int(rng.choice([1, 127, 128, 1000]))
        x = rng.integers(-max_input, max_input + 1, (cin, height, width))
        x = np.where(rng.random(x.shape) < rng.choice([0.03, 0.5, 1.0]), x, 0)
        check_net(layers, x, max_input)


@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("x", [-128, -127, 127, 128, 32767, -32768])
def test_extreme_products_do_not_saturate(path: str, weight: int, x: int) -> None:
    """A pair of products reaches 2 * 128 * 128: more than an int16 holds."""
    cin = 50
    layer = Layer(np.full((18, cin, 3, 3), weight), np.zeros(18, np.int64), 16, -32768, 32767)
    check_net([layer], np.full((cin, 4, 5), x), 32768)
    alternating = np.full((cin, 4, 5), x)
    alternating[1::2] = -1 - x
    check_net([layer], alternating, 32768)


def test_an_activation_beyond_the_bound_is_refused() -> None:
    layer = Layer(np.ones((1, 1, 1, 1), np.int64), np.zeros(1, np.int64), 1, -9, 9)
    net = core_net([layer], 7)
    with pytest.raises(ValueError, match="max_input"):
        net.run(np.full((1, 1, 8), 8, np.int16))
    with pytest.raises(ValueError, match="multiple of 8"):
        net.run(np.zeros((1, 1, 4), np.int16))
    with pytest.raises(ValueError, match="positions must be"):
        net.run(np.zeros((1, 1, 8), np.int16), "some")
    with pytest.raises(ValueError, match="overflow"):
        core_net([Layer(np.ones((1, 9, 3, 3), np.int64), np.zeros(1, np.int64), 1, 0, 1)], 2**20)


# -- whole streams ---------------------------------------------------------------------------------
def test_streams_equal_reference(path: str) -> None:
    rng = np.random.default_rng(1)
    model = reference.random_model(rng, 5, group_sizes=(5, 12))
    core = _core.EntropyModel(reference.serialise(model))
    for hy, wy in ((1, 1), (5, 3), (7, 10)):
        latents = reference.random_latents(rng, model, hy, wy)
        payload = core.encode(*latents, 77)
        assert payload == reference.encode_latents(model, *latents, 77)
        expected = reference.codable(model, *latents, 77)
        for decoded, levels in zip(core.decode(payload, 77, hy, wy), expected, strict=True):
            np.testing.assert_array_equal(decoded, levels)


# -- frequency split -------------------------------------------------------------------------------
SIZES = [(1, 1), (2, 3), (5, 1), (15, 17), (16, 16), (33, 64), (50, 70), (20, 1100), (129, 66)]


def whole_pages_apart(bands: np.ndarray) -> np.ndarray:
    """The same bands in planes that start a multiple of 4 KiB after one another."""
    plane = bands[0].nbytes
    memory = np.full((len(bands), -(-plane // 4096) * 1024), np.nan, np.float32)
    strides = (memory.strides[0], *bands.strides[1:])
    apart = np.lib.stride_tricks.as_strided(memory, bands.shape, strides)
    apart[:] = bands
    return apart


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bands_and_images_equal_reference(path: str, height: int, width: int) -> None:
    """Within 1e-6 of float64, and the same bits as the scalar path."""
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    bands = _core.split_bands(image)
    np.testing.assert_allclose(bands, reference.split_bands(image), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(_core.merge_bands(bands, height, width), image)
    noisy = bands + rng.normal(0, 0.3, bands.shape).astype(np.float32)
    noisy.ravel()[rng.integers(0, noisy.size, 8)] = [np.nan, np.inf, -np.inf, 3e38, -3e38, 9, -9, 0]
    merged = _core.merge_bands(noisy, height, width)
    competing = _core.merge_bands(whole_pages_apart(noisy), height, width)
    np.testing.assert_array_equal(competing, merged)
    _core.set_cpu_path("scalar")
    assert bands.tobytes() == _core.split_bands(image).tobytes()
    np.testing.assert_array_equal(merged, _core.merge_bands(noisy, height, width))


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (254, 255), (127, 128)])
def test_round_trips_of_extreme_contrast_are_exact(path: str, values: tuple[int, int]) -> None:
    image = np.random.default_rng(3).choice(np.array(values, np.uint8), (61, 83, 3))
    np.testing.assert_array_equal(_core.merge_bands(_core.split_bands(image), 61, 83), image)


def test_round_trips_of_all_colours_are_exact(path: str) -> None:
    """Every red with every blue, at greens of every residue; the sums are exact integers."""
    levels = np.arange(256, dtype=np.uint8)
    for step in (1, 77, 255):
        green = (levels[:, None] * step + levels[None, :]).astype(np.uint8)
        image = np.stack(np.broadcast_arrays(levels[:, None], green, levels[None, :]), axis=-1)
        image = np.ascontiguousarray(image)
        np.testing.assert_array_equal(_core.merge_bands(_core.split_bands(image), 256, 256), image)


# -- the choice ------------------------------------------------------------------------------------
def test_the_best_path_is_chosen() -> None:
    info = cpu.describe()
    assert info["available"] == PATHS and PATHS[0] == "scalar"
    assert info["chosen"] == (os.environ.get("FASDIFF_CPU") or PATHS[-1])
    assert set(info["kernels"]) == {"frequency_split", "integer_net", "range_coder"}
    assert info["kernels"]["integer_net"] == info["chosen"]


def test_a_path_that_is_not_there_cannot_be_set() -> None:
    with pytest.raises(ValueError, match="this build and machine have scalar"):
        _core.set_cpu_path("sse9")


@pytest.mark.parametrize("name", PATHS)
def test_the_environment_forces_a_path(run_python: RunPython, name: str) -> None:
    done = run_python("-m", "fasdiff_edge.cli", "info", "--cpu", "--json", FASDIFF_CPU=name)
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    assert info["chosen"] == info["environment"] == info["kernels"]["integer_net"] == name


def test_an_unknown_path_in_the_environment_is_an_error(run_python: RunPython) -> None:
    reason = f"FASDIFF_CPU is 'sse9'; this build and machine have {', '.join(PATHS)}"
    done = run_python("-m", "fasdiff_edge.cli", "info", "--cpu", FASDIFF_CPU="sse9")
    assert (done.returncode, done.stderr.decode()) == (2, f"fasdiff: error: {reason}\n")
    code = (
        "import numpy as np, fasdiff_edge\n"
        "from fasdiff_edge import _core\n"
        "for use in (fasdiff_edge.Encoder, fasdiff_edge.Decoder):\n"
        "    try: use()\n"
        "    except fasdiff_edge.OptionError as error: print(error)\n"
        "try: _core.split_bands(np.zeros((1, 1, 3), np.uint8))\n"
        "except ValueError as error: print(error)\n"
    )
    lines = run_python("-c", code, FASDIFF_CPU="sse9").stdout.decode().splitlines()
    assert lines[:2] == [reason, reason]
    assert "does not have" in lines[2]


def test_info_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--cpu"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"chosen           {cpu.describe()['chosen']} (")
    assert lines[1] == f"available        {', '.join(PATHS)}"
    assert lines[4].split() == ["range", "coder", "scalar"]
    for argv in (["info"], ["info", "--cpu", "file"]):
        assert main(argv) == 2
        assert "FILE or --cpu" in capfd.readouterr().err


# -- what the sources may not do -------------------------------------------------------------------
def test_the_vector_kernels_of_the_networks_use_no_float() -> None:
    sources = sorted((REPOSITORY / "csrc").glob("conv_*"))
    assert len(sources) >= 7
    for source in sources:
        code = re.sub(r"//[^\n]*", "", source.read_text())
        # Reinterpreting for a mask is not arithmetic.
        code = re.sub(r"_mm256_movemask_ps\(_mm256_castsi256_ps\(\w+\)\)", "", code)
        assert re.search(r"\b(float|double)|_p[sd]\(|_f(16|32|64)\b", code) is None, source


def test_the_vector_kernels_instantiate_nothing_that_is_shared() -> None:
    """A template of the standard library, compiled for AVX, could replace the baseline's."""
    csrc = REPOSITORY / "csrc"
    for source in [*csrc.glob("conv_*"), *csrc.glob("freq*"), csrc / "inline.h"]:
        if source.stem in ("frequency_split",):
            continue
        includes = set(re.findall(r'#include [<"]([^>"]+)', source.read_text()))
        allowed = {"cstddef", "cstdint", "cstring", "immintrin.h", "arm_neon.h"}
        ours = {
            "conv_kernel.h",
            "conv_loops.h",
            "frequency_kernel.h",
            "frequency_loops.h",
            "inline.h",
        }
        assert includes <= allowed | ours, source
