"""Training of an INT8 student alone, to give what the float one gives: `export.quantise --student`.

The target is the float student's output for the same file, noise and time (knowledge distillation,
Hinton et al., 2015). It has no noise of its own, as faces have: against faces, with the losses of
`export.distil`, 55 minutes of two cores made INT8 worse, since the gradients were mostly noise.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.data import crops_and_faces, read_square, spread
from export.diffusion import Condition, condition_of, denoise, only_student, sample, times
from export.distil import STEP_COUNTS
from export.networks import Codec, codec_from_dict, frozen_codec, split_bands
from export.precision import to_device
from export.train import BALANCE, REFERENCE_LAMBDA, draw_refined, pattern, rate_lambda
from export.train import Settings as CodecSettings
from export.training import Run, RunSettings

VALIDATED = (60, 100, 150, 220)  # quarter steps


@dataclass
class RoundingSettings(RunSettings):
    muon_lr: float = 4e-5  # weights are to move by a step of INT8 or less
    muon_decay: float = 0.0
    adam_lr: float = 4e-5
    decay_from: float = 0.0
    batch_128: int = 24
    batch_256: int = 6
    large_share: float = 0.5
    residual_share: float = 0.4  # of the images are coded with a residual
    lowest: int = 5  # quality, in quarter steps
    drawn_share: float = 0.4  # of the images have a realism, half of them 1
    several_steps: float = 0.2  # of the batches are of a later step


class RoundingTrainer(Run[Codec, RoundingSettings]):
    """Weights and steps between which rounding costs least.

    All in float32: bfloat16's error is as large as INT8's.

    Args:
      args: as of `Run`; also data, a folder with index.csv, codec, the float checkpoint, and
        validate_count.
    """

    def __init__(self, args: argparse.Namespace, settings: RoundingSettings) -> None:
        super().__init__(args, settings)
        s = self.settings
        self.feed(crops_and_faces(s.batch_128, s.batch_256, s.large_share))
        self.float_codec = frozen_codec(Path(args.codec))
        self.compressor = CodecSettings()

    def build(self, state: dict[str, Any] | None) -> Codec:
        if state is None:
            raise ValueError("a calibrated checkpoint is needed to start from")
        codec = codec_from_dict(state["config"])
        codec.load_state_dict(state["model"])
        return only_student(codec)

    def config(self) -> dict[str, Any]:
        return self.model.config_dict()

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Qualities in quarter steps, int64 [count], and realisms."""
        s, rng = self.settings, self.rng
        first = self.model.config.entropy.residual_from
        low = rng.integers(s.lowest, first, count)
        refined = rng.random(count) < s.residual_share
        q = to_device(np.where(refined, draw_refined(rng, first, count), low))
        chance, value = rng.random(count), rng.random(count)
        some = np.where(chance < s.drawn_share / 2, 1.0, value)
        return q, to_device(np.where(chance < s.drawn_share, some, 0.0)).float()

    def loss(self, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        s = self.settings
        _, batch = self.sampler.next_of_kind()
        image = to_device(batch[0]).float()
        bands = split_bands(image)
        count = len(bands)
        self.images += count
        q, realism = self.draw(count)
        with torch.no_grad():
            told, _ = condition_of(self.model, bands, q)
        steps = int(self.rng.choice(STEP_COUNTS[1:])) if self.rng.random() < s.several_steps else 1
        schedule = times(steps)
        index = int(self.rng.integers(0, steps))

        def wanted(x_t: Tensor, t: Tensor, told: Condition) -> Tensor:
            return denoise(self.float_codec, x_t, t, told, realism)

        start = realism[:, None, None, None] * torch.randn_like(bands)
        x_t = sample(wanted, told, start, schedule[: index + 1])
        t = torch.full((count,), schedule[index])
        with torch.no_grad():
            target = wanted(x_t, t, told)
        away = (denoise(self.model, x_t, t, told, realism) - target) * self.model.g_s.scale
        lam = rate_lambda(self.compressor, q)
        mse = away.square().mean((1, 2, 3)) * 127.5**2
        repeated = self.compressor.pattern_weight * pattern(away) * 127.5**2
        total = lam * (mse + repeated) * (lam / REFERENCE_LAMBDA) ** -BALANCE
        refined = (q >= self.model.config.entropy.residual_from).float()
        logs: dict[str, Tensor | float] = {
            "base": (mse.detach() * (1 - refined)).sum() / (1 - refined).sum().clamp_min(1),
            "residual": (mse.detach() * refined).sum() / refined.sum().clamp_min(1),
        }
        return total.mean(), logs

    @torch.no_grad()
    def validate(self) -> None:
        """Squared errors of INT8 against float at realism 0, with and without a residual."""
        model = self.ema_model()
        faces = spread(self.val, self.args.validate_count)
        found = []
        for q in VALIDATED:
            total = 0.0
            for face in faces:
                bands = split_bands(torch.from_numpy(read_square(face.path, 256)))
                told, _ = condition_of(model, bands, torch.tensor([q]))
                nothing, dial = torch.zeros_like(bands), torch.zeros(1)
                out = [
                    denoise(codec, nothing, torch.ones(1), told, dial)
                    for codec in (model, self.float_codec)
                ]
                away = (out[0] - out[1]) * model.g_s.scale
                total += float(away.square().mean()) * 127.5**2
            found.append(total / len(faces))
        self.judge([tuple(found)], float(np.mean(np.log(found))))
