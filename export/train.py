"""Train compressor, integer entropy model and one-step student together; resumable at any moment.

    python -m export.train --data FACES --weights HELPERS --out RUN --minutes 110

The schedule follows training time, not steps: a run that is stopped and started again goes on
where its last checkpoint stood, with its learning rate. `RUN/curve.tsv` is the log,
`RUN/checkpoint.pt` the state, `RUN/best.pt` the state that did best on `val` so far.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.captured import Captured, Uploads, make_capturable, zero_gradients
from export.data import (
    HEADER_BYTES,
    BatchKind,
    Face,
    FaceSampler,
    crops_and_faces,
    read_square,
    spread,
)
from export.diffusion import keep_drawing
from export.integer_entropy import NUM_Q
from export.losses import IdentityLoss, PerceptualLoss, structural_distance
from export.networks import (
    LOW,
    NUM_BANDS,
    Codec,
    codec_from_dict,
    frozen_codec,
    merge_bands,
    of_colours,
    price_at,
    residual_price,
    split_bands,
    unevenness,
)
from export.precision import device, to_device, use_gpu
from export.train_importance import expected_near
from export.training import Run, RunSettings

MAX_Q = NUM_Q - 1


@dataclass
class Settings(RunSettings):
    """Everything that shapes a run besides its length; stored in the checkpoint."""

    batch_128: int = 48
    batch_256: int = 12
    # share of the batches that are whole faces at 256, at the start and at the end
    large_share: tuple[float, float] = (0.3, 0.75)
    # share of the time after which the perceptual and identity terms start; over 1: never
    perceptual_from: float = 0.0
    sharp_share: float = 0.1  # of the batch that is decoded with realism > 0
    # of the gradient of those that the compressor gets: perceptual terms would rule its bits
    followed: float = 1.0
    # of the batch that is coded with a residual; `export/train_residual.py` comes first
    residual_share: float = 0.0
    # squared error on the 0..255 scale against bits per pixel, at quality 0 and 63
    lambda_min: float = 1e-5
    lambda_max: float = 0.08
    # of the squared error far from the landmarks of the face, what is added at them, and what is
    # added along the middle of the face: see `export.data.nearness`
    face_weight: tuple[float, float, float] = (0.4, 2.4, 0.0)
    # where bytes are few, see `scarcity`: added to the power of those weights; the shares by which
    # identity's grows and that of 1 - SSIM falls. The first bytes are for who it is
    scarce: tuple[float, float, float] = (0.5, 1.5, 0.7)
    # where an image is told in some 200 to 340 bytes, see `fewness`: by what share identity's
    # weight grows, and by what the weight of all distortion falls, so that files stay as large
    few: tuple[float, float] = (0.0, 0.0)
    # of the squared error of the two colours that are not grey, added at the landmarks: few bits
    # tell whether eyes are brown, and squared error alone does not ask for them
    colour_weight: float = 0.0
    pattern_weight: float = 30.0  # see `pattern`
    structural_weight: float = 1.0  # of 1 - SSIM
    perceptual_weight: float = 0.05
    # at realism 1; two thirds of it at 0. Few faces of much weight are mostly noise
    identity_weight: float = 1.5
    identity_features: float = 0.3  # of the embedder's feature maps, against its embedding
    identity_share: float = 0.125  # of the batch: it costs as much as the codec itself
    distil_weight: float = 1.0  # of the squared error against `--teacher`, where there is one
    only_analysis: bool = False  # leave what a decoder knows as it is: files of before still decode
    keep_drawing: bool = False  # leave what `export/distil.py` trained with `only_drawing`


AnyArray = TypeVar("AnyArray", np.ndarray, Tensor)

REFERENCE_LAMBDA = 8e-4
BALANCE = 0.6  # power of lambda by which losses are divided, so that all qualities weigh alike
PATTERN_REACH = 7  # positions of the bands: 28 pixels
SCARCE = (50, 90)  # quarter steps: the smallest files are for the face, up to some 300 and 500 B
FEW_BYTES = (110, 200, 340, 500)  # `fewness` rises from the first to the second, and falls again
SHIFT = 16  # pixels, the student's coarsest grid
VALIDATE_SIZE = 256
VALIDATE_Q = (0, 20, 40, 60, 90, 131, 150, 180, 220)


def rate_lambda(settings: Settings, q: Tensor) -> Tensor:
    """lambda(q), exponential in the quality; q in quarter steps."""
    return settings.lambda_min * (settings.lambda_max / settings.lambda_min) ** (q.float() / MAX_Q)


def scarcity(q: Tensor) -> Tensor:
    """How few the bytes are at qualities q, from 1 to 0, of the shape of q."""
    few, enough = SCARCE
    return ((enough - q) / (enough - few)).clamp(0, 1)


def fewness(bits: Tensor, size: int) -> Tensor:
    """Whether images of size x size are told in as many bits as one of 256x256 in 300 bytes, [B].

    From 0 to 1; quality does not tell it, since a face before a busy ground takes twice as many.
    """
    size_256 = HEADER_BYTES + bits.detach() / 8 * (VALIDATE_SIZE / size) ** 2
    first, full, last, none = FEW_BYTES
    risen = (size_256 / first).log2() / math.log2(full / first)
    left = (none / size_256).log2() / math.log2(none / last)
    return torch.minimum(risen, left).clamp(0, 1)


def focus(settings: Settings, near: Tensor, q: Tensor, first: int) -> Tensor:
    """Weights of the squared error [B, h, w], of `near` [B, 2, h, w] (`export.data.nearness`).

    From quality `first` on the residual tells what is missing: the focus fades, as its price does.
    """
    far, *added = settings.face_weight
    weight = far + sum(more * near[:, i] for i, more in enumerate(added))
    power = unevenness(q, first) * (1 + settings.scarce[0] * scarcity(q))
    return weight ** power[:, None, None]


def squared_error(settings: Settings, error: Tensor, near: Tensor, q: Tensor, first: int) -> Tensor:
    """Weighted squares of the errors of bands [B, 48, h, w], on the 0..255 scale, [B]."""
    squares = error.square()
    colour = of_colours(squares).sum(1) / NUM_BANDS
    squares = squares.mean(1) + settings.colour_weight * near[:, 0] * colour
    found = (squares * focus(settings, near, q, first)).mean((1, 2))
    return (found + settings.pattern_weight * pattern(error)) * 127.5**2


def pattern(error: Tensor) -> Tensor:
    """How much of the errors of the high bands [B, 48, h, w] repeats from place to place, [B].

    Dots as far apart as the bands' positions pass for hair in features and cost little as squared
    errors, but eyes see them. Errors that differ from place to place cancel in local means, which
    leave a 49th of their squares; those of a pattern stay.
    """
    means = F.avg_pool2d(error[:, LOW:], PATTERN_REACH, 1)
    return means.square().sum(1).mean((1, 2)) / NUM_BANDS


def draw_refined(rng: np.random.Generator, first: int, count: int) -> np.ndarray:
    """Qualities with a residual, [count], from `first` on; more of the smaller files."""
    q = first + np.floor((NUM_Q - first) * rng.random(count) ** 1.5)
    return q.astype(np.int64)


def shifted(images: Tensor, shift: Tensor) -> Tensor:
    """A crop SHIFT pixels smaller: the grids of the student and of the judging network do not meet.

    Where they always do, patterns that fall between the strides of that network go unseen.
    """
    rows, columns = (
        start + torch.arange(size - SHIFT)
        for start, size in zip(shift, images.shape[2:], strict=True)
    )
    return images.index_select(2, rows).index_select(3, columns)


def feature_share(relative: Tensor) -> Tensor:
    """Weight of perceptual and identity terms at lambda / REFERENCE_LAMBDA.

    They fall with lambda a little more slowly than the squared error does, since few bytes are
    there for the identity. With the square root they ruled the smallest files: bytes rose, PSNR
    fell by half a dB, and identity as another network sees it did not improve.
    """
    return relative**0.75


def identity_share(realism: AnyArray) -> AnyArray:
    """Weight of the identity terms, of an array of realisms."""
    return (2 + realism) / 3


class Batch(NamedTuple):
    """A batch and what is drawn for it, on the processor.

    Attributes:
      image: uint8 [B, 3, N, N]; theta, near: as `export.data.Crops` gives them.
      q: int64 [B], quarter steps; the last `round(B * residual_share)` with a residual.
      realism: float32 [B], over 0 for the first `ceil(B * sharp_share)`.
      faces: int64 [K], whose identity is compared; weight: float32 [K], of that, 0 where there are
        fewer than K whole faces.
      shift: int64 [2], rows and columns by which what is judged by its features is cropped.
    """

    image: Tensor
    theta: Tensor
    near: Tensor
    q: Tensor
    realism: Tensor
    faces: Tensor
    weight: Tensor
    shift: Tensor


class Trainer(Run[Codec, Settings]):
    def __init__(self, args: argparse.Namespace, settings: Settings) -> None:
        super().__init__(args, settings)
        settings = self.settings
        if args.workers and len(set(settings.large_share)) > 1:
            raise ValueError("large_share must stay where it is with --workers")
        self.feed(self.batch_kinds(0.0))
        self.teacher = frozen_codec(Path(args.teacher)) if args.teacher else None
        self.perceptual: PerceptualLoss | None = None
        self.identity: IdentityLoss | None = None
        if settings.perceptual_from <= 1:
            self.perceptual = PerceptualLoss().to(device())
            self.identity = IdentityLoss(
                Path(args.weights) / "mobilefacenet.onnx", settings.identity_features
            ).to(device())
        if device().type == "cuda":
            if 0 < settings.perceptual_from <= 1:
                raise ValueError("perceptual_from cannot change a GPU's steps: they are recorded")
            make_capturable((self.muon, self.adam))
            self.captured_gradients = Captured(self.fresh_gradients)
            self.captured_update = Captured(super().update)
            self.uploads = Uploads()

    def build(self, state: dict[str, Any] | None) -> Codec:
        model = Codec()
        if state:
            model = codec_from_dict(state["config"])
            model.load_state_dict(state["model"])
        model.entropy.residual_gains.requires_grad_(False)  # `export/train_residual.py` set them
        if self.settings.only_analysis:
            model.requires_grad_(False)
            model.g_a.requires_grad_(True)
        return keep_drawing(model) if self.settings.keep_drawing else model

    def config(self) -> dict[str, Any]:
        return self.model.config_dict()

    def batch_kinds(self, progress: float) -> list[BatchKind]:
        s = self.settings
        large = s.large_share[0] + (s.large_share[1] - s.large_share[0]) * progress
        return crops_and_faces(s.batch_128, s.batch_256, large)

    def draw_q(self, count: int) -> np.ndarray:
        """Qualities of the base, int64 [count]."""
        top = self.model.config.entropy.residual_from
        q = self.rng.integers(0, top + 1, count)
        near = np.clip(np.rint(self.rng.normal(85, 35, count)), 0, top).astype(np.int64)
        return np.where(self.rng.random(count) < 0.5, near, q)

    def draw(self, progress: float) -> Batch:
        s = self.settings
        if isinstance(self.sampler, FaceSampler):
            self.sampler.kinds = self.batch_kinds(progress)
        image, theta, whole, near = self.sampler.next_of_kind()[1]
        count = len(image)
        self.images += count
        refined = round(count * s.residual_share)
        first = self.model.config.entropy.residual_from
        q = np.concatenate([self.draw_q(count - refined), draw_refined(self.rng, first, refined)])
        sharp = math.ceil(count * s.sharp_share)
        realism = np.zeros(count, np.float32)
        realism[:sharp] = np.where(self.rng.random(sharp) < 0.7, 1.0, self.rng.random(sharp))
        wanted = max(2, round(count * s.identity_share))
        found = self.rng.permutation(np.flatnonzero(whole))[:wanted]
        faces, weight = np.zeros(wanted, np.int64), np.zeros(wanted, np.float32)
        faces[: len(found)] = found
        weight[: len(found)] = s.identity_weight * count / 2 / max(1, len(found))
        weight *= identity_share(realism[faces])
        shift = self.rng.integers(0, SHIFT, 2)
        drawn = (image, theta, near, q, realism, faces, weight, shift)
        return Batch(*map(torch.from_numpy, drawn))

    def loss(self, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        perceptual = progress >= self.settings.perceptual_from
        batch = Batch(*(part.to(device()) for part in self.draw(progress)))
        return self.loss_of(batch, perceptual=perceptual)

    def gradients(self, progress: float) -> tuple[Tensor, Tensor, dict[str, Tensor | float]]:
        if device().type != "cuda":
            return super().gradients(progress)
        batch = Batch(*(self.uploads.take() or self.draw(progress)))
        found: tuple[Tensor, Tensor, dict[str, Tensor | float]]
        found = self.captured_gradients(batch.image.shape, batch)
        self.uploads.start(self.draw(progress))  # the next one
        return found

    def fresh_gradients(self, *parts: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor | float]]:
        """`gradients` of one batch, on the GPU and to be recorded."""
        zero_gradients(self.model)
        loss, logs = self.loss_of(Batch(*parts), perceptual=self.perceptual is not None)
        loss.backward()
        return loss.detach(), self.clip(), logs

    def update(self) -> None:
        if device().type == "cuda":
            self.captured_update(None)
        else:
            super().update()

    def loss_of(
        self, batch: Batch, *, perceptual: bool
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss, and what to log of it; nothing here waits for a GPU."""
        s = self.settings
        image, theta, near, q, realism, faces, face_weight, shift = batch
        image = image.float()
        count, size = image.shape[0], image.shape[2]
        refined = round(count * s.residual_share)
        own = count - refined
        first = self.model.config.entropy.residual_from
        sharp = math.ceil(count * s.sharp_share)
        noise = torch.randn(own, 48, size // 4, size // 4).contiguous(
            memory_format=torch.channels_last
        )
        bands = split_bands(image)
        followed = torch.where(realism[:own] > 0, s.followed, 1.0)
        out, parts = self.model(bands[:own], q[:own], realism[:own], noise, followed=followed)
        bits = torch.stack(list(parts.values())).sum(0)
        if refined:
            price = price_at(residual_price(expected_near(near[own:, 0])), q[own:], first)
            base = self.model.base(bands[own:])
            more, residual_bits = self.model.refine(base, q[own:], price=price)
            out, bits = torch.cat([out, more]), torch.cat([bits, residual_bits])
        bpp, few = bits / (size * size), fewness(bits, size)
        mse = squared_error(s, out - bands, near, q, first)
        lam = rate_lambda(s, q)
        relative = lam / REFERENCE_LAMBDA
        faithfulness = 1 - 0.4 * realism
        distortion = lam * mse * faithfulness
        if self.teacher is not None:
            with torch.no_grad():
                target, _ = self.teacher(bands[:own], q[:own], realism[:own], noise)
            away = (out[:own] - target).square().mean((1, 2, 3)) * 127.5**2
            distortion = distortion + F.pad(s.distil_weight * lam[:own] * away, (0, refined))
        logs: dict[str, Tensor | float] = {"mse": mse.detach().mean(), "bpp": bpp.detach().mean()}
        decoded = merge_bands(out)
        if s.structural_weight:
            structural = structural_distance(decoded, image)
            share = s.structural_weight * feature_share(relative) * (1 - s.scarce[2] * scarcity(q))
            distortion = distortion + share * faithfulness * structural
            logs["structural"] = structural.detach().mean()
        if perceptual and self.perceptual is not None and self.identity is not None:
            pictures = (decoded[:sharp], image[:sharp])
            dist = self.perceptual(*(shifted(picture, shift) for picture in pictures))
            identity, cosine = self.identity(decoded[faces], image[faces], theta[faces])
            extra = F.pad(s.perceptual_weight * dist, (0, count - sharp))
            face_weight = face_weight * (1 + s.scarce[1] * scarcity(q[faces]))
            face_weight = face_weight * (1 + s.few[0] * few[faces])
            extra = extra.index_add(0, faces, face_weight * identity)
            told = torch.where(realism > 0, realism, 1.0)
            distortion = distortion + feature_share(relative) * told * extra
            logs["identity"] = cosine.detach().mean()
            logs["perceptual"] = dist.detach().mean()
        distortion = distortion / (1 + s.few[1] * few)
        total = ((distortion + bpp) * relative**-BALANCE).mean()
        logs["s"] = parts["s"].detach().mean() / 8
        logs["z"] = parts["z"].detach().mean() / 8
        return total, logs

    def validate(self) -> None:
        """PSNR, bytes and perceptual distance of the EMA weights on some `val` faces at 256x256."""
        rows = evaluate(self.ema_model(), self.val, self.args.validate_count, VALIDATE_Q)
        score = rate_distortion(self.settings, rows)
        self.judge(rows, score)
        print(f"val loss {score:.5f}, best {self.best:.5f}", flush=True)


def rate_distortion(settings: Settings, rows: list[tuple[float, ...]]) -> float:
    """The loss, without perceptual terms, of the rows of `evaluate`: mean over the qualities."""
    total = 0.0
    for q, size, psnr, _ in rows:
        lam = float(rate_lambda(settings, torch.tensor(q)))
        mse = 255**2 * 10 ** (-psnr / 10)
        total += (lam * mse + 8 * size / VALIDATE_SIZE**2) * (lam / REFERENCE_LAMBDA) ** -BALANCE
    return float(total / len(rows))


@torch.no_grad()
def evaluate(
    model: Codec, faces: list[Face], count: int, qualities: tuple[int, ...]
) -> list[tuple[float, ...]]:
    """Means over `count` faces: rows (q, estimated bytes with header, PSNR at realism 0 and 1).

    With a residual both are at realism 0.
    """
    first = model.config.entropy.residual_from
    faces = spread(faces, count)
    rows = []
    for q in qualities:
        total = np.zeros(3)
        for face in faces:
            x = to_device(read_square(face.path, VALIDATE_SIZE))
            original = split_bands(x)
            psnr = []
            for realism in (0.0, 1.0):
                if q < first:
                    dial, noise = torch.tensor([realism]), torch.zeros_like(original)
                    bands, parts = model(original, torch.tensor([q]), dial, noise)
                    bits = sum(float(b.sum()) for b in parts.values())
                else:
                    base = model.base(original)
                    bands, more = model.refine(base, torch.tensor([q]))
                    bits = sum(float(c.bits.sum()) for c in base.coded) + float(more)
                mse = (merge_bands(bands).clamp(0, 255).round() - x).square().mean().item()
                psnr.append(10 * np.log10(255**2 / mse))
            size = HEADER_BYTES + bits / 8
            total += [size, *psnr]
        rows.append((float(q), *(total / len(faces))))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with index.csv")
    parser.add_argument("--weights", required=True, help="folder with mobilefacenet.onnx")
    parser.add_argument("--out", required=True)
    parser.add_argument("--init", help="checkpoint to start from when --out holds none")
    parser.add_argument("--teacher", help="checkpoint of a codec to follow: `export/quantise.py`")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that cut crops")
    parser.add_argument("--validate-every", type=float, default=10.0, help="minutes")
    parser.add_argument("--validate-count", type=int, default=24)
    parser.add_argument("--set", dest="override", type=json.loads, default={}, help="JSON settings")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    use_gpu()
    Trainer(args, Settings(**args.override)).run()


if __name__ == "__main__":
    main()
