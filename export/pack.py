"""Shrink a checkpoint to what a training can start again from: EMA weights in float16, the record.

    python -m export.pack RUN/checkpoint.pt export/checkpoints/edge.pt

`export.train --init` reads it: the optimisers start afresh behind a warm-up. The weights of the
entropy model and the ranges of INT8 stay float32, since rounding them twice could move an integer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from export.training import rewrite

RANGES = "log2_step"  # of an ActivationQuantiser


def pack(state: dict[str, Any]) -> dict[str, Any]:
    """The packed state; `model` and `ema` share their tensors."""
    weights = {
        name: value if name.startswith("entropy.") or name.endswith(RANGES) else value.half()
        for name, value in state["ema"].items()
    }
    kept = {key: state[key] for key in ("config", "settings", "elapsed", "step", "images")}
    return {**kept, "model": weights, "ema": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rewrite(args.checkpoint, args.out, pack)
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
