"""What a face recogniser sees of a decoded face, and how that falls with the picture.

Squared error does not know who somebody is. Where a reader will recognise decoded faces, the passes
of `Encoder(effort=...)` may follow that reader's own recogniser as well: more of who it is, in the
same bytes. No recogniser is part of this package; decoders need none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .engines import check_ports, load_graph
from .errors import ModelError, OptionError
from .imaging import check_image

Image = NDArray[np.uint8]
Array = NDArray[np.float32]

# decoded uint8 RGB [h, w, 3], the size at which the image is coded -> distance to the original, and
# its gradient float32 [h, w, 3]
Likeness = Callable[[Image], tuple[float, Array]]

# Eyes, nose and corners of the mouth in the chip, x and y (ArcFace, Deng et al., CVPR 2019).
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
CHIP = 112  # pixels, the side
_INPUTS, _OUTPUTS = ["chip", "reference"], ["embedding", "distance", "chip_gradient"]
_MAX_FILE = 2**29  # bytes
# Turned by, enlarged by (natural logarithm), shifted by (pixels), mirrored. What one recogniser
# sees at one alignment may be a pattern that only it sees; what survives other views is likelier to
# be seen by others.
_VIEWS = (
    (0.0, 0.0, 0.0, 0.0, False),
    (0.06, -0.04, 1.5, -1.0, True),
    (-0.06, 0.04, -1.0, 1.5, False),
    (0.03, 0.05, -1.5, -1.5, True),
)


class Recogniser:
    """A recogniser of faces with its gradient, from a file of `python -m export.recogniser`.

    Reusable; may be shared between threads.
    """

    def __init__(
        self, path: str | os.PathLike[str], engine: str = "auto", threads: int | None = None
    ) -> None:
        """Load the graph.

        Args:
          path: of the ONNX file.
          engine, threads: as in `Encoder`.
        Raises:
          ModelError: the file cannot be read, or is no such graph.
          OptionError, EngineError.
        """
        path = Path(path)
        try:
            if path.stat().st_size > _MAX_FILE:
                raise ModelError(f"{path} has more than {_MAX_FILE} bytes")
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read the recogniser {path}: {error.strerror}") from error
        self._graph = load_graph(data, engine, threads)
        try:
            check_ports(self._graph, _INPUTS, _OUTPUTS)
        except ModelError as error:
            raise ModelError(
                f"{path}: {error}; `python -m export.recogniser` makes such a file of a recogniser"
            ) from error
        self._path = path

    def likeness(
        self, image: Image, landmarks: NDArray[np.floating] | list[list[float]]
    ) -> Likeness:
        """What `Encoder.encode` follows for one image, as its `likeness`.

        Args:
          image: uint8 RGB [H, W, 3], the one that is encoded.
          landmarks: [5, 2], x and y in pixels of the image: the eye on the left of the picture, the
            other, the tip of the nose, the corners of the mouth, left and right. Pixels count from
            the middle of the first.
        Returns:
          A function of a decoded picture that gives 1 less the cosine of its embedding and the
          image's, the mean of some views, and the gradient of that.
        Raises:
          ImageError: not such an image.
          OptionError: not such landmarks, or of no face: all in one place, or out of order.
          EngineError: the inference engine failed.
        """
        image = check_image(image)
        height, width = image.shape[:2]
        forward = _alignment(_check_landmarks(landmarks, height, width))
        views = [_view(forward, *view) for view in _VIEWS]
        chips = {(height, width): [_Chip(view, height, width) for view in views]}
        nothing = np.zeros((1, 1), np.float32)  # is multiplied with whatever the embedding has
        references = [self._look(chip.cut(image), nothing)[0] for chip in chips[height, width]]

        def likeness(decoded: Image) -> tuple[float, Array]:
            h, w = decoded.shape[:2]
            if (h, w) not in chips:
                smaller = np.diag([w / width, h / height, 1.0])
                # from the corner of the first pixel, where sizes are proportional
                middle = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
                to_decoded = np.linalg.inv(middle) @ smaller @ middle
                chips[h, w] = [_Chip(to_decoded @ view, h, w) for view in views]
            distance, gradient = 0.0, np.zeros((h, w, 3), np.float32)
            for chip, reference in zip(chips[h, w], references, strict=True):
                _, away, slope = self._look(chip.cut(decoded), reference)
                distance += away / len(views)
                gradient += chip.spread(slope) / len(views)
            return distance, gradient

        return likeness

    def _look(self, chip: Array, reference: Array) -> tuple[Array, float, Array]:
        """Embedding [1, D] of unit length, distance to the reference [1, D], gradient [3, N, N]."""
        found = self._graph.run({"chip": chip[None], "reference": reference})
        gradient = found["chip_gradient"]
        if gradient.shape != (1, 3, CHIP, CHIP):
            raise ModelError(f"{self._path} gave chip_gradient as {list(gradient.shape)}")
        return found["embedding"], float(found["distance"].ravel()[0]), gradient[0]


class _Chip:
    """An upright chip of a picture, by bilinear interpolation, and the adjoint of cutting it.

    Args:
      to_image: [3, 3], pixels of the chip -> pixels of the picture; edges are repeated.
    """

    def __init__(self, to_image: NDArray[np.float64], height: int, width: int) -> None:
        # where a pixel of the chip covers several of the picture, it is a mean of several places
        scale = float(np.sqrt(abs(np.linalg.det(to_image[:2, :2]))))
        fine = min(8, max(1, round(scale)))
        at = (np.arange(CHIP * fine) + 0.5) / fine - 0.5
        ones = np.ones((len(at), len(at)))
        x, y, _ = np.tensordot(to_image, np.stack([at[None] * ones, at[:, None] * ones, ones]), 1)
        x, y = x.clip(0, width - 1), y.clip(0, height - 1)
        left = np.minimum(x.astype(np.int32), width - 2)
        top = np.minimum(y.astype(np.int32), height - 2)
        x, y = x - left, y - top
        self._shape, self._fine = (height, width), fine
        self._places = np.stack([(top + i) * width + left + j for i in (0, 1) for j in (0, 1)])
        weights = [v * u for v in (1 - y, y) for u in (1 - x, x)]
        self._weights = (np.stack(weights) / fine**2).astype(np.float32)

    def cut(self, image: Image) -> Array:
        """float32 [3, CHIP, CHIP], 0..255."""
        flat = image.reshape(-1, 3)
        found = sum(
            flat[places].astype(np.float32) * weight[..., None]
            for places, weight in zip(self._places, self._weights, strict=True)
        )
        blocks = np.asarray(found).reshape(CHIP, self._fine, CHIP, self._fine, 3)
        return np.ascontiguousarray(blocks.sum((1, 3)).transpose(2, 0, 1))

    def spread(self, gradient: Array) -> Array:
        """The gradient of a picture, float32 [h, w, 3], of that of its chip [3, CHIP, CHIP]."""
        height, width = self._shape
        found = np.empty((height, width, 3), np.float32)
        for channel, plane in enumerate(gradient):
            each = plane.repeat(self._fine, 0).repeat(self._fine, 1) * self._weights
            sums = np.bincount(self._places.ravel(), each.ravel(), height * width)
            found[..., channel] = sums.reshape(height, width)
        return found


def _check_landmarks(landmarks: object, height: int, width: int) -> NDArray[np.float64]:
    try:
        points = np.asarray(landmarks, np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise OptionError("landmarks must be five points, x and y in pixels: eyes, nose, mouth")
    if (points < -np.array([width, height])).any() or (
        points > 2 * np.array([width, height])
    ).any():
        raise OptionError(f"landmarks {points.tolist()} are far from the {width} x {height} image")
    return points


def _alignment(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels of the chip -> pixels of the image, [3, 3]: the least-squares similarity.

    Umeyama, IEEE Transactions on Pattern Analysis and Machine Intelligence, 1991, of the template
    to the points, as complex numbers: a turn and a scale are one factor, and nothing is mirrored.
    """
    chip, image = (v[:, 0] + 1j * v[:, 1] for v in (TEMPLATE, points))
    from_middle = chip - chip.mean()
    factor = np.vdot(from_middle, image - image.mean()) / np.vdot(from_middle, from_middle).real
    if abs(factor) < 1e-3:
        raise OptionError(
            "landmarks must be of a face: these are all in one place, or out of order"
        )
    offset = image.mean() - factor * chip.mean()
    return np.array(
        [
            [factor.real, -factor.imag, offset.real],
            [factor.imag, factor.real, offset.imag],
            [0.0, 0.0, 1.0],
        ]
    )


def _view(
    forward: NDArray[np.float64], angle: float, growth: float, x: float, y: float, mirrored: bool
) -> NDArray[np.float64]:
    """An alignment [3, 3] turned, enlarged, shifted and mirrored about the middle of the chip."""
    cos, sin = np.cos(angle) * np.exp(growth), np.sin(angle) * np.exp(growth)
    sign = -1.0 if mirrored else 1.0
    middle = (CHIP - 1) / 2
    turn = np.array([[cos * sign, -sin, x], [sin * sign, cos, y], [0.0, 0.0, 1.0]])
    to_middle = np.array([[1.0, 0.0, -middle], [0.0, 1.0, -middle], [0.0, 0.0, 1.0]])
    found: NDArray[np.float64] = forward @ np.linalg.inv(to_middle) @ turn @ to_middle
    return found
