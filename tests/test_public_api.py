"""The public API is exactly this small, and importing it is cheap and explains itself."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

from conftest import RunPython

import fasdiff_edge


def test_all_is_pinned() -> None:
    assert sorted(fasdiff_edge.__all__) == [
        "BitstreamError",
        "BudgetError",
        "Decoder",
        "Encoder",
        "EngineError",
        "FasdiffError",
        "ImageError",
        "ModelError",
        "OptionError",
        "Recogniser",
        "__version__",
    ]
    for name in fasdiff_edge.__all__:
        assert getattr(fasdiff_edge, name) is not None


def test_signatures_are_pinned() -> None:
    either, keyword = "POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY"

    def named(function: Callable[..., object]) -> dict[str, tuple[str, object]]:
        return {
            name: (parameter.kind.name, parameter.default)
            for name, parameter in inspect.signature(function).parameters.items()
        }

    empty = inspect.Parameter.empty
    assert named(fasdiff_edge.Encoder) == {
        "model": (either, "edge"),
        "engine": (either, "auto"),
        "threads": (either, None),
        "effort": (either, 0),
        "size": (either, None),
    }
    assert named(fasdiff_edge.Encoder.encode) == {
        "self": (either, empty),
        "image": (either, empty),
        "quality": (keyword, None),
        "max_bytes": (keyword, None),
        "likeness": (keyword, None),
    }
    assert named(fasdiff_edge.Recogniser) == {
        "path": (either, empty),
        "engine": (either, "auto"),
        "threads": (either, None),
    }
    assert named(fasdiff_edge.Recogniser.likeness) == {
        "self": (either, empty),
        "image": (either, empty),
        "landmarks": (either, empty),
    }
    assert named(fasdiff_edge.Decoder) == {
        "model": (either, "edge"),
        "engine": (either, "auto"),
        "num_steps": (either, 1),
        "realism": (either, 1.0),
        "threads": (either, None),
        "max_pixels": (either, 2**24),
        "size": (either, None),
    }
    assert named(fasdiff_edge.Decoder.decode) == {"self": (either, empty), "data": (either, empty)}


def test_objects_have_one_public_method() -> None:
    def public(kind: type) -> list[str]:
        return [name for name in vars(kind) if not name.startswith("_")]

    assert public(fasdiff_edge.Encoder) == ["encode"]
    assert public(fasdiff_edge.Decoder) == ["decode"]


def test_import_loads_no_engine_no_torch_and_no_pillow(run_python: RunPython) -> None:
    code = "import fasdiff_edge, json, sys; print(json.dumps(sorted(sys.modules)))"
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    modules = {name.partition(".")[0] for name in json.loads(result.stdout)}
    assert "fasdiff_edge" in modules
    assert not modules & {"openvino", "onnxruntime", "onnx", "torch", "PIL", "skimage", "scipy"}


def test_unbuilt_package_explains_itself(run_python: RunPython) -> None:
    code = "import sys; sys.modules['fasdiff_edge._core'] = None; import fasdiff_edge"
    result = run_python("-c", code)
    assert result.returncode == 1
    message = result.stderr.decode().strip().splitlines()[-1]
    assert message.startswith("ImportError: fasdiff_edge is not built")
    assert "pip install ." in message


def test_types_are_shipped() -> None:
    package = Path(fasdiff_edge.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def test_version_is_the_distributions(run_python: RunPython) -> None:
    result = run_python("-m", "fasdiff_edge.cli", "--version")
    assert result.stdout.decode() == f"fasdiff {fasdiff_edge.__version__}\n"
