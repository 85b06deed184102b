"""The few-step student: what it starts from, its losses, a short training."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.metrics
import torch
from test_export_networks import SMALL, small_codec
from torch import Tensor, nn

from export.data import BatchKind, FaceSampler, read_index
from export.diffusion import deafen
from export.distil import (
    DistilSettings,
    DistilTrainer,
    FeatureDiscriminator,
    hinge_discriminator,
    hinge_generator,
)
from export.losses import (
    MAX_ZOOM,
    draw_views,
    grain_distance,
    mean_shift,
    structural_distance,
    tint_distance,
    viewed,
)
from export.networks import split_bands
from export.quantise import quantised_state


class FewFeatures(nn.Module):
    """Stands in for EfficientNet-Lite0, which is not installed everywhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.maps = nn.ModuleList(nn.Conv2d(3, c, 4, s) for c, s in ((8, 4), (16, 8)))
        self.requires_grad_(False)

    def features(self, image: Tensor) -> list[Tensor]:
        return [m(image / 255) for m in self.maps]

    def pooled(self, last: Tensor) -> Tensor:
        return last.mean((2, 3))

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        pairs = zip(self.features(image), self.features(reference), strict=True)
        return torch.stack([(a - b).square().mean((1, 2, 3)) for a, b in pairs]).sum(0)


class SameFace(nn.Module):
    """Stands in for MobileFaceNet, whose weights are not shipped."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        assert path.name == "mobilefacenet.onnx"

    def forward(self, image: Tensor, original: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        loss = (image - original).square().mean((1, 2, 3)) / 255**2
        return loss, loss


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.distil.PerceptualLoss", FewFeatures)
    monkeypatch.setattr("export.distil.IdentityLoss", SameFace)
    monkeypatch.setattr("export.train_teacher.SIZE", 64)


def test_structural_distance_is_that_of_scikit_image_and_of_several_scales() -> None:
    grey = np.random.default_rng(0).integers(60, 190, (48, 64)).astype(np.float32)
    images = np.stack([cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (1.0, 1.4, 2.0)])
    first, *others = torch.from_numpy(images)[:, None, None].expand(-1, 1, 3, -1, -1)
    for image, other in zip(images[1:], others, strict=True):
        _, full = skimage.metrics.structural_similarity(
            images[0], image, gaussian_weights=True, sigma=1.5, win_size=11,
            use_sample_covariance=False, data_range=255, full=True,
        )  # fmt: skip
        found = structural_distance(other, first, weights=(1.0,))
        assert float(found) == pytest.approx(1 - full[5:-5, 5:-5].mean(), abs=1e-4)
    near, far = (float(structural_distance(other, first, weights=(1.0, 1.0))) for other in others)
    assert 0.01 < near < far < 1
    assert float(structural_distance(first, first)) == pytest.approx(0, abs=1e-6)
    # twelve rows are enough for the window, six are not
    alike = structural_distance(others[0], first), structural_distance(others[0], first, (1, 1, 2))
    assert torch.equal(*alike)


def test_grain_is_how_much_texture_there_is_and_not_where() -> None:
    torch.manual_seed(0)
    smooth = 128 + 20 * torch.linspace(-1, 1, 96).expand(2, 3, 96, -1)
    fine = torch.randn(3, 2, 1, 96, 96)
    once, other, twice = (smooth + v for v in (2 * fine[0], 2 * fine[1], 4 * fine[2]))
    assert grain_distance(once, once).abs().max() == 0
    assert grain_distance(other, once).max() < 0.1, "chance"
    torch.testing.assert_close(
        grain_distance(twice, once), torch.full((2,), math.log(2)), atol=0.15, rtol=0
    )
    assert grain_distance(smooth, once).min() > 1.5 * math.log(2)
    # what is coarse is no grain, and an edge has as much as there can be
    assert grain_distance(smooth + 30, smooth).max() < 1e-3
    edges = 60 * (torch.arange(96) // 4 % 2)
    assert grain_distance(smooth + edges, smooth + 2 * edges).max() < 0.2
    # what is missing is asked for
    flat = smooth.clone().requires_grad_()
    faint = flat + 0.3 * fine[0]
    faint.retain_grad()
    grain_distance(faint, once).sum().backward()
    assert faint.grad is not None and (faint.grad * fine[0]).sum() < 0


def test_tint_is_colour_of_whole_areas_in_grey_levels() -> None:
    torch.manual_seed(0)
    image = 128 + 10 * torch.randn(2, 3, 96, 96)
    noisy = image + 12 * torch.randn_like(image)
    redder = image + torch.tensor([6.0, -3.0, -3.0])[:, None, None]
    brighter = image + 9
    found = [
        tint_distance(split_bands(other), split_bands(image))
        for other in (image, noisy, redder, brighter)
    ]
    assert found[0].abs().max() == 0
    assert found[1].max() < 0.5, "of noise, an area's mean is left"
    # c1 = (R - B) / sqrt 2 and c2 = (R - 2 G + B) / sqrt 6
    both = (9**2 / 2 + 9**2 / 6) / 2
    torch.testing.assert_close(found[2], torch.full((2,), both), rtol=1e-3, atol=0)
    assert found[3].max() < 1e-6
    # pictures smaller than an area have one
    small = tint_distance(split_bands(redder[..., :16, :16]), split_bands(image[..., :16, :16]))
    torch.testing.assert_close(small, torch.full((2,), both), rtol=1e-3, atol=0)


def test_hinge_losses() -> None:
    high, low = [torch.full((2, 1, 3, 3), 2.0)], [torch.full((2, 1, 3, 3), -2.0)]
    assert hinge_discriminator(high, low) == 0
    assert hinge_discriminator(low, high) == 6
    assert hinge_generator(high).tolist() == [-2, -2]
    found = FeatureDiscriminator((5, 7))([torch.randn(2, 5, 8, 8), torch.randn(2, 7, 4, 4)])
    assert [f.shape for f in found] == [(2, 1, 8, 8), (2, 1, 4, 4)]


def test_detailed_crops_are_sharp_and_not_enlarged(face_folder: Path) -> None:
    faces = read_index(face_folder, "train")
    blurred = [replace(face, sharpness=45.0) for face in faces[1:]]
    kind = BatchKind(128, 16, 0.5, 1.0, detailed=True)
    sampler = FaceSampler([faces[0], *blurred], 0, [kind])
    drawn, (images, *_) = sampler.next_of_kind()
    assert drawn == kind and len(images) == 16
    assert list(sampler.cache) == [0], "the one sharp image"
    energies = [(image[:, :, 1:].astype(float) - image[:, :, :-1]).std() for image in images]
    assert min(energies) > 0.5 * max(energies)


def distilling(folder: Path, face_folder: Path, **changed: object) -> DistilTrainer:
    """A run on a small codec and a teacher that is its fidelity decoder."""
    codec = small_codec(replace(SMALL, w16=48))
    torch.save({"config": codec.config_dict(), "ema": codec.state_dict()}, folder / "codec.pt")
    deafen(codec)
    torch.save({"config": codec.config_dict(), "ema": codec.state_dict()}, folder / "teacher.pt")
    settings = DistilSettings(
        batch_128=4, large_share=0.0, sharp_share=1.0, quality=(10, 90), validate_q=60,
        teacher_share=0.5, teacher_steps=2, residual_share=0.3, **changed,  # type: ignore[arg-type]
    )  # fmt: skip
    args = argparse.Namespace(
        codec=str(folder / "codec.pt"), teacher=str(folder / "teacher.pt"), weights="",
        data=str(face_folder), out=str(folder / "run"), init=None, minutes=0.3,
        validate_every=60.0, validate_count=1, override={}, workers=0,
    )  # fmt: skip
    return DistilTrainer(args, settings)


def test_training_learns_resumes_and_judges(
    face_folder: Path, tmp_path: Path, stand_ins: None
) -> None:
    trainer = distilling(tmp_path, face_folder)
    before = {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}
    judges = [p.detach().clone() for p in trainer.discriminator.parameters()]
    trainer.run()
    assert trainer.step >= 2
    moved = zip(judges, trainer.discriminator.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
    for name, value in trainer.model.state_dict().items():
        assert name.startswith("g_s.") or torch.equal(before[name], value), "it stays as it was"
    assert not torch.equal(trainer.model.g_s.high.weight, before["g_s.high.weight"])
    rows = (tmp_path / "run" / "curve.tsv").read_text().splitlines()
    assert [tuple(map(float, row.split("\t")[3:5])) for row in rows] == [
        (1, 0), (1, 0.5), (1, 1), (2, 1), (4, 1)
    ]  # fmt: skip
    again = DistilTrainer(trainer.args, DistilSettings())
    assert again.step == trainer.step and again.settings == trainer.settings
    for a, b in zip(
        again.discriminator.parameters(), trainer.discriminator.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_end_to_end_the_compressor_learns_too(
    face_folder: Path, tmp_path: Path, stand_ins: None
) -> None:
    trainer = distilling(tmp_path, face_folder, end_to_end=True)
    loss, logs = trainer.loss(0.0)
    loss.backward()
    assert logs["bpp"] > 0
    for part in ("g_a.stem.weight", "g_s.high.weight", "entropy.h_s_y.0.weight"):
        gradient = trainer.model.get_parameter(part).grad
        assert gradient is not None and gradient.abs().max() > 0, part
    assert trainer.model.entropy.residual_gains.log2_gain.grad is None


def test_an_int8_student_learns_with_the_rounding(
    face_folder: Path, tmp_path: Path, stand_ins: None
) -> None:
    first = distilling(tmp_path, face_folder)
    weights = {"model": first.model.state_dict(), "ema": first.model.state_dict()}
    state = {"config": first.config(), "settings": {}, "elapsed": 0.0, "step": 7, "images": 9}
    faces = read_index(face_folder, "train")
    torch.save(quantised_state({**state, **weights}, faces), tmp_path / "int8.pt")
    first.args.init = str(tmp_path / "int8.pt")
    trainer = DistilTrainer(first.args, replace(first.settings, teacher_share=0.0, adam_lr=2e-2))
    assert trainer.step == 7 and trainer.model.config.quantised
    before = {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}
    trainer.run()
    assert trainer.step > 7
    moved = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert all(name.startswith("g_s.") for name in moved), "files stay what they were"
    assert any(name.endswith("log2_step") for name in moved)


def test_what_is_trained_is_chosen_once() -> None:
    with pytest.raises(ValueError, match="choose one"):
        DistilSettings(end_to_end=True, only_drawing=True)
    with pytest.raises(ValueError, match="choose one"):
        DistilSettings(only_drawing=True, only_later_steps=True)
    with pytest.raises(ValueError, match="choose one"):
        DistilSettings(only_drawing=True, only_texture=True)


def test_the_shift_of_a_set_is_that_of_its_mean_without_bias() -> None:
    """Features that differ by chance shift nothing, however much they differ."""
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(4000, 8, 3, generator=generator)
    shift = torch.tensor([0.5, 0.0, -1.0])
    found = {}
    for name, away in (("none", 0.0), ("some", shift)):
        pooled = reference + away + 2 * torch.randn(reference.shape, generator=generator)
        each = torch.stack([mean_shift(a, b) for a, b in zip(pooled, reference, strict=True)])
        error = 3 * float(each.std()) / len(each) ** 0.5
        found[name] = float(each.mean()), error
    assert abs(found["none"][0]) < found["none"][1] < 0.1
    expected = float(shift.square().mean())
    assert abs(found["some"][0] - expected) < found["some"][1] < 0.1
    with pytest.raises(ValueError, match="1 pictures are no set"):
        mean_shift(reference[0, :1], reference[0, :1])


def test_what_is_drawn_follows_the_mean_of_the_originals(
    face_folder: Path, tmp_path: Path, stand_ins: None
) -> None:
    trainer = distilling(
        tmp_path, face_folder, only_texture=True, shift_weight=1.0, realism_shares=(1.0, 0.0),
        grain_weight=1.0, tint_weight=1.0,
    )  # fmt: skip
    loss, logs = trainer.loss(0.0)
    loss.backward()
    for name in ("shift", "grain", "tint"):
        value = logs[name]
        assert torch.is_tensor(value) and value.isfinite(), name
    for name, parameter in trainer.model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("g_s.texture."), name


def test_views_are_parts_of_the_image_and_the_same_for_both() -> None:
    torch.manual_seed(0)
    theta = draw_views(200)
    extent = theta[:, :, :2].det().abs().sqrt()
    assert 1 / MAX_ZOOM <= extent.min() < 0.75 and 0.9 < extent.max() <= 1
    mirrored = theta[:, :, :2].det() < 0
    assert 60 < mirrored.sum() < 140
    middle = theta[:, :, 2].abs().amax(1)
    assert (middle <= 1 - extent + 1e-6).all() and middle.max() > 0.2

    image = torch.rand(2, 3, 32, 32)
    still = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    torch.testing.assert_close(viewed(image, still), image, atol=1e-5, rtol=0)
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    torch.testing.assert_close(viewed(image, mirror), image.flip(3), atol=1e-5, rtol=0)
    middle_half = torch.tensor([[0.5, 0, 0], [0, 0.5, 0]]).expand(2, 2, 3)
    assert abs(viewed(image, middle_half).mean() - image[:, :, 8:24, 8:24].mean()) < 0.02
