"""The kernel benchmark compares things that agree, and says what it could not compare with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fasdiff_edge.models import Model

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import bench_kernels


def test_every_comparison_is_verified_and_timed(model: Model) -> None:
    rows = [
        *bench_kernels.bench_split(1, [(32, 48)]),
        *bench_kernels.bench_threads(1, [32], 4 * 32**2),
        *bench_kernels.bench_range(model, 1, 200),
        *bench_kernels.bench_networks(1, [(32, 0.1)]),
    ]
    timed = [row for row in rows if row["peer"] != "skipped"]
    peers = {"copy", "one thread", "numpy + OpenCV", "numpy, int32"}
    assert peers <= {row["peer"] for row in timed}
    for row in timed:
        assert row["ours_us"] > 0 and row["peer_us"] > 0  # type: ignore[operator]
    assert len({tuple(row) for row in rows}) == 1, "rows of a table have the same columns"


def test_contestants_that_disagree_are_not_timed() -> None:
    with pytest.raises(RuntimeError, match="do not agree"):
        bench_kernels.verify(False, "these")


def test_an_absent_peer_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(bench_kernels.Missing, match="pip install no-such-package"):
        bench_kernels.require("no_such_module", "no-such-package")
    row = bench_kernels.skipped("a case", bench_kernels.Missing("it is not installed"))
    assert (row["peer"], row["met"]) == ("skipped", "it is not installed")
    assert "skipped: a case: it is not installed" in capfd.readouterr().err
