"""A checkpoint without a part of the codec, to be trained on beside the whole one.

    python -m export.ablate RUN/checkpoint.pt gate OUT/checkpoint.pt
    python -m export.train --out OUT ... (and the same from RUN)

`gate`: the gated branches become one convolution over all bands, which starts as the same two
branches and could learn anything that they can; `semantics`: s is zero before it is coded, so that
it tells nothing (the bits that its prior asks for a zero are still counted).
Optimisers start afresh, as they must in a run to compare with.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.networks import LOW, NUM_BANDS

PARTS = ("gate", "semantics", "nothing")


def without_gate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of one plain convolution in place of the branches, the gate half open."""
    low, high = state["g_a.low.weight"], state["g_a.high.weight"]
    weight = low.new_zeros(len(low) + len(high), NUM_BANDS, *low.shape[2:])
    weight[: len(low), :LOW] = low
    weight[len(low) :, LOW:] = 0.5 * high
    bias = torch.cat([state["g_a.low.bias"], 0.5 * state["g_a.high.bias"]])
    branches = ("g_a.low.", "g_a.high.", "g_a.gate.")
    kept = {k: v for k, v in state.items() if not k.startswith(branches)}
    return {**kept, "g_a.plain.weight": weight, "g_a.plain.bias": bias}


def ablate(checkpoint: dict[str, Any], part: str) -> dict[str, Any]:
    """The checkpoint without `part`, one of PARTS, and without optimiser states."""
    found = {k: v for k, v in checkpoint.items() if k not in ("muon", "adam")}
    if part == "gate":
        found["config"] = {**found["config"], "gated": False}
        found["model"] = without_gate(found["model"])
        found["ema"] = without_gate(found["ema"])
    if part == "semantics":
        found["config"] = {**found["config"], "semantics": False}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(ablate(state, args.part), args.out)


if __name__ == "__main__":
    main()
