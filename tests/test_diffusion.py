"""The diffusion prior: the flow, its sampler, the denoiser, a short training."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_export_networks import SMALL, small_codec
from torch import nn

from export.diffusion import (
    Condition,
    condition_of,
    deafen,
    decode,
    denoise,
    flow_loss,
    keep_drawing,
    only_drawing,
    only_later_steps,
    only_student,
    only_texture,
    sample,
    times,
)
from export.networks import GREY, LATER_TEXTURE, Codec, of_colours, split_bands, texture_weight
from export.train_teacher import STEPS, TeacherSettings, TeacherTrainer, draw, plots
from export.verify import synthetic_image


def condition(count: int = 2, *, residual: bool = False) -> Condition:
    told = torch.randn(count, 8, 4, 4)
    return Condition(
        torch.randn(count, 20, 4, 4),
        torch.randn(count, 4),
        torch.full((count,), 0.3),
        told if residual else 0 * told,
    )


def deaf_codec() -> Codec:
    codec = small_codec()
    deafen(codec)
    return codec


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_times_fall_from_one_to_zero(steps: int) -> None:
    for shift in (1.0, 2.5):
        found = times(steps, shift)
        assert len(found) == steps + 1 and found[0] == 1 and found[-1] == 0
        assert found == sorted(found, reverse=True)
    assert times(2, 1.0) == [1, 0.5, 0]
    assert times(2, 3.0)[1] == pytest.approx(0.75)


def test_realism_scales_the_noise_and_is_told() -> None:
    codec, c = small_codec(), condition()
    a, b = torch.randn(2, 2, 48, 16, 16)
    half, one = torch.full((2,), 0.5), torch.ones(2)
    zero = [decode(codec, c, noise, 0 * one, 2) for noise in (a, b)]
    assert torch.equal(*zero)
    drawn = [decode(codec, c, *how, 2) for how in ((a, half), (2 * a, half), (a, one))]
    for i in range(3):
        assert not torch.allclose(drawn[i], zero[0]) and not torch.allclose(drawn[i], drawn[i - 1])


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
    codec = deaf_codec()
    c = condition(residual=residual)
    x_t, t, rho = torch.randn(2, 48, 16, 16), torch.tensor([1.0, 0.2]), torch.ones(2)
    with torch.no_grad():
        found = denoise(codec, x_t, torch.ones(2), c, 0 * rho) * codec.g_s.scale
        q = (c.quality * 252).round().long()
        c.quality = q / 252
        expected = codec.posterior_mean(c.prompt, c.s_hat, q, c.residual)
        assert torch.equal(denoise(codec, x_t, t, c, rho), denoise(codec, x_t + 1, t, c, rho))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_flow_is_learnt_from_noise_and_time() -> None:
    torch.manual_seed(0)
    codec = only_student(deaf_codec())
    trained = {n.split(".")[0] for n, p in codec.named_parameters() if p.requires_grad}
    assert trained == {"g_s"}
    x_0 = torch.randn(2, 48, 16, 16)
    loss = flow_loss(codec, x_0, condition(), torch.tensor([0.9, 0.01]), torch.randn_like(x_0))
    assert loss.shape == (2,)
    assert loss[1] > 100 * loss[0], "velocities weigh errors at small t"
    loss.sum().backward()
    for name in ("time", "noise16", "noise4", "noise8"):
        gradient = codec.g_s.get_submodule(name).weight.grad
        assert gradient is not None and gradient.abs().max() > 0, name


def test_drawing_is_learnt_without_touching_the_posterior_mean() -> None:
    torch.manual_seed(0)
    codec, c = only_drawing(small_codec()), condition(residual=True)
    noise, realism = torch.randn(2, 48, 16, 16), torch.tensor([0.0, 1.0])
    before = decode(codec, c, noise, realism, 1)
    trained = [p for p in codec.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, 1e-2, weight_decay=0.0)
    for _ in range(2):
        adam.zero_grad()
        x_t = noise * realism[:, None, None, None]
        denoise(codec, x_t, torch.ones(2), c, realism).square().mean().backward()
        assert all(p.grad is not None for p in trained)
        adam.step()
    after = decode(codec, c, noise, realism, 1)
    assert torch.equal(after[0], before[0])
    assert (after[1] - before[1]).abs().mean() > 1e-3


def test_all_but_what_is_drawn_can_be_trained() -> None:
    torch.manual_seed(0)
    codec, c = keep_drawing(small_codec()), condition(residual=True)
    always = codec.config.conditions
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    trained = [p for p in codec.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, 1e-2, weight_decay=0.0)
    noise = torch.randn(2, 48, 16, 16)
    for _ in range(2):
        adam.zero_grad()
        denoise(codec, noise, torch.full((2,), 0.5), c, torch.ones(2)).square().mean().backward()
        adam.step()
    moved = {n for n, value in codec.state_dict().items() if not torch.equal(value, before[n])}
    assert {"g_s.prompt.weight", "g_s.high.weight", "g_s.film_low.weight"} < moved
    kept = ("drawn.weight", "drawn.bias", "noise4.weight", "texture.weight", "texture.bias")
    assert not moved & {f"g_s.{name}" for name in kept}
    for name in moved:
        if "film" in name and name.endswith("weight"):
            assert torch.equal(codec.state_dict()[name][:, always:], before[name][:, always:]), name
    frozen = keep_drawing(only_student(small_codec()))
    assert not any(p.requires_grad for p in frozen.g_a.parameters())


def test_texture_is_filtered_noise_as_much_as_is_learnt() -> None:
    torch.manual_seed(0)
    codec, c = only_texture(small_codec()), condition()
    noise, realism = torch.randn(2, 48, 16, 16), torch.tensor([0.0, 1.0])
    before = decode(codec, c, noise, realism, 1)
    with torch.no_grad():
        codec.g_s.texture.bias[3] += 0.5
    away = decode(codec, c, noise, realism, 1) - before
    assert not away[0].any() and not of_colours(away).any()
    part = texture_weight()[:, 45:60]
    expected = 0.5 * F.conv2d(noise[1:, GREY[1:]], part, padding=1)
    found = (away / codec.g_s.scale)[1:, GREY]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    assert {n for n, p in codec.named_parameters() if p.requires_grad} == {
        "g_s.texture.weight",
        "g_s.texture.bias",
    }


@pytest.mark.parametrize("steps", [2, 4])
def test_texture_of_later_steps_is_of_the_noise_and_not_of_the_picture(steps: int) -> None:
    torch.manual_seed(0)
    codec, c = deaf_codec(), condition()
    noise, realism = torch.randn(2, 48, 16, 16), torch.tensor([0.0, 1.0])
    for weight in (codec.g_s.time.weight, codec.g_s.drawn.weight):
        nn.init.zeros_(weight)  # the picture is the same in every step
    before = decode(codec, c, noise, realism, 1)
    with torch.no_grad():
        codec.g_s.texture.bias += 0.02
    first, later = (decode(codec, c, noise, realism, count) - before for count in (1, steps))
    # which has ten times the texture's energy
    assert before[0].std() > 3 * first[1].std() > 0
    asked = (1 + LATER_TEXTURE * (1 - times(steps)[-2]) ** 2) * first[1]  # of the last step
    assert later[0].std() < 0.02 * asked.std()
    alike = torch.cosine_similarity(later[1].flatten(), first[1].flatten(), dim=0)
    assert alike > 0.98 and 0.9 < later[1].std() / asked.std() < 1.3


def test_a_checkpoint_of_before_has_no_texture() -> None:
    codec = small_codec()
    state = {k: v for k, v in codec.state_dict().items() if ".texture." not in k}
    codec.load_state_dict(state)
    assert not codec.g_s.texture.weight.any() and not codec.g_s.texture.bias.any()
    with pytest.raises(RuntimeError, match="g_s.high.bias"):
        codec.load_state_dict({k: v for k, v in state.items() if k != "g_s.high.bias"})


def test_later_steps_are_learnt_without_a_change_to_the_first() -> None:
    codec, c = only_later_steps(small_codec()), condition()
    noise, realism = torch.randn(2, 48, 16, 16), torch.tensor([0.3, 1.0])
    before = [decode(codec, c, noise, realism, steps) for steps in (1, 2)]
    trained = [p for p in codec.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, 1e-2, weight_decay=0.0)
    for _ in range(2):
        adam.zero_grad()
        denoise(codec, noise, torch.full((2,), 0.4), c, realism).square().mean().backward()
        assert all(p.grad is not None for p in trained)
        adam.step()
    after = [decode(codec, c, noise, realism, steps) for steps in (1, 2)]
    assert torch.equal(after[0], before[0])
    assert (after[1] - before[1]).abs().mean() > 1e-4


def test_conditions_with_and_without_a_residual() -> None:
    """In one batch, each as it is alone; bits are those of the file."""
    codec = small_codec()
    image = torch.from_numpy(synthetic_image(64, 64).transpose(2, 0, 1).copy())[None].float()
    bands = split_bands(image).repeat(2, 1, 1, 1)
    q = torch.tensor([60, 180])
    with torch.no_grad():
        both, bits = condition_of(codec, bands, q)
        for i in range(2):
            alone, size = condition_of(codec, bands[:1], q[i : i + 1])
            torch.testing.assert_close(
                both.of(torch.tensor([i])).prompt, alone.prompt, atol=0.1, rtol=0
            )
            assert float(bits[i]) == pytest.approx(float(size[0]), rel=0.05)
        base = codec.base(bands[:1])
        _, more = codec.code_left(base, q[1:])
    assert not both.residual[0].any() and both.residual[1].any()
    assert float(bits[1]) > float(more[0]) > 0
    assert both.quality.tolist() == pytest.approx([60 / 252, 180 / 252])


def test_conditions_learn_from_some_of_the_images() -> None:
    c = condition(residual=True).map(lambda v: v.requires_grad_())
    chosen = c.only(torch.tensor([True, False]))
    assert torch.equal(chosen.prompt, c.prompt)
    sum(v.sum() for v in (chosen.prompt, chosen.s_hat, chosen.quality)).backward()
    for v in (c.prompt, c.s_hat, c.quality):
        assert v.grad is not None and v.grad[0].all() and not v.grad[1].any()


def test_conditions_are_repeated_sample_by_sample() -> None:
    c = condition(residual=True)
    many = c.repeated(3)
    assert many.prompt.shape[0] == 6
    assert torch.equal(many.prompt[0], many.prompt[2]) and torch.equal(many.s_hat[3], c.s_hat[1])
    assert torch.equal(many.residual[5], c.residual[1])


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
        workers=0,
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
        if not name.startswith("g_s."):
            assert torch.equal(again.model.state_dict()[name], value), "it stays as it was"
    model = again.ema_model()
    with torch.no_grad():  # a few steps from deafness it may not hear the noise yet
        model.g_s.noise4.weight.add_(torch.randn_like(model.g_s.noise4.weight))
    image = torch.from_numpy(synthetic_image(64, 64).transpose(2, 0, 1).copy())[None].float()
    with torch.no_grad():
        told, _ = condition_of(model, split_bands(image), torch.tensor([60]))
    a, b = draw(model, told, 4, seeds=2)
    again_b = draw(model, told, 4, first=1)[0]
    assert a.shape == (3, 64, 64)
    assert (a - b).abs().mean() > 20 * (again_b - b).abs().mean()  # not 0: alone, not in a batch
    zero = [draw(model, told, 4, first=i, realism=0.0) for i in range(2)]
    torch.testing.assert_close(*zero, rtol=0, atol=0.01)
    folder = tmp_path / "plots"
    plots(model, again.val[0].path, again.val, 1, folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"seeds.png", "steps.png", "steps.tsv", "curves.png"}
    table = np.loadtxt(folder / "steps.tsv", delimiter="\t", skiprows=1)
    assert table.shape == (len(STEPS), 4) and table[:, 0].tolist() == list(STEPS)
