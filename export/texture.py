"""Filters of pictures that keep the grid of the bands out of what is decoded.

Textures, drawn at realism above 0, are noise of two octaves, each in four directions. Noise that is
made larger or smaller band by band has the bands' grid: a Haar wavelet ends where its block ends,
and the eye sees a weave of 4 pixels. So white noise is filtered as a picture would be, and the
student says how much of each texture there is at every place.

And where a network of bands is to give a smooth picture, what it gets wrong it gets wrong in every
block alike: lines 4 pixels apart, 8 where it works at H/8, and 16. They are a mean over blocks of
what differs within a block, which photographs do not have, and are taken off (`grid_filter`,
`grid_window`, `grid_gain`): those of up to 8 pixels from pixels, those of 16 from ll2. In hair and
cloth, of which few bytes tell little, they may be stronger than what an edge is told by: there they
are known by how much more alike blocks are than chance would have them.
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
COARSE = 4  # coefficients of ll2, after which the coarse grid does
GRID_LIMIT = 2.0  # grey levels: what differs by more is an edge, and no part of a grid
# Where blocks agree by more than chance, what is stronger is a grid of up to 8 pixels too: up to so
# many times what is usual around there, of which no more than so much counts (of GRID_LIMIT).
GRID_TEXTURE, GRID_MOST = 2.5, 8.0
GRID_SURE = 6.0  # times chance from which on that is certain; half of it is nothing
_GRID_BLUR = 1.75  # pixels: what is smoother is no part of it either
_GRID_BLOCKS = 7  # to a side, that the mean is of


def grid_filter() -> NDArray[np.float32]:
    """What takes the smooth part from a picture, [2 REACH + 1, 2 REACH + 1]: 1 less a Gaussian."""
    along = np.exp(-np.square(np.arange(-REACH, REACH + 1)) / (2 * _GRID_BLUR**2))
    blur = np.outer(along, along) / np.square(along.sum())
    blur[REACH, REACH] -= 1
    return (-blur).astype(np.float32)


def _response(kernel: NDArray[np.floating], size: int) -> NDArray[np.float64]:
    """What a symmetric kernel multiplies each frequency of a grid with, [size, size].

    A grid repeats, so that filters multiply its frequencies, of which there are as many as pixels.
    """
    index = (np.arange(len(kernel)) - len(kernel) // 2) % size
    wrapped = np.zeros((size, size))
    np.add.at(wrapped, np.ix_(index, index), kernel)
    return np.fft.fft2(wrapped).real


def _undoing(response: NDArray[np.float64]) -> NDArray[np.float32]:
    """The matrix [N, N] that undoes a response in a grid of N pixels, row by row."""
    size = len(response)
    units = np.eye(size**2).reshape(-1, size, size)
    undone = np.fft.ifft2(np.fft.fft2(units) / response).real
    return undone.reshape(size**2, -1).T.astype(np.float32)


def grid_gain() -> NDArray[np.float32]:
    """What undoes `grid_filter` in a grid, [GRID^2, GRID^2]. Its mean is no grid: 0."""
    response = _response(grid_filter(), GRID)
    response[0, 0] = np.inf
    return _undoing(response)


def coarse_gain() -> NDArray[np.float32]:
    """The same for ll2, [COARSE^2, COARSE^2], and for means of what `between` draws.

    Nothing is left of what begins again after GRID pixels already.
    """
    means = between().reshape(3, REACH, 3, REACH).mean((1, 3))
    response = _response(grid_filter(), COARSE) * _response(means, COARSE)
    response[::2, ::2] = np.inf
    return _undoing(response)


def between() -> NDArray[np.float32]:
    """What is drawn of a coefficient that lies between its neighbours, [12, 12] pixels: linear."""
    along = np.maximum(1 - np.abs(np.arange(3 * REACH) - 1.5 * REACH + 0.5) / REACH, 0)
    return np.outer(along, along).astype(np.float32)


def grid_window() -> NDArray[np.float32]:
    """How much each block around one counts in the mean, [7, 7]; its sum is 1."""
    along = np.hanning(_GRID_BLOCKS + 2)[1:-1]
    window = np.outer(along, along)
    return (window / window.sum()).astype(np.float32)


def grid_chance() -> float:
    """The share of its square that the mean of unlike blocks keeps, by `grid_window`."""
    return float(np.square(grid_window()).sum())


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
