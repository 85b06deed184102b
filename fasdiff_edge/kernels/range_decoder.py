"""A batch range decoder: many streams at once, one to a program, for archives on a GPU.

The coder of docs/bitstream.md, section 2, and the escape of section 4, in 64-bit integers. A batch
is decoded pass by pass: the caller tells which table each value of a pass has, and between two
passes it may run the networks that tell it for the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from ..errors import BitstreamError

_WINDOW_BYTES = 6
_MAX_DROPPED = 2  # zero bytes that an encoder may have dropped from the end
_OK, _TRUNCATED, _INVALID = 0, 1, 2
_REASONS = {_TRUNCATED: "the payload ends before its last symbol", _INVALID: "an impossible code"}

_CDF_BITS = tl.constexpr(16)
_MIN_RANGE = tl.constexpr(1 << 40)
_MAX_PREFIX = tl.constexpr(18)


@triton.jit
def _consume(payload, size, code, span, read, start, frequency):
    """Remove [start, start + frequency) of 65536 from the interval, and take the bytes it frees."""
    unit = span >> _CDF_BITS
    code -= unit * start
    span = unit * frequency
    while span <= _MIN_RANGE:
        byte = tl.load(payload + read, mask=read < size, other=0).to(tl.int64)
        code = (code << 8) | byte
        span = span << 8
        read += 1
    return code, span, read


@triton.jit
def _bit(payload, size, code, span, read):
    bit = (code >= (span >> _CDF_BITS) << 15).to(tl.int64)
    half = tl.full((), 1 << 15, tl.int64)
    code, span, read = _consume(payload, size, code, span, read, bit * half, half)
    return bit, code, span, read


@triton.jit(do_not_specialize=["count"])
def decode_kernel(
    payloads, starts, sizes, state, status, cdf, table_starts, offsets, tables, values, count
):
    """`count` values of each stream. Grid: (streams,).

    payloads uint8 [bytes]; starts, sizes int64 [streams]; state int64 [streams, 3]: code, range,
    bytes read; status int32 [streams]; cdf int64 [entries], table_starts int32 [T + 1] and offsets
    int32 [T] of the tables; tables int32 and values int32 [streams, count].
    """
    stream = tl.program_id(0).to(tl.int64)
    payload = payloads + tl.load(starts + stream)
    size = tl.load(sizes + stream)
    code = tl.load(state + 3 * stream)
    span = tl.load(state + 3 * stream + 1)
    read = tl.load(state + 3 * stream + 2)
    failed = tl.load(status + stream)
    i = tl.full((), 0, tl.int32)
    while (i < count) & (failed == 0):
        table = tl.load(tables + stream * count + i)
        first = tl.load(table_starts + table)
        entries = tl.load(table_starts + table + 1) - first
        offset = tl.load(offsets + table)
        unit = span >> _CDF_BITS
        if code >= unit << _CDF_BITS:
            failed = tl.full((), 2, tl.int32)
        else:
            # the last entry that does not lie beyond the code
            low = tl.full((), 0, tl.int32)
            high = entries - 1
            while high - low > 1:
                middle = (low + high) // 2
                inside = unit * tl.load(cdf + first + middle) <= code
                low = tl.where(inside, middle, low)
                high = tl.where(inside, high, middle)
            begin = tl.load(cdf + first + low)
            frequency = tl.load(cdf + first + low + 1) - begin
            code, span, read = _consume(payload, size, code, span, read, begin, frequency)
            value = offset + low
            if low == entries - 2:  # the escape: Exp-Golomb of the distance past the table's ends
                prefix = tl.full((), 0, tl.int32)
                bit, code, span, read = _bit(payload, size, code, span, read)
                while (bit == 0) & (prefix <= _MAX_PREFIX):
                    prefix += 1
                    bit, code, span, read = _bit(payload, size, code, span, read)
                if prefix > _MAX_PREFIX:
                    failed = tl.full((), 2, tl.int32)
                    prefix = tl.full((), 0, tl.int32)
                number = tl.full((), 1, tl.int64)
                k = tl.full((), 0, tl.int32)
                while k < prefix:
                    bit, code, span, read = _bit(payload, size, code, span, read)
                    number = number * 2 + bit
                    k += 1
                number -= 1
                above = offset + low + (number // 2).to(tl.int32)
                below = offset - 1 - (number // 2).to(tl.int32)
                value = tl.where(number % 2 == 0, above, below)
            if read > size + 8:
                failed = tl.full((), 1, tl.int32)
            tl.store(values + stream * count + i, value)
        i += 1
    tl.store(state + 3 * stream, code)
    tl.store(state + 3 * stream + 1, span)
    tl.store(state + 3 * stream + 2, read)
    tl.store(status + stream, failed)


class BatchRangeDecoder:
    """Reads values from many payloads at once. Not thread-safe: it remembers where it stands."""

    def __init__(
        self,
        payloads: Sequence[bytes],
        tables: Sequence[tuple[int, NDArray[np.int64]]],
        device: str | torch.device = "cuda",
    ) -> None:
        """
        Args:
          payloads: the streams, at least one.
          tables: (offset, frequencies) of each table, the last frequency being the escape's; they
            sum to 65536.
          device: where to decode.
        Raises:
          ValueError: no payload, or a table that is none.
        """
        if not payloads:
            raise ValueError("there is no payload to decode")
        for number, (_, frequencies) in enumerate(tables):
            if len(frequencies) < 2 or min(frequencies) < 1 or sum(frequencies) != 1 << 16:
                raise ValueError(f"the frequencies of table {number} do not sum to 65536")
        cdfs = [np.concatenate([[0], np.cumsum(frequencies)]) for _, frequencies in tables]
        lengths = np.array([len(payload) for payload in payloads], np.int64)
        begins = np.cumsum(lengths) - lengths
        window = [
            int.from_bytes(payload[:_WINDOW_BYTES].ljust(_WINDOW_BYTES, b"\0"), "big")
            for payload in payloads
        ]
        state = np.array([[code, 1 << 48, _WINDOW_BYTES] for code in window], np.int64)
        # A byte more: an empty tensor has no address.
        data = np.frombuffer(b"".join(payloads) + b"\0", np.uint8).copy()

        def put(values: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(values).to(device)

        self._payloads, self._starts, self._sizes = put(data), put(begins), put(lengths)
        self._state = put(state)
        self._status = torch.zeros(len(payloads), dtype=torch.int32, device=device)
        self._cdf = put(np.concatenate(cdfs).astype(np.int64))
        ends = np.cumsum([len(cdf) for cdf in cdfs])
        self._table_starts = put(np.concatenate([[0], ends]).astype(np.int32))
        self._offsets = put(np.array([offset for offset, _ in tables], np.int32))
        self._num_tables = len(tables)

    def decode(self, tables: Tensor) -> Tensor:
        """The next values of every stream.

        Args:
          tables: int32 [streams, N], contiguous, on the decoder's device: the table of each value.
        Returns:
          int32 [streams, N]; zero from where a stream is found to be damaged (see `check`).
        Raises:
          ValueError: not such a tensor, or no such table.
        """
        streams = len(self._status)
        if tables.dtype != torch.int32 or tables.ndim != 2 or len(tables) != streams:
            raise ValueError(
                f"tables must be int32 [{streams}, N], got {tables.dtype} {[*tables.shape]}"
            )
        if not tables.is_contiguous() or tables.device != self._status.device:
            raise ValueError(f"tables must be contiguous and on {self._status.device}")
        values = torch.zeros_like(tables)
        if tables.numel() == 0:
            return values
        if int(tables.min()) < 0 or int(tables.max()) >= self._num_tables:
            raise ValueError(f"a table is outside 0..{self._num_tables - 1}")
        decode_kernel[(streams,)](
            self._payloads,
            self._starts,
            self._sizes,
            self._state,
            self._status,
            self._cdf,
            self._table_starts,
            self._offsets,
            tables,
            values,
            tables.shape[1],
        )
        return values

    def check(self, *, finished: bool) -> None:
        """Complain of a stream that was found to be damaged.

        Args:
          finished: everything was read, and no byte may be left.
        Raises:
          BitstreamError: with the number of the first such stream, and what is wrong.
        """
        for number, status in enumerate(self._status.tolist()):
            if status != _OK:
                raise BitstreamError(f"stream {number}: {_REASONS[status]}")
        if not finished:
            return
        left = self._sizes > self._state[:, 2] - (_WINDOW_BYTES - 1)
        for number in torch.nonzero(left).flatten().tolist():
            raise BitstreamError(f"stream {number}: bytes are left after the last symbol")
