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
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.data import BatchKind, Face, FaceSampler, read_index, read_square
from export.integer_entropy import NUM_Q, IntegerConv2d
from export.losses import IdentityLoss, PerceptualLoss
from export.networks import Codec, codec_from_dict, merge_bands, split_bands
from export.optim import Muon

MAX_Q = NUM_Q - 1
OUTLIER = 5.0


@dataclass
class Settings:
    """Everything that shapes a run besides its length; stored in the checkpoint."""

    seed: int = 1
    muon_lr: float = 0.002
    muon_decay: float = 0.1
    adam_lr: float = 4e-4
    batch_128: int = 48
    batch_256: int = 12
    # share of the batches that are whole faces at 256, at the start and at the end
    large_share: tuple[float, float] = (0.3, 0.75)
    perceptual_from: float = 0.0  # share of the time after which the perceptual terms start
    decay_from: float = 0.35
    sharp_share: float = 0.1  # of the batch that is decoded with realism > 0
    residual_share: float = 0.25  # of the batch that is coded with a residual
    # squared error on the 0..255 scale against bits per pixel, at quality 0 and 63
    lambda_min: float = 1e-5
    lambda_max: float = 0.08
    # of the squared error far from the landmarks of the face, and what is added at them
    face_weight: tuple[float, float] = (0.4, 2.4)
    perceptual_weight: float = 0.05
    identity_weight: float = 3.0
    distil_weight: float = 1.0  # of the squared error against `--teacher`, where there is one
    ema: float = 0.998


REFERENCE_LAMBDA = 8e-4
BALANCE = 0.6  # power of lambda by which losses are divided, so that all qualities weigh alike
VALIDATE_SIZE = 256
VALIDATE_Q = (0, 20, 40, 60, 90, 131, 150, 180, 220)


def rate_lambda(settings: Settings, q: Tensor) -> Tensor:
    """lambda(q), exponential in the quality; q in quarter steps."""
    return settings.lambda_min * (settings.lambda_max / settings.lambda_min) ** (q.float() / MAX_Q)


def feature_share(relative: Tensor) -> Tensor:
    """Weight of perceptual and identity terms at lambda / REFERENCE_LAMBDA.

    They fall with lambda a little more slowly than the squared error does, since few bytes are
    there for the identity. With the square root they ruled the smallest files: bytes rose, PSNR
    fell by half a dB, and identity as another network sees it did not improve.
    """
    return relative**0.75


# Learning rates of AdamW relative to `adam_lr`, by kind of parameter. Biases, table scales and
# means of the entropy model count in integer units of up to hundreds, where steps of 8e-4 would
# never arrive.
ADAM_SCALE = {
    "other": 1.0,
    "gain": 5.0,
    "hidden bias": 40.0,
    "output bias": 300.0,
}


def parameter_kind(name: str, parameter: nn.Parameter, outputs: set[str]) -> str:
    """A key of ADAM_SCALE, or "muon" for the wide convolutions outside the entropy model.

    `outputs`: names of the entropy model's output layers.
    """
    if name.startswith("entropy."):
        module, leaf = name.rsplit(".", 1)
        if leaf == "log2_gain":
            return "gain"
        if leaf in ("s_mean", "s_scale"):
            return "output bias"
        if leaf == "bias":
            return "output bias" if module in outputs else "hidden bias"
        return "other"
    if name.endswith(".zero_point"):  # counts in levels
        return "hidden bias"
    wide = parameter.ndim == 4 and parameter.shape[0] >= 48 and parameter.shape[1] >= 45
    return "muon" if wide else "other"


def split_parameters(model: Codec) -> dict[str, list[nn.Parameter]]:
    """Parameters by `parameter_kind`."""
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in ("muon", *ADAM_SCALE)}
    outputs = {n for n, m in model.named_modules() if isinstance(m, IntegerConv2d) and m.lo < 0}
    for name, p in model.named_parameters():
        groups[parameter_kind(name, p, outputs)].append(p)
    return groups


class Trainer:
    def __init__(self, args: argparse.Namespace, settings: Settings) -> None:
        self.args, self.settings = args, settings
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.elapsed, self.step, self.images = 0.0, 0, 0
        self.best = math.inf  # loss on val
        self.model = Codec()
        state = self._load()
        if state:
            known = {k: v for k, v in state["settings"].items() if k in Settings.__annotations__}
            self.settings = settings = Settings(**{**known, **args.override})
            self.model = codec_from_dict(state["config"])
            self.model.load_state_dict(state["model"])
            self.elapsed, self.step, self.images = state["elapsed"], state["step"], state["images"]
            self.best = state.get("best", math.inf)
        self.model.entropy.residual_gains.requires_grad_(
            False
        )  # `export/train_residual.py` set them
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.fresh = True  # the optimisers start without a state, and want a warm-up
        self.ema = {k: v.detach().clone().float() for k, v in self.model.state_dict().items()}
        groups = split_parameters(self.model)
        self.muon = Muon(groups.pop("muon"), settings.muon_lr, decay=settings.muon_decay)
        self.adam = torch.optim.AdamW(
            [{"params": v} for v in groups.values()], settings.adam_lr, weight_decay=0.0
        )
        if state:
            self.ema = {k: state["ema"][k].float() for k in self.ema}  # in the model's order
            self.fresh = False
            for optimiser, key in ((self.muon, "muon"), (self.adam, "adam")):
                # a checkpoint from before a regrouping, or of weights alone, starts them afresh
                if len(state.get(key, {}).get("param_groups", [])) == len(optimiser.param_groups):
                    optimiser.load_state_dict(state[key])
                else:
                    self.fresh = True
        self.rng = np.random.default_rng(settings.seed + self.step)
        faces = read_index(Path(args.data), "train")
        self.sampler = FaceSampler(faces, settings.seed + self.step, self.batch_kinds(0.0))
        self.val = read_index(Path(args.data), "val")
        self.teacher = load_teacher(args.teacher) if args.teacher else None
        self.perceptual: PerceptualLoss | None = None
        self.identity: IdentityLoss | None = None

    def _load(self) -> dict[str, Any] | None:
        for path in (self.out / "checkpoint.pt", self.args.init and Path(self.args.init)):
            if path and path.exists():
                return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
        return None

    def save(self, name: str = "checkpoint.pt") -> None:
        state = {
            "config": self.model.config_dict(),
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "ema": self.ema,
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "elapsed": self.elapsed,
            "step": self.step,
            "images": self.images,
            "best": self.best,
        }
        temporary = self.out / f"{name}.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / name)

    def ema_model(self) -> Codec:
        model = codec_from_dict(self.model.config_dict())
        model.load_state_dict(self.ema)
        return model.eval()

    def batch_kinds(self, progress: float) -> list[BatchKind]:
        """Crops at the scale that faces of 256 pixels have, and whole faces at 256."""
        s = self.settings
        large = s.large_share[0] + (s.large_share[1] - s.large_share[0]) * progress
        return [
            BatchKind(128, s.batch_128, 0.35, 1 - large),
            BatchKind(256, s.batch_256, 0.85, large),
        ]

    def draw_q(self, count: int) -> Tensor:
        """Qualities of the base, [count]."""
        top = self.model.config.entropy.residual_from
        q = self.rng.integers(0, top + 1, count)
        near = np.clip(np.rint(self.rng.normal(85, 35, count)), 0, top).astype(np.int64)
        return torch.from_numpy(np.where(self.rng.random(count) < 0.5, near, q))

    def draw_residual_q(self, count: int) -> Tensor:
        """Qualities with a residual, [count]; more of the smaller files."""
        first = self.model.config.entropy.residual_from
        q = first + np.floor((NUM_Q - first) * self.rng.random(count) ** 1.5)
        return torch.from_numpy(q.astype(np.int64))

    def loss(self, progress: float) -> tuple[Tensor, dict[str, float]]:
        s = self.settings
        self.sampler.kinds = self.batch_kinds(progress)
        image, theta, whole, near = map(torch.from_numpy, self.sampler.next())
        image = image.float()
        count, size = image.shape[0], image.shape[2]
        self.images += count
        refined = round(count * s.residual_share)  # the last of the batch
        own = count - refined
        first = self.model.config.entropy.residual_from
        q = torch.cat([self.draw_q(own), self.draw_residual_q(refined)])
        sharp = math.ceil(count * s.sharp_share)  # these are decoded with realism > 0
        realism = torch.zeros(count)
        realism[:sharp] = torch.from_numpy(
            np.where(self.rng.random(sharp) < 0.7, 1.0, self.rng.random(sharp))
        ).float()
        noise = torch.randn(own, 48, size // 4, size // 4).contiguous(
            memory_format=torch.channels_last
        )
        bands = split_bands(image)
        out, parts = self.model(bands[:own], q[:own], realism[:own], noise)
        bits = torch.stack(list(parts.values())).sum(0)
        if refined:
            more, residual_bits = self.model.refine(self.model.base(bands[own:]), q[own:])
            out, bits = torch.cat([out, more]), torch.cat([bits, residual_bits])
        bpp = bits / (size * size)
        # what the residual tells needs no focus: it fades towards the top
        told = (q - first).clamp(min=0) / (NUM_Q - 1 - first)
        focus = (s.face_weight[0] + s.face_weight[1] * near) ** (1 - told)[:, None, None]
        mse = ((out - bands).square().mean(1) * focus).mean((1, 2)) * 127.5**2
        lam = rate_lambda(s, q)
        relative = lam / REFERENCE_LAMBDA
        distortion = lam * mse * (1 - 0.4 * realism)
        if self.teacher is not None:
            with torch.no_grad():
                target, _ = self.teacher(bands[:own], q[:own], realism[:own], noise)
            away = (out[:own] - target).square().mean((1, 2, 3)) * 127.5**2
            distortion[:own] += s.distil_weight * lam[:own] * away
        logs = {"mse": float(mse.detach().mean()), "bpp": float(bpp.detach().mean())}
        if progress >= s.perceptual_from:
            if self.perceptual is None or self.identity is None:
                self.perceptual = PerceptualLoss()
                self.identity = IdentityLoss(Path(self.args.weights) / "mobilefacenet.onnx")
            extra = torch.zeros(count)
            dist = self.perceptual(merge_bands(out[:sharp]), image[:sharp])
            extra[:sharp] = s.perceptual_weight * dist
            # identity for a few of the batch: it costs as much as the codec itself
            ids = torch.nonzero(whole)[:, 0]
            ids = ids[torch.randperm(len(ids))[: max(2, count // 8)]]
            if len(ids):
                identity, cosine = self.identity(merge_bands(out[ids]), image[ids], theta[ids])
                weight = s.identity_weight * (0.25 + 0.75 * realism[ids]) * (count / 2 / len(ids))
                extra = extra.index_add(0, ids, weight * identity)
                logs["identity"] = float(cosine.detach().mean())
            weight = torch.where(realism > 0, realism, 1.0)
            distortion = distortion + feature_share(relative) * weight * extra
            logs["perceptual"] = float(dist.detach().mean())
        total = ((distortion + bpp) * relative**-BALANCE).mean()
        logs["s"] = float(parts["s"].detach().mean()) / 8
        logs["z"] = float(parts["z"].detach().mean()) / 8
        return total, logs

    def run(self) -> None:
        args, s = self.args, self.settings
        budget = args.minutes * 60
        last_save = last_log = last_val = time.time()
        sums: dict[str, float] = {}
        count = 0
        typical = 0.0  # running mean of the loss; a batch far above it is not learnt from
        muon = self.muon.param_groups[0]["params"]
        adam = [p for group in self.adam.param_groups for p in group["params"]]
        first_step, last_images = self.step, self.images
        stop: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
        while self.elapsed < budget:
            if stop:
                self.save()
                print("stopped by a signal; the checkpoint is up to date", flush=True)
                return
            started = time.time()
            progress = self.elapsed / budget
            scale = 1.0
            if progress > s.decay_from:
                scale = max(0.01, 1 - 0.99 * (progress - s.decay_from) / (1 - s.decay_from))
            warm = min(1.0, (self.step - first_step + 1) / 100) if self.fresh else 1.0
            self.muon.param_groups[0]["lr"] = s.muon_lr * scale * warm
            self.muon.param_groups[0]["decay"] = s.muon_decay
            for group, factor in zip(self.adam.param_groups, ADAM_SCALE.values(), strict=True):
                group["lr"] = s.adam_lr * factor * scale * warm
            loss, logs = self.loss(progress)
            self.muon.zero_grad()
            self.adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(muon, 1.0)
            norm = nn.utils.clip_grad_norm_(adam, 1.0)
            value = float(loss.detach())
            typical = typical or value
            if torch.isfinite(norm) and value < OUTLIER * typical:
                typical += 0.02 * (value - typical)
                self.muon.step()
                self.adam.step()
                decay = min(s.ema, (1 + self.step) / (10 + self.step))
                with torch.no_grad():
                    values = list(self.model.state_dict().values())
                    torch._foreach_lerp_(list(self.ema.values()), values, 1 - decay)
            else:
                logs["skipped"] = 1.0
            self.step += 1
            for key, item in {"loss": value, **logs}.items():
                sums[key] = sums.get(key, 0.0) + item
            count += 1
            self.elapsed += time.time() - started
            now = time.time()
            if now - last_log > 30:
                mean = {k: round(v / count, 5) for k, v in sums.items()}
                print(
                    f"{self.elapsed / 60:6.1f} min step {self.step} images {self.images} "
                    f"{(self.images - last_images) / (now - last_log):.1f}/s {mean}",
                    flush=True,
                )
                sums, count, last_log, last_images = {}, 0, now, self.images
            if now - last_save > 240:
                self.save()
                last_save = now
            if now - last_val > args.validate_every * 60:
                self.validate()
                last_val = time.time()
        self.validate()
        self.save()

    def validate(self) -> None:
        """PSNR, bytes and perceptual distance of the EMA weights on some `val` faces at 256x256."""
        rows = evaluate(self.ema_model(), self.val, self.args.validate_count, VALIDATE_Q)
        score = rate_distortion(self.settings, rows)
        if score < self.best:
            self.best = score
            self.save("best.pt")
        with open(self.out / "curve.tsv", "a") as f:
            for row in rows:
                values = [self.elapsed / 60, self.step, self.images, *row]
                f.write("\t".join(f"{v:.6g}" for v in values) + "\n")
                print("val", *(f"{v:.5g}" for v in row), flush=True)
        print(f"val loss {score:.5f}, best {self.best:.5f}", flush=True)


def load_teacher(path: str) -> Codec:
    """The EMA weights of a checkpoint, frozen."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    codec = codec_from_dict(state["config"])
    codec.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return codec.requires_grad_(False).eval()


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
    faces = faces[:: max(1, len(faces) // count)][:count]
    rows = []
    for q in qualities:
        total = np.zeros(3)
        for face in faces:
            x = torch.from_numpy(read_square(face, VALIDATE_SIZE))
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
            size = 12 + bits / 8
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
    parser.add_argument("--validate-every", type=float, default=10.0, help="minutes")
    parser.add_argument("--validate-count", type=int, default=24)
    parser.add_argument("--set", dest="override", type=json.loads, default={}, help="JSON settings")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args, Settings(**args.override)).run()


if __name__ == "__main__":
    main()
