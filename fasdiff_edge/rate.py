"""From a budget in bytes to a quality: a search over the entropy stage alone.

The analysis graph runs once per scale; only rounding and coding repeat. Bytes grow about
exponentially with quality, so the search is a secant on log bytes, started from a cheap estimate
made from the latents and kept honest by a bracket: it ends when a quality fits and the next one
does not. Two qualities are looked at in a round, which two cores code side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_ESTIMATE_SAMPLES = 16384  # latents looked at
_PER_OCTAVE, _FINE = 0.062, 64  # see `least_bytes`
_SECANT_ROUNDS = 5  # before the search falls back to halving the bracket
_FIRST_GAP = 6  # between the two qualities of the first round
_FAR = 6  # steps from what is known after which the gap grows by one


@dataclass
class Search:
    """The outcome of `find_quality`.

    Attributes:
      quality: the quality found, in quarter steps; None if nothing fits.
      payload: its bytes; empty if nothing fits.
      sizes: payload bytes of every quality that was tried.
    """

    quality: int | None = None
    payload: bytes = b""
    sizes: dict[int, int] = field(default_factory=dict)


def find_quality(
    code: Callable[[Sequence[int]], Sequence[bytes]],
    limit: int,
    lowest: int,
    highest: int,
    estimate: Sequence[tuple[int, float]],
) -> Search:
    """Find the largest quality whose payload fits.

    Args:
      code: payloads at one or two qualities, rising.
      limit: bytes that the payload may have; may be negative (nothing fits then).
      lowest, highest: inclusive range of quality, in quarter steps.
      estimate: (quality, log of predicted bytes), at least two, both strictly rising. Only its
        shape matters: each payload seen shifts it.
    Returns:
      A quality that fits and whose successor was seen not to fit (or is over `highest`). Bytes
      need not be monotone in quality; `lowest` is always tried before giving up.
    """
    at = np.array([quality for quality, _ in estimate], dtype=np.float64)
    prior = np.array([value for _, value in estimate], dtype=np.float64)
    target = math.log(max(limit, 1))
    search = Search()
    fits, fails = lowest - 1, highest + 1
    offsets: dict[int, float] = {}  # log bytes seen, less predicted, by quality
    rounds, miss = 0, 0  # miss: how many rounds running have left the edge above (or below: < 0)
    while fails - fits > 1:
        # Shift the prediction by what was seen, linearly between the ends of the bracket.
        ends = [end for end in (fits, fails) if end in offsets]
        shift = np.interp(at, ends, [offsets[end] for end in ends]) if ends else 0.0
        quality, gap = (fits + fails) // 2, 1
        if rounds < _SECANT_ROUNDS:
            quality = math.floor(_solve(at, prior + shift, target))
            far = abs(quality - ends[0]) if len(ends) == 1 else 0
            gap = 1 + far // _FAR if ends else _FIRST_GAP
            # After misses on one side look further to the other, to close the bracket.
            gap <<= max(0, abs(miss) - 1)
            quality += (miss > 0) * gap // 2 - (miss < 0) * gap // 2
        pair = {quality - gap // 2, quality - gap // 2 + gap}
        pair = {min(max(q, fits + 1), fails - 1) for q in pair}
        if pair == {fits + 1} and fits + 2 < fails:
            pair.add(fits + 2)
        rounds += 1
        fitting = 0
        for q, payload in zip(sorted(pair), code(sorted(pair)), strict=True):
            search.sizes[q] = len(payload)
            offsets[q] = math.log(max(len(payload), 1)) - float(np.interp(q, at, prior))
            if len(payload) <= limit:
                search.quality, search.payload = q, payload
                fits, fitting = q, fitting + 1
        fails = min((q for q in pair if fits < q), default=fails)
        if 0 < fitting < len(pair):
            miss = 0
        elif fitting:
            miss = max(miss, 0) + 1
        else:
            miss = min(miss, 0) - 1
    return search


@dataclass(frozen=True)
class RatePrior:
    """Bytes of latents v: sum over channels of w_c sum log2(1 + (scale v / step)^2), and constants.

    The price of normal variables of their own energies; a model's manifest has what was fitted to
    training faces (`export/fit_rate.py`). For nine faces in ten the base's bytes are within a tenth
    of it at any quality.

    Attributes:
      weights: float64 [C], or [1] for all channels alike; bytes.
      constant: bytes of a file; per_position: bytes; scale: over 0.
    """

    weights: NDArray[np.float64]
    constant: float
    per_position: float
    scale: float

    def log_bytes(
        self, latents: NDArray[np.float32], step: NDArray[np.float32], share: float = 1.0
    ) -> float:
        """Of [C, N] latents, with steps [C, 1]: one in `share` of the positions there are."""
        octaves = np.log2(1.0 + np.square(latents * (self.scale / step))).sum(1, dtype=np.float64)
        of_positions = float(np.sum(self.weights * octaves))
        of_positions += self.per_position * latents.shape[1]
        return math.log(max(1.0, self.constant + share * of_positions))


# of a model that says nothing
OF_BASE = RatePrior(np.array([0.113 / 8]), 1.0, 0.0, 8.0)
OF_RESIDUAL = RatePrior(np.array([2.1 / 8]), 1.0, 0.0, 1.0)


def estimate_bytes(
    latents: NDArray[np.float32],
    steps: Callable[[int], NDArray[np.float32]],
    qualities: Sequence[int],
    prior: RatePrior = OF_BASE,
) -> list[tuple[int, float]]:
    """Predict log payload bytes from the latents alone, without the entropy model.

    Args:
      latents: float32 [C, hy, wy], before the gain; a part of the positions is looked at.
      steps: float32 [C, 1, 1] at a quality.
      qualities: where to predict, rising.
    Returns:
      (quality, log bytes), strictly rising.
    """
    sample, share = _sample(latents)
    result: list[tuple[int, float]] = []
    for quality in qualities:
        value = prior.log_bytes(sample, steps(quality)[:, 0], share)
        if result:
            value = max(value, result[-1][1] + 1e-3)
        result.append((quality, value))
    return result


def least_bytes(fine: NDArray[np.float32], step: float) -> float:
    """About the fewest bytes that a picture takes, from one of half its sides.

    Measured on photographs of faces and of other things, at the least qualities of their sizes.

    Args:
      fine: float32 [C, h, w], the smaller picture's bands of the first level; a part of the
        positions is looked at.
      step: mean step of the latents at the quality.
    """
    sample, share = _sample(fine)
    octaves = np.log2(1 + np.abs(sample) * (_FINE / step)).sum(dtype=np.float64)
    return _PER_OCTAVE * share * float(octaves)


def _sample(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Some of the values [C, h, w], as [C, N], of one in so many positions."""
    # an odd stride meets all columns of an even number of them
    stride = max(1, values.size // _ESTIMATE_SAMPLES) | 1
    sample = values.reshape(len(values), -1)[:, ::stride]
    return sample, values[0].size / sample.shape[1]


def _solve(at: NDArray[np.float64], log_bytes: NDArray[np.float64], target: float) -> float:
    """Quality at which the prediction meets `target`, extrapolating with the end slopes."""
    rising = np.maximum.accumulate(log_bytes + 1e-6 * np.arange(log_bytes.size))
    if target <= rising[0]:
        left, right = 0, 1
    elif target >= rising[-1]:
        left, right = -2, -1
    else:
        return float(np.interp(target, rising, at))
    slope = (rising[right] - rising[left]) / (at[right] - at[left])
    end = 0 if target <= rising[0] else -1
    return float(at[end] + (target - rising[end]) / max(float(slope), 1e-3))
