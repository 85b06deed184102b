"""Distances between an original and what was decoded: PSNR, SSIM, MS-SSIM and SSIMULACRA2.

SSIM as in Wang et al., "Image quality assessment: from error visibility to structural similarity",
IEEE TIP 2004, and its multi-scale form (Wang, Simoncelli, Bovik, Asilomar 2003), both on BT.601
luma with an 11 x 11 Gaussian window of sigma 1.5, over positions where the window fits.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fasdiff_edge.peers import Image, psnr

__all__ = ["has_ssimulacra2", "ms_ssim", "psnr", "ssim", "ssimulacra2"]

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(original: Image, image: Image) -> float:
    """Structural similarity of two uint8 RGB images of the same size, at most 1.

    Raises:
      ValueError: the shapes differ, or a side is under 11 pixels.
    """
    _check(original, image, _WINDOW)
    return _similarity(_luma(original), _luma(image))[0]


def ms_ssim(original: Image, image: Image) -> float:
    """Multi-scale structural similarity over five scales, 0..1; negative terms count as 0.

    Raises:
      ValueError: the shapes differ, or a side is under 176 pixels.
    """
    _check(original, image, _WINDOW << (len(_SCALE_WEIGHTS) - 1))
    x, y = _luma(original), _luma(image)
    product = 1.0
    for index, weight in enumerate(_SCALE_WEIGHTS):
        full, contrast = _similarity(x, y)
        last = index == len(_SCALE_WEIGHTS) - 1
        product *= max(full if last else contrast, 0.0) ** weight
        x, y = _halve(x), _halve(y)
    return product


def has_ssimulacra2() -> bool:
    """Whether the package ssimulacra2 is installed."""
    return importlib.util.find_spec("ssimulacra2") is not None


def ssimulacra2(original: Image, image: Image) -> float:
    """SSIMULACRA2 by the package of that name: 100 is identical, below 0 is very poor.

    Raises:
      ImportError: the package is not installed.
    """
    score = importlib.import_module("ssimulacra2").compute_ssimulacra2
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("original.png", "image.png")]
        for path, pixels in zip(paths, (original, image), strict=True):
            cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return float(score(*map(str, paths)))


def _check(original: Image, image: Image, smallest: int) -> None:
    if original.shape != image.shape:
        raise ValueError(f"shapes differ: {original.shape} and {image.shape}")
    if min(original.shape[:2]) < smallest:
        raise ValueError(f"sides must be at least {smallest} pixels, got {original.shape[:2]}")


def _luma(image: Image) -> NDArray[np.float64]:
    return np.asarray(image.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))


def _halve(x: NDArray[np.float64]) -> NDArray[np.float64]:
    height, width = (side // 2 * 2 for side in x.shape)
    x = x[:height, :width]
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4.0


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    border = _WINDOW // 2
    blurred = cv2.GaussianBlur(x, (_WINDOW, _WINDOW), _SIGMA)
    return np.asarray(blurred[border:-border, border:-border], dtype=np.float64)


def _similarity(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Means of the whole index and of its contrast-structure term."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    contrast = (2.0 * covariance + _C2) / (var_x + var_y + _C2)
    luminance = (2.0 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return float(np.mean(luminance * contrast)), float(np.mean(contrast))
