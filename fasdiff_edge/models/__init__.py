"""Loading a model directory: a manifest, an integer entropy model and two ONNX graphs.

A model is data: nothing in it is executed but the graphs, by the inference engine. Every file is
checked against the SHA-256 in `manifest.json` when it is read. Unknown manifest fields are ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import cpu
from ..bitstream import MAX_QUALITY
from ..entropy_model import EntropyModel
from ..errors import ModelError
from ..frequency import NUM_BANDS
from ..rate import OF_BASE, OF_RESIDUAL, RatePrior

MANIFEST_FORMAT = 1
REFERENCE_SIDE = 256  # pixels
MANIFEST, ANALYSIS, SYNTHESIS, RESIDUAL, GRADIENT, ENTROPY = (
    "manifest.json",
    "analysis.onnx",
    "synthesis.onnx",
    "residual.onnx",
    "gradient.onnx",
    "entropy_model.bin",
)
_SHIPPED = Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """A model directory whose manifest and entropy model have been checked.

    Attributes:
      name: as in the manifest.
      directory: where its files are.
      manifest: all of `manifest.json`.
      entropy: the integer entropy model; `entropy.model_id` is the model's id.
      precision: of the graphs: "float32", or "int8" (QDQ).
      num_steps: the numbers of sampler steps that the synthesis graph supports.
      time_shift, deviations: of the sampler (`sampler.Schedule`).
      min_quality_before_downscale: 0..63; the budget search would rather code a smaller image
        than go below this quality, at 256x256.
      min_quality_per_octave: what is added to it for each doubling of both sides: the same
        quality leaves less of a larger face.
      base_rate, residual_rate: what the budget search expects before it codes; the manifest's
        `rate`, where it has one.
    """

    name: str
    directory: Path
    manifest: Mapping[str, Any]
    entropy: EntropyModel
    precision: str
    num_steps: tuple[int, ...]
    time_shift: float
    deviations: NDArray[np.float32]
    min_quality_before_downscale: float
    min_quality_per_octave: float
    base_rate: RatePrior
    residual_rate: RatePrior

    def min_quality(self, height: int, width: int) -> int:
        """The least quality, in quarter steps, at which so many coded pixels are worth coding."""
        octaves = max(0.0, math.log2(math.sqrt(height * width) / REFERENCE_SIDE))
        quality = self.min_quality_before_downscale + octaves * self.min_quality_per_octave
        return min(math.ceil(4 * quality), self.entropy.residual_from - 1)

    def has(self, file: str) -> bool:
        """Whether the manifest lists one of the files."""
        return _listed(self.manifest, file) is not None

    def read(self, file: str) -> bytes:
        """Contents of one of the model's files, checked against the manifest.

        Raises:
          ModelError: not listed, missing, unreadable or changed.
        """
        return _read_checked(self.directory, file, self.manifest)


def load_model(model: str | os.PathLike[str]) -> Model:
    """Load a model.

    Args:
      model: the name of a shipped model, or the path of a model directory.
    Raises:
      ModelError: no such model, or its files do not belong together.
      OptionError: FASDIFF_CPU names an instruction set that is not there.
    """
    cpu.check()
    name = os.fspath(model)
    directory = _SHIPPED / name if name in _shipped_names() else Path(name)
    if not directory.is_dir():
        raise ModelError(f"no model {name!r}: not a directory, and installed are {installed()}")
    manifest = _read_manifest(directory)
    try:
        title = str(manifest["name"])
        model_id = str(manifest["model_id"])
        precision = str(manifest.get("precision", "float32"))
        num_steps = tuple(int(value) for value in manifest["num_steps"])
        time_shift = float(manifest["time_shift"])
        deviations = np.array(manifest["deviations"], np.float32)
        min_quality = float(manifest["min_quality_before_downscale"])
        per_octave = float(manifest["min_quality_per_octave"])
        rates = _rate_priors(manifest)
        shape = {key: int(manifest[key]) for key in ("num_s", "num_z", "num_y")}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{directory / MANIFEST}: bad or missing field: {error}") from error
    entropy = EntropyModel(_read_checked(directory, ENTROPY, manifest))
    if model_id != f"{entropy.model_id:04x}":
        raise ModelError(
            f"{directory / MANIFEST}: model_id is {model_id}, "
            f"but the entropy model's is {entropy.model_id:04x}"
        )
    if entropy.num_qualities != MAX_QUALITY + 1:
        raise ModelError(f"{name}: {entropy.num_qualities} qualities, not {MAX_QUALITY + 1}")
    for key, expected in shape.items():
        if getattr(entropy, key) != expected:
            raise ModelError(
                f"{directory / MANIFEST}: {key} is {expected}, "
                f"but the entropy model has {getattr(entropy, key)}"
            )
    positive = np.array([*num_steps, time_shift, *deviations.ravel()], np.float64)
    if deviations.shape != (NUM_BANDS,) or not np.all((positive > 0) & np.isfinite(positive)):
        raise ModelError(
            f"{directory / MANIFEST}: num_steps, time_shift or deviations are not positive, or "
            f"there are not {NUM_BANDS} deviations"
        )
    if not num_steps or not all(0 <= v <= MAX_QUALITY / 4 for v in (min_quality, per_octave)):
        raise ModelError(f"{directory / MANIFEST}: num_steps or quality out of range")
    channels = (entropy.num_base, entropy.num_residual)
    if not all(_fits(prior, count) for prior, count in zip(rates, channels, strict=True)):
        raise ModelError(
            f"{directory / MANIFEST}: rate must be finite, of a scale over 0, with one weight or "
            f"{channels[0]} for the base and {channels[1]} for the residual"
        )
    return Model(
        name=title,
        directory=directory,
        manifest=manifest,
        entropy=entropy,
        precision=precision,
        num_steps=num_steps,
        time_shift=time_shift,
        deviations=deviations,
        min_quality_before_downscale=min_quality,
        min_quality_per_octave=per_octave,
        base_rate=rates[0],
        residual_rate=rates[1],
    )


def _rate_priors(manifest: Mapping[str, Any]) -> tuple[RatePrior, RatePrior]:
    """Of the base and of the residual. KeyError, TypeError, ValueError: a bad field."""
    if "rate" not in manifest:
        return OF_BASE, OF_RESIDUAL
    rate = manifest["rate"]
    base, residual = (
        RatePrior(
            np.array(rate[part]["weights"], np.float64),
            *(float(rate[part][key]) for key in ("constant", "per_position", "scale")),
        )
        for part in ("base", "residual")
    )
    return base, residual


def _fits(prior: RatePrior, channels: int) -> bool:
    """Whether a prior can be one of so many channels."""
    numbers = [*prior.weights.ravel(), prior.constant, prior.per_position, prior.scale]
    allowed = ((1,), (channels,))
    return prior.weights.shape in allowed and bool(np.isfinite(numbers).all()) and prior.scale > 0


def installed() -> str:
    """The shipped models and their ids, for messages: "edge (1a2b)"; "none" without any."""
    names = [f"{name} ({_manifest_id(name)})" for name in _shipped_names()]
    return ", ".join(names) or "none"


def _shipped_names() -> list[str]:
    return sorted(path.parent.name for path in _SHIPPED.glob(f"*/{MANIFEST}"))


def _manifest_id(name: str) -> str:
    return str(_read_manifest(_SHIPPED / name).get("model_id"))


def _read_manifest(directory: Path) -> Mapping[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise ModelError(f"{path}: not a model manifest of format {MANIFEST_FORMAT}")
    return manifest


def _listed(manifest: Mapping[str, Any], file: str) -> object:
    """What a manifest lists as the SHA-256 of a file; None if it does not."""
    files = manifest.get("files")
    return files.get(file) if isinstance(files, dict) else None


def _read_checked(directory: Path, file: str, manifest: Mapping[str, Any]) -> bytes:
    expected = _listed(manifest, file)
    if not isinstance(expected, str):
        raise ModelError(f"{directory / MANIFEST} lists no SHA-256 for {file}")
    try:
        data = (directory / file).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {directory / file}: {error}") from error
    if hashlib.sha256(data).hexdigest() != expected.lower():
        raise ModelError(f"{directory / file} is damaged: its SHA-256 is not the manifest's")
    return data
