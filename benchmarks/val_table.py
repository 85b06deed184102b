"""What our bytes buy against the peers' bytes, on a folder of faces with an index.

Ours is decoded twice from the same file, with realism 1 (sharp) and 0 (faithful). A peer gets its
best file within the budget, shrunk first where that gives the better PSNR; where none fits, its
smallest file counts, with its bytes. Everything comes from one run. Prints Markdown tables and
writes `<dataset>-<size>.tsv` and `<dataset>-<size>-groups.tsv` under the results folder.

What the numbers do not show: how a face looks; how recognition works against other photographs of
the person (each original is only compared with its own decoded self); other distributions of faces.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from dataset import Face, load_index
from identity import SAME_PERSON, Identity
from metrics import has_ssimulacra2, ms_ssim, psnr, ssim, ssimulacra2
from peers import PeerCache, available_peers, missing_peers
from tables import RESULTS, markdown, write_tsv
from tqdm import tqdm  # type: ignore[import-untyped]

import fasdiff_edge
from fasdiff_edge import Decoder, Encoder
from fasdiff_edge.contact_sheet import code
from fasdiff_edge.models import load_model
from fasdiff_edge.peers import Image

OURS = "FaSDiff-Edge"
OURS_FAITHFUL = "FaSDiff-Edge, realism 0"
GROUP_CODECS = (OURS, "WebP")
Key = TypeVar("Key")
_MS_SSIM_SIDE = 176  # pixels; smaller images have too few scales


@dataclass(frozen=True)
class Options:
    """What a worker needs to know; see the command line."""

    budgets: tuple[int, ...]
    size: int | None
    model: str
    engine: str
    threads: int
    peers: tuple[str, ...]
    cache: Path | None
    with_ssimulacra2: bool


@dataclass(frozen=True)
class Record:
    """One image, codec and budget. Figures that were not measured are NaN."""

    file: str
    race: str
    gender: str
    codec: str
    budget: int
    bytes: int
    psnr: float
    ssim: float
    ms_ssim: float
    ssimulacra2: float
    identity: float
    face_detected: bool


@dataclass(frozen=True)
class Summary:
    """One codec and budget over all images."""

    codec: str
    budget: int
    images: int
    mean_bytes: float
    share_over_budget: float
    psnr: float
    ssim: float
    ms_ssim: float
    ssimulacra2: float
    identity: float
    share_not_same: float


class Evaluator:
    """Codes and measures one face after another; one a process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        model, engine, threads = options.model, options.engine, options.threads
        self._encoder = Encoder(model=model, engine=engine, threads=threads)
        self._decoder = Decoder(model=model, engine=engine, threads=threads)
        self._faithful = Decoder(model=model, engine=engine, threads=threads, realism=0.0)
        self._peers = [peer for peer in available_peers() if peer.name in options.peers]
        self._cache = PeerCache(options.cache)
        self._identity = Identity()

    def evaluate(self, face: Face) -> list[Record]:
        """All codecs at all budgets."""
        image, landmarks = face.load(self._options.size)
        budgets = self._options.budgets
        found, detected = self._identity.landmarks(image, landmarks)
        entries: list[tuple[str, int, int, Image]] = []
        for budget, (data, decoded) in zip(
            budgets, code(image, budgets, self._encoder, self._decoder), strict=False
        ):
            entries.append((OURS, budget, len(data), decoded))
            entries.append((OURS_FAITHFUL, budget, len(data), self._faithful.decode(data)))
        for peer in self._peers:
            for budget, result in zip(budgets, self._cache.fit(peer, image, budgets), strict=True):
                entries.append((peer.name, budget, len(result.data), result.image))
        decoded_images = [entry[3] for entry in entries]
        distances = self._identity.distances(image, decoded_images, found)
        large = min(image.shape[:2]) >= _MS_SSIM_SIDE
        with_ssimulacra2 = self._options.with_ssimulacra2
        return [
            Record(
                file=face.path.name,
                race=face.group[0],
                gender=face.group[1],
                codec=codec,
                budget=budget,
                bytes=size,
                psnr=psnr(image, decoded),
                ssim=ssim(image, decoded),
                ms_ssim=ms_ssim(image, decoded) if large else float("nan"),
                ssimulacra2=ssimulacra2(image, decoded) if with_ssimulacra2 else float("nan"),
                identity=distance,
                face_detected=detected,
            )
            for (codec, budget, size, decoded), distance in zip(entries, distances, strict=True)
        ]


_evaluator: Evaluator | None = None  # of a worker process


def evaluate_all(faces: Sequence[Face], options: Options, jobs: int) -> list[Record]:
    """Records of all faces, in their order, whatever the number of processes."""
    return [
        record
        for records in tqdm(_map(faces, options, jobs), total=len(faces), unit="face")
        for record in records
    ]


def summarise(records: Iterable[Record]) -> list[Summary]:
    """Means over images, by budget, then in the order in which codecs first appear."""
    result = []
    for (budget, codec), rows in _grouped(records, lambda row: (row.budget, row.codec)):
        distances = np.array([row.identity for row in rows])
        result.append(
            Summary(
                codec=codec,
                budget=budget,
                images=len(rows),
                mean_bytes=_mean(row.bytes for row in rows),
                share_over_budget=_mean(row.bytes > budget for row in rows),
                psnr=_mean(row.psnr for row in rows),
                ssim=_mean(row.ssim for row in rows),
                ms_ssim=_mean(row.ms_ssim for row in rows),
                ssimulacra2=_mean(row.ssimulacra2 for row in rows),
                identity=float(distances.mean()),
                share_not_same=float((distances >= SAME_PERSON).mean()),
            )
        )
    return sorted(result, key=lambda row: row.budget)


def group_identity(records: Iterable[Record]) -> list[dict[str, object]]:
    """Mean dlib distance of each race and gender, for `GROUP_CODECS` at each budget."""
    rows: list[dict[str, object]] = []
    grouped = sorted(_grouped(records, lambda row: (row.race, row.gender)))
    for (race, gender), members in grouped:
        row: dict[str, object] = {
            "race": race,
            "gender": gender,
            "images": len({member.file for member in members}),
        }
        for (budget, codec), cell in _grouped(members, lambda row: (row.budget, row.codec)):
            if codec in GROUP_CODECS:
                row[f"{codec} {budget} B"] = round(_mean(member.identity for member in cell), 4)
        rows.append(row)
    return rows


def table(summaries: Sequence[Summary]) -> list[dict[str, object]]:
    """The summaries as they are shown: rounded, without what was not measured."""
    rows = []
    for row in summaries:
        shown: dict[str, object] = {
            "budget": f"{row.budget} B",
            "codec": row.codec,
            "mean bytes": f"{row.mean_bytes:.0f}",
            "over budget": f"{row.share_over_budget:.0%}",
            "PSNR": f"{row.psnr:.2f} dB",
            "SSIM": f"{row.ssim:.3f}",
            "MS-SSIM": f"{row.ms_ssim:.3f}",
            "SSIMULACRA2": f"{row.ssimulacra2:.1f}",
            "dlib distance": f"{row.identity:.3f}",
            f"distance >= {SAME_PERSON}": f"{row.share_not_same:.1%}",
        }
        rows.append({name: value for name, value in shown.items() if value != "nan"})
    return rows


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv")
    parser.add_argument("--split", default="val", help="folder of the pictures below it (val)")
    parser.add_argument("--size", type=int, help="resize to this square first (as they are)")
    parser.add_argument("--bytes", default="300,600,1000", help="budgets (300,600,1000)")
    parser.add_argument("--limit", type=int, help="only the first N, groups taking turns")
    parser.add_argument("--max-sharpness-db", type=float, help="leave out softer pictures")
    parser.add_argument("--peers", help="names, comma-separated; default: all that are installed")
    parser.add_argument("--model", default="edge")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each (1)")
    parser.add_argument("--cache", type=Path, help="folder that remembers the peers' files")
    parser.add_argument("--ssimulacra2", action="store_true", help="measure it too (slow)")
    parser.add_argument("--per-image", type=Path, help="TSV to write with a row for each image")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="folder for the TSV files",
    )
    args = parser.parse_args(argv)
    if args.ssimulacra2 and not has_ssimulacra2():
        parser.error("--ssimulacra2 needs: pip install ssimulacra2")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    names = [peer.name for peer in available_peers()]
    if args.peers is not None:
        chosen = args.peers.split(",")
        unknown = sorted(set(chosen) - set(names))
        if unknown:
            sys.exit(f"no such peer here: {', '.join(unknown)}; there are {', '.join(names)}")
        names = chosen
    for name, package in missing_peers().items():
        print(f"left out, because {package} is not installed: {name}", file=sys.stderr)

    faces = load_index(args.data, args.split, args.max_sharpness_db)[: args.limit]
    options = Options(
        budgets=tuple(int(part) for part in args.bytes.split(",")),
        size=args.size,
        model=args.model,
        engine=args.engine,
        threads=1,
        peers=tuple(names),
        cache=args.cache,
        with_ssimulacra2=args.ssimulacra2,
    )
    records = evaluate_all(faces, options, args.jobs)
    summaries, groups = summarise(records), group_identity(records)

    size = "native" if args.size is None else str(args.size)
    missed = len({record.file for record in records if not record.face_detected})
    run: dict[str, object] = {
        "version": fasdiff_edge.__version__,
        "model_id": f"{load_model(args.model).entropy.model_id:04x}",
        "dataset": args.split,
        "size": size,
        "faces_not_detected": missed,
    }
    results = args.results / f"{args.split}-{size}.tsv"
    write_tsv(results, [{**run, **asdict(row)} for row in summaries])
    write_tsv(results.with_name(f"{results.stem}-groups.tsv"), [{**run, **row} for row in groups])
    if args.per_image is not None:
        write_tsv(args.per_image, [asdict(record) for record in records])

    print(f"{len(faces)} images of {args.split} at {size}, model {run['model_id']}; ", end="")
    print(f"{missed} with landmarks from the index\n")
    print(markdown(table(summaries)), end="\n\n")
    print("Mean dlib distance by group\n")
    print(markdown(groups), end="\n\n")
    print(f"written: {results}")
    return 0


def _map(faces: Sequence[Face], options: Options, jobs: int) -> Iterator[list[Record]]:
    if jobs == 1:
        yield from map(Evaluator(options).evaluate, faces)
        return
    # Spawned: inference engines do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (options,)) as pool:
        yield from pool.map(_work, faces)


def _start_worker(options: Options) -> None:
    global _evaluator
    _evaluator = Evaluator(options)


def _work(face: Face) -> list[Record]:
    assert _evaluator is not None
    return _evaluator.evaluate(face)


def _grouped(
    records: Iterable[Record], key: Callable[[Record], Key]
) -> list[tuple[Key, list[Record]]]:
    """Records by key, in the order of first appearance."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.items())


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    sys.exit(main())
