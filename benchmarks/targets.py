"""The figures that ours is to reach, in one table, and whether it does.

They are set for faces at 256x256; at other sizes the same bytes mean something else, and no target
applies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from measure import Record

SIDE = 256  # pixels


@dataclass(frozen=True)
class Target:
    """What is to be reached at a budget; None where nothing is asked.

    Attributes:
      psnr_gain: dB that ours, realism 0, is above the best peer, at least.
      identity_ratio: our mean dlib distance over the best peer's, at most.
      recognition_gain: points that our recognition is above the best peer's, at least; where the
        best peer loses fewer points, those that it loses.
      not_same: faces of each race and gender at a distance of 0.6 or more, at most.
    """

    psnr_gain: float | None = None
    identity_ratio: float | None = None
    recognition_gain: float | None = None
    not_same: int | None = None


TARGETS = {
    "300 B": Target(psnr_gain=2.0, identity_ratio=0.5, not_same=1),
    "500 B": Target(psnr_gain=1.5, identity_ratio=0.6, not_same=0),
    "1000 B": Target(psnr_gain=0.5, identity_ratio=0.8, not_same=0),
    "0.1 bpp": Target(psnr_gain=1.2, recognition_gain=3.5),
    "0.2 bpp": Target(psnr_gain=1.2, recognition_gain=3.5),
    "0.3 bpp": Target(psnr_gain=1.2, recognition_gain=3.5),
    "0.5 bpp": Target(psnr_gain=1.2, recognition_gain=3.5),
}


def targets_for(records: Iterable[Record]) -> dict[str, Target]:
    """The targets by budget, or none where a picture is not of the size that they are set for."""
    if all((record.width, record.height) == (SIDE, SIDE) for record in records):
        return TARGETS
    return {}


def at_least(value: float, bound: float, digits: int, unit: str) -> str:
    """Whether a value is met, and by how much."""
    return _verdict(value >= bound, value - bound, digits, unit)


def at_most(value: float, bound: float, digits: int, unit: str) -> str:
    """Whether a value is kept to, and by how much."""
    return _verdict(value <= bound, bound - value, digits, unit)


def _verdict(met: bool, margin: float, digits: int, unit: str) -> str:
    return f"{'met' if met else 'missed'} by {abs(margin):.{digits}f}{unit}"
