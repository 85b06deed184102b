"""The C++ core. Arrays must be C-contiguous and of exactly the dtype given; else ValueError."""

from typing import Any

import numpy as np
import numpy.typing as npt

_UInt8 = npt.NDArray[np.uint8]
_UInt16 = npt.NDArray[np.uint16]
_UInt32 = npt.NDArray[np.uint32]
_Int32 = npt.NDArray[np.int32]
_Float32 = npt.NDArray[np.float32]
_Float64 = npt.NDArray[np.float64]

class StreamError(ValueError):
    """A coded file is damaged; the message is the reason."""

def split_bands(image: npt.NDArray[Any], out: npt.NDArray[Any] | None = None) -> _Float32:
    """Split an image into its two-level Haar bands.

    Args:
      image: uint8 RGB [H, W, 3], sides 1 to 65536; padded by reflection to multiples of 16.
      out: where to put the result; None: a new array, aligned to 64 bytes.
    Returns:
      float32 [48, H'/4, W'/4] for the padded size H' x W': ll2, hl2, lh2, hh2 with three colours
      each, then level 1 unshuffled 2x2; orthonormal.
    Raises:
      ValueError: not uint8, not three channels, not C-contiguous, or empty; `out` does not fit.
    """

def merge_bands(
    bands: npt.NDArray[Any], height: int, width: int, out: npt.NDArray[Any] | None = None
) -> _UInt8:
    """Put bands back together; inverts split_bands exactly.

    Args:
      bands: float32 [48, H'/4, W'/4], each of the 48 C-contiguous.
      height, width: size of the image in pixels; H' and W' are these rounded up to 16.
      out: as in split_bands.
    Returns:
      uint8 RGB [height, width, 3], rounded half to even and clamped; NaN gives 0.
    Raises:
      ValueError: wrong dtype or layout, or the bands do not fit height and width.
    """

def noise(seed: int, count: int) -> _Float32:
    """Return float32 [count] of unit-normal noise; sample i depends on seed and i only.

    Raises:
      ValueError: seed outside 0..2^32 - 1, or count negative.
    """

def parse_header(data: bytes) -> tuple[int, int, int, int, int, int]:
    """Read and check the header of a whole file, CRC included.

    Returns:
      (version, scale, model id, width, height, quality in quarter steps).
    Raises:
      StreamError: with the reason.
    """

def cpu_info() -> dict[str, Any]:
    """Which instruction set the kernels use.

    Returns:
      available: list of names, slowest first; environment: FASDIFF_CPU at first use, or empty;
      chosen: a name; kernels: frequency_split, integer_net and range_coder with what each uses;
      problem: None, or why FASDIFF_CPU cannot be followed; chosen is None then.
    """

def set_cpu_path(name: str) -> None:
    """Choose another instruction set, for tests and benchmarks.

    An EntropyModel or IntegerNet keeps what was chosen when it was made.

    Raises:
      ValueError: not one of those available.
    """

def cdf_table(model: EntropyModel, index: int) -> tuple[int, _UInt32]:
    """Return a table of a model: (the smallest regular value, uint32 cdf from 0 to 65536).

    Raises:
      ValueError: no such table.
    """

class IntegerNet:
    """A chain of integer convolution layers, as an EntropyModel has several. Immutable."""

    def __init__(
        self,
        layers: list[tuple[npt.NDArray[np.int8], _Int32, int, int, int]],
        max_input: int,
    ) -> None:
        """Make a network of (weight [cout, cin, k, k], bias [cout], shift, lo, hi).

        Raises:
          ValueError: sizes or limits out of range, or an accumulator could overflow with
            activations of max_input.
        """

    def run(self, x: npt.NDArray[np.int16], positions: str = "all") -> npt.NDArray[np.int16]:
        """Run it.

        Args:
          x: int16 [height, width, channels], the channels padded to a multiple of eight; what the
            padding holds does not matter, but for max_input.
          positions: all, even or odd (row + column), even_even or odd_odd (row, column).
        Returns:
          int16 [height, width, cout], zero at other positions.
        Raises:
          ValueError: wrong shape, or an activation beyond max_input.
        """

def range_encode(
    symbols: npt.NDArray[Any], table_indexes: npt.NDArray[Any], model: EntropyModel
) -> bytes:
    """Code int32 symbols [n], each with the model's table that uint16 table_indexes [n] names.

    Raises:
      ValueError: wrong dtype or shape, a symbol outside -32768..32767, or no such table.
    """

def range_decode(payload: bytes, table_indexes: npt.NDArray[Any], model: EntropyModel) -> _Int32:
    """Read back int32 [n] of range_encode.

    Raises:
      ValueError: wrong dtype or shape, or no such table.
      StreamError: the payload is damaged, too short or too long.
    """

class EntropyModel:
    """The integer entropy model of one latent space. Immutable, hence thread-safe."""

    def __init__(self, data: bytes) -> None:
        """Parse the contents of an entropy_model.bin.

        Raises:
          ValueError: malformed, with the reason.
        """

    @property
    def num_s(self) -> int:
        """Components of s."""
    @property
    def num_z(self) -> int:
        """Channels of z."""
    @property
    def num_y(self) -> int:
        """Channels of y."""
    @property
    def num_q(self) -> int:
        """Qualities in quarter steps: 253."""
    @property
    def num_groups(self) -> int:
        """Channel groups of y."""
    @property
    def num_passes(self) -> int:
        """Passes over y, of all groups."""
    @property
    def group_sizes(self) -> list[int]:
        """Channels of each group."""
    @property
    def group_scans(self) -> list[int]:
        """Passes of each group: 1, 2 (a checkerboard) or 3."""
    @property
    def group_starts(self) -> list[int]:
        """Quality, in quarter steps, from which each group is coded; the residual's are over 0."""
    @property
    def num_base(self) -> int:
        """Channels of y that are not the residual's."""
    @property
    def residual_from(self) -> int | None:
        """Quality, in quarter steps, from which a residual is coded, if there is one."""
    @property
    def num_scales(self) -> int:
        """Scales of the tables of predictions; a table each (in version 1 four)."""
    @property
    def num_tables(self) -> int:
        """Tables in all; in version 1, those of s and z included."""
    @property
    def version(self) -> int:
        """Version of the model file: 1 (releases 0.1.x) or 4."""
    @property
    def unit_bits(self) -> int:
        """A symbol is 2^unit_bits levels: 16, or 1 in version 1."""
    @property
    def s_step(self) -> _Int32:
        """int32 [num_q, num_s], Q12: units of s per symbol; all 4096 in version 1. A copy."""
    @property
    def z_step(self) -> _Int32:
        """int32 [num_q, num_z], Q12: units of z per symbol; all 4096 in version 1. A copy."""
    @property
    def y_step(self) -> _Int32:
        """int32 [num_q, num_y], Q12: units of y per symbol. A copy."""

    def code_base(self, s: npt.NDArray[Any], z: npt.NDArray[Any], y: npt.NDArray[Any]) -> CodedBase:
        """Code all but the residual, at quality residual_from.

        Args and errors as for `encode`; also ValueError where the model has no residual.
        """

    def encode(
        self, s: npt.NDArray[Any], z: npt.NDArray[Any], y: npt.NDArray[Any], q: int
    ) -> bytes:
        """Code the levels nearest to these that have a code.

        Levels are latents in sixteenths of a quantisation step (in version 1, in whole steps).

        Args:
          s: int32 [num_s].
          z: int32 [num_z, ceil(hy / 4), ceil(wy / 4)].
          y: int32 [num_y, hy, wy], sides 1 to 256.
          q: quality in quarter steps, 0..252.
        Raises:
          ValueError: wrong dtype, shape or quality, or a symbol outside -32768..32767 (times 16, as
            a level).
        """

    def decode(
        self, payload: bytes, q: int, hy: int, wy: int, truncated_ok: bool = False
    ) -> tuple[_Int32, _Int32, _Int32]:
        """Read (s, z, y) back, shaped as encode takes them.

        With truncated_ok, what a cut payload does not determine is filled in with the predicted
        mean (s and z, in version 1, with the most probable symbol).

        Raises:
          ValueError: quality or latent size out of range.
          StreamError: the payload is damaged, too short (unless truncated_ok) or too long.
        """

    def part_bits(
        self, s: npt.NDArray[Any], z: npt.NDArray[Any], y: npt.NDArray[Any], q: int
    ) -> _Float64:
        """Ideal bits of s, of z and of each pass of y: float64 [2 + num_passes].

        Raises:
          ValueError: as encode.
        """

    def indexes(
        self,
        s: npt.NDArray[Any],
        z: npt.NDArray[Any],
        y: npt.NDArray[Any],
        q: int,
        with_residual: bool = True,
    ) -> tuple[_Int32, _UInt16]:
        """What a decoder uses for each symbol of y: (base, table), both shaped like y.

        The base is the predicted mean, as a level. Without `with_residual` both are zero in the
        residual.

        Raises:
          ValueError: as encode.
        """

class CodedBase:
    """The base of a file, coded once, for any residuals. Immutable, hence thread-safe."""

    @property
    def levels(self) -> tuple[_Int32, _Int32, _Int32]:
        """(s, z, y) as a decoder will have them, zero in the residual. Copies."""

    def encode(
        self, residual: npt.NDArray[Any], q: int, prices: npt.NDArray[Any] | None = None
    ) -> bytes:
        """The payload with these levels in the residual's channels of y.

        Args:
          residual: int32 [channels of the last group, hy, wy].
          q: quality in quarter steps, residual_from..252.
          prices: int32 [hy, wy], 1024 times the squared symbols that a bit must buy, 0..65535;
            None is 120 everywhere, with which `EntropyModel.encode` gives the same.
        Raises:
          ValueError: wrong dtype, shape or quality, or a level or price out of range.
        """
