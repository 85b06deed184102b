"""The frequency split: a two-level orthonormal Haar transform of the opponent colours.

The one place that states the band order. Channels of the 48 bands at a quarter of the image size:

   0..2   ll2  (c0, c1, c2)        c0 = (R + G + B) / sqrt 3
   3..5   hl2                      c1 = (R - B) / sqrt 2
   6..8   lh2                      c2 = (R - 2 G + B) / sqrt 6
   9..11  hh2
  12..23  hl1, space-to-depth: 12 + 4 * colour + 2 * dy + dx
  24..35  lh1, likewise from 24
  36..47  hh1, likewise from 36

The first letter of a band is the filter along the width: a vertical edge lights `hl`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from . import _core

NUM_BANDS = 48
FINE_BANDS = slice(12, NUM_BANDS)  # of the first level of the transform
_COLOURS = np.array(
    [
        np.array([1, 1, 1]) / math.sqrt(3),
        np.array([1, 0, -1]) / math.sqrt(2),
        np.array([1, -2, 1]) / math.sqrt(6),
    ],
    np.float32,
)
_LINE = 64  # bytes of a cache line


def aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """New float32 memory that starts with a cache line, which numpy does not promise.

    Bands that start elsewhere take up to twice as long to merge.
    """
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(np.float32).reshape(shape)


def split_bands(
    image: NDArray[np.uint8], *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Split an image into its two-level Haar sub-bands.

    Args:
      image: uint8 RGB [H, W, 3], C-contiguous, any size; padded right and below by symmetric
        reflection to H', W', multiples of 16.
      out: where to put the result, of its shape and dtype and C-contiguous; a new array without it.
        Frames of a camera are split faster into memory that was used before.
    Returns:
      float32 [48, H'/4, W'/4] of pixels mapped to -1..1 (an orthonormal transform).
    Raises:
      ValueError: not uint8, not three channels, or empty; `out` does not fit or is read-only.
    """
    return _core.split_bands(image, out)


def merge_bands(
    bands: NDArray[np.float32], height: int, width: int, *, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Undo `split_bands`; exact when the bands are untouched.

    Args:
      bands: float32 [48, h, w], each of the 48 C-contiguous.
      height, width: size to crop to, in pixels; at most 4 h and 4 w.
      out: as in `split_bands`.
    Returns:
      uint8 RGB [height, width, 3], rounded half to even and clamped.
    Raises:
      ValueError: wrong dtype or shape, or a size that the bands do not cover; `out` does not fit or
        is read-only.
    """
    return _core.merge_bands(bands, height, width, out)


def split_gradient(gradient: NDArray[np.float32]) -> NDArray[np.float32]:
    """The gradient of the bands that `merge_bands` makes a picture of, of that of the picture.

    Args:
      gradient: float32 [H, W, 3], of a picture in 0..255.
    Returns:
      float32 [48, H'/4, W'/4] as of `split_bands`; what lies beyond the picture has none.
    """
    padded = np.pad(gradient, ((0, -len(gradient) % 16), (0, -gradient.shape[1] % 16), (0, 0)))
    low, *high = _haar(np.moveaxis(padded @ (127.5 * _COLOURS.T), 2, 0))
    height, width = low.shape[1] // 2, low.shape[2] // 2
    apart = [b.reshape(3, height, 2, width, 2).transpose(0, 2, 4, 1, 3) for b in high]
    return np.concatenate([*_haar(low), *(b.reshape(12, height, width) for b in apart)])


def _haar(planes: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """ll, hl, lh, hh of planes [C, H, W], of half the size."""
    a, b = planes[:, ::2, ::2], planes[:, ::2, 1::2]
    c, d = planes[:, 1::2, ::2], planes[:, 1::2, 1::2]
    half = np.float32(0.5)
    signs = ((1, 1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, 1))
    return [half * (a + x * b + y * c + z * d) for x, y, z in signs]
