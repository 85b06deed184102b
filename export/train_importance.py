"""Where the face is, read out of the analysis network: what the residual's bits are worth there.

    python -m export.train_importance RUN/checkpoint.pt OUT/checkpoint.pt --data FACES --minutes 3

The features at H/16 stay as they are; `g_a.near` learns `export.data.nearness` from them, with
squared error. Prints how much of its variance it explains on `val`.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.data import BatchKind, FaceSampler, nearness, read_index, read_square_face, spread
from export.networks import Analysis, codec_from_dict, split_bands
from export.precision import mixed_precision

SIZE = 256
LEARNING_RATE = 3e-3


def expected_near(near: Tensor) -> Tensor:
    """The first map of `nearness`, [B, h, w] at H/4 -> [B, 1, h/4, w/4]."""
    return F.avg_pool2d(near[:, None], 4)


def predicted_near(analysis: Analysis, image: Tensor, *, bf16: bool = True) -> Tensor:
    """The same, as found in images [B, 3, H, W], not clamped; only the head gets a gradient."""
    bands = split_bands(image).contiguous(memory_format=torch.channels_last)
    with mixed_precision(bf16):
        with torch.no_grad():
            features = analysis.features(bands / analysis.scale)
        near: Tensor = analysis.near(features)
    return near.float()


def train(analysis: Analysis, sampler: FaceSampler, seconds: float) -> float:
    """Fit `near`; returns the squared error over the last tenth of the time."""
    head = list(analysis.near.parameters())
    adam = torch.optim.Adam(head, LEARNING_RATE)
    start = time.time()
    errors: list[float] = []
    while (progress := (time.time() - start) / seconds) < 1:
        image, _, _, near = map(torch.from_numpy, sampler.next())
        error = F.mse_loss(predicted_near(analysis, image.float()), expected_near(near[:, 0]))
        adam.zero_grad()
        error.backward()
        adam.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * progress)) / 2
        adam.step()
        if progress > 0.9 or not errors:
            errors.append(float(error.detach()))
    return float(np.mean(errors))


@torch.no_grad()
def explained(analysis: Analysis, root: Path, count: int) -> float:
    """Share of the variance that is explained on `val` faces at 256x256, clamped."""
    found, expected = [], []
    for face in spread(read_index(root, "val"), count):
        picture, points = read_square_face(face, SIZE)
        image = torch.from_numpy(picture)
        found.append(predicted_near(analysis, image, bf16=False).clamp(0, 1).flatten())
        expected.append(expected_near(torch.from_numpy(nearness(points, SIZE))[:1]).flatten())
    a, b = torch.cat(found), torch.cat(expected)
    return float(1 - (a - b).square().mean() / b.var())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=24, help="crops of 128; of 256 a quarter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=60, help="val faces to report on")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(13)
    state: dict[str, Any] = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    codec = codec_from_dict(state["config"])
    codec.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    kinds = [
        BatchKind(128, args.batch, 0.35, 0.5),
        BatchKind(256, max(1, args.batch // 4), 0.85, 0.5),
    ]
    sampler = FaceSampler(read_index(args.data, "train"), 13, kinds)
    error = train(codec.g_a, sampler, 60 * args.minutes)
    print(f"squared error {error:.4f}; explained: ", end="", flush=True)
    print(f"{explained(codec.g_a, args.data, args.count):.3f} of the variance on val")
    found = {k: v for k, v in codec.state_dict().items() if k.startswith("g_a.near.")}
    weights = {key: {**state[key], **found} for key in ("model", "ema")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state, **weights}, args.out)


if __name__ == "__main__":
    main()
