"""The profile of this machine: engine and threads that `fasdiff bench` found best.

A JSON file at FASDIFF_PROFILE, or `fasdiff/profile.json` in the user's configuration folder
(XDG_CONFIG_HOME, else `~/.config`). `engine="auto"` and `threads=None` follow it. It names the
processor it was made on: on another one it does not count, so that an image of a disk that is
copied to a different device does not slow that down (`fasdiff info --cpu` says which it is).
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import OptionError

FORMAT = 1


@dataclass(frozen=True)
class Profile:
    """What is best on a processor.

    Attributes:
      cpu: as `cpu_name` gives it.
      engine: a name of `engines.ENGINE_NAMES`.
      threads: of the engine, at least 1.
    """

    cpu: str
    engine: str
    threads: int


def cpu_name() -> str:
    """The processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    fields = dict(line.partition(":")[::2] for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    for key in ("model name", "Model", "Hardware"):
        if fields.get(key):
            return fields[key]
    try:  # Arm boards name themselves in the device tree
        return Path("/proc/device-tree/model").read_text().strip("\0\n ")
    except OSError:
        return platform.processor() or platform.machine()


def path() -> Path:
    """Where the profile is, or would be."""
    named = os.environ.get("FASDIFF_PROFILE")
    if named:
        return Path(named)
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "fasdiff" / "profile.json"


def read() -> Profile | None:
    """The profile, whatever processor it is for; None where there is none.

    Raises:
      OptionError: it is there and cannot be read, or is not a profile.
    """
    try:
        file = path()
        text = file.read_text()
    except FileNotFoundError:
        if os.environ.get("FASDIFF_PROFILE"):
            raise OptionError(f"FASDIFF_PROFILE names {path()}, which does not exist") from None
        return None
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the profile: {error}") from error
    try:
        values = json.loads(text)
        found = Profile(str(values["cpu"]), str(values["engine"]), int(values["threads"]))
        if values["format"] != FORMAT or found.threads < 1:
            raise ValueError("another format, or no threads")
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(
            f"{file} is not a profile of format {FORMAT} ({error!r}); "
            "write it anew with fasdiff bench --write-profile, or remove it"
        ) from error
    return found


def applicable() -> Profile | None:
    """The profile, if it was made on this processor.

    Raises:
      OptionError: as `read`.
    """
    found = read()
    return found if found is not None and found.cpu == cpu_name() else None


def serialise(profile: Profile) -> bytes:
    """The contents of a profile file."""
    return (json.dumps({"format": FORMAT, **asdict(profile)}, indent=2) + "\n").encode()
