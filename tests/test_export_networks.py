"""The training networks against the runtime's kernels, and the export of a small model."""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from export import precision
from export.ablate import PARTS, ablate
from export.data import BatchKind, Crops, FaceSampler, WorkerSampler, nearness, read_index
from export.distil import DistilSettings
from export.integer_entropy import PRICE, EntropyConfig
from export.losses import ARCFACE_TEMPLATE, IdentityLoss, sampling_theta, similarity_transform
from export.networks import (
    Codec,
    ModelConfig,
    ResidualTransform,
    _opponent,
    codec_from_dict,
    merge_bands,
    price_at,
    residual_price,
    split_bands,
    time_features,
)
from export.optim import Muon, orthogonalise
from export.pack import pack
from export.report_parts import poorer_models
from export.report_sensitivity import sensitivities
from export.to_onnx import export_model, load_codec
from export.train import (
    VALIDATE_Q,
    Batch,
    Settings,
    Trainer,
    fewness,
    focus,
    rate_lambda,
    scarcity,
    shifted,
    squared_error,
)
from export.train_importance import expected_near, explained, predicted_near, train
from export.verify import TOLERANCE, differences, synthetic_image
from fasdiff_edge import Decoder, Encoder, _core
from fasdiff_edge.bitstream import unpack
from fasdiff_edge.entropy_model import prices_at
from fasdiff_edge.models import load_model

HALF, ONE = torch.tensor([0.5]), torch.ones(1)  # a quality, a time
SMALL = ModelConfig(
    w4=16,
    w8=16,
    w16=32,
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1, 1),
    conditions=8,
    drawn_conditions=4,
    entropy=EntropyConfig(
        num_s=4,
        num_z=4,
        num_y=16,
        num_features=8,
        group_sizes=[4, 12],
        group_scans=[3, 2],
        residual_sizes=[2, 2, 2, 2],
        residual_scans=[1, 2, 1, 1],
        residual_starts=[100, 100, 100, 140],
        hidden_residual=64,
    ),
)


def small_codec(config: ModelConfig = SMALL) -> Codec:
    torch.manual_seed(0)
    codec = Codec(config)
    with torch.no_grad():  # leave the zero initialisation, so that every path carries signal
        for p in codec.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    return codec.eval()


def exported(folder: Path) -> tuple[Codec, dict[str, Any]]:
    """A small codec with the float16 weights of a file, and the manifest of its export."""
    codec = small_codec()
    for part in (codec.g_a, codec.g_s, codec.residual):
        for p in part.parameters():
            p.data = p.data.half().float()
    return codec, export_model(codec, folder, {}, name="small", min_quality=0.0)


def test_colour_errors_weigh_more_at_the_landmarks() -> None:
    grey = torch.full((1, 3, 32, 32), 100.0)
    brighter, redder = grey + 10, grey.clone()
    redder[:, 0] += 10
    q, first = torch.tensor([100]), 132
    settings = Settings(face_weight=(1.0, 0.0, 0.0), colour_weight=3.0, pattern_weight=0.0)
    for image, gain in ((brighter, 1.0), (redder, 1 + 3.0 * 2 / 3)):
        error = split_bands(image) - split_bands(grey)
        away = squared_error(settings, error, torch.zeros(1, 2, 8, 8), q, first)
        at = squared_error(settings, error, torch.ones(1, 2, 8, 8), q, first)
        mean = float((image - grey).square().mean())
        assert float(away) == pytest.approx(mean, rel=1e-4)
        assert float(at) == pytest.approx(gain * mean, rel=1e-4)


def test_errors_weigh_more_along_the_middle_of_the_face() -> None:
    settings = Settings(face_weight=(0.5, 1.0, 2.0), pattern_weight=0.0)
    error = torch.full((1, 48, 8, 8), 0.1)
    weights = []
    for on in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        near = torch.tensor(on)[None, :, None, None].expand(1, 2, 8, 8)
        squares = squared_error(settings, error, near, torch.tensor([100]), 132)
        weights.append(float(squares) / (0.1 * 127.5) ** 2)
    assert weights == pytest.approx([0.5, 1.5, 2.5], rel=1e-4)


def test_the_fewest_bytes_are_for_the_face() -> None:
    settings = Settings(face_weight=(0.5, 1.5, 0.0), scarce=(0.5, 1.0, 0.7), pattern_weight=0.0)
    q, first = torch.tensor([10, 50, 70, 90, 110]), 112
    assert scarcity(q).tolist() == pytest.approx([1, 1, 0.5, 0, 0])
    near = torch.tensor([0.0, 1.0])[None, None, None].expand(5, 2, 1, 2)
    away, at = focus(settings, near, q, first)[:, 0].T
    power = np.array([1.5, 1.5, 1.25, 1, 1])
    assert away.numpy() == pytest.approx(0.5**power) and at.numpy() == pytest.approx(2**power)


def test_few_bytes_are_counted_at_256x256() -> None:
    payload = torch.tensor([50.0, 102, 192, 332, 492, 2000])  # 8 more are the header's
    assert fewness(8 * payload, 256).tolist() == pytest.approx([0, 0, 1, 1, 0, 0], abs=1e-6)
    assert torch.allclose(fewness(2 * payload, 128), fewness(8 * payload, 256))
    between = fewness(8 * torch.tensor([140.0, 400]), 256)
    assert (between > 0.2).all() and (between < 0.9).all()


def test_a_pattern_weighs_more_than_errors_that_differ_from_place_to_place() -> None:
    settings = Settings(face_weight=(1.0, 0.0, 0.0), pattern_weight=5.0)
    near, q = torch.zeros(1, 2, 32, 32), torch.tensor([40])
    scattered, dots, darker = torch.zeros(3, 1, 48, 32, 32)
    scattered[:, 5] = torch.randn(32, 32).sign()
    dots[:, 5] = 1
    darker[:, 0] = 1  # of ll2
    once = 127.5**2 / 48
    for error, weight in ((scattered, 1 + 5 / 49), (dots, 6.0), (darker, 1.0)):
        squares = float(squared_error(settings, error, near, q, 132))
        assert squares == pytest.approx(weight * once, rel=0.1)


def test_images_in_which_something_is_drawn_teach_the_compressor_less() -> None:
    codec = small_codec()
    bands = split_bands(torch.from_numpy(synthetic_image(64, 64)).permute(2, 0, 1)[None].float())
    dial, noise = torch.ones(1), torch.randn_like(bands)
    found = {}
    for share in (None, 1.0, 0.25, 0.0):
        codec.zero_grad()
        followed = None if share is None else torch.tensor([share])
        torch.manual_seed(0)
        out, parts = codec(bands, torch.tensor([40]), dial, noise, followed=followed, bf16=False)
        (out.square().sum() + torch.stack(list(parts.values())).sum()).backward()
        weights = (codec.g_a.to_y.weight, codec.g_s.high.weight)
        found[share] = [w.grad.clone() for w in weights if w.grad is not None]
    for share in (1.0, 0.25, 0.0):
        of_analysis, of_student = found[share]
        torch.testing.assert_close(of_analysis, share * found[None][0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(of_student, found[None][1])


def test_the_price_of_a_bit_is_the_same_everywhere_in_large_files() -> None:
    price = residual_price(torch.rand(1, 1, 5, 3))
    spread = []
    for q in (132, 150, 170, 192, 252):
        there = price_at(price, torch.tensor([q]), 132)
        of_the_encoder = prices_at(price[0, 0].numpy(), q, 132)
        np.testing.assert_allclose(of_the_encoder, 1024 * there[0, 0].numpy(), atol=0.51)
        spread.append(float(there.max() / there.min()))
    torch.testing.assert_close(price_at(price, torch.tensor([132]), 132), price)
    assert spread == sorted(spread, reverse=True)
    assert spread[2] > 1.1 and spread[-2:] == [1.0, 1.0]


class SeesTheNose(IdentityLoss):
    """An embedder of nothing but the 16x16 pixels around the tip of the nose in the chip."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def embed(
        self, image: torch.Tensor, theta: torch.Tensor, light: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        grid = F.affine_grid(theta, [len(theta), 3, 112, 112], align_corners=False)
        chip = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
        return chip[:, :, 64:80, 48:64].flatten(1), []


def test_sensitivity_is_where_the_embedder_looks(face_folder: Path) -> None:
    faces = read_index(face_folder, "train")[:2]
    found = sensitivities(small_codec(), SeesTheNose(), faces)
    assert all(0 < share < 1 for share, _ in found.values())
    assert found["tip of the nose"][1] > 3
    assert abs(found["chin"][1]) < 0.1 and abs(found["left brow"][1]) < 0.1


def test_split_and_merge_equal_the_core() -> None:
    image = synthetic_image(64, 48)
    bands = split_bands(torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float())
    np.testing.assert_allclose(_core.split_bands(image), bands[0].numpy(), atol=2e-5)
    back = merge_bands(bands)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(back, image, atol=1e-3)


def test_what_the_student_is_told_of_the_residual() -> None:
    """It is added to the picture, and seen; where there is none, nothing changes."""
    codec = small_codec()
    prompt, s, noise = torch.randn(1, 20, 4, 4), torch.randn(1, 4), torch.zeros(1, 48, 16, 16)
    dials = ONE, torch.zeros(1), HALF
    residual = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        without = codec.synthesise(prompt, s, noise, *dials)
        zero = codec.synthesise(prompt, s, noise, *dials, 0 * residual)
        told = codec.synthesise(prompt, s, noise, *dials, residual)
        codec.g_s.residual16.weight.zero_()
        codec.g_s.residual4.weight.zero_()
        deaf = codec.synthesise(prompt, s, noise, *dials, residual)
    assert torch.equal(without, zero)
    torch.testing.assert_close(deaf, without + codec.residual.bands(residual))
    assert not torch.allclose(told, deaf, atol=1e-3)


def test_later_steps_do_not_draw_what_the_residual_told_them() -> None:
    """What a step sees is what it drew: of the picture less the residual, and of the noise."""
    codec = small_codec()
    prompt, s, x_t = torch.randn(2, 20, 4, 4), torch.randn(2, 4), torch.randn(2, 48, 16, 16)
    t = torch.tensor([1.0, 0.4])
    dials = t, torch.ones(2), HALF.expand(2)
    residual = torch.randn(2, 8, 4, 4)
    known = codec.residual.bands(residual)
    seen = x_t + (1 - t)[:, None, None, None] * known / codec.g_s.scale
    with torch.no_grad():
        codec.g_s.residual16.weight.zero_()
        codec.g_s.residual4.weight.zero_()
        without = codec.synthesise(prompt, s, x_t, *dials)
        told = codec.synthesise(prompt, s, seen, *dials, residual)
        twice = codec.synthesise(prompt, s, seen, *dials) + known
    torch.testing.assert_close(told, without + known)
    assert torch.equal(twice[0], told[0])  # the first step has seen nothing
    assert not torch.allclose(twice[1], told[1], atol=1e-3)


def test_realism_zero_ignores_the_noise_and_one_does_not() -> None:
    codec = small_codec()
    prompt, s, q = torch.randn(1, 20, 4, 4), torch.randn(1, 4), torch.tensor([60])
    noises = torch.randn(2, 1, 48, 16, 16)
    with torch.no_grad():
        zero = [codec.one_step(prompt, s, torch.zeros(1), noise, q) for noise in noises]
        one = [codec.one_step(prompt, s, ONE, noise, q) for noise in noises]
        assert torch.equal(codec.posterior_mean(prompt, s, q), zero[0])
    assert torch.equal(*zero)
    assert not torch.equal(*one)


def test_semantics_time_and_quality_modulate_the_decoder() -> None:
    codec = small_codec()
    prompt, s = torch.randn(1, 20, 4, 4), torch.eye(4)[:1] * 5
    x_t, rho, t = torch.randn(1, 48, 16, 16), ONE, torch.tensor([0.7])
    with torch.no_grad():
        plain, *changed = (
            codec.g_s(prompt, *told)
            for told in (
                (s, x_t, t, rho, HALF),
                (-s, x_t, t, rho, HALF),
                (s, x_t, t / 2, rho, HALF),
                (s, x_t, t, rho / 2, HALF),
                (s, x_t, t, rho, HALF / 2),
            )
        )
    for other in changed:
        assert not torch.allclose(plain, other, atol=1e-4)


def test_at_the_first_step_time_says_nothing() -> None:
    """A codec that has learnt one step keeps what it does when it is told the time."""
    assert torch.equal(time_features(torch.ones(2)), torch.zeros(2, 12))
    assert time_features(torch.tensor([0.5])).abs().max() > 0.5


def test_every_parameter_gets_a_gradient() -> None:
    codec = small_codec().train()
    image = torch.from_numpy(synthetic_image(64, 64).transpose(2, 0, 1).copy())[None].float()
    out, parts = codec(
        split_bands(image),
        torch.tensor([90]),
        torch.ones(1),
        torch.randn(1, 48, 16, 16),
        bf16=False,
    )
    base = codec.base(split_bands(image), bf16=False)
    refined, bits = codec.refine(base, torch.tensor([200]), bf16=False)
    later = codec.synthesise(base.prompt, base.s_hat, torch.randn_like(out), HALF, ONE, HALF)
    bits = sum(v.sum() for v in parts.values()) + bits.sum()
    (out.square().mean() + refined.square().mean() + later.square().mean() + bits).backward()
    dead = [n for n, p in codec.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # the importance of what is coded is the encoder's choice, and learnt apart
    assert {name.rsplit(".", 2)[0] for name in dead} == {"g_a.near"}


def test_export_agrees_in_all_engines(tmp_path: Path) -> None:
    codec, manifest = exported(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    for name, worst in differences(codec, tmp_path, 80, 48).items():
        assert worst <= TOLERANCE, name


@pytest.mark.parametrize("quality", [12, 24.75, 25, 40, 63])
def test_the_runtime_decodes_what_training_decodes(tmp_path: Path, quality: float) -> None:
    """Files of an exported model give the bands and the semantics of training.

    From quality 25 on they hold a residual, of what the runtime itself decodes.
    """
    codec, _ = exported(tmp_path)
    image = synthetic_image(80, 48, seed=3)  # none of its symbols is between two levels
    bands = split_bands(torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float())
    q = torch.tensor([round(4 * quality)])
    base_q = q.clamp(max=100)
    nothing = torch.zeros_like(bands)
    with torch.no_grad():
        out, parts = codec(bands, base_q, torch.zeros(1), nothing, bf16=False)
        prompt, s_hat = codec.decoded(codec.entropy.code(*codec.latents(bands), base_q), base_q)
        residual = torch.zeros(1, 8, 5, 3)
        if q >= 100:
            base = codec.base(bands, bf16=False)
            assert torch.equal(base.left, bands - out)
            price = price_at(base.price, q, 100)
            coded = codec.entropy.code_residual(
                base.coded, codec.residual(base.left), q, price=price
            )
            residual = codec.entropy.dequantise(coded, codec.entropy.residual_gains, q)
    assert out.shape == bands.shape and s_hat.shape == (1, 4)
    assert list(parts) == ["s", "z", *(f"y{p}" for p in range(5))]
    file = Encoder(tmp_path, "onnxruntime", 1).encode(image, quality=quality)
    header, _, payload = unpack(file)
    entropy = load_model(tmp_path).entropy
    levels = entropy.decode(payload, header.quality, header.latent_size)
    np.testing.assert_allclose(entropy.semantics(levels, int(q)), s_hat[0], rtol=1e-6)
    for found, expected in (
        (entropy.visual_prompt(levels, int(q)), prompt[0]),
        (entropy.residual(levels, int(q)), residual[0]),
    ):
        same = np.isclose(found, expected, rtol=1e-5, atol=1e-6)
        assert same.mean() > 0.98  # float32 in two engines: a level may differ
    with torch.no_grad():
        told = torch.from_numpy(entropy.residual(levels, int(q)))[None]
        out = codec.posterior_mean(prompt, s_hat, q, told)
    decoded = Decoder(tmp_path, "onnxruntime", realism=0.0, threads=1).decode(file)
    expected = merge_bands(out)[0].clamp(0, 255).numpy().transpose(1, 2, 0)
    assert np.abs(decoded - expected).max() <= 0.6  # it was rounded


def test_blocks_of_the_residual_are_groups_of_channels() -> None:
    """As many coefficients as pixels are the bands themselves; a group holds its block alone."""
    transform = ResidualTransform(768)
    bands = torch.randn(2, 48, 12, 20)
    coefficients = transform(bands)
    assert coefficients.shape == (2, 768, 3, 5)
    torch.testing.assert_close(transform.bands(coefficients), bands)
    for group, (row, column) in enumerate([(0, 0), (1, 1), (0, 1), (1, 0)]):
        rows, columns = (
            slice(8 + 2 * row, 10 + 2 * row),
            slice(12 + 2 * column, 14 + 2 * column),
        )
        one = torch.zeros_like(bands)
        one[:, :, rows, columns] = bands[:, :, rows, columns]
        own = coefficients[:, 192 * group : 192 * (group + 1), 2, 3]
        found = transform(one)
        torch.testing.assert_close(found[:, 192 * group : 192 * (group + 1), 2, 3], own)
        assert torch.count_nonzero(found) == own.numel()


def test_a_residual_brings_the_image_closer(tmp_path: Path) -> None:
    """Even with a base that has learnt nothing: all that it leaves is in the residual's reach."""
    codec = small_codec()
    with torch.no_grad():
        blocks = torch.randn(192, 2, generator=torch.Generator().manual_seed(0))
        for matrix in (codec.residual.analysis, codec.residual.synthesis):
            matrix.copy_(torch.linalg.qr(blocks)[0].T.unflatten(1, (48, 2, 2)))
        for layer in (codec.g_s.residual16, codec.g_s.residual4):
            layer.weight.zero_()  # or it would make something of it
        codec.g_s.condition[0].weight[:, -1] = 0  # of the quality, too
        for last in (codec.g_s.low, codec.g_s.high):
            last.weight.mul_(0.1)  # within the range of pixels
            last.bias.mul_(0.1)
    export_model(codec, tmp_path, {}, name="small", min_quality=0.0)
    image = synthetic_image(64, 64)
    encoder, decoder = Encoder(tmp_path, threads=1), Decoder(tmp_path, realism=0.0, threads=1)
    seen = codec.residual(split_bands(torch.from_numpy(image.transpose(2, 0, 1).copy())[None]))
    errors = []
    for quality in (24, 63):
        decoded = decoder.decode(encoder.encode(image, quality=quality))
        bands = split_bands(torch.from_numpy(decoded.transpose(2, 0, 1).copy())[None])
        errors.append(float((codec.residual(bands) - seen).square().mean()))
    assert errors[1] < 0.3 * errors[0]


def test_the_encoder_pays_what_the_analysis_says(tmp_path: Path) -> None:
    codec = small_codec()
    with torch.no_grad():
        codec.residual.analysis.mul_(0.02)  # coefficients that a table holds
    image = synthetic_image(64, 64)
    sizes = []
    for near in (0.0, 1.0, float("nan")):
        with torch.no_grad():
            codec.g_a.near[-1].weight.zero_()
            codec.g_a.near[-1].bias.fill_(near)
        export_model(codec, tmp_path, {}, name="small", min_quality=0.0)
        file = Encoder(tmp_path, threads=1).encode(image, quality=26)
        assert Decoder(tmp_path, threads=1).decode(file).shape == image.shape
        sizes.append(len(file))
    assert sizes[0] < sizes[1], "dear bits are saved"


def test_importance_is_learnt_from_the_landmarks(face_folder: Path) -> None:
    analysis = small_codec().g_a
    faces, kinds = read_index(face_folder, "train"), [BatchKind(64, 4, 0.8, 1.0)]
    images, _, _, near = map(torch.from_numpy, FaceSampler(faces, 4, kinds).next())
    images, near = images.float(), expected_near(near[:, 0])
    before = {k: v.clone() for k, v in analysis.state_dict().items()}
    error = F.mse_loss(predicted_near(analysis, images), near).detach()
    assert 0 < train(analysis, FaceSampler(faces, 3, kinds), 4.0) < error
    for name, value in analysis.state_dict().items():
        assert torch.equal(before[name], value) != name.startswith("near."), name
    with torch.no_grad():
        found = predicted_near(analysis, images, bf16=False)
        *_, price = analysis(split_bands(images))
    assert F.mse_loss(found, near) < 0.9 * error
    torch.testing.assert_close(price, PRICE * 2 ** (0.5 - 2.5 * found.clamp(0, 1)))
    assert explained(analysis, face_folder, 1) <= 1


def test_verify_notices_a_wrong_graph(tmp_path: Path) -> None:
    codec = small_codec()
    export_model(codec, tmp_path, {}, name="small", min_quality=0.0)
    with torch.no_grad():
        codec.g_s.high.weight.mul_(1.2)
        codec.g_a.to_y.weight.mul_(1.2)
        codec.residual.analysis.mul_(1.2)
    assert min(differences(codec, tmp_path, 64, 64).values()) > TOLERANCE


def test_verify_notices_a_wrong_gradient(tmp_path: Path) -> None:
    codec, _ = exported(tmp_path)
    rest = onnx.load(str(tmp_path / "gradient.onnx"))
    (last,) = (n for n in rest.graph.node if n.output[0] == "prompt_gradient")
    assert last.op_type == "Add" and last.input[0] == last.input[1]
    last.op_type = "Mul"
    onnx.save(rest, str(tmp_path / "gradient.onnx"))
    for name, worst in differences(codec, tmp_path, 80, 48).items():
        assert (worst > TOLERANCE) == name.startswith("gradient"), name


def test_ablations_start_from_the_same_function() -> None:
    """Without s: no s."""
    codec = small_codec()
    state = codec.state_dict()
    checkpoint = {"config": codec.config_dict(), "model": state, "ema": state, "muon": {}}
    bands = split_bands(torch.rand(1, 3, 64, 48) * 255)
    with torch.no_grad():
        y, z, s, price = codec.g_a(bands)
        for part in PARTS:
            found = ablate(checkpoint, part)
            assert "muon" not in found and checkpoint["config"]["semantics"]
            poorer = codec_from_dict(found["config"])
            poorer.load_state_dict(found["ema"])
            other_y, other_z, other_s, other_price = poorer.g_a(bands)
            torch.testing.assert_close(other_y, y, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(other_z, z, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(other_price, price, rtol=1e-4, atol=1e-5)
            assert torch.equal(other_s, s if part != "semantics" else torch.zeros_like(s))
    assert s.abs().max() > 0


@torch.no_grad()
def test_poorer_models_see_less() -> None:
    """Each is blind to what was taken away, and to nothing that comes before it."""
    model = small_codec().entropy
    rng = torch.Generator().manual_seed(0)
    s, z, y = (
        3 * torch.randn(shape, generator=rng) for shape in ((1, 4), (1, 4, 2, 2), (1, 16, 8, 8))
    )
    q = torch.tensor([180])
    whole = model.bits(*model.code(s, z, y, q))
    found = poorer_models(model)
    assert set(found) == {
        "z by its neighbours",
        *(f"y{p} by its neighbours" for p in (1, 2, 4)),
        "z by s",
        "y by z and s",
        "later groups by the first",
    }
    for name, (poorer, parts) in found.items():
        bits = poorer.bits(*poorer.code(s, z, y, q))
        assert all(bits[part] != whole[part] for part in parts), name
        first = list(whole).index(parts[0])
        for part in list(whole)[:first]:
            assert bits[part] == whole[part], (name, part)


def test_orthogonalise() -> None:
    torch.manual_seed(0)
    for shape in ((3, 48, 200), (2, 200, 48)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), 5))
        assert values.max() < 1.3 and values.min() > 0.5


def test_muon_turns_each_weight_by_its_own_gradient() -> None:
    """Weights of one shape are orthogonalised together; each moves as it would alone."""
    torch.manual_seed(0)
    shapes = ((8, 6, 3, 3), (8, 6, 3, 3), (16, 8, 1, 1))
    starts, gradients = ([torch.randn(shape) for shape in shapes] for _ in range(2))

    def moved(numbers: list[int]) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(starts[i].clone()) for i in numbers]
        muon = Muon(weights, 0.1)
        for _ in range(2):
            for weight, i in zip(weights, numbers, strict=True):
                weight.grad = gradients[i]
            muon.step()
        return [weight.detach() for weight in weights]

    for i, together in enumerate(moved([0, 1, 2])):
        torch.testing.assert_close(together, moved([i])[0])
        assert (together - starts[i]).abs().max() > 0.01


def test_similarity_transform_recovers_a_similarity() -> None:
    angle, scale, shift = 0.3, 1.7, np.array([5.0, -3.0])
    r = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    m = similarity_transform(ARCFACE_TEMPLATE, ARCFACE_TEMPLATE @ r.T + shift)
    np.testing.assert_allclose(m[:, :2], r, atol=1e-4)
    np.testing.assert_allclose(m[:, 2], shift, atol=1e-2)


def test_sampling_theta_cuts_the_template() -> None:
    """Landmarks that lie on the scaled template are sampled at the template's own pixels."""
    points = ARCFACE_TEMPLATE * 2 + [20, 10]
    theta = sampling_theta(points, 300, 280)
    unit = (ARCFACE_TEMPLATE + 0.5) / 56 - 1  # align_corners=False coordinates of chip pixels
    source = np.concatenate([unit, np.ones((5, 1))], 1) @ theta.T
    pixels = (source + 1) * np.array([300, 280]) / 2 - 0.5
    np.testing.assert_allclose(pixels, points, atol=0.02)


def test_sampler_gives_crops_and_landmarks(face_folder: Path) -> None:
    kinds = [BatchKind(128, 8, 0.5, 0.5), BatchKind(64, 3, 0.0, 0.5), BatchKind(96, 1, 0.0, 0.0)]
    sampler = FaceSampler(read_index(face_folder, "train"), 0, kinds)
    batches = [sampler.next() for _ in range(12)]
    assert {image.shape for image, *_ in batches} == {(8, 3, 128, 128), (3, 3, 64, 64)}
    for image, theta, whole, near in batches:
        assert image.dtype == np.uint8
        assert theta.shape == (len(image), 2, 3) and whole.dtype == bool
        assert not np.isnan(theta).any()
        assert near.shape == (len(image), 2, image.shape[2] // 4, image.shape[3] // 4)
        assert (near.max((2, 3))[whole] > 0.9).all() and near.min() >= 0
    assert any(whole.any() for _, _, whole, _ in batches)


def test_processes_cut_the_same_crops(face_folder: Path) -> None:
    kinds = [BatchKind(64, 4, 0.5, 0.5), BatchKind(32, 2, 0.0, 0.5)]
    faces = read_index(face_folder, "train")
    sampler = WorkerSampler(faces, 3, kinds, workers=2)
    alone = [Crops(faces, 3, kinds), Crops(faces, 1003, kinds)]
    for turn in range(6):  # more than the two places of each process
        kind, batch = sampler.next_of_kind()
        expected_kind, expected = alone[turn % 2].draw()
        assert kind == expected_kind
        for found, array in zip(batch, expected, strict=True):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
    for process in sampler.processes:
        process.kill()
        process.join()
    with pytest.raises(RuntimeError, match="has stopped"):
        for _ in range(9):
            sampler.next_of_kind()


def test_nearness_peaks_at_the_landmarks() -> None:
    points = np.array([[20, 30], [44, 30], [32, 42], [24, 52], [40, 52]], np.float32)
    both = nearness(points, 64)
    assert both.shape == (2, 16, 16) and both.dtype == np.float32
    near, middle = both
    for x, y in points:
        assert near[int(y) // 4, int(x) // 4] > 0.9
    assert near[0, 0] < 0.05 and near[15, 15] < 0.3
    for y in (30, 36, 42):
        assert middle[y // 4, 32 // 4] > 0.9
    assert middle[30 // 4, 16 // 4] < 0.3 and middle[52 // 4, 32 // 4] < 0.3
    # at one standard deviation, 0.35 of 24 pixels, from one landmark alone
    alone = nearness(np.array([[2, 2], [26, 2]] + [[500, 500]] * 3, np.float32), 64)[0]
    distance = (4 * 4 - 0) / (0.35 * 24)
    assert alone[4, 0] == pytest.approx(np.exp(-0.5 * distance**2), rel=1e-4)


def test_an_unreadable_picture_stops_the_sampler(face_folder: Path) -> None:
    faces = read_index(face_folder, "train")
    for face in faces:
        face.path.unlink()
    sampler = FaceSampler(faces, 0, [BatchKind(64, 2, 0.5, 1.0)])
    with pytest.raises(FileNotFoundError):
        sampler.next()


def test_rate_lambda_spans_the_qualities() -> None:
    s = Settings()
    lam = rate_lambda(s, torch.tensor([0, 126, 252]))
    assert lam[0] == pytest.approx(s.lambda_min) and lam[2] == pytest.approx(s.lambda_max)
    assert lam[0] < lam[1] < lam[2]


def test_what_is_judged_is_cropped_by_the_shift() -> None:
    images = torch.randn(2, 3, 40, 64)
    found = shifted(images, torch.tensor([3, 9]))
    assert torch.equal(found, images[:, :, 3:27, 9:57])


class NothingOnTheProcessor(TorchDispatchMode):
    """Every operation must find its tensors where the step is, but for single numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.ndim:
                assert leaf.device.type == "meta", func
        return func(*args, **kwargs)


def test_a_step_waits_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a step reads a value or a tensor of the processor's: it can be recorded.

    On torch's device "meta", where tensors have shapes and no values.
    """
    meta = torch.device("meta")
    codec = small_codec().to(meta)
    _opponent(meta)
    trainer = Trainer.__new__(Trainer)
    trainer.settings = Settings(residual_share=0.25, sharp_share=0.25, colour_weight=1.0)
    trainer.model, trainer.teacher = codec, None
    trainer.perceptual, trainer.identity = None, None
    monkeypatch.setattr(precision, "_device", meta)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with torch.device(meta), NothingOnTheProcessor():
        batch = Batch(
            image=torch.empty(8, 3, 64, 64, dtype=torch.uint8),
            theta=torch.empty(8, 2, 3),
            near=torch.empty(8, 2, 16, 16),
            q=torch.empty(8, dtype=torch.int64),
            realism=torch.empty(8),
            faces=torch.empty(2, dtype=torch.int64),
            weight=torch.empty(2),
            shift=torch.empty(2, dtype=torch.int64),
        )
        assert shifted(batch.image, batch.shift).shape == (8, 3, 48, 48)
        loss, logs = trainer.loss_of(batch, perceptual=False)
        loss.backward()
    assert loss.shape == () and set(logs) == {"mse", "bpp", "structural", "s", "z"}
    assert codec.g_a.stem.weight.grad is not None


def test_settings_of_another_kind_of_run_are_left(face_folder: Path, tmp_path: Path) -> None:
    """A packed checkpoint may be of `export.distil`, whose `large_share` is one number."""
    fresh = small_codec()
    weights = {"model": fresh.state_dict(), "ema": fresh.state_dict()}
    counts = {"elapsed": 60.0, "step": 3, "images": 9}
    settings = asdict(DistilSettings(large_share=0.5, seed=77))
    state = {"config": fresh.config_dict(), "settings": settings, **weights, **counts}
    torch.save(state, tmp_path / "student.pt")
    args = argparse.Namespace(
        data=str(face_folder), weights="", out=str(tmp_path / "run"), minutes=1.0, workers=0,
        init=str(tmp_path / "student.pt"), teacher=None, override={}, validate_every=60.0,
        validate_count=1,
    )  # fmt: skip
    own = Settings(perceptual_from=2.0, batch_128=4)
    trainer = Trainer(args, own)
    assert trainer.settings == own and trainer.step == 3
    state["settings"] = asdict(Settings(perceptual_from=2.0, batch_128=6))
    torch.save(state, tmp_path / "student.pt")
    assert Trainer(args, own).settings.batch_128 == 6, "those of its own kind are kept"


def test_training_learns_and_resumes(face_folder: Path, tmp_path: Path, steady_clock: None) -> None:
    """A few steps lower the loss; a stopped run goes on from its checkpoint and exports."""
    out = tmp_path / "run"
    settings = Settings(
        perceptual_from=2.0, large_share=(0.0, 0.0), batch_128=4, muon_lr=0.01, adam_lr=2e-3,
        residual_share=0.25,
    )  # fmt: skip
    fresh = small_codec()
    weights = {"model": fresh.state_dict(), "ema": fresh.state_dict()}
    start = {"config": fresh.config_dict(), "settings": asdict(settings), **weights}
    torch.save({**start, "elapsed": 0.0, "step": 0, "images": 0}, tmp_path / "start.pt")
    args = argparse.Namespace(
        data=str(face_folder), weights="", out=str(out), init=str(tmp_path / "start.pt"),
        minutes=0.15, validate_every=60.0, validate_count=1, override={}, teacher=None, workers=0,
    )  # fmt: skip
    trainer = Trainer(args, settings)
    image = torch.from_numpy(synthetic_image(64, 64).transpose(2, 0, 1).copy())[None].float()

    def error() -> float:
        """Squared error of one image at the top quality of the base."""
        noise = torch.zeros(1, 48, 16, 16)
        bands = split_bands(image)
        with torch.no_grad():
            decoded, _ = trainer.model(bands, torch.tensor([100]), torch.zeros(1), noise)
        return float((decoded - bands).square().mean())

    first = error()
    trainer.run()
    assert trainer.step >= 1 and (out / "curve.tsv").read_text().count("\n") == len(VALIDATE_Q)
    assert error() < 0.9 * first
    assert torch.load(out / "best.pt", weights_only=True)["best"] == trainer.best < float("inf")
    again = Trainer(args, Settings(seed=7))
    assert (again.step, again.images, again.elapsed) == (
        trainer.step,
        trainer.images,
        trainer.elapsed,
    )
    assert again.settings == trainer.settings
    for a, b in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.save(pack(torch.load(out / "checkpoint.pt", weights_only=True)), tmp_path / "packed.pt")
    args.out, args.init = str(tmp_path / "next"), str(tmp_path / "packed.pt")
    packed = Trainer(args, settings)
    assert packed.images == trainer.images
    for name, value in packed.model.state_dict().items():
        torch.testing.assert_close(value, trainer.ema[name], rtol=1e-3, atol=1e-6)
    codec, record = load_codec(out / "checkpoint.pt")
    assert record["step"] == trainer.step
    assert codec_from_dict(codec.config_dict()).load_state_dict(codec.state_dict())
