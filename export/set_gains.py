"""Set what training does not learn of the qualities: where the residual starts, and its gains.

    python -m export.set_gains RUN/checkpoint.pt OUT/checkpoint.pt --start 28 \\
        --residual -7.2 -5.0 -4.27 -3.65 -2.95 -2.25 --low -10.5 2.75 14.25

The residual's gains are the same for all of its coefficients. They and the start decide how bytes
grow from one quarter step to the next, which `max_bytes` lives by, and are chosen by measuring
files. `--low` gives y and z at the first qualities the gains that they had elsewhere, on a line
beyond the ends: quality 0 may then be coarser or finer than it was in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export.integer_entropy import KNOTS, NUM_Q, gains_at
from export.training import rewrite


def set_gains(
    state: dict[str, Any],
    *,
    start: float | None = None,
    residual: Sequence[float] = (),
    low: Sequence[float] = (),
) -> dict[str, Any]:
    """A training checkpoint with other gains; its optimisers start afresh.

    Args:
      start: first quality with a residual, in quarter steps of 0.25.
      residual: log2 gains at the last knots of the quality, every 7.875 up to 63.
      low: qualities whose gains y and z get at the first knots.
    Raises:
      ValueError: a start that is no quarter step, or more gains than knots.
    """
    if max(len(residual), len(low)) > KNOTS:
        raise ValueError(f"there are {KNOTS} knots: {len(residual)} and {len(low)} gains given")
    config = {**state["config"], "entropy": {**state["config"]["entropy"]}}
    if start is not None:
        first = round(4 * start)
        if first != 4 * start or not 0 < first < NUM_Q:
            raise ValueError(f"start must be a quarter step of 0 to 63, got {start}")
        starts = config["entropy"]["residual_starts"]
        config["entropy"]["residual_starts"] = [first] * len(starts)
    weights = dict(state["ema"])
    if residual:
        name = "entropy.residual_gains.log2_gain"
        gains = weights[name].clone()
        gains[KNOTS - len(residual) :] = torch.tensor(residual).to(gains)[:, None]
        weights[name] = gains
    for latent in ("y", "z"):
        name = f"entropy.{latent}_gains.log2_gain"
        found = gains_at(weights[name], 4 * torch.tensor(low))
        weights[name] = torch.cat([found, weights[name][len(low) :]])
    kept = {k: v for k, v in state.items() if k not in ("muon", "adam", "best", "extra")}
    return {**kept, "config": config, "model": weights, "ema": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=float, help="first quality with a residual")
    parser.add_argument("--residual", type=float, nargs="+", default=(), help="at the last knots")
    parser.add_argument("--low", type=float, nargs="+", default=(), help="for the first knots")
    args = parser.parse_args()
    gains = {"start": args.start, "residual": args.residual, "low": args.low}
    rewrite(args.checkpoint, args.out, lambda state: set_gains(state, **gains))


if __name__ == "__main__":
    main()
