"""The conventional codecs that we are compared with, each given its best chance at a budget.

A peer may shrink the image before coding it and is judged after enlarging it again. At a budget it
gets, of all sizes in `scales_for`, each at the highest quality whose whole file fits, the one with
the best PSNR. Where no size fits it gets its smallest file, which is over the budget.

Needs Pillow, of the [demo] extra; importing this module without it raises `FasdiffError`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import FasdiffError

try:
    import PIL.features
    import PIL.Image
except ImportError as error:
    raise FasdiffError(
        "comparing with JPEG, WebP and AVIF needs Pillow: pip install 'fasdiff-edge[demo]'"
    ) from error

Image = NDArray[np.uint8]  # RGB [H, W, 3]

# AVIF has 64 quantisers; libavif maps 0..100 onto them, and these are the first of each.
AVIF_QUALITIES = [
    quality
    for quality in range(101)
    if quality == 0 or ((100 - quality) * 63 + 50) // 100 != ((101 - quality) * 63 + 50) // 100
]

_SCALES = tuple(Fraction(s) for s in ("1", "3/4", "1/2", "3/8", "1/4"))
_SCALES_LARGE = (*_SCALES, Fraction("3/16"), Fraction("1/8"))
_PAST_PEAK = 0.2  # dB below the best at a smaller scale, at which larger ones are not tried
_LOW_RUNGS = 8  # lowest qualities among which the smallest file is looked for
_LARGE_SIDE = 384  # pixels; images with a shorter side than that are not shrunk below 1/4


@dataclass(frozen=True)
class Peer:
    """A codec to compare with.

    Attributes:
      name: as shown in tables and labels.
      encode: (image, quality) to the smallest conforming file at that quality, metadata excluded.
      qualities: what `encode` takes, rising; bytes rise with it, give or take a little.
    """

    name: str
    encode: Callable[[Image, float], bytes]
    qualities: Sequence[float]


@dataclass(frozen=True)
class PeerResult:
    """What a peer makes of an image at a budget.

    Attributes:
      peer: its name.
      data: the whole file.
      image: decoded and enlarged to the size of the original; uint8 RGB [H, W, 3].
      scale: of the coded image to the original.
      quality: in the peer's own units.
      psnr: dB against the original.
      fits: whether the file is within the budget; if not, it is the smallest one.
    """

    peer: str
    data: bytes
    image: Image
    scale: Fraction
    quality: float
    psnr: float
    fits: bool


def psnr(original: Image, image: Image) -> float:
    """Peak signal-to-noise ratio in dB over all samples of two uint8 arrays; inf where equal.

    Raises:
      ValueError: the shapes differ.
    """
    if original.shape != image.shape:
        raise ValueError(f"shapes differ: {original.shape} and {image.shape}")
    error = float(np.mean(np.square(original.astype(np.float64) - image)))
    return float("inf") if error == 0.0 else float(10.0 * np.log10(255.0**2 / error))


def scales_for(height: int, width: int) -> tuple[Fraction, ...]:
    """The sizes that a peer may code an image of this many pixels at, largest first."""
    return _SCALES_LARGE if min(height, width) >= _LARGE_SIDE else _SCALES


def standard_peers() -> list[Peer]:
    """JPEG, WebP and AVIF through Pillow.

    Raises:
      FasdiffError: this build of Pillow lacks one of them.
    """
    missing = [name for name in ("jpg", "webp", "avif") if not PIL.features.check(name)]
    if missing:
        raise FasdiffError(f"this Pillow {PIL.__version__} was built without {', '.join(missing)}")
    return [
        Peer("JPEG", pillow_encoder("JPEG", optimize=True), range(1, 96)),
        Peer("WebP", pillow_encoder("WEBP", method=6), [q / 4 for q in range(401)]),
        Peer(
            "AVIF",
            pillow_encoder("AVIF", speed=2, max_threads=1, autotiling=False),
            AVIF_QUALITIES,
        ),
    ]


def pillow_encoder(format_name: str, **options: object) -> Callable[[Image, float], bytes]:
    """An `encode` for `Peer` that saves through Pillow with these options and a quality."""

    def encode(image: Image, quality: float) -> bytes:
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, format_name, quality=quality, **options)
        return buffer.getvalue()

    return encode


def fit(peer: Peer, image: Image, budgets: Sequence[int]) -> list[PeerResult]:
    """The best that a peer can do within each budget.

    Args:
      peer: the codec.
      image: uint8 RGB [H, W, 3].
      budgets: in bytes, of whole files.
    Returns:
      One result a budget, in their order.
    """
    ladders = [_Ladder(peer, image, scale) for scale in reversed(scales_for(*image.shape[:2]))]
    return [_best(ladders, budget) for budget in budgets]


def judge(
    peer: Peer, original: Image, data: bytes, scale: Fraction, quality: float, budget: int
) -> PeerResult:
    """Decode a peer's file and hold it against the original.

    Args:
      peer: the codec that made the file.
      original: uint8 RGB [H, W, 3].
      data: the whole file.
      scale, quality: that it was coded at.
      budget: in bytes.
    """
    with PIL.Image.open(io.BytesIO(data)) as picture:
        decoded = np.asarray(picture.convert("RGB"), dtype=np.uint8)
    height, width = original.shape[:2]
    if scale != 1:
        decoded = _resize(decoded, (width, height), cv2.INTER_CUBIC)
    return PeerResult(
        peer=peer.name,
        data=data,
        image=decoded,
        scale=scale,
        quality=quality,
        psnr=psnr(original, decoded),
        fits=len(data) <= budget,
    )


def _best(ladders: Sequence[_Ladder], budget: int) -> PeerResult:
    """The best PSNR over ladders that rise in scale; else the smallest file of the first."""
    best: PeerResult | None = None
    for ladder in ladders:
        rung = ladder.highest_within(budget)
        if rung is None:
            break  # a larger picture takes more bytes still
        result = ladder.result(rung, budget)
        if best is None or result.psnr > best.psnr:
            best = result
        elif result.psnr < best.psnr - _PAST_PEAK:
            break  # PSNR over scale has one peak
    return best or ladders[0].result(ladders[0].smallest(), budget)


class _Ladder:
    """The files of one image at one scale, made as they are asked for; a rung is a quality."""

    def __init__(self, peer: Peer, image: Image, scale: Fraction) -> None:
        self._peer = peer
        self._original = image
        self._scale = scale
        self._files: dict[int, bytes] = {}
        self._results: dict[int, PeerResult] = {}
        height, width = image.shape[:2]
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        self._coded = image if scale == 1 else _resize(image, size, cv2.INTER_AREA)

    def highest_within(self, budget: int) -> int | None:
        """A rung whose file fits and whose successor's does not, or None if the first does not."""
        fits, fails = 0, len(self._peer.qualities)
        if self._size(fits) > budget:
            return None
        rung = fails // 4
        while fails - fits > 1:
            if self._size(rung) <= budget:
                fits = rung
            else:
                fails = rung
            rung = self._guess(budget, fits, fails)
        return fits

    def _guess(self, budget: int, fits: int, fails: int) -> int:
        """A rung strictly between the two: log bytes rise about linearly with quality."""
        low, high = math.log(self._size(fits)), math.log(budget + 0.5)
        if fails in self._files:
            part = (high - low) / (math.log(self._size(fails)) - low)
        else:
            part = 0.5
        # Kept off the ends, so that a curve that is not a line cannot slow the search to steps.
        part = min(max(part, 0.1), 0.9)
        return min(max(round(fits + part * (fails - fits)), fits + 1), fails - 1)

    def smallest(self) -> int:
        """The rung with the smallest file. Bytes are not quite monotone in quality: a few count."""
        return min(range(min(_LOW_RUNGS, len(self._peer.qualities))), key=self._size)

    def result(self, rung: int, budget: int) -> PeerResult:
        self._size(rung)
        if rung not in self._results:
            quality = self._peer.qualities[rung]
            self._results[rung] = judge(
                self._peer, self._original, self._files[rung], self._scale, quality, budget
            )
        return replace(self._results[rung], fits=self._size(rung) <= budget)

    def _size(self, rung: int) -> int:
        if rung not in self._files:
            self._files[rung] = self._peer.encode(self._coded, self._peer.qualities[rung])
        return len(self._files[rung])


def _resize(image: Image, size: tuple[int, int], interpolation: int) -> Image:
    """Resize to (width, height)."""
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), dtype=np.uint8)
