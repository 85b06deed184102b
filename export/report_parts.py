"""Where the bytes go, and what each pass of the entropy model saves.

    python -m export.report_parts CHECKPOINT --data FACES

For each quality: mean bytes of header, s, z and the passes of y over some `val` faces at 256x256,
and how much more the same symbols would cost under poorer predictions of the same model:
later passes of a group predicted as if they were its first; z without s; y without z and s; later
channel groups without the first. The networks were trained with what is taken away here,
so that the last three are upper bounds of what a part buys (an ablation trained anew tells
what it is worth). Prints Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from export.data import Face, read_index, read_square
from export.integer_entropy import EntropyModel, Prediction, lattices, symbol_bits
from export.networks import Codec, split_bands
from export.to_onnx import load_codec

HEADER_BYTES = 12
SIZE = 256


def without_neighbours(
    model: EntropyModel, s: Tensor, z: Tensor, y: Tensor, q: Tensor
) -> dict[str, float]:
    """Bits of z and of each later pass of y, predicted by the first pass of their group."""
    hy, wy = y.shape[2:]
    s_context = model.context(s, model.s_gains.at(q, 0))
    known = model.z_known(s_context, q, hy, wy, *z.shape[2:])
    mean, scale = model.z_passes[0](known).chunk(2, 1)
    p = Prediction.of(mean, scale, model.z_gains.at(q, 2))
    found = {"z": float(symbol_bits(z, p.m4, p.k).sum())}
    f = model.features(s_context, z, q, hy, wy)
    gains = model.y_gains.at(q, 2)
    ctx = model.context(y, gains)
    done = number = 0
    for size, scan in zip(model.config.group_sizes, model.config.group_scans, strict=True):
        group = slice(done, done + size)
        out = model.passes[number](torch.cat([f, ctx[:, :done]], 1))
        mean, scale = out.chunk(2, 1)
        p = Prediction.of(mean, scale, gains[:, group])
        bits = symbol_bits(y[:, group], p.m4, p.k)
        for step, lattice in enumerate(lattices(scan, hy, wy)):
            if step:
                found[f"y{number}"] = float((bits * lattice).sum())
            number += 1
        done += size
    return found


@torch.no_grad()
def report(codec: Codec, faces: list[Face], qualities: list[float]) -> list[dict[str, str]]:
    """One row per quality; all figures are mean bytes."""
    e = codec.entropy
    rows = []
    for quality in qualities:
        q = torch.tensor([round(4 * quality)])
        sums: dict[str, float] = {}

        def add(name: str, bits: float, sums: dict[str, float] = sums) -> None:
            sums[name] = sums.get(name, 0.0) + bits / 8 / len(faces)

        for face in faces:
            bands = split_bands(torch.from_numpy(read_square(face, SIZE)))
            s, z, y = codec.symbols(bands, q)
            parts = {name: float(bits) for name, bits in e.bits(s, z, y, q).items()}
            for name, bits in parts.items():
                add(name, bits)
            for name, bits in without_neighbours(e, s, z, y, q).items():
                add(f"{name} by its neighbours", bits - parts[name])
            mute = torch.zeros_like(s)
            add("z by s", float(e.bits(mute, z, y, q)["z"]) - parts["z"])
            without = e.bits(mute, torch.zeros_like(z), y, q)
            y_bits = sum(bits for name, bits in parts.items() if name.startswith("y"))
            poorer = sum(float(b) for name, b in without.items() if name.startswith("y"))
            add("y by z and s", poorer - y_bits)
            first = torch.zeros_like(y[:, : e.config.group_sizes[0]])
            blind = torch.cat([first, y[:, e.config.group_sizes[0] :]], 1)
            later = [f"y{p}" for p in range(e.config.group_scans[0], len(e.passes))]
            poor = e.bits(s, z, blind, q)
            add("later groups by the first", sum(float(poor[n]) - parts[n] for n in later))
        size = HEADER_BYTES + sum(
            sums[n] for n in ("s", "z", *(f"y{p}" for p in range(len(e.passes))))
        )
        row = {"quality": f"{quality:g}", "bytes": f"{size:.0f}", "header": str(HEADER_BYTES)}
        row |= {
            (f"saved: {name}" if " by " in name else name): f"{value:.1f}"
            for name, value in sums.items()
        }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv")
    parser.add_argument("--count", type=int, default=20, help="faces")
    parser.add_argument("--qualities", default="4,12,20,28,40,63")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec, _ = load_codec(args.checkpoint)
    faces = read_index(args.data, "val")
    faces = faces[:: max(1, len(faces) // args.count)][: args.count]
    rows = report(codec, faces, [float(v) for v in args.qualities.split(",")])
    print(f"Mean bytes over {len(faces)} faces of val at {SIZE}x{SIZE}\n")
    print("| part | " + " | ".join(f"quality {row['quality']}" for row in rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    for name in list(rows[0])[1:]:
        print(f"| {name} | " + " | ".join(row[name] for row in rows) + " |")


if __name__ == "__main__":
    main()
