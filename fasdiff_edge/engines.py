"""The inference engines: one small class each, imported when first used.

Precision is the graph's: what it does not quantise is computed in float32, which is pinned.

A graph is read from the bytes of an ONNX file with dynamic sizes. `run` may be called from any
number of threads at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import profile
from .errors import EngineError, ModelError, OptionError
from .frequency import aligned

Arrays = Mapping[str, NDArray[np.float32]]
Shapes = Mapping[str, Sequence[int]]  # of inputs, by name
_WITH_ROW = {"bands"}  # outputs of the graphs; see `_add_rows`
# OpenVINO's operators that give 0 of 0 and constants, for `_leave_out`
_KEEP_ZERO = {"Convert", "Convolution", "DepthToSpace", "Divide", "Gather", "Multiply", "Reshape"}


class Graph(Protocol):
    """A loaded network.

    Attributes:
      inputs, outputs: names, in the order of the file.
      left_out: the input that is not needed; see `load_graph`.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    left_out: str | None

    def run(self, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
        """Evaluate the network.

        Args:
          arrays: float32, C-contiguous, one for each input.
        Returns:
          float32 for each output, owned by the caller; its planes are C-contiguous.
        Raises:
          EngineError: whatever the engine reports.
        """
        ...


class OpenVinoGraph:
    """A graph in OpenVINO's CPU plugin, in float32 whatever the CPU would prefer."""

    left_out: str | None = None

    def __init__(
        self,
        model: bytes,
        threads: int | None,
        without: str | None = None,
        shapes: Sequence[Shapes] = (),
    ) -> None:
        try:
            openvino: Any = importlib.import_module("openvino")
        except ImportError as error:
            raise EngineError(f"the engine OpenVINO is not installed: {error}") from error
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._lock = threading.Lock()
        self._compiled: dict[int | None, _Requests] = {}  # by the place in `_shapes`
        try:
            self._core = openvino.Core()
            self._model = self._core.read_model(model)
            if without is not None and _leave_out(self._model, without):
                self.left_out = without
            _add_rows(openvino, self._model)
            _round_in_passing(openvino, self._model)
            _shift_in_passing(openvino, self._model)
            self.inputs: Sequence[str] = [port.get_any_name() for port in self._model.inputs]
            self.outputs: Sequence[str] = [port.get_any_name() for port in self._model.outputs]
            self._shapes = [
                {name: tuple(one[name]) for name in self.inputs if name in one} for one in shapes
            ]
            self._requests(0 if self._shapes else None)
        except Exception as error:
            raise EngineError(f"OpenVINO cannot load the graph: {_line(error)}") from error

    def run(self, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
        try:
            return self._requests(self._place(arrays)).run(arrays, self.outputs)
        except Exception as error:
            raise EngineError(f"OpenVINO cannot run the graph: {_line(error)}") from error

    def _place(self, arrays: Arrays) -> int | None:
        """Which of `_shapes` these inputs have; None where it is none of them."""
        for place, shapes in enumerate(self._shapes):
            if all(arrays[name].shape == shape for name, shape in shapes.items()):
                return place
        return None

    def _requests(self, place: int | None) -> _Requests:
        """For inputs of these shapes, or of any; compiled when the first come."""
        with self._lock:
            if place not in self._compiled:
                model = self._model
                if place is not None:
                    model = model.clone()
                    model.reshape({name: list(v) for name, v in self._shapes[place].items()})
                compiled = self._core.compile_model(model, "CPU", self._config)
                self._compiled[place] = _Requests(compiled)
            return self._compiled[place]


class _Requests:
    """Infer requests of a compiled graph; each serves one call at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._lock = threading.Lock()
        self._idle: list[Any] = []

    def run(self, arrays: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        with self._lock:
            request = self._idle.pop() if self._idle else None
        request = request or self._compiled.create_infer_request()
        request.infer(dict(arrays), share_inputs=True)
        results = {}
        for name in outputs:
            data = request.get_tensor(name).data
            copied = aligned(data.shape)
            np.copyto(copied, data)
            results[name] = copied[:, :, :-1] if name in _WITH_ROW else copied
        with self._lock:
            self._idle.append(request)
        return results


def _leave_out(model: Any, name: str) -> bool:
    """Take an input that is zero out of a graph, in place, with all that it alone feeds.

    That may be operators that keep zero what is zero, which end in sums: these are then what else
    they add. Returns whether there is such an input.
    """
    found = [p for p in model.get_parameters() if name in p.output(0).get_names()]
    if not found:
        return False
    parameter = found[0]
    constant = set()  # by name: each look at a node makes another object of it
    fed = {parameter.get_friendly_name()}
    for node in model.get_ordered_ops():  # from inputs to outputs
        sources = [port.get_source_output() for port in node.inputs()]
        from_it = [source.get_node().get_friendly_name() in fed for source in sources]
        if not any(from_it):
            known = all(source.get_node().get_friendly_name() in constant for source in sources)
            if known and node.get_type_name() != "Parameter":
                constant.add(node.get_friendly_name())
            continue
        others = [source for source, its in zip(sources, from_it, strict=True) if not its]
        constants = all(source.get_node().get_friendly_name() in constant for source in others)
        if constants or node.get_type_name() == "Multiply":
            if node.get_type_name() not in _KEEP_ZERO:
                raise ValueError(f"{node.get_friendly_name()} may turn a {name} of 0 into others")
            fed.add(node.get_friendly_name())
            continue
        if node.get_type_name() != "Add":
            raise ValueError(f"{name} enters {node.get_friendly_name()}, which is no sum")
        is_input = others[0].get_node().get_type_name() == "Parameter"
        names = (others[0] if is_input else node.output(0)).get_names()
        node.output(0).replace(others[0])
        others[0].set_names(names)
    model.remove_parameter(parameter)
    return True


def _add_rows(openvino: Any, model: Any) -> None:
    """Let the outputs of `_WITH_ROW` end with a row of zeros more, in place.

    The last thing that the CPU plugin does is to turn channels-last into planes. Where these are a
    multiple of 4 KiB apart, as they are at 256x256 and 512x512, the 48 of them compete for the same
    places in the cache, and that takes up to ten times as long: a seventh of the whole graph.
    """
    for result in model.results:
        source = result.input(0).get_source_output()
        names = set(source.get_names())
        if not names & _WITH_ROW:
            continue
        padded = openvino.opset12.pad(source, [0, 0, 0, 0], [0, 0, 1, 0], "constant").output(0)
        source.set_names(set())
        padded.set_names(names)
        result.input(0).replace_source_output(padded)


def _round_in_passing(openvino: Any, model: Any) -> None:
    """Let what others need unrounded be rounded by another operation, in place.

    The CPU plugin rounds in the operation that gives a value, unless that value has other readers;
    then it does by itself, and channels-last takes two to three times as long as it need. So it
    gets an operation to do it in, the maximum with the lowest value there is a level for, which
    changes nothing.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        source = node.input(0).get_source_output()
        given = source.get_node().get_type_name() in ("Parameter", "Constant")
        if given or len(source.get_target_inputs()) == 1:
            continue
        lowest = node.input(1).get_source_output()
        passed = openvino.opset12.maximum(source, lowest)
        node.input(0).replace_source_output(passed.output(0))


def _shift_in_passing(openvino: Any, model: Any) -> None:
    """Let a sum of which a term is a part of something be one operation with what comes before.

    The CPU plugin makes one of a product, a sum and a rounding, but for sums of what comes right
    from a split. So a maximum with the lowest number comes in between, which changes nothing.
    """
    lowest = openvino.opset12.constant(np.finfo(np.float32).min)
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Add":
            continue
        for port in node.inputs():
            source = port.get_source_output()
            if source.get_node().get_type_name() in ("Split", "VariadicSplit"):
                port.replace_source_output(openvino.opset12.maximum(source, lowest).output(0))


class OnnxRuntimeGraph:
    """A graph in ONNX Runtime; a session is thread-safe by itself.

    Attributes:
      provider: who runs the graph; nodes that it does not have run on the CPU.
    """

    provider = "CPUExecutionProvider"
    left_out: str | None = None

    def __init__(self, model: bytes, threads: int | None, *_: object) -> None:
        """What else `load_graph` passes is for OpenVINO."""
        try:
            onnxruntime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise EngineError(f"the engine ONNX Runtime is not installed: {error}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal; errors reach us as exceptions
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Threads that wait for work by spinning take the cores from the codec's other graph.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        available = onnxruntime.get_available_providers()
        if self.provider not in available:
            raise EngineError(
                f"this ONNX Runtime has no {self.provider}, only {', '.join(available)}; "
                "docs/jetson.md says what to install"
            )
        try:
            self._session: Any = onnxruntime.InferenceSession(
                model, options, providers=self._providers(model)
            )
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot load the graph: {_line(error)}") from error
        # It goes on without a provider whose libraries it cannot load, and only logs that.
        if self.provider not in self._session.get_providers():
            raise EngineError(f"ONNX Runtime could not start {self.provider}: see its own log")
        self.inputs: Sequence[str] = [port.name for port in self._session.get_inputs()]
        self.outputs: Sequence[str] = [port.name for port in self._session.get_outputs()]

    def _providers(self, model: bytes) -> list[Any]:
        """For a graph, in the order in which they are asked."""
        return [self.provider]

    def run(self, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
        try:
            results = self._session.run(self.outputs, dict(arrays))
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot run the graph: {_line(error)}") from error
        return dict(zip(self.outputs, results, strict=True))


class CudaGraph(OnnxRuntimeGraph):
    """A graph on an NVIDIA GPU, in float32 without TF32's shortened mantissas."""

    provider = "CUDAExecutionProvider"

    def _providers(self, model: bytes) -> list[Any]:
        return [(self.provider, {"use_tf32": "0"}), "CPUExecutionProvider"]


class TensorRtGraph(CudaGraph):
    """A graph in TensorRT, which tunes its kernels on the device at the first run of each size.

    What it finds is kept in `tensorrt_cache`, so that only the first start takes minutes.
    """

    provider = "TensorrtExecutionProvider"

    def _providers(self, model: bytes) -> list[Any]:
        folder = tensorrt_cache()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cannot make the engine cache {folder}: {error.strerror}") from error
        options = {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
            # without quantised nodes TensorRT would ask for a calibration
            "trt_int8_enable": "1" if b"QuantizeLinear" in model else "0",
        }
        cuda = (CudaGraph.provider, {"use_tf32": "0"})
        return [(self.provider, options), cuda, "CPUExecutionProvider"]


def tensorrt_cache() -> Path:
    """Where TensorRT keeps its engines: `fasdiff/tensorrt` in XDG_CACHE_HOME, else `~/.cache`.

    The files bear the compute capability of the GPU in their names: a folder may be shared.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fasdiff" / "tensorrt"


_ENGINES: dict[str, type[OpenVinoGraph | OnnxRuntimeGraph]] = {
    "openvino": OpenVinoGraph,
    "onnxruntime": OnnxRuntimeGraph,
    "onnxruntime-cuda": CudaGraph,
    "onnxruntime-tensorrt": TensorRtGraph,
}
ENGINE_NAMES = tuple(_ENGINES)
CPU_ENGINE_NAMES = ENGINE_NAMES[:2]


def available_engines() -> list[str]:
    """The engines that are installed, without those whose GPU libraries ONNX Runtime lacks."""
    found = ["openvino"] if importlib.util.find_spec("openvino") else []
    if importlib.util.find_spec("onnxruntime"):
        runtime: Any = importlib.import_module("onnxruntime")
        providers = runtime.get_available_providers()
        found += [
            name
            for name, graph in _ENGINES.items()
            if issubclass(graph, OnnxRuntimeGraph) and graph.provider in providers
        ]
    return found


def choose_engine(engine: str) -> str:
    """Resolve "auto" to a name of `ENGINE_NAMES`.

    "auto" is the environment variable FASDIFF_ENGINE if set; else what the profile of this machine
    says (`profile`); else OpenVINO on x86-64 where it is installed; else ONNX Runtime.

    Raises:
      OptionError: an unknown name, or a profile that cannot be read.
    """
    source = "engine"
    if engine == "auto" and os.environ.get("FASDIFF_ENGINE", "auto") != "auto":
        engine, source = os.environ["FASDIFF_ENGINE"], "FASDIFF_ENGINE"
    elif engine == "auto":
        measured = profile.applicable()
        if measured is not None:
            engine, source = measured.engine, f"the engine of {profile.path()}"
    if engine in _ENGINES:
        return engine
    if engine != "auto":
        raise OptionError(f"{source} is {engine!r}; it may be auto, {', '.join(ENGINE_NAMES)}")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return "openvino" if x86 and importlib.util.find_spec("openvino") else "onnxruntime"


def load_graph(
    model: bytes,
    engine: str,
    threads: int | None,
    without: str | None = None,
    shapes: Sequence[Shapes] = (),
) -> Graph:
    """Load a graph.

    Args:
      model: an ONNX file.
      engine: "auto" or a name of `ENGINE_NAMES`.
      threads: at least 1; None follows the profile of this machine, or else leaves it to the
        engine.
      without: an input that is to be zero, and that changes nothing then. OpenVINO leaves it out,
        with the work that it would make: the graph has it as `left_out`. Elsewhere it is still
        among the `inputs`, to be given.
      shapes: of inputs, by name, that OpenVINO compiles the graph for, which runs sooner so: the
        first at once, others when such inputs come, as it does once for those of all other shapes.
        Names of no input are left out. Elsewhere it changes nothing.
    Raises:
      OptionError: unknown engine, or a profile that cannot be read.
      EngineError: the engine is not installed or refuses the graph.
    """
    name = choose_engine(engine)
    if threads is None:
        measured = profile.applicable()
        if measured is not None and measured.engine == name:
            threads = measured.threads
    return _ENGINES[name](model, threads, without, shapes)


def check_ports(graph: Graph, inputs: list[str], outputs: list[str]) -> None:
    """Check the names of a graph's inputs and outputs, in any order.

    Raises:
      ModelError: they are others.
    """
    if sorted(graph.inputs) != sorted(inputs) or sorted(graph.outputs) != sorted(outputs):
        raise ModelError(
            f"the graph has inputs {list(graph.inputs)} and outputs {list(graph.outputs)}, "
            f"not {inputs} and {outputs}"
        )


def _line(error: BaseException) -> str:
    """The message of an engine's exception, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
