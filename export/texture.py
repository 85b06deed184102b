"""Filters of pictures that keep the grid of the bands out of what is decoded.

Textures, drawn at realism above 0, are noise of two octaves, each in four directions. Noise that is
made larger or smaller band by band has the bands' grid: a Haar wavelet ends where its block ends,
and the eye sees a weave of 4 pixels. So white noise is filtered as a picture would be, and the
student says how much of each texture there is at every place.

And where a network of bands is to give a smooth picture, what it gets wrong it gets wrong in every
block alike: lines 4 pixels apart, and 8 where it works at H/8. They are a mean over blocks of what
differs within a block, which photographs do not have, and are taken off (`grid_filter`,
`grid_window`, `grid_gain`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OCTAVES = (0.36, 0.18)  # middle of each, cycles per pixel
DIRECTIONS = 4
TEXTURES = len(OCTAVES) * DIRECTIONS
REACH = 4  # pixels to each side: with blocks of 4 pixels, a block and its neighbours
_ENERGY = 0.01  # of each filter: as much of one texture as 1 is noise of some 7 grey levels
_WIDTH = 0.4  # of an octave: standard deviation of the logarithm of its frequencies
_SIZE = 64  # of the plane of frequencies that they are drawn in

GRID = 8  # pixels, after which it begins again
GRID_LIMIT = 2.0  # grey levels: what differs by more is an edge, and no part of a grid
_GRID_BLUR = 1.75  # pixels: what is smoother is no part of it either
_GRID_BLOCKS = 7  # to a side, that the mean is of


def grid_filter() -> NDArray[np.float32]:
    """What takes the smooth part from a picture, [2 REACH + 1, 2 REACH + 1]: 1 less a Gaussian."""
    along = np.exp(-np.square(np.arange(-REACH, REACH + 1)) / (2 * _GRID_BLUR**2))
    blur = np.outer(along, along) / np.square(along.sum())
    blur[REACH, REACH] -= 1
    return (-blur).astype(np.float32)


def grid_gain() -> NDArray[np.float32]:
    """What undoes `grid_filter` in a grid, [GRID^2, GRID^2], pixels of a block as rows of it.

    A grid repeats, so that the filter multiplies each of its frequencies. Its mean is no grid: 0.
    """
    index = np.arange(-REACH, REACH + 1) % GRID
    wrapped = np.zeros((GRID, GRID))
    np.add.at(wrapped, np.ix_(index, index), grid_filter())
    response = np.fft.fft2(wrapped).real
    response[0, 0] = np.inf
    units = np.eye(GRID**2).reshape(-1, GRID, GRID)
    undone = np.fft.ifft2(np.fft.fft2(units) / response).real
    return undone.reshape(GRID**2, -1).T.astype(np.float32)


def grid_window() -> NDArray[np.float32]:
    """How much each block around one counts in the mean, [7, 7]; its sum is 1."""
    along = np.hanning(_GRID_BLOCKS + 2)[1:-1]
    window = np.outer(along, along)
    return (window / window.sum()).astype(np.float32)


def texture_filters() -> NDArray[np.float32]:
    """The filters, [TEXTURES, 2 REACH + 1, 2 REACH + 1], of one energy and without a mean.

    Log-Gabor along the radius (Field, J. Opt. Soc. Am. A 4, 1987) and the third power of a cosine
    around it: squares of four such lobes sum to the same in every direction (steerable pyramid,
    Simoncelli and Freeman, ICIP 1995).
    """
    u, v = np.meshgrid(*[np.fft.fftfreq(_SIZE)] * 2)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    radius[0, 0] = 1e-9
    near = slice(_SIZE // 2 - REACH, _SIZE // 2 + REACH + 1)
    window = np.outer(*[np.hanning(2 * REACH + 3)[1:-1]] * 2)
    found = []
    for middle in OCTAVES:
        along = np.exp(-(np.log(radius / middle) ** 2) / (2 * _WIDTH**2))
        for index in range(DIRECTIONS):
            lobe = np.abs(np.cos(angle - np.pi * index / DIRECTIONS)) ** 3
            kernel = np.fft.fftshift(np.fft.ifft2(along * lobe).real)[near, near] * window
            kernel -= window * kernel.sum() / window.sum()
            found.append(kernel * np.sqrt(_ENERGY / np.square(kernel).sum()))
    return np.stack(found).astype(np.float32)
