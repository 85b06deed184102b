"""Train the diffusion teacher: a denoiser of bands on what a codec's files say; resumable.

    python -m export.train_teacher --codec RUN/checkpoint.pt --data FACES --out TEACHER --minutes 60
    python -m export.train_teacher ... --plots FOLDER --image FACE.png       (no training)

`--plots` draws what shows a diffusion model: samples of one file with several seeds, and what more
steps bring, as pictures of one image and as curves over `val` faces.

The codec stays as it is. `TEACHER/curve.tsv` has, every few minutes and on some `val` faces, for 1,
2, 4, 8 and 16 steps, PSNR, the perceptual distance of `export/losses.py` and the sharpness of the
samples over that of the originals.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from export.data import Face, crops_and_faces, read_square, spread
from export.diffusion import (
    Condition,
    condition_of,
    deafen,
    decode,
    flow_loss,
    only_student,
    sharpness,
)
from export.losses import PerceptualLoss
from export.networks import Codec, codec_from_dict, frozen_codec, merge_bands, split_bands
from export.precision import device, mixed_precision, to_device, use_gpu
from export.training import Run, RunSettings

STEPS = (1, 2, 4, 8, 16)
SIZE = 256  # of validation
SEEDS = 8


@dataclass
class TeacherSettings(RunSettings):
    batch_128: int = 32
    batch_256: int = 8
    large_share: float = 0.5  # of the batches are whole faces at 256
    # times are drawn as sigmoid(normal) (Esser et al., ICML 2024), the normal around this
    time_mean: float = 0.4
    quality: tuple[int, int] = (10, 131)  # in quarter steps
    validate_q: int = 85


class TeacherTrainer(Run[Codec, TeacherSettings]):
    def __init__(self, args: argparse.Namespace, settings: TeacherSettings) -> None:
        super().__init__(args, settings)
        s = self.settings
        self.feed(crops_and_faces(s.batch_128, s.batch_256, s.large_share))

    def build(self, state: dict[str, Any] | None) -> Codec:
        if state is None:
            model = frozen_codec(Path(self.args.codec))
            deafen(model)
        else:
            model = codec_from_dict(state["config"])
            model.load_state_dict(state["model"])
        return only_student(model)

    def config(self) -> dict[str, Any]:
        return self.model.config_dict()

    def loss(self, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        s = self.settings
        image, *_ = self.sampler.next_of_kind()[1]
        bands = split_bands(to_device(image).float())
        count = len(bands)
        self.images += count
        q = to_device(self.rng.integers(s.quality[0], s.quality[1] + 1, count))
        with torch.no_grad():
            condition, _ = condition_of(self.model, bands, q)
        normal = to_device(self.rng.normal(s.time_mean, 1.0, count)).float()
        with mixed_precision():
            loss = flow_loss(
                self.model,
                bands / self.model.g_s.scale,
                condition,
                torch.sigmoid(normal),
                torch.randn_like(bands),
            ).mean()
        return loss, {}

    def validate(self) -> None:
        rows = evaluate(self.ema_model(), self.val, self.args.validate_count, self.settings)
        self.judge(rows, rows[-1][2])


@torch.no_grad()
def coded(codec: Codec, path: Path, q: int) -> tuple[Tensor, Condition]:
    """A face, RGB [1, 3, SIZE, SIZE], and what its file says."""
    image = to_device(read_square(path, SIZE))
    return image, condition_of(codec, split_bands(image), torch.tensor([q]))[0]


def draw(
    codec: Codec,
    c: Condition,
    steps: int,
    *,
    seeds: int = 1,
    first: int = 0,
    realism: float = 1.0,
) -> Tensor:
    """Samples [seeds, 3, SIZE, SIZE] of one file, of the noise of seeds from `first` on."""
    side = SIZE // 4
    seeded = [torch.Generator("cpu").manual_seed(first + seed) for seed in range(seeds)]
    drawn = [torch.randn(1, 48, side, side, generator=own, device="cpu") for own in seeded]
    noise = torch.cat(drawn).to(device())
    dial = torch.full((seeds,), realism)
    return merge_bands(decode(codec, c.repeated(seeds), noise, dial, steps)).clamp(0, 255)


@torch.no_grad()
def evaluate(
    model: Codec, faces: list[Face], count: int, settings: TeacherSettings
) -> list[tuple[float, ...]]:
    """Means over `count` faces: rows (steps, PSNR, perceptual distance, relative sharpness)."""
    perceptual = PerceptualLoss().to(device())
    faces = spread(faces, count)
    rows = []
    for steps in STEPS:
        total = np.zeros(3)
        for index, face in enumerate(faces):
            image, condition = coded(model, face.path, settings.validate_q)
            found = draw(model, condition, steps, first=index)
            mse = float((found.round() - image).square().mean())
            total += [
                10 * np.log10(255**2 / mse),
                float(perceptual(found, image)),
                sharpness(found) / sharpness(image),
            ]
        rows.append((float(steps), *(float(v) for v in total / len(faces))))
    return rows


def write_sheet(path: Path, rows: list[list[Tensor]]) -> None:
    """Pictures [3, SIZE, SIZE] side by side, row by row, as a PNG file."""
    sheet = torch.cat([torch.cat(row, 2) for row in rows], 1)
    picture = sheet.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    cv2.imwrite(str(path), np.ascontiguousarray(picture[:, :, ::-1]))


@torch.no_grad()
def plots(model: Codec, image: Path, faces: list[Face], count: int, folder: Path) -> None:
    """`seeds.png`: what eight seeds draw for one file, and where they differ; `steps.png`, .tsv.

    The last picture of `seeds.png` is the standard deviation of the samples, ten times.
    """
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    original, condition = coded(model, image, TeacherSettings.validate_q)
    samples = draw(model, condition, STEPS[-1], seeds=SEEDS)
    spread = 10 * samples.std(0).mean(0).expand(3, -1, -1)
    pictures = [original[0], *samples, spread]
    write_sheet(folder / "seeds.png", [pictures[:5], pictures[5:]])
    by_steps = [draw(model, condition, steps)[0] for steps in STEPS]
    write_sheet(folder / "steps.png", [[original[0], *by_steps]])
    rows = evaluate(model, faces, count, TeacherSettings())
    names = ("steps", "PSNR", "perceptual distance", "relative sharpness")
    with open(folder / "steps.tsv", "w") as f:
        for row in (names, *(tuple(f"{v:.6g}" for v in row) for row in rows)):
            f.write("\t".join(row) + "\n")
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for axis, name, column in zip(axes, names[1:], list(zip(*rows, strict=True))[1:], strict=True):
        axis.plot(STEPS, column, "o-")
        axis.set(xscale="log", xlabel="steps", title=name)
        axis.set_xticks(STEPS, [str(steps) for steps in STEPS], minor=False)
        axis.minorticks_off()
    figure.savefig(folder / "curves.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", required=True, help="checkpoint of the compressor")
    parser.add_argument("--data", required=True, help="folder with index.csv")
    parser.add_argument("--out", required=True)
    parser.add_argument("--init", help="checkpoint of a teacher to start from")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that cut crops")
    parser.add_argument("--validate-every", type=float, default=15.0, help="minutes")
    parser.add_argument("--validate-count", type=int, default=12)
    parser.add_argument("--set", dest="override", type=json.loads, default={}, help="JSON settings")
    parser.add_argument("--plots", type=Path, help="write pictures here instead of training")
    parser.add_argument("--image", type=Path, help="of which --plots shows samples: a square")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    use_gpu()
    trainer = TeacherTrainer(args, TeacherSettings(**args.override))
    if args.plots:
        if args.image is None:
            parser.error("--plots needs --image")
        plots(trainer.ema_model(), args.image, trainer.val, args.validate_count, args.plots)
    else:
        trainer.run()


if __name__ == "__main__":
    main()
