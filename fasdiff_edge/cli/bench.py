"""`fasdiff bench`: how long every stage takes on this machine, and which engine suits it best."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from .. import benchmark, profile
from ..engines import available_engines
from ..errors import FasdiffError, OptionError
from ..imaging import read_picture
from .files import quiet_stderr, read_input, write_output


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    cores = os.cpu_count() or 1
    threads = sorted({1, min(2, cores), min(4, cores)})
    parser = subparsers.add_parser(
        "bench",
        help="measure latency on this machine, stage by stage",
        description="Encode to a byte budget and decode, with every engine that is installed, and "
        "print the median of each stage in milliseconds; the report of --json has the 95th and "
        "99th percentiles, and describes the machine. Each configuration runs in a process of its "
        "own. Needs tqdm, and for --plot matplotlib (the [bench] extra).",
    )
    parser.add_argument("--image", metavar="IMG", help="a portrait (a drawing of one)")
    parser.add_argument(
        "--engines", metavar="NAME,...", help="(those installed: openvino, onnxruntime)"
    )
    parser.add_argument(
        "--threads",
        type=_numbers,
        default=threads,
        metavar="N,...",
        help=f"({','.join(map(str, threads))})",
    )
    parser.add_argument(
        "--sizes", type=_numbers, default=[256, 512], metavar="N,...", help="pixels (256,512)"
    )
    parser.add_argument(
        "--steps",
        type=_numbers,
        metavar="N,...",
        help="of the sampler (all that the model supports)",
    )
    parser.add_argument("--max-bytes", type=int, default=1000, metavar="N", help="budget (1000)")
    parser.add_argument("--effort", type=int, default=0, metavar="N", help="of the encoder (0)")
    parser.add_argument(
        "--any-size",
        action="store_true",
        help="make encoder and decoder for pictures of any size, not for the one that is timed",
    )
    parser.add_argument("--repeats", type=int, default=100, metavar="N", help="(100)")
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        metavar="MODEL",
        help="model name or directory (edge); again for another precision",
    )
    parser.add_argument("--json", metavar="FILE", help='write a report; "-" for stdout')
    parser.add_argument("--plot", metavar="FILE", help="write a chart of the stages, .png")
    parser.add_argument(
        "--write-profile",
        action="store_true",
        help='make the best engine and threads the ones that engine="auto" takes on this machine',
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="measure nothing: print ratios of the medians of two reports, B over A",
    )


def run(args: argparse.Namespace) -> int:
    """Measure or compare; errors are raised."""
    if args.compare is not None:
        reports = [
            benchmark.read_report(read_input(name).decode(errors="replace"), name)
            for name in args.compare
        ]
        _print(_table(benchmark.compare(*reports)))
        return 0
    if args.repeats < 1 or args.max_bytes < 1:
        raise OptionError("--repeats and --max-bytes are at least 1")
    report = _measure(args)
    if args.json != "-":
        _print(_table([_flat(row) for row in report["results"]]))
    if args.json is not None:
        write_output(args.json, (json.dumps(report, indent=1) + "\n").encode())
    if args.plot is not None:
        _plot(report, args.plot)
    found = benchmark.best(report["results"])
    if args.write_profile:
        path = profile.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_output(str(path), profile.serialise(found))
        print(f"{path}: {found.engine}, {found.threads} threads", file=sys.stderr)
    else:
        print(
            f"best here: {found.engine}, {found.threads} threads (--write-profile keeps that)",
            file=sys.stderr,
        )
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise FasdiffError("fasdiff bench needs tqdm: pip install 'fasdiff-edge[bench]'") from error
    if args.plot is not None:
        _pyplot()
    installed = available_engines()
    engines = args.engines.split(",") if args.engines else installed
    missing = [name for name in engines if name not in installed]
    if missing:
        raise OptionError(f"not installed: {', '.join(missing)}; there is {', '.join(installed)}")
    image = benchmark.drawn_face()
    if args.image is not None:
        data = read_input(args.image)
        with quiet_stderr():
            image = read_picture(data)
    models = benchmark.by_precision(args.models or ["edge"])
    options = {
        "models": models,
        "max_bytes": args.max_bytes,
        "effort": args.effort,
        "any_size": args.any_size,
        "repeats": args.repeats,
    }
    rows = benchmark.configurations(engines, args.threads, args.sizes, models, args.steps)
    machine = benchmark.machine()
    results = []
    with tqdm(total=len(rows), unit="configuration", file=sys.stderr) as bar:
        for row in benchmark.run(rows, image, options):
            results.append(row)
            bar.update()
    machine["temperatures_after"] = benchmark.temperatures()
    return {"format": benchmark.FORMAT, "machine": machine, "options": options, "results": results}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: medians, and p95 of the whole."""
    return {
        "engine": row["engine"],
        "precision": row["precision"],
        "threads": row["threads"],
        "size": row["size"],
        "steps": row["steps"],
        **{name: f"{part['median']:.2f}" for name, part in row["stages"].items()},
        "encode": f"{row['encode']['median']:.1f}",
        "p95": f"{row['encode']['p95']:.1f}",
        "decode": f"{row['decode']['median']:.1f}",
        "p95 ": f"{row['decode']['p95']:.1f}",
        "cold": f"{row['cold_start_ms']:.0f}",
        "MB": row["peak_mb"],
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]


def _print(lines: list[str]) -> None:
    write_output("-", ("\n".join(lines) + "\n").encode())


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise FasdiffError("--plot needs matplotlib: pip install 'fasdiff-edge[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plot(report: dict[str, Any], path: str) -> None:
    """Stacked medians of the stages, a bar for each configuration."""
    import io

    if Path(path).suffix.lower() != ".png":
        raise OptionError(f"cannot write {path}: use .png")
    pyplot = _pyplot()
    rows = report["results"]
    names = list(rows[0]["stages"])
    labels = [
        f"{r['engine']} {r['threads']}t\n{r['precision']}\n{r['size']}x{r['size']}, {r['steps']}"
        for r in rows
    ]
    figure, axes = pyplot.subplots(figsize=(2.5 + 1.1 * len(rows), 5))
    bottom = [0.0] * len(rows)
    for name in names:
        heights = [row["stages"].get(name, {"median": 0.0})["median"] for row in rows]
        axes.bar(labels, heights, bottom=bottom, label=name)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    axes.set_ylabel("ms, median")
    axes.set_title(f"{report['machine']['cpu']}, {report['options']['max_bytes']} bytes")
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    write_output(path, buffer.getvalue())


def _numbers(text: str) -> list[int]:
    """ "1,2" as integers of at least 1."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,N,...") from error
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 1")
    return numbers
