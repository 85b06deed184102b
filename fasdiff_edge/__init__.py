"""FaSDiff-Edge: a codec for faces at a few hundred bytes.

>>> from fasdiff_edge import Encoder, Decoder
>>> data = Encoder().encode(image, max_bytes=800)    # image: uint8 RGB [H, W, 3]
>>> rgb = Decoder(num_steps=1).decode(data)          # uint8 RGB, the shape that was encoded
"""

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        "fasdiff_edge is not built: its C++ extension fasdiff_edge._core cannot be imported "
        f"({error}). Build and install it with `pip install .` in the repository (needs a C++17 "
        "compiler and CMake), then run from outside the source tree."
    ) from error

from .api import Decoder, Encoder
from .errors import (
    BitstreamError,
    BudgetError,
    EngineError,
    FasdiffError,
    ImageError,
    ModelError,
    OptionError,
)
from .recognition import Recogniser

__version__ = "0.1.0"

__all__ = [
    "BitstreamError",
    "BudgetError",
    "Decoder",
    "Encoder",
    "EngineError",
    "FasdiffError",
    "ImageError",
    "ModelError",
    "OptionError",
    "Recogniser",
    "__version__",
]
