"""A checkpoint without a part of the codec, to be trained on beside the whole one.

    python -m export.ablate RUN/checkpoint.pt semantics OUT/checkpoint.pt
    python -m export.train --out OUT ... (and the same from RUN)

`semantics`: s is zero before it is coded, so that it tells nothing (the bits that its prior asks
for a zero are still counted). What the residual and its gate
buy, `export/train_residual.py` prints.
Optimisers start afresh, as they must in a run to compare with.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from export.training import rewrite

PARTS = ("semantics", "nothing")


def ablate(checkpoint: dict[str, Any], part: str) -> dict[str, Any]:
    """The checkpoint without `part`, one of PARTS, and without optimiser states."""
    found = {k: v for k, v in checkpoint.items() if k not in ("muon", "adam")}
    if part == "semantics":
        found["config"] = {**found["config"], "semantics": False}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rewrite(args.checkpoint, args.out, lambda state: ablate(state, args.part))


if __name__ == "__main__":
    main()
