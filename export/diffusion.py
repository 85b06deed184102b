"""The diffusion prior: a denoiser of wavelet bands, conditioned on what the file says; its sampler.

Rectified flow (Liu et al., ICLR 2023) from noise to bands, as a straight line:

  x_t = (1 - t) x_0 + t eps,        t in [0, 1],  eps unit normal

x_0 are the bands divided by their typical deviations, so that every band meets noise of its own
size. The network D tells the clean bands, x_hat_0 = D(x_t, t; c, rho), of the condition c: the
visual prompt, the semantics s_hat, the quality and the residual (FaSDiff's visual prompts and
frequency-domain modulation), and of the realism rho. Its velocity is v = (x_t - x_hat_0) / t, and
the sampler starts from rho eps and takes Euler's steps along it:

  x_t' = x_t + (t' - t) v = (t' / t) x_t + (1 - t' / t) x_hat_0

At rho = 0 nothing is drawn: D gives the posterior mean. The teacher knows rho = 1 alone, and starts
from the fidelity decoder, as the student does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from export.integer_entropy import Coded
from export.networks import TIME_OCTAVES, Codec, quality_dial
from export.precision import mixed_precision

TIME_SHIFT = 1.5  # of the sampler, as trained and as shipped; see `times`
_MIN_TIME = 0.02  # below it the loss of the velocity would rule


@dataclass
class Condition:
    """What the file says, as the denoiser takes it; see `Student`. The residual may be zero."""

    prompt: Tensor
    s_hat: Tensor
    quality: Tensor
    residual: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Every tensor changed."""
        return Condition(*map(change, (self.prompt, self.s_hat, self.quality, self.residual)))

    def only(self, images: Tensor) -> Condition:
        """The same, with gradients for some of the images alone; bool [B]."""
        return self.map(lambda v: torch.where(images.view(-1, *[1] * (v.ndim - 1)), v, v.detach()))

    def repeated(self, count: int) -> Condition:
        """The same for `count` samples of each image."""
        return self.map(lambda v: v.repeat_interleave(count, 0))

    def of(self, images: Tensor) -> Condition:
        """Of some of the images, by index."""
        return self.map(lambda v: v[images])


def condition_of(codec: Codec, bands: Tensor, q: Tensor) -> tuple[Condition, Tensor]:
    """What files of these images say, and their bits [B], differentiably; not through the base of
    a residual.

    Args:
      bands: float32 [B, 48, h, w]; q: int64 [B], quarter steps, with or without a residual.
    """
    e = codec.entropy
    base_q = q.clamp(max=e.config.residual_from)
    latents, price = codec.analyse(bands, bf16=True)
    coded = e.code(*latents, base_q)
    prompt, s_hat = codec.decoded(coded, base_q)
    bits = e.total_bits(*coded)
    residual = prompt.new_zeros(len(q), e.config.num_residual, *prompt.shape[2:])
    refined = torch.nonzero(q >= e.config.residual_from)[:, 0]
    if len(refined):
        s, z, y = (Coded(*(v[refined].detach() for v in part)) for part in coded)
        base = codec.decoded_base(bands[refined], (s, z, y), price[refined])
        found, more = codec.code_left(base, q[refined])
        residual = residual.index_add(0, refined, found)
        bits = bits.index_add(0, refined, more)
    return Condition(prompt, s_hat, quality_dial(q), residual), bits


def denoise(codec: Codec, x_t: Tensor, t: Tensor, c: Condition, realism: Tensor) -> Tensor:
    """D(x_t, t; c, rho): clean bands [B, 48, h, w], in units of their deviations, as x_t is."""
    x_t = x_t.contiguous(memory_format=torch.channels_last)
    bands = codec.synthesise(c.prompt, c.s_hat, x_t, t, realism, c.quality, c.residual)
    return bands.float() / codec.g_s.scale


def deafen(codec: Codec) -> None:
    """Let the student start as the fidelity decoder, in place: what is learnt of noise goes."""
    with torch.no_grad():
        for weight in noise_weights(codec):
            weight.zero_()


def noise_weights(codec: Codec) -> list[Tensor]:
    """What the student hears the noise with."""
    student = codec.g_s
    heard = [layer.weight for layer in (student.noise4, student.noise8, student.noise16)]
    return [*heard, *_texture_weights(codec)]


def _texture_weights(codec: Codec) -> list[Tensor]:
    """Without the step of its input in INT8, which it shares with `high`."""
    return [p for name, p in codec.g_s.texture.named_parameters() if name in ("weight", "bias")]


def only_student(codec: Codec) -> Codec:
    """The same, in place, with nothing to train but the student."""
    codec.requires_grad_(False)
    codec.g_s.requires_grad_(True)
    return codec


def only_drawing(codec: Codec) -> Codec:
    """The same, with nothing to train but what is idle where nothing is drawn, at realism 0."""
    codec.requires_grad_(False)
    codec.g_s.drawn.requires_grad_(True)
    for weight in noise_weights(codec):
        weight.requires_grad_(True)
    for weight in (layer.weight for layer in codec.g_s.film_layers()):
        _train_columns(weight, codec.config.conditions)
    return codec


def keep_drawing(codec: Codec) -> Codec:
    """The same with all that `only_drawing` and `only_texture` train left as it is.

    What was to be trained otherwise still is.
    """
    codec.g_s.drawn.requires_grad_(False)
    for weight in noise_weights(codec):
        weight.requires_grad_(False)
    always, drawn = codec.config.conditions, codec.config.drawn_conditions
    for weight in (layer.weight for layer in codec.g_s.film_layers()):
        if weight.requires_grad:
            weight.register_hook(lambda grad: F.pad(grad[:, :always], (0, drawn)))
    return codec


def only_texture(codec: Codec) -> Codec:
    """The same, with nothing to train but how much of the noise each band gets."""
    codec.requires_grad_(False)
    for weight in _texture_weights(codec):
        weight.requires_grad_(True)
    return codec


def only_later_steps(codec: Codec) -> Codec:
    """The same, with nothing to train but what the student does with t, idle at t = 1."""
    codec.requires_grad_(False)
    student = codec.g_s
    student.time.weight.requires_grad_(True)
    _train_columns(student.drawn.weight, -2 * TIME_OCTAVES)
    return codec


def _train_columns(weight: Tensor, first: int) -> None:
    """Train the columns of a weight [R, C] from `first` on, and no others."""
    mask = torch.zeros_like(weight)
    mask[:, first:] = 1
    weight.requires_grad_(True).register_hook(mask.mul)


def flow_loss(codec: Codec, x_0: Tensor, c: Condition, t: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the velocity, per image [B]; Liu et al., ICLR 2023, equation 1.

    With x_0 predicted, that error is the one of x_0 over t^2.
    """
    along = t[:, None, None, None]
    x_t = (1 - along) * x_0 + along * noise
    error = (denoise(codec, x_t, t, c, torch.ones_like(t)) - x_0).square().mean((1, 2, 3))
    return error / t.clamp_min(_MIN_TIME).square()


def times(steps: int, shift: float = TIME_SHIFT) -> list[float]:
    """t_1 = 1 > t_2 > ... > t_{steps + 1} = 0; `shift` over 1 spends more of them near 1.

    t' = shift t / (1 + (shift - 1) t), as for larger images (Esser et al., ICML 2024, equation 23).
    """
    even = [1 - i / steps for i in range(steps + 1)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


@torch.no_grad()
def sample(
    denoiser: Callable[[Tensor, Tensor, Condition], Tensor],
    c: Condition,
    start: Tensor,
    t: Sequence[float],
) -> Tensor:
    """Draw clean bands, in units of their deviations, from rho eps [B, 48, h, w].

    Args:
      t: falling from 1 to 0; one evaluation of the denoiser for each but the last.
    """
    x_t = start
    for now, after in zip(t[:-1], t[1:], strict=True):
        clean = denoiser(x_t, torch.full((len(x_t),), now), c)
        x_t = (after / now) * x_t + (1 - after / now) * clean
    return x_t


@torch.no_grad()
def decode(codec: Codec, c: Condition, noise: Tensor, realism: Tensor, steps: int) -> Tensor:
    """Bands [B, 48, h, w] drawn from unit normal noise of that shape; realism [B]."""

    def denoiser(x_t: Tensor, t: Tensor, told: Condition) -> Tensor:
        return denoise(codec, x_t, t, told, realism)

    with mixed_precision():
        x = sample(denoiser, c, realism[:, None, None, None] * noise, times(steps))
    return x * codec.g_s.scale


def sharpness(images: Tensor) -> float:
    """Mean energy of the finest differences of RGB [B, 3, H, W] in squared grey levels."""
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    return float(F.mse_loss(across, 0 * across) + F.mse_loss(down, 0 * down))
