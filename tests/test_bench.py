"""`fasdiff bench`: stages, reports, comparisons and the profile that "auto" follows."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fasdiff_edge import Decoder, Encoder, OptionError, benchmark, engines, profile
from fasdiff_edge.cli import main
from fasdiff_edge.imaging import read_picture
from fasdiff_edge.models import load_model
from fasdiff_edge.stages import DECODE_STAGES, ENCODE_STAGES, record, stage


@pytest.fixture(autouse=True)
def own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No profile of this machine, and a place for one."""
    monkeypatch.delenv("FASDIFF_PROFILE", raising=False)
    monkeypatch.delenv("FASDIFF_ENGINE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "fasdiff" / "profile.json"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short run of the command wrote: one configuration, and a chart beside it."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["--engines", "onnxruntime", "--threads", "1", "--sizes", "128", "--steps", "1"]
    arguments += ["--max-bytes", "500", "--repeats", "3", "--plot", str(folder / "bench.png")]
    assert main(["bench", *arguments, "--json", str(folder / "bench.json")]) == 0
    return folder / "bench.json"


def test_the_stages_of_encoding_and_decoding_fill_the_time(draw_portrait: Any) -> None:
    encoder, decoder = Encoder(threads=1), Decoder(threads=1)
    image = draw_portrait()
    data = encoder.encode(image, max_bytes=400)
    refiner = Encoder(threads=1, effort=1)
    without_effort = tuple(name for name in ENCODE_STAGES if name != "refinement")
    without_residual = tuple(name for name in without_effort if name != "residual")
    for call, stages in (
        (lambda: encoder.encode(image, max_bytes=400), without_residual),
        (lambda: encoder.encode(image, quality=63), without_effort),
        (lambda: refiner.encode(image, quality=63), ENCODE_STAGES),
        (lambda: decoder.decode(data), DECODE_STAGES),
    ):
        call()
        with record() as times:
            start = time.perf_counter()
            call()
            whole = time.perf_counter() - start
        assert tuple(times) == stages
        assert 0.7 * whole < sum(times.values()) <= whole


def test_a_recorder_hears_its_own_block_only() -> None:
    with record() as outer:
        with stage("a"), record() as inner, stage("b"):
            pass
        with stage("a"):
            pass
    with stage("c"):
        pass
    assert (list(outer), list(inner)) == (["a"], ["b"])


def test_report(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = benchmark.read_report(report.read_text(), "report")
    machine = found["machine"]
    assert machine["cpu"] and machine["cores"] >= 1 and "governor" in machine
    assert {"fasdiff-edge", "python", "numpy", "onnxruntime"} <= set(machine["versions"])
    assert isinstance(machine["temperatures"], dict)
    (row,) = found["results"]
    assert (row["engine"], row["threads"]) == ("onnxruntime", 1)
    assert row["precision"] == load_model("edge").precision
    assert (row["size"], row["steps"]) == (128, 1)
    assert row["bytes"] <= 500
    stages = [name for name in ENCODE_STAGES if name in row["stages"]]
    missing = [name for name in ENCODE_STAGES if name not in stages]
    assert missing in (["refinement"], ["refinement", "residual"])
    assert list(row["stages"]) == ["read", *stages, *DECODE_STAGES, "write"]
    for part in (row["encode"], row["decode"], *row["stages"].values()):
        assert 0 < part["median"] <= part["p95"] <= part["p99"]
    spent = sum(row["stages"][name]["median"] for name in stages)
    assert 0.5 * row["encode"]["median"] < spent < 1.5 * row["encode"]["median"]
    assert row["cold_start_ms"] > row["decode"]["median"]
    assert row["peak_mb"] > 30
    chart = read_picture((report.parent / "bench.png").read_bytes())
    assert chart.shape[0] > 200 and len(np.unique(chart.reshape(-1, 3), axis=0)) > 8


def test_a_table_is_printed(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--compare", str(report), str(report)]) == 0
    names, values = capsys.readouterr().out.splitlines()
    assert {"engine", "student", "decode"} <= set(names.split())
    (row,) = json.loads(report.read_text())["results"]
    assert values.split().count("1.0") == len(row["stages"]) + 2


def test_compare_gives_ratios_of_what_both_have(report: Path) -> None:
    a = json.loads(report.read_text())
    b = json.loads(report.read_text())
    row = b["results"][0]
    row["stages"]["student"]["median"] = 2 * a["results"][0]["stages"]["student"]["median"]
    b["results"].append({**row, "size": 256})
    (found,) = benchmark.compare(a, b)
    assert (found["size"], found["student"], found["analysis"]) == (128, 2.0, 1.0)
    with pytest.raises(OptionError, match="in common"):
        benchmark.compare(a, {"results": [{**row, "threads": 7}]})


def test_models_are_told_apart_by_their_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_copy = tmp_path / "copy"
    shutil.copytree(load_model("edge").directory, model_copy)
    shipped = load_model("edge").precision
    manifest = json.loads((model_copy / "manifest.json").read_text())
    other = "float32" if shipped == "int8" else "int8"
    (model_copy / "manifest.json").write_text(json.dumps({**manifest, "precision": other}))
    monkeypatch.chdir(tmp_path)
    models = benchmark.by_precision(["edge", "copy"])
    assert models == {shipped: "edge", other: "copy"}, "as typed: reports are published"
    found = benchmark.configurations(["openvino"], [1, 2], [256], models, [1])
    assert [(c.precision, c.threads) for c in found] == [
        (shipped, 1), (shipped, 2), (other, 1), (other, 2)
    ]  # fmt: skip
    found = benchmark.configurations(["openvino"], [1], [256], models)
    assert [c.steps for c in found] == 2 * list(load_model("edge").num_steps)
    with pytest.raises(OptionError, match="no 3 steps: edge supports 1"):
        benchmark.configurations(["openvino"], [1], [256], models, [1, 3])
    with pytest.raises(OptionError, match="two models in"):
        benchmark.by_precision(["edge", "edge"])


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 2, "results": []}'])
def test_what_is_no_report_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert main(["bench", "--compare", str(path), str(path)]) == 2
    assert "no report of fasdiff bench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--engines", "tensorrt"], "not installed: tensorrt"),
        (["--threads", "0"], "at least 1"),
        (["--sizes", "x"], "not N,N"),
        (["--repeats", "0"], "at least 1"),
        (["--sizes", "8", "--repeats", "1", "--threads", "1"], "measuring process failed"),
    ],
)
def test_bad_options(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["bench", *arguments])
    except SystemExit as error:  # from argparse
        code = int(error.code or 0)
    assert code == 2
    assert reason in capsys.readouterr().err


def row(engine: str, threads: int, encode: float, decode: float) -> dict[str, Any]:
    parts = {"encode": {"median": encode}, "decode": {"median": decode}}
    return {"engine": engine, "precision": "int8", "threads": threads, **parts}


def test_best_is_the_fastest_with_no_more_threads_than_it_needs() -> None:
    rows = [row("openvino", 1, 9, 9), row("openvino", 2, 5, 5), row("onnxruntime", 2, 8, 8)]
    assert benchmark.best(rows) == profile.Profile(profile.cpu_name(), "openvino", 2)
    rows.append(row("openvino", 4, 4.99, 4.99))
    assert benchmark.best(rows).threads == 2
    rows.append({**row("openvino", 1, 1, 1), "precision": "float32"})
    assert benchmark.best(rows).threads == 2


def test_auto_follows_the_profile_of_this_processor(
    own_profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile.read() is None
    own_profile.parent.mkdir(parents=True)
    mine = profile.Profile(profile.cpu_name(), "onnxruntime", 1)
    own_profile.write_bytes(profile.serialise(mine))
    assert profile.read() == profile.applicable() == mine
    assert engines.choose_engine("auto") == "onnxruntime"
    assert engines.choose_engine("openvino") == "openvino"
    assert main(["info", "--cpu"]) == 0
    assert "onnxruntime, 1 threads\n" in capsys.readouterr().out
    monkeypatch.setenv("FASDIFF_ENGINE", "openvino")
    assert engines.choose_engine("auto") == "openvino"
    monkeypatch.delenv("FASDIFF_ENGINE")

    seen: list[int | None] = []
    monkeypatch.setitem(
        engines._ENGINES, "onnxruntime", lambda model, threads, *_: seen.append(threads)
    )
    engines.load_graph(b"", "auto", None)
    engines.load_graph(b"", "auto", 3)
    assert seen == [1, 3]

    other = profile.Profile("another processor", "onnxruntime", 1)
    own_profile.write_bytes(profile.serialise(other))
    assert (profile.read(), profile.applicable()) == (other, None)
    assert main(["info", "--cpu"]) == 0
    assert "not used" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 2, "cpu": "", "engine": "openvino", "threads": 1}', "\xff"]
)
def test_a_damaged_profile_is_an_error(own_profile: Path, text: str) -> None:
    own_profile.parent.mkdir(parents=True)
    own_profile.write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionError, match="profile"):
        Decoder()


def test_a_profile_that_is_named_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASDIFF_PROFILE", str(tmp_path / "none.json"))
    with pytest.raises(OptionError, match="does not exist"):
        profile.read()


def test_a_profile_of_an_unknown_engine_names_its_file(own_profile: Path) -> None:
    own_profile.parent.mkdir(parents=True)
    own_profile.write_bytes(profile.serialise(profile.Profile(profile.cpu_name(), "magic", 1)))
    with pytest.raises(OptionError, match="profile.json"):
        Encoder()


def test_write_profile(own_profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engines", "onnxruntime", "--threads", "1", "--sizes", "48", "--repeats", "1"]
    assert main(["bench", *arguments, "--max-bytes", "400", "--write-profile", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"][0]["size"] == 48
    assert str(own_profile) in captured.err
    assert profile.applicable() == profile.Profile(profile.cpu_name(), "onnxruntime", 1)
