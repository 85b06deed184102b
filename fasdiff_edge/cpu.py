"""Which instruction set the C++ kernels use.

The best that the package was built with and the processor has, chosen at first use; the
environment variable FASDIFF_CPU forces another: scalar, avx2, avxvnni, avx512vnni, neon or
neondotprod. All give the same files and the same images.
"""

from __future__ import annotations

from typing import Any

from . import _core
from .errors import OptionError


def check() -> None:
    """Refuse to start under a FASDIFF_CPU that cannot be followed.

    Raises:
      OptionError: FASDIFF_CPU names what this build or machine does not have; says what there is.
    """
    problem = _core.cpu_info()["problem"]
    if problem is not None:
        raise OptionError(problem)


def describe() -> dict[str, Any]:
    """What was chosen and why.

    Returns:
      JSON-able: chosen, environment (FASDIFF_CPU, empty if unset), available (slowest first),
      kernels (name of a kernel -> the instruction set it uses).
    Raises:
      OptionError: as `check`.
    """
    check()
    info = _core.cpu_info()
    return {key: info[key] for key in ("chosen", "environment", "available", "kernels")}
