"""A picture that shows what this codec and its peers make of an image at the same bytes.

One row a budget: the original, ours, then JPEG, WebP and AVIF, each with its bytes (of the whole
file), the scale it was coded at and its PSNR. What does not fit a budget is shown as the smallest
file that the codec can make, and labelled so. The same input gives the same sheet.

Needs Pillow, of the [demo] extra; importing this module without it raises `FasdiffError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np

from . import bitstream
from .api import Decoder, Encoder
from .errors import BudgetError
from .peers import Image, Peer, fit, psnr, standard_peers

import PIL.Image  # isort: skip  # after .peers, which explains it where it is missing
import PIL.ImageDraw  # isort: skip
import PIL.ImageFont  # isort: skip

_MAX_SIDE = 512  # pixels; larger images are shown shrunk
_MIN_WIDTH = 176  # pixels of a cell, so that its label fits
_GAP = 10
_FONT_SIZE = 13
_LINE = 17  # pixels a line of text
_PAPER, _INK, _GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True)
class Cell:
    """An image and the two lines above it; uint8 RGB [H, W, 3]."""

    image: Image
    title: str
    detail: str


@dataclass(frozen=True)
class Row:
    """A heading and the cells below it, left to right."""

    heading: str
    cells: Sequence[Cell]


def code(
    image: Image,
    budgets: Sequence[int],
    encoder: Encoder,
    decoder: Decoder,
    **options: Any,
) -> list[tuple[bytes, Image]]:
    """Our file and the decoded image for each budget.

    Where a budget cannot be met, the file is the smallest that can be made.

    Args:
      image: uint8 RGB [H, W, 3].
      budgets: in bytes, of whole files.
      options: more of what `Encoder.encode` takes.
    """
    coded = []
    for budget in budgets:
        try:
            data = encoder.encode(image, max_bytes=budget, **options)
        except BudgetError as error:
            data = encoder.encode(image, max_bytes=error.smallest, **options)
        coded.append((data, decoder.decode(data)))
    return coded


def compare(
    name: str,
    image: Image,
    budgets: Sequence[int],
    coded: Sequence[tuple[bytes, Image]],
    peers: Sequence[Peer] | None = None,
) -> list[Row]:
    """The rows of one image.

    Args:
      name: of the image, for the headings.
      image: uint8 RGB [H, W, 3].
      budgets: in bytes, of whole files.
      coded: our file and decoded image for each budget, as `code` returns.
      peers: to compare with; JPEG, WebP and AVIF where None.
    Returns:
      One row a budget.
    Raises:
      FasdiffError: Pillow lacks a peer.
    """
    height, width = image.shape[:2]
    original = Cell(image, f"original, {width} x {height}", f"{image.size} bytes uncompressed")
    columns = [[original] * len(budgets), _our_cells(image, budgets, coded)]
    for peer in standard_peers() if peers is None else peers:
        results = fit(peer, image, budgets)
        columns.append(
            [
                _cell(peer.name, result.image, len(result.data), budget, result.scale, result.psnr)
                for budget, result in zip(budgets, results, strict=True)
            ]
        )
    return [
        Row(f"{name} in {budget} bytes", [column[index] for column in columns])
        for index, budget in enumerate(budgets)
    ]


def draw(rows: Sequence[Row]) -> Image:
    """Lay rows out on a sheet.

    Args:
      rows: at least one, of any numbers of cells.
    Returns:
      uint8 RGB [H, W, 3].
    """
    font = PIL.ImageFont.load_default(_FONT_SIZE)
    shown = [[_shown(cell.image) for cell in row.cells] for row in rows]
    text_height = 3 * _LINE
    heights = [text_height + max(image.shape[0] for image in images) for images in shown]
    width = max(sum(_cell_width(image) + _GAP for image in images) for images in shown) + _GAP
    height = sum(heights) + _GAP * (len(rows) + 1)
    sheet = PIL.Image.new("RGB", (width, height), _PAPER)
    pen = PIL.ImageDraw.Draw(sheet)
    top = _GAP
    for row, images, row_height in zip(rows, shown, heights, strict=True):
        left = _GAP
        pen.text((left, top), row.heading, fill=_INK, font=font)
        for cell, image in zip(row.cells, images, strict=True):
            pen.text((left, top + _LINE), cell.title, fill=_INK, font=font)
            pen.text((left, top + 2 * _LINE), cell.detail, fill=_GREY, font=font)
            sheet.paste(PIL.Image.fromarray(image), (left, top + text_height))
            left += _cell_width(image) + _GAP
        top += row_height + _GAP
    return np.asarray(sheet, dtype=np.uint8)


def _our_cells(
    image: Image, budgets: Sequence[int], coded: Sequence[tuple[bytes, Image]]
) -> list[Cell]:
    cells = []
    for budget, (data, decoded) in zip(budgets, coded, strict=True):
        scale = Fraction(1, 1 << bitstream.unpack(data)[0].scale)
        quality = psnr(image, decoded)
        cells.append(_cell("FaSDiff-Edge", decoded, len(data), budget, scale, quality))
    return cells


def _cell(name: str, image: Image, size: int, budget: int, scale: Fraction, quality: float) -> Cell:
    over = "" if size <= budget else ", its smallest"
    coded_at = "full size" if scale == 1 else f"coded at {scale} size"
    return Cell(image, f"{name}, {size} bytes{over}", f"{coded_at}, {quality:.2f} dB")


def _shown(image: Image) -> Image:
    """The image, shrunk where it is larger than a cell may be."""
    height, width = image.shape[:2]
    shrink = _MAX_SIDE / max(height, width)
    if shrink >= 1.0:
        return image
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _cell_width(image: Image) -> int:
    return max(int(image.shape[1]), _MIN_WIDTH)
