"""The gallery: one face at several sizes, realisms and numbers of steps, beside AVIF.

Writes `astronaut.png`, a row a budget, and `steps.png`, a row a number of steps, into --output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data

from fasdiff_edge import Decoder, Encoder, FasdiffError, contact_sheet
from fasdiff_edge.contact_sheet import Cell, Row
from fasdiff_edge.imaging import Image, write_picture
from fasdiff_edge.peers import fit, psnr, standard_peers

BUDGETS = (250, 500, 1000, 2000)
REALISMS = (0.0, 0.5, 1.0)
STEPS = (1, 2, 4)
FRAME = (256, 96, 0)  # side, x and y in pixels of the square around the astronaut's head


def astronaut() -> Image:
    """Head and shoulders of scikit-image's astronaut (NASA, public domain); uint8 RGB 256 x 256."""
    side, x, y = FRAME
    picture: Callable[[], Image] = skimage.data.astronaut
    return np.ascontiguousarray(picture()[y : y + side, x : x + side])


def cell(original: Image, image: Image, title: str) -> Cell:
    return Cell(image, title, f"{psnr(original, image):.2f} dB")


def by_budget(original: Image) -> list[Row]:
    """A row a budget: the original, ours by realism in one step, AVIF."""
    encoder = Encoder()
    decoders = {realism: Decoder(realism=realism) for realism in REALISMS}
    (avif,) = (peer for peer in standard_peers() if peer.name == "AVIF")
    rows = []
    for budget, peer in zip(BUDGETS, fit(avif, original, BUDGETS), strict=True):
        data = encoder.encode(original, max_bytes=budget)
        cells = [Cell(original, "original", f"{original.shape[1]} x {original.shape[0]}")]
        for realism, decoder in decoders.items():
            title = f"realism {realism:g}, {len(data)} bytes"
            cells.append(cell(original, decoder.decode(data), title))
        cells.append(cell(original, peer.image, f"AVIF, {len(peer.data)} bytes"))
        rows.append(Row(f"{budget} bytes", cells))
    return rows


def by_steps(original: Image) -> list[Row]:
    """A row a number of steps: by budget, at realism 1."""
    encoder = Encoder()
    files = [encoder.encode(original, max_bytes=budget) for budget in BUDGETS]
    rows = []
    for steps in STEPS:
        decoder = Decoder(num_steps=steps)
        cells = [cell(original, decoder.decode(f), f"{len(f)} bytes") for f in files]
        rows.append(Row(f"{steps} step{'s' if steps > 1 else ''}, realism 1", cells))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    original = astronaut()
    for name, rows in (("astronaut", by_budget(original)), ("steps", by_steps(original))):
        path = args.output / f"{name}.png"
        path.write_bytes(write_picture(contact_sheet.draw(rows), ".png"))
        print(path)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FasdiffError, OSError) as error:
        sys.exit(f"gallery: {error}")
