"""Pictures to measure on: any folder of them, with landmarks and groups where an index has them."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fasdiff_edge.errors import ImageError
from fasdiff_edge.imaging import check_image, read_picture
from fasdiff_edge.peers import Image

INDEX = "index.csv"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
_LANDMARK_COLUMNS = [f"{point}_{axis}" for point in _POINTS for axis in "xy"]


@dataclass(frozen=True)
class Picture:
    """A picture file and what is known about it.

    Attributes:
      path: of the file.
      name: of the file in its folder or index.
      landmarks: float64 [5, 2], x and y in pixels of the file: eyes, nose, mouth corners; None
        where there is no index, or it does not say.
      group: (race, gender); empty strings where there is no index, or it does not say.
      age: as the index puts it, such as "30-39"; empty where it does not.
    """

    path: Path
    name: str
    landmarks: NDArray[np.float64] | None = None
    group: tuple[str, str] = ("", "")
    age: str = ""

    def load(self, size: int | None) -> tuple[Image, NDArray[np.float64] | None]:
        """The picture and its landmarks.

        Args:
          size: of the square to resize to, by area when shrinking and cubic when enlarging, after
            cutting the largest square from the middle; None leaves the picture as it is.
        Returns:
          uint8 RGB [H, W, 3] and float64 [5, 2] or None.
        Raises:
          ImageError: not a picture that the codec takes; the message names the file.
        """
        try:
            image, landmarks = read_picture(self.path.read_bytes()), self.landmarks
            if size is not None:
                image, landmarks = _to_square(image, landmarks, size)
            return check_image(image), landmarks
        except ImageError as error:
            raise ImageError(f"{self.path}: {error}") from error


def load_pictures(
    folder: Path, split: str | None = None, max_sharpness_db: float | None = None
) -> list[Picture]:
    """The pictures that a folder's index lists, or else those that lie in the folder, by name.

    Those of an index come with the groups taking turns, so that the first N are balanced.

    Args:
      folder: holds pictures, or an index of pictures below it.
      split: the pictures' folder below it, such as "val"; None takes all.
      max_sharpness_db: leaves out pictures above it (a low figure is sharp); needs an index.
    Raises:
      ValueError: there is no picture, or the index lacks a column that is needed.
    """
    if (folder / INDEX).exists():
        return _indexed(folder, split, max_sharpness_db)
    if max_sharpness_db is not None:
        raise ValueError(f"sharpness comes from an {INDEX}, and {folder} has none")
    folder = folder if split is None else folder / split
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    pictures = [Picture(path, path.name) for path in paths if path.suffix.lower() in SUFFIXES]
    if not pictures:
        raise ValueError(f"{folder} holds neither an {INDEX} nor a {', '.join(SUFFIXES)} file")
    return pictures


def _indexed(folder: Path, split: str | None, max_sharpness_db: float | None) -> list[Picture]:
    groups: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    with open(folder / INDEX, newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(folder / INDEX, reader.fieldnames or [], max_sharpness_db is not None)
        for row in reader:
            if split is not None and Path(row["file"]).parts[0] != split:
                continue
            if max_sharpness_db is not None and float(row["sharpness_db"]) > max_sharpness_db:
                continue
            group = (row.get("race") or "", row.get("gender") or "")
            path = folder / row["file"]
            age = row.get("age") or ""
            groups[group].append(Picture(path, row["file"], _landmarks(row), group, age))
    turns = [
        (turn, group, picture)
        for group, pictures in groups.items()
        for turn, picture in enumerate(pictures)
    ]
    if not turns:
        wanted = "" if split is None else f" of {split!r}"
        raise ValueError(f"{folder / INDEX} lists no picture{wanted}")
    return [picture for _, _, picture in sorted(turns, key=lambda entry: entry[:2])]


def _check_columns(path: Path, names: Sequence[str], with_sharpness: bool) -> None:
    needed = ["file", "sharpness_db"] if with_sharpness else ["file"]
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}")


def _landmarks(row: Mapping[str, str]) -> NDArray[np.float64] | None:
    values = [row.get(name) for name in _LANDMARK_COLUMNS]
    if not all(values):
        return None
    return np.array([float(value) for value in values if value]).reshape(-1, 2)


def _to_square(
    image: Image, landmarks: NDArray[np.float64] | None, size: int
) -> tuple[Image, NDArray[np.float64] | None]:
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    image = image[top : top + side, left : left + side]
    if side != size:
        interpolation = cv2.INTER_AREA if size < side else cv2.INTER_CUBIC
        resized = cv2.resize(image, (size, size), interpolation=interpolation)
        image = np.asarray(resized, dtype=np.uint8)
    if landmarks is not None:
        # Pixel centres are at +0.5.
        landmarks = (landmarks - (left, top) + 0.5) * (size / side) - 0.5
    return image, landmarks
