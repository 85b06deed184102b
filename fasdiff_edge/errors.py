"""The errors of this package. Everything raised on purpose derives from `FasdiffError`."""

from __future__ import annotations


class FasdiffError(Exception):
    """Base of every error that this package raises on purpose."""


class OptionError(FasdiffError, ValueError):
    """An argument outside its range: quality, max_bytes, num_steps, realism, landmarks..."""


class ImageError(FasdiffError, ValueError):
    """An image, or an image file, that cannot be taken: wrong type, shape, size or format."""


class BitstreamError(FasdiffError, ValueError):
    """A file that cannot be decoded: foreign, future, truncated, damaged or over a limit."""


class ModelError(FasdiffError):
    """A model that is missing, damaged, inconsistent, or not the one a file was made with."""


class EngineError(FasdiffError, RuntimeError):
    """The inference engine is not installed, or failed to load or run a graph."""


class BudgetError(FasdiffError, ValueError):
    """A byte budget that the image cannot be coded in.

    Attributes:
      max_bytes: the budget asked for, in bytes.
      smallest: the smallest budget this image can be coded in with this model, in bytes.
    """

    def __init__(self, max_bytes: int, smallest: int) -> None:
        super().__init__(max_bytes, smallest)
        self.max_bytes = max_bytes
        self.smallest = smallest

    def __str__(self) -> str:
        return (
            f"the image does not fit in {self.max_bytes} bytes; "
            f"the smallest budget that can be met is {self.smallest} bytes"
        )
