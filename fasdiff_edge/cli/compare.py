"""`fasdiff compare`: pictures in, a contact sheet of codecs at the same bytes out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..api import Decoder, Encoder
from ..errors import ImageError
from ..imaging import OUTPUT_SUFFIXES, crop, read_picture, write_picture
from .encode import add_engine_options, parse_box
from .files import quiet_stderr, read_input, write_output

_BUDGETS = (300, 600, 1200)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compare",
        help="make a contact sheet of images and codecs at the same bytes",
        description="Show each picture as it is, and as this codec, JPEG, WebP and AVIF make it "
        "within each budget; the peers may shrink it first where that gives the better PSNR. "
        "What does not fit is shown as the smallest file. Needs Pillow (the [demo] extra).",
    )
    parser.add_argument("inputs", nargs="+", metavar="IMG", help='picture, or "-" for stdin')
    parser.add_argument(
        "--budgets",
        type=parse_budgets,
        default=_BUDGETS,
        metavar="N,N,...",
        help="bytes of a whole file ({})".format(",".join(map(str, _BUDGETS))),
    )
    parser.add_argument(
        "--output",
        default="contact_sheet.png",
        metavar="OUT",
        help='.png or .jpg to write, or "-" for a PNG on stdout (contact_sheet.png)',
    )
    parser.add_argument(
        "--crop", type=parse_box, metavar="X,Y,W,H", help="of every picture, in pixels"
    )
    parser.add_argument(
        "--realism", type=float, default=1.0, metavar="R", help="0 faithful .. 1 sharp (1)"
    )
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; errors are raised."""
    from .. import contact_sheet  # here, so that --help needs no Pillow

    suffix = ".png" if args.output == "-" else Path(args.output).suffix
    if suffix.lower() not in OUTPUT_SUFFIXES:
        raise ImageError(f"cannot write {args.output}: use .png or .jpg")
    encoder = Encoder(model=args.model, engine=args.engine, threads=args.threads)
    decoder = Decoder(
        model=args.model, engine=args.engine, realism=args.realism, threads=args.threads
    )
    rows = []
    for path in args.inputs:
        data = read_input(path)
        with quiet_stderr():
            image = read_picture(data)
        if args.crop is not None:
            image = crop(image, args.crop)
        coded = contact_sheet.code(image, args.budgets, encoder, decoder)
        name = "stdin" if path == "-" else Path(path).name
        rows += contact_sheet.compare(name, image, args.budgets, coded)
    write_output(args.output, write_picture(contact_sheet.draw(rows), suffix))
    return 0


def parse_budgets(text: str) -> tuple[int, ...]:
    """ "300,600" as integers.

    Raises:
      argparse.ArgumentTypeError: it is something else, or one is not positive.
    """
    try:
        budgets = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,N,... in bytes") from error
    if min(budgets) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a budget is at least 1 byte")
    return budgets
