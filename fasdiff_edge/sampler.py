"""The few-step sampler. Version 1 models take one step: noise in, bands out.

With D the student, c = (y_hat, s_hat) the condition and n unit normal noise:

  x_hat = D(n; c, realism)          realism 0: the posterior mean;  1: a sharp sample

The network is a function argument; what is sampled and what samples it do not know each other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Student = Callable[[Array, Array, Array, Array], Array]


def sample(student: Student, y_hat: Array, s_hat: Array, noise: Array, realism: float) -> Array:
    """Draw the bands of an image.

    Args:
      student: (y_hat, s_hat, noise, realism) -> bands, all with a leading axis of 1.
      y_hat: float32 [Cy, hy, wy], the visual prompt.
      s_hat: float32 [S], the semantic vector.
      noise: float32 [48, 4 hy, 4 wy], unit normal.
      realism: 0..1.
    Returns:
      float32 [48, 4 hy, 4 wy].
    """
    dial = np.array([realism], np.float32)
    bands: Array = student(y_hat[None], s_hat[None], noise[None], dial)[0]
    return bands
