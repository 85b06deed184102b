"""Faces with landmarks from a folder and its `index.csv`."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fasdiff_edge.imaging import read_picture
from fasdiff_edge.peers import Image

_LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


@dataclass(frozen=True)
class Face:
    """An entry of the index.

    Attributes:
      path: of the picture.
      landmarks: float64 [5, 2], x and y in pixels of the picture: eyes, nose, mouth corners.
      group: (race, gender); empty strings where the index does not say.
    """

    path: Path
    landmarks: NDArray[np.float64]
    group: tuple[str, str]

    def load(self, size: int | None) -> tuple[Image, NDArray[np.float64]]:
        """The picture and its landmarks.

        Args:
          size: of the square to resize to, by area when shrinking and cubic when enlarging; None
            leaves the picture as it is.
        Returns:
          uint8 RGB [H, W, 3] and float64 [5, 2].
        Raises:
          ValueError: the picture is not square and a size is given.
        """
        image = read_picture(self.path.read_bytes())
        height, width = image.shape[:2]
        if size is None or (height, width) == (size, size):
            return image, self.landmarks
        if height != width:
            raise ValueError(f"{self.path} is {width} x {height}, not square")
        interpolation = cv2.INTER_AREA if size < height else cv2.INTER_CUBIC
        resized = cv2.resize(image, (size, size), interpolation=interpolation)
        # Pixel centres are at +0.5.
        landmarks = (self.landmarks + 0.5) * (size / height) - 0.5
        return np.asarray(resized, dtype=np.uint8), landmarks


def load_index(folder: Path, split: str, max_sharpness_db: float | None = None) -> list[Face]:
    """The faces of a split, groups taking turns, so that the first N are balanced.

    Args:
      folder: holds `index.csv` and the pictures.
      split: the pictures' folder below it, such as "val".
      max_sharpness_db: leaves out pictures above it (a low figure is sharp).
    Raises:
      ValueError: no picture is left.
    """
    groups: dict[tuple[str, str], list[Face]] = defaultdict(list)
    with open(folder / "index.csv", newline="") as file:
        for row in csv.DictReader(file):
            if Path(row["file"]).parts[0] != split:
                continue
            if max_sharpness_db is not None and float(row["sharpness_db"]) > max_sharpness_db:
                continue
            points = [[float(row[f"{name}_{axis}"]) for axis in "xy"] for name in _LANDMARKS]
            group = (row["race"], row["gender"])
            groups[group].append(Face(folder / row["file"], np.array(points), group))
    turns = [
        (turn, group, face) for group, faces in groups.items() for turn, face in enumerate(faces)
    ]
    if not turns:
        raise ValueError(f"{folder / 'index.csv'} lists no picture of {split!r}")
    return [face for _, _, face in sorted(turns, key=lambda entry: entry[:2])]
