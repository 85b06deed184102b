"""Where the time goes: the encoder and the decoder name their stages, a recorder may listen.

    with record() as times:
        decoder.decode(data)
    times["student"]  # seconds

Without a recorder in this thread a stage costs a look-up.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

# In the order in which the data flow. "refinement": what `effort` asks for. "residual": the encoder
# decodes its base and looks at what is left, where the bytes reach further than the base.
ENCODE_STAGES = ("split", "analysis", "refinement", "residual", "entropy encode")
DECODE_STAGES = ("entropy decode", "noise", "student", "merge")

_local = threading.local()


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the time that the block takes to `name`, where this thread is being recorded."""
    times: dict[str, float] | None = getattr(_local, "times", None)
    if times is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        times[name] = times.get(name, 0.0) + time.perf_counter() - start


@contextlib.contextmanager
def record() -> Iterator[dict[str, float]]:
    """Record the stages of this thread: name -> seconds, summed over all calls in the block."""
    outer = getattr(_local, "times", None)
    times: dict[str, float] = {}
    _local.times = times
    try:
        yield times
    finally:
        _local.times = outer
