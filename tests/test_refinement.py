"""What `effort` buys: refined latents, and the gradient that they follow."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from test_export_networks import small_codec
from test_quantise import calibrated

from export.gradient import gradient_of
from export.networks import quality_dial, split_bands
from export.to_onnx import GRAPHS, export_model
from export.verify import Gradient, synthetic_image
from fasdiff_edge import Decoder, Encoder
from fasdiff_edge.bitstream import unpack
from fasdiff_edge.engines import load_graph
from fasdiff_edge.entropy_model import Levels, Rates
from fasdiff_edge.errors import OptionError
from fasdiff_edge.models import Model, load_model
from fasdiff_edge.refinement import refine
from fasdiff_edge.stages import record

Q = 60


@pytest.mark.parametrize("int8", [False, True])
def test_the_gradient_is_that_of_the_student(tmp_path: Path, engine: str, int8: bool) -> None:
    codec = calibrated()[1] if int8 else small_codec()
    with torch.no_grad():
        for weight in codec.g_s.parameters():
            weight.copy_(weight.half().float())  # as the file holds them
    export_model(codec, tmp_path, {}, name="small", min_quality=0.0)
    model = load_model(tmp_path)
    assert set(GRAPHS) < set(model.manifest["files"])
    graph = load_graph(model.read("synthesis.onnx") + model.read("gradient.onnx"), engine, 1)
    image = synthetic_image(80, 48).transpose(2, 0, 1).copy()
    bands = split_bands(torch.from_numpy(image)[None].float())
    q = torch.tensor([Q])
    random = np.random.default_rng(1)
    with torch.no_grad():
        e = codec.entropy
        prompt, s_hat = codec.decoded(e.code(*codec.latents(bands), q), q)
    inputs = {
        "prompt": prompt.numpy(),
        "s_hat": s_hat.numpy(),
        "x_t": np.zeros((1, 48, 20, 12), np.float32),
        "t": np.ones(1, np.float32),
        "realism": np.zeros(1, np.float32),
        "quality": quality_dial(q).numpy(),
        "residual": np.zeros((1, 8, 5, 3), np.float32),
        "target": bands.numpy(),
        "weight": random.uniform(0.5, 2, (1, 1, 20, 12)).astype(np.float32),
    }
    found = graph.run(inputs)
    expected = Gradient(codec)(*(torch.from_numpy(v) for v in inputs.values()))
    _, error, gradient = (v.numpy() for v in expected)
    assert float(found["error"]) == pytest.approx(float(error), rel=0.02 if int8 else 1e-4)
    got = found["prompt_gradient"]
    assert got.shape == gradient.shape
    if int8:  # roundings of two engines differ, and so do the ReLUs that are open
        alike = (got * gradient).sum() / np.linalg.norm(got) / np.linalg.norm(gradient)
        assert alike > 0.97
    else:
        np.testing.assert_allclose(got, gradient, atol=1e-4 * np.abs(gradient).max())


def test_an_operator_without_a_gradient_is_an_error() -> None:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 2, 2]) for n in ("a", "b")]
    value[0].name, value[1].name = "prompt", "bands"
    graph = helper.make_graph(
        [helper.make_node("Tanh", ["prompt"], ["bands"])], "g", *([v] for v in value)
    )
    with pytest.raises(ValueError, match="no gradient is known of Tanh"):
        gradient_of(onnx.helper.make_model(graph))


# -- the passes ------------------------------------------------------------------------------------
class Quadratic:
    """A decoder that gives back what it is told, and bits that grow with magnitude."""

    def __init__(self, wanted: np.ndarray) -> None:
        self.wanted = wanted
        self.asked = 0

    def rates(self, y: np.ndarray) -> Rates:
        levels = np.rint(16 * y).astype(np.int32)
        bits = float(50 * np.abs(y).sum())
        return Rates(Levels(s=levels, z=levels, y=levels), bits, np.float32(50) * np.sign(y))

    def error(self, decoded: Levels) -> tuple[float, np.ndarray]:
        self.asked += 1
        away = decoded.y.astype(np.float32) / 16 - self.wanted
        return float(np.square(away).sum()), 2 * away


def test_refinement_brings_error_down_within_a_budget() -> None:
    random = np.random.default_rng(0)
    wanted = random.normal(0, 2, (3, 4, 4)).astype(np.float32)
    start = wanted + random.normal(0, 0.3, wanted.shape).astype(np.float32)
    image = Quadratic(wanted)
    before = image.error(image.rates(start).decoded)[0]
    image.asked = 0
    better = refine(start, image.rates, image.error, 8)
    assert image.asked == 8
    assert better.dtype == np.float32 and better.shape == start.shape
    assert image.error(image.rates(better).decoded)[0] < 0.9 * before
    bits = image.rates(start).bits
    budget = 0.98 * bits
    fitting = refine(start, image.rates, image.error, 8, budget - bits)
    assert 0.9 * budget < image.rates(fitting).bits <= budget
    for beyond in (1.0, 100 * budget):  # what cannot be had is not asked for at any price
        assert np.isfinite(refine(start, image.rates, image.error, 8, beyond - bits)).all()


def test_refinement_without_passes_or_with_nothing_to_gain_changes_nothing() -> None:
    y = np.ones((1, 2, 2), np.float32)
    assert np.array_equal(refine(y, Quadratic(0 * y).rates, Quadratic(0 * y).error, 0), y)
    assert np.array_equal(refine(y, Quadratic(y).rates, Quadratic(y).error, 4), y)


def test_a_gradient_that_is_not_a_number_moves_nothing() -> None:
    image = Quadratic(np.zeros((1, 2, 2), np.float32))
    y = np.ones((1, 2, 2), np.float32)
    found = refine(y, image.rates, lambda _: (1.0, np.full_like(y, np.nan)), 4)
    assert np.isfinite(found).all()


# -- the bits --------------------------------------------------------------------------------------
@pytest.mark.parametrize("quality", [10, 80, 111, 112])
def test_rates_are_those_of_the_file(model: Model, portrait: np.ndarray, quality: int) -> None:
    entropy = model.entropy
    file = Encoder(threads=1).encode(portrait, quality=quality / 4)
    levels = entropy.decode(unpack(file)[2], quality, (8, 8))
    base = slice(0, entropy.num_base)
    y = levels.y[base].astype(np.float32) / 16
    found = entropy.rates(levels, y, quality)
    assert np.array_equal(found.decoded.y[base], levels.y[base])
    assert not found.decoded.y[entropy.num_base :].any()
    if quality < entropy.residual_from:
        bits = entropy.part_bits(levels, quality)
        passes = sum(value for name, value in bits.items() if name[0] == "y")
        assert found.bits == pytest.approx(passes, rel=1e-5)
    near = entropy.rates(levels, y + np.float32(0.3), quality)
    assert np.array_equal(near.decoded.y[base], levels.y[base])
    for sign in (1, -1):  # the further a latent is from its mean, either way, the dearer
        moved = entropy.rates(levels, y + np.float32(sign), quality)
        assert (sign * moved.slope).mean() > (sign * found.slope).mean() + 1


# -- the encoder -----------------------------------------------------------------------------------
def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(cv2.PSNR(a, b))


@pytest.mark.parametrize("budget", [150, 300, 700, 1000])
def test_effort_gives_a_better_picture_for_the_same_bytes(
    portrait: np.ndarray, engine: str, budget: int
) -> None:
    decoder = Decoder(engine=engine, threads=1, realism=0.0)
    plain = Encoder(engine=engine, threads=1).encode(portrait, max_bytes=budget)
    encoder = Encoder(engine=engine, threads=1, effort=6)
    with record() as stages:
        refined = encoder.encode(portrait, max_bytes=budget)
    assert stages["refinement"] > 0
    assert 0.93 * budget < len(refined) <= budget
    assert psnr(decoder.decode(refined), portrait) > psnr(decoder.decode(plain), portrait) + 0.02
    assert encoder.encode(portrait, max_bytes=budget) == refined


def test_effort_at_a_quality(portrait: np.ndarray) -> None:
    decoder = Decoder(threads=1, realism=0.0)
    for quality in (15, 40):
        plain = Encoder(threads=1).encode(portrait, quality=quality)
        refined = Encoder(threads=1, effort=4).encode(portrait, quality=quality)
        assert len(refined) < 1.1 * len(plain)
        gained = psnr(decoder.decode(refined), portrait) - psnr(decoder.decode(plain), portrait)
        assert gained > -0.05 and refined != plain


def test_effort_spends_no_more_than_the_quality_asks_for(portrait: np.ndarray) -> None:
    plain = Encoder(threads=1).encode(portrait, quality=20, max_bytes=4000)
    refined = Encoder(threads=1, effort=6).encode(portrait, quality=20, max_bytes=4000)
    assert plain == Encoder(threads=1).encode(portrait, quality=20)
    assert 0.9 * len(plain) < len(refined) <= len(plain)


@pytest.mark.parametrize("kind", ["flat", "noise", "tiny"])
def test_effort_on_what_is_no_face(kind: str) -> None:
    random = np.random.default_rng(0)
    image = {
        "flat": np.full((64, 64, 3), 128, np.uint8),
        "noise": random.integers(0, 256, (96, 64, 3), np.uint8),
        "tiny": random.integers(0, 256, (32, 33, 3), np.uint8),
    }[kind]
    encoder = Encoder(threads=1, effort=3)
    for budget in (400, 5000):
        data = encoder.encode(image, max_bytes=budget)
        assert len(data) <= budget
        assert Decoder(threads=1).decode(data).shape == image.shape


@pytest.mark.parametrize("effort", [-1, 65, 1.5, "8", True, None])
def test_bad_effort(effort: object) -> None:
    with pytest.raises(OptionError, match="effort"):
        Encoder(threads=1, effort=effort)  # type: ignore[arg-type]


def test_a_model_without_a_gradient_has_no_effort(tmp_path: Path) -> None:
    export_model(small_codec(), tmp_path, {}, name="small", min_quality=0.0)
    text = (tmp_path / "manifest.json").read_text().replace('"gradient.onnx"', '"other.onnx"')
    (tmp_path / "manifest.json").write_text(text)
    Encoder(tmp_path, threads=1)
    with pytest.raises(OptionError, match=r"no gradient\.onnx"):
        Encoder(tmp_path, threads=1, effort=1)
