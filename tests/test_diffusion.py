"""The diffusion prior: the flow, its sampler, the denoiser, a short training."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from test_export_networks import SMALL, small_codec

from export.diffusion import (
    Condition,
    Denoiser,
    DiffusionCodec,
    condition_of,
    flow_loss,
    sample,
    times,
)
from export.networks import split_bands
from export.train_teacher import STEPS, TeacherSettings, TeacherTrainer, decode, plots
from export.verify import synthetic_image


def condition(count: int = 2, *, residual: bool = False) -> Condition:
    told = torch.randn(count, 8, 4, 4), torch.randn(count, 48, 16, 16)
    return Condition(
        torch.randn(count, 20, 4, 4),
        torch.randn(count, 4),
        torch.full((count,), 0.3),
        *(told if residual else ()),
    )


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_times_fall_from_one_to_zero(steps: int) -> None:
    for shift in (1.0, 2.5):
        found = times(steps, shift)
        assert len(found) == steps + 1 and found[0] == 1 and found[-1] == 0
        assert found == sorted(found, reverse=True)
    assert times(2) == [1, 0.5, 0]
    assert times(2, 3.0)[1] == pytest.approx(0.75)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_denoiser_that_knows_is_followed(steps: int) -> None:
    clean, noise = torch.randn(2, 2, 48, 4, 4)
    seen = []

    def knows(x_t: torch.Tensor, t: torch.Tensor, _: Condition) -> torch.Tensor:
        expected = (1 - t[0]) * clean + t[0] * noise  # the line between them
        torch.testing.assert_close(x_t, expected, rtol=0, atol=1e-5)
        seen.append(float(t[0]))
        return clean

    found = sample(knows, condition(), noise, times(steps, 2.0))
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-5)
    assert len(seen) == steps


def test_of_normal_bands_normal_samples_are_drawn() -> None:
    """With the best denoiser of bands of mean m and deviation d, known in closed form."""
    mean, deviation = 0.5, 0.4

    def best(x_t: torch.Tensor, t: torch.Tensor, _: Condition) -> torch.Tensor:
        t = t[:, None, None, None]
        seen, hidden = (1 - t) * deviation**2, (1 - t) ** 2 * deviation**2 + t**2
        return mean + seen / hidden * (x_t - (1 - t) * mean)

    noise = torch.randn(8, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    one, many = (sample(best, condition(), noise, times(steps)) for steps in (1, 64))
    assert (one - mean).abs().max() < 1e-6
    assert float(many.mean()) == pytest.approx(mean, abs=0.01)
    assert float(many.std()) == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("residual", [False, True])
def test_the_denoiser_starts_as_the_fidelity_decoder(residual: bool) -> None:
    codec = small_codec()
    denoiser = Denoiser.of_student(codec)
    c = condition(residual=residual)
    x_t, t = torch.randn(2, 48, 16, 16), torch.tensor([1.0, 0.2])
    zero = torch.zeros(2)
    with torch.no_grad():
        found = denoiser(x_t, t, c) * denoiser.scale
        expected = codec.g_s(
            c.prompt, c.s_hat, 0 * x_t, zero, c.quality, c.residual, c.residual_bands
        )
        if c.residual_bands is not None:
            expected = expected + c.residual_bands
            changed = denoiser(x_t, t, condition(residual=True))
            assert not torch.allclose(changed * denoiser.scale, expected)
        # the codec's biases of the noise's layers are not its noise
        for layer in (codec.g_s.noise4, codec.g_s.noise8):
            assert layer.bias is not None
    assert found.shape == expected.shape
    assert torch.equal(denoiser(x_t, t, c), denoiser(x_t + 1, t / 2, c))


def test_the_flow_is_learnt_from_noise_and_time() -> None:
    torch.manual_seed(0)
    codec = small_codec()
    model = DiffusionCodec(codec)
    assert not any(p.requires_grad for p in model.codec.parameters())
    assert not model.train().codec.training
    x_0 = torch.randn(2, 48, 16, 16)
    loss = flow_loss(
        model.denoiser, x_0, condition(), torch.tensor([0.9, 0.01]), torch.randn_like(x_0)
    )
    assert loss.shape == (2,)
    assert loss[1] > 100 * loss[0], "velocities weigh errors at small t"
    loss.sum().backward()
    for name in ("time", "noise16", "noise4", "noise8"):
        gradient = model.denoiser.get_submodule(name).weight.grad
        assert gradient is not None and gradient.abs().max() > 0, name


def test_conditions_are_repeated_sample_by_sample() -> None:
    c = condition(residual=True)
    many = c.repeated(3)
    assert many.prompt.shape[0] == 6
    assert torch.equal(many.prompt[0], many.prompt[2]) and torch.equal(many.s_hat[3], c.s_hat[1])
    assert many.residual is not None and len(many.residual) == 6
    assert condition().repeated(2).residual is None


def test_training_resumes_and_draws(
    face_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.train_teacher.SIZE", 64)
    codec = small_codec(replace(SMALL, w16=48))  # wide enough for Muon
    state = {"config": codec.config_dict(), "ema": codec.state_dict()}
    torch.save(state, tmp_path / "codec.pt")
    settings = TeacherSettings(batch_128=2, large_share=0.0, quality=(10, 90), validate_q=60)
    args = argparse.Namespace(
        codec=str(tmp_path / "codec.pt"), data=str(face_folder), out=str(tmp_path / "teacher"),
        init=None, minutes=0.05, validate_every=60.0, validate_count=1, override={},
    )  # fmt: skip
    trainer = TeacherTrainer(args, settings)
    trainer.run()
    assert trainer.step >= 1
    rows = (tmp_path / "teacher" / "curve.tsv").read_text().splitlines()
    assert [float(row.split("\t")[3]) for row in rows] == list(STEPS)
    again = TeacherTrainer(args, TeacherSettings(seed=9))
    assert again.settings == trainer.settings and asdict(settings) == asdict(again.settings)
    assert again.step == trainer.step
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    for name, value in codec.state_dict().items():
        assert torch.equal(again.model.codec.state_dict()[name], value), "it stays as it was"
    model = again.ema_model()
    image = torch.from_numpy(synthetic_image(64, 64).transpose(2, 0, 1).copy())[None].float()
    told = condition_of(model.codec, split_bands(image), torch.tensor([60]))
    a, b = decode(model, told, 2, 4, 1.5)
    assert a.shape == (3, 64, 64) and not torch.equal(a, b)
    assert torch.equal(decode(model, told, 2, 4, 1.5)[1], b), "a seed is a face"
    plots(model, again.val, 1, tmp_path / "plots", 1.5)
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"seeds.png", "steps.png"}
