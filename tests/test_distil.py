"""The few-step student: what it starts from, its losses, a short training."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_diffusion import condition
from test_export_networks import SMALL, small_codec
from torch import Tensor, nn

from export.data import BatchKind, FaceSampler, read_index
from export.diffusion import Denoiser
from export.distil import (
    DistilSettings,
    DistilTrainer,
    FeatureDiscriminator,
    StepStudent,
    StudentCodec,
    hinge_discriminator,
    hinge_generator,
)


class FewFeatures(nn.Module):
    """Stands in for EfficientNet-Lite0, which is not installed everywhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.maps = nn.ModuleList(nn.Conv2d(3, c, 4, s) for c, s in ((8, 4), (16, 8)))
        self.requires_grad_(False)

    def features(self, image: Tensor) -> list[Tensor]:
        return [m(image / 255) for m in self.maps]

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


def test_realism_is_told_and_scales_the_noise() -> None:
    codec = small_codec()
    student = StepStudent(codec.config)
    student.load_state_dict({**student.state_dict(), **Denoiser.of_student(codec).state_dict()})
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model = StudentCodec(codec, student)
    c, (a, b) = condition(), torch.randn(2, 2, 48, 16, 16)
    with torch.no_grad():
        zero = [model.decode(c, noise, torch.zeros(2), 2, 1.5) for noise in (a, b)]
        half, one = (model.decode(c, a, torch.full((2,), rho), 2, 1.5) for rho in (0.5, 1.0))
    assert torch.equal(*zero)
    assert not torch.allclose(half, one) and not torch.allclose(half, zero[0])


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


def test_training_learns_resumes_and_judges(
    face_folder: Path, tmp_path: Path, stand_ins: None
) -> None:
    codec = small_codec(replace(SMALL, w16=48))
    torch.save({"config": codec.config_dict(), "ema": codec.state_dict()}, tmp_path / "codec.pt")
    denoiser = {f"denoiser.{k}": v for k, v in Denoiser.of_student(codec).state_dict().items()}
    ema = {**{f"codec.{k}": v for k, v in codec.state_dict().items()}, **denoiser}
    torch.save({"config": codec.config_dict(), "ema": ema}, tmp_path / "teacher.pt")
    settings = DistilSettings(
        batch_128=4, large_share=0.0, sharp_share=1.0, quality=(10, 90), validate_q=60,
        teacher_share=0.5, teacher_steps=2,
    )  # fmt: skip
    args = argparse.Namespace(
        codec=str(tmp_path / "codec.pt"), teacher=str(tmp_path / "teacher.pt"), weights="",
        data=str(face_folder), out=str(tmp_path / "run"), init=None, minutes=0.15,
        validate_every=60.0, validate_count=1, override={},
    )  # fmt: skip
    trainer = DistilTrainer(args, settings)
    judges = [p.detach().clone() for p in trainer.discriminator.parameters()]
    trainer.run()
    assert trainer.step >= 2
    moved = zip(judges, trainer.discriminator.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
    for name, value in codec.state_dict().items():
        assert torch.equal(trainer.model.codec.state_dict()[name], value), "it stays as it was"
    student = trainer.model.student.state_dict()
    assert not torch.equal(student["high.weight"], codec.g_s.state_dict()["high.weight"])
    rows = (tmp_path / "run" / "curve.tsv").read_text().splitlines()
    assert [tuple(map(float, row.split("\t")[3:5])) for row in rows] == [
        (1, 0), (1, 0.5), (1, 1), (2, 1), (4, 1)
    ]  # fmt: skip
    again = DistilTrainer(args, DistilSettings())
    assert again.step == trainer.step and again.settings == settings
    for a, b in zip(
        again.discriminator.parameters(), trainer.discriminator.parameters(), strict=True
    ):
        assert torch.equal(a, b)
