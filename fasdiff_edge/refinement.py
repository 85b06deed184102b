"""What an encoder can still do for one image: let its latents follow the gradient.

The analysis network answers in one look for all images; for this one image, other latents give
less error for the same bytes. With D the squared error of the decoded image, R the bits, y the
latents in symbols, a pass is

  y <- y - rate (dD/dy R / D + kappa dR/dy)

so that both terms are in bits per symbol and neither image nor budget sets the units. A decoder
cannot tell; bytes and quality stay about what they were. (Campos et al., CVPR Workshops 2019, and
Yang et al., NeurIPS 2020, who go on for thousands of passes: identity, which squared error does not
see, is lost long before.) With a recogniser (`recognition`), whose distance is L, dD/dy / D becomes
dD/dy / D + LIKENESS dL/dy / L. Networks and entropy model are function arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .entropy_model import Levels, Rates

Array = NDArray[np.float32]

# of the logarithm of a likeness against that of the squared error. More costs picture and brings
# no more likeness, as a recogniser that had no part in it sees it
LIKENESS = 0.5
_KAPPA = 1.0  # of bits against error: about as one falls while the other rises with quality
_CONTROL, _MOST = 16, 16.0  # power of bits over budget by which it grows, and how far at most
_PATH, _LARGEST_RATE = 0.032, 0.005  # rates of all passes together; of a pass
_LARGEST_STEP = 0.25  # symbols


def refine(
    y: Array,
    rates: Callable[[Array], Rates],
    error: Callable[[Levels], tuple[float, Array]],
    num_passes: int,
    room: float | None = None,
) -> Array:
    """Refine latents, float32 [C, hy, wy] in symbols.

    Args:
      rates: of such latents.
      error: of what the decoder will have: D and dD/dy.
      num_passes: evaluations of both.
      room: bits to come to beyond those of the latents as they are, which make the budget; may be
        negative. None: about what they are.
    Returns:
      The last latents that are within the budget, or else the last.
    """
    first_rate = min(_LARGEST_RATE, _PATH / max(1, num_passes))
    best, budget = None, None
    for index in range(num_passes):
        told = rates(y)
        if index == 0 and room is not None:
            budget = max(1.0, told.bits + room)
        if budget is not None and told.bits <= budget:
            best = y
        distortion, slope = error(told.decoded)
        if not (distortion > 0 and told.bits > 0):
            break  # nothing to gain
        kappa = _KAPPA
        if budget is not None:
            kappa *= float(np.clip((told.bits / budget) ** _CONTROL, 1 / _MOST, _MOST))
        wanted = slope * np.float32(told.bits / distortion) + np.float32(kappa) * told.slope
        step = np.float32(first_rate * (1 - index / num_passes)) * wanted
        y = y - np.clip(np.nan_to_num(step), -_LARGEST_STEP, _LARGEST_STEP)
    if best is None or budget is None or rates(y).bits <= budget:
        return y
    return best
