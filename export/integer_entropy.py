"""The integer entropy model, as the trainer simulates it and as the file stores it.

Every value that decides a probability is an integer. In training the integers are carried in
float32 tensors whose magnitudes stay below 2^24, so that float arithmetic is exact, and gradients
pass through the roundings (straight-through estimator). `docs/bitstream.md` defines the same
arithmetic; the C++ in `csrc/` implements it, and a test demands equal indexes from both.

All modules here must run outside autocast: bfloat16 would corrupt the integers.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_Q = 253  # quality 0..63 in quarter steps
MAX_ACTIVATION = 127
NUM_SCALES = 48
SCALE_MIN = 0.05  # of the logistic distribution, in symbols
SCALES_PER_OCTAVE = 5
TABLES_PER_SCALE = 4  # fractional means 0, 1/4, 1/2, 3/4
CDF_BITS = 16
STEP_BITS, GAIN_BITS = 12, 8  # fixed-point bits of `step` (y per symbol) and `gain` (symbols per y)
CONTEXT_BITS = 3  # activations count eighths of a latent unit
MEAN_BITS = 4  # mean outputs count sixteenths of a latent unit
SCALE_BITS = 4  # scale outputs count sixteenths of a table step
CONTEXT_SHIFT = STEP_BITS - CONTEXT_BITS
MEAN_SHIFT = MEAN_BITS + GAIN_BITS - 2
SCALE_SHIFT = SCALE_BITS
NUM_PLANES = 5  # quality, row, column, height, width
KNOTS = 9  # of the gains along the quality
MAGIC = b"FSDEM\0\0\x02"


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """`hard` in the forward pass, the gradient of `soft` in the backward pass."""
    return soft + (hard - soft).detach()


def round_shift(value: Tensor, bits: int) -> Tensor:
    """Integer rounding division by 2^bits, half towards +infinity; `value` is an int64 tensor."""
    return value if bits == 0 else (value + (1 << (bits - 1))) >> bits


class IntegerConv2d(nn.Module):
    """Convolution of integers: int8 weights, int32 accumulator, shift with rounding, clamp.

    Args:
      cin, cout, kernel: channels and size (1 or 3); zero padding.
      shift: right shift of the accumulator; a weight of 1.0 is stored as 2^(shift - out_shift).
      out_shift: extra resolution of the output: its unit is the input's unit / 2^out_shift.
      lo, hi: clamp of the output; lo = 0 makes it a ReLU.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int, shift: int, lo: int, hi: int, out_shift: int = 0
    ) -> None:
        super().__init__()
        self.kernel, self.shift, self.lo, self.hi = kernel, shift, lo, hi
        self.weight_scale = float(1 << (shift + out_shift))
        self.weight = nn.Parameter(torch.empty(cout, cin, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(cout))  # in output units
        nn.init.kaiming_normal_(self.weight)

    def integer_weight(self) -> Tensor:
        """Weights as integers in a float32 tensor, straight-through."""
        soft = (self.weight * self.weight_scale).clamp(-127, 127)
        return straight_through(soft, soft.round())

    def integer_bias(self) -> Tensor:
        soft = (self.bias * float(1 << self.shift)).clamp(-(2.0**22), 2.0**22)
        return straight_through(soft, soft.round())

    def forward(self, x: Tensor) -> Tensor:
        acc = F.conv2d(x, self.integer_weight(), self.integer_bias(), padding=self.kernel // 2)
        soft = acc * (1.0 / (1 << self.shift))
        hard = torch.floor(soft.detach() + 0.5)  # exact: acc < 2^24, division by a power of two
        return straight_through(soft, hard).clamp(self.lo, self.hi)


def hidden(cin: int, cout: int, kernel: int) -> IntegerConv2d:
    return IntegerConv2d(cin, cout, kernel, shift=8 if kernel == 3 else 7, lo=0, hi=MAX_ACTIVATION)


@dataclass
class EntropyConfig:
    """Sizes of the integer entropy model; symbols as in `docs/bitstream.md`."""

    num_s: int = 24
    num_z: int = 12
    num_y: int = 96
    num_features: int = 48
    group_sizes: list[int] = field(default_factory=lambda: [16, 80])
    group_scans: list[int] = field(default_factory=lambda: [3, 1])  # passes of each group
    hidden_z: int = 64
    hidden_pass: int = 64


class Gains(nn.Module):
    """Learned gain of each channel of a latent along the quality: symbols = latent x gain."""

    def __init__(self, channels: int, reach: float) -> None:
        super().__init__()
        # log2 of the gain at KNOTS qualities; the middle is 1, the ends +-`reach` octaves
        base = torch.linspace(-reach, reach, KNOTS)[:, None].repeat(1, channels)
        self.log2_gain = nn.Parameter(base)

    def all_q(self) -> Tensor:
        """Float log2 gains [NUM_Q, C], linear between the knots."""
        pos = torch.arange(NUM_Q, dtype=torch.float32) * ((KNOTS - 1) / (NUM_Q - 1))
        i = pos.floor().clamp(max=KNOTS - 2).long()
        t = (pos - i)[:, None]
        return self.log2_gain[i] * (1 - t) + self.log2_gain[i + 1] * t

    def at(self, q: Tensor, dims: int) -> Tensor:
        """Float log2 gains of qualities q [B], as [B, C] followed by `dims` axes of 1."""
        return self.all_q()[q].reshape(len(q), -1, *[1] * dims)

    def step(self, q: Tensor, dims: int) -> Tensor:
        """Latent units per symbol as the file's integers give them, shaped as `at`."""
        log2_gain = self.at(q, dims)
        hard = q_tables(log2_gain)[0].float() * 2.0**-STEP_BITS
        return straight_through(torch.exp2(-log2_gain), hard)

    def round(self, latent: Tensor, q: Tensor) -> Tensor:
        """Symbols of a latent [B, C, ...], straight-through."""
        scaled = latent / self.step(q, latent.ndim - 2)
        return straight_through(scaled, scaled.round())


def q_tables(log2_gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integer step (Q12), gain (Q8) and index offset, int64, from float log2 gains."""
    g = log2_gain.detach().double()
    step = torch.exp2(-g + STEP_BITS).round().clamp(1, 2**24 - 1).long()
    gain = torch.exp2(g + GAIN_BITS).round().clamp(1, 2**20 - 1).long()
    offset = (g * (SCALES_PER_OCTAVE << SCALE_BITS)).round().clamp(-32768, 32767).long()
    return step, gain, offset


@dataclass
class Prediction:
    """What the decoder knows of a symbol before it reads it.

    Attributes:
      m4: mean in quarter symbols, k: scale index; both straight-through.
      base, table: int64 indexes as the C++ computes them.
    """

    m4: Tensor
    k: Tensor
    base: Tensor
    table: Tensor

    @classmethod
    def of(cls, mean: Tensor, scale: Tensor, log2_gain: Tensor) -> Prediction:
        """From the integer outputs of a network: sixteenths of a latent unit, of an index."""
        _, gain, offset = q_tables(log2_gain)
        m4_hard = round_shift(mean.detach().long() * gain, MEAN_SHIFT).clamp(-32768, 32767)
        m4 = straight_through(mean * torch.exp2(log2_gain + (2 - MEAN_BITS)), m4_hard.float())
        k_hard = round_shift(scale.detach().long() + offset, SCALE_SHIFT).clamp(0, NUM_SCALES - 1)
        k_soft = scale / (1 << SCALE_BITS) + log2_gain * SCALES_PER_OCTAVE
        k = straight_through(k_soft, k_hard.float())
        return cls(m4, k, m4_hard >> 2, TABLES_PER_SCALE * k_hard + (m4_hard & 3))


def output(cin: int, channels: int) -> IntegerConv2d:
    """The last layer of a prediction: means, then scales, of `channels` channels."""
    out = IntegerConv2d(cin, 2 * channels, 1, shift=7, lo=-2047, hi=2047, out_shift=1)
    with torch.no_grad():
        out.weight.mul_(0.3)
        out.bias[channels:] = _start_scale()
    return out


def _start_scale() -> float:
    """A logistic scale of 0.35 symbols at gain 1, in sixteenths of an index."""
    return 2**SCALE_BITS * SCALES_PER_OCTAVE * math.log2(0.35 / SCALE_MIN)


class EntropyModel(nn.Module):
    """Predicts z from s and the position, y from z, s and the symbols of earlier passes."""

    def __init__(self, config: EntropyConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or EntropyConfig()
        self.s_gains = Gains(c.num_s, 1.0)
        self.z_gains = Gains(c.num_z, 0.5)
        self.y_gains = Gains(c.num_y, 3.5)
        # static prediction of s, in sixteenths
        self.s_mean = nn.Parameter(torch.zeros(c.num_s))
        self.s_scale = nn.Parameter(torch.full((c.num_s,), _start_scale()))
        known = NUM_PLANES + c.num_s
        self.z_passes = nn.ModuleList(
            [
                nn.Sequential(
                    hidden(known, c.hidden_z, 1),
                    hidden(c.hidden_z, c.hidden_z, 1),
                    output(c.hidden_z, c.num_z),
                ),
                nn.Sequential(hidden(known + c.num_z, c.hidden_z, 3), output(c.hidden_z, c.num_z)),
            ]
        )
        self.h_s_z = nn.Sequential(hidden(c.num_z + c.num_s, c.hidden_z, 3))
        self.h_s_y = nn.Sequential(hidden(c.hidden_z + NUM_PLANES, c.num_features, 3))
        passes = []
        done = 0
        for size, scan in zip(c.group_sizes, c.group_scans, strict=True):
            for step in range(scan):
                cin = c.num_features + done + (size if step else 0)
                passes.append(
                    nn.Sequential(hidden(cin, c.hidden_pass, 3), output(c.hidden_pass, size))
                )
            done += size
        self.passes = nn.ModuleList(passes)

    # -- network ---------------------------------------------------------------------------------
    @staticmethod
    def context(symbols: Tensor, log2_gain: Tensor) -> Tensor:
        """Dequantised symbols in eighths of a latent unit, as the networks see them."""
        step = q_tables(log2_gain)[0]
        hard = round_shift(symbols.detach().long() * step, CONTEXT_SHIFT)
        soft = symbols * torch.exp2(-log2_gain.detach() + CONTEXT_BITS)
        return straight_through(soft, hard.float()).clamp(-MAX_ACTIVATION, MAX_ACTIVATION)

    def z_parameters(self, s_context: Tensor, z: Tensor, q: Tensor, hy: int, wy: int) -> Prediction:
        """Predictions of z [B, Cz, hz, wz] in its two checkerboard passes."""
        hz, wz = z.shape[2:]
        log2_gain = self.z_gains.at(q, 2)
        known = self.z_known(s_context, q, hy, wy, hz, wz)
        even, odd = lattices(2, hz, wz)
        ctx = self.context(z, log2_gain) * even
        first = self.z_passes[0](known)
        second = self.z_passes[1](torch.cat([known, ctx], 1))
        mean, scale = (first * even + second * odd).chunk(2, 1)
        return Prediction.of(mean, scale, log2_gain)

    @staticmethod
    def z_known(s_context: Tensor, q: Tensor, hy: int, wy: int, hz: int, wz: int) -> Tensor:
        """Planes and semantics at every position of z, [B, NUM_PLANES + S, hz, wz]."""
        semantics = s_context[:, :, None, None].expand(-1, -1, hz, wz)
        return torch.cat([constant_planes(q, hy, wy, hz, wz), semantics], 1)

    def features(self, s_context: Tensor, z: Tensor, q: Tensor, hy: int, wy: int) -> Tensor:
        """Integer features [B, F, hy, wy] from z symbols [B, Cz, hz, wz] and q [B]."""
        a = self.context(z, self.z_gains.at(q, 2))
        s_planes = s_context[:, :, None, None].expand(-1, -1, *z.shape[2:])
        u = self.h_s_z(torch.cat([a, s_planes], 1))
        u = u.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :hy, :wy]
        return self.h_s_y(torch.cat([u, constant_planes(q, hy, wy, hy, wy)], 1))

    def y_parameters(self, s: Tensor, z: Tensor, y: Tensor, q: Tensor) -> Prediction:
        """What the decoder would predict for every y symbol, all passes together.

        Args:
          s, z, y: integer symbols in float32 (with gradients), [B, S], [B, Cz, hz, wz] and
            [B, Cy, hy, wy].
          q: int64 [B], quality in quarter steps.
        """
        hy, wy = y.shape[2:]
        log2_gain = self.y_gains.at(q, 2)
        f = self.features(self.context(s, self.s_gains.at(q, 0)), z, q, hy, wy)
        ctx = self.context(y, log2_gain)
        means, scales = [], []
        passes = iter(self.passes)
        done = 0
        for size, scan in zip(self.config.group_sizes, self.config.group_scans, strict=True):
            known = [f, ctx[:, :done]]
            coded = torch.zeros(1, 1, hy, wy)
            total = torch.zeros(())
            for step, lattice in enumerate(lattices(scan, hy, wy)):
                group = [ctx[:, done : done + size] * coded] if step else []
                total = total + next(passes)(torch.cat([*known, *group], 1)) * lattice
                coded = coded + lattice
            means.append(total[:, :size])
            scales.append(total[:, size:])
            done += size
        return Prediction.of(torch.cat(means, 1), torch.cat(scales, 1), log2_gain)

    def y_masks(self, hy: int, wy: int) -> list[Tensor]:
        """Which symbols each pass codes, float [1, Cy, hy, wy]."""
        masks = []
        done = 0
        for size, scan in zip(self.config.group_sizes, self.config.group_scans, strict=True):
            for lattice in lattices(scan, hy, wy):
                mask = torch.zeros(1, self.config.num_y, hy, wy)
                mask[:, done : done + size] = lattice
                masks.append(mask)
            done += size
        return masks

    def s_prior(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of s [S] in sixteenths, within what the file holds, not yet rounded."""
        return self.s_mean.clamp(-2047, 2047), self.s_scale.clamp(-2047, 2047)

    def s_parameters(self, q: Tensor) -> Prediction:
        """Static predictions of s, [B, S]."""
        mean, scale = (straight_through(p, p.round()) for p in self.s_prior())
        count = len(q)
        return Prediction.of(mean.expand(count, -1), scale.expand(count, -1), self.s_gains.at(q, 0))

    def bits(self, s: Tensor, z: Tensor, y: Tensor, q: Tensor) -> dict[str, Tensor]:
        """Bits of each part per image [B]: s, z, y0, y1, ...; the symbols are float32 integers."""
        hy, wy = y.shape[2:]
        ps = self.s_parameters(q)
        pz = self.z_parameters(self.context(s, self.s_gains.at(q, 0)), z, q, hy, wy)
        py = self.y_parameters(s, z, y, q)
        y_bits = symbol_bits(y, py.m4, py.k)
        parts = {
            "s": symbol_bits(s, ps.m4, ps.k).sum(1),
            "z": symbol_bits(z, pz.m4, pz.k).sum((1, 2, 3)),
        }
        for p, mask in enumerate(self.y_masks(hy, wy)):
            parts[f"y{p}"] = (y_bits * mask).sum((1, 2, 3))
        return parts


def lattices(scan: int, rows: int, columns: int) -> list[Tensor]:
    """The positions of each of `scan` passes, float [1, 1, rows, columns] of 0 and 1.

    One pass: all. Two: row + column even, odd (a checkerboard). Three: both even, both odd, the
    rest (the first half of the checkerboard in two).
    """
    i, j = torch.arange(rows)[:, None] % 2, torch.arange(columns)[None, :] % 2
    odd = (i + j) % 2
    found = {1: [odd >= 0], 2: [odd == 0, odd == 1], 3: [i + j == 0, i + j == 2, odd == 1]}[scan]
    return [lattice.float()[None, None] for lattice in found]


def constant_planes(q: Tensor, hy: int, wy: int, rows: int, columns: int) -> Tensor:
    """What both sides know of every position: [B, NUM_PLANES, rows, columns], integers.

    Quality, row and column on -64..63, and the size of y, so that a prior can be positional.
    """
    row = (2 * torch.arange(rows) + 1) * 64 // rows - 64
    column = (2 * torch.arange(columns) + 1) * 64 // columns - 64
    shape = (len(q), 1, rows, columns)
    planes = [
        (q >> 1)[:, None, None, None].expand(shape),
        row[None, None, :, None].expand(shape),
        column[None, None, None, :].expand(shape),
        torch.full(shape, min(MAX_ACTIVATION, 4 * hy)),
        torch.full(shape, min(MAX_ACTIVATION, 4 * wy)),
    ]
    return torch.cat(planes, 1).float()


def symbol_bits(v: Tensor, m4: Tensor, k: Tensor) -> Tensor:
    """-log2 of the discretised logistic pmf at integer v; mean m4 / 4, scale index k."""
    inv_scale = torch.exp2(-k / SCALES_PER_OCTAVE) * (1.0 / SCALE_MIN)
    d = (v - m4 * 0.25).abs()
    upper, lower = (0.5 - d) * inv_scale, (-0.5 - d) * inv_scale
    # sigmoid(upper) - sigmoid(lower), both evaluated in the lower tail for accuracy; the bound
    # keeps gradients finite far from the mean, where the file uses an escape code of some 20 bits
    p = (torch.sigmoid(upper) - torch.sigmoid(lower)).clamp_min(1e-7)
    return -torch.log2(p)


# -- the file ------------------------------------------------------------------------------------
def logistic_table(scale: float, mean: float) -> tuple[int, list[int]]:
    """Integer frequencies of a discretised logistic and the escape; they sum to 2^16.

    Returns:
      (offset, freq): smallest regular symbol, frequencies of the regular symbols and of the escape.
    """
    total = 1 << CDF_BITS
    tail = 2.0**-14  # mass left to the escape on each side, about
    reach = min(500, max(1, math.ceil(scale * math.log(1 / tail))))
    offset, n = -reach + math.floor(mean), 2 * reach + 1 + (1 if mean > 0 else 0)
    edges = (np.arange(n + 1) + offset - 0.5 - mean) / scale
    cdf = 0.5 * (1 + np.tanh(edges / 2))
    pmf = np.append(np.diff(cdf), 1.0 - (cdf[-1] - cdf[0]))
    freq = np.maximum(1, np.floor(pmf * total)).astype(np.int64)
    freq[int(np.argmax(freq))] += total - int(freq.sum())
    if freq.min() < 1 or freq.max() > 65535 or freq.sum() != total:
        raise ValueError(f"no valid table for scale {scale}, mean {mean}")
    return offset, [int(f) for f in freq]


def scale_of_index(k: int) -> float:
    return SCALE_MIN * 2.0 ** (k / SCALES_PER_OCTAVE)


def serialize(model: EntropyModel) -> bytes:
    """The entropy model as the bytes of `entropy_model.bin` (docs/bitstream.md).

    Raises:
      ValueError: an accumulator could leave the integers that float32 holds exactly, so that
        training might have seen other numbers than the file gives.
    """
    c = model.config
    out = bytearray(MAGIC)
    out += struct.pack("<5H", c.num_s, c.num_z, c.num_y, c.num_features, len(c.group_sizes))
    for size, scan in zip(c.group_sizes, c.group_scans, strict=True):
        out += struct.pack("<HB", size, scan)
    out += struct.pack("<2H", NUM_Q, NUM_SCALES)
    out += struct.pack("<3B", CONTEXT_SHIFT, MEAN_SHIFT, SCALE_SHIFT)
    out += struct.pack("<I", NUM_SCALES * TABLES_PER_SCALE)
    for k in range(NUM_SCALES):
        for frac in range(TABLES_PER_SCALE):
            offset, freq = logistic_table(scale_of_index(k), frac / TABLES_PER_SCALE)
            out += struct.pack(f"<hH{len(freq)}H", offset, len(freq) - 1, *freq)
    with torch.no_grad():
        for values in model.s_prior():
            out += values.round().numpy().astype("<i2").tobytes()
        for gains in (model.s_gains, model.z_gains, model.y_gains):
            step, gain, index_offset = q_tables(gains.all_q())
            out += step.numpy().astype("<i4").tobytes()
            out += gain.numpy().astype("<i4").tobytes()
            out += index_offset.numpy().astype("<i2").tobytes()
        for net in [*model.z_passes, model.h_s_z, model.h_s_y, *model.passes]:
            out += struct.pack("<H", len(net))
            for layer in net:
                w = layer.integer_weight().round().numpy()
                bias = layer.integer_bias().round().numpy()
                reach = (np.abs(w).sum((1, 2, 3)) * MAX_ACTIVATION + np.abs(bias)).max()
                if reach >= 1 << 24:
                    raise ValueError(f"an accumulator may reach {reach:.0f}, over 2^24")
                out += struct.pack(
                    "<2H2B2h", w.shape[1], w.shape[0], layer.kernel, layer.shift, layer.lo, layer.hi
                )
                out += w.astype(np.int8).tobytes()
                out += bias.astype("<i4").tobytes()
    return bytes(out)
