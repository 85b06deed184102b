"""The benchmark of graphs runs both models' in turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import bench_graphs


def test_both_graphs_are_timed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "graphs.json"
    arguments = ["edge", "edge", "--threads", "1", "--sizes", "64", "--rounds", "3"]
    monkeypatch.setattr(sys, "argv", ["bench_graphs", *arguments, "--json", str(path)])
    bench_graphs.main()
    written = json.loads(path.read_text())
    assert [row["graph"] for row in written["rows"]] == ["analysis", "synthesis"]
    for row in written["rows"]:
        assert row["ratio"] == pytest.approx(row["other_ms"] / row["ms"], abs=0.02)
        assert (row["size"], row["threads"], row["engine"]) == (64, 1, "openvino")
    assert written["machine"]
    assert "| synthesis | openvino |" in capsys.readouterr().out


def test_the_ratio_says_how_much_longer_the_second_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        inputs = ("bands",)

        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def run(self, arrays: object) -> None:
            bench_graphs.time.sleep(self.seconds)

    waits = iter([0.002, 0.006, 0.002, 0.006])
    monkeypatch.setattr(bench_graphs, "load_graph", lambda *_: Slow(next(waits)))
    for row in bench_graphs.bench_graphs(["edge", "edge"], "openvino", 1, 64, 5):
        assert 2 < float(row["ratio"]) < 3.5  # type: ignore[arg-type]
