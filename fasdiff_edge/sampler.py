"""The few-step sampler. The models of this version take one step: noise in, bands out.

With D the student, c = (prompt, s_hat, quality) the condition and n unit normal noise:

  x_hat = D(n; c, realism)          realism 0: the posterior mean;  1: a sharp sample

The network is a function argument; what is sampled and what samples it do not know each other.
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
      residual: [1, R, hy, wy], what the base leaves of the image; zero where it is not coded.
    """

    visual: Array
    s_hat: Array
    quality: Array
    residual: Array


Student = Callable[[Prompt, Array, Array], Array]


def sample(student: Student, prompt: Prompt, noise: Array, realism: float) -> Array:
    """Draw the bands of an image.

    Args:
      student: (prompt, noise, realism) -> bands, all with a leading axis of 1.
      prompt: what was decoded.
      noise: float32 [48, 4 hy, 4 wy], unit normal.
      realism: 0..1.
    Returns:
      float32 [48, 4 hy, 4 wy].
    """
    dial = np.array([realism], np.float32)
    bands: Array = student(prompt, noise[None], dial)[0]
    return bands
