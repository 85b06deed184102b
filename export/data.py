"""Training crops with landmarks, cut from the face folder described by its `index.csv`."""

from __future__ import annotations

import csv
import mmap
import multiprocessing
import os
import queue
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from export.losses import sampling_theta

# How often an image of a source is drawn, relative to FairFace: the portraits teach hair,
# shoulders, backgrounds and, above 224 pixels, real detail.
SOURCE_WEIGHT = {"fairface": 1.0, "congress": 4.0, "congress_historic": 1.5, "london": 16.0}
# Of groups whose identity is kept less well than others' (the model card's table), once more.
GROUP_WEIGHT = {"White Male": 2.0, "White Female": 1.5}
HEADER_BYTES = 8  # of the file of a square image (docs/bitstream.md)
SHARP = 38.0  # dB, see `Face`: FairFace images below it have detail at their own 224 pixels
POINTS = ["left_eye", "right_eye", "nose", "left_mouth", "right_mouth"]


@dataclass
class Face:
    """One image.

    Attributes:
      landmarks: float32 [5, 2], (x, y) in pixels, in the order of POINTS.
      sharpness: dB, low is sharp.
      group: race and gender as the data state them.
    """

    path: Path
    source: str
    landmarks: np.ndarray
    sharpness: float
    group: str


def read_index(root: Path, split: str) -> list[Face]:
    """Faces of `split` ("train" or "val") in `root`/index.csv."""
    faces = []
    with open(root / "index.csv", newline="") as f:
        for row in csv.DictReader(f):
            if row["split"] != split:
                continue
            pts = np.array(
                [[float(row[f"{p}_x"]), float(row[f"{p}_y"])] for p in POINTS], np.float32
            )
            faces.append(
                Face(
                    root / row["file"],
                    row["source"],
                    pts,
                    float(row["sharpness_db"] or 99.0),
                    f"{row['race']} {row['gender']}".strip(),
                )
            )
    return faces


def read_rgb(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(path)
    return np.ascontiguousarray(image[:, :, ::-1])


def nearness(points: np.ndarray, size: int) -> np.ndarray:
    """How near each 4x4 block of a crop is to the face's features, 0..1.

    float32 [2, size / 4, size / 4]: a Gaussian of 0.35 interocular distances around the nearest of
    the five points [5, 2]; one of 0.3 around the line from between the eyes to the tip of the nose,
    where recognisers mind an error two to three times as much as at eyes and mouth
    (`export/EXPERIMENTS.md`).
    """
    interocular = max(float(np.hypot(*(points[1] - points[0]))), 1.0)
    between = (points[0] + points[1]) / 2
    middle = between + (points[2] - between) * np.linspace(0, 1, 9)[:, None]
    maps = [gaussians(points, 0.35 * interocular, size), gaussians(middle, 0.3 * interocular, size)]
    return np.stack(maps)


def gaussians(spots: np.ndarray, sigma: float, size: int) -> np.ndarray:
    """A Gaussian around the nearest of `spots` [N, 2], in pixels: float32 [size / 4, size / 4]."""
    centres = np.arange(2.0, size, 4.0)
    x = np.exp(-0.5 * ((centres[None] - spots[:, :1]) / sigma) ** 2)
    y = np.exp(-0.5 * ((centres[None] - spots[:, 1:]) / sigma) ** 2)
    found: np.ndarray = (y[:, :, None] * x[:, None, :]).max(0).astype(np.float32)
    return found


@dataclass(frozen=True)
class BatchKind:
    """A kind of batch: crops of `size` pixels, `count` of them, drawn with weight `share`.

    detailed: of sharp images alone, and none enlarged: every pixel shows what a camera saw.
    """

    size: int
    count: int
    whole_share: float  # of crops that hold the whole face
    share: float
    detailed: bool = False


def crops_and_faces(crops: int, faces: int, large_share: float) -> list[BatchKind]:
    """Batches of crops of 128 at the scale that faces of 256 have, and of whole faces at 256.

    Args:
      crops, faces: in a batch; large_share: of the batches are of whole faces.
    """
    return [
        BatchKind(128, crops, 0.35, 1 - large_share),
        BatchKind(256, faces, 0.85, large_share),
    ]


KindAndBatch = tuple[BatchKind, tuple[np.ndarray, ...]]


def read_square(path: Path, size: int) -> np.ndarray:
    """The whole image resized to a square, as `val` is measured: float32 [1, 3, size, size]."""
    return _square(read_rgb(path), size)


def read_square_face(face: Face, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of a face, with its landmarks there: float32 [5, 2]."""
    image = read_rgb(face.path)
    height, width = image.shape[:2]
    points = face.landmarks * np.array([size / width, size / height], np.float32)
    return _square(image, size), points


def _square(image: np.ndarray, size: int) -> np.ndarray:
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(image.transpose(2, 0, 1))[None].astype(np.float32)


class Crops:
    """Random batches of random crops.

    A batch is (image uint8 [B, 3, N, N], theta float32 [B, 2, 3], whole bool [B], near float32
    [B, 2, N / 4, N / 4]): `whole` marks crops that hold the whole face, for which `theta` cuts the
    aligned chip of the identity loss; `near` is `nearness` to the face's features.
    """

    def __init__(self, faces: list[Face], seed: int, kinds: list[BatchKind]) -> None:
        self.faces = faces
        self.rng = np.random.default_rng(seed)
        self.cache: dict[int, np.ndarray] = {}
        w = np.array([SOURCE_WEIGHT[f.source] * GROUP_WEIGHT.get(f.group, 1.0) for f in faces])
        self.p = np.cumsum(w / w.sum())
        sharp = np.array([f.source != "fairface" or f.sharpness < SHARP for f in faces])
        self.p_detailed = np.cumsum(w * sharp / max((w * sharp).sum(), 1e-9))
        self.kinds = kinds

    def sample(
        self, size: int, whole_share: float, *, detailed: bool = False
    ) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray]:
        r = self.rng
        drawn_from = self.p_detailed if detailed else self.p
        i = min(int(np.searchsorted(drawn_from, r.random())), len(self.faces) - 1)
        face = self.faces[i]
        if i not in self.cache:
            self.cache[i] = read_rgb(face.path)
        image = self.cache[i]
        h, w = image.shape[:2]
        pts = face.landmarks
        least = min(size, h, w) if detailed else 0  # not enlarged
        if r.random() < whole_share:
            side = max(min(h, w) * r.uniform(0.82, 1.0), least)
            # keep the face inside: centre near the nose, jittered
            centre = pts[2] + r.normal(0, 0.04, 2) * side
        else:
            # a crop at the scale that faces of 256 pixels have (portraits: up to their own size)
            reach = min(h, w) / (224.0 if face.source == "fairface" else 288.0)
            target = 256.0 * max(0.6, reach) * r.uniform(0.7, 1.15)
            side = max(min(h, w) * min(1.0, size / target), least)
            centre = np.array(
                [r.uniform(side / 2, w - side / 2), r.uniform(side / 2, h - side / 2)]
            )
            if r.random() < 0.5:
                centre = pts.mean(0) + r.normal(0, 0.25, 2) * side
        x0 = float(np.clip(centre[0] - side / 2, 0, w - side))
        y0 = float(np.clip(centre[1] - side / 2, 0, h - side))
        xi, yi, si = round(x0), round(y0), max(16, round(side))
        patch = image[yi : yi + si, xi : xi + si]
        inter = cv2.INTER_AREA if si > size else cv2.INTER_CUBIC
        out = cv2.resize(patch, (size, size), interpolation=inter)
        p = (pts - [xi, yi]) * [size / patch.shape[1], size / patch.shape[0]]
        if r.random() < 0.5:
            out = out[:, ::-1]
            p = np.stack([size - p[:, 0], p[:, 1]], 1)[[1, 0, 2, 4, 3]]
        if r.random() < 0.3:  # illumination and colour cast
            gamma, gain = r.uniform(0.75, 1.3), r.uniform(0.85, 1.1, 3)
            lut = 255 * (np.arange(256) / 255.0) ** gamma
            lut = np.clip(lut[:, None] * gain, 0, 255).astype(np.uint8)
            out = np.stack([lut[:, c][out[:, :, c]] for c in range(3)], 2)
        whole = bool((p > 0.02 * size).all() and (p < 0.98 * size).all())
        theta = sampling_theta(p, size, size) if whole else np.zeros((2, 3), np.float32)
        return np.ascontiguousarray(out.transpose(2, 0, 1)), theta, whole, nearness(p, size)

    def draw(self) -> KindAndBatch:
        """A batch of one of `kinds`."""
        shares = np.array([k.share for k in self.kinds])
        kind = self.kinds[int(self.rng.choice(len(shares), p=shares / shares.sum()))]
        items = [
            self.sample(kind.size, kind.whole_share, detailed=kind.detailed)
            for _ in range(kind.count)
        ]
        return kind, tuple(np.stack([item[j] for item in items]) for j in range(4))


def spread(faces: list[Face], count: int) -> list[Face]:
    """At most `count` of the faces, from all over the list, which is in the order of its groups."""
    return faces[:: max(1, len(faces) // count)][:count]


class FaceSampler(Crops):
    """The same from a background thread."""

    def __init__(self, faces: list[Face], seed: int, kinds: list[BatchKind]) -> None:
        super().__init__(faces, seed, kinds)
        self.queue: queue.Queue[KindAndBatch | Exception] = queue.Queue(4)
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        cv2.setNumThreads(1)
        while True:
            try:
                self.queue.put(self.draw())
            except Exception as error:  # an unreadable image must stop the run, not stall it
                self.queue.put(error)
                return

    def next(self) -> tuple[np.ndarray, ...]:
        """A batch of one of `kinds`; setting `kinds` takes effect within a few batches."""
        return self.next_of_kind()[1]

    def next_of_kind(self) -> KindAndBatch:
        """The same with its kind."""
        item = self.queue.get()
        if isinstance(item, Exception):
            raise item
        return item


class WorkerSampler:
    """The same from processes, for a GPU that one thread cannot feed; all images are read first.

    Each process has two places for batches in shared memory, and two pipes: a byte in one says that
    the next place is filled, a byte in the other that it is free. Batches come from the processes
    in turn, so that their order is the seed's.
    """

    def __init__(self, faces: list[Face], seed: int, kinds: list[BatchKind], workers: int) -> None:
        self.kinds = kinds
        with ThreadPoolExecutor() as threads:
            cache = dict(enumerate(threads.map(lambda face: read_rgb(face.path), faces)))
        size = max(_layout(kind)[-1][-1] for kind in kinds)
        self.places = [[mmap.mmap(-1, size) for _ in range(2)] for _ in range(workers)]
        self.pipes = []
        self.processes = []
        for number, places in enumerate(self.places):
            filled, free = os.pipe(), os.pipe()
            crops = Crops(faces, seed + 1000 * number, kinds)
            crops.cache = cache
            process = multiprocessing.get_context("fork").Process(
                target=_fill, args=(crops, places, filled, free), daemon=True
            )
            process.start()
            self.processes.append(process)
            os.close(filled[1])
            os.close(free[0])
            os.write(free[1], b"..")
            self.pipes.append((filled[0], free[1]))
        self.taken = 0

    def next_of_kind(self) -> KindAndBatch:
        """A batch with its kind; it holds until the next call."""
        worker, turn = self.taken % len(self.pipes), self.taken // len(self.pipes)
        try:
            if self.taken:
                os.write(self.pipes[(self.taken - 1) % len(self.pipes)][1], b".")
            which = os.read(self.pipes[worker][0], 1)
        except BrokenPipeError:
            which = b""
        if not which:
            raise RuntimeError("a process of the sampler has stopped; its own message says why")
        self.taken += 1
        kind = self.kinds[which[0]]
        return kind, _views(self.places[worker][turn % 2], kind)


def face_sampler(
    faces: list[Face], seed: int, kinds: list[BatchKind], workers: int
) -> FaceSampler | WorkerSampler:
    """A sampler of so many processes, or, with none, of a thread."""
    if workers:
        return WorkerSampler(faces, seed, kinds, workers)
    return FaceSampler(faces, seed, kinds)


def _layout(kind: BatchKind) -> list[tuple[tuple[int, ...], type, int, int]]:
    """(shape, dtype, start, end) in bytes of the arrays of a batch; floats first, to be aligned."""
    n, b = kind.size, kind.count
    found: list[tuple[tuple[int, ...], type, int, int]] = []
    end = 0
    for shape, dtype in (
        ((b, 2, n // 4, n // 4), np.float32),
        ((b, 2, 3), np.float32),
        ((b, 3, n, n), np.uint8),
        ((b,), np.bool_),
    ):
        start, end = end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize
        found.append((shape, dtype, start, end))
    return found


def _views(place: mmap.mmap, kind: BatchKind) -> tuple[np.ndarray, ...]:
    arrays: list[np.ndarray] = [
        np.frombuffer(place, dtype, int(np.prod(shape)), start).reshape(shape)
        for shape, dtype, start, _ in _layout(kind)
    ]
    near, theta, image, whole = arrays
    return image, theta, whole, near


def _fill(
    crops: Crops, places: list[mmap.mmap], filled: tuple[int, int], free: tuple[int, int]
) -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run's own handler would keep it alive
    os.close(filled[0])
    os.close(free[1])  # else the end of the other process would not end this one
    turn = 0
    while os.read(free[0], 1):
        kind, batch = crops.draw()
        for view, array in zip(_views(places[turn % 2], kind), batch, strict=True):
            view[...] = array
        os.write(filled[1], bytes([crops.kinds.index(kind)]))
        turn += 1
