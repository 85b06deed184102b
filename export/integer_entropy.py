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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_Q = 253  # quality 0..63 in quarter steps
MAX_ACTIVATION = 127
NUM_SCALES = 48
SCALE_MIN = 0.05  # of the logistic distribution, in symbols
SCALES_PER_OCTAVE = 5
CDF_BITS = 16
STEP_BITS, GAIN_BITS = 12, 8  # fixed-point bits of `step` (y per symbol) and `gain` (symbols per y)
CONTEXT_BITS = 3  # activations count eighths of a latent unit
MEAN_BITS = 4  # means count sixteenths: of a latent unit as outputs, then of a symbol
SCALE_BITS = 4  # scale outputs count sixteenths of a table step
CONTEXT_SHIFT = STEP_BITS + MEAN_BITS - CONTEXT_BITS
MEAN_SHIFT = GAIN_BITS
MIN_MEAN, MAX_MEAN = -32768 << MEAN_BITS, 32767 << MEAN_BITS  # in sixteenths of a symbol
SCALE_SHIFT = SCALE_BITS
NUM_PLANES = 5  # quality, row, column, height, width
KNOTS = 9  # of the gains along the quality
KNOT_STEP = (NUM_Q - 1) / (KNOTS - 1)  # quarter steps from knot to knot
# What a bit of the residual must buy, in squared quantisation steps: the slope of distortion over
# rate of a uniform quantiser at high rates, 2 ln 2 / 12 (Sullivan and Wiegand, 1998, section V).
PRICE = 15 / 128
MAGIC = b"FSDEM\0\0\x05"


class _StraightThrough(torch.autograd.Function):
    """No arithmetic either way: a step has some five hundred of them."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """`hard` in the forward pass, the gradient of `soft` in the backward pass; of one shape."""
    if soft.shape != hard.shape:
        raise ValueError(f"shapes differ: {tuple(soft.shape)} and {tuple(hard.shape)}")
    found: Tensor = _StraightThrough.apply(soft, hard.detach())  # type: ignore[no-untyped-call]
    return found


def round_shift(value: Tensor, bits: int) -> Tensor:
    """Integer rounding division by 2^bits, half towards +infinity; `value` is an int64 tensor."""
    return value if bits == 0 else (value + (1 << (bits - 1))) >> bits


def round_to_levels(scaled: Tensor) -> Tensor:
    """A latent in symbols, rounded to sixteenths as an encoder does; straight-through."""
    return straight_through(scaled, (scaled * 2.0**MEAN_BITS).round() * 2.0**-MEAN_BITS)


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


def hidden(cin: int, cout: int, kernel: int, shift: int = 0) -> IntegerConv2d:
    shift = shift or (8 if kernel == 3 else 7)
    return IntegerConv2d(cin, cout, kernel, shift=shift, lo=0, hi=MAX_ACTIVATION)


def refinement(channels: int) -> IntegerConv2d:
    """A 3x3 layer that starts close to the identity: 127 / 128 is the largest weight it has."""
    layer = hidden(channels, channels, 3, shift=7)
    with torch.no_grad():
        layer.weight.mul_(0.05)
        layer.weight[:, :, 1, 1] += torch.eye(channels)
    return layer


@dataclass
class EntropyConfig:
    """Sizes of the integer entropy model; symbols as in `docs/bitstream.md`."""

    num_s: int = 24
    num_z: int = 12
    num_y: int = 96
    num_features: int = 64
    group_sizes: list[int] = field(default_factory=lambda: [1, 3, 12, 80])
    group_scans: list[int] = field(default_factory=lambda: [3, 2, 2, 1])  # passes of each group
    # groups of the residual, and the qualities from which they are coded
    residual_sizes: list[int] = field(default_factory=lambda: [24, 72] * 4)
    residual_scans: list[int] = field(default_factory=lambda: [1] * 8)
    residual_starts: list[int] = field(default_factory=lambda: [132] * 8)
    hidden_z: int = 64
    hidden_pass: int = 96
    hidden_residual: int = 96

    @property
    def num_residual(self) -> int:
        return sum(self.residual_sizes)

    @property
    def residual_from(self) -> int:
        """The quality from which there is a residual; the base stays at it."""
        return self.residual_starts[0]


def gains_at(log2_gain: Tensor, q: Tensor) -> Tensor:
    """Log2 gains of qualities q [N] in quarter steps, which may be fractions or beyond the ends.

    Args:
      log2_gain: at the knots, [KNOTS, C]; linear between them, and on.
    Returns:
      [N, C].
    """
    pos = q * (1 / KNOT_STEP)
    i = pos.floor().clamp(0, KNOTS - 2).long()
    t = (pos - i)[:, None]
    return log2_gain[i] * (1 - t) + log2_gain[i + 1] * t


class Gains(nn.Module):
    """Learned gain of each channel of a latent along the quality: symbols = latent x gain."""

    def __init__(self, channels: int, reach: float) -> None:
        super().__init__()
        # log2 of the gain at KNOTS qualities; the middle is 1, the ends +-`reach` octaves
        base = torch.linspace(-reach, reach, KNOTS)[:, None].repeat(1, channels)
        self.log2_gain = nn.Parameter(base)

    def all_q(self) -> Tensor:
        """Float log2 gains [NUM_Q, C]."""
        return gains_at(self.log2_gain, torch.arange(NUM_Q, dtype=torch.float32))

    def at(self, q: Tensor, dims: int) -> Tensor:
        """Float log2 gains of qualities q [B], as [B, C] followed by `dims` axes of 1."""
        return self.all_q()[q].reshape(len(q), -1, *[1] * dims)


def q_tables(log2_gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integer step (Q12), gain (Q8) and index offset, int64, from float log2 gains."""
    g = log2_gain.detach().double()
    step = torch.exp2(-g + STEP_BITS).round().clamp(1, 2**24 - 1).long()
    gain = torch.exp2(g + GAIN_BITS).round().clamp(1, 2**20 - 1).long()
    offset = (g * (SCALES_PER_OCTAVE << SCALE_BITS)).round().clamp(-32768, 32767).long()
    return step, gain, offset


def predict(net_output: Tensor, log2_gain: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder knows of a symbol before it reads it; both straight-through integers.

    Args:
      net_output: means, then scales, along the channels: integers, in sixteenths of a latent unit
        and of an index.
      log2_gain: of the channels, shaped to broadcast.
    Returns:
      Mean in sixteenths of a symbol, index of the table.
    """
    mean, scale = net_output.chunk(2, 1)
    _, gain, offset = q_tables(log2_gain)
    mean_hard = round_shift(mean.detach().long() * gain, MEAN_SHIFT).clamp(MIN_MEAN, MAX_MEAN)
    scale_hard = round_shift(scale.detach().long() + offset, SCALE_SHIFT).clamp(0, NUM_SCALES - 1)
    scale_soft = scale / (1 << SCALE_BITS) + log2_gain * SCALES_PER_OCTAVE
    return (
        straight_through(mean * torch.exp2(log2_gain), mean_hard.float()),
        straight_through(scale_soft, scale_hard.float()),
    )


class Coded(NamedTuple):
    """A latent after coding: tensors of one shape, zero where no pass has coded them yet.

    Attributes:
      mean, scale: as `predict` gives them.
      symbols: what the file holds: the distance from the mean, rounded.
      bits: of each symbol.
    """

    mean: Tensor
    scale: Tensor
    symbols: Tensor
    bits: Tensor

    @property
    def value(self) -> Tensor:
        """What the decoder has, in symbols."""
        return self.symbols + self.mean * 2.0**-MEAN_BITS

    @classmethod
    def of(
        cls,
        latent: Tensor,
        mean: Tensor,
        scale: Tensor,
        *,
        given: bool,
        noisy: bool,
        price: float | Tensor | None = None,
    ) -> Coded:
        """
        Args:
          latent: in symbols, unrounded; or the symbols themselves where `given`.
          mean, scale: as `predict` gives them.
          noisy: take the gradient of the rate towards the latent and the mean at uniform noise
            instead of the rounding (Balle et al., ICLR 2017): a symbol of zero has no gradient
            otherwise. The value is that of the rounding.
          price: squared steps that a bit must buy for a symbol to be further from zero.
        """
        residual = latent if given else latent - mean * 2.0**-MEAN_BITS
        rounded = torch.floor(residual.detach() + 0.5)
        if price is not None and not given:
            smaller = rounded - rounded.sign()
            costs = [
                (residual.detach() - v).square() + price * symbol_bits(v, scale.detach())
                for v in (rounded, smaller)
            ]
            rounded = torch.where(costs[1] < costs[0], smaller, rounded)
        symbols = straight_through(residual, rounded)
        bits = symbol_bits(symbols.detach() if noisy else symbols, scale)
        if noisy:
            noise = torch.rand_like(residual) - 0.5
            soft = symbol_bits(residual + noise, scale.detach())
            bits = straight_through(bits + soft, bits)
        return cls(mean, scale, symbols, bits)

    def on(self, lattice: Tensor) -> Coded:
        """The same, zero where `lattice` is 0."""
        return Coded(*(tensor * lattice for tensor in self))

    def joined(self, other: Coded) -> Coded:
        """Both, where each is zero at the other's positions."""
        return Coded(*(a + b for a, b in zip(self, other, strict=True)))

    @staticmethod
    def cat(parts: list[Coded]) -> Coded:
        """Joined along the channels."""
        return Coded(*(torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)))


def output(cin: int, channels: int) -> IntegerConv2d:
    """The last layer of a prediction: means, then scales, of `channels` channels."""
    out = IntegerConv2d(cin, 2 * channels, 1, shift=7, lo=-2047, hi=2047, out_shift=1)
    with torch.no_grad():
        out.weight.mul_(0.3)
        out.bias[channels:] = _start_scale()
    return out


def group_passes(known: int, sizes: list[int], scans: list[int], width: int) -> nn.ModuleList:
    """The networks of the passes of groups of channels, in coding order.

    Each takes the `known` channels, the groups before its own, and, but for the first pass of a
    group, what earlier passes coded of its own.
    """
    passes = []
    for size, scan in zip(sizes, scans, strict=True):
        for step in range(scan):
            cin = known + (size if step else 0)
            passes.append(
                nn.Sequential(hidden(cin, width, 3), refinement(width), output(width, size))
            )
        known += size
    return nn.ModuleList(passes)


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
        self.residual_gains = Gains(c.num_residual, 3.0)
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
        self.h_s_y = nn.Sequential(
            hidden(c.hidden_z + NUM_PLANES, c.num_features, 3), refinement(c.num_features)
        )
        self.passes = group_passes(c.num_features, c.group_sizes, c.group_scans, c.hidden_pass)
        self.residual_passes = group_passes(
            c.num_features + c.num_y, c.residual_sizes, c.residual_scans, c.hidden_residual
        )

    # -- network ---------------------------------------------------------------------------------
    @staticmethod
    def step(log2_gain: Tensor) -> Tensor:
        """Latent units per symbol as the file's integers give them, straight-through."""
        hard = q_tables(log2_gain)[0].float() * 2.0**-STEP_BITS
        return straight_through(torch.exp2(-log2_gain), hard)

    def dequantise(self, coded: Coded, gains: Gains, q: Tensor) -> Tensor:
        """Decoded values of a latent, in its own units."""
        return coded.value * self.step(gains.at(q, coded.value.ndim - 2))

    @staticmethod
    def context(value: Tensor, log2_gain: Tensor) -> Tensor:
        """Decoded values, in symbols, in eighths of a latent unit, as the networks see them."""
        step = q_tables(log2_gain)[0]
        sixteenths = (value.detach() * 2**MEAN_BITS).round().long()
        hard = round_shift(sixteenths * step, CONTEXT_SHIFT)
        soft = value * torch.exp2(-log2_gain.detach() + CONTEXT_BITS)
        return straight_through(soft, hard.float()).clamp(-MAX_ACTIVATION, MAX_ACTIVATION)

    @staticmethod
    def z_known(s_context: Tensor, q: Tensor, hy: int, wy: int, hz: int, wz: int) -> Tensor:
        """Planes and semantics at every position of z, [B, NUM_PLANES + S, hz, wz]."""
        semantics = s_context[:, :, None, None].expand(-1, -1, hz, wz)
        return torch.cat([constant_planes(q, hy, wy, hz, wz), semantics], 1)

    def features(self, s_context: Tensor, z_context: Tensor, q: Tensor, hy: int, wy: int) -> Tensor:
        """Integer features [B, F, hy, wy] from contexts of s [B, S] and z [B, Cz, hz, wz]."""
        s_planes = s_context[:, :, None, None].expand(-1, -1, *z_context.shape[2:])
        u = self.h_s_z(torch.cat([z_context, s_planes], 1))
        u = enlarge(u, hy, wy)
        return self.h_s_y(torch.cat([u, constant_planes(q, hy, wy, hy, wy)], 1))

    def code(
        self, s: Tensor, z: Tensor, y: Tensor, q: Tensor, *, given: bool = False
    ) -> tuple[Coded, Coded, Coded]:
        """s, z and y as the file carries them and the decoder gets them, pass by pass.

        Args:
          s, z, y: latents [B, S], [B, Cz, hz, wz] and [B, Cy, hy, wy], float32; or, where `given`,
            their symbols.
          q: int64 [B], quality in quarter steps.
        """
        noisy = self.training and not given
        s_gain, z_gain, y_gain = (
            g.at(q, v.ndim - 2)
            for g, v in ((self.s_gains, s), (self.z_gains, z), (self.y_gains, y))
        )
        if not given:
            s, z, y = (
                round_to_levels(v / self.step(g))
                for v, g in ((s, s_gain), (z, z_gain), (y, y_gain))
            )

        def take(latent: Tensor, net_output: Tensor, gain: Tensor) -> Coded:
            return Coded.of(latent, *predict(net_output, gain), given=given, noisy=noisy)

        s_coded = take(s, self.s_output().expand(len(q), -1), s_gain)
        s_context = self.context(s_coded.value, s_gain)

        known = self.z_known(s_context, q, *y.shape[2:], *z.shape[2:])
        even, odd = lattices(2, *z.shape[2:])
        z_coded = take(z, self.z_passes[0](known), z_gain).on(even)
        known = torch.cat([known, self.context(z_coded.value, z_gain)], 1)
        z_coded = z_coded.joined(take(z, self.z_passes[1](known), z_gain).on(odd))

        known = self.features(s_context, self.context(z_coded.value, z_gain), q, *y.shape[2:])
        shape = (self.passes, self.config.group_sizes, self.config.group_scans)
        return s_coded, z_coded, Coded.cat(self.code_groups(known, y, y_gain, take, *shape))

    def code_groups(
        self,
        known: Tensor,
        latent: Tensor,
        gain: Tensor,
        take: Callable[[Tensor, Tensor, Tensor], Coded],
        passes: nn.ModuleList,
        sizes: list[int],
        scans: list[int],
        coded: Iterable[Tensor | float] | None = None,
    ) -> list[Coded]:
        """Groups of channels of a latent, one after the other, each in its passes.

        Args:
          known: contexts, [B, C, hy, wy]; latent: in symbols; gain: of all channels.
          take: of (latent, network output, gain), what is coded.
          passes: as `group_passes` gives them.
          coded: of each group, 1 or 0 for each image, [B, 1, 1, 1], whether it is coded at all.
        """
        groups = []
        nets = iter(passes)
        done = 0
        for size, scan, on in zip(sizes, scans, coded or [1.0] * len(sizes), strict=True):
            channels = slice(done, done + size)
            own, own_gain = latent[:, channels], gain[:, channels]
            first, *later = lattices(scan, *latent.shape[2:])
            group = take(own, next(nets)(known), own_gain).on(first * on)
            for lattice in later:
                seen = torch.cat([known, self.context(group.value, own_gain)], 1)
                group = group.joined(take(own, next(nets)(seen), own_gain).on(lattice * on))
            known = torch.cat([known, self.context(group.value, own_gain)], 1)
            groups.append(group)
            done += size
        return groups

    def code_residual(
        self,
        base: tuple[Coded, Coded, Coded],
        residual: Tensor,
        q: Tensor,
        *,
        given: bool = False,
        price: float | Tensor = PRICE,
    ) -> Coded:
        """The residual as the file carries it, after the `base` that `code` gave at its quality.

        Args:
          residual: [B, R, hy, wy], unrounded; or its symbols where `given`.
          q: int64 [B], at least `residual_from`.
          price: see `Coded.of`. The gate of the high bands: where the networks expect little
            energy, from the base and the neighbours, a coefficient must be large to be coded.
        """
        return self.code_after(self.known_of(base), residual, q, given=given, price=price)

    def known_of(self, base: tuple[Coded, Coded, Coded]) -> Tensor:
        """What the networks of the residual see of its base, [B, F + Cy, hy, wy], integers."""
        s, z, y = base
        q = torch.full((len(y.value),), self.config.residual_from)
        s_context, z_context, y_context = (
            self.context(coded.value, gains.at(q, coded.value.ndim - 2))
            for coded, gains in ((s, self.s_gains), (z, self.z_gains), (y, self.y_gains))
        )
        features = self.features(s_context, z_context, q, *y.value.shape[2:])
        return torch.cat([features, y_context], 1)

    def code_after(
        self,
        known: Tensor,
        residual: Tensor,
        q: Tensor,
        *,
        given: bool = False,
        price: float | Tensor = PRICE,
    ) -> Coded:
        """The same as `code_residual`, from what `known_of` gave."""
        c = self.config
        gain = self.residual_gains.at(q, 2)
        if not given:
            residual = round_to_levels(residual / self.step(gain))
        noisy = self.training and not given

        def take(latent: Tensor, net_output: Tensor, gain: Tensor) -> Coded:
            predicted = predict(net_output, gain)
            return Coded.of(latent, *predicted, given=given, noisy=noisy, price=price)

        shape = (self.residual_passes, c.residual_sizes, c.residual_scans)
        on = [(q >= start).float()[:, None, None, None] for start in c.residual_starts]
        return Coded.cat(self.code_groups(known, residual, gain, take, *shape, on))

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

    def s_output(self) -> Tensor:
        """The static prediction of s as a network's output, [1, 2 S], straight-through."""
        return torch.cat([straight_through(p, p.round()) for p in self.s_prior()])[None]

    def bits(self, s: Coded, z: Coded, y: Coded) -> dict[str, Tensor]:
        """Bits of each part per image [B]: s, z, y0, y1, ..."""
        parts = {"s": s.bits.sum(1), "z": z.bits.sum((1, 2, 3))}
        for p, mask in enumerate(self.y_masks(*y.bits.shape[2:])):
            parts[f"y{p}"] = (y.bits * mask).sum((1, 2, 3))
        return parts

    def total_bits(self, s: Coded, z: Coded, y: Coded) -> Tensor:
        """Bits of all parts per image [B]."""
        return torch.stack(list(self.bits(s, z, y).values())).sum(0)


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


def enlarge(x: Tensor, hy: int, wy: int) -> Tensor:
    """Values at z's positions, [B, C, hz, wz], repeated at those of y, [B, C, hy, wy]."""
    batch, channels, hz, wz = x.shape
    repeated = x[:, :, :, None, :, None].expand(-1, -1, -1, 4, -1, 4)
    return repeated.reshape(batch, channels, 4 * hz, 4 * wz)[:, :, :hy, :wy]


def symbol_bits(v: Tensor, k: Tensor) -> Tensor:
    """-log2 of the discretised logistic pmf at v, an integer or not; mean 0, scale index k."""
    inv_scale = torch.exp2(-k / SCALES_PER_OCTAVE) * (1.0 / SCALE_MIN)
    d = v.abs()
    upper, lower = (0.5 - d) * inv_scale, (-0.5 - d) * inv_scale
    # sigmoid(upper) - sigmoid(lower), both evaluated in the lower tail for accuracy; the bound
    # keeps gradients finite far from the mean, where the file uses an escape code of some 20 bits
    p = (torch.sigmoid(upper) - torch.sigmoid(lower)).clamp_min(1e-7)
    return -torch.log2(p)


# -- the file ------------------------------------------------------------------------------------
def logistic_table(scale: float) -> tuple[int, list[int]]:
    """Integer frequencies of a discretised logistic around 0 and the escape; they sum to 2^16.

    Returns:
      (offset, freq): smallest regular symbol, frequencies of the regular symbols and of the escape.
    """
    total = 1 << CDF_BITS
    tail = 2.0**-14  # mass left to the escape on each side, about
    reach = min(500, max(1, math.ceil(scale * math.log(1 / tail))))
    edges = (np.arange(2 * reach + 2) - reach - 0.5) / scale
    cdf = 0.5 * (1 + np.tanh(edges / 2))
    pmf = np.append(np.diff(cdf), 1.0 - (cdf[-1] - cdf[0]))
    freq = np.maximum(1, np.floor(pmf * total)).astype(np.int64)
    freq[int(np.argmax(freq))] += total - int(freq.sum())
    if freq.min() < 1 or freq.max() > 65535 or freq.sum() != total:
        raise ValueError(f"no valid table for scale {scale}")
    return -reach, [int(f) for f in freq]


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
    groups = [
        *zip(c.group_sizes, c.group_scans, [0] * len(c.group_sizes), strict=True),
        *zip(c.residual_sizes, c.residual_scans, c.residual_starts, strict=True),
    ]
    num_y = c.num_y + c.num_residual
    out += struct.pack("<5H", c.num_s, c.num_z, num_y, c.num_features, len(groups))
    for group in groups:
        out += struct.pack("<HBB", *group)
    out += struct.pack("<2H", NUM_Q, NUM_SCALES)
    out += struct.pack("<3B", CONTEXT_SHIFT, MEAN_SHIFT, SCALE_SHIFT)
    out += struct.pack("<I", NUM_SCALES)
    for k in range(NUM_SCALES):
        offset, freq = logistic_table(scale_of_index(k))
        out += struct.pack(f"<hH{len(freq)}H", offset, len(freq) - 1, *freq)
    with torch.no_grad():
        for values in model.s_prior():
            out += values.round().numpy().astype("<i2").tobytes()
        of_y = torch.cat([model.y_gains.all_q(), model.residual_gains.all_q()], 1)
        for log2_gain in (model.s_gains.all_q(), model.z_gains.all_q(), of_y):
            step, gain, index_offset = q_tables(log2_gain)
            out += step.numpy().astype("<i4").tobytes()
            out += gain.numpy().astype("<i4").tobytes()
            out += index_offset.numpy().astype("<i2").tobytes()
        for net in [
            *model.z_passes,
            model.h_s_z,
            model.h_s_y,
            *model.passes,
            *model.residual_passes,
        ]:
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
