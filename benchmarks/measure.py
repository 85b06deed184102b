"""Measuring codecs on pictures at budgets: what rate_distortion.py and fairness.py share.

Ours is decoded twice from the same file, with realism 1 (sharp) and 0 (faithful); with `--effort`
a file of that effort is decoded with realism 0 as well, and with `--recogniser` one whose passes
follow that recogniser's likeness. A peer gets its best file within the
budget, shrunk first where that gives the better PSNR; where none fits, its smallest file counts,
with its bytes. Everything comes from one run.

What the numbers do not show: how a face looks; how recognition works against other photographs of
the person (each original is only compared with its own decoded self); other distributions of faces.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from dataset import Picture, load_pictures
from identity import SAME_PERSON, Identity
from metrics import has_ssimulacra2, ms_ssim, psnr, ssim, ssimulacra2
from peers import PeerCache, available_peers, missing_peers
from tables import RESULTS, write_tsv
from tqdm import tqdm

import fasdiff_edge
from fasdiff_edge import Decoder, Encoder, Recogniser
from fasdiff_edge.contact_sheet import code
from fasdiff_edge.errors import FasdiffError
from fasdiff_edge.models import load_model
from fasdiff_edge.peers import Image

OURS = "FaSDiff-Edge"
OURS_FAITHFUL = "FaSDiff-Edge, realism 0"
OURS_REFINED = "FaSDiff-Edge, realism 0, refined"  # by `--effort`
OURS_ALIKE = "FaSDiff-Edge, realism 0, with a recogniser"  # by `--effort` and `--recogniser`
ALL_OURS = (OURS, OURS_FAITHFUL, OURS_REFINED, OURS_ALIKE)
DEFAULT_BYTES = "300,500,1000"
Key = TypeVar("Key")
_MS_SSIM_SIDE = 176  # pixels; smaller images have too few scales


@dataclass(frozen=True)
class Budget:
    """What a file may take: bytes ("B"), or bits per pixel ("bpp") of the picture that is coded."""

    value: Fraction
    unit: str

    @property
    def label(self) -> str:
        """As in tables: "300 B", "0.1 bpp"."""
        number = str(self.value) if self.value.denominator == 1 else f"{float(self.value):g}"
        return f"{number} {self.unit}"

    def bytes(self, height: int, width: int) -> int:
        """Whole bytes for a picture of this many pixels, rounded down, at least 1."""
        exact = self.value if self.unit == "B" else self.value * height * width / 8
        return max(1, math.floor(exact))


@dataclass(frozen=True)
class Options:
    """What a worker needs to know; see the command line."""

    budgets: tuple[Budget, ...]
    size: int | None
    model: str
    engine: str
    peers: tuple[str, ...]
    cache: Path | None
    with_ssimulacra2: bool
    effort: int = 0
    recogniser: Path | None = None


@dataclass(frozen=True)
class Run:
    """Where records come from; in every row of every TSV file.

    Attributes:
      version: of the package.
      model_id: four hexadecimal digits.
      dataset: name of the split or of the folder.
      size: side in pixels that pictures were resized to, or "native".
    """

    version: str
    model_id: str
    dataset: str
    size: str

    @property
    def stem(self) -> str:
        """The start of the names of its result files."""
        return f"{self.dataset}-{self.size}"


@dataclass(frozen=True)
class Record:
    """One image, codec and budget. Figures that were not measured are NaN.

    Attributes:
      file, race, gender, age: of the picture; empty where there is no index, or it does not say.
      width, height: in pixels, as coded.
      codec, budget: names, as in tables.
      budget_bytes, bytes: the budget for this picture, and the size of the file.
      psnr: dB. ssim, ms_ssim, ssimulacra2: as in `metrics`.
      identity: dlib's distance; NaN without a face.
      face: what told where the face is, "detector" or "landmarks" (of the index), or "none".
    """

    file: str
    race: str
    gender: str
    age: str
    width: int
    height: int
    codec: str
    budget: str
    budget_bytes: int
    bytes: int
    psnr: float
    ssim: float
    ms_ssim: float
    ssimulacra2: float
    identity: float
    face: str


@dataclass(frozen=True)
class Summary:
    """One codec and budget over all images; figures are means, NaN where none was measured.

    Attributes:
      images, faces, detected: how many; those with a face; those whose face the detector found.
      mean_bytes, mean_bpp: of whole files.
      share_over_budget: of the files, 0..1.
      psnr, ssim, ms_ssim, ssimulacra2, identity: as in `Record`.
      not_same: faces at a distance of 0.6 or more.
      recognition: share of the faces below 0.6, 0..1.
    """

    codec: str
    budget: str
    images: int
    faces: int
    detected: int
    mean_bytes: float
    mean_bpp: float
    share_over_budget: float
    psnr: float
    ssim: float
    ms_ssim: float
    ssimulacra2: float
    identity: float
    not_same: int
    recognition: float


class Evaluator:
    """Codes and measures one picture after another; one a process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        model, engine = options.model, options.engine
        self._encoder = Encoder(model=model, engine=engine, threads=1)
        self._refiner: Encoder | None = None
        if options.effort:
            self._refiner = Encoder(model, engine, 1, options.effort)
        self._recogniser: Recogniser | None = None
        if options.recogniser is not None:
            self._recogniser = Recogniser(options.recogniser, engine, 1)
        self._decoder = Decoder(model=model, engine=engine, threads=1)
        self._faithful = Decoder(model=model, engine=engine, threads=1, realism=0.0)
        self._peers = [peer for peer in available_peers() if peer.name in options.peers]
        self._cache = PeerCache(options.cache)
        self._identity = Identity()

    def evaluate(self, picture: Picture) -> list[Record]:
        """All codecs at all budgets."""
        image, known = picture.load(self._options.size)
        height, width = image.shape[:2]
        budgets = self._options.budgets
        limits = [budget.bytes(height, width) for budget in budgets]
        entries: list[tuple[str, Budget, int, Image]] = []
        coded = code(image, limits, self._encoder, self._decoder)
        for budget, (data, decoded) in zip(budgets, coded, strict=True):
            entries.append((OURS, budget, len(data), decoded))
            entries.append((OURS_FAITHFUL, budget, len(data), self._faithful.decode(data)))
        if self._refiner is not None:
            refined = code(image, limits, self._refiner, self._faithful)
            for budget, (data, decoded) in zip(budgets, refined, strict=True):
                entries.append((OURS_REFINED, budget, len(data), decoded))
            if self._recogniser is not None:
                assert known is not None  # `obtain` refuses other pictures
                likeness = self._recogniser.likeness(image, known)
                alike = code(image, limits, self._refiner, self._faithful, likeness=likeness)
                for budget, (data, decoded) in zip(budgets, alike, strict=True):
                    entries.append((OURS_ALIKE, budget, len(data), decoded))
        for peer in self._peers:
            results = self._cache.fit(peer, image, limits)
            for budget, result in zip(budgets, results, strict=True):
                entries.append((peer.name, budget, len(result.data), result.image))
        face, source = self._identity.landmarks(image, known)
        if face is None:
            distances = [math.nan] * len(entries)
        else:
            distances = self._identity.distances(image, [entry[3] for entry in entries], face)
        large = min(height, width) >= _MS_SSIM_SIDE
        return [
            Record(
                file=picture.name,
                race=picture.group[0],
                gender=picture.group[1],
                age=picture.age,
                width=width,
                height=height,
                codec=codec,
                budget=budget.label,
                budget_bytes=budget.bytes(height, width),
                bytes=size,
                psnr=psnr(image, decoded),
                ssim=ssim(image, decoded),
                ms_ssim=ms_ssim(image, decoded) if large else math.nan,
                ssimulacra2=(
                    ssimulacra2(image, decoded) if self._options.with_ssimulacra2 else math.nan
                ),
                identity=distance,
                face=source,
            )
            for (codec, budget, size, decoded), distance in zip(entries, distances, strict=True)
        ]


_evaluator: Evaluator | None = None  # of a worker process


def evaluate_all(pictures: Sequence[Picture], options: Options, jobs: int) -> list[Record]:
    """Records of all pictures, in their order, whatever the number of processes."""
    progress = tqdm(_map(pictures, options, jobs), total=len(pictures), unit="image")
    return [record for records in progress for record in records]


def summarise(records: Iterable[Record]) -> list[Summary]:
    """Means over images, by budget, then by codec, each in the order of first appearance."""
    summaries = [
        _summary(codec, budget, rows)
        for (budget, codec), rows in grouped(records, lambda row: (row.budget, row.codec))
    ]
    order = list(dict.fromkeys(row.budget for row in summaries))
    return sorted(summaries, key=lambda row: order.index(row.budget))


def grouped(
    records: Iterable[Record], key: Callable[[Record], Key]
) -> list[tuple[Key, list[Record]]]:
    """Records by key, in the order of first appearance."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.items())


def parse_budgets(text: str, unit: str) -> tuple[Budget, ...]:
    """Budgets from numbers with commas between them.

    Raises:
      ValueError: not such numbers, not above 0, or bytes that are not whole.
    """
    budgets = tuple(Budget(Fraction(part.strip()), unit) for part in text.split(","))
    for budget in budgets:
        if budget.value <= 0 or (unit == "B" and budget.value.denominator != 1):
            raise ValueError(f"a budget cannot be {budget.label}")
    return budgets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a measurement, or of one that was made before."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of pictures, or of an index.csv")
    source.add_argument(
        "--records", type=Path, help="measure nothing: read what --per-image wrote in a run before"
    )
    parser.add_argument("--split", help="folder of the pictures below --data (all of the index)")
    parser.add_argument(
        "--size", type=int, help="resize to this square, cut from the middle (as they are)"
    )
    parser.add_argument("--bytes", help=f"budgets in bytes ({DEFAULT_BYTES}, if no --bpp)")
    parser.add_argument("--bpp", help="budgets in bits per pixel, such as 0.1,0.2,0.3,0.5")
    parser.add_argument("--limit", type=int, help="only the first N, groups taking turns")
    parser.add_argument("--max-sharpness-db", type=float, help="leave out softer pictures")
    parser.add_argument(
        "--peers", help="names, comma-separated, or none; default: all that are installed"
    )
    parser.add_argument("--model", default="edge")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--effort", type=int, default=0, help="measure files of it as well (0)")
    parser.add_argument(
        "--recogniser", type=Path, help="of export/recogniser.py: measure files that follow it too"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each (1)")
    parser.add_argument("--cache", type=Path, help="folder that remembers the peers' files")
    parser.add_argument("--ssimulacra2", action="store_true", help="measure it too (slow)")
    parser.add_argument("--per-image", type=Path, help="TSV to write with a row for each image")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")


def obtain(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[Run, list[Record]]:
    """Measure what the command line asks for, or read the records that it names."""
    if args.records is not None:
        return read_records(args.records)
    if args.ssimulacra2 and not has_ssimulacra2():
        parser.error("--ssimulacra2 needs: pip install ssimulacra2")
    try:
        options = Options(
            budgets=_budgets(args),
            size=args.size,
            model=args.model,
            engine=args.engine,
            peers=_chosen_peers(args.peers),
            cache=args.cache,
            with_ssimulacra2=args.ssimulacra2,
            effort=args.effort,
            recogniser=args.recogniser,
        )
        pictures = load_pictures(args.data, args.split, args.max_sharpness_db)[: args.limit]
        if args.recogniser is not None:
            if not args.effort:
                raise ValueError("--recogniser guides what --effort does, which is 0")
            if any(picture.landmarks is None for picture in pictures):
                raise ValueError("--recogniser needs the landmarks of an index")
            Recogniser(args.recogniser, args.engine, 1)  # it is refused before hours pass
        for picture in pictures:
            picture.load(args.size)  # a picture that cannot be read is named before hours pass
    except (ValueError, ZeroDivisionError, FasdiffError) as error:
        parser.error(str(error))
    for name, package in missing_peers().items():
        print(f"left out, because {package} is not installed: {name}", file=sys.stderr)
    run = Run(
        version=fasdiff_edge.__version__,
        model_id=f"{load_model(args.model).entropy.model_id:04x}",
        dataset=(args.split or args.data.resolve().name).replace("/", "-"),
        size="native" if args.size is None else str(args.size),
    )
    records = evaluate_all(pictures, options, args.jobs)
    if args.per_image is not None:
        write_records(args.per_image, run, records)
    return run, records


def write_records(path: Path, run: Run, records: Sequence[Record]) -> None:
    """Write records as a TSV file, with every digit."""
    rows = [{**asdict(run), **asdict(record)} for record in records]
    write_tsv(path, [{name: str(value) for name, value in row.items()} for row in rows])


def read_records(path: Path) -> tuple[Run, list[Record]]:
    """Read what `write_records` wrote.

    Raises:
      ValueError: not such a file.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    types = {"str": str, "int": int, "float": float}  # annotations are strings here
    convert = {field.name: types[str(field.type)] for field in fields(Record)}
    names = [field.name for field in fields(Run)]
    if not rows or set(rows[0]) != {*names, *convert}:
        raise ValueError(f"{path} is not a file that --per-image writes")
    run = Run(**{name: rows[0][name] for name in names})
    return run, [
        Record(**{name: make(row[name]) for name, make in convert.items()}) for row in rows
    ]


def describe(run: Run, records: Sequence[Record]) -> str:
    """What was measured, in a line or two: images, size, model, and how faces were found."""
    sources = {record.file: record.face for record in records}
    known = sum(source == "landmarks" for source in sources.values())
    missing = sum(source == "none" for source in sources.values())
    lines = [f"{title(run, records)}, model {run.model_id}"]
    if known:
        lines.append(f"{known} faces are missed by the detector, and placed by their landmarks.")
    if missing:
        lines.append(
            f"No face is found in {missing} of {len(sources)} images, and no landmarks are known: "
            "identity and recognition are not measured there."
        )
    return "\n".join(lines)


def title(run: Run, records: Sequence[Record]) -> str:
    """Dataset, number of images and their size."""
    images = len({record.file for record in records})
    size = "their own size" if run.size == "native" else f"{run.size} x {run.size}"
    return f"{run.dataset}: {images} {'image' if images == 1 else 'images'} at {size}"


def _budgets(args: argparse.Namespace) -> tuple[Budget, ...]:
    in_bytes = DEFAULT_BYTES if args.bytes is None and args.bpp is None else args.bytes
    budgets = parse_budgets(in_bytes, "B") if in_bytes is not None else ()
    if args.bpp is not None:
        budgets += parse_budgets(args.bpp, "bpp")
    if len(set(budgets)) < len(budgets):
        raise ValueError("a budget is named twice")
    return budgets


def _chosen_peers(text: str | None) -> tuple[str, ...]:
    names = [peer.name for peer in available_peers()]
    if text is None:
        return tuple(names)
    if text == "none":
        return ()
    unknown = sorted(set(text.split(",")) - set(names))
    if unknown:
        raise ValueError(f"no such peer here: {', '.join(unknown)}; there are {', '.join(names)}")
    return tuple(text.split(","))


def _summary(codec: str, budget: str, rows: Sequence[Record]) -> Summary:
    distances = [row.identity for row in rows if not math.isnan(row.identity)]
    not_same = sum(distance >= SAME_PERSON for distance in distances)
    return Summary(
        codec=codec,
        budget=budget,
        images=len(rows),
        faces=len(distances),
        detected=sum(row.face == "detector" for row in rows),
        mean_bytes=mean(row.bytes for row in rows),
        mean_bpp=mean(8 * row.bytes / (row.width * row.height) for row in rows),
        share_over_budget=mean(row.bytes > row.budget_bytes for row in rows),
        psnr=mean(row.psnr for row in rows),
        ssim=mean(row.ssim for row in rows),
        ms_ssim=mean(row.ms_ssim for row in rows),
        ssimulacra2=mean(row.ssimulacra2 for row in rows),
        identity=mean(distances),
        not_same=not_same,
        recognition=1.0 - not_same / len(distances) if distances else math.nan,
    )


def mean(values: Iterable[float]) -> float:
    """The mean of those that are not NaN; NaN if none is left."""
    measured = [value for value in values if not math.isnan(value)]
    return float(np.mean(measured)) if measured else math.nan


def _map(pictures: Sequence[Picture], options: Options, jobs: int) -> Iterator[list[Record]]:
    if jobs == 1:
        yield from map(Evaluator(options).evaluate, pictures)
        return
    # Spawned: inference engines do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (options,)) as pool:
        yield from pool.map(_work, pictures)


def _start_worker(options: Options) -> None:
    global _evaluator
    _evaluator = Evaluator(options)


def _work(picture: Picture) -> list[Record]:
    assert _evaluator is not None
    return _evaluator.evaluate(picture)
