"""Reading and writing for the commands: "-" is stdin or stdout; no half-written files."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator

from ..errors import FasdiffError

MAX_INPUT_BYTES = 2**28


def read_input(path: str) -> bytes:
    """All of a file, or of stdin for "-".

    Raises:
      OSError: as the system reports it.
      FasdiffError: more than `MAX_INPUT_BYTES`.
    """
    if path == "-":
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise FasdiffError(f"{path}: more than {MAX_INPUT_BYTES} bytes")
    return data


def write_output(path: str, data: bytes) -> None:
    """Write a file completely or not at all; "-" is stdout.

    The data go to a temporary file in the same directory, which then takes the place of `path`;
    a symbolic link is followed. What is not a regular file (a device, a pipe) is written directly.

    Raises:
      OSError: as the system reports it, with `path` as the file's name.
    """
    if path == "-":
        _write_stdout(data)
        return
    target = os.path.realpath(path)
    try:
        if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            with open(target, "wb") as file:
                file.write(data)
            return
        temporary = f"{target}.{secrets.token_hex(4)}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from error


def _write_stdout(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        # Python would try to flush again at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise BrokenPipeError(error.errno, error.strerror, "stdout") from error


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hide what C libraries print on stderr (image decoders do); our own line comes after."""
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr to hide anything from
        yield
        return
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
