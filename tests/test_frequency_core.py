"""The C++ frequency split and noise against the reference, and their properties."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import reference

from fasdiff_edge import _core, frequency

SIZES = [
    (1, 1),
    (1, 7),
    (2, 3),
    (5, 1),
    (15, 17),
    (16, 16),
    (31, 48),
    (33, 64),
    (50, 70),
    (129, 66),
    (96, 272),
    (600, 1000),
]


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_split_equals_reference(height: int, width: int) -> None:
    image = random_image(height, width)
    bands = _core.split_bands(image)
    expected = reference.split_bands(image)
    assert bands.dtype == np.float32
    assert bands.shape == expected.shape
    np.testing.assert_allclose(bands, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_merge_equals_reference(height: int, width: int) -> None:
    shape = reference.split_bands(random_image(height, width)).shape
    bands = np.random.default_rng(1).normal(0, 0.6, shape).astype(np.float32)
    values = reference.merge_values(bands, height, width)
    assert (values < 0).any() or values.size < 40, "clamping is meant to be tested"
    merged = _core.merge_bands(bands, height, width)
    assert merged.shape == (height, width, 3)
    # Where float32 and float64 could round differently, the two neighbours are both right.
    expected = np.rint(np.clip(values, 0, 255))
    near_tie = np.abs(values - np.floor(values) - 0.5) < 1e-3
    assert (np.abs(merged - expected) <= near_tie).all()
    assert near_tie.mean() < 0.01 or values.size < 1000


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_round_trip_is_exact(height: int, width: int) -> None:
    image = random_image(height, width, seed=2)
    np.testing.assert_array_equal(_core.merge_bands(_core.split_bands(image), height, width), image)


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (254, 255), (127, 128)])
def test_round_trip_of_extreme_contrast_is_exact(values: tuple[int, int]) -> None:
    image = np.random.default_rng(3).choice(np.array(values, np.uint8), (64, 80, 3))
    np.testing.assert_array_equal(_core.merge_bands(_core.split_bands(image), 64, 80), image)


def test_round_trip_of_every_colour_pair_on_the_grey_axis() -> None:
    grey = np.arange(256, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(grey[:, None], grey[None, :], grey[:, None]), axis=-1)
    image = np.ascontiguousarray(image)
    np.testing.assert_array_equal(_core.merge_bands(_core.split_bands(image), 256, 256), image)


def test_results_go_where_they_are_asked_for() -> None:
    image = random_image(50, 70)
    expected = frequency.split_bands(image)
    bands = np.full_like(expected, np.nan)
    assert frequency.split_bands(image, out=bands) is bands
    np.testing.assert_array_equal(bands, expected)
    merged = np.zeros_like(image)
    assert frequency.merge_bands(bands, 50, 70, out=merged) is merged
    np.testing.assert_array_equal(merged, image)


def test_an_out_that_does_not_fit_is_refused() -> None:
    image = random_image(32, 32)
    bands = frequency.split_bands(image)
    wrong_bands: list[Any] = [bands[:, :4], bands.astype(np.float64), bands.T, bands.tolist()]
    for wrong in wrong_bands:
        with pytest.raises(ValueError, match=r"^out must be"):
            frequency.split_bands(image, out=wrong)
    wrong_images: list[Any] = [image[:16], image.astype(np.int8), image[::-1], 3]
    for wrong in wrong_images:
        with pytest.raises(ValueError, match=r"^out must be"):
            frequency.merge_bands(bands, 32, 32, out=wrong)
    image.flags.writeable = bands.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        frequency.split_bands(image, out=bands)
    with pytest.raises(ValueError, match="read-only"):
        frequency.merge_bands(bands, 32, 32, out=image)


@pytest.mark.parametrize("side", [64, 256, 1024])
def test_new_results_start_with_a_cache_line(side: int) -> None:
    image = random_image(side, side)
    bands = _core.split_bands(image)
    assert bands.ctypes.data % 64 == 0
    assert _core.merge_bands(bands, side, side).ctypes.data % 64 == 0


def test_split_is_orthonormal() -> None:
    image = random_image(48, 64)
    pixels = (image.astype(np.float64) - 127.5) / 127.5
    bands = _core.split_bands(image).astype(np.float64)
    assert np.sum(bands**2) == pytest.approx(np.sum(pixels**2), rel=1e-6)


def band_energies(image: np.ndarray) -> dict[str, float]:
    """Mean square of each kind of band."""
    bands = _core.split_bands(image)
    slices = {"hl2": (3, 6), "lh2": (6, 9), "hh2": (9, 12), "hl1": (12, 24), "lh1": (24, 36)}
    slices["hh1"] = (36, 48)
    return {name: float(np.mean(bands[a:b] ** 2)) for name, (a, b) in slices.items()}


@pytest.mark.parametrize("vertical", [True, False])
def test_a_vertical_edge_lights_hl_and_a_horizontal_one_lh(vertical: bool) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 31:] = 255  # an odd column, so that both levels see the edge
    if not vertical:
        image = np.ascontiguousarray(image.transpose(1, 0, 2))
    energies = band_energies(image)
    lit, dark = ("hl", "lh") if vertical else ("lh", "hl")
    assert energies[lit + "1"] > 0 and energies[lit + "2"] > 0
    for name in (dark + "1", dark + "2", "hh1", "hh2"):
        assert energies[name] == 0


def test_colours_take_their_own_channels() -> None:
    grey = np.full((16, 16, 3), 200, np.uint8)
    bands = _core.split_bands(grey)
    assert bands[0] == pytest.approx(4 * np.sqrt(3) * (200 - 127.5) / 127.5)
    assert (bands[1:] == 0).all()
    red_minus_blue = np.zeros((16, 16, 3), np.uint8)
    red_minus_blue[..., 0] = 255
    red_minus_blue[..., 1] = 128
    bands = _core.split_bands(red_minus_blue)
    assert (bands[1] > 5).all()
    assert np.abs(bands[2]).max() < 0.1


def test_level_one_is_unshuffled_row_by_row() -> None:
    image = np.full((16, 16, 3), 128, np.uint8)
    image[2, 1] = 255  # 2x2 block (1, 0): dy 1, dx 0
    bands = _core.split_bands(image)
    for first in (12, 24, 36):
        assert bands[first + 2, 0, 0] != 0
        assert bands[first + 0, 0, 0] == bands[first + 1, 0, 0] == bands[first + 3, 0, 0] == 0


def test_zero_bands_are_mid_grey_rounded_to_even() -> None:
    merged = _core.merge_bands(np.zeros((48, 4, 4), np.float32), 16, 16)
    assert (merged == 128).all()  # 127.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_merge_takes_any_float(value: float) -> None:
    bands = np.zeros((48, 4, 8), np.float32)
    bands[:, 0, 0] = value
    merged = _core.merge_bands(bands, 16, 32)
    assert set(np.unique(merged[:4, :4])) <= {0, 255}
    assert (merged[4:] == 128).all()


def test_merge_turns_nan_into_zero() -> None:
    bands = np.full((48, 4, 4), np.nan, np.float32)
    assert (_core.merge_bands(bands, 16, 16) == 0).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((16, 16, 3), np.float32),
        np.zeros((16, 16, 3), np.int8),
        np.zeros((16, 16), np.uint8),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((16, 32, 3), np.uint8)[:, ::2],
        np.zeros((3, 16, 16), np.uint8).transpose(1, 2, 0),
    ],
)
def test_split_refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"C-contiguous uint8 array \[\*, \*, 3\], got"):
        _core.split_bands(image)


@pytest.mark.parametrize("shape", [(0, 16, 3), (16, 0, 3), (0, 0, 3)])
def test_split_refuses_an_empty_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no pixels"):
        _core.split_bands(np.zeros(shape, np.uint8))


def test_split_refuses_a_huge_side() -> None:
    with pytest.raises(ValueError, match="65536"):
        _core.split_bands(np.zeros((1, 65537, 3), np.uint8))


@pytest.mark.parametrize(
    ("shape", "height", "width", "reason"),
    [
        ((48, 4, 4), 17, 16, "padded size"),
        ((48, 4, 4), 16, 33, "padded size"),
        ((48, 8, 4), 16, 16, "padded size"),
        ((48, 4, 4), 0, 16, "no pixels"),
        ((48, 4, 4), 16, -1, "no pixels"),
        ((48, 4, 4), 16, 2**31 - 1, "65536"),
        ((47, 4, 4), 16, 16, "48"),
    ],
)
def test_merge_refuses_other_shapes(
    shape: tuple[int, ...], height: int, width: int, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _core.merge_bands(np.zeros(shape, np.float32), height, width)


@pytest.mark.parametrize("more", [1, 3])
def test_merge_takes_planes_that_lie_apart(more: int) -> None:
    image = random_image(90, 70)
    bands = _core.split_bands(image)
    memory = np.full((48, bands.shape[1] + more, bands.shape[2]), np.nan, np.float32)
    apart = memory[:, : bands.shape[1]]
    apart[:] = bands
    assert not apart.flags.c_contiguous
    np.testing.assert_array_equal(_core.merge_bands(apart, 90, 70), image)


def test_aligned_memory_starts_with_a_cache_line() -> None:
    for shape in ((1,), (48, 65, 64), (2, 3)):
        memory = frequency.aligned(shape)
        assert (memory.shape, memory.dtype, memory.ctypes.data % 64) == (shape, np.float32, 0)
        assert memory.flags.c_contiguous and memory.flags.writeable
        memory[:] = 1


def test_merge_refuses_planes_that_are_not_contiguous() -> None:
    bands = np.zeros((96, 4, 8), np.float32)
    overlapping = np.lib.stride_tricks.as_strided(bands, (48, 4, 4), (32, 16, 4))
    memory = np.zeros(48 * 66, np.uint8)
    odd = np.lib.stride_tricks.as_strided(memory.view(np.float32), (48, 4, 4), (66, 16, 4))
    for wrong in (bands[:48, :, :4], bands[:48, :, ::2], bands[95:47:-1, :, :4], overlapping, odd):
        with pytest.raises(ValueError, match="bands must be a C-contiguous"):
            _core.merge_bands(wrong, 16, 16)


def test_merge_refuses_other_dtypes() -> None:
    with pytest.raises(ValueError, match="got float64"):
        _core.merge_bands(np.zeros((48, 4, 4)), 16, 16)


def test_threads_do_not_disturb_each_other() -> None:
    images = [random_image(200, 120 + i, seed=i) for i in range(4)]
    results: list[np.ndarray | None] = [None] * 4

    def work(i: int) -> None:
        for _ in range(5):
            bands = _core.split_bands(images[i])
            results[i] = _core.merge_bands(bands, *images[i].shape[:2])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("seed", [0, 1, 0xDEADBEEF, 2**32 - 1])
def test_noise_equals_reference(seed: int) -> None:
    expected = reference.noise(seed, 1000)
    np.testing.assert_array_equal(_core.noise(seed, 1000), expected)


def test_noise_golden_values() -> None:
    # In units of 1 / (4096 sqrt 2): sums of two table entries, which no rounding can move.
    sums = np.rint(_core.noise(0x12345678, 8).astype(np.float64) * 4096 * np.sqrt(2))
    assert sums.tolist() == [5200, -299, -3504, -2537, 4141, 4231, 5272, -2707]


def test_noise_is_about_unit_normal() -> None:
    sample = _core.noise(7, 200_000).astype(np.float64)
    assert sample.mean() == pytest.approx(0, abs=0.01)
    assert sample.std() == pytest.approx(1, abs=0.01)
    assert np.mean(sample**4) == pytest.approx(3, abs=0.2)
    assert np.corrcoef(sample[:-1], sample[1:])[0, 1] == pytest.approx(0, abs=0.01)
    other = _core.noise(8, 200_000).astype(np.float64)
    assert np.corrcoef(sample, other)[0, 1] == pytest.approx(0, abs=0.01)


def test_noise_sample_depends_on_its_index_only() -> None:
    long = _core.noise(5, 1000)
    np.testing.assert_array_equal(_core.noise(5, 10), long[:10])
    assert _core.noise(5, 0).shape == (0,)


@pytest.mark.parametrize(("seed", "count"), [(-1, 4), (2**32, 4), (0, -1)])
def test_noise_refuses_what_is_out_of_range(seed: int, count: int) -> None:
    with pytest.raises(ValueError, match="must"):
        _core.noise(seed, count)
