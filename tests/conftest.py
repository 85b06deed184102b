"""Fixtures: a drawn portrait of any size, both engines, and the shipped model.

Nothing here needs a file from elsewhere. Tests of coding and decoding run once with each engine;
all others use "auto", which the environment variable FASDIFF_ENGINE decides.
"""

from __future__ import annotations

import csv
import itertools
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import fasdiff_edge
from fasdiff_edge import Decoder, Encoder
from fasdiff_edge.engines import CPU_ENGINE_NAMES
from fasdiff_edge.models import Model, load_model

# A profile of this machine must not choose the engine of the tests.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="fasdiff-tests-")

REPOSITORY = Path(__file__).resolve().parent.parent
# For `import export` and `import benchmarks`; last, so that the installed package comes first.
sys.path.append(str(REPOSITORY))

DrawPortrait = Callable[..., np.ndarray]
RunPython = Callable[..., "subprocess.CompletedProcess[bytes]"]


def _draw_portrait(height: int = 256, width: int = 256, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    ramp = np.linspace(0.0, 1.0, height)[:, None, None] * np.array([40.0, 60.0, 30.0])
    canvas = np.ascontiguousarray(np.broadcast_to(90.0 + ramp, (height, width, 3)).astype(np.uint8))
    skin = random.integers((150, 100, 80), (230, 180, 160)).tolist()

    def ellipse(x: float, y: float, rx: float, ry: float, colour: tuple[int, ...]) -> None:
        centre = (round(x * width), round(y * height))
        axes = (max(1, round(rx * width)), max(1, round(ry * height)))
        cv2.ellipse(canvas, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)

    ellipse(0.5, 1.05, 0.45, 0.25, (40, 50, 90))
    ellipse(0.5, 0.42, 0.33, 0.38, (60, 40, 30))
    ellipse(0.5, 0.5, 0.27, 0.36, tuple(skin))
    for x in (0.39, 0.61):
        ellipse(x, 0.44, 0.055, 0.03, (245, 245, 245))
        ellipse(x, 0.44, 0.025, 0.03, (50, 80, 60))
        ellipse(x, 0.38, 0.07, 0.012, (60, 40, 30))
    ellipse(0.5, 0.56, 0.03, 0.06, tuple(round(0.85 * value) for value in skin))
    ellipse(0.5, 0.7, 0.1, 0.03, (170, 60, 60))
    grain = cv2.GaussianBlur(random.normal(0.0, 30.0, canvas.shape), (0, 0), 2.0)
    return np.clip(cv2.GaussianBlur(canvas, (0, 0), 1.0) + grain, 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """What a test draws with torch does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def draw_portrait() -> DrawPortrait:
    """draw_portrait(height=256, width=256, seed=0) -> uint8 RGB [height, width, 3]."""
    return _draw_portrait


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """uint8 RGB [128, 128, 3]; read-only."""
    image = _draw_portrait(128, 128)
    image.flags.writeable = False
    return image


@pytest.fixture(scope="session")
def recogniser_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for `Recogniser`, of a network that has learnt nothing."""
    from small_recogniser import write_recogniser  # needs torch

    return write_recogniser(tmp_path_factory.mktemp("recogniser"))


@pytest.fixture(scope="session")
def model() -> Model:
    """The shipped model."""
    return load_model("edge")


@pytest.fixture(scope="session", params=CPU_ENGINE_NAMES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def encoder(engine: str) -> Encoder:
    return Encoder(engine=engine, threads=1)


@pytest.fixture(scope="session")
def decoder(engine: str) -> Decoder:
    return Decoder(engine=engine, threads=1)


@pytest.fixture(scope="session")
def coded(portrait: np.ndarray) -> bytes:
    """The portrait as a file of at most 600 bytes."""
    return Encoder(threads=1).encode(portrait, max_bytes=600)


@pytest.fixture
def run_python(tmp_path: Path) -> Iterator[RunPython]:
    """run_python(*args, stdin=b"", **environment): a Python in tmp_path that finds the package."""
    package = Path(fasdiff_edge.__file__).resolve().parent.parent

    def run(
        *args: str | Path, stdin: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        variables = {**os.environ, "PYTHONPATH": str(package), **environment}
        command = [sys.executable, *map(str, args)]
        return subprocess.run(
            command, input=stdin, capture_output=True, cwd=tmp_path, env=variables, timeout=600
        )

    yield run


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture
def face_folder(tmp_path: Path) -> Path:
    """Generated stand-ins for portraits, with an index like the training data's."""
    from export.data import POINTS  # these import torch, which most tests do without
    from export.losses import ARCFACE_TEMPLATE
    from export.verify import synthetic_image

    rows = []
    for i in range(6):
        name = f"f{i}.png"
        cv2.imwrite(str(tmp_path / name), synthetic_image(200 + i, 190, seed=i))
        pts = ARCFACE_TEMPLATE * 1.2 + [25, 30]
        row = {"file": name, "split": "val" if i == 5 else "train", "source": "fairface"}
        for p, (x, y) in zip(POINTS, pts, strict=True):
            row |= {f"{p}_x": x, f"{p}_y": y}
        rows.append(row | {"sharpness_db": 30, "race": "A", "gender": "B"})
    with open(tmp_path / "index.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of a training takes 0.15 s of its time, however busy the machine is."""
    from export import training

    ticks = itertools.count()
    clock = types.SimpleNamespace(time=lambda: 0.15 * next(ticks))
    monkeypatch.setattr(training, "time", clock)
