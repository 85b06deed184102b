"""The diffusion prior: a denoiser of wavelet bands, conditioned on what the file says; its sampler.

Rectified flow (Liu et al., ICLR 2023) from noise to bands, as a straight line:

  x_t = (1 - t) x_0 + t eps,        t in [0, 1],  eps unit normal

x_0 are the bands divided by their typical deviations, so that every band meets noise of its own
size. The network D tells the clean bands, x_hat_0 = D(x_t, t; c), of the condition c: the visual
prompt, the semantics s_hat, the quality and the residual (FaSDiff's visual prompts and
frequency-domain modulation). Its velocity is v = (x_t - x_hat_0) / t, and the sampler takes Euler's
steps along it:

  x_t' = x_t + (t' - t) v = (t' / t) x_t + (1 - t' / t) x_hat_0

At t = 1 nothing of the image is in x_t: D gives the posterior mean, which is what the fidelity
decoder gives. The denoiser starts from that decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.networks import (
    NUM_BANDS,
    Codec,
    ModelConfig,
    Student,
    codec_from_dict,
    conv,
    quality_dial,
)

_OCTAVES = 6  # of the sines and cosines that t is seen through
_MIN_TIME = 0.02  # below it the loss of the velocity would rule
_BAND_SIDES = 4  # bands are at H/4; x_t enters at H/4, H/8 and H/16


@dataclass
class Condition:
    """What the file says, as the denoiser takes it; see `Student`."""

    prompt: Tensor
    s_hat: Tensor
    quality: Tensor
    residual: Tensor | None = None
    residual_bands: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Every tensor changed."""
        return Condition(
            change(self.prompt),
            change(self.s_hat),
            change(self.quality),
            None if self.residual is None else change(self.residual),
            None if self.residual_bands is None else change(self.residual_bands),
        )

    def repeated(self, count: int) -> Condition:
        """The same for `count` samples of each image."""
        return self.map(lambda v: v.repeat_interleave(count, 0))

    def of(self, images: Tensor) -> Condition:
        """Of some of the images, by index."""
        return self.map(lambda v: v[images])


@torch.no_grad()
def condition_of(codec: Codec, bands: Tensor, q: Tensor) -> Condition:
    """What files of these images say, at qualities below `residual_from`."""
    coded = codec.entropy.code(*codec.latents(bands, bf16=True), q)
    prompt, s_hat = codec.decoded(coded, q)
    prompt = prompt.contiguous(memory_format=torch.channels_last)
    return Condition(prompt, s_hat, quality_dial(q))


class Denoiser(Student):
    """D(x_t, t; c): the student's layers, where x_t enters at all three scales and t is told."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.time = nn.Linear(2 * _OCTAVES, config.conditions)
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)
        self.noise16 = conv(NUM_BANDS, config.w16, _BAND_SIDES, _BAND_SIDES, scale=0.05)

    def forward(self, x_t: Tensor, t: Tensor, c: Condition) -> Tensor:  # type: ignore[override]
        """Clean bands [B, 48, h, w], in units of their typical deviations, like x_t; t [B]."""
        return self.clean(x_t, self.known(t, c), c)

    def known(self, t: Tensor, c: Condition) -> Tensor:
        """What the layers are told before the first ReLU, [B, conditions]."""
        dials = torch.stack([torch.zeros_like(c.quality), c.quality], 1)
        first: Tensor = self.condition[0](torch.cat([c.s_hat / 4, dials], 1))
        return first + self.time(time_features(t))

    def clean(self, x_t: Tensor, known: Tensor, c: Condition) -> Tensor:
        for layer in self.condition[1:]:  # type: ignore[attr-defined]
            known = layer(known)
        h = self.prompt(c.prompt) + self.noise16(x_t)
        bands = self.denoise(h, known, x_t, c.residual, c.residual_bands)
        if c.residual_bands is not None:
            bands = bands + c.residual_bands
        return bands / self.scale

    @classmethod
    def of_student(cls, codec: Codec) -> Denoiser:
        """A denoiser that starts as the fidelity decoder of a codec, deaf to x_t.

        Its inputs for noise were learnt for another use: they start at zero.
        """
        found = cls(codec.config)
        found.load_state_dict({**found.state_dict(), **codec.g_s.state_dict()})
        with torch.no_grad():
            for layer in (found.noise4, found.noise8, found.noise16):
                layer.weight.zero_()
                layer.bias.zero_()
        return found


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of t [B] -> [B, 2 * _OCTAVES]."""
    angles = t[:, None] * math.pi * 2.0 ** torch.arange(_OCTAVES)
    return torch.cat([angles.sin(), angles.cos()], 1)


class DiffusionCodec(nn.Module):
    """A codec that stays as it is, and the denoiser that is learnt for it."""

    def __init__(self, codec: Codec, denoiser: Denoiser | None = None) -> None:
        super().__init__()
        self.codec = codec.requires_grad_(False)
        self.denoiser = denoiser or Denoiser.of_student(codec)

    def train(self, mode: bool = True) -> DiffusionCodec:
        super().train(mode)
        self.codec.eval()
        return self

    def config_dict(self) -> dict[str, Any]:
        return self.codec.config_dict()


def diffusion_codec_from_dict(values: dict[str, Any]) -> DiffusionCodec:
    codec = codec_from_dict(values)
    return DiffusionCodec(codec, Denoiser(codec.config))


def flow_loss(denoiser: Denoiser, x_0: Tensor, c: Condition, t: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the velocity, per image [B]; Liu et al., ICLR 2023, equation 1.

    With x_0 predicted, that error is the one of x_0 over t^2.
    """
    along = t[:, None, None, None]
    x_t = (1 - along) * x_0 + along * noise
    found = denoiser(x_t.contiguous(memory_format=torch.channels_last), t, c)
    error = (found - x_0).square().mean((1, 2, 3))
    return error / t.clamp_min(_MIN_TIME).square()


def times(steps: int, shift: float = 1.0) -> list[float]:
    """t_1 = 1 > t_2 > ... > t_{steps + 1} = 0; `shift` over 1 spends more of them near 1.

    t' = shift t / (1 + (shift - 1) t), as for larger images (Esser et al., ICML 2024, equation 23).
    """
    even = [1 - i / steps for i in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


@torch.no_grad()
def sample(
    denoiser: Callable[[Tensor, Tensor, Condition], Tensor],
    c: Condition,
    noise: Tensor,
    t: Sequence[float],
) -> Tensor:
    """Draw clean bands, in units of their deviations, from unit normal noise [B, 48, h, w].

    Args:
      t: falling from 1 to 0; one evaluation of the denoiser for each but the last.
    """
    x_t = noise
    for now, after in zip(t[:-1], t[1:], strict=True):
        clean = denoiser(x_t, torch.full((len(x_t),), now), c).float()
        x_t = (after / now) * x_t + (1 - after / now) * clean
    return x_t


def sharpness(images: Tensor) -> float:
    """Mean energy of the finest differences of RGB [B, 3, H, W] in squared grey levels."""
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    return float(F.mse_loss(across, 0 * across) + F.mse_loss(down, 0 * down))
