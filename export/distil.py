"""Distil the diffusion teacher into a student of 1, 2 and 4 steps; resumable.

    python -m export.distil --codec RUN/checkpoint.pt --teacher TEACHER/checkpoint.pt \\
        --data FACES --weights HELPERS --out STUDENT --minutes 120

The student is the teacher's network with one more dial, realism rho: its sampler starts from
rho * eps instead of eps, and the network is told rho. At 0 it learns the posterior mean, at 1:

- **consistency**: what the teacher's own sampler makes of the same noise in several steps (Salimans
  and Ho, ICLR 2022; Song et al., ICML 2023), for some of the images;
- perceptual features (EfficientNet-Lite0) and identity (MobileFaceNet) of the original;
- **adversarial** hinge loss on the same features, projected (Sauer et al., NeurIPS 2021), on images
  that are sharp at the training size alone.

Later steps are trained on what the student itself made in the earlier ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.data import BatchKind, Face, FaceSampler, read_index
from export.diffusion import (
    Condition,
    Denoiser,
    DiffusionCodec,
    condition_of,
    sample,
    sharpness,
    times,
)
from export.losses import IdentityLoss, PerceptualLoss, feature_distance
from export.networks import Codec, codec_from_dict, frozen_codec, merge_bands, split_bands
from export.train import REFERENCE_LAMBDA, feature_share, rate_lambda
from export.train import Settings as CodecSettings
from export.train_teacher import coded
from export.training import Run, RunSettings

STEP_COUNTS = (1, 2, 4)
BALANCE = 0.6


class StepStudent(Denoiser):
    """D(x_t, t; c, rho): the denoiser, told how realistic its picture is to be."""

    def __init__(self, codec_config: Any) -> None:
        super().__init__(codec_config)
        self.realism = nn.Linear(1, codec_config.conditions, bias=False)
        nn.init.zeros_(self.realism.weight)

    def forward(  # type: ignore[override]
        self, x_t: Tensor, t: Tensor, c: Condition, realism: Tensor
    ) -> Tensor:
        return self.clean(x_t, self.known(t, c) + self.realism(realism[:, None]), c)


class FeatureDiscriminator(nn.Module):
    """Real or not, at every position of several feature maps; `channels` of each."""

    def __init__(self, channels: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, width, 1),
                nn.GroupNorm(8, width),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(8, width),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for c in channels
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Logits [B, 1, h, w] of each map; positive: real."""
        return [head(f.float()) for head, f in zip(self.heads, features, strict=True)]


def hinge_discriminator(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Lim and Ye, 2017."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in pairs]).mean()


def hinge_generator(fake: list[Tensor]) -> Tensor:
    """Per image, [B]."""
    return -torch.stack([f.mean((1, 2, 3)) for f in fake]).mean(0)


class StudentCodec(nn.Module):
    """A codec that stays as it is, and its student."""

    def __init__(self, codec: Codec, student: StepStudent) -> None:
        super().__init__()
        self.codec = codec.requires_grad_(False)
        self.student = student

    def train(self, mode: bool = True) -> StudentCodec:
        super().train(mode)
        self.codec.eval()
        return self

    def decode(
        self, c: Condition, noise: Tensor, realism: Tensor, steps: int, shift: float
    ) -> Tensor:
        """Clean bands, in units of their deviations, of unit normal noise; realism [B]."""

        def denoise(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            found: Tensor = self.student(x_t, t, condition, realism)
            return found

        return sample(denoise, c, realism[:, None, None, None] * noise, times(steps, shift))


@dataclass
class DistilSettings(RunSettings):
    batch_128: int = 24
    batch_192: int = 10
    large_share: float = 0.5
    sharp_share: float = 0.6  # of the batches are of sharp images, for the adversarial loss
    realistic_share: float = 0.7  # of the images have realism 1; as many of the rest 0 as between
    several_steps: float = 0.4  # of the batches are of 2 or 4 steps
    shift: float = 1.5
    quality: tuple[int, int] = (10, 131)
    validate_q: int = 85
    perceptual_weight: float = 0.15
    identity_weight: float = 2.5
    adversarial_weight: float = 0.03
    discriminator_lr: float = 4e-4
    # of the squared error that is left at realism 1
    fidelity: float = 0.35
    teacher_share: float = 0.25  # of the images of realism 1 that follow the teacher
    teacher_steps: int = 6
    teacher_weight: float = 0.5


class DistilTrainer(Run[StudentCodec, DistilSettings]):
    def __init__(self, args: argparse.Namespace, settings: DistilSettings) -> None:
        super().__init__(args, settings)
        s = self.settings
        kinds = [
            BatchKind(size, count, whole, share * sharp, detailed)
            for size, count, whole, share in (
                (128, s.batch_128, 0.35, 1 - s.large_share),
                (192, s.batch_192, 0.85, s.large_share),
            )
            for detailed, sharp in ((True, s.sharp_share), (False, 1 - s.sharp_share))
        ]
        self.sampler = FaceSampler(read_index(Path(args.data), "train"), s.seed + self.step, kinds)
        self.val = read_index(Path(args.data), "val")
        self.perceptual = PerceptualLoss()
        self.identity = IdentityLoss(Path(args.weights) / "mobilefacenet.onnx")
        self.lambdas = CodecSettings()
        self.teacher: Denoiser | None = None
        if args.teacher:
            state = torch.load(args.teacher, map_location="cpu", weights_only=True)
            teacher = DiffusionCodec(self.model.codec, Denoiser(self.model.codec.config))
            teacher.load_state_dict({k: v.float() for k, v in state["ema"].items()})
            self.teacher = teacher.denoiser.requires_grad_(False).eval()
        with torch.no_grad():
            channels = [f.shape[1] for f in self.perceptual.features(torch.zeros(1, 3, 64, 64))]
        self.discriminator = FeatureDiscriminator(tuple(channels))
        self.against = torch.optim.Adam(
            self.discriminator.parameters(), s.discriminator_lr, betas=(0.0, 0.99)
        )
        if self.extra:
            self.discriminator.load_state_dict(self.extra["discriminator"])
            self.against.load_state_dict(self.extra["against"])
        self.judged: tuple[list[Tensor], list[Tensor]] | None = None

    def build(self, state: dict[str, Any] | None) -> StudentCodec:
        if state is not None:
            codec = codec_from_dict(state["config"])
            model = StudentCodec(codec, StepStudent(codec.config))
            model.load_state_dict(state["model"])
            return model
        codec = frozen_codec(Path(self.args.codec))
        student = StepStudent(codec.config)
        if self.args.teacher:
            start = torch.load(self.args.teacher, map_location="cpu", weights_only=True)["ema"]
            mine = "denoiser."
            weights = {k[len(mine) :]: v.float() for k, v in start.items() if k.startswith(mine)}
        else:
            weights = dict(Denoiser.of_student(codec).state_dict())
        student.load_state_dict({**student.state_dict(), **weights})
        return StudentCodec(codec, student)

    def config(self) -> dict[str, Any]:
        return self.model.codec.config_dict()

    def extra_state(self) -> dict[str, Any]:
        return {
            "discriminator": self.discriminator.state_dict(),
            "against": self.against.state_dict(),
        }

    def draw_realism(self, count: int) -> Tensor:
        s, draw = self.settings, self.rng.random(count)
        between = self.rng.random(count) * (self.rng.random(count) < 0.5)
        return torch.from_numpy(np.where(draw < s.realistic_share, 1.0, between)).float()

    def loss(self, progress: float) -> tuple[Tensor, dict[str, float]]:
        s = self.settings
        kind, (pixels, landmarks, inside, _) = self.sampler.next_of_kind()
        image, theta, whole = map(torch.from_numpy, (pixels, landmarks, inside))
        image = image.float()
        bands = split_bands(image)
        count = len(bands)
        self.images += count
        q = torch.from_numpy(self.rng.integers(s.quality[0], s.quality[1] + 1, count))
        condition = condition_of(self.model.codec, bands, q)
        realism = self.draw_realism(count)
        noise = torch.randn_like(bands)
        schedule = times(self.draw_steps(), s.shift)
        step = int(self.rng.integers(len(schedule) - 1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x_t = realism[:, None, None, None] * noise
            with torch.no_grad():
                for now, after in zip(schedule[:step], schedule[1:], strict=False):
                    t = torch.full((count,), now)
                    clean = self.model.student(x_t, t, condition, realism).float()
                    x_t = (after / now) * x_t + (1 - after / now) * clean
            t = torch.full((count,), schedule[step])
            x_t = x_t.contiguous(memory_format=torch.channels_last)
            clean = self.model.student(x_t, t, condition, realism).float()
        out = clean * self.model.student.scale
        mse = (out - bands).square().mean((1, 2, 3)) * 127.5**2
        lam = rate_lambda(self.lambdas, q)
        relative = lam / REFERENCE_LAMBDA
        distortion = lam * mse * (1 - (1 - s.fidelity) * realism)
        decoded = merge_bands(out)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                reference = self.perceptual.features(image)
            features = self.perceptual.features(decoded)
        perceptual = feature_distance(features, reference)
        extra = s.perceptual_weight * perceptual
        logs = {"mse": float(mse.mean()), "perceptual": float(perceptual.mean())}
        if kind.detailed:
            judged = self.discriminator(features)
            extra = extra + s.adversarial_weight * hinge_generator(judged)
            self.judged = (reference, [f.detach() for f in features])
        extra = extra * realism
        ids = torch.nonzero(whole)[:, 0]
        ids = ids[torch.randperm(len(ids))[: max(2, count // 4)]]
        if len(ids):
            identity, cosine = self.identity(decoded[ids], image[ids], theta[ids])
            share = s.identity_weight * count / 2 / len(ids)
            extra = extra.index_add(0, ids, share * (0.25 + 0.75 * realism[ids]) * identity)
            logs["identity"] = float(cosine.mean())
        if self.teacher is not None and step == 0:
            followed = torch.nonzero(realism == 1)[:, 0]
            followed = followed[: round(s.teacher_share * count)]
            if len(followed):
                told = condition.of(followed)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    target = sample(
                        self.teacher, told, noise[followed], times(s.teacher_steps, s.shift)
                    )
                away = (clean[followed] - target).square().mean((1, 2, 3))
                extra = extra.index_add(0, followed, s.teacher_weight * away)
                logs["teacher"] = float(away.mean())
        total = (distortion + feature_share(relative) * extra) * relative**-BALANCE
        return total.mean(), logs

    def draw_steps(self) -> int:
        if self.rng.random() < self.settings.several_steps:
            return int(self.rng.choice(STEP_COUNTS[1:]))
        return STEP_COUNTS[0]

    def after_backward(self) -> None:
        """The discriminator learns from what was judged."""
        self.against.zero_grad()  # of the student's loss
        if self.judged is None:
            return
        real, fake = (self.discriminator(features) for features in self.judged)
        loss = hinge_discriminator(real, fake)
        loss.backward()
        self.against.step()
        self.judged = None

    def validate(self) -> None:
        rows = evaluate(self.ema_model(), self.val, self.args.validate_count, self.settings)
        with open(self.out / "curve.tsv", "a") as f:
            for row in rows:
                values = [self.elapsed / 60, self.step, self.images, *row]
                f.write("\t".join(f"{v:.6g}" for v in values) + "\n")
                print("val", *(f"{v:.5g}" for v in row), flush=True)
        score = sum(row[3] for row in rows)
        if score < self.best:
            self.best = score
            self.save("best.pt")


@torch.no_grad()
def evaluate(
    model: StudentCodec, faces: list[Face], count: int, settings: DistilSettings
) -> list[tuple[float, ...]]:
    """Means over `count` faces: rows (steps, realism, PSNR, perceptual distance, sharpness)."""
    perceptual = PerceptualLoss()
    faces = faces[:: max(1, len(faces) // count)][:count]
    rows = []
    for steps, realism in ((1, 0.0), (1, 0.5), (1, 1.0), (2, 1.0), (4, 1.0)):
        total = np.zeros(3)
        for index, face in enumerate(faces):
            image, condition = coded(model.codec, face, settings.validate_q)
            side = image.shape[2] // 4
            noise = torch.randn(1, 48, side, side, generator=torch.Generator().manual_seed(index))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = model.decode(condition, noise, torch.tensor([realism]), steps, settings.shift)
            found = merge_bands(x * model.student.scale).clamp(0, 255)
            mse = float((found.round() - image).square().mean())
            total += [
                10 * np.log10(255**2 / mse),
                float(perceptual(found, image)),
                sharpness(found) / sharpness(image),
            ]
        rows.append((float(steps), realism, *(float(v) for v in total / len(faces))))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", required=True, help="checkpoint of the compressor")
    parser.add_argument("--teacher", help="checkpoint of the teacher; without it, none is followed")
    parser.add_argument("--data", required=True, help="folder with index.csv")
    parser.add_argument("--weights", required=True, help="folder with mobilefacenet.onnx")
    parser.add_argument("--out", required=True)
    parser.add_argument("--init", help="checkpoint of a student to start from")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--validate-every", type=float, default=15.0, help="minutes")
    parser.add_argument("--validate-count", type=int, default=12)
    parser.add_argument("--set", dest="override", type=json.loads, default={}, help="JSON settings")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    DistilTrainer(args, DistilSettings(**args.override)).run()


if __name__ == "__main__":
    main()
