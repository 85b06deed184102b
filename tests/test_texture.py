"""The grid of the bands: textures that do not have it, and what is decoded, less it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_export_networks import exported, small_codec
from torch import Tensor

from export.networks import (
    GREY,
    NUM_BANDS,
    OPPONENT,
    TEXTURE_WEAK,
    Degrid,
    _by_size,
    band_scale,
    merge_bands,
    split_bands,
    texture_weight,
)
from export.quantised import FixedConv2d, QuantisedConv2d
from export.texture import (
    DIRECTIONS,
    GRID,
    GRID_LIMIT,
    TEXTURES,
    grid_filter,
    texture_filters,
)
from fasdiff_edge.engines import load_graph

SIDE = 256


def grey_of(bands: Tensor) -> Tensor:
    """c0 of bands of grey alone, [1, 16, h, w] in units of their deviations -> [4h, 4w]."""
    every = torch.zeros(1, NUM_BANDS, *bands.shape[2:])
    every[:, GREY] = bands
    pixels = merge_bands(every * band_scale())
    return torch.einsum("c,bchw->bhw", OPPONENT[0], pixels / 127.5 - 1)[0]


def unevenness(grey: Tensor) -> float:
    """How far neighbours are related otherwise at one place of a block than at others.

    The deviation over the four columns of a block of the products of neighbours along a row, as a
    share of the mean square.
    """
    products = grey[:, :-1] * grey[:, 1:]
    columns = torch.stack([products[:, i::4].mean() for i in range(4)])
    return float(columns.std() / grey.square().mean())


def without_grid(image: Tensor) -> Tensor:
    """[1, 3, H, W] -> the same, by `Degrid`."""
    bands = split_bands(image) / band_scale()
    bands[:, GREY] += Degrid()(bands[:, GREY])
    return merge_bands(bands * band_scale())


def test_textures_are_noise_without_a_mean_each_in_its_direction() -> None:
    filters = texture_filters()
    assert filters.shape == (TEXTURES, 9, 9)
    assert np.abs(filters.sum((1, 2))).max() < 1e-5
    assert np.square(filters).sum((1, 2)) == pytest.approx(np.full(TEXTURES, 0.01), rel=1e-4)
    power = np.abs(np.fft.fft2(filters, (64, 64))) ** 2
    v, u = np.meshgrid(*[np.fft.fftfreq(64)] * 2, indexing="ij")
    angles = [np.angle((p * np.exp(2j * np.arctan2(v, u))).sum()) / 2 for p in power]
    turned = np.pi * (np.arange(TEXTURES) % DIRECTIONS) / DIRECTIONS
    assert np.abs(np.sin(angles - turned)).max() < 0.02
    radius = (power * np.hypot(u, v)).sum((1, 2)) / power.sum((1, 2))
    assert (radius[:DIRECTIONS] > 1.5 * radius[DIRECTIONS:]).all()


def test_the_convolution_of_bands_filters_the_picture() -> None:
    torch.manual_seed(0)
    noise = torch.randn(1, len(GREY), 16, 16)
    noise[:, 0] = 0
    weight = texture_weight()
    assert weight.shape == (16, 15 * TEXTURES, 3, 3)
    pixels = grey_of(noise / band_scale()[:, GREY])  # white
    for index, kernel in enumerate(texture_filters()):
        part = weight[:, 15 * index : 15 * (index + 1)]
        found = grey_of(F.conv2d(noise[:, 1:], part, padding=1))
        expected = F.conv2d(pixels[None, None], torch.from_numpy(kernel)[None, None], padding=4)
        torch.testing.assert_close(found, expected[0, 0], atol=1e-5, rtol=1e-4)


def test_textures_have_no_grid_where_noise_of_bands_has() -> None:
    torch.manual_seed(0)
    high = torch.randn(1, 15, SIDE, SIDE)
    shaped = torch.cat([torch.zeros(1, 1, SIDE, SIDE), high], 1) / band_scale()[:, GREY]
    shaped[:, 4:] *= 0.4  # finer bands less than coarser ones
    assert unevenness(grey_of(shaped)) > 0.3
    for index in range(TEXTURES):
        much = torch.full((1, TEXTURES, 1, 1), 0.05)
        much[:, index] = 1.0
        parts = torch.cat([m * high for m in much.split(1, 1)], 1)
        assert unevenness(grey_of(F.conv2d(parts, texture_weight(), padding=1))) < 0.1


def test_the_convolution_of_bands_takes_the_smooth_part_off() -> None:
    torch.manual_seed(0)
    grey = torch.rand(1, 1, 64, 64)
    bands = split_bands((grey * OPPONENT[0].view(1, 3, 1, 1) + 1) * 127.5) / band_scale()
    degrid = Degrid()
    found = degrid.pixels(bands[:, GREY, 1:-1, 1:-1])
    rough = F.conv2d(grey, torch.from_numpy(grid_filter())[None, None], padding=4)
    of_blocks = F.pixel_unshuffle(rough, GRID)[..., 1:-1, 1:-1]
    expected = of_blocks * 127.5 / math.sqrt(3) / GRID_LIMIT
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("period", [4, GRID])
def test_a_grid_is_taken_off(period: int) -> None:
    torch.manual_seed(0)
    smooth = 120 + 20 * torch.linspace(-1, 1, SIDE)[None, None, :, None].expand(1, 3, SIDE, SIDE)
    block = torch.rand(period, period)
    block -= block.mean()
    grid = block.repeat(SIDE // period, SIDE // period)
    away = (without_grid(smooth + grid) - smooth)[..., 80:-80, 80:-80]
    assert away.abs().max() < 0.05 * grid.abs().max()


def test_lines_16_pixels_apart_are_taken_off() -> None:
    """A hatching, as the coarsest part of a network may leave it, and any other grid of ll2."""
    torch.manual_seed(0)
    smooth = (120 + 20 * torch.linspace(-1, 1, 512))[:, None].expand(1, 3, 512, 512)
    any_other = torch.rand(4, 4)
    diagonal = torch.tensor([[1.0, 0, -1, 0], [0, -1, 0, 1], [-1, 0, 1, 0], [0, 1, 0, -1]])
    for block in (diagonal, any_other - any_other.mean()):
        lines = F.interpolate(block.repeat(1, 1, 32, 32), scale_factor=4.0, mode="bilinear")
        away = (without_grid(smooth + lines) - smooth)[..., 128:-128, 128:-128]
        assert away.abs().max() < 0.01 * lines.abs().max()


def test_a_strong_grid_is_taken_off_where_there_is_texture() -> None:
    """Dots in hair. The texture stays, and so does what is alike in a few blocks alone."""
    torch.manual_seed(0)
    hair = (60 + 8 * torch.randn(1, 1, 320, 320)).expand(1, 3, -1, -1)
    dots = F.avg_pool2d(F.pad(torch.randn(1, 1, GRID, GRID), [1] * 4, "circular"), 3, 1)[0, 0]
    dots *= 8 / dots.std()
    grid = (dots - dots.mean()).repeat(40, 40)
    inner = (..., slice(96, -96), slice(96, -96))
    quiet = without_grid(hair)[inner]
    left = (without_grid(hair + grid)[inner] - quiet).square().mean()
    assert float(left) < 0.06 * float(grid.square().mean())
    assert float((quiet - hair[inner]).square().mean()) < 0.02 * float(hair[inner].var())
    few = hair.clone()
    few[..., 152:168, 152:168] += grid[:16, :16]
    moved = without_grid(few)[inner] - quiet - (few - hair)[inner]
    assert float(moved.abs().max()) < 0.1 * float(grid.abs().max())


@pytest.mark.parametrize("size", [16, 48])
def test_the_smallest_pictures_can_lose_their_grid(size: int) -> None:
    image = torch.full((1, 3, size, size), 90.0)
    assert (without_grid(image) - image).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("kind", "moved"), [("flat", 0.001), ("ramp", 0.01), ("noise", 0.5), ("edge", 0.15)]
)
def test_what_is_no_grid_stays(kind: str, moved: float) -> None:
    torch.manual_seed(0)
    across = torch.linspace(0, 1, SIDE)
    image = {
        "flat": torch.full((SIDE, SIDE), 77.0),
        "ramp": (30 + 190 * across).expand(SIDE, SIDE),
        "noise": 128 + 8 * torch.randn(SIDE, SIDE),
        "edge": (60 + 120 * (across[:, None] + 0.37 * across > 0.6)).float(),
    }[kind].expand(1, 3, SIDE, SIDE)
    away = without_grid(image) - image
    assert float(away[..., 80:-80, 80:-80].square().mean().sqrt()) < moved
    assert float(away.square().mean().sqrt()) < max(moved, 0.25)  # what is beyond is not known
    assert float(away.abs().max()) < GRID_LIMIT


@pytest.mark.parametrize(
    "size, gain", [((16, 16), 1.0), ((64, 64), 1.0), ((64, 144), 1.5), ((400, 400), 2.0)]
)
def test_large_pictures_have_more_of_what_is_weak(size: tuple[int, int], gain: float) -> None:
    learnt = torch.zeros(2, TEXTURES, *size)
    learnt[:, 1], learnt[:, 6], learnt[:, 2] = -0.6 * TEXTURE_WEAK, TEXTURE_WEAK, 9 * TEXTURE_WEAK
    first, later = _by_size(learnt, small_codec().g_s.finest, torch.tensor([1.0, 0.5]))
    weak, second, strong = (float(first[i, 0, 0]) / TEXTURE_WEAK for i in (1, 6, 2))
    assert (weak, second) == pytest.approx((-0.6 * gain**2, gain))  # of the finest, and the second
    assert strong == pytest.approx(9 + gain**2 - 1)
    # what a later step sees has it already, and would be drawn more strongly at edges
    assert torch.allclose(later - learnt[1], (first - learnt[0]) / 4)


def test_graphs_draw_as_much_texture_as_the_size_asks_for(engine: str, tmp_path: Path) -> None:
    codec, _ = exported(tmp_path)
    graph = load_graph((tmp_path / "synthesis.onnx").read_bytes(), engine, 1, "residual")
    torch.manual_seed(1)
    for height, width in ((8, 4), (24, 28), (32, 36)):
        told = {
            "prompt": torch.randn(1, 20, height, width),
            "s_hat": torch.randn(1, 4),
            "x_t": torch.randn(1, NUM_BANDS, 4 * height, 4 * width),
            **{name: torch.ones(1) for name in ("t", "realism", "quality")},
        }
        with torch.no_grad():
            expected = codec.synthesise(**told)
            codec.g_s.grain.weight = torch.zeros_like(texture_weight())
            plain = codec.synthesise(**told)
            codec.g_s.grain.weight = texture_weight()
        texture = float((expected - plain).square().mean())
        arrays = {name: value.numpy() for name, value in told.items()}
        if "residual" in graph.inputs:
            arrays["residual"] = np.zeros((1, 8, height, width), np.float32)
        found = torch.from_numpy(graph.run(arrays)["bands"])
        assert float((found - expected).square().mean()) < 1e-4 * texture


def test_what_is_given_is_not_kept_and_textures_of_before_are_not_read() -> None:
    student = small_codec().g_s
    state = dict(student.state_dict())
    given = ("degrid", "spread", "noise.", "amounts", "grain.weight")
    assert not any(key.startswith(given) for key in state)  # what is given is not kept
    state["texture.weight"], state["texture.bias"] = torch.ones(45, 16, 1, 1), torch.ones(45)
    student.load_state_dict(state)  # of when each band had noise of its own
    assert not student.texture.weight.any() and not student.texture.bias.any()


def test_weights_that_are_given_can_be_int8_and_are_not_learnt() -> None:
    layer = QuantisedConv2d(FixedConv2d(texture_weight(), padding=1), output=False)
    assert [n for n, _ in layer.named_parameters()] == ["input.log2_step"]
    assert set(layer.state_dict()) == {"input.log2_step"}
    x = torch.randn(1, 15 * TEXTURES, 8, 8)
    with torch.no_grad():
        layer.input.log2_step.fill_(-5)
        exact = F.conv2d(x, texture_weight(), padding=1)
        assert float((layer(x) - exact).square().mean() / exact.square().mean()) < 5e-3
    assert torch.equal(layer.plain().weight, layer.rounded_weight())
