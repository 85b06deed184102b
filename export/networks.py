"""The networks: frequency split, analysis `g_a` (+ `h_a`, low-frequency semantics), student `g_s`.

Everything works on the 48 bands of the two-level Haar split at H/4 (FaSDiff's frequency split;
WaveDiff, CVPR 2023, for diffusion in wavelet space). ReLU only, no normalisation layers, no
attention: the graphs quantise well and any engine runs them.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.integer_entropy import NUM_Q, PRICE, Coded, EntropyConfig, EntropyModel, enlarge
from export.precision import mixed_precision
from export.quantised import FixedConv2d, SplitConv2d, quantise_convolutions
from export.texture import (
    COARSE,
    DIRECTIONS,
    GRID,
    GRID_LIMIT,
    GRID_MOST,
    GRID_SURE,
    GRID_TEXTURE,
    TEXTURES,
    between,
    coarse_gain,
    grid_chance,
    grid_filter,
    grid_gain,
    grid_window,
    texture_filters,
)

# Orthonormal opponent transform of RGB: rows c0 (grey), c1 (red - blue), c2 (green against both).
OPPONENT = torch.tensor(
    [
        [1 / math.sqrt(3)] * 3,
        [1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)],
        [1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)],
    ]
)
NUM_BANDS = 48
LOW = 3  # channels 0-2 are ll2
GREY = (0, 3, 6, 9, *range(12, 16), *range(24, 28), *range(36, 40))  # channels of c0; ll2 first
TIME_OCTAVES = 6  # of the sines and cosines that t is seen through
TEXTURE_SIZE, TEXTURE_MOST = 64, 2.0  # blocks a side of what is learnt from; see `_by_size`
TEXTURE_WEAK = 0.05  # what skin has; hair and edges have more
LATER_TEXTURE = 0.8  # (1 - t)^2 times that is added; by KID on `val`, with 2 and 4 steps
FAR_OCTAVES, NEAR_OCTAVES = 0.5, 2.0  # the residual's bits cost more than PRICE, or less
# Half way from the first quality with a residual to the top it is the same price everywhere
EVEN_PRICE, EVEN_FROM = 0.7 * PRICE, 0.5
UNIT = 8.0  # residual coefficients in a unit of the bands
# Row and column of each block of 8x8 pixels of the residual within 16x16, in coding order
BLOCKS = ((0, 0), (1, 1), (0, 1), (1, 0))

# Typical standard deviation of each band group in faces: ll2, hl2/lh2/hh2, level 1; per colour.
_LL2, _LEVEL2, _LEVEL1 = (2.6, 0.7, 0.25), (0.30, 0.06, 0.03), (0.10, 0.025, 0.012)


def band_scale() -> Tensor:
    """Per-channel scale [1, 48, 1, 1] that brings the bands to about unit variance."""
    level1 = [c for _ in range(3) for c in _LEVEL1 for _ in range(4)]
    return torch.tensor([*_LL2, *(_LEVEL2 * 3), *level1])[None, :, None, None]


@functools.cache
def _opponent(device: torch.device) -> Tensor:
    return OPPONENT.to(device)


def _haar(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2


def _unhaar(ll: Tensor, hl: Tensor, lh: Tensor, hh: Tensor) -> Tensor:
    a, b = (ll + hl + lh + hh) / 2, (ll - hl + lh - hh) / 2
    c, d = (ll + hl - lh - hh) / 2, (ll - hl - lh + hh) / 2
    top = torch.stack([a, b], -1).flatten(-2)
    bottom = torch.stack([c, d], -1).flatten(-2)
    return torch.stack([top, bottom], -2).flatten(-3, -2)


def split_bands(image: Tensor) -> Tensor:
    """RGB in [0, 255], [B, 3, H, W] with H, W multiples of 16 -> bands [B, 48, H/4, W/4]."""
    p = (image - 127.5) / 127.5
    p = torch.einsum("oc,bchw->bohw", _opponent(p.device), p)
    ll1, *high1 = _haar(p)
    return torch.cat([*_haar(ll1), *(F.pixel_unshuffle(h, 2) for h in high1)], 1)


def of_colours(bands: Tensor) -> Tensor:
    """The bands of c1 and c2 alone, [B, 48, h, w] -> [B, 32, h, w]."""
    level2 = bands[:, :12].unflatten(1, (4, 3))[:, :, 1:]
    level1 = bands[:, 12:].unflatten(1, (3, 3, 4))[:, :, 1:]
    return torch.cat([level2.flatten(1, 2), level1.flatten(1, 3)], 1)


def merge_bands(bands: Tensor) -> Tensor:
    """Inverse of `split_bands`, unclamped: [B, 48, h, w] -> RGB [B, 3, 4h, 4w] around 0..255."""
    level2 = bands[:, :12].split(3, 1)
    high1 = [F.pixel_shuffle(h, 2) for h in bands[:, 12:].split(12, 1)]
    p = _unhaar(_unhaar(*level2), *high1)
    return torch.einsum("oc,bohw->bchw", _opponent(p.device), p) * 127.5 + 127.5


def _greys_of_bands() -> Tensor:
    """c0 of pictures of 5x5 blocks with a 1 in one band of the middle one, [16, 1, 20, 20]."""
    units = torch.zeros(len(GREY), NUM_BANDS, 5, 5)
    units[range(len(GREY)), GREY, 2, 2] = 1
    return torch.einsum("c,bchw->bhw", OPPONENT[0], merge_bands(units) / 127.5 - 1)[:, None]


def _bands_of_greys(grey: Tensor) -> Tensor:
    """The other way, of any pictures [N, 1, 4h, 4w]: [N, 16, h, w]."""
    return split_bands((grey * OPPONENT[0, :, None, None] + 1) * 127.5)[:, GREY]


def _weight_of(responses: Tensor) -> Tensor:
    """Responses [Cin, Cout, 5, 5] to a 1 in the middle, as weights [Cout, Cin, 3, 3]."""
    return responses[:, :, 1:4, 1:4].flip(2, 3).transpose(0, 1).contiguous()


@functools.cache
def texture_weight() -> Tensor:
    """`texture_filters` as one convolution of bands, [16, 15 * TEXTURES, 3, 3].

    From white noise in the high bands of grey, once for each filter, to all bands of grey, in units
    of their deviations. ll2 of the noise is left out: a sampler's later steps have a picture there.
    """
    filters = torch.from_numpy(texture_filters())[:, None]
    drawn = F.conv2d(_greys_of_bands()[1:], filters, padding="same").transpose(0, 1)
    bands = _bands_of_greys(drawn.reshape(-1, 1, *drawn.shape[2:])) / band_scale()[:, GREY]
    return _weight_of(bands)


def _grid_unit(band: int) -> float:
    """Grey levels of a 1 in a band, in its deviations, as a share of GRID_LIMIT."""
    return float(band_scale()[0, band]) * 127.5 / math.sqrt(3) / GRID_LIMIT


@functools.cache
def grid_weights() -> tuple[Tensor, Tensor]:
    """To and from the pixels of a block of GRID, of grey's bands in units of their deviations.

    [64, 16, 4, 4], by steps of 2: less the smooth part of the picture, in units of GRID_LIMIT;
    [64, 64, 1, 1] to the bands of four positions, negative, in the order of `F.pixel_shuffle`.
    """
    units = torch.tensor([_grid_unit(band) for band in GREY])[:, None, None]
    # the filter's answers to each band, in 12x12 pixels; the blocks of GRID that meet them
    rough = F.conv2d(_greys_of_bands(), torch.from_numpy(grid_filter())[None, None], padding="same")
    rough = F.pad(rough[..., 4:16, 4:16], [4, 8, 4, 8])
    pixels = torch.zeros(GRID**2, len(GREY), 4, 4)
    for row, column in itertools.product(range(4), repeat=2):
        # the block that has the band at (row, column) of the 4x4 that its pixels are told by
        y, x = 4 * (3 - row), 4 * (3 - column)
        pixels[:, :, row, column] = rough[:, 0, y : y + GRID, x : x + GRID].flatten(1).T
    gain = torch.from_numpy(grid_gain()).T.view(GRID**2, 1, GRID, GRID)
    bands = -_bands_of_greys(gain) / units  # [64, 16, 2, 2]
    return pixels * units, bands.flatten(1).T[:, :, None, None].contiguous()


@functools.cache
def coarse_weights() -> tuple[Tensor, Tensor, Tensor]:
    """The same for COARSE x COARSE coefficients of grey's ll2, which are pixels in their turn.

    [16, 1, 12, 12], by steps of 4; [16, 16, 1, 1] to coefficients, negative; [16, 1, 3, 3] to all
    of grey's bands, of what lies between them.
    """
    unit = _grid_unit(0) / 4  # a block of 1 has an ll2 of 4
    kernel = torch.from_numpy(grid_filter())
    pixels = torch.zeros(COARSE**2, 1, 12, 12)
    for row, column in itertools.product(range(COARSE), repeat=2):
        pixels[COARSE * row + column, 0, row : row + 9, column : column + 9] = kernel * unit
    gain = -torch.from_numpy(coarse_gain())[:, :, None, None] / unit
    drawn = F.pad(torch.from_numpy(between())[None, None], [4] * 4) * (band_scale()[0, 0] / 4)
    return pixels, gain, _weight_of(_bands_of_greys(drawn) / band_scale()[:, GREY])


def _grey_places() -> Tensor:
    """A weight that puts grey's bands among all, [48, 16, 1, 1]; transposed, it picks them.

    Engines pick channels of what they have computed faster so than by their numbers.
    """
    return torch.eye(NUM_BANDS)[:, GREY, None, None]


def conv(cin: int, cout: int, kernel: int, stride: int = 1, scale: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(cin, cout, kernel, stride, padding=(kernel - 1) // 2 if kernel % 2 else 0)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


class ResidualBlock(nn.Module):
    """x + conv(relu(film(conv(x)))); the second convolution starts at zero.

    conditions: of the FiLM, 0 for none.
    """

    def __init__(self, channels: int, conditions: int = 0) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3)
        self.conv2 = conv(channels, channels, 3, scale=0.0)
        self.film = nn.Linear(conditions, 2 * channels) if conditions else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, scale_shift: ScaleShift | None = None) -> Tensor:
        """scale_shift: what `film` makes of the conditions; see `films`."""
        h = self.conv1(x)
        if scale_shift is not None:
            h = modulate(h, scale_shift)
        return x + self.conv2(F.relu(h))  # type: ignore[no-any-return]


ScaleShift = tuple[Tensor, Tensor]  # [B, C, 1, 1] both


def films(layers: list[nn.Linear], condition: Tensor) -> list[ScaleShift]:
    """What FiLMs, each [2C] out, make of a condition [B, N]: 1 + tanh(scale), and shift.

    Unbounded, a rare s exploded. One product for all of them, scales first, and as a convolution,
    whose output has channels last, as what is modulated: engines then scale, shift, rectify and
    round in one pass.
    """
    sizes = [layer.out_features // 2 for layer in layers]
    weights, biases = ([getattr(f, n).chunk(2) for f in layers] for n in ("weight", "bias"))
    weight, bias = (
        torch.cat([pair[place] for place in (0, 1) for pair in pairs])
        for pairs in (weights, biases)
    )
    both = F.conv2d(condition[:, :, None, None], weight[:, :, None, None], bias)
    scales, shifts = both.split(sum(sizes), 1)
    return list(zip((1 + torch.tanh(scales)).split(sizes, 1), shifts.split(sizes, 1), strict=True))


def modulate(x: Tensor, scale_shift: ScaleShift) -> Tensor:
    """FiLM (Perez et al., AAAI 2018)."""
    scale, shift = scale_shift
    return x * scale + shift


# What is INT8 in a quantised model; True: outputs as well as inputs. The convolutions that give
# latents and ll2 stay float: they span more than 8 bits; so does ll2 in the first of the analysis
# (`SplitConv2d`). Outputs of the student's last blocks do too: a value between two levels may fall
# on either, by engine, and nothing evens it out. Its first convolution needs the rounding that
# `export/second_order.py` finds.
QUANTISED = {
    "g_a.fuse": False,
    "g_a.b4": True,
    "g_a.down8": False,
    "g_a.b8": True,
    "g_a.down16": False,
    "g_a.b16": True,
    "g_s.prompt": False,
    "g_s.b16": True,
    "g_s.noise16": False,
    "g_s.noise8": False,
    "g_s.noise4": False,
    "g_s.up8": False,
    "g_s.b8": True,
    "g_s.up4": False,
    "g_s.b4": False,
    "g_s.high": False,
    "g_s.texture": False,
    "g_s.amounts": False,
    "g_s.pick": False,
    "g_s.noise": False,
    "g_s.grain": False,
}


@dataclass
class ModelConfig:
    """Widths and depths. w4, w8, w16 are channels at H/4, H/8, H/16.

    conditions, drawn_conditions: what modulates the student, always and where something is drawn.
    semantics: False for ablations (`export/ablate.py`): s is zero before it is coded.
    quantised: the convolutions named by QUANTISED compute as in INT8 (`export/quantise.py`).
    """

    w4: int = 64
    w8: int = 128
    w16: int = 256
    encoder_blocks: tuple[int, int, int] = (2, 2, 2)
    decoder_blocks: tuple[int, int, int] = (2, 3, 4)
    conditions: int = 64
    drawn_conditions: int = 32
    semantics: bool = True
    quantised: bool = False
    entropy: EntropyConfig = field(default_factory=EntropyConfig)


class Analysis(nn.Module):
    """Bands [B, 48, h, w] -> y [B, Cy, h/4, w/4], z [B, Cz, hz, wz], s [B, S] unrounded; price.

    The base of the high-frequency-sensitive compressor; `ResidualTransform` is the rest. The price
    of that rest's bits, [B, 1, h/4, w/4], is an encoder's choice: see `residual_price`.
    """

    scale: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, e = config, config.entropy
        self.register_buffer("scale", band_scale(), persistent=False)
        self.has_semantics = c.semantics
        stem = conv(NUM_BANDS, c.w4 // 2 + c.w4, 3)
        self.stem = SplitConv2d(stem, LOW) if c.quantised else stem
        self.fuse = conv(c.w4 + c.w4 // 2, c.w4, 1)
        n4, n8, n16 = c.encoder_blocks
        self.b4 = nn.Sequential(*(ResidualBlock(c.w4) for _ in range(n4)))
        self.down8 = conv(c.w4, c.w8, 2, 2)
        self.b8 = nn.Sequential(*(ResidualBlock(c.w8) for _ in range(n8)))
        self.down16 = conv(c.w8, c.w16, 2, 2)
        self.b16 = nn.Sequential(*(ResidualBlock(c.w16) for _ in range(n16)))
        self.to_y = conv(c.w16, e.num_y, 3)
        # how near the face's landmarks are; `export/train_importance.py` trains it
        last = conv(32, 1, 3, scale=0.0)
        nn.init.constant_(last.bias, FAR_OCTAVES / (FAR_OCTAVES + NEAR_OCTAVES))  # type: ignore[arg-type]
        self.near = nn.Sequential(conv(c.w16, 32, 3), nn.ReLU(), conv(32, 32, 3), nn.ReLU(), last)
        self.h_a = nn.Sequential(
            conv(c.w16, 96, 1),
            nn.ReLU(),
            conv(96, 96, 3, 2),
            nn.ReLU(),
            conv(96, e.num_z, 3, 2, 0.5),
        )
        # low-frequency semantics: what the whole face shares, from ll2 alone
        self.semantics = nn.Sequential(
            conv(LOW, 32, 3, 2),
            nn.ReLU(),
            conv(32, 64, 3, 2),
            nn.ReLU(),
            conv(64, 96, 3, 2),
            nn.ReLU(),
        )
        self.to_s = nn.Linear(96, e.num_s)

    def features(self, x: Tensor) -> Tensor:
        """Scaled bands -> [B, w16, h/4, w/4]."""
        h = self.fuse(F.relu(self.stem(x)))
        h = self.b8(self.down8(self.b4(h)))
        return F.relu(self.b16(self.down16(h)))

    def forward(self, bands: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = bands / self.scale
        h = self.features(x)
        s = self.to_s(self.semantics(x[:, :LOW]).mean((2, 3)))
        if not self.has_semantics:
            s = 0 * s
        price = residual_price(self.near(h.detach()).clamp(0, 1))
        with torch.autocast(h.device.type, enabled=False):  # y has more than bfloat16's 8 bits
            y = self.to_y(h.float())
        return y, self.h_a(h), s, price


class Degrid(nn.Module):
    """What takes the grid off: grey's bands [B, 16, h, w], in units of their deviations.

    h, w: multiples of 4. Gives what is to be added to them. It is the same in all blocks around a
    place, and differs within a block; see `texture`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ll2 = FixedConv2d(torch.eye(len(GREY))[:1, :, None, None])
        pixels, bands = grid_weights()
        self.pixels, self.bands = FixedConv2d(pixels, stride=2), FixedConv2d(bands)
        pixels, gain, lines = coarse_weights()
        self.coarse_pixels = FixedConv2d(pixels, stride=COARSE)
        self.coarse_gain, self.between = FixedConv2d(gain), FixedConv2d(lines, padding=1)
        self.mean, self.coarse_mean = _block_mean(GRID**2), _block_mean(COARSE**2)
        self.within = FixedConv2d(torch.full((1, GRID**2, 1, 1), 1 / GRID**2))
        self.around = _block_mean(1)

    def forward(self, bands: Tensor) -> Tensor:
        """Float32."""
        with torch.autocast(bands.device.type, enabled=False):
            bands = bands.float()
            grey, ll2 = _beyond(bands, 1), _beyond(self.ll2(bands), COARSE)
            fine = self.bands(self._alike(self.pixels(grey)))
            coarse = self.coarse_mean(_weak(self.coarse_pixels(ll2)))
            lines = self.between(F.pixel_shuffle(self.coarse_gain(coarse), COARSE))
            return F.pixel_shuffle(fine, 2) + lines  # type: ignore[no-any-return]

    def _alike(self, rough: Tensor) -> Tensor:
        """What the blocks around each have in common, of what is rough in each, [B, 64, h, w].

        What is weak always; what is stronger as far as blocks agree by more than chance: the mean
        of unlike ones keeps a 28th of their squares, that of a grid all.
        """
        usual = self.around(self.within(rough.clamp(-GRID_MOST, GRID_MOST).abs()))
        limit = (GRID_TEXTURE * usual).clamp(min=1)
        known = _weak(rough / limit) * limit
        weak, strong = self.mean(torch.cat([_weak(rough), known])).chunk(2)
        by_chance = grid_chance() * self.around(self.within(known.square()))
        agreed = self.within(strong.square()) + 1e-6
        sure = (2 - GRID_SURE * by_chance / agreed).clamp(0, 1)
        return weak + sure * (strong - weak)  # type: ignore[no-any-return]


def _block_mean(channels: int) -> FixedConv2d:
    window = torch.from_numpy(grid_window()).expand(channels, 1, -1, -1).contiguous()
    return FixedConv2d(window, padding=window.shape[2] // 2, groups=channels)


def _beyond(x: Tensor, blocks: int) -> Tensor:
    """With the outermost blocks repeated beyond the border."""
    return F.pad(x, [blocks] * 4, mode="replicate")


def _weak(x: Tensor) -> Tensor:
    """As it is up to 1, falling to nothing at 2: an edge has no say."""
    return 2 * x.clamp(-1, 1) - x.clamp(-2, 2)


class Student(nn.Module):
    """The denoiser of bands: visual prompt, semantics s_hat, x_t, t and realism -> clean bands.

    Args of forward: prompt [B, Cy + Cz, h, w], y_hat and, repeated at its positions, z_hat;
    s_hat [B, S]; x_t [B, 48, 4h, 4w], in units of the bands' typical deviations: realism times unit
    normal noise at t = 1, and what the sampler makes of it later (`export/diffusion.py`); t [B] in
    (0, 1]; realism [B] in [0, 1], 0 for the posterior mean; quality [B] in [0, 1], how finely y was
    quantised, and the residual; residual [B, R, h, w] and residual_bands [B, 48, 4h, 4w], what
    the file says of the student's own error, or zero: it enters without a bias, so that nothing
    changes where there is none. Frequency-domain modulation: s, t, realism and quality give
    separate scales and shifts to the low and to the high bands.

    Some of the conditions are multiplied by realism: what they and the noise do can be learnt while
    the posterior mean stays what it is (`only_drawing`).
    """

    scale: Tensor
    finest: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, e = config, config.entropy
        self.register_buffer("scale", band_scale(), persistent=False)
        self.drawn = nn.Linear(e.num_s + 2 + 2 * TIME_OCTAVES, c.drawn_conditions)
        conditions = c.conditions + c.drawn_conditions
        self.condition = nn.Sequential(
            nn.Linear(e.num_s + 2, c.conditions),
            nn.ReLU(),
            nn.Linear(c.conditions, c.conditions),
            nn.ReLU(),
        )
        self.time = nn.Linear(2 * TIME_OCTAVES, c.conditions, bias=False)
        nn.init.zeros_(self.time.weight)
        self.prompt = conv(e.num_y + e.num_z, c.w16, 3)
        self.residual16 = nn.Conv2d(e.num_residual, c.w16, 1, bias=False)
        self.residual4 = nn.Conv2d(NUM_BANDS, c.w4, 1, bias=False)
        for layer in (self.residual16, self.residual4):
            nn.init.zeros_(layer.weight)
        n4, n8, n16 = c.decoder_blocks
        self.noise16 = conv(NUM_BANDS, c.w16, 4, 4, scale=0.05)
        self.b16 = nn.ModuleList(ResidualBlock(c.w16, conditions) for _ in range(n16))
        self.up8 = conv(c.w16, 4 * c.w8, 1)
        self.noise8 = conv(NUM_BANDS, c.w8, 2, 2, scale=0.1)
        self.b8 = nn.ModuleList(ResidualBlock(c.w8, conditions) for _ in range(n8))
        self.up4 = conv(c.w8, 4 * c.w4, 1)
        self.noise4 = conv(NUM_BANDS, c.w4, 1, scale=0.1)
        self.b4 = nn.ModuleList(ResidualBlock(c.w4, conditions) for _ in range(n4))
        self.film_low = nn.Linear(conditions, 2 * c.w4)
        self.film_high = nn.Linear(conditions, 2 * c.w4)
        for film in (self.film_low, self.film_high):
            nn.init.zeros_(film.weight)
            nn.init.zeros_(film.bias)
        self.low = conv(c.w4, LOW, 3, scale=0.3)
        self.high = conv(c.w4, NUM_BANDS - LOW, 3, scale=0.3)
        # how much of each texture there is at a place, and the filters that make them of noise
        self.texture = conv(c.w4, TEXTURES, 1, scale=0.0)
        self.grain = FixedConv2d(texture_weight(), padding=1)
        finest = (torch.arange(TEXTURES) < DIRECTIONS).float()[:, None, None]
        self.register_buffer("finest", finest, persistent=False)
        # grey's bands in units of their deviations, of others, and among all
        places, deviations = _grey_places(), band_scale()[0, GREY, 0, 0]
        self.pick = FixedConv2d(places.transpose(0, 1).contiguous())
        self.grey = FixedConv2d(self.pick.weight / deviations[:, None, None, None])
        self.spread = FixedConv2d(places * deviations[:, None, None])
        # the noise of grey's high bands once for each texture, and how much of it there is
        noise = torch.eye(len(GREY))[1:, :, None, None]
        self.noise = FixedConv2d(noise.repeat(TEXTURES, 1, 1, 1))
        amounts = torch.eye(TEXTURES)[:, :, None, None]
        self.amounts = FixedConv2d(amounts.repeat_interleave(len(noise), 0))
        self.degrid = Degrid()
        self.register_load_state_dict_pre_hook(_without_texture)

    def film_layers(self) -> list[nn.Linear]:
        """Of all that is modulated, in order."""
        blocks = [block.film for block in self.modules() if isinstance(block, ResidualBlock)]
        return [*(film for film in blocks if film is not None), self.film_low, self.film_high]

    def forward(
        self,
        prompt: Tensor,
        s_hat: Tensor,
        x_t: Tensor,
        t: Tensor,
        realism: Tensor,
        quality: Tensor,
        residual: Tensor | None = None,
        residual_bands: Tensor | None = None,
    ) -> Tensor:
        known = torch.cat([s_hat / 4, torch.stack([realism, quality], 1)], 1)
        time = time_features(t)
        first, relu, *layers = self.condition
        condition = first(known) + self.time(time)
        for layer in (relu, *layers):
            condition = layer(condition)
        drawn = F.relu(self.drawn(torch.cat([known, time], 1))) * realism[:, None]
        scales_shifts = iter(films(self.film_layers(), torch.cat([condition, drawn], 1)))
        if residual_bands is not None:
            # What the file says of the picture is no noise, and is not to be drawn again: later
            # steps see x_t of what they have drawn themselves.
            residual_bands = residual_bands / self.scale
            x_t = x_t + residual_bands * (t - 1)[:, None, None, None]
        with torch.autocast(prompt.device.type, enabled=False):  # more than bfloat16's 8 bits
            told = self.prompt(prompt)
        h = told + self.noise16(x_t)
        if residual is not None:
            h = h + self.residual16(residual * (1 / UNIT))
        for block in self.b16:
            h = block(h, next(scales_shifts))
        h = F.pixel_shuffle(self.up8(h), 2) + self.noise8(x_t)
        for block in self.b8:
            h = block(h, next(scales_shifts))
        h = F.pixel_shuffle(self.up4(h), 2) + self.noise4(x_t)
        if residual_bands is not None:
            h = h + self.residual4(residual_bands)
        for block in self.b4:
            h = block(h, next(scales_shifts))
        low = modulate(h, next(scales_shifts))
        h = F.relu(modulate(h, next(scales_shifts)))
        high = self.high(h)
        amounts = self.amounts(_by_size(self.texture(h), self.finest, t))
        # ll2 spans +-7: bfloat16 would cost grey levels
        with torch.autocast(h.device.type, enabled=False):
            low = self.low(F.relu(low).float()) * self.scale[:, :LOW]
            bands = torch.cat([low, high.float() * self.scale[:, LOW:]], 1)
            grey = self.grey(bands)
            noise = noise_within(self.pick(x_t), t, grey) * _texture_gain(t)
            grain = self.grain(amounts.float() * self.noise(noise))
            return bands + self.spread(grain + self.degrid(grey))  # type: ignore[no-any-return]


def _without_texture(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a Student load a checkpoint of before it had textures, or these: it draws none then."""
    for name, value in module.state_dict().items():
        key = f"{prefix}{name}"
        of_textures = name.startswith(("texture.", "amounts.", "noise.", "grain."))
        if of_textures and (key not in state or state[key].shape != value.shape):
            state[key] = torch.zeros_like(value)


def noise_within(x_t: Tensor, t: Tensor, bands: Tensor) -> Tensor:
    """The noise in x_t [B, C, h, w] at t [B], if it holds these bands: (x_t - (1 - t) bands) / t.

    In the first step, at t = 1, x_t is nothing else. In later ones a texture of x_t would be one of
    the picture, and of t times the noise.
    """
    t, left = (v[:, None, None, None] for v in (t, 1 - t))
    return (x_t - left * bands) / t


def _texture_gain(t: Tensor) -> Tensor:
    """How much of its textures a step at t [B] draws, 1 in the first; [B, 1, 1, 1].

    Later steps see a face that has texture, and would draw less.
    """
    return (1 + LATER_TEXTURE * (1 - t).square())[:, None, None, None]


def _by_size(textures: Tensor, finest: Tensor, t: Tensor) -> Tensor:
    """How much there is of each texture, [B, TEXTURES, h, w], in a picture of this size.

    finest: 1 for those of the finest octave, [TEXTURES, 1, 1].

    What is learnt from is 224 pixels wide for the most part. Skin in a picture of 512x512 has
    texture that is too fine for that: of the second octave twice as much as was learnt, of the
    finest four times. Where there is much already, in hair and at edges, nearly nothing is added.
    """
    places = torch.ones_like(textures[:1, :1]).sum()  # a tensor, which a graph keeps
    gain = (places.sqrt() / TEXTURE_SIZE).clamp(1, TEXTURE_MOST)
    more = (gain - 1) * (1 + finest * gain) * t.square()[:, None, None, None]
    return textures + more * textures.clamp(-TEXTURE_WEAK, TEXTURE_WEAK)


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of t [B] -> [B, 2 * TIME_OCTAVES], all zero at t = 1."""
    angles = (1 - t)[:, None] * math.pi * 2.0 ** torch.arange(-1, TIME_OCTAVES - 1)
    return torch.cat([angles.sin(), angles.cos() - 1], 1)


class ResidualTransform(nn.Module):
    """What the student leaves, of 8x8 pixels at a time, as coefficients and back.

    The high-frequency path of the compressor: from quality `residual_from` on the encoder decodes
    its own base and codes what is missing, which is nearly all in the high bands of eyes, brows,
    mouth and hair. Both matrices start as the first principal components of such residuals (the
    Karhunen-Loeve transform, `export/train_residual.py`), and may learn with everything else.

    The four blocks at a position of H/16 are four groups of channels, in the order of BLOCKS: each
    is predicted from those before it, the first from the base alone, and the last two from
    neighbours on all sides.
    """

    order: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.components = channels // len(BLOCKS)
        rows = torch.eye(4 * NUM_BANDS)[: self.components].unflatten(1, (NUM_BANDS, 2, 2))
        self.analysis = nn.Parameter(rows.clone())  # [R / 4, 48, 2, 2]
        self.synthesis = nn.Parameter(rows.clone())
        raster = [BLOCKS.index((row, column)) for row in (0, 1) for column in (0, 1)]
        order = torch.arange(self.components)[:, None] + self.components * torch.tensor(raster)
        self.register_buffer("order", order.flatten(), persistent=False)

    def forward(self, bands: Tensor) -> Tensor:
        """Bands [B, 48, h, w] -> coefficients [B, R, h/4, w/4]; in units of 1/8 of a band's."""
        blocks = UNIT * F.conv2d(bands, self.analysis, stride=2)
        return torch.cat([blocks[:, :, row::2, column::2] for row, column in BLOCKS], 1)

    def bands(self, coefficients: Tensor) -> Tensor:
        """The other way."""
        blocks = F.pixel_shuffle(coefficients[:, self.order] * (1 / UNIT), 2)
        weight = self.synthesis.flatten(1).T[:, :, None, None]
        return F.pixel_shuffle(F.conv2d(blocks, weight), 2)


class Base(NamedTuple):
    """A coded base: s, z, y, what the student is told of them, and what it leaves, as bands.

    price: of the bits of what follows, [B, 1, h, w].
    """

    coded: tuple[Coded, Coded, Coded]
    prompt: Tensor
    s_hat: Tensor
    left: Tensor
    price: Tensor


def residual_price(near: Tensor) -> Tensor:
    """What a bit of the residual must buy, in squared steps; see `Coded.of`.

    Args:
      near: any shape, 0..1, 1 at the landmarks of the face: there a bit may buy less.
    """
    octaves = FAR_OCTAVES - (FAR_OCTAVES + NEAR_OCTAVES) * near
    return PRICE * torch.exp(octaves * math.log(2))


def unevenness(q: Tensor, first: int) -> Tensor:
    """How much the place in a face matters at qualities q, 1 up to `first`, then falling to 0.

    `first`: from which there is a residual; of its bits and of training's errors.
    """
    return (1 - (q - first) / (EVEN_FROM * (NUM_Q - 1 - first))).clamp(0, 1)


def price_at(price: Tensor, q: Tensor, first: int) -> Tensor:
    """The `price` [B, 1, h, w] at qualities q [B]; small files are for the face, large for all."""
    power = unevenness(q, first)[:, None, None, None]
    return EVEN_PRICE * (price * (1 / EVEN_PRICE)) ** power


def scale_gradient(x: Tensor, share: Tensor) -> Tensor:
    """x [B, ...], with `share` [B] of its gradient."""
    still = x.detach()
    return still + share.view(-1, *[1] * (x.ndim - 1)) * (x - still)


def quality_dial(q: Tensor) -> Tensor:
    """The quality as the student sees it, 0..1, of quarter steps."""
    return q.float() / (NUM_Q - 1)


class Codec(nn.Module):
    """Compressor, integer entropy model and student, as they are trained together."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.g_a = Analysis(self.config)
        self.g_s = Student(self.config)
        self.entropy = EntropyModel(self.config.entropy)
        self.residual = ResidualTransform(self.config.entropy.num_residual)
        if self.config.quantised:
            quantise_convolutions(self, QUANTISED)

    def analyse(
        self, bands: Tensor, *, bf16: bool = False
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """(s, z, y) and the price of bands [B, 48, H/4, W/4], float32, unrounded."""
        with mixed_precision(bf16):
            y, z, s, price = self.g_a(bands.contiguous(memory_format=torch.channels_last))
        return (s.float(), z.float(), y.float()), price.float()

    def latents(self, bands: Tensor, *, bf16: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(s, z, y) of `analyse`."""
        return self.analyse(bands, bf16=bf16)[0]

    def decoded(self, coded: tuple[Coded, Coded, Coded], q: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt [B, Cy + Cz, h, w] and s_hat [B, S] of coded s, z, y."""
        e = self.entropy
        gains = (e.s_gains, e.z_gains, e.y_gains)
        s, z, y = (e.dequantise(c, g, q) for c, g in zip(coded, gains, strict=True))
        return torch.cat([y, enlarge(z, *y.shape[2:])], 1), s

    def synthesise(
        self,
        prompt: Tensor,
        s_hat: Tensor,
        x_t: Tensor,
        t: Tensor,
        realism: Tensor,
        quality: Tensor,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Bands [B, 48, 4h, 4w] of what the file says; arguments as in `Student`."""
        prompt = prompt.contiguous(memory_format=torch.channels_last)
        if residual is None:
            bands: Tensor = self.g_s(prompt, s_hat, x_t, t, realism, quality)
            return bands
        known = self.residual.bands(residual)
        bands = self.g_s(prompt, s_hat, x_t, t, realism, quality, residual, known)
        return bands + known.float()

    def one_step(
        self,
        prompt: Tensor,
        s_hat: Tensor,
        realism: Tensor,
        noise: Tensor,
        q: Tensor,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Bands of what the file says, in a single step from t = 1; q [B] in quarter steps."""
        x_t = noise * realism[:, None, None, None]
        t = torch.ones(len(q))
        return self.synthesise(prompt, s_hat, x_t, t, realism, quality_dial(q), residual)

    def posterior_mean(
        self, prompt: Tensor, s_hat: Tensor, q: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        """The same at realism 0."""
        size = [4 * side for side in prompt.shape[2:]]
        nothing = prompt.new_zeros(len(q), NUM_BANDS, *size)
        return self.one_step(prompt, s_hat, torch.zeros(len(q)), nothing, q, residual)

    def forward(
        self,
        bands: Tensor,
        q: Tensor,
        realism: Tensor,
        noise: Tensor,
        *,
        followed: Tensor | None = None,
        bf16: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bands of one image through the base of the codec, differentiably.

        The transform is orthonormal: squared errors may be taken on the bands.

        Args:
          bands: `split_bands` of the image, [B, 48, H/4, W/4].
          q: int64 [B], quarter steps, at most `residual_from`.
          realism: [B]; noise: [B, 48, H/4, W/4], unit normal.
          followed: [B], share of the gradient of an image that the compressor gets; all of it.
        Returns:
          Decoded bands, [B, 48, H/4, W/4], and the bits [B] of each part.
        """
        e = self.entropy
        coded = e.code(*self.latents(bands, bf16=bf16), q)
        prompt, s_hat = self.decoded(coded, q)
        bits = e.bits(*coded)
        if followed is not None:
            prompt, s_hat = (scale_gradient(v, followed) for v in (prompt, s_hat))
            bits = {part: scale_gradient(v, followed) for part, v in bits.items()}
        with mixed_precision(bf16):
            out = self.one_step(prompt, s_hat, realism, noise, q)
        return out, bits

    @torch.no_grad()
    def base(self, bands: Tensor, *, bf16: bool = True) -> Base:
        """The base at its top quality, as the encoder decodes it to see what is left."""
        e = self.entropy
        q = torch.full((len(bands),), e.config.residual_from)
        latents, price = self.analyse(bands, bf16=bf16)
        return self.decoded_base(bands, e.code(*latents, q), price, bf16=bf16)

    @torch.no_grad()
    def decoded_base(
        self, bands: Tensor, coded: tuple[Coded, Coded, Coded], price: Tensor, *, bf16: bool = True
    ) -> Base:
        """The same of a base that has been coded."""
        q = torch.full((len(bands),), self.entropy.config.residual_from)
        prompt, s_hat = self.decoded(coded, q)
        with mixed_precision(bf16):
            out = self.posterior_mean(prompt, s_hat, q)
        return Base(coded, prompt, s_hat, bands - out.float(), price)

    def code_left(
        self, base: Base, q: Tensor, *, price: float | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the file says of what the base leaves, from quality `residual_from` on.

        Args:
          q: int64 [B], quarter steps; price: in place of the base's at q.
        Returns:
          residual [B, R, h, w], as the student takes it; bits [B].
        """
        e = self.entropy
        price = price_at(base.price, q, e.config.residual_from) if price is None else price
        coded = e.code_residual(base.coded, self.residual(base.left), q, price=price)
        return e.dequantise(coded, e.residual_gains, q), coded.bits.sum((1, 2, 3))

    def refine(
        self, base: Base, q: Tensor, *, price: float | Tensor | None = None, bf16: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The image with its residual, from quality `residual_from` on, at realism 0.

        Differentiable but for the base.

        Args:
          q: int64 [B], quarter steps; price: in place of the base's at q.
        Returns:
          Decoded bands [B, 48, H/4, W/4] and the bits [B] of the residual.
        """
        residual, bits = self.code_left(base, q, price=price)
        with mixed_precision(bf16):
            out = self.posterior_mean(base.prompt, base.s_hat, q, residual)
        return out, bits

    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)


def codec_from_dict(values: dict[str, Any]) -> Codec:
    values = dict(values)
    entropy = EntropyConfig(**values.pop("entropy"))
    for key in ("encoder_blocks", "decoder_blocks"):
        values[key] = tuple(values[key])
    return Codec(ModelConfig(**values, entropy=entropy))


def frozen_codec(checkpoint: Path) -> Codec:
    """The averaged weights of a checkpoint, not to be trained."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    codec = codec_from_dict(state["config"])
    codec.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return codec.requires_grad_(False).eval()
