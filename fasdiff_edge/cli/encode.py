"""`fasdiff encode`: a picture in, a file out."""

from __future__ import annotations

import argparse
from typing import Any

from ..api import Encoder
from ..engines import ENGINE_NAMES
from ..imaging import crop, read_picture
from .files import quiet_stderr, read_input, write_output


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "encode",
        help="encode a picture to a byte budget or a quality",
        description="Encode a PNG, JPEG or WebP picture. With both --max-bytes and --quality, "
        "both bind; with neither, the quality is 32.",
    )
    parser.add_argument("input", metavar="IN", help='picture, or "-" for stdin')
    parser.add_argument("output", metavar="OUT", help='file to write, or "-" for stdout')
    parser.add_argument("--max-bytes", type=int, metavar="N", help="size not to be exceeded")
    parser.add_argument("--quality", type=float, metavar="Q", help="0..63 in steps of 0.25")
    parser.add_argument(
        "--crop", type=parse_box, metavar="X,Y,W,H", help="encode this box, in pixels"
    )
    parser.add_argument(
        "--effort",
        type=int,
        default=0,
        metavar="N",
        help="passes that refine the picture for its bytes, 0..64; 8 bring most of it (0)",
    )
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Encode; errors are raised."""
    data = read_input(args.input)
    with quiet_stderr():
        image = read_picture(data)
    if args.crop is not None:
        image = crop(image, args.crop)
    encoder = Encoder(args.model, args.engine, args.threads, args.effort)
    coded = encoder.encode(image, quality=args.quality, max_bytes=args.max_bytes)
    write_output(args.output, coded)
    return 0


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The options that encode and decode share."""
    parser.add_argument("--model", default="edge", help="model name or directory (edge)")
    parser.add_argument(
        "--engine", default="auto", help=f"auto or {', '.join(ENGINE_NAMES)} (auto)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the engine")


def parse_box(text: str) -> tuple[int, int, int, int]:
    """ "x,y,w,h" as four integers.

    Raises:
      argparse.ArgumentTypeError: it is something else.
    """
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,w,h in pixels") from error
    return x, y, width, height
