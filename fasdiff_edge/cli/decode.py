"""`fasdiff decode`: a file in, a picture out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..api import Decoder
from ..errors import ImageError
from ..imaging import OUTPUT_SUFFIXES, write_picture
from .encode import add_engine_options
from .files import read_input, write_output


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "decode",
        help="decode a file to a picture",
        description="Decode a file to a PNG or JPEG picture of the size that was encoded.",
    )
    parser.add_argument("input", metavar="IN", help='file, or "-" for stdin')
    parser.add_argument(
        "output", metavar="OUT", help='.png or .jpg to write, or "-" for a PNG on stdout'
    )
    parser.add_argument(
        "--realism", type=float, default=1.0, metavar="R", help="0 faithful .. 1 sharp (1)"
    )
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="network evaluations (1)")
    parser.add_argument(
        "--max-pixels", type=int, default=2**24, metavar="N", help="refuse larger images (2^24)"
    )
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Decode; errors are raised."""
    suffix = ".png" if args.output == "-" else Path(args.output).suffix
    if suffix.lower() not in OUTPUT_SUFFIXES:
        raise ImageError(f"cannot write {args.output}: use .png or .jpg")
    data = read_input(args.input)
    decoder = Decoder(
        model=args.model,
        engine=args.engine,
        num_steps=args.steps,
        realism=args.realism,
        threads=args.threads,
        max_pixels=args.max_pixels,
    )
    write_output(args.output, write_picture(decoder.decode(data), suffix))
    return 0
