"""Where the bytes go, and what each pass of the entropy model saves.

    python -m export.report_parts CHECKPOINT --data FACES

For each quality: mean bytes of header, s, z and the passes of y over some `val` faces at 256x256,
and how much more a part would cost if what its networks see of something were taken away: later
passes of a group predicted by the network of its first one; z without s; y without z and s; later
channel groups without the first. The networks were trained with what is taken away here, so that
the last three are upper bounds of what a part buys (an ablation trained anew tells what it is
worth). Prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

from export.data import HEADER_BYTES, Face, read_index, read_square, spread
from export.integer_entropy import NUM_PLANES, EntropyModel, IntegerConv2d
from export.networks import Codec, split_bands
from export.to_onnx import load_codec

SIZE = 256


def poorer_models(model: EntropyModel) -> dict[str, tuple[EntropyModel, list[str]]]:
    """What is taken away -> a copy of the model that does without it, and the parts to compare."""
    c = model.config
    found = {}

    def poorer(name: str, parts: list[str]) -> EntropyModel:
        found[name] = (copy.deepcopy(model), parts)
        return found[name][0]

    names = [f"y{p}" for p in range(len(model.passes))]
    blind = poorer("z by its neighbours", ["z"])
    first(blind.z_passes[1]).weight[:, NUM_PLANES + c.num_s :] = 0
    number = 0
    for size, scan in zip(c.group_sizes, c.group_scans, strict=True):
        for step in range(1, scan):
            blind = poorer(f"{names[number + step]} by its neighbours", [names[number + step]])
            start = copy.deepcopy(model.passes[number])
            weight = first(start).weight
            padding = weight.new_zeros(weight.shape[0], size, *weight.shape[2:])
            first(start).weight = nn.Parameter(torch.cat([weight, padding], 1))
            blind.passes[number + step] = start
        number += scan
    blind = poorer("z by s", ["z"])
    for net in blind.z_passes:
        first(net).weight[:, NUM_PLANES : NUM_PLANES + c.num_s] = 0
    blind = poorer("y by z and s", names)
    first(blind.h_s_z).weight.zero_()
    blind = poorer("later groups by the first", names[c.group_scans[0] :])
    for net in blind.passes[c.group_scans[0] :]:
        first(net).weight[:, c.num_features : c.num_features + c.group_sizes[0]] = 0
    return found


def first(net: nn.Module) -> IntegerConv2d:
    layer = next(net.children())
    assert isinstance(layer, IntegerConv2d)
    return layer


@torch.no_grad()
def report(codec: Codec, faces: list[Face], qualities: list[float]) -> list[dict[str, str]]:
    """One row per quality; all figures are mean bytes."""
    e = codec.entropy
    poorer = poorer_models(e)
    rows = []
    for quality in qualities:
        q = torch.tensor([round(4 * quality)])
        sums: dict[str, float] = {}

        def add(name: str, bits: float, sums: dict[str, float] = sums) -> None:
            sums[name] = sums.get(name, 0.0) + bits / 8 / len(faces)

        for face in faces:
            latents = codec.latents(split_bands(torch.from_numpy(read_square(face.path, SIZE))))
            parts = {name: float(bits) for name, bits in e.bits(*e.code(*latents, q)).items()}
            for name, bits in parts.items():
                add(name, bits)
            for name, (model, compared) in poorer.items():
                poor = model.bits(*model.code(*latents, q))
                add(name, sum(float(poor[part]) - parts[part] for part in compared))
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
    faces = spread(read_index(args.data, "val"), args.count)
    rows = report(codec, faces, [float(v) for v in args.qualities.split(",")])
    print(f"Mean bytes over {len(faces)} faces of val at {SIZE}x{SIZE}\n")
    print("| part | " + " | ".join(f"quality {row['quality']}" for row in rows) + " |")
    print("|---" * (len(rows) + 1) + "|")
    for name in list(rows[0])[1:]:
        print(f"| {name} | " + " | ".join(row[name] for row in rows) + " |")


if __name__ == "__main__":
    main()
