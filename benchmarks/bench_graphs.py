"""How much faster a model's graphs are than those of another, each by itself.

    python -m bench_graphs edge FLOAT32

Both are compiled for one size and run in turn on the same numbers, so that a ratio compares
neighbours in time; every run is the second of two, the first brings weights into the cache.
`fasdiff bench` times the same graphs within a codec, where other stages come between them. Ratios
are of medians.

What the numbers do not show: other processors, a busy machine (run it on an idle one).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tables import markdown

from fasdiff_edge.api import graph_shapes
from fasdiff_edge.benchmark import machine
from fasdiff_edge.engines import Graph, load_graph
from fasdiff_edge.models import ANALYSIS, SYNTHESIS, load_model

Row = dict[str, object]


def bench_graphs(
    models: Sequence[str], engine: str, threads: int, size: int, rounds: int
) -> list[Row]:
    """Times of the analysis and of a step of the student without a residual, a row each.

    Args:
      models: two, names or directories; the ratio is how much longer the second takes.
    """
    first, second = (load_model(name) for name in models)
    shapes = graph_shapes(first.entropy, (size, size))[:1]
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for file in (ANALYSIS, SYNTHESIS):
        graphs = [
            load_graph(model.read(file), engine, threads, "residual", shapes)
            for model in (first, second)
        ]
        known = {**shapes[0], "s_hat": (1, first.entropy.num_s)}
        arrays = {
            name: (0.3 * rng.standard_normal(known.get(name, (1,)))).astype(np.float32)
            for name in graphs[0].inputs
        }
        for name in ("t", "realism", "quality"):
            if name in arrays:
                arrays[name][:] = 1
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            for graph, found in zip(graphs, times, strict=True):
                found.append(_seconds(graph, arrays))
        here, there = (1e3 * statistics.median(found) for found in times)
        rows.append(
            {
                "graph": file.removesuffix(".onnx"),
                "engine": engine,
                "threads": threads,
                "size": size,
                "ms": round(here, 2),
                "other_ms": round(there, 2),
                "ratio": round(there / here, 2),
            }
        )
    return rows


def _seconds(graph: Graph, arrays: dict[str, np.ndarray]) -> float:
    graph.run(arrays)
    start = time.perf_counter()
    graph.run(arrays)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs=2, metavar="MODEL", help="name or directory")
    parser.add_argument("--engines", default="openvino", help="comma-separated")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--sizes", default="256,512", help="comma-separated, pixels")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the rows and the machine there")
    args = parser.parse_args()
    rows = [
        row
        for engine in args.engines.split(",")
        for threads in map(int, args.threads.split(","))
        for size in map(int, args.sizes.split(","))
        for row in bench_graphs(args.models, engine, threads, size, args.rounds)
    ]
    print(markdown(rows))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
