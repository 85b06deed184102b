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
CONTEXT_BITS = 3  # activations count eighths of y
MEAN_BITS = 4  # mean outputs count sixteenths of y
SCALE_BITS = 4  # scale outputs count sixteenths of a table step
CONTEXT_SHIFT = STEP_BITS - CONTEXT_BITS
MEAN_SHIFT = MEAN_BITS + GAIN_BITS - 2
SCALE_SHIFT = SCALE_BITS
MAGIC = b"FSDEM\0\0\x01"


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

    num_s: int = 16
    num_z: int = 12
    num_y: int = 64
    num_features: int = 48
    group_sizes: list[int] = field(default_factory=lambda: [16, 48])
    hidden_z: int = 64
    hidden_pass: int = 64


class EntropyModel(nn.Module):
    """Rates and CDF indexes of s, z and y: hyper-latent features, then checkerboard passes."""

    def __init__(self, config: EntropyConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or EntropyConfig()
        knots = 9
        # log2 of the gain at `knots` qualities; the middle is 1, ends +-2.75 octaves
        base = torch.linspace(-2.75, 2.75, knots)[:, None].repeat(1, c.num_y)
        self.log2_gain = nn.Parameter(base)
        self.h_s_z = nn.Sequential(hidden(c.num_z, c.hidden_z, 3))
        self.h_s_y = nn.Sequential(hidden(c.hidden_z + 1, c.num_features, 3))
        passes = []
        done = 0
        for size in c.group_sizes:
            for half in (0, 1):
                cin = c.num_features + done + (size if half else 0)
                out = IntegerConv2d(
                    c.hidden_pass, 2 * size, 1, shift=7, lo=-2047, hi=2047, out_shift=1
                )
                with torch.no_grad():
                    out.weight.mul_(0.3)
                    # start at a logistic scale of 0.35 symbols at gain 1
                    out.bias[size:] = (
                        2**SCALE_BITS * SCALES_PER_OCTAVE * math.log2(0.35 / SCALE_MIN)
                    )
                passes.append(nn.Sequential(hidden(cin, c.hidden_pass, 3), out))
            done += size
        self.passes = nn.ModuleList(passes)
        # static tables of z and s: mean in quarter symbols, scale index
        start = SCALES_PER_OCTAVE * math.log2(0.5 / SCALE_MIN)
        self.z_mean = nn.Parameter(torch.zeros(c.num_z))
        self.z_scale = nn.Parameter(torch.full((c.num_z,), start))
        self.s_mean = nn.Parameter(torch.zeros(c.num_s))
        self.s_scale = nn.Parameter(torch.full((c.num_s,), start))

    # -- tables of the quality ------------------------------------------------------------------
    def q_log2_gain(self) -> Tensor:
        """Float log2 gains [NUM_Q, num_y], linear between the knots."""
        knots = self.log2_gain.shape[0]
        pos = torch.arange(NUM_Q, dtype=torch.float32) * ((knots - 1) / (NUM_Q - 1))
        i = pos.floor().clamp(max=knots - 2).long()
        t = (pos - i)[:, None]
        return self.log2_gain[i] * (1 - t) + self.log2_gain[i + 1] * t

    @staticmethod
    def q_tables(log2_gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integer step (Q12), gain (Q8) and index offset, int64, from float log2 gains."""
        g = log2_gain.detach().double()
        step = torch.exp2(-g + STEP_BITS).round().clamp(1, 2**24 - 1).long()
        gain = torch.exp2(g + GAIN_BITS).round().clamp(1, 2**20 - 1).long()
        offset = (g * (SCALES_PER_OCTAVE << SCALE_BITS)).round().clamp(-32768, 32767).long()
        return step, gain, offset

    # -- network ---------------------------------------------------------------------------------
    def features(self, z: Tensor, q: Tensor, hy: int, wy: int) -> Tensor:
        """Integer features [B, F, hy, wy] from z symbols [B, Cz, hz, wz] and q [B]."""
        a = (z * (1 << CONTEXT_BITS)).clamp(-MAX_ACTIVATION, MAX_ACTIVATION)
        u = self.h_s_z(a)
        u = u.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :hy, :wy]
        plane = (q >> 1).float()[:, None, None, None].expand(-1, 1, hy, wy)
        return self.h_s_y(torch.cat([u, plane], 1))

    def y_parameters(
        self, z: Tensor, y: Tensor, q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """What the decoder would predict for every y symbol, pass by pass.

        Args:
          z, y: integer symbols in float32 (with gradients), [B, Cz, hz, wz] and [B, Cy, hy, wy].
          q: int64 [B], quality in quarter steps.
        Returns:
          m4: predicted mean in quarter symbols; k: scale index (both straight-through),
          base, table: int64 indexes as the C++ computes them; pass masks (bool [1, Cy, hy, wy]).
        """
        hy, wy = y.shape[2:]
        log2_gain = self.q_log2_gain()[q][:, :, None, None]
        step, gain, offset = self.q_tables(log2_gain)
        f = self.features(z, q, hy, wy)
        # context: dequantised symbols in eighths of y
        hard = round_shift(y.detach().long() * step, CONTEXT_SHIFT)
        soft = y * torch.exp2(-log2_gain.detach() + CONTEXT_BITS)
        ctx = straight_through(soft, hard.float()).clamp(-MAX_ACTIVATION, MAX_ACTIVATION)
        i = torch.arange(hy)[:, None] + torch.arange(wy)[None, :]
        half0 = (i % 2 == 0).float()[None, None]
        means, scales, masks = [], [], []
        done = 0
        for g, size in enumerate(self.config.group_sizes):
            group = ctx[:, done : done + size]
            outs = [
                self.passes[2 * g](torch.cat([f, ctx[:, :done]], 1)),
                self.passes[2 * g + 1](torch.cat([f, ctx[:, :done], group * half0], 1)),
            ]
            out = outs[0] * half0 + outs[1] * (1 - half0)
            means.append(out[:, :size])
            scales.append(out[:, size:])
            for half in (half0, 1 - half0):
                mask = torch.zeros(1, self.config.num_y, hy, wy, dtype=torch.bool)
                mask[:, done : done + size] = half.bool()
                masks.append(mask)
            done += size
        mean, scale = torch.cat(means, 1), torch.cat(scales, 1)
        m4_hard = round_shift(mean.detach().long() * gain, MEAN_SHIFT).clamp(-32768, 32767)
        m4 = straight_through(mean * torch.exp2(log2_gain + (2 - MEAN_BITS)), m4_hard.float())
        k_hard = round_shift(scale.detach().long() + offset, SCALE_SHIFT).clamp(0, NUM_SCALES - 1)
        k_soft = scale / (1 << SCALE_BITS) + log2_gain * SCALES_PER_OCTAVE
        k = straight_through(k_soft, k_hard.float())
        base = m4_hard >> 2
        table = TABLES_PER_SCALE * k_hard + (m4_hard & 3)
        return m4, k, base, table, masks

    def static_parameters(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised (m4, k) of z or s components, straight-through."""
        m4 = straight_through(mean * 4, (mean * 4).round())
        k = scale.clamp(0, NUM_SCALES - 1)
        return m4, straight_through(k, k.round())

    def bits(self, s: Tensor, z: Tensor, y: Tensor, q: Tensor) -> dict[str, Tensor]:
        """Bits of each part per image [B]: s, z, y0, y1, ...; the symbols are float32 integers."""
        m4, k, _, _, masks = self.y_parameters(z, y, q)
        y_bits = symbol_bits(y, m4, k)
        zm, zk = self.static_parameters(self.z_mean, self.z_scale)
        sm, sk = self.static_parameters(self.s_mean, self.s_scale)
        parts = {
            "s": symbol_bits(s, sm[None], sk[None]).sum(1),
            "z": symbol_bits(z, zm[None, :, None, None], zk[None, :, None, None]).sum((1, 2, 3)),
        }
        for p, mask in enumerate(masks):
            parts[f"y{p}"] = (y_bits * mask).sum((1, 2, 3))
        return parts


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
    """The entropy model as the bytes of `entropy_model.bin` (docs/bitstream.md)."""
    c = model.config
    out = bytearray(MAGIC)
    out += struct.pack("<5H", c.num_s, c.num_z, c.num_y, c.num_features, len(c.group_sizes))
    out += struct.pack(f"<{len(c.group_sizes)}H", *c.group_sizes)
    out += struct.pack("<2H", NUM_Q, NUM_SCALES)
    out += struct.pack("<4B", CONTEXT_SHIFT, MEAN_SHIFT, SCALE_SHIFT, CONTEXT_BITS)
    out += struct.pack("<I", NUM_SCALES * TABLES_PER_SCALE)
    for k in range(NUM_SCALES):
        for frac in range(TABLES_PER_SCALE):
            offset, freq = logistic_table(scale_of_index(k), frac / TABLES_PER_SCALE)
            out += struct.pack(f"<hH{len(freq)}H", offset, len(freq) - 1, *freq)
    with torch.no_grad():
        for mean, scale in ((model.s_mean, model.s_scale), (model.z_mean, model.z_scale)):
            m4, index = model.static_parameters(mean, scale)
            for m, i in zip(m4.long().tolist(), index.long().tolist(), strict=True):
                out += struct.pack("<hH", m >> 2, TABLES_PER_SCALE * i + (m & 3))
        step, gain, offset_ = model.q_tables(model.q_log2_gain())
        out += step.numpy().astype("<i4").tobytes()
        out += gain.numpy().astype("<i4").tobytes()
        out += offset_.numpy().astype("<i2").tobytes()
        for net in [model.h_s_z, model.h_s_y, *model.passes]:
            out += struct.pack("<H", len(net))
            for layer in net:
                w = layer.integer_weight().round().numpy()
                out += struct.pack(
                    "<2H2B2h", w.shape[1], w.shape[0], layer.kernel, layer.shift, layer.lo, layer.hi
                )
                out += w.astype(np.int8).tobytes()
                out += layer.integer_bias().round().numpy().astype("<i4").tobytes()
    return bytes(out)
