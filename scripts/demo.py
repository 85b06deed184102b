"""The demo: one face at 300, 600 and 1200 bytes, beside what other codecs make of it.

Every step is the installed command `fasdiff` in a process of its own, so what is decoded knows
nothing but the files. Writes the files, the decoded pictures and `contact_sheet.png`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data

from fasdiff_edge import FasdiffError, contact_sheet
from fasdiff_edge.imaging import Image, read_picture, write_picture

BUDGETS = (300, 600, 1200)
FACE = (176, 136, 20)  # side, x and y in pixels of the square around the astronaut's face


def astronaut_face() -> Image:
    """The face region of scikit-image's astronaut (NASA, public domain); uint8 RGB 176 x 176."""
    side, x, y = FACE
    astronaut: Callable[[], Image] = skimage.data.astronaut
    picture = astronaut()
    return np.ascontiguousarray(picture[y : y + side, x : x + side])


def run_fasdiff(*arguments: str) -> None:
    """Run the command in a new process; its error line is already on stderr if it fails."""
    subprocess.run([Path(sysconfig.get_path("scripts"), "fasdiff"), *arguments], check=True)


def encode(source: Path, folder: Path) -> list[Path]:
    """Encode at every budget; returns the files."""
    files = []
    for budget in BUDGETS:
        file = folder / f"face_{budget}.fsd"
        run_fasdiff("encode", str(source), str(file), "--max-bytes", str(budget))
        print(f"encoded {file} ({file.stat().st_size} of at most {budget} bytes)")
        files.append(file)
    return files


def decode(files: list[Path]) -> list[Image]:
    """Decode each file in a new process; returns the pictures, which stay beside the files."""
    images = []
    for file in files:
        picture = file.with_suffix(".png")
        run_fasdiff("decode", str(file), str(picture))
        images.append(read_picture(picture.read_bytes()))
    return images


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, help="picture to use instead of the astronaut's face")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    image = read_picture(args.image.read_bytes()) if args.image else astronaut_face()
    name = args.image.name if args.image else "astronaut"
    source = args.output / "original.png"
    source.write_bytes(write_picture(image, ".png"))
    files = encode(source, args.output)
    coded = [
        (file.read_bytes(), decoded) for file, decoded in zip(files, decode(files), strict=True)
    ]

    sheet = args.output / "contact_sheet.png"
    rows = contact_sheet.compare(name, image, BUDGETS, coded)
    sheet.write_bytes(write_picture(contact_sheet.draw(rows), ".png"))
    print(f"contact sheet: {sheet.resolve()}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FasdiffError, OSError) as error:
        sys.exit(f"demo: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command has said why
