"""Slow, readable twins of the C++ core, written from docs/bitstream.md.

Python integers, numpy int64 and float64 only; nothing here looks at the package. Also what the
tests need to make models and files: `random_model`, `serialise`, `pack_file`.
"""

from __future__ import annotations

import math
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Mask = NDArray[np.bool_]
Float = NDArray[np.float64]

NUM_Q = 253
SQRT3, SQRT2, SQRT6 = math.sqrt(3), math.sqrt(2), math.sqrt(6)
COLOURS = np.array(
    [
        [1 / SQRT3, 1 / SQRT3, 1 / SQRT3],
        [1 / SQRT2, 0, -1 / SQRT2],
        [1 / SQRT6, -2 / SQRT6, 1 / SQRT6],
    ]
)


# -- frequency split -------------------------------------------------------------------------------
def haar(x: Float) -> tuple[Float, Float, Float, Float]:
    """One level on [..., 2h, 2w]: (ll, hl, lh, hh), each [..., h, w]."""
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2


def inverse_haar(ll: Float, hl: Float, lh: Float, hh: Float) -> Float:
    x = np.zeros((*ll.shape[:-2], 2 * ll.shape[-2], 2 * ll.shape[-1]))
    x[..., 0::2, 0::2] = (ll + hl + lh + hh) / 2
    x[..., 0::2, 1::2] = (ll - hl + lh - hh) / 2
    x[..., 1::2, 0::2] = (ll + hl - lh - hh) / 2
    x[..., 1::2, 1::2] = (ll - hl - lh + hh) / 2
    return x


def pad(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="symmetric")


def split_bands(image: NDArray[np.uint8]) -> Float:
    """uint8 RGB [H, W, 3] -> float64 [48, H'/4, W'/4]."""
    p = (pad(image).astype(np.float64) - 127.5) / 127.5
    colours = np.einsum("cr,hwr->chw", COLOURS, p)
    ll1, *level1 = haar(colours)
    level2 = haar(ll1)
    height, width = level2[0].shape[1:]
    bands = list(level2)
    for band in level1:
        blocks = band.reshape(3, height, 2, width, 2).transpose(0, 2, 4, 1, 3)
        bands.append(blocks.reshape(12, height, width))
    return np.concatenate(bands)


def merge_values(bands: NDArray[np.floating], height: int, width: int) -> Float:
    """[48, h, w] -> float64 [height, width, 3] before clamping and rounding."""
    bands = bands.astype(np.float64)
    _, h, w = bands.shape
    ll1 = inverse_haar(bands[0:3], bands[3:6], bands[6:9], bands[9:12])
    level1 = [
        bands[first : first + 12]
        .reshape(3, 2, 2, h, w)
        .transpose(0, 3, 1, 4, 2)
        .reshape(3, 2 * h, 2 * w)
        for first in (12, 24, 36)
    ]
    colours = inverse_haar(ll1, level1[0], level1[1], level1[2])
    rgb = np.einsum("cr,chw->hwr", COLOURS, colours)
    return (rgb * 127.5 + 127.5)[:height, :width]


# -- noise -----------------------------------------------------------------------------------------
NOISE_TABLE = [round(4096 * NormalDist().inv_cdf((t + 0.5) / 256)) for t in range(256)]


def noise(seed: int, count: int) -> NDArray[np.float32]:
    mask = (1 << 64) - 1
    sums = []
    for i in range(count):
        x = (i * 0x9E3779B97F4A7C15 + (seed + 1) * 0xD1B54A32D192ED03) & mask
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
        x = x ^ x >> 31
        sums.append(NOISE_TABLE[x >> 56] + NOISE_TABLE[x >> 48 & 255])
    return np.array(sums, np.float32) * np.float32(1 / (4096 * SQRT2))


# -- range coder: one big integer for the whole message --------------------------------------------
class RangeEncoder:
    """The message is a number of as many bytes as it takes; carries are the integer's own."""

    def __init__(self) -> None:
        self.low, self.range, self.shifted = 0, 1 << 48, 0

    def encode(self, start: int, frequency: int) -> None:
        unit = self.range >> 16
        self.low += unit * start
        self.range = unit * frequency
        while self.range <= 1 << 40:
            self.low <<= 8
            self.range <<= 8
            self.shifted += 1

    def finish(self) -> bytes:
        size = self.shifted + 6
        value = self.low
        for zero_bytes in range(size + 1):  # the most trailing zero bytes that the interval holds
            unit = 1 << 8 * zero_bytes
            rounded = -(-self.low // unit) * unit
            if rounded < self.low + self.range:
                value = rounded
        payload = value.to_bytes(size, "big")
        while payload.endswith(b"\0") and len(payload) > max(0, self.shifted - 2):
            payload = payload[:-1]
        return payload


class RangeDecoder:
    """Keeps the interval as a whole and compares it with the whole message."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.low, self.range, self.shifted = 0, 1 << 48, 0

    def target(self) -> int:
        taken = self.shifted + 6
        message = int.from_bytes(self.payload[:taken].ljust(taken, b"\0"), "big")
        return (message - self.low) // (self.range >> 16)

    def consume(self, start: int, frequency: int) -> None:
        unit = self.range >> 16
        self.low += unit * start
        self.range = unit * frequency
        while self.range <= 1 << 40:
            self.low <<= 8
            self.range <<= 8
            self.shifted += 1


@dataclass(frozen=True)
class Table:
    """Frequencies of the regular values offset, offset + 1, ..., then of the escape."""

    offset: int
    frequencies: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.frequencies) - 1

    @property
    def cdf(self) -> list[int]:
        return [0, *np.cumsum(self.frequencies).tolist()]


def escape_number(table: Table, value: int) -> int:
    end = table.offset + table.count
    return 2 * (value - end) if value >= end else 2 * (table.offset - 1 - value) + 1


def encode_value(coder: RangeEncoder, table: Table, value: int) -> None:
    index = value - table.offset
    regular = 0 <= index < table.count
    i = index if regular else table.count
    coder.encode(table.cdf[i], table.frequencies[i])
    if not regular:
        code = bin(escape_number(table, value) + 1)[2:]
        for bit in "0" * (len(code) - 1) + code:
            coder.encode(int(bit) * 32768, 32768)


def decode_value(coder: RangeDecoder, table: Table) -> int:
    def bit() -> int:
        value = coder.target() >> 15
        coder.consume(value * 32768, 32768)
        return value

    cdf = table.cdf
    i = bisect_right(cdf, coder.target()) - 1
    coder.consume(cdf[i], table.frequencies[i])
    if i < table.count:
        return table.offset + i
    zeros = 0
    while bit() == 0:
        zeros += 1
    code = 1
    for _ in range(zeros):
        code = 2 * code + bit()
    e = code - 1
    return table.offset + table.count + e // 2 if e % 2 == 0 else table.offset - 1 - e // 2


def value_bits(table: Table, value: int) -> float:
    """Ideal bits of one value."""
    index = value - table.offset
    if 0 <= index < table.count:
        return 16 - math.log2(table.frequencies[index])
    escape = 2 * (escape_number(table, value) + 1).bit_length() - 1
    return 16 - math.log2(table.frequencies[-1]) + escape


# -- the integer entropy model ---------------------------------------------------------------------
@dataclass
class Layer:
    """weight int64 [cout, cin, k, k], bias int64 [cout]."""

    weight: Int
    bias: Int
    shift: int
    lo: int
    hi: int


@dataclass
class Quantiser:
    """int64 [253, C]: units per symbol in Q12, symbols per unit in Q8, and the index offset."""

    step: Int
    gain: Int
    index_offset: Int


@dataclass
class TablePrior:
    """Version 1: each component of s and channel of z has a base and a table, (base, table)."""

    z_shift: int
    s_code: list[tuple[int, int]]
    z_code: list[tuple[int, int]]


@dataclass
class NetworkPrior:
    """Version 5: s has a mean and a scale, int64 [S]; z has networks; both have quantisers."""

    s_mean: Int
    s_scale: Int
    s: Quantiser
    z: Quantiser
    z_passes: list[list[Layer]]  # two


@dataclass
class Model:
    """What entropy_model.bin holds; names as in docs/bitstream.md."""

    num_s: int
    num_z: int
    num_y: int
    num_features: int
    group_sizes: list[int]
    group_scans: list[int]  # passes of each group; two under version 1
    group_starts: list[int]  # quality from which each group is coded; zero under version 1
    num_scales: int
    ctx_shift: int
    mean_shift: int
    scale_shift: int
    tables: list[Table]
    prior: TablePrior | NetworkPrior
    y: Quantiser
    h_s_z: list[Layer]
    h_s_y: list[Layer]
    passes: list[list[Layer]]

    @property
    def version(self) -> int:
        return 1 if isinstance(self.prior, TablePrior) else 5

    @property
    def residual_from(self) -> int:
        """The first start that is not 0; 255: there is no residual."""
        return next((start for start in self.group_starts if start), 255)

    @property
    def num_base(self) -> int:
        """Channels of y that are not the residual's."""
        return len(self.coded_channels(0))

    def base_quality(self, q: int) -> int:
        """What everything but the residual sees."""
        return min(q, self.residual_from)

    def coded_channels(self, q: int) -> Int:
        """The channels of y that are coded at quality q."""
        sizes = zip(self.group_sizes, self.group_starts, strict=True)
        return np.arange(sum(size for size, start in sizes if q >= start))

    def rows(self, q: int, channels: Int) -> Int:
        """The row of y's quantiser that each of `channels` uses."""
        return np.where(channels < self.num_base, self.base_quality(q), q)

    @property
    def unit_bits(self) -> int:
        """A symbol is 2^unit_bits levels."""
        return 0 if self.version == 1 else 4


def serialise(model: Model) -> bytes:
    """The bytes of entropy_model.bin."""
    prior = model.prior
    nets = [model.h_s_z, model.h_s_y, *model.passes]
    out = b"FSDEM\0\0" + bytes([model.version])
    counts = (model.num_s, model.num_z, model.num_y, model.num_features, len(model.group_sizes))
    out += struct.pack("<5H", *counts)
    for group in zip(model.group_sizes, model.group_scans, model.group_starts, strict=True):
        out += struct.pack("<H", group[0]) if model.version == 1 else struct.pack("<HBB", *group)
    out += struct.pack("<2H", len(model.y.step), model.num_scales)
    out += struct.pack("<3B", model.ctx_shift, model.mean_shift, model.scale_shift)
    if isinstance(prior, TablePrior):
        out += struct.pack("<B", prior.z_shift)
    out += struct.pack("<I", len(model.tables))
    for table in model.tables:
        out += struct.pack("<hH", table.offset, table.count)
        out += struct.pack(f"<{table.count + 1}H", *table.frequencies)
    if isinstance(prior, TablePrior):
        for base, index in prior.s_code + prior.z_code:
            out += struct.pack("<hH", base, index)
        quantisers = [model.y]
    else:
        out += prior.s_mean.astype("<i2").tobytes() + prior.s_scale.astype("<i2").tobytes()
        quantisers = [prior.s, prior.z, model.y]
        nets = [*prior.z_passes, *nets]
    for quantiser in quantisers:
        out += quantiser.step.astype("<i4").tobytes() + quantiser.gain.astype("<i4").tobytes()
        out += quantiser.index_offset.astype("<i2").tobytes()
    for net in nets:
        out += struct.pack("<H", len(net))
        for layer in net:
            cout, cin, k, _ = layer.weight.shape
            assert (np.abs(2 * layer.weight + 1) <= 255).all(), "int8"
            out += struct.pack("<2H2B2h", cin, cout, k, layer.shift, layer.lo, layer.hi)
            out += layer.weight.astype("i1").tobytes() + layer.bias.astype("<i4").tobytes()
    return out


def round_shift(v: Int, n: int) -> Int:
    return v if n == 0 else (v + (1 << (n - 1))) >> n


def run_layer(layer: Layer, x: Int) -> Int:
    """int64 [cin, H, W] -> [cout, H, W]."""
    k = layer.weight.shape[2]
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    acc = np.zeros((len(layer.bias), height, width), np.int64) + layer.bias[:, None, None]
    for a in range(k):
        for b in range(k):
            window = padded[:, a : a + height, b : b + width]
            acc += np.einsum("oc,chw->ohw", layer.weight[:, :, a, b], window)
    assert np.abs(acc).max() < 2**31
    return np.clip((acc + (1 << (layer.shift - 1))) >> layer.shift, layer.lo, layer.hi)


def run_net(net: list[Layer], x: Int) -> Int:
    for layer in net:
        x = run_layer(layer, x)
    return x


def planes(q: int, hy: int, wy: int, rows: int, columns: int) -> Int:
    """int64 [5, rows, columns]: quality, row and column on -64..63, height and width of y."""
    i, j = np.indices((rows, columns))
    return np.stack(
        [
            np.full_like(i, q >> 1),  # of the base
            (2 * i + 1) * 64 // rows - 64,
            (2 * j + 1) * 64 // columns - 64,
            np.full_like(i, min(127, 4 * hy)),
            np.full_like(i, min(127, 4 * wy)),
        ]
    )


def lattices(scan: int, rows: int, columns: int) -> list[Mask]:
    """The positions of each of `scan` passes, bool [rows, columns]."""
    i, j = np.indices((rows, columns)) % 2
    return {
        1: [i >= 0],
        2: [i == j, i != j],
        3: [(i == 0) & (j == 0), (i == 1) & (j == 1), i != j],
    }[scan]


def spread(vector: Int, rows: int, columns: int) -> Int:
    """[C] -> [C, rows, columns], the same everywhere."""
    return np.broadcast_to(vector[:, None, None], (len(vector), rows, columns))


def context(model: Model, quantiser: Quantiser, levels: Int, q: int) -> Int:
    """Levels [C, ...] as the networks see them."""
    channels = np.arange(len(levels))
    row = model.rows(q, channels) if quantiser is model.y else model.base_quality(q)
    step = quantiser.step[row, channels].reshape(-1, *[1] * (levels.ndim - 1))
    return np.clip(round_shift(levels.astype(np.int64) * step, model.ctx_shift), -127, 127)


def features(model: Model, s: Int, z: Int, q: int, hy: int, wy: int) -> Int:
    """int64 [F, hy, wy]."""
    prior = model.prior
    known = planes(model.base_quality(q), hy, wy, hy, wy)
    if isinstance(prior, TablePrior):
        a = np.clip(z.astype(np.int64) << prior.z_shift, -127, 127)
        known = known[:1]
    else:
        a = np.concatenate(
            [context(model, prior.z, z, q), spread(context(model, prior.s, s, q), *z.shape[1:])]
        )
    u = run_net(model.h_s_z, a)
    v = u.repeat(4, axis=1).repeat(4, axis=2)[:, :hy, :wy]
    return run_net(model.h_s_y, np.concatenate([v, known]))


@dataclass
class Pass:
    """One pass: which symbols it codes, in order, and with what.

    Attributes:
      part: 0 for s, 1 for z, 2 + p for pass p of y.
      where: indexes of each axis of s, z or y, int64 [n] each, in coding order.
      base, table: int64 [n].
    """

    part: int
    where: tuple[Int, ...]
    base: Int
    table: Int


def predict(
    model: Model, quantiser: Quantiser, q: int, channels: Int, mean: Int, scale: Int
) -> tuple[Int, Int]:
    """(base, table) of symbols of `channels` [n], from what a network says of them."""
    row = model.rows(q, channels) if quantiser is model.y else model.base_quality(q)
    gain, offset = quantiser.gain[row, channels], quantiser.index_offset[row, channels]
    m = round_shift(mean * gain, model.mean_shift)
    k = np.clip(round_shift(scale + offset, model.scale_shift), 0, model.num_scales - 1)
    if model.version == 1:
        m4 = np.clip(m, -32768, 32767)
        return m4 >> 2, 4 * k + (m4 & 3)
    return np.clip(m, -32768 * 16, 32767 * 16), k


def static_pass(part: int, codes: list[tuple[int, int]], shape: tuple[int, ...]) -> Pass:
    """Version 1: all of s, or all of z."""
    where = tuple(np.indices(shape).reshape(len(shape), -1))
    pairs = np.array(codes, np.int64).reshape(-1, 2)[where[0]]
    return Pass(part, where, pairs[:, 0], pairs[:, 1])


def s_pass(model: Model, prior: NetworkPrior, q: int) -> Pass:
    channels = np.arange(model.num_s)
    base, table = predict(model, prior.s, q, channels, prior.s_mean, prior.s_scale)
    return Pass(0, (channels,), base, table)


def lattice_pass(
    model: Model, part: int, quantiser: Quantiser, q: int, first: int, out: Int, lattice: Mask
) -> Pass:
    """A lattice of channels first, first + 1, ... from a network's output."""
    size = len(out) // 2
    channels, rows, columns = np.nonzero(np.broadcast_to(lattice, (size, *lattice.shape)))
    mean, scale = out[channels, rows, columns], out[size + channels, rows, columns]
    base, table = predict(model, quantiser, q, first + channels, mean, scale)
    return Pass(part, (first + channels, rows, columns), base, table)


def z_passes(
    model: Model, prior: NetworkPrior, s: Int, z: Int, q: int, hy: int, wy: int
) -> Iterator[Pass]:
    even, odd = lattices(2, *z.shape[1:])
    semantics = spread(context(model, prior.s, s, q), *z.shape[1:])
    known = np.concatenate([planes(model.base_quality(q), hy, wy, *z.shape[1:]), semantics])
    first = run_net(prior.z_passes[0], known)
    yield lattice_pass(model, 1, prior.z, q, 0, first, even)
    ctx = np.where(even, context(model, prior.z, z, q), 0)
    second = run_net(prior.z_passes[1], np.concatenate([known, ctx]))
    yield lattice_pass(model, 1, prior.z, q, 0, second, odd)


def y_passes(model: Model, f: Int, y: Int, q: int) -> Iterator[Pass]:
    p = first = 0
    for size, scan in zip(model.group_sizes, model.group_scans, strict=True):
        if first not in model.coded_channels(q):
            continue
        coded = np.zeros(y.shape[1:], bool)
        for step, lattice in enumerate(lattices(scan, *y.shape[1:])):
            ctx = context(model, model.y, y, q)
            inputs = [f, ctx[:first]]
            if step > 0:
                inputs.append(np.where(coded, ctx[first : first + size], 0))
            out = run_net(model.passes[p], np.concatenate(inputs))
            yield lattice_pass(model, 2 + p, model.y, q, first, out, lattice)
            coded |= lattice
            p += 1
        first += size


def walk(model: Model, s: Int, z: Int, y: Int, q: int) -> Iterator[Pass]:
    """All passes in coding order.

    Each reads what earlier ones coded, when its turn comes: a decoder starts with zeros and sets
    the levels of a pass before it asks for the next.
    """
    hy, wy = y.shape[1:]
    prior = model.prior
    if isinstance(prior, TablePrior):
        yield static_pass(0, prior.s_code, s.shape)
        yield static_pass(1, prior.z_code, z.shape)
    else:
        yield s_pass(model, prior, q)
        yield from z_passes(model, prior, s, z, q, hy, wy)
    yield from y_passes(model, features(model, s, z, q, hy, wy), y, q)


def log2_256(n: int) -> int:
    """log2 of n >= 1 in 1/256, rounded down, as docs/bitstream.md computes it."""
    whole = n.bit_length() - 1
    mantissa, log = n << (15 - whole), whole
    for _ in range(8):
        mantissa = mantissa * mantissa >> 15
        bit = mantissa >> 16
        log, mantissa = 2 * log + bit, mantissa >> bit
    return log


def priced_value(table: Table, value: int, away: int) -> int:
    """`value`, or the next towards zero if its error is worth the bits; `away`: in sixteenths."""
    if away == 16 * value:
        return value

    def cost(v: int) -> int:
        bits = 16 * 256 - log2_256(table.frequencies[v - table.offset])
        return 128 * (away - 16 * v) ** 2 + 15 * bits

    smaller = value - int(math.copysign(1, value))
    regular = all(0 <= v - table.offset < table.count for v in (value, smaller))
    return smaller if regular and cost(smaller) < cost(value) else value


def coded_passes(model: Model, s: Int, z: Int, y: Int, q: int) -> Iterator[tuple[Pass, Int]]:
    """All passes with the values that code the levels s, z, y, or the nearest that have a code."""
    latents = [latent.astype(np.int64) for latent in (s, z, y)]
    for one in walk(model, *latents, q):
        latent = latents[min(one.part, 2)]
        values = round_shift(latent[one.where] - one.base, model.unit_bits)
        if one.part >= 2:
            residual = one.where[0] >= model.num_base
            away = latent[one.where] - one.base
            for i in np.flatnonzero(residual & (values != 0)).tolist():
                values[i] = priced_value(model.tables[one.table[i]], int(values[i]), int(away[i]))
        levels = one.base + (values << model.unit_bits)
        values += (levels < -32768 << model.unit_bits).astype(np.int64)
        values -= (levels > 32767 << model.unit_bits).astype(np.int64)
        latent[one.where] = one.base + (values << model.unit_bits)
        yield one, values


def codable(model: Model, s: Int, z: Int, y: Int, q: int) -> tuple[Int, Int, Int]:
    """The levels nearest to s, z, y that have a code: what comes back."""
    latents = (
        np.zeros(s.shape, np.int64),
        np.zeros(z.shape, np.int64),
        np.zeros(y.shape, np.int64),
    )
    for one, values in coded_passes(model, s, z, y, q):
        latents[min(one.part, 2)][one.where] = one.base + (values << model.unit_bits)
    return latents


def indexes(model: Model, s: Int, z: Int, y: Int, q: int) -> tuple[Int, Int]:
    """(base, table) of y, int64 [Cy, hy, wy]."""
    base, table = np.zeros(y.shape, np.int64), np.zeros(y.shape, np.int64)
    for one, _ in coded_passes(model, s, z, y, q):
        if one.part >= 2:
            base[one.where], table[one.where] = one.base, one.table
    return base, table


def coded_values(model: Model, s: Int, z: Int, y: Int, q: int) -> list[tuple[int, Table, int]]:
    """Everything a payload codes, in order: (part, table, value)."""
    return [
        (one.part, model.tables[t], value)
        for one, values in coded_passes(model, s, z, y, q)
        for value, t in zip(values.tolist(), one.table.tolist(), strict=True)
    ]


def encode_latents(model: Model, s: Int, z: Int, y: Int, q: int) -> bytes:
    coder = RangeEncoder()
    for _, table, value in coded_values(model, s, z, y, q):
        encode_value(coder, table, value)
    return coder.finish()


def decode_latents(model: Model, payload: bytes, q: int, hy: int, wy: int) -> tuple[Int, Int, Int]:
    """(s, z, y) of a payload that is valid."""
    coder = RangeDecoder(payload)
    s = np.zeros(model.num_s, np.int64)
    z = np.zeros((model.num_z, -(-hy // 4), -(-wy // 4)), np.int64)
    y = np.zeros((model.num_y, hy, wy), np.int64)
    for one in walk(model, s, z, y, q):
        values = [decode_value(coder, model.tables[t]) for t in one.table.tolist()]
        levels = one.base + (np.array(values, np.int64) << model.unit_bits)
        (s, z, y)[min(one.part, 2)][one.where] = levels
    return s, z, y


def part_bits(model: Model, s: Int, z: Int, y: Int, q: int) -> Float:
    """Ideal bits of s, of z and of each pass of y."""
    bits = np.zeros(2 + len(model.passes))
    for part, table, value in coded_values(model, s, z, y, q):
        bits[part] += value_bits(table, value)
    return bits


# -- the file --------------------------------------------------------------------------------------
def crc16(data: bytes) -> int:
    """One bit at a time: the remainder of the data as a polynomial, from all ones."""
    crc = 0xFFFF
    for byte in data:
        for bit in range(7, -1, -1):
            out = (crc >> 15) ^ (byte >> bit & 1)
            crc = (crc << 1 & 0xFFFF) ^ (0x1021 if out else 0)
    return crc


def seal(front: bytes, payload: bytes = b"") -> bytes:
    """A file: what comes before the check, the check that it asks for, the payload."""
    if front[1] >> 4 > 1 and front[1] & 1:
        check = crc16(front + payload).to_bytes(2, "big")
    else:
        check = zlib.crc32(front + payload).to_bytes(4, "big")
    return front + check + payload


def take_apart(file: bytes) -> tuple[bytes, bytes, bytes]:
    """What comes before the check, the check, the payload."""
    version, square, short = file[1] >> 4, file[1] & 2, file[1] & 1
    start = 6 if version > 1 and square else 8
    end = start + (2 if version > 1 and short else 4)
    return file[:start], file[start:end], file[end:]


def pack_file(
    payload: bytes, model_id: int, width: int, height: int, quality: int, scale: int = 0
) -> bytes:
    """Header, of version 2 and as short as it can be, and payload; quality in quarter steps."""
    square = width == height and width % 16 == 0
    if square:
        size = bytes([width // 16 - 1])
    else:
        size = ((width - 1) << 12 | (height - 1)).to_bytes(3, "big")
    short = 5 + len(size) + len(payload) <= 4093
    flags = 2 << 4 | scale << 2 | 2 * square | short
    front = bytes([0xFA, flags]) + model_id.to_bytes(2, "big") + size + bytes([quality])
    return seal(front, payload)


# -- random models ---------------------------------------------------------------------------------
def integer_frequencies(pmf: NDArray[np.floating]) -> tuple[int, ...]:
    """Frequencies >= 1 that sum to 65536, close to pmf [n], which need not be normalised."""
    n = len(pmf)
    frequencies = 1 + np.floor(np.asarray(pmf) / np.sum(pmf) * (65536 - n)).astype(np.int64)
    frequencies[np.argmax(frequencies)] += 65536 - frequencies.sum()
    return tuple(frequencies.tolist())


def laplace_table(scale: float, mean: float) -> Table:
    """A discretised Laplace distribution with an escape for its tails."""
    reach = max(1, math.ceil(6 * scale))
    v = np.arange(-reach, reach + 2)
    pmf = np.exp(-np.abs(v - mean) / scale)
    return Table(-reach, integer_frequencies(np.append(pmf, 0.004 * pmf.sum())))


def random_layer(
    rng: np.random.Generator, cin: int, cout: int, k: int, lo: int, hi: int, amplitude: int = 128
) -> Layer:
    """Weights in the whole range of int8, a shift that brings sums back to about lo..hi."""
    weight = rng.integers(-amplitude, amplitude, (cout, cin, k, k))
    bias = rng.integers(-20000, 20001, cout)
    shift = max(1, int(math.log2(math.sqrt(cin * k * k) * amplitude / 2)))
    return Layer(weight.astype(np.int64), bias.astype(np.int64), shift, lo, hi)


def random_quantiser(rng: np.random.Generator, channels: int, reach: float) -> Quantiser:
    """Gains from -reach to reach octaves along the quality, a little different by channel."""
    octaves = np.linspace(-reach, reach, NUM_Q)[:, None] + rng.uniform(-0.3, 0.3, channels)
    return Quantiser(
        step=np.rint(4096 * 2**-octaves).astype(np.int64),
        gain=np.rint(256 * 2**octaves).astype(np.int64),
        index_offset=np.rint(20 * octaves).astype(np.int64) + 60,
    )


def random_table_prior(
    rng: np.random.Generator, num_s: int, num_z: int, tables: range
) -> TablePrior:
    s_code, z_code = (
        [(int(rng.integers(-3, 4)), int(rng.integers(tables[0], tables[-1] + 1))) for _ in range(n)]
        for n in (num_s, num_z)
    )
    return TablePrior(3, s_code, z_code)


def random_network_prior(rng: np.random.Generator, num_s: int, num_z: int) -> NetworkPrior:
    hidden = int(rng.integers(1, 14))
    return NetworkPrior(
        s_mean=rng.integers(-300, 301, num_s),
        s_scale=rng.integers(-60, 60, num_s),
        s=random_quantiser(rng, num_s, 1.0),
        z=random_quantiser(rng, num_z, 1.0),
        z_passes=[
            [
                random_layer(rng, 5 + num_s, hidden, 1, 0, 127),
                random_layer(rng, hidden, 2 * num_z, 1, -900, 900),
            ],
            [
                random_layer(rng, 5 + num_s + num_z, hidden, 3, 0, 127),
                random_layer(rng, hidden, 2 * num_z, 1, -900, 900),
            ],
        ],
    )


def random_model(
    rng: np.random.Generator,
    version: int,
    num_s: int = 4,
    num_z: int = 3,
    num_features: int = 8,
    group_sizes: tuple[int, ...] = (3, 5),
    group_scans: tuple[int, ...] = (3, 1, 2, 3),
    residual_from: int = 120,
    group_starts: tuple[int, ...] = (),
    num_scales: int = 16,
    last_kernel: int = 1,
) -> Model:
    """A small model whose predictions vary widely.

    version: of the file, 1 or 5.
    group_scans: of version 5, where it has more than the groups need, the first ones.
    residual_from: of version 5: where the last of several groups starts.
    group_starts: of version 5, where all of them start, instead.
    last_kernel: 1 or 3, of the last layer of the networks of y's passes.
    """
    num_y = sum(group_sizes)
    tables = [
        laplace_table(0.15 * 2 ** (6 * k / num_scales), frac / 4)
        for k in range(num_scales)
        for frac in (range(4) if version == 1 else (0,))
    ]
    known, num_planes = (0, 1) if version == 1 else (num_s, 5)
    u_channels = int(rng.integers(1, 12))
    h_s_z = [
        random_layer(rng, num_z + known, u_channels, 3, 0, 127),
        random_layer(rng, u_channels, u_channels, 1, -127, 127),
    ]
    h_s_y = [random_layer(rng, u_channels + num_planes, num_features, 3, 0, 127)]
    scans = [2 if version == 1 else scan for _, scan in zip(group_sizes, group_scans, strict=False)]
    passes = []
    before = num_features
    for size, scan in zip(group_sizes, scans, strict=True):
        for step in range(scan):
            cin = before + (size if step > 0 else 0)
            hidden = int(rng.integers(1, 14))
            passes.append(
                [
                    random_layer(rng, cin, hidden, 3, 0, 127),
                    random_layer(rng, hidden, hidden, 1, 0, 300),
                    random_layer(rng, hidden, 2 * size, last_kernel, -900, 900),
                ]
            )
        before += size
    starts = [0] * len(group_sizes)
    if version != 1:
        starts = list(group_starts) or [*starts[1:], residual_from if len(starts) > 1 else 0]
    y = random_quantiser(rng, num_y, 2.5)
    prior: TablePrior | NetworkPrior
    if version == 1:
        tables += [laplace_table(1.0 + i, 0.0) for i in range(4)]
        prior = random_table_prior(rng, num_s, num_z, range(4 * num_scales, len(tables)))
    else:
        prior = random_network_prior(rng, num_s, num_z)
    return Model(
        num_s=num_s,
        num_z=num_z,
        num_y=num_y,
        num_features=num_features,
        group_sizes=list(group_sizes),
        group_scans=scans,
        group_starts=starts,
        num_scales=num_scales,
        ctx_shift=9 if version == 1 else 13,
        mean_shift=11 if version == 1 else 9,
        scale_shift=3,
        tables=tables,
        prior=prior,
        y=y,
        h_s_z=h_s_z,
        h_s_y=h_s_y,
        passes=passes,
    )


def random_latents(
    rng: np.random.Generator, model: Model, hy: int, wy: int, spread: float = 3.0
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """(s, z, y) as levels, int32, Laplace-like, with a few far outliers; `spread` in symbols."""
    unit = 1 << model.unit_bits

    def draw(*shape: int) -> NDArray[np.int32]:
        v = np.rint(rng.laplace(0, spread * unit, shape))
        far = rng.random(shape) < 0.004
        v = np.where(far, rng.integers(-32768 * unit, 32767 * unit + 1, shape), v)
        return v.astype(np.int32)

    return (
        draw(model.num_s),
        draw(model.num_z, -(-hy // 4), -(-wy // 4)),
        draw(model.num_y, hy, wy),
    )


def table_model(tables: list[Table], version: int = 5) -> Model:
    """The smallest model around `tables` (version 1: at least four), for tests of the coder alone.

    It predicts zero with the first table for z.
    """

    def layer(cin: int, cout: int, weight: int = 1) -> list[Layer]:
        weights = np.full((cout, cin, 1, 1), weight, np.int64)
        return [Layer(weights, np.zeros(cout, np.int64), 1, -127, 127)]

    def ones(channels: int) -> Quantiser:
        values = np.ones((NUM_Q, channels), np.int64)
        return Quantiser(values, values, 0 * values)

    nothing = np.zeros(0, np.int64)
    learned = NetworkPrior(nothing, nothing, ones(0), ones(1), [layer(5, 2, 0), layer(6, 2, 0)])
    return Model(
        num_s=0,
        num_z=1,
        num_y=1,
        num_features=1,
        group_sizes=[1],
        group_scans=[2],
        group_starts=[0],
        num_scales=1,
        ctx_shift=0,
        mean_shift=0,
        scale_shift=0,
        tables=tables,
        prior=TablePrior(0, [], [(0, 0)]) if version == 1 else learned,
        y=ones(1),
        h_s_z=layer(1, 1),
        h_s_y=layer(2 if version == 1 else 6, 1),
        passes=[layer(1, 2), layer(2, 2)],
    )


def random_table(rng: np.random.Generator, count: int) -> Table:
    """`count` regular values anywhere in int16, frequencies over many orders of magnitude."""
    pmf = np.exp(rng.normal(0, 3, count + 1))
    return Table(int(rng.integers(-32768, 32768)), integer_frequencies(pmf))
