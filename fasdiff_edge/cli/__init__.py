"""The command `fasdiff`: one file per command, imported only when it is the one asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..errors import FasdiffError

COMMANDS = {
    "encode": "encode a picture to a byte budget or a quality",
    "decode": "decode a file to a picture",
    "info": "print what a file contains",
    "bench": "measure latency on this machine, stage by stage",
    "compare": "make a contact sheet of images and codecs at the same bytes",
}
EXIT_ERROR = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"fasdiff: error: {message} (try {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: the arguments, without the program's name; those of the process by default.
    Returns:
      The exit code: 0, or 2 after an error, which is one line on stderr.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    parser = _Parser(prog="fasdiff", description="A codec for faces at a few hundred bytes.")
    parser.add_argument("--version", action="version", version=f"fasdiff {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"{__name__}.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    args = parser.parse_args(arguments)
    try:
        return int(importlib.import_module(f"{__name__}.{args.command}").run(args))
    except FasdiffError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError:
        return _fail("out of memory")
    except KeyboardInterrupt:
        return _fail("interrupted")


def _fail(message: str) -> int:
    print("fasdiff: error:", " ".join(message.split()), file=sys.stderr)
    return EXIT_ERROR
