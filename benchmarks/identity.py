"""How far a decoded face is from the original's identity, by dlib's 128-d ResNet.

For reporting only: no part of this codec is trained on it. The network calls two faces the same
person below a distance of 0.6 (99.38 % on LFW, by its author). Landmarks are found once, on the
original, and used for both images, so that a codec is judged by the face and not by the detector;
where the detector misses the face, the box comes from known landmarks. Where there are none either,
identity is not measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import dlib  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from fasdiff_edge.peers import Image

SAME_PERSON = 0.6
FaceSource = Literal["detector", "landmarks", "none"]

# The detector's box against five landmarks, medians over FairFace: its side in units of the
# geometric mean of interocular distance and eye-to-mouth distance, its centre from the middle
# between eyes and mouth, downwards, in units of the side.
_BOX_SIDE, _BOX_DOWN = 2.17, 0.03


class Identity:
    """The detector, the landmark model and the embedder. Not for sharing between threads."""

    def __init__(self) -> None:
        """Load the models of the package face-recognition-models.

        Raises:
          ImportError: the package is not installed.
        """
        folder = _models_folder()
        self._detect = dlib.get_frontal_face_detector()
        self._predict = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self._embed = dlib.face_recognition_model_v1(
            str(folder / "dlib_face_recognition_resnet_model_v1.dat")
        )

    def landmarks(
        self, image: Image, known: NDArray[np.float64] | None = None
    ) -> tuple[Any | None, FaceSource]:
        """Landmarks of the largest face.

        Args:
          image: uint8 RGB [H, W, 3], the original.
          known: five landmarks [5, 2] in pixels (eyes, nose, mouth corners), to fall back on.
        Returns:
          (shape, source): dlib's landmarks, and what told where the face is; (None, "none") where
          the detector finds no face and none is known.
        """
        boxes = self._detect(image, 1)
        if len(boxes):
            box = max(boxes, key=lambda rectangle: rectangle.area())
            return self._predict(image, box), "detector"
        if known is not None:
            return self._predict(image, face_box(known)), "landmarks"
        return None, "none"

    def embedding(self, image: Image, landmarks: Any) -> NDArray[np.float64]:
        """float64 [128] of the face at these landmarks."""
        return np.array(self._embed.compute_face_descriptor(image, landmarks), dtype=np.float64)

    def distances(self, original: Image, images: Sequence[Image], landmarks: Any) -> list[float]:
        """Euclidean distance of each image's face to the original's, 0 to about 1.4."""
        reference = self.embedding(original, landmarks)
        return [
            float(np.linalg.norm(self.embedding(image, landmarks) - reference)) for image in images
        ]


def face_box(landmarks: NDArray[np.float64]) -> Any:
    """The box in which dlib's detector would have found a face with these five landmarks."""
    eyes, mouth = landmarks[0:2].mean(axis=0), landmarks[3:5].mean(axis=0)
    interocular = np.linalg.norm(landmarks[1] - landmarks[0])
    side = _BOX_SIDE * float(np.sqrt(interocular * np.linalg.norm(mouth - eyes)))
    x, y = (eyes + mouth) / 2.0 + (0.0, _BOX_DOWN * side)
    corners = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return dlib.rectangle(*(round(float(corner)) for corner in corners))


def _models_folder() -> Path:
    # Found, not imported: the package imports pkg_resources, which setuptools no longer has.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("identity needs dlib's models: pip install face-recognition-models")
    return Path(next(iter(spec.submodule_search_locations))) / "models"
