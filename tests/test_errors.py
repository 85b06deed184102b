"""The errors, and the model directories that must be refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fasdiff_edge
from fasdiff_edge import BudgetError, Decoder, Encoder, FasdiffError, ModelError
from fasdiff_edge.entropy_model import EntropyModel
from fasdiff_edge.models import ANALYSIS, ENTROPY, MANIFEST, SYNTHESIS, Model, load_model

ERRORS = [getattr(fasdiff_edge, name) for name in fasdiff_edge.__all__ if name.endswith("Error")]


def test_every_error_is_ours() -> None:
    assert len(ERRORS) == 7
    for error in ERRORS:
        assert issubclass(error, FasdiffError)


@pytest.mark.parametrize("name", ["OptionError", "ImageError", "BitstreamError", "BudgetError"])
def test_bad_values_are_value_errors(name: str) -> None:
    assert issubclass(getattr(fasdiff_edge, name), ValueError)


def test_budget_error_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(BudgetError(40, 57)))
    assert (error.max_bytes, error.smallest) == (40, 57)
    assert str(error) == (
        "the image does not fit in 40 bytes; the smallest budget that can be met is 57 bytes"
    )


# -- model directories -----------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path, model: Model) -> Path:
    """A copy of the shipped model that may be spoilt."""
    copy = tmp_path / "copy"
    shutil.copytree(model.directory, copy)
    return copy


def edit(directory: Path, **fields: Any) -> None:
    """Change fields of the manifest; None removes one."""
    path = directory / MANIFEST
    manifest = {**json.loads(path.read_text()), **fields}
    path.write_text(
        json.dumps({key: value for key, value in manifest.items() if value is not None})
    )


def replace(directory: Path, file: str, data: bytes) -> None:
    """Change a file, and its sum in the manifest with it."""
    (directory / file).write_bytes(data)
    files = json.loads((directory / MANIFEST).read_text())["files"]
    edit(directory, files={**files, file: hashlib.sha256(data).hexdigest()})


def test_a_directory_works_like_the_shipped_model(directory: Path, portrait: np.ndarray) -> None:
    edit(directory, a_field_of_the_future={"x": 1})
    data = Encoder(directory, threads=1).encode(portrait, quality=20)
    assert data == Encoder(str(directory), threads=1).encode(portrait, quality=20)
    assert np.array_equal(
        Decoder(directory, threads=1).decode(data), Decoder(threads=1).decode(data)
    )


def test_model_id_is_the_hash_of_the_entropy_model(model: Model) -> None:
    digest = hashlib.sha256((model.directory / ENTROPY).read_bytes()).hexdigest()
    assert f"{model.entropy.model_id:04x}" == digest[:4] == model.manifest["model_id"]


@pytest.mark.parametrize("name", ["nothing", "", "../edge", "edge/", "manifest.json"])
def test_no_such_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no model|cannot read"):
        load_model(name)


@pytest.mark.parametrize("file", [ANALYSIS, SYNTHESIS, ENTROPY])
def test_changed_files_are_refused(directory: Path, file: str) -> None:
    data = bytearray((directory / file).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / file).write_bytes(data)
    with pytest.raises(ModelError, match=f"{file} is damaged"):
        Encoder(directory) if file != SYNTHESIS else Decoder(directory)


@pytest.mark.parametrize("file", [ANALYSIS, SYNTHESIS, ENTROPY])
def test_missing_files_are_refused(directory: Path, file: str) -> None:
    (directory / file).unlink()
    with pytest.raises(ModelError, match=f"cannot read .*{file}"):
        Encoder(directory) if file != SYNTHESIS else Decoder(directory)


def rate(**changed: Any) -> dict[str, Any]:
    """A manifest's, with something else for the residual."""
    good = {"weights": [0.1], "constant": 1.0, "per_position": 0.0, "scale": 1.0}
    return {"base": good, "residual": {**good, **changed}}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": 2}, "not a model manifest of format 1"),
        ({"format": None}, "not a model manifest of format 1"),
        ({"name": None}, "bad or missing field: 'name'"),
        ({"files": None}, "lists no SHA-256"),
        ({"files": {}}, "lists no SHA-256"),
        ({"model_id": "zzzz"}, "model_id is zzzz"),
        ({"num_steps": []}, "num_steps or quality out of range"),
        ({"num_steps": ["one"]}, "bad or missing field"),
        ({"min_quality_before_downscale": 64}, "num_steps or quality out of range"),
        ({"min_quality_before_downscale": "low"}, "bad or missing field"),
        ({"min_quality_per_octave": -1}, "num_steps or quality out of range"),
        ({"min_quality_per_octave": None}, "bad or missing field"),
        ({"num_steps": [1, 0]}, "num_steps, time_shift or deviations are not positive"),
        ({"time_shift": 0}, "num_steps, time_shift or deviations are not positive"),
        ({"time_shift": None}, "bad or missing field"),
        ({"deviations": [1.0] * 47}, "there are not 48 deviations"),
        ({"deviations": [1.0] * 47 + [float("nan")]}, "deviations are not positive"),
        ({"deviations": [1.0] * 47 + ["wide"]}, "bad or missing field"),
        ({"rate": 5}, "bad or missing field"),
        ({"rate": {"base": {"weights": [0.1]}}}, "bad or missing field"),
        ({"rate": rate(weights=[0.1] * 5)}, "one weight or 96 for the base"),
        ({"rate": rate(weights=[[0.1]])}, "one weight or 96 for the base"),
        ({"rate": rate(weights=["heavy"])}, "bad or missing field"),
        ({"rate": rate(constant=float("inf"))}, "rate must be finite"),
        ({"rate": rate(scale=0)}, "of a scale over 0"),
        ({"num_y": 1000}, "num_y is 1000"),
        ({"num_z": 1000}, "num_z is 1000"),
        ({"num_s": 1000}, "num_s is 1000"),
    ],
)
def test_bad_manifests_are_refused(directory: Path, fields: dict[str, Any], reason: str) -> None:
    edit(directory, **fields)
    with pytest.raises(ModelError, match=reason):
        load_model(directory)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff\xfe"])
def test_damaged_manifests_are_refused(directory: Path, text: str) -> None:
    (directory / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=MANIFEST):
        load_model(directory)


def test_malformed_entropy_models_are_refused(directory: Path) -> None:
    data = (directory / ENTROPY).read_bytes()
    for broken in (b"", data[:100], data[:-1], data + b"\0", b"X" + data[1:]):
        with pytest.raises(ModelError, match="malformed entropy model"):
            EntropyModel(broken)
    replace(directory, ENTROPY, data[:-1])
    with pytest.raises(ModelError, match="malformed entropy model"):
        load_model(directory)


def test_graphs_in_each_others_place_are_refused(directory: Path) -> None:
    analysis = (directory / ANALYSIS).read_bytes()
    synthesis = (directory / SYNTHESIS).read_bytes()
    replace(directory, ANALYSIS, synthesis)
    replace(directory, SYNTHESIS, analysis)
    with pytest.raises(ModelError, match="the graph has inputs"):
        Encoder(directory)
    with pytest.raises(ModelError, match="the graph has inputs"):
        Decoder(directory)


def test_latents_that_are_not_numbers_are_coded(model: Model) -> None:
    entropy = model.entropy
    y = np.zeros((entropy.num_base, 2, 2), np.float32)
    y[0] = [[np.nan, np.inf], [-np.inf, 1e30]]
    z = np.full((entropy.num_z, 1, 1), np.nan, np.float32)
    levels = entropy.round_latents(np.zeros(entropy.num_s, np.float32), z, y, 100)
    assert levels.y[0].tolist() == [[0, 16 * 32767], [16 * -32768, 16 * 32767]]
    assert not levels.z.any()
    again = entropy.decode(entropy.encode(levels, 100), 100, (2, 2))
    for name in ("s", "z", "y"):  # to the nearest level that has a code
        assert np.abs(getattr(again, name) - getattr(levels, name)).max() <= 16
    assert entropy.encode(again, 100) == entropy.encode(levels, 100)


def test_part_bits_add_up_to_the_payload(model: Model) -> None:
    entropy = model.entropy
    random = np.random.default_rng(8)
    levels = entropy.round_latents(
        random.normal(0, 1, entropy.num_s).astype(np.float32),
        random.normal(0, 1, (entropy.num_z, 2, 2)).astype(np.float32),
        random.normal(0, 1, (entropy.num_base, 8, 6)).astype(np.float32),
        150,
    )
    bits = entropy.part_bits(levels, 150)
    assert list(bits) == ["s", "z", *(f"y{p}" for p in range(entropy.num_passes))]
    ideal = sum(bits.values()) / 8
    assert ideal - 1 <= len(entropy.encode(levels, 150)) <= 1.002 * ideal + 2
