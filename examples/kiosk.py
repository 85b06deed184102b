"""Take a picture, write the coded face, and show the operator what a reader will see.

    python examples/kiosk.py portrait.jpg card.fsd --max-bytes 1000 --preview preview.png

The preview is decoded from the file that was written, not from memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2

from fasdiff_edge import BudgetError, Decoder, Encoder, FasdiffError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("output", type=Path, help="the coded file to write")
    parser.add_argument("--max-bytes", type=int, default=1000)
    parser.add_argument("--preview", type=Path, help="picture of the decoded face to write")
    args = parser.parse_args()

    picture = cv2.imread(str(args.picture), cv2.IMREAD_COLOR)  # EXIF orientation is applied
    if picture is None:
        sys.exit(f"cannot read {args.picture}")
    image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    try:
        data = Encoder().encode(image, max_bytes=args.max_bytes)
    except BudgetError as error:
        sys.exit(f"{error}; crop the picture closer, or allow more")
    except FasdiffError as error:
        sys.exit(str(error))
    args.output.write_bytes(data)
    height, width = image.shape[:2]
    print(f"{args.output}: {len(data)} bytes, {8 * len(data) / (height * width):.4f} bpp")
    if args.preview:
        decoded = Decoder().decode(args.output.read_bytes())
        cv2.imwrite(str(args.preview), cv2.cvtColor(decoded, cv2.COLOR_RGB2BGR))
        print(f"{args.preview}: {width} x {height} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
