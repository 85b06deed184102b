"""Fit what the search for a byte budget expects of latents, before anything is coded.

    python -m export.fit_rate RUN/checkpoint.pt MODEL --data FACES

Writes `rate` into the manifest of a model directory: bytes as a sum over channels of
w_c sum log2(1 + (scale v / step)^2), with constants for a file and for a position, for the base and
for what a residual adds, there with one weight for all (`fasdiff_edge.rate.RatePrior`). Least
squares of the error relative to the whole file, on training faces of 256x256 and, of the sources
that have them, 512x512 pixels; the scale is the best of a few. It moves where the encoder starts to
look, and nothing else: files stay what they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.data import Face, read_index, read_square, spread
from export.integer_entropy import NUM_Q
from export.networks import Codec, split_bands
from export.to_onnx import load_codec

SCALES = {"base": (1.0, 2.0, 3.0, 4.0, 8.0), "residual": (0.25, 0.5, 1.0, 2.0, 3.0)}
LARGE_SOURCES = ("london", "congress")  # of portraits that have 512 pixels, or nearly
EACH = 3  # qualities of an image, of bases and of residuals
RIDGE = 0.03
RARE = 0.1  # a channel that varies less, beside the liveliest, is held back as if it varied so
CONSTANTS = 2


def octaves(ratio: Tensor, scale: float) -> Tensor:
    """sum log2(1 + (scale v / step)^2) of each channel, [1, C]; of v / step, [1, C, h, w]."""
    return torch.log2(1 + (scale * ratio).square()).sum((2, 3))


def fit(features: np.ndarray, size: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of features [N, C + CONSTANTS], in bytes, and by how much they are off, [N].

    Args:
      size: bytes [N]; whole: of the file, which errors are relative to.
    """
    relative = features / whole[:, None]
    spread = relative.std(0)
    spread = np.maximum(spread, RARE * spread[:-CONSTANTS].max())
    scaled = relative / spread
    held = np.ones(features.shape[1])
    held[-CONSTANTS:] = 0
    ridge = np.diag(RIDGE * np.sqrt(len(size)) * held)
    weights = np.linalg.solve(scaled.T @ scaled + ridge, scaled.T @ (size / whole)) / spread
    return weights, (features @ weights - size) / whole


def images(faces: list[Face], count: int, large: int) -> Iterator[Tensor]:
    """`count` faces at 256x256 and `large` at 512x512, [1, 3, N, N]."""
    portraits = [face for face in faces if face.source in LARGE_SOURCES]
    for size, some in ((256, spread(faces, count)), (512, spread(portraits, large))):
        for face in some:
            yield torch.from_numpy(read_square(face.path, size))


Rows = dict[tuple[str, float], list[Tensor]]


@torch.no_grad()
def measure(codec: Codec, pictures: Iterator[Tensor]) -> Rows:
    """By part and scale, rows of features, bytes, and those of the whole file."""
    e = codec.entropy
    first = e.config.residual_from
    found: Rows = {(part, scale): [] for part, scales in SCALES.items() for scale in scales}

    def add(part: str, ratio: Tensor, size: Tensor, whole: Tensor) -> None:
        ends = torch.stack([torch.ones(1), torch.full((1,), ratio[0, 0].numel()), size, whole], 1)
        for scale in SCALES[part]:
            of_channels = octaves(ratio, scale)
            if part == "residual":
                of_channels = of_channels.sum(1, keepdim=True)
            found[part, scale].append(torch.cat([of_channels, ends], 1))

    for picture in pictures:
        bands = split_bands(picture)
        latents = codec.latents(bands)
        for q in torch.randint(0, first, (EACH, 1)):
            size = e.total_bits(*e.code(*latents, q)) / 8
            add("base", latents[2] / e.step(e.y_gains.at(q, 2)), size, size)
        base = codec.base(bands, bf16=False)
        residual = codec.residual(base.left)
        for q in torch.randint(first, NUM_Q, (EACH, 1)):
            size = codec.code_left(base, q)[1] / 8
            ratio = residual / e.step(e.residual_gains.at(q, 2))
            add("residual", ratio, size, size + e.total_bits(*base.coded) / 8)
    return found


def fit_rate(rows: Rows) -> dict[str, Any]:
    """The manifest's `rate`; prints how far it is off, in files."""
    rate: dict[str, Any] = {}
    least: dict[str, float] = {}
    for (part, scale), table in rows.items():
        *columns, size, whole = torch.cat(table).double().numpy().T
        weights, off = fit(np.stack(columns, 1), size, whole)
        print(f"{part}, scale {scale}: {len(size)} codings, {off.mean():+.3f} +- {off.std():.3f}")
        if off.std() < least.get(part, np.inf):
            least[part] = float(off.std())
            *of_channels, constant, of_position = (float(w) for w in weights)
            rate[part] = {
                "weights": [round(w, 4) for w in of_channels],
                "constant": round(constant, 2),
                "per_position": round(of_position, 4),
                "scale": scale,
            }
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="the model directory")
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv")
    parser.add_argument("--count", type=int, default=600, help="faces of 256x256 pixels")
    parser.add_argument("--large", type=int, default=150, help="and of 512x512")
    args = parser.parse_args()
    torch.manual_seed(7)
    codec, _ = load_codec(args.checkpoint)
    faces = read_index(args.data, "train")
    path = args.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["rate"] = fit_rate(measure(codec, images(faces, args.count, args.large)))
    path.write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
