"""The frequency split and merge as Triton kernels, uint8 pixels to bands and back in one launch.

The same arithmetic as `fasdiff_edge.frequency`, whose docstring states the order of the bands; a
program takes a run of 4x4 pixel blocks of one row, reads each pixel once and writes each band once.
Products and sums are not fused, here as in the C++, so that the bands agree between machines.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..frequency import NUM_BANDS

BLOCK = 128  # 4x4 pixel blocks of a program
_PAD = 16  # sides are padded to multiples of this

_S3 = tl.constexpr(0.5773502691896258)  # 1 / sqrt 3
_S2 = tl.constexpr(0.7071067811865476)  # 1 / sqrt 2
_S6 = tl.constexpr(0.4082482904638631)  # 1 / sqrt 6
# Adding and subtracting it rounds a float32 below 2^22 to an integer, half to even.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def _place(image, bands, height, width, rows, columns, BLOCK: tl.constexpr):
    """Where a program works, in the grid (blocks of a row, rows, images).

    Returns the image, the bands at the program's blocks, the size of a band, the pixels (y, x) at
    the corners of the blocks, and which blocks there are.
    """
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    number = tl.program_id(2).to(tl.int64)
    plane = rows.to(tl.int64) * columns
    image += number * height * width * 3
    bands += number * 48 * plane + row * columns + column
    y = tl.full((BLOCK,), 0, tl.int32) + 4 * row
    return image, bands, plane, y, 4 * column, column < columns


@triton.jit
def _reflect(at, side):
    """Half-sample symmetric reflection of an index into 0 .. side - 1."""
    at = at % (2 * side)
    return tl.where(at < side, at, 2 * side - 1 - at)


@triton.jit
def _pixel(image, y, x, height, width, mask):
    """Opponent colours of the pixels (y, x), on the scale of -1..1."""
    at = image + (_reflect(y, height) * width + _reflect(x, width)) * 3
    r = (tl.load(at, mask=mask, other=0).to(tl.float32) - 127.5) * (1.0 / 127.5)
    g = (tl.load(at + 1, mask=mask, other=0).to(tl.float32) - 127.5) * (1.0 / 127.5)
    b = (tl.load(at + 2, mask=mask, other=0).to(tl.float32) - 127.5) * (1.0 / 127.5)
    return (r + g + b) * _S3, (r - b) * _S2, (r - 2.0 * g + b) * _S6


@triton.jit
def _haar(a, b, c, d):
    """(ll, hl, lh, hh) of 2x2 blocks a b / c d; its own inverse."""
    return (
        (a + b + c + d) * 0.5,
        (a - b + c - d) * 0.5,
        (a + b - c - d) * 0.5,
        (a - b - c + d) * 0.5,
    )


@triton.jit
def _store_level1(bands, plane, sub, hl, lh, hh, colour: tl.constexpr, mask):
    tl.store(bands + (12 + 4 * colour + sub) * plane, hl, mask=mask)
    tl.store(bands + (24 + 4 * colour + sub) * plane, lh, mask=mask)
    tl.store(bands + (36 + 4 * colour + sub) * plane, hh, mask=mask)


@triton.jit
def _split_quarter(image, bands, plane, y, x, height, width, sub: tl.constexpr, mask):
    """Level 1 of one 2x2 block, stored; returns ll1 of the three colours."""
    a0, a1, a2 = _pixel(image, y, x, height, width, mask)
    b0, b1, b2 = _pixel(image, y, x + 1, height, width, mask)
    c0, c1, c2 = _pixel(image, y + 1, x, height, width, mask)
    d0, d1, d2 = _pixel(image, y + 1, x + 1, height, width, mask)
    ll0, hl, lh, hh = _haar(a0, b0, c0, d0)
    _store_level1(bands, plane, sub, hl, lh, hh, 0, mask)
    ll1, hl, lh, hh = _haar(a1, b1, c1, d1)
    _store_level1(bands, plane, sub, hl, lh, hh, 1, mask)
    ll2, hl, lh, hh = _haar(a2, b2, c2, d2)
    _store_level1(bands, plane, sub, hl, lh, hh, 2, mask)
    return ll0, ll1, ll2


@triton.jit
def _split_level2(bands, plane, colour: tl.constexpr, a, b, c, d, mask):
    ll, hl, lh, hh = _haar(a, b, c, d)
    tl.store(bands + colour * plane, ll, mask=mask)
    tl.store(bands + (3 + colour) * plane, hl, mask=mask)
    tl.store(bands + (6 + colour) * plane, lh, mask=mask)
    tl.store(bands + (9 + colour) * plane, hh, mask=mask)


# Sizes are not compiled in: one kernel for all of them.
_SIZES = ["height", "width", "rows", "columns"]


@triton.jit(do_not_specialize=_SIZES)
def split_kernel(image, bands, height, width, rows, columns, BLOCK: tl.constexpr):
    """uint8 image [B, height, width, 3] -> float32 bands [B, 48, rows, columns].

    Grid: (blocks of a row, rows, B).
    """
    image, bands, plane, y, x, mask = _place(image, bands, height, width, rows, columns, BLOCK)
    a0, a1, a2 = _split_quarter(image, bands, plane, y, x, height, width, 0, mask)
    b0, b1, b2 = _split_quarter(image, bands, plane, y, x + 2, height, width, 1, mask)
    c0, c1, c2 = _split_quarter(image, bands, plane, y + 2, x, height, width, 2, mask)
    d0, d1, d2 = _split_quarter(image, bands, plane, y + 2, x + 2, height, width, 3, mask)
    _split_level2(bands, plane, 0, a0, b0, c0, d0, mask)
    _split_level2(bands, plane, 1, a1, b1, c1, d1, mask)
    _split_level2(bands, plane, 2, a2, b2, c2, d2, mask)


@triton.jit
def _load_level2(bands, plane, colour: tl.constexpr, mask):
    """ll1 of the four 2x2 blocks."""
    ll = tl.load(bands + colour * plane, mask=mask, other=0.0)
    hl = tl.load(bands + (3 + colour) * plane, mask=mask, other=0.0)
    lh = tl.load(bands + (6 + colour) * plane, mask=mask, other=0.0)
    hh = tl.load(bands + (9 + colour) * plane, mask=mask, other=0.0)
    return _haar(ll, hl, lh, hh)


@triton.jit
def _merge_colour(bands, plane, ll, sub: tl.constexpr, colour: tl.constexpr, mask):
    """The four pixels of one 2x2 block, one colour."""
    hl = tl.load(bands + (12 + 4 * colour + sub) * plane, mask=mask, other=0.0)
    lh = tl.load(bands + (24 + 4 * colour + sub) * plane, mask=mask, other=0.0)
    hh = tl.load(bands + (36 + 4 * colour + sub) * plane, mask=mask, other=0.0)
    return _haar(ll, hl, lh, hh)


@triton.jit
def _store_channel(at, value, mask):
    value = value * 127.5 + 127.5
    value = tl.where(value != value, 0.0, value)  # what is not a number becomes 0
    value = tl.minimum(tl.maximum(value, 0.0), 255.0)
    tl.store(at, ((value + _ROUND) - _ROUND).to(tl.uint8), mask=mask)


@triton.jit
def _store_pixel(image, y, x, height, width, c0, c1, c2, mask):
    mask = mask & (y < height) & (x < width)
    at = image + (y * width + x) * 3
    _store_channel(at, c0 * _S3 + c1 * _S2 + c2 * _S6, mask)
    _store_channel(at + 1, c0 * _S3 - 2.0 * c2 * _S6, mask)
    _store_channel(at + 2, c0 * _S3 - c1 * _S2 + c2 * _S6, mask)


@triton.jit
def _merge_quarter(
    image, bands, plane, y, x, height, width, ll0, ll1, ll2, sub: tl.constexpr, mask
):
    a0, b0, c0, d0 = _merge_colour(bands, plane, ll0, sub, 0, mask)
    a1, b1, c1, d1 = _merge_colour(bands, plane, ll1, sub, 1, mask)
    a2, b2, c2, d2 = _merge_colour(bands, plane, ll2, sub, 2, mask)
    _store_pixel(image, y, x, height, width, a0, a1, a2, mask)
    _store_pixel(image, y, x + 1, height, width, b0, b1, b2, mask)
    _store_pixel(image, y + 1, x, height, width, c0, c1, c2, mask)
    _store_pixel(image, y + 1, x + 1, height, width, d0, d1, d2, mask)


@triton.jit(do_not_specialize=_SIZES)
def merge_kernel(bands, image, height, width, rows, columns, BLOCK: tl.constexpr):
    """float32 bands [B, 48, rows, columns] -> uint8 image [B, height, width, 3]; grid as split."""
    image, bands, plane, y, x, mask = _place(image, bands, height, width, rows, columns, BLOCK)
    a0, b0, c0, d0 = _load_level2(bands, plane, 0, mask)
    a1, b1, c1, d1 = _load_level2(bands, plane, 1, mask)
    a2, b2, c2, d2 = _load_level2(bands, plane, 2, mask)
    _merge_quarter(image, bands, plane, y, x, height, width, a0, a1, a2, 0, mask)
    _merge_quarter(image, bands, plane, y, x + 2, height, width, b0, b1, b2, 1, mask)
    _merge_quarter(image, bands, plane, y + 2, x, height, width, c0, c1, c2, 2, mask)
    _merge_quarter(image, bands, plane, y + 2, x + 2, height, width, d0, d1, d2, 3, mask)


def _band_side(side: int) -> int:
    return (side + _PAD - 1) // _PAD * (_PAD // 4)


def split_bands(images: Tensor) -> Tensor:
    """Split images into their two-level Haar sub-bands.

    Args:
      images: uint8 RGB [B, H, W, 3], contiguous; any size of at least one pixel.
    Returns:
      float32 [B, 48, H', W'] on the same device, as `fasdiff_edge.frequency.split_bands`.
    Raises:
      ValueError: not such a tensor.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], got {images.dtype} {[*images.shape]}")
    if images.numel() == 0 or not images.is_contiguous():
        raise ValueError("images must be contiguous, and have a pixel")
    count, height, width, _ = images.shape
    rows, columns = _band_side(height), _band_side(width)
    bands = images.new_empty((count, NUM_BANDS, rows, columns), dtype=torch.float32)
    grid = (triton.cdiv(columns, BLOCK), rows, count)
    split_kernel[grid](
        images, bands, height, width, rows, columns, BLOCK=BLOCK, enable_fp_fusion=False
    )
    return bands


def merge_bands(bands: Tensor, height: int, width: int) -> Tensor:
    """Undo `split_bands`.

    Args:
      bands: float32 [B, 48, h, w], contiguous.
      height, width: of the images, whose bands have h x w.
    Returns:
      uint8 RGB [B, height, width, 3] on the same device, rounded half to even and clamped.
    Raises:
      ValueError: not such a tensor, or another size.
    """
    if bands.dtype != torch.float32 or bands.ndim != 4 or bands.shape[1] != NUM_BANDS:
        raise ValueError(f"bands must be float32 [B, 48, h, w], got {bands.dtype} {[*bands.shape]}")
    if height < 1 or width < 1 or bands.shape[2:] != (_band_side(height), _band_side(width)):
        raise ValueError(
            f"bands of {[*bands.shape[2:]]} are not those of {height} x {width} pixels"
        )
    if bands.numel() == 0 or not bands.is_contiguous():
        raise ValueError("bands must be contiguous, and of one image at least")
    count, _, rows, columns = bands.shape
    images = bands.new_empty((count, height, width, 3), dtype=torch.uint8)
    grid = (triton.cdiv(columns, BLOCK), rows, count)
    merge_kernel[grid](
        bands, images, height, width, rows, columns, BLOCK=BLOCK, enable_fp_fusion=False
    )
    return images
