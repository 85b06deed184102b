"""Latents to levels to payload and back.

The probability of a symbol is a function of symbols decoded before it, in integers, in C++
(`csrc/`); no float takes part. The only floats here are the latents on their way in
(`round_latents`) and on their way out (`visual_prompt`, `semantics`), outside that path.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _core
from .bitstream import MAX_QUALITY
from .errors import BitstreamError, ModelError

SYMBOL_MIN, SYMBOL_MAX = -32768, 32767
UPSAMPLING = 4  # z lies on every fourth position of y
STEP_ONE = 4096  # steps are in Q12: latent units per symbol, times 4096
_PRICE_ONE, _PRICE_MAX = 1024, 65535  # of a bit, in squared symbols
_EVEN_PRICE, _EVEN_FROM = 0.7 * 15 / 128, 0.5  # see `prices_at`


@dataclass(frozen=True)
class Levels:
    """Latents as integers: sixteenths of the quantisation step of a quality.

    A payload holds symbols, which are distances from predicted means in whole steps; what it
    gives back are those means plus multiples of 16 levels. (Under an entropy model file of version
    1 levels are whole steps, and the payload gives back what was put in.)

    Attributes:
      s: int32 [S], the semantic vector.
      z: int32 [Cz, hz, wz], the hyper-latent; hz = ceil(hy / 4), wz = ceil(wy / 4).
      y: int32 [Cy, hy, wy], the latent: the channels of the base, then those of the residual.
    """

    s: NDArray[np.int32]
    z: NDArray[np.int32]
    y: NDArray[np.int32]


@dataclass(frozen=True)
class Rates:
    """What latents would cost.

    Attributes:
      decoded: what the decoder would have; the residual's are zero.
      bits: of y, without the residual.
      slope: float32 [num_base, hy, wy], by how many bits each y costs more for every symbol that it
        is larger, with its rounding taken as uniform noise (Balle et al., ICLR 2017) and the
        predictions as they are.
    """

    decoded: Levels
    bits: float
    slope: NDArray[np.float32]


class EntropyModel:
    """An integer entropy model: the contents of one `entropy_model.bin`. Immutable, thread-safe.

    Attributes:
      model_id: first two bytes of the SHA-256 of the file, as 16 bits.
      num_s, num_z, num_y: components of s, channels of z and of y.
      num_base, num_residual: channels of y of either kind; they sum to num_y.
      residual_from: quality, in quarter steps, from which the residual is coded and at which the
        base stays; over all qualities where there is no residual.
      num_qualities: rows of the quality tables (253 for format version 1).
    """

    def __init__(self, data: bytes) -> None:
        """Parse `data`.

        Raises:
          ModelError: malformed; with the reason.
        """
        try:
            self._core = _core.EntropyModel(data)
        except ValueError as error:
            raise ModelError(f"malformed entropy model: {error}") from error
        self.model_id = int.from_bytes(hashlib.sha256(data).digest()[:2], "big")
        self.num_s = self._core.num_s
        self.num_z = self._core.num_z
        self.num_y = self._core.num_y
        self.num_qualities = self._core.num_q
        self.num_passes = self._core.num_passes
        residual_from = self._core.residual_from
        self.residual_from = self.num_qualities if residual_from is None else residual_from
        self.num_base = self._core.num_base
        self.num_residual = self.num_y - self.num_base
        self._unit = 1 << self._core.unit_bits  # levels per step
        self._s_step = np.asarray(self._core.s_step, dtype=np.int32)
        self._z_step = np.asarray(self._core.z_step, dtype=np.int32)
        self._y_step = np.asarray(self._core.y_step, dtype=np.int32)

    @functools.cached_property
    def _bits(self) -> tuple[NDArray[np.float32], int]:
        """Bits of values in each table, [tables, 2 reach + 1], of value 0 in the middle; reach."""
        tables = [_core.cdf_table(self._core, index) for index in range(self._core.num_tables)]
        reach = max(max(-lowest, lowest + len(cdf) - 3) for lowest, cdf in tables)
        bits = np.empty((len(tables), 2 * reach + 1), np.float32)
        values = np.arange(-reach, reach + 1)
        for row, (lowest, cdf) in zip(bits, tables, strict=True):
            # past a table's ends as at them: nothing pulls further out
            at = np.clip(values - lowest, 0, len(cdf) - 3)
            row[:] = np.log2(cdf[-1] / np.diff(cdf.astype(np.float64))[at])
        return bits, reach

    def rates(self, levels: Levels, y: NDArray[np.float32], quality: int) -> Rates:
        """What a base would cost. An encoder's own affair: nothing that is coded depends on it.

        Args:
          levels: s and z; its y is not looked at.
          y: float32 [num_base, hy, wy], in symbols.
          quality: in quarter steps, at most `residual_from`.
        """
        wanted = np.zeros((self.num_y, *y.shape[1:]), np.int32)
        base = slice(0, self.num_base)
        wanted[base] = self._round(y)
        means, tables = self._core.indexes(levels.s, levels.z, wanted, quality, with_residual=False)
        bits, reach = self._bits
        rows = bits.shape[1] * tables[base].astype(np.int64) + reach

        def bits_of(values: NDArray[np.int32]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = bits.ravel()[rows + np.clip(values, -reach, reach)]
            return found

        # Twice the distance from the mean, in levels: half a symbol is `_unit`.
        away, symbol = 2 * (wanted[base] - means[base]), 2 * self._unit
        value = (away + self._unit) // symbol
        below, part = np.divmod(away - self._unit, symbol)
        share = part.astype(np.float32) / np.float32(symbol)
        low, middle, high = (bits_of(below + more) for more in (0, 1, 2))
        wanted[base] = means[base] + self._unit * value
        return Rates(
            decoded=Levels(s=levels.s, z=levels.z, y=wanted),
            bits=float(bits_of(value).sum(dtype=np.float64)),
            slope=middle - low + share * (high - 2 * middle + low),
        )

    def steps(self, quality: int) -> NDArray[np.float32]:
        """float32 [Cy, 1, 1]: y units per symbol at `quality` (quarter steps)."""
        return _units(self._y_step[quality])[:, None, None]

    def round_latents(
        self,
        s: NDArray[np.float32],
        z: NDArray[np.float32],
        y: NDArray[np.float32],
        quality: int,
    ) -> Levels:
        """Round the analysis graph's outputs to levels; the residual's are zero.

        Args:
          s, z, y: float32 [S], [Cz, hz, wz] and [num_base, hy, wy], in latent units.
          quality: in quarter steps.
        """
        levels = np.zeros((self.num_y, *y.shape[1:]), np.int32)
        levels[: self.num_base] = self._round(y / self.steps(quality)[: self.num_base])
        return Levels(
            s=self._round(s / _units(self._s_step[quality])),
            z=self._round(z / _units(self._z_step[quality])[:, None, None]),
            y=levels,
        )

    def round_residual(self, residual: NDArray[np.float32], quality: int) -> NDArray[np.int32]:
        """Round a residual, float32 [num_residual, hy, wy] in latent units, to levels."""
        return self._round(residual / self.steps(quality)[self.num_base :])

    def _round(self, values: NDArray[np.float32]) -> NDArray[np.int32]:
        """Levels of latents in steps."""
        # A latent that is not a number codes as zero; casting it would be undefined.
        finite = np.nan_to_num(values, nan=0.0, posinf=SYMBOL_MAX, neginf=SYMBOL_MIN)
        in_range = np.clip(finite, SYMBOL_MIN, SYMBOL_MAX)
        levels: NDArray[np.int32] = np.rint(in_range * np.float32(self._unit)).astype(np.int32)
        return levels

    def visual_prompt(self, levels: Levels, quality: int) -> NDArray[np.float32]:
        """What the student sees, float32 [num_base + Cz, hy, wy] in latent units.

        y_hat, and z_hat repeated at the positions of y that it lies over.
        """
        base = slice(0, self.num_base)
        y = levels.y[base] * (self.steps(quality)[base] / np.float32(self._unit))
        z = levels.z * (_units(self._z_step[quality]) / np.float32(self._unit))[:, None, None]
        z = z.repeat(UPSAMPLING, 1).repeat(UPSAMPLING, 2)[:, : y.shape[1], : y.shape[2]]
        return np.concatenate([y, z], dtype=np.float32)

    def residual(self, levels: Levels, quality: int) -> NDArray[np.float32]:
        """The decoded residual, float32 [num_residual, hy, wy] in latent units."""
        step = self.steps(quality)[self.num_base :] / np.float32(self._unit)
        residual: NDArray[np.float32] = (levels.y[self.num_base :] * step).astype(np.float32)
        return residual

    def semantics(self, levels: Levels, quality: int) -> NDArray[np.float32]:
        """s_hat, float32 [S] in latent units."""
        step = _units(self._s_step[quality]) / np.float32(self._unit)
        s: NDArray[np.float32] = (levels.s * step).astype(np.float32)
        return s

    def encode(self, levels: Levels, quality: int) -> bytes:
        """Payload of the latents nearest to `levels` that can be coded at `quality`.

        Args:
          quality: in quarter steps.
        Raises:
          ValueError: shapes that do not belong together, or a level out of range.
        """
        return self._core.encode(levels.s, levels.z, levels.y, quality)

    def code_base(self, levels: Levels) -> CodedBase:
        """Code all but the residual, at quality `residual_from`, for `CodedBase.encode`.

        Raises:
          ValueError: as `encode`.
        """
        return CodedBase(self._core.code_base(levels.s, levels.z, levels.y))

    def decode(self, payload: bytes, quality: int, latent_size: tuple[int, int]) -> Levels:
        """Levels that a payload gives.

        Args:
          payload: all of it; nothing may be left over.
          quality: in quarter steps.
          latent_size: (hy, wy).
        Raises:
          BitstreamError: truncated, trailing bytes or an impossible symbol.
        """
        try:
            s, z, y = self._core.decode(payload, quality, *latent_size)
        except ValueError as error:
            raise BitstreamError(f"damaged payload: {error}") from error
        return Levels(s=s, z=z, y=y)

    def part_bits(self, levels: Levels, quality: int) -> dict[str, float]:
        """Ideal bits of each part in coding order: s, z, then the passes y0, y1, ..."""
        bits = self._core.part_bits(levels.s, levels.z, levels.y, quality)
        names = ["s", "z", *(f"y{index}" for index in range(self.num_passes))]
        return {name: float(value) for name, value in zip(names, bits, strict=True)}


class CodedBase:
    """The base of a file, coded once, that residuals at several qualities can follow."""

    def __init__(self, core: _core.CodedBase) -> None:
        self._core = core
        s, z, y = core.levels
        self.levels = Levels(s=s, z=z, y=y)  # what a decoder will have; the residual's are zero

    def encode(self, residual: NDArray[np.int32], quality: int, prices: NDArray[np.int32]) -> bytes:
        """Payload of the base and the residual that can be coded nearest to `residual`.

        Args:
          residual: levels, int32 [num_residual, hy, wy].
          quality: in quarter steps, at least `residual_from`.
          prices: as `prices_at` gives them, int32 [hy, wy].
        Raises:
          ValueError: another shape or quality, or a level out of range.
        """
        return self._core.encode(residual, quality, prices)


def prices_at(price: NDArray[np.float32], quality: int, first: int) -> NDArray[np.int32]:
    """What a bit of the residual must buy at a quality, as integers.

    Half way from the first quality with a residual to the top it is the same everywhere: small
    files are for the face, large ones for all of the image.

    Args:
      price: at the quality `first`, float32 [hy, wy] in squared symbols.
      quality: in quarter steps, at least `first`.
    """
    told = (quality - first) / max(1, MAX_QUALITY - first)
    unevenness = max(0.0, 1 - told / _EVEN_FROM)
    finite = np.clip(np.nan_to_num(price), 0, _PRICE_MAX / _PRICE_ONE)
    even = np.float32(_EVEN_PRICE)
    faded = even * (finite / even) ** np.float32(unevenness)
    prices: NDArray[np.int32] = np.rint(faded * _PRICE_ONE).astype(np.int32)
    return prices


def _units(step: NDArray[np.int32]) -> NDArray[np.float32]:
    """Latent units per symbol of steps in Q12."""
    units: NDArray[np.float32] = step.astype(np.float32) / np.float32(STEP_ONE)
    return units
