"""The search for the largest quality that fits, on made-up sizes; no model, no engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fasdiff_edge.rate import RatePrior, estimate_bytes, find_quality, least_bytes

HIGHEST = 252
KNOTS = range(0, HIGHEST + 1, 21)


Rounds = list[list[int]]


def payloads(sizes: np.ndarray, rounds: Rounds) -> Callable[[Sequence[int]], list[bytes]]:
    def code(qualities: Sequence[int]) -> list[bytes]:
        assert 1 <= len(qualities) <= 2 and list(qualities) == sorted(set(qualities))
        rounds.append(list(qualities))
        return [bytes(int(sizes[quality])) for quality in qualities]

    return code


def curve(slope: float, start: float, bend: float) -> np.ndarray:
    """Bytes at each quality, rising."""
    quality = np.arange(HIGHEST + 1)
    return np.round(start * np.exp(slope * quality - bend * quality**2)).astype(int)


def estimate(sizes: np.ndarray, factor: float = 1.0, tilt: float = 0.0) -> list[tuple[int, float]]:
    return [(q, math.log(max(1, sizes[q]) * factor) + tilt * q) for q in KNOTS]


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("tilt", [0.0, 0.002])
def test_finds_what_exhaustive_search_finds(factor: float, tilt: float) -> None:
    passes = []
    for sizes in (curve(0.018, 90, 0), curve(0.026, 60, 2e-5), curve(0.012, 300, 0)):
        for limit in range(50, 7000, 61):
            rounds: Rounds = []
            found = find_quality(
                payloads(sizes, rounds), limit, 0, HIGHEST, estimate(sizes, factor, tilt)
            )
            tried = [quality for pair in rounds for quality in pair]
            fitting = np.flatnonzero(sizes <= limit)
            if fitting.size == 0:
                assert found.quality is None
                assert found.payload == b""
            else:
                assert found.quality == fitting[-1]
                assert len(found.payload) == sizes[fitting[-1]]
            assert found.sizes == {q: sizes[q] for q in tried}
            assert len(set(tried)) == len(tried), "a quality was coded twice"
            passes.append(len(rounds))
    assert np.mean(passes) < 3.2
    assert max(passes) <= 5 + 8  # the secant's, then halving 253


def test_a_good_estimate_needs_few_passes() -> None:
    sizes = curve(0.018, 90, 0)
    passes = []
    for limit in range(100, 6000, 37):
        rounds: Rounds = []
        find_quality(payloads(sizes, rounds), limit, 0, HIGHEST, estimate(sizes))
        passes.append(len(rounds))
    assert np.mean(passes) <= 2.2


def test_a_wavy_curve_does_not_creep() -> None:
    """Where the estimate keeps missing on one side, the bracket is closed by overshooting."""
    smooth = curve(0.018, 90, 0)
    wavy = np.round(smooth * np.exp(0.15 * np.sin(np.arange(smooth.size) / 11))).astype(int)
    passes = []
    for limit in range(50, 7000, 31):
        for factor, tilt in ((1.0, 0.0), (0.5, 0.002), (3.0, -0.003)):
            rounds: Rounds = []
            code = payloads(wavy, rounds)
            find_quality(code, limit, 0, HIGHEST, estimate(smooth, factor, tilt))
            passes.append(len(rounds))
    assert max(passes) <= 10
    assert np.mean(passes) < 4.2


def test_ragged_sizes_still_end_at_an_edge() -> None:
    random = np.random.default_rng(11)
    for _ in range(200):
        smooth = curve(0.018, 90, 0)
        sizes = np.maximum(0, smooth + random.integers(-12, 13, smooth.size))
        limit = int(random.integers(60, 9000))
        found = find_quality(payloads(sizes, []), limit, 0, HIGHEST, estimate(smooth))
        if found.quality is None:
            assert sizes[0] > limit
        else:
            assert sizes[found.quality] == len(found.payload) <= limit
            assert found.quality == HIGHEST or sizes[found.quality + 1] > limit


@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (40, 40), (40, 41), (24, 128), (0, 251)])
def test_the_range_is_respected(lowest: int, highest: int) -> None:
    sizes = curve(0.018, 90, 0)
    for limit in (-5, 0, 1, 100, 190, 400, 900, 20000):
        rounds: Rounds = []
        found = find_quality(payloads(sizes, rounds), limit, lowest, highest, estimate(sizes))
        tried = [quality for pair in rounds for quality in pair]
        assert all(lowest <= q <= highest for q in tried)
        fitting = [q for q in range(lowest, highest + 1) if sizes[q] <= limit]
        assert found.quality == (fitting[-1] if fitting else None)
        if found.quality is None:
            assert lowest in tried


def test_generous_budget_takes_one_pass() -> None:
    sizes = curve(0.018, 90, 0)
    rounds: Rounds = []
    found = find_quality(payloads(sizes, rounds), 10**6, 0, HIGHEST, estimate(sizes))
    assert rounds == [[HIGHEST]]
    assert found.quality == HIGHEST


def test_empty_payloads_are_sizes_too() -> None:
    sizes = np.zeros(HIGHEST + 1, int)
    found = find_quality(payloads(sizes, []), 0, 0, HIGHEST, estimate(curve(0.018, 90, 0)))
    assert found.quality == HIGHEST
    assert found.payload == b""


def test_estimate_rises_and_follows_the_latents() -> None:
    random = np.random.default_rng(2)

    def steps(quality: int) -> np.ndarray:
        return np.full((16, 1, 1), 8.0 * math.exp(-0.015 * quality), np.float32)

    small = random.laplace(0.0, 1.0, (16, 12, 10)).astype(np.float32)
    large = np.tile(small, (1, 8, 8))
    flat = np.zeros_like(small)
    for latents in (small, large, flat):
        result = estimate_bytes(latents, steps, KNOTS)
        assert [quality for quality, _ in result] == list(KNOTS)
        values = np.array([value for _, value in result])
        assert np.all(np.diff(values) > 0)
        assert np.isfinite(values).all()
    ratio = estimate_bytes(large, steps, KNOTS)[6][1] - estimate_bytes(small, steps, KNOTS)[6][1]
    assert math.exp(ratio) == pytest.approx(64, rel=0.1)


def test_a_prior_is_of_channels_positions_and_files() -> None:
    latents = np.array([[1.0, -3.0, 0.0], [0.5, 0.0, 0.0]], np.float32)
    step = np.array([[2.0], [1.0]], np.float32)
    prior = RatePrior(np.array([0.5, 8.0]), 10.0, 0.25, 2.0)
    octaves = [math.log2(1 + 1) + math.log2(1 + 9), math.log2(1 + 1)]
    expected = 10 + 3 * 0.25 + 0.5 * octaves[0] + 8 * octaves[1]
    assert math.exp(prior.log_bytes(latents, step)) == pytest.approx(expected, rel=1e-6)
    twice = 2 * expected - 10  # the positions, not the file
    assert math.exp(prior.log_bytes(latents, step, 2.0)) == pytest.approx(twice, rel=1e-6)
    alike = RatePrior(np.array([1.0]), 0.0, 0.0, 2.0)
    assert math.exp(alike.log_bytes(latents, step)) == pytest.approx(sum(octaves), rel=1e-6)
    assert RatePrior(np.array([1.0]), -50.0, 0.0, 2.0).log_bytes(latents, step) == 0.0


@pytest.mark.parametrize("shape", [(96, 16, 16), (96, 32, 32), (96, 31, 17), (96, 128, 128)])
def test_a_part_of_the_positions_tells_of_all(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(3)
    latents = random.laplace(0.0, 1.0, shape).astype(np.float32)
    latents *= np.linspace(1, 3, shape[2], dtype=np.float32)  # columns differ
    steps = np.ones((96, 1, 1), np.float32)
    prior = RatePrior(random.uniform(0.1, 0.3, 96), 30.0, 0.1, 3.0)
    ((_, part),) = estimate_bytes(latents, lambda _: steps, [7], prior)
    whole = prior.log_bytes(latents.reshape(96, -1), steps[:, 0])
    assert part == pytest.approx(whole, abs=0.02)


def test_least_bytes_are_of_all_positions_and_grow_with_detail_and_quality() -> None:
    random = np.random.default_rng(2)
    fine = random.laplace(0.0, 0.02, (36, 64, 64)).astype(np.float32)
    found = least_bytes(fine, 13.0)
    expected = 0.062 * float(np.log2(1 + 64 * np.abs(fine) / 13.0).sum())
    assert found == pytest.approx(expected, rel=0.03)
    assert least_bytes(np.tile(fine, (1, 2, 2)), 13.0) == pytest.approx(4 * found, rel=0.05)
    assert least_bytes(2 * fine, 13.0) == pytest.approx(least_bytes(fine, 6.5), rel=1e-6)
    assert least_bytes(2 * fine, 13.0) > found > least_bytes(fine, 26.0)
    assert least_bytes(0 * fine, 13.0) == 0
