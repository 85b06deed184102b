"""Where in a face a recogniser minds this codec's errors: what `face_weight` of training rests on.

    python -m export.report_sensitivity CHECKPOINT --data FACES --weights HELPERS

The error of a decoded face is undone around one spot at a time. How much of the squared distance
between the embeddings of decoded face and original goes with it, divided by the share of the
squared error that was undone, is the spot's sensitivity: 1 where an error matters as much as on
average. MobileFaceNet, of training, on training faces; reports judge by another network, on other
faces. Prints Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.data import Face, gaussians, read_index, read_square_face, spread
from export.losses import IdentityLoss, sampling_theta
from export.networks import Codec, merge_bands, split_bands
from export.to_onnx import load_codec

SIZE = 256
WIDTH = 0.2  # standard deviation of a spot, in interocular distances
QUALITY = 62  # in quarter steps; some 300 bytes


def spots(points: np.ndarray) -> dict[str, np.ndarray]:
    """Places (x, y) in a face, by its five landmarks [5, 2]."""
    left, right, nose, mouth_left, mouth_right = points
    along = right - left
    down = np.array([-along[1], along[0]])
    between, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    return {
        "left eye": left,
        "right eye": right,
        "between the eyes": between,
        "bridge of the nose": (between + nose) / 2,
        "tip of the nose": nose,
        "under the nose": (nose + mouth) / 2,
        "left corner of the mouth": mouth_left,
        "right corner of the mouth": mouth_right,
        "middle of the mouth": mouth,
        "left brow": left - 0.3 * down,
        "right brow": right - 0.3 * down,
        "forehead": between - 0.8 * down,
        "left cheek": (left + mouth_left) / 2 - 0.25 * along,
        "right cheek": (right + mouth_right) / 2 + 0.25 * along,
        "chin": mouth + 0.55 * down,
        "left jaw": mouth_left - 0.45 * along + 0.2 * down,
        "right jaw": mouth_right + 0.45 * along + 0.2 * down,
    }


@torch.no_grad()
def undone(codec: Codec, identity: IdentityLoss, face: Face) -> dict[str, tuple[float, float]]:
    """Of each spot: share of the squared error, and of the squared distance, that it holds."""
    picture, points = read_square_face(face, SIZE)
    theta = torch.from_numpy(sampling_theta(points, SIZE, SIZE))[None]
    light = torch.ones(1, 3, 1, 1), torch.ones(1, 1, 1, 1)

    def embedding(picture: Tensor) -> Tensor:
        return identity.embed(picture, theta, light)[0]

    image = torch.from_numpy(picture)
    bands = split_bands(image)
    nothing = torch.zeros_like(bands)
    decoded, _ = codec(bands, torch.tensor([QUALITY]), torch.zeros(1), nothing, bf16=False)
    error = bands - decoded
    original = embedding(image)
    before = float((embedding(merge_bands(decoded)) - original).square().sum())
    sigma = WIDTH * float(np.hypot(*(points[1] - points[0])))
    found = {}
    for name, spot in spots(points).items():
        window = torch.from_numpy(gaussians(spot[None], sigma, SIZE))
        after = embedding(merge_bands(decoded + error * window))
        left = float((error * (1 - window)).square().sum() / error.square().sum())
        found[name] = 1 - left, 1 - float((after - original).square().sum()) / before
    return found


def sensitivities(
    codec: Codec, identity: IdentityLoss, faces: list[Face]
) -> dict[str, tuple[float, float]]:
    """Of each spot: mean share of the squared error, and sensitivity."""
    found = [undone(codec, identity, face) for face in faces]
    means = {name: np.mean([of_face[name] for of_face in found], 0) for name in found[0]}
    return {name: (float(error), float(seen / error)) for name, (error, seen) in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True, type=Path, help="folder with index.csv")
    parser.add_argument("--weights", required=True, type=Path, help="with mobilefacenet.onnx")
    parser.add_argument("--count", type=int, default=40, help="faces")
    args = parser.parse_args()
    faces = [face for face in read_index(args.data, "train") if face.source == "fairface"]
    faces = spread(faces, args.count)
    identity = IdentityLoss(args.weights / "mobilefacenet.onnx")
    print("| spot | share of the squared error | sensitivity |\n| :-- | --: | --: |")
    for name, row in sensitivities(load_codec(args.checkpoint)[0], identity, faces).items():
        print(f"| {name} | {100 * row[0]:.1f} % | {row[1]:.2f} |")


if __name__ == "__main__":
    main()
