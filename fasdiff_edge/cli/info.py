"""`fasdiff info`: what a file contains, without decoding it to pixels; or what the CPU has."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from .. import cpu, profile
from ..api import read_levels
from ..bitstream import unpack
from ..errors import OptionError
from ..models import load_model
from .files import read_input, write_output


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "info",
        help="print what a file contains",
        description="Print the header, the bytes of each part, the model and the bits per pixel. "
        "The parts share one range-coded stream: theirs are ideal bytes, and `overhead` is what "
        "the stream has beyond their sum.",
    )
    parser.add_argument("input", metavar="FILE", nargs="?", help='file, or "-" for stdin')
    parser.add_argument(
        "--cpu", action="store_true", help="print which instruction set each kernel uses instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--model", default="edge", help="model name or directory (edge)")


def run(args: argparse.Namespace) -> int:
    """Print; errors are raised."""
    if (args.input is None) != args.cpu:
        raise OptionError("info takes a FILE or --cpu, one of them")
    report = _machine() if args.cpu else describe(read_input(args.input), args.model)
    if args.json:
        text = json.dumps(report, indent=2)
    else:
        text = "\n".join(_cpu_lines(report) if args.cpu else _lines(report))
    write_output("-", f"{text}\n".encode())
    return 0


def describe(data: bytes, model_name: str = "edge") -> dict[str, Any]:
    """Everything about a file that needs no inference engine.

    Returns:
      JSON-able: version, model, model_id, width, height, scale, coded_width, coded_height,
      quality (0..63), check (hexadecimal), bytes, bpp (whole file over the pixels of the image),
      parts (name -> bytes; they sum to `bytes`).
    Raises:
      BitstreamError, ModelError: as in `Decoder.decode`.
    """
    model = load_model(model_name)
    header, check, levels = read_levels(data, model, max_pixels=2**24)
    _, _, payload = unpack(data)
    coded_height, coded_width = header.coded_size
    bits = model.entropy.part_bits(levels, header.quality)
    parts: dict[str, float] = {"header": len(data) - len(payload)}
    parts.update({name: round(value / 8, 2) for name, value in bits.items()})
    parts["overhead"] = round(len(data) - sum(parts.values()), 2)
    return {
        "version": data[1] >> 4,
        "model": model.name,
        "model_id": f"{header.model_id:04x}",
        "width": header.width,
        "height": header.height,
        "scale": header.scale,
        "coded_width": coded_width,
        "coded_height": coded_height,
        "quality": header.quality / 4,
        "check": f"{check:08x}",
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 5),
        "parts": parts,
    }


def _machine() -> dict[str, Any]:
    """What the CPU has, and the profile that `engine="auto"` follows on it."""
    found = profile.read()
    applies = found is not None and found == profile.applicable()
    return {
        **cpu.describe(),
        "cpu": profile.cpu_name(),
        "profile": None if found is None else {**asdict(found), "applies": applies},
    }


def _profile_line(report: dict[str, Any]) -> str:
    found = report["profile"]
    if found is None:
        return "none (fasdiff bench --write-profile makes one)"
    text = f"{found['engine']}, {found['threads']} threads"
    return text if found["applies"] else f"{text}, but made on another CPU: not used"


def _cpu_lines(report: dict[str, Any]) -> list[str]:
    reason = "FASDIFF_CPU" if report["environment"] else "the best there is"
    return [
        f"chosen           {report['chosen']} ({reason})",
        f"available        {', '.join(report['available'])}",
        *(f"{name.replace('_', ' '):<16} {unit}" for name, unit in report["kernels"].items()),
        f"CPU              {report['cpu']}",
        f"profile          {_profile_line(report)}",
    ]


def _lines(report: dict[str, Any]) -> list[str]:
    coded = f"1/{1 << report['scale']}, {report['coded_width']} x {report['coded_height']} pixels"
    return [
        f"format version  {report['version']}",
        f"model           {report['model']} ({report['model_id']})",
        f"size            {report['width']} x {report['height']} pixels",
        f"coded at        {coded}",
        f"quality         {report['quality']:g}",
        f"check, seed     {report['check']}",
        f"bytes           {report['bytes']} ({report['bpp']:.4f} bits per pixel)",
        *(f"  {name:<13} {value:g}" for name, value in report["parts"].items()),
    ]
