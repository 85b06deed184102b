"""Distil the diffusion teacher into a student of 1, 2 and 4 steps; resumable.

    python -m export.distil --codec RUN/checkpoint.pt --teacher TEACHER/checkpoint.pt \\
        --data FACES --weights HELPERS --out STUDENT --minutes 120

The student is the codec's own network, or the teacher's, with realism rho as a dial: its sampler
starts from rho * eps, and the network is told rho. At 0 it learns the posterior mean, at 1:

- **consistency**: what the teacher's own sampler makes of the same noise in several steps (Salimans
  and Ho, ICLR 2022; Song et al., ICML 2023), for some of the images;
- perceptual features (EfficientNet-Lite0) and identity (MobileFaceNet) of the original;
- **adversarial** hinge loss on the same features, projected (Sauer et al., NeurIPS 2021), on images
  that are sharp at the training size alone.

Later steps are trained on what the student itself made in the earlier ones. `end_to_end` trains the
compressor with it, by rate and distortion at realism 0: at 1 the features weigh ten times what the
bits do, and files would grow. Otherwise the files stay what they were. `only_drawing` trains what
is idle at realism 0, so that the posterior mean stays what it was as well, `only_later_steps` what
is idle in the first step.
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

from export.data import BatchKind, Face, spread
from export.diffusion import (
    Condition,
    condition_of,
    deafen,
    decode,
    denoise,
    only_drawing,
    only_later_steps,
    only_student,
    only_texture,
    sample,
    sharpness,
    times,
)
from export.losses import (
    IdentityLoss,
    PerceptualLoss,
    draw_views,
    feature_distance,
    grain_distance,
    mean_shift,
    structural_distance,
    tint_distance,
    viewed,
)
from export.networks import Codec, codec_from_dict, frozen_codec, merge_bands, split_bands
from export.precision import device, mixed_precision, to_device, use_gpu
from export.train import (
    BALANCE,
    REFERENCE_LAMBDA,
    draw_refined,
    feature_share,
    identity_share,
    rate_lambda,
    squared_error,
)
from export.train import Settings as CodecSettings
from export.train_teacher import coded, draw
from export.training import Run, RunSettings

STEP_COUNTS = (1, 2, 4)


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


@dataclass
class DistilSettings(RunSettings):
    batch_128: int = 24
    batch_192: int = 10
    large_share: float = 0.5
    sharp_share: float = 0.6  # of the batches are of sharp images, for the adversarial loss
    realism_shares: tuple[float, float] = (0.55, 0.15)  # of the images: 1, and between 0 and 1
    residual_share: float = 0.15  # of the images are coded with a residual
    end_to_end: bool = False
    only_drawing: bool = False  # leave the posterior mean as it is
    only_texture: bool = False  # likewise, and train the noise that is added alone
    only_later_steps: bool = False  # leave the first step as it is as well
    face_weight: tuple[float, float, float] = (0.5, 2.0, 0.0)  # as in `export.train.Settings`
    colour_weight: float = 0.0  # likewise
    pattern_weight: float = 60.0  # likewise
    several_steps: float = 0.4  # of the batches are of 2 or 4 steps
    quality: tuple[int, int] = (10, 131)
    validate_q: int = 85
    perceptual_weight: float = 0.15
    structural_weight: float = 1.0  # of 1 - SSIM
    identity_weight: float = 1.5  # at realism 1; two thirds of it at 0
    identity_share: float = 0.25  # of the batch
    shift_weight: float = 0.0  # of how far what is drawn has shifted as a whole; see `mean_shift`
    # of how much more or less grain there is than in sharp images. For `only_texture`: what else is
    # drawn meets it with dots, all alike
    grain_weight: float = 0.0
    tint_weight: float = 0.0  # of what is drawn in another colour; see `tint_distance`
    adversarial_weight: float = 0.03
    discriminator_lr: float = 4e-4
    # of the squared error and of 1 - SSIM that is left at realism 1
    fidelity: float = 0.35
    teacher_share: float = 0.25  # of the images of realism 1 that follow the teacher
    teacher_steps: int = 6
    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        chosen = ("end_to_end", "only_drawing", "only_texture", "only_later_steps")
        if sum(getattr(self, name) for name in chosen) > 1:
            raise ValueError(f"choose one of {', '.join(chosen)}")


class DistilTrainer(Run[Codec, DistilSettings]):
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
        self.feed(kinds)
        self.perceptual = PerceptualLoss().to(device())
        self.identity = IdentityLoss(Path(args.weights) / "mobilefacenet.onnx").to(device())
        self.compressor = CodecSettings(
            face_weight=s.face_weight,
            colour_weight=s.colour_weight,
            pattern_weight=s.pattern_weight,
        )
        self.teacher = frozen_codec(Path(args.teacher)) if args.teacher else None
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

    def build(self, state: dict[str, Any] | None) -> Codec:
        if state is None:
            model = frozen_codec(Path(self.args.codec))
            if self.args.teacher:
                student = frozen_codec(Path(self.args.teacher)).g_s
                model.g_s.load_state_dict(student.state_dict())
            else:
                deafen(model)
        else:
            model = codec_from_dict(state["config"])
            model.load_state_dict(state["model"])
        if self.settings.only_drawing:
            return only_drawing(model)
        if self.settings.only_texture:
            return only_texture(model)
        if self.settings.only_later_steps:
            return only_later_steps(model)
        if not self.settings.end_to_end:
            return only_student(model)
        model.requires_grad_(True)
        model.entropy.residual_gains.requires_grad_(False)
        return model

    def config(self) -> dict[str, Any]:
        return self.model.config_dict()

    def extra_state(self) -> dict[str, Any]:
        return {
            "discriminator": self.discriminator.state_dict(),
            "against": self.against.state_dict(),
        }

    def draw_realism(self, count: int) -> Tensor:
        one, between = self.settings.realism_shares
        draw, value = self.rng.random(count), self.rng.random(count)
        realism = np.where(draw < one, 1.0, np.where(draw < one + between, value, 0.0))
        return to_device(realism).float()

    def draw_q(self, count: int) -> Tensor:
        s = self.settings
        q = to_device(self.rng.integers(s.quality[0], s.quality[1] + 1, count))
        refined = to_device(self.rng.random(count) < s.residual_share)
        first = self.model.config.entropy.residual_from
        return torch.where(refined, to_device(draw_refined(self.rng, first, count)), q)

    def loss(self, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        s = self.settings
        kind, batch = self.sampler.next_of_kind()
        image, theta, whole, near = map(to_device, batch)
        image = image.float()
        bands = split_bands(image)
        count, size = len(bands), image.shape[2]
        self.images += count
        q, realism = self.draw_q(count), self.draw_realism(count)
        with torch.set_grad_enabled(s.end_to_end):
            condition, bits = condition_of(self.model, bands, q)
        faithful = realism == 0
        if s.end_to_end:
            condition = condition.only(faithful)
        noise = torch.randn_like(bands)
        schedule = times(self.draw_steps())
        index = int(self.rng.integers(s.only_later_steps, len(schedule) - 1))

        def student(x_t: Tensor, t: Tensor, told: Condition) -> Tensor:
            return denoise(self.model, x_t, t, told, realism)

        with mixed_precision():
            start = realism[:, None, None, None] * noise
            x_t = sample(student, condition, start, schedule[: index + 1])
            clean = student(x_t, torch.full((count,), schedule[index]), condition)
        out = clean * self.model.g_s.scale
        first = self.model.config.entropy.residual_from
        mse = squared_error(self.compressor, out - bands, near, q, first)
        lam = rate_lambda(self.compressor, q)
        relative = lam / REFERENCE_LAMBDA
        faithfulness = 1 - (1 - s.fidelity) * realism
        distortion = lam * mse * faithfulness
        decoded = merge_bands(out)
        extra, shift = torch.zeros(count), torch.zeros(())
        logs: dict[str, Tensor | float] = {"mse": mse.detach().mean()}
        if s.structural_weight:
            structural = structural_distance(decoded, image)
            extra = s.structural_weight * structural * faithfulness
            logs["structural"] = structural.detach().mean()
        logs["bpp"] = bits.detach().mean() / size**2
        drawn = torch.nonzero(realism)[:, 0]
        if len(drawn):
            views = draw_views(len(drawn))
            with mixed_precision():
                with torch.no_grad():
                    reference = self.perceptual.features(viewed(image[drawn], views))
                features = self.perceptual.features(viewed(decoded[drawn], views))
                sure = torch.nonzero(realism[drawn] == 1)[:, 0]
                if s.shift_weight and len(sure) > 1:
                    last = (features[-1][sure], reference[-1][sure])
                    shift = mean_shift(*map(self.perceptual.pooled, last))
                    logs["shift"] = shift.detach()
            perceptual = feature_distance(features, reference)
            real = s.perceptual_weight * perceptual
            logs["perceptual"] = perceptual.detach().mean()
            if s.tint_weight:
                tint = tint_distance(out[drawn], bands[drawn])
                real = real + s.tint_weight * tint
                logs["tint"] = tint.detach().mean()
            if kind.detailed and s.grain_weight:
                fine = grain_distance(decoded[drawn], image[drawn])
                real = real + s.grain_weight * fine
                logs["grain"] = fine.detach().mean()
            if kind.detailed:
                judged = hinge_generator(self.discriminator(features))
                real = real + s.adversarial_weight * judged
                logs["judged"] = judged.detach().mean()
                self.judged = (reference, [f.detach() for f in features])
            extra = extra.index_add(0, drawn, realism[drawn] * real)
        ids = torch.nonzero(whole)[:, 0]
        ids = ids[torch.randperm(len(ids))[: max(2, round(count * s.identity_share))]]
        if len(ids):
            identity, cosine = self.identity(decoded[ids], image[ids], theta[ids])
            share = s.identity_weight * count / 2 / len(ids)
            extra = extra.index_add(0, ids, share * identity_share(realism[ids]) * identity)
            logs["identity"] = cosine.detach().mean()
        if self.teacher is not None and index == 0:
            followed = torch.nonzero(realism == 1)[:, 0]
            followed = followed[: round(s.teacher_share * count)]
            if len(followed):
                told = condition.of(followed)
                one = realism[followed]
                target = decode(self.teacher, told, noise[followed], one, s.teacher_steps)
                away = (clean[followed] - target / self.model.g_s.scale).square().mean((1, 2, 3))
                extra = extra.index_add(0, followed, s.teacher_weight * away)
                logs["teacher"] = away.detach().mean()
        total = distortion + feature_share(relative) * extra
        if s.end_to_end:
            total = total + faithful * bits / size**2
        total = total + s.shift_weight * shift
        return (total * relative**-BALANCE).mean(), logs

    def draw_steps(self) -> int:
        s = self.settings
        if s.only_later_steps or self.rng.random() < s.several_steps:
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
        self.judge(rows, sum(row[3] for row in rows))  # perceptual distance


@torch.no_grad()
def evaluate(
    model: Codec, faces: list[Face], count: int, settings: DistilSettings
) -> list[tuple[float, ...]]:
    """Means over `count` faces: rows (steps, realism, PSNR, perceptual distance, sharpness)."""
    perceptual = PerceptualLoss().to(device())
    faces = spread(faces, count)
    rows = []
    for steps, realism in ((1, 0.0), (1, 0.5), (1, 1.0), (2, 1.0), (4, 1.0)):
        total = np.zeros(3)
        for index, face in enumerate(faces):
            image, told = coded(model, face.path, settings.validate_q)
            found = draw(model, told, steps, first=index, realism=realism)
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
    parser.add_argument("--workers", type=int, default=0, help="processes that cut crops")
    parser.add_argument("--validate-every", type=float, default=15.0, help="minutes")
    parser.add_argument("--validate-count", type=int, default=12)
    parser.add_argument("--set", dest="override", type=json.loads, default={}, help="JSON settings")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    use_gpu()
    DistilTrainer(args, DistilSettings(**args.override)).run()


if __name__ == "__main__":
    main()
