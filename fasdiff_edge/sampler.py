"""The few-step sampler: rectified flow (Liu et al., ICLR 2023) with a dial for realism.

With D the student, c = (prompt, s_hat, quality, residual) the condition, rho the realism, eps unit
normal noise, and all bands divided by their typical deviations:

  x_1      = rho eps
  x_hat_0  = D(x_t, t; c, rho)
  x_t'     = (t' / t) x_t + (1 - t' / t) x_hat_0       from t_1 = 1 down to t_{N + 1} = 0

rho = 0 gives the posterior mean, faithful and soft, in one evaluation whatever N is, since nothing
is drawn that later steps could refine; rho = 1 a sharp sample. The network is a
function argument; what is sampled and what samples it do not know each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prompt:
    """What conditions the student; float32, all with a leading axis of 1.

    Attributes:
      visual: [1, Cy + Cz, hy, wy], the visual prompt: y_hat and z_hat.
      s_hat: [1, S], the low-frequency semantics.
      quality: [1], 0..1, how finely y was quantised.
      residual: [1, R, hy, wy], what the base leaves of the image; None where it is not coded.
    """

    visual: Array
    s_hat: Array
    quality: Array
    residual: Array | None


@dataclass(frozen=True)
class Schedule:
    """The times of a sampler, and the units of its noise.

    Attributes:
      num_steps: N, evaluations of the student.
      shift: over 1 spends more of the steps near t = 1: t' = shift t / (1 + (shift - 1) t)
        (Esser et al., ICML 2024, equation 23).
      deviations: float32 [48], the typical standard deviation of each band.
    """

    num_steps: int
    shift: float
    deviations: Array

    def times(self) -> list[float]:
        """t_1 = 1 > t_2 > ... > t_{N + 1} = 0."""
        even = (1.0 - i / self.num_steps for i in range(self.num_steps + 1))
        return [self.shift * t / (1.0 + (self.shift - 1.0) * t) for t in even]


Student = Callable[[Prompt, Array, Array, Array], Array]


def sample(
    student: Student, prompt: Prompt, noise: Array, realism: float, schedule: Schedule
) -> Array:
    """Draw the bands of an image.

    Args:
      student: (prompt, x_t, t, realism) -> bands, all with a leading axis of 1.
      prompt: what was decoded.
      noise: float32 [48, 4 hy, 4 wy], unit normal.
      realism: 0..1.
    Returns:
      float32 [48, 4 hy, 4 wy].
    """
    rho = np.array([realism], np.float32)
    deviations = schedule.deviations[:, None, None]
    x_t = noise[None] * rho
    times = schedule.times() if realism > 0 else [1.0, 0.0]
    for t, after in zip(times[:-1], times[1:], strict=True):
        bands = student(prompt, x_t, np.array([t], np.float32), rho)
        if after:
            keep = np.float32(after / t)
            x_t = keep * x_t + (1 - keep) * (bands / deviations)
    drawn: Array = bands[0]
    return drawn
