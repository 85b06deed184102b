"""The residual: a transform from what the student leaves, networks that predict its outcome.

    python -m export.train_residual RUN/checkpoint.pt OUT/checkpoint.pt --data FACES --minutes 8

The base stays as it is, and is coded once for all crops that are learnt from. The transform is
that of the principal components of what it leaves of them, at the quality from which residuals are
coded; then the residual's networks learn to predict scales and means from the base and from each
other, at all qualities above. Prints what the residual is worth on some `val` faces, and what it
would be without its gate: with every coefficient rounded to the nearest step, whatever the energy
around it.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.data import HEADER_BYTES, BatchKind, Face, FaceSampler, read_index, read_square
from export.integer_entropy import KNOTS, NUM_Q, IntegerConv2d
from export.networks import NUM_BANDS, UNIT, Codec, codec_from_dict, price_at, split_bands
from export.training import ADAM_SCALE, parameter_kind

GREY = 127.5 / UNIT  # grey levels in a unit of the residual's coefficients
CROPS_AT_ONCE = 8


class Bases(NamedTuple):
    """Crops of 256x256 pixels whose base is coded: [N, ...], small types, for there are many.

    Attributes:
      known: what the residual's networks see of it, int8; left: its error, as bands, float16.
      price: of the bits.
    """

    known: Tensor
    left: Tensor
    price: Tensor


@torch.no_grad()
def code_bases(codec: Codec, faces: list[Face], count: int) -> Bases:
    """`count` random crops."""
    sampler = FaceSampler(faces, 7, [BatchKind(256, CROPS_AT_ONCE, 0.7, 1.0)])
    found = []
    for _ in range(math.ceil(count / CROPS_AT_ONCE)):
        base = codec.base(split_bands(torch.from_numpy(sampler.next()[0]).float()))
        known = codec.entropy.known_of(base.coded)
        found.append((known.to(torch.int8), base.left.half(), base.price))
    return Bases(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@torch.no_grad()
def find_transform(codec: Codec, bases: Bases) -> float:
    """Set the transform; returns the share of the residuals' energy that it holds."""
    size = 4 * NUM_BANDS
    total = torch.zeros(size, size)
    for left in bases.left.split(CROPS_AT_ONCE):
        blocks = F.pixel_unshuffle(left.float(), 2).permute(0, 2, 3, 1).reshape(-1, size)
        total += blocks.T @ blocks
    values, vectors = torch.linalg.eigh(total)
    kept = codec.residual.components
    basis = vectors.T.flip(0)[:kept].reshape(kept, NUM_BANDS, 2, 2)
    for matrix in (codec.residual.analysis, codec.residual.synthesis):
        matrix.copy_(basis)
    return float(values.flip(0)[:kept].sum() / values.sum())


def set_gains(codec: Codec, steps: tuple[float, float]) -> None:
    """One step for all coefficients, in grey levels at `residual_from` and at quality 63."""
    first = codec.entropy.config.residual_from
    low, high = (np.log2(GREY / step) for step in steps)
    knots = np.linspace(0, NUM_Q - 1, KNOTS)
    along = low + (high - low) * (knots - first) / (NUM_Q - 1 - first)
    gains = codec.entropy.residual_gains.log2_gain
    with torch.no_grad():
        gains.copy_(torch.from_numpy(along).float()[:, None].expand_as(gains))


def train(codec: Codec, bases: Bases, minutes: float, batch: int, rate: float) -> None:
    """Fit `entropy.residual_passes`."""
    e = codec.entropy
    outputs = {n for n, m in codec.named_modules() if isinstance(m, IntegerConv2d) and m.lo < 0}
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in ADAM_SCALE}
    for name, p in codec.named_parameters():
        if name.startswith("entropy.residual_passes."):
            groups[parameter_kind(name, p, outputs)].append(p)
    fitted = [p for group in groups.values() for p in group]
    scales = [ADAM_SCALE[kind] for kind, group in groups.items() if group]
    adam = torch.optim.AdamW([{"params": g} for g in groups.values() if g], weight_decay=0.0)
    rng = np.random.default_rng(7)
    first = e.config.residual_from
    start, step, sums = time.time(), 0, []
    while (progress := (time.time() - start) / (60 * minutes)) < 1:
        drawn = torch.from_numpy(rng.integers(0, len(bases.left), batch))
        residual = codec.residual(bases.left[drawn].float())
        q = torch.from_numpy(rng.integers(first, NUM_Q, batch))
        e.train()
        known, price = bases.known[drawn].float(), price_at(bases.price[drawn], q, first)
        coded = e.code_after(known, residual, q, price=price)
        loss = coded.bits.sum() / residual[:, 0].numel() / 256  # bits per pixel
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(fitted, 1.0)
        for group, scale in zip(adam.param_groups, scales, strict=True):
            group["lr"] = rate * scale * min(1.0, (step + 1) / 30) * (1 - progress)
        adam.step()
        step += 1
        sums.append(float(loss.detach()))
        if step % 25 == 0:
            print(f"{time.time() - start:6.0f} s step {step} bpp {np.mean(sums):.4f}", flush=True)
            sums = []
    e.eval()


@torch.no_grad()
def measure(
    codec: Codec, faces: list[Face], qualities: list[int], price: float | None = None
) -> list[tuple[float, float]]:
    """(bytes, PSNR) of files with a residual, means over whole `faces` at 256x256.

    Bytes are the entropy model's estimate with the header; realism 0.

    Args:
      qualities: in quarter steps, at least `residual_from`.
      price: in place of the codec's; 0 rounds every coefficient.
    """
    e = codec.entropy
    e.eval()
    sums = np.zeros((len(qualities), 2))
    for face in faces:
        bands = split_bands(torch.from_numpy(read_square(face.path, 256)))
        base = codec.base(bands)
        parts = sum(float(part.bits.sum()) for part in base.coded)
        for row, q in zip(sums, map(torch.tensor, ([q] for q in qualities)), strict=True):
            out, bits = codec.refine(base, q, price=price)
            row[0] += (parts + float(bits)) / 8 + HEADER_BYTES
            row[1] += 10 * float(torch.log10(4 / (out - bands).square().mean()))  # -1..1
    return [(float(size), float(psnr)) for size, psnr in sums / len(faces)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.2e-3, help="of learning, at the start")
    parser.add_argument("--crops", type=int, default=1200, help="of training faces, to learn from")
    parser.add_argument("--steps", type=float, nargs=2, default=(220.0, 16.0), help="grey levels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=16, help="val faces to report on")
    parser.add_argument("--keep-transform", action="store_true", help="and steps of the checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(7)
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    codec = codec_from_dict(state["config"])
    codec.load_state_dict(state["ema"])
    codec.requires_grad_(False)
    codec.entropy.residual_passes.requires_grad_(True)
    bases = code_bases(codec, read_index(args.data, "train"), args.crops)
    if not args.keep_transform:
        share = find_transform(codec, bases)
        print(f"the transform holds {100 * share:.1f} % of the residuals", flush=True)
        set_gains(codec, tuple(args.steps))
    train(codec, bases, args.minutes, args.batch, args.rate)
    val = read_index(args.data, "val")
    val = val[:: len(val) // args.count][: args.count]
    first = codec.entropy.config.residual_from
    qualities = [first, first + 10, first + 20, first + 40, first + 60, NUM_Q - 1]
    print("| quality | bytes | PSNR | bytes, every coefficient rounded | PSNR |")
    print("|---|---|---|---|---|")
    rows = zip(measure(codec, val, qualities), measure(codec, val, qualities, 0.0), strict=True)
    for q, ((size, psnr), (rounded, with_all)) in zip(qualities, rows, strict=True):
        print(f"| {q / 4} | {size:.0f} | {psnr:.2f} | {rounded:.0f} | {with_all:.2f} |")
    found = codec.state_dict()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**state, "model": {**state["model"], **chosen(found)}, "ema": found}, args.out)


def chosen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was fitted here."""
    return {k: v for k, v in state.items() if "residual" in k}


if __name__ == "__main__":
    main()
