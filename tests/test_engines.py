"""Both inference engines on the shipped graphs."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import openvino
import pytest

from fasdiff_edge import EngineError, OptionError, engines
from fasdiff_edge.engines import CPU_ENGINE_NAMES, available_engines, choose_engine, load_graph
from fasdiff_edge.models import ANALYSIS, GRADIENT, SYNTHESIS, Model


def analysis_inputs(height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    bands = np.random.default_rng(seed).normal(0.0, 0.3, (1, 48, height, width))
    return {"bands": bands.astype(np.float32)}


def synthesis_inputs(model: Model, hy: int, wy: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    entropy = model.entropy
    return {
        "prompt": random.normal(0.0, 1.0, (1, entropy.num_base + entropy.num_z, hy, wy)).astype(
            np.float32
        ),
        "residual": random.normal(0.0, 1.0, (1, entropy.num_residual, hy, wy)).astype(np.float32),
        "s_hat": random.integers(-2, 3, (1, entropy.num_s)).astype(np.float32),
        "t": np.array([0.8], np.float32),
        "x_t": random.normal(0.0, 1.0, (1, 48, 4 * hy, 4 * wy)).astype(np.float32),
        "realism": np.array([0.7], np.float32),
        "quality": np.array([0.4], np.float32),
    }


def test_auto_prefers_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CPU_ENGINE_NAMES:
        monkeypatch.setenv("FASDIFF_ENGINE", name)
        assert choose_engine("auto") == name
    monkeypatch.setenv("FASDIFF_ENGINE", "onnxruntime")
    assert choose_engine("openvino") == "openvino", "an explicit engine is not overridden"
    monkeypatch.setenv("FASDIFF_ENGINE", "tensorrt")
    with pytest.raises(OptionError, match="FASDIFF_ENGINE is 'tensorrt'.*openvino"):
        choose_engine("auto")


@pytest.mark.parametrize(
    ("machine", "installed", "expected"),
    [
        ("x86_64", True, "openvino"),
        ("AMD64", True, "openvino"),
        ("x86_64", False, "onnxruntime"),
        ("aarch64", True, "onnxruntime"),
    ],
)
def test_auto_depends_on_the_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, installed: bool, expected: str
) -> None:
    monkeypatch.delenv("FASDIFF_ENGINE", raising=False)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    assert choose_engine("auto") == expected


@pytest.mark.parametrize("name", ["", "OpenVINO", "torch"])
def test_unknown_engine(name: str) -> None:
    with pytest.raises(OptionError, match="openvino, onnxruntime"):
        choose_engine(name)


class FakeRuntime:
    """An ONNX Runtime with the providers of a Jetson, of which it starts those in `working`."""

    class SessionOptions(SimpleNamespace):
        def add_session_config_entry(self, key: str, value: str) -> None:
            assert (key, value) == ("session.force_spinning_stop", "1")

    def __init__(self, working: list[str]) -> None:
        self.working = working
        self.asked: list[Any] = []

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, model: bytes, options: Any, providers: list[Any]) -> Any:
        self.asked = providers
        none: list[Any] = []
        return SimpleNamespace(
            get_providers=lambda: self.working, get_inputs=lambda: none, get_outputs=lambda: none
        )


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("onnxruntime-cuda", "CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
    ],
)
def test_gpu_engines_never_run_elsewhere_unnoticed(
    name: str, provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime = FakeRuntime([provider, "CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    load_graph(b"DequantizeLinear QuantizeLinear", name, None)
    (first, options), *rest = runtime.asked
    assert first == provider and rest[-1] == "CPUExecutionProvider"
    if name == "onnxruntime-tensorrt":
        assert Path(options["trt_engine_cache_path"]).is_dir()
        assert options["trt_engine_cache_enable"] == options["trt_int8_enable"] == "1"
        load_graph(b"Conv", name, None)
        assert runtime.asked[0][1]["trt_int8_enable"] == "0"
        assert rest[0] == ("CUDAExecutionProvider", {"use_tf32": "0"})
    else:
        assert options == {"use_tf32": "0"}
    runtime.working = ["CPUExecutionProvider"]
    with pytest.raises(EngineError, match=f"could not start {provider}"):
        load_graph(b"", name, None)


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_gpu_engine_without_its_provider(name: str, model: Model) -> None:
    if name in available_engines():
        pytest.skip("this ONNX Runtime has it")
    with pytest.raises(EngineError, match="has no .*ExecutionProvider, only .*CPU"):
        load_graph(model.read(ANALYSIS), name, None)


def test_available_engines() -> None:
    assert available_engines()[:2] == ["openvino", "onnxruntime"]


def test_missing_engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(EngineError, match="is not installed"):
        load_graph(b"", engine, None)


@pytest.mark.parametrize("data", [b"", b"not a graph", bytes(1000)])
def test_damaged_graph(engine: str, data: bytes) -> None:
    with pytest.raises(EngineError, match="cannot load the graph") as caught:
        load_graph(data, engine, 1)
    assert "\n" not in str(caught.value)


def test_run_errors_are_ours(engine: str, model: Model) -> None:
    graph = load_graph(model.read(ANALYSIS), engine, 1)
    with pytest.raises(EngineError, match="cannot run the graph"):
        graph.run({"bands": np.zeros((1, 47, 16, 16), np.float32)})
    # A failure does not spoil the graph.
    assert graph.run(analysis_inputs(16, 16))["y"].shape[2:] == (4, 4)


def test_ports(engine: str, model: Model) -> None:
    analysis = load_graph(model.read(ANALYSIS), engine, 1)
    assert list(analysis.inputs) == ["bands"]
    assert sorted(analysis.outputs) == ["price", "s", "y", "z"]
    synthesis = load_graph(model.read(SYNTHESIS), engine, 1)
    assert sorted(synthesis.inputs) == [
        "prompt",
        "quality",
        "realism",
        "residual",
        "s_hat",
        "t",
        "x_t",
    ]
    assert list(synthesis.outputs) == ["bands"]


@pytest.mark.parametrize("size", [(4, 4), (16, 20), (36, 12), (64, 64)])
def test_shapes_are_dynamic(engine: str, model: Model, size: tuple[int, int]) -> None:
    height, width = size
    hy, wy = height // 4, width // 4
    entropy = model.entropy
    graph = load_graph(model.read(ANALYSIS), engine, 1)
    outputs = graph.run(analysis_inputs(height, width))
    assert outputs["y"].shape == (1, entropy.num_base, hy, wy)
    assert outputs["z"].shape == (1, entropy.num_z, -(-hy // 4), -(-wy // 4))
    assert outputs["s"].shape == (1, entropy.num_s)
    graph = load_graph(model.read(SYNTHESIS), engine, 1)
    assert graph.run(synthesis_inputs(model, hy, wy))["bands"].shape == (1, 48, height, width)


@pytest.mark.parametrize("more", [[], [GRADIENT]])
def test_an_input_that_is_zero_is_left_out_with_its_work(
    engine: str, model: Model, more: list[str]
) -> None:
    """Where the engine can; what comes out is the same, bit for bit."""
    parts = b"".join(model.read(file) for file in (SYNTHESIS, *more))
    inputs = synthesis_inputs(model, 8, 6)
    random = np.random.default_rng(5)
    inputs["target"] = random.normal(0.0, 1.0, (1, 48, 32, 24)).astype(np.float32)
    inputs["weight"] = np.ones((1, 1, 32, 24), np.float32)
    inputs["residual"][:] = 0
    whole = load_graph(parts, engine, 1)
    without = load_graph(parts, engine, 1, "residual")
    assert set(whole.inputs) - set(without.inputs) == (
        {"residual"} if engine == "openvino" else set()
    )
    assert whole.left_out is None
    assert without.left_out == ("residual" if engine == "openvino" else None)
    assert list(without.outputs) == list(whole.outputs)
    expected = whole.run({name: inputs[name] for name in whole.inputs})
    found = without.run({name: inputs[name] for name in without.inputs})
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t", "may turn a t of 0 into others"),
        ("s_hat", "s_hat enters .*, which is no sum"),
        ("prompt", "may turn a prompt of 0 into others"),
    ],
)
def test_an_input_whose_zeros_say_something_stays(model: Model, name: str, reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        load_graph(model.read(SYNTHESIS), "openvino", 1, name)


def test_a_graph_for_some_shapes_takes_others_too(engine: str, model: Model) -> None:
    data = model.read(ANALYSIS)
    plain = load_graph(data, engine, 1)
    graph = load_graph(data, engine, 1, shapes=[{"bands": (1, 48, 16, 12), "x_t": (1, 48, 8, 8)}])
    assert list(graph.inputs) == list(plain.inputs) and list(graph.outputs) == list(plain.outputs)
    for size in ((16, 12), (24, 8), (16, 12)):
        inputs = analysis_inputs(*size)
        found, expected = graph.run(inputs), plain.run(inputs)
        for name, value in expected.items():
            assert found[name].shape == value.shape
            off = np.abs(found[name] - value)
            assert off.mean() < 0.05 * np.abs(value).mean() + 1e-6, name


def test_only_openvino_compiles_for_shapes_and_for_any_when_they_come(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[bool] = []
    core = openvino.Core

    class Counting(core):  # type: ignore[misc, valid-type]
        def compile_model(self, read: Any, *arguments: Any) -> Any:
            compiled.append(read.is_dynamic())
            return super().compile_model(read, *arguments)

    monkeypatch.setattr(openvino, "Core", Counting)
    shapes = [{"bands": (1, 48, 16, 12)}, {"bands": (1, 48, 8, 8)}]
    graph = load_graph(model.read(ANALYSIS), "openvino", 1, shapes=shapes)
    graph.run(analysis_inputs(16, 12))
    assert compiled == [False]
    for _ in range(2):
        graph.run(analysis_inputs(24, 8))
        graph.run(analysis_inputs(16, 12))
    assert compiled == [False, True]
    for _ in range(2):
        graph.run(analysis_inputs(8, 8))
    assert compiled == [False, True, False]
    load_graph(model.read(ANALYSIS), "openvino", 1)
    assert compiled == [False, True, False, True]


def test_shapes_that_a_graph_cannot_have_are_an_error(model: Model) -> None:
    with pytest.raises(EngineError, match="OpenVINO cannot load the graph"):
        load_graph(model.read(ANALYSIS), "openvino", 1, shapes=[{"bands": (1, 47, 16, 12)}])


def rounded_graph() -> bytes:
    """x, twice x rounded to whole numbers within -4..3, and its square rounded so: three outputs.

    Twice x is read unrounded as well, its square is not.
    """
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node
    nodes = [node("Add", ["x", "x"], ["double"]), node("Mul", ["x", "x"], ["square"])]
    for name in ("x", "double", "square"):
        scaled = [f"{name}_whole", "step", "zero"]
        nodes += [
            node("QuantizeLinear", [name, "step", "zero"], [f"{name}_whole"]),
            node("DequantizeLinear", scaled, [f"{name}_rounded"]),
        ]
    nodes.append(node("Sub", ["double", "double_rounded"], ["left"]))
    names = ("x_rounded", "left", "square_rounded")
    graph = onnx.helper.make_graph(
        nodes,
        "rounded",
        [value("x", onnx.TensorProto.FLOAT, [1, 8, 4, 4])],
        [value(name, onnx.TensorProto.FLOAT, [1, 8, 4, 4]) for name in names],
        [
            onnx.helper.make_tensor("step", onnx.TensorProto.FLOAT, [], [0.125]),
            onnx.helper.make_tensor("zero", onnx.TensorProto.INT8, [], [0]),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def test_only_what_others_read_is_rounded_in_passing() -> None:
    data = rounded_graph()
    x = np.random.default_rng(0).normal(0, 9, (1, 8, 4, 4)).astype(np.float32)
    model = openvino.Core().read_model(data)
    engines._round_in_passing(openvino, model)
    (passed,) = (n for n in model.get_ordered_ops() if n.get_type_name() == "Maximum")
    assert passed.input(0).get_source_output().get_node().get_type_name() == "Add"
    for name in CPU_ENGINE_NAMES:
        found = load_graph(data, name, 1).run({"x": x})
        for key, value in (("x_rounded", x), ("square_rounded", x * x)):
            expected = np.clip(np.rint(value * 8), -128, 127) / 8
            np.testing.assert_allclose(found[key], expected, atol=1e-5)
        rest = 2 * x - np.clip(np.rint(16 * x), -128, 127) / 8
        np.testing.assert_allclose(found["left"], rest, atol=1e-5)


@pytest.mark.parametrize("file", [ANALYSIS, SYNTHESIS])
def test_rounding_in_passing_changes_nothing(
    file: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = model.read(file)
    read = openvino.Core().read_model(data)
    engines._round_in_passing(openvino, read)
    assert sum(n.get_type_name() == "Maximum" for n in read.get_ordered_ops()) > 5
    inputs = analysis_inputs(24, 16) if file == ANALYSIS else synthesis_inputs(model, 6, 4)
    found = load_graph(data, "openvino", 1).run(inputs)
    monkeypatch.setattr(engines, "_round_in_passing", lambda *_: None)
    expected = load_graph(data, "openvino", 1).run(inputs)
    for name, value in expected.items():
        # a value between two levels may fall on the other
        off = np.abs(found[name] - value)
        assert off.mean() < 2e-3 * np.abs(value).mean() and off.max() < 0.1 * np.abs(value).max()


def test_shifting_in_passing_changes_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    data = model.read(SYNTHESIS)
    read = openvino.Core().read_model(data)
    engines._shift_in_passing(openvino, read)
    sums = [n for n in read.get_ordered_ops() if n.get_type_name() == "Add"]
    terms = [port.get_source_output().get_node() for n in sums for port in n.inputs()]
    assert not {n.get_type_name() for n in terms} & {"Split", "VariadicSplit"}
    assert sum(n.get_type_name() == "Maximum" for n in terms) == 10  # FiLMs
    inputs = synthesis_inputs(model, 6, 4)
    found = load_graph(data, "openvino", 1).run(inputs)["bands"]
    monkeypatch.setattr(engines, "_shift_in_passing", lambda *_: None)
    assert np.array_equal(found, load_graph(data, "openvino", 1).run(inputs)["bands"])


def test_what_a_graph_does_not_have_is_not_left_out(engine: str, model: Model) -> None:
    graph = load_graph(model.read(ANALYSIS), engine, 1, "residual")
    assert graph.left_out is None and list(graph.inputs) == ["bands"]


def test_outputs_belong_to_the_caller(engine: str, model: Model) -> None:
    graph = load_graph(model.read(ANALYSIS), engine, 1)
    first = graph.run(analysis_inputs(16, 16, seed=1))["y"]
    kept = first.copy()
    graph.run(analysis_inputs(16, 16, seed=2))
    assert first.dtype == np.float32
    assert np.array_equal(first, kept)


def test_the_engines_agree(model: Model) -> None:
    """Float32 in both: equal within 2e-3 of the largest value, which bfloat16 would miss.

    Of an INT8 graph, in which a value between two levels may fall on either: 3 % of the root mean
    square of eight inputs, since any one may have more or fewer such values. What that is in
    pixels, test_api.py tells.
    """
    for file in (ANALYSIS, SYNTHESIS):
        graphs = [load_graph(model.read(file), name, 1) for name in CPU_ENGINE_NAMES]
        errors: dict[str, list[float]] = {}
        powers: dict[str, list[float]] = {}
        for seed in range(8):
            if file == ANALYSIS:
                inputs = analysis_inputs(32, 24, seed=seed)
            else:
                inputs = synthesis_inputs(model, 8, 6, seed=seed)
            one, other = (graph.run(inputs) for graph in graphs)
            for name in one:
                largest = float(np.abs(one[name]).max())
                assert largest > 0
                away = one[name].astype(np.float64) - other[name]
                errors.setdefault(name, []).append(float(np.square(away).mean()))
                power = np.square(one[name], dtype=np.float64).mean()
                powers.setdefault(name, []).append(float(power))
                if model.precision != "int8":
                    assert float(np.abs(away).max()) <= 2e-3 * largest, (file, name)
        if model.precision == "int8":
            for name, found in errors.items():
                assert sum(found) <= 0.03**2 * sum(powers[name]), (file, name)


def test_openvino_is_pinned_to_float32(model: Model) -> None:
    graph: Any = load_graph(model.read(ANALYSIS), "openvino", 1)
    (requests,) = graph._compiled.values()
    compiled = requests._compiled
    assert "float32" in str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_one_graph_serves_many_threads(engine: str, model: Model) -> None:
    graph = load_graph(model.read(ANALYSIS), engine, 1)
    inputs = [analysis_inputs(16, 16 + 4 * index, seed=index) for index in range(6)]
    expected = [graph.run(one)["y"] for one in inputs]
    wrong: list[int] = []
    start = threading.Barrier(len(inputs))

    def work(index: int) -> None:
        start.wait()
        for _ in range(5):
            if not np.array_equal(graph.run(inputs[index])["y"], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_planes_of_openvino_lie_apart_and_aligned(model: Model) -> None:
    """What `merge_bands` reads fastest: see docs/kernels.md."""
    graph = load_graph(model.read(SYNTHESIS), "openvino", 1)
    bands = graph.run(synthesis_inputs(model, 4, 5))["bands"]
    assert bands.shape == (1, 48, 16, 20) and bands.ctypes.data % 64 == 0
    assert bands.strides == (4 * 48 * 17 * 20, 4 * 17 * 20, 4 * 20, 4)
