"""The few-step sampler against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from export.diffusion import times as trained_times
from fasdiff_edge.sampler import Array, Prompt, Schedule, sample

EMPTY = np.zeros((1, 1, 1, 1), np.float32)
PROMPT = Prompt(visual=EMPTY, s_hat=EMPTY[0, 0], quality=EMPTY[0, 0, 0], residual=EMPTY)
DEVIATIONS = np.linspace(0.1, 2.0, 48).astype(np.float32)


def noise() -> Array:
    return np.random.default_rng(0).standard_normal((48, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_times_fall_from_one_to_zero(num_steps: int) -> None:
    even = Schedule(num_steps, 1.0, DEVIATIONS).times()
    assert even == pytest.approx(np.linspace(1, 0, num_steps + 1))
    shifted = Schedule(num_steps, 1.5, DEVIATIONS).times()
    assert shifted[0] == 1 and shifted[-1] == 0 and sorted(shifted, reverse=True) == shifted
    assert all(a > b for a, b in zip(shifted[1:-1], even[1:-1], strict=True))
    assert shifted == pytest.approx(trained_times(num_steps, 1.5))


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_a_student_that_knows_is_followed_along_the_line(num_steps: int) -> None:
    clean = np.random.default_rng(1).standard_normal((48, 4, 4)).astype(np.float32)
    schedule, seen = Schedule(num_steps, 1.5, DEVIATIONS), []

    def student(prompt: Prompt, x_t: Array, t: Array, realism: Array) -> Array:
        assert prompt is PROMPT and realism.tolist() == [pytest.approx(0.4)]
        line = (1 - t) * clean + t * np.float32(0.4) * noise()
        np.testing.assert_allclose(x_t[0], line, atol=1e-6)
        seen.append(float(t[0]))
        return (clean * DEVIATIONS[:, None, None])[None]

    bands = sample(student, PROMPT, noise(), 0.4, schedule)
    np.testing.assert_array_equal(bands, clean * DEVIATIONS[:, None, None])
    assert bands.dtype == np.float32
    assert seen == pytest.approx(schedule.times()[:-1])


def test_without_realism_noise_says_nothing_and_one_evaluation_is_enough() -> None:
    times = []

    def student(prompt: Prompt, x_t: Array, t: Array, realism: Array) -> Array:
        times.append(t.tolist())
        return x_t + 1

    found = [
        sample(student, PROMPT, n, 0.0, Schedule(4, 1.5, DEVIATIONS)) for n in (noise(), -noise())
    ]
    np.testing.assert_array_equal(*found)
    assert times == [[1.0], [1.0]]
