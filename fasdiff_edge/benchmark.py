"""Latency on this machine, stage by stage: what `fasdiff bench` measures.

Every configuration (engine, precision, threads, size, steps) is measured in a process of its own,
so that memory and cold start are its own too: verified, warmed up, then timed. Encoder and decoder
are made for that size, as a camera's are. Cold start is from the launch of a process to its first
decoded image, interpreter and imports included, with a decoder of any size. Timing the stages is
part of the runtime (`stages`); nothing is measured that users do not run.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import __version__, cpu
from .api import Decoder, Encoder
from .engines import CPU_ENGINE_NAMES
from .errors import FasdiffError, OptionError
from .imaging import read_picture, write_picture
from .models import load_model
from .profile import Profile, cpu_name
from .stages import DECODE_STAGES, ENCODE_STAGES, record

FORMAT = 1
WARM_UP = 5
COLD_STARTS = 3
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM_FLAGS = ("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2")
_COLD = (
    "import sys; from fasdiff_edge import Decoder; "
    "decoder = Decoder(sys.argv[1], sys.argv[2], threads=int(sys.argv[3])); "
    "decoder.decode(open(sys.argv[4], 'rb').read())"
)


@dataclass(frozen=True)
class Configuration:
    """One row of a benchmark: what is run, and how."""

    engine: str
    precision: str
    threads: int
    size: int  # side in pixels
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.engine} {self.precision}, {self.threads} threads, "
            f"{self.size}x{self.size}, {self.steps} steps"
        )


def by_precision(models: Sequence[str]) -> dict[str, str]:
    """Models, names or directories, by the precision of their graphs.

    Raises:
      OptionError: two of the same precision; ModelError: no such model.
    """
    found: dict[str, str] = {}
    for model in models:
        precision = load_model(model).precision
        if precision in found:
            raise OptionError(f"two models in {precision}: {found[precision]} and {model}")
        found[precision] = model
    return found


def configurations(
    engines: Sequence[str],
    threads: Sequence[int],
    sizes: Sequence[int],
    models: Mapping[str, str],
    steps: Sequence[int] | None = None,
) -> list[Configuration]:
    """Every combination that the models, by precision, support; all their `steps` where None.

    Raises:
      OptionError: a model does not support one of `steps`.
    """
    supported = {precision: load_model(model).num_steps for precision, model in models.items()}
    for precision, counts in supported.items():
        for count in steps or ():
            if count not in counts:
                known = ", ".join(map(str, counts))
                raise OptionError(f"no {count} steps: {models[precision]} supports {known}")
    return [
        Configuration(engine, precision, count, size, num_steps)
        for engine in engines
        for precision in models
        for count in threads
        for size in sizes
        for num_steps in steps or supported[precision]
    ]


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, p95 and p99 in milliseconds."""
    ms = 1e3 * np.asarray(seconds)
    return {
        name: round(float(np.percentile(ms, at)), 3)
        for name, at in (("median", 50), ("p95", 95), ("p99", 99))
    }


def measure(configuration: Configuration, picture: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that is measured within one process: a row without its cold start.

    Args:
      picture: an image file, of the size of the configuration.
      options: "models" as `by_precision` gives them, "max_bytes", "effort", "repeats", "any_size":
        leave `size` of encoder and decoder out.
    Raises:
      FasdiffError: the codec does not do what is being timed.
    """
    c, budget = configuration, options["max_bytes"]
    model = options["models"][c.precision]
    size = None if options["any_size"] else (c.size, c.size)
    encoder = Encoder(model, c.engine, c.threads, options["effort"], size)
    decoder = Decoder(model, c.engine, c.steps, threads=c.threads, size=size)
    image = read_picture(picture.read_bytes())
    data = encoder.encode(image, max_bytes=budget)
    if len(data) > budget or decoder.decode(data).shape != image.shape:
        raise FasdiffError(f"{c}: {len(data)} bytes for {budget}, or another size decoded")

    times: dict[str, list[float]] = {}

    def read(path: Path) -> NDArray[np.uint8]:
        return read_picture(path.read_bytes())

    def encode(pixels: NDArray[np.uint8]) -> bytes:
        return encoder.encode(pixels, max_bytes=budget)

    def timed(name: str, call: Callable[[Any], Any], argument: Any) -> Any:
        with record() as stages:
            start = time.perf_counter()
            result = call(argument)
            stages[name] = time.perf_counter() - start
        for stage, seconds in stages.items():
            times.setdefault(stage, []).append(seconds)
        return result

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.png"

        def write(pixels: NDArray[np.uint8]) -> None:
            out.write_bytes(write_picture(pixels, ".png"))

        for repeat in range(WARM_UP + options["repeats"]):
            if repeat == WARM_UP:
                times.clear()
            pixels = timed("read", read, picture)
            data = timed("encode", encode, pixels)
            decoded = timed("decode", decoder.decode, data)
            timed("write", write, decoded)
    stages = ["read", *ENCODE_STAGES, *DECODE_STAGES, "write"]
    return {
        **asdict(c),
        "bytes": len(data),
        "encode": summary(times["encode"]),
        "decode": summary(times["decode"]),
        "stages": {name: summary(times[name]) for name in stages if name in times},
        "peak_mb": _peak_memory(),
    }


def run(
    rows: Sequence[Configuration], image: NDArray[np.uint8], options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Measure each configuration in a process of its own; yields its row.

    Args:
      image: uint8 RGB; its largest centred square is resized to each size.
      options: as for `measure`.
    Raises:
      FasdiffError: a process failed; with what it said.
    """
    models = {
        precision: os.path.abspath(model) if os.path.isdir(model) else model
        for precision, model in options["models"].items()
    }
    options = {**options, "models": models}  # for processes that start in another folder
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            picture = Path(folder) / f"{row.size}.png"
            picture.write_bytes(write_picture(square(image, row.size), ".png"))
            work = json.dumps({**asdict(row), "picture": str(picture), "options": options})
            found = json.loads(_python(folder, "-m", "fasdiff_edge.benchmark", work))
            file = Path(folder) / "cold.fsd"
            model = options["models"][row.precision]
            encoder = Encoder(model, row.engine, row.threads)
            file.write_bytes(
                encoder.encode(square(image, row.size), max_bytes=options["max_bytes"])
            )
            times = []
            for _ in range(COLD_STARTS):
                start = time.perf_counter()
                _python(folder, "-c", _COLD, model, row.engine, str(row.threads), str(file))
                times.append(time.perf_counter() - start)
            found["cold_start_ms"] = round(1e3 * float(np.median(times)), 1)
            yield found


def square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The largest centred square of an image at `size` x `size`."""
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    inter = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    resized = cv2.resize(
        image[top : top + side, left : left + side], (size, size), None, 0, 0, inter
    )
    return np.ascontiguousarray(resized, dtype=np.uint8)


def drawn_face(size: int = 512) -> NDArray[np.uint8]:
    """A drawing of a head and shoulders, for machines that have no picture at hand."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    image = np.stack([90 + 60 * y, 110 + 40 * y, 130 + 30 * x], 2)

    def paint(cx: float, cy: float, rx: float, ry: float, colour: Sequence[float]) -> None:
        distance = np.hypot((x - cx) / rx, (y - cy) / ry)
        cover = np.clip((1.0 - distance) * rx * size, 0.0, 1.0)[..., None]
        image[:] = image * (1 - cover) + cover * np.asarray(colour)

    paint(0.5, 1.1, 0.48, 0.32, (45, 50, 80))
    paint(0.5, 0.42, 0.31, 0.38, (60, 42, 30))
    paint(0.5, 0.5, 0.25, 0.34, (214, 168, 140))
    for side in (-1, 1):
        paint(0.5 + 0.1 * side, 0.44, 0.052, 0.026, (240, 238, 235))
        paint(0.5 + 0.1 * side, 0.44, 0.022, 0.024, (60, 70, 50))
        paint(0.5 + 0.1 * side, 0.385, 0.065, 0.011, (60, 42, 30))
    paint(0.5, 0.56, 0.026, 0.055, (190, 140, 115))
    paint(0.5, 0.68, 0.085, 0.024, (165, 80, 75))
    image += np.random.default_rng(1).normal(0, 3, image.shape)
    drawn: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return drawn


def machine() -> dict[str, Any]:
    """The processor, its state and the versions of everything, as far as the system tells."""
    packages = (
        "numpy",
        "opencv-python-headless",
        "opencv-python",
        "onnxruntime-gpu",
        *CPU_ENGINE_NAMES,
    )
    versions = {"fasdiff-edge": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "instruction_sets": _instruction_sets(),
        "kernels": cpu.describe()["kernels"],
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperatures": temperatures(),
        "system": platform.platform(),
        "versions": versions,
    }


def temperatures() -> dict[str, float]:
    """Degrees Celsius by thermal zone; empty where the system does not tell."""
    found = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        kind, value = _read(zone / "type"), _read(zone / "temp")
        if kind and value and value.lstrip("-").isdigit():
            found[f"{zone.name} {kind}"] = int(value) / 1000
    return found


def best(rows: Sequence[dict[str, Any]]) -> Profile:
    """The engine and threads with the least time to encode and decode, over all sizes alike.

    Of the precision that was measured first. Of configurations within 2 % of the least, the one
    with the fewest threads.
    """
    total: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["precision"] != rows[0]["precision"]:
            continue
        both = row["encode"]["median"] + row["decode"]["median"]
        total.setdefault((row["engine"], row["threads"]), []).append(math.log(both))
    mean = {key: sum(values) / len(values) for key, values in total.items()}
    least = min(mean.values())
    engine, threads = min(
        (key for key, value in mean.items() if value <= least + 0.02), key=lambda key: key[1]
    )
    return Profile(cpu_name(), engine, threads)


def read_report(text: str, name: str) -> dict[str, Any]:
    """A report that `fasdiff bench --json` wrote.

    Raises:
      OptionError: it is something else.
    """
    try:
        report = json.loads(text)
        if report["format"] != FORMAT:
            raise ValueError(f"format {report['format']}")
        for row in report["results"]:
            Configuration(**{key: row[key] for key in Configuration.__annotations__})
            for part in (row["encode"], row["decode"], *row["stages"].values()):
                float(part["median"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(f"{name} is no report of fasdiff bench: {error!r}") from error
    found: dict[str, Any] = report
    return found


def compare(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per configuration that both reports have: medians of a and b, ratios b / a.

    Raises:
      OptionError: they have none in common.
    """

    def by_configuration(report: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
        keys = Configuration.__annotations__
        return {tuple(row[key] for key in keys): row for row in report["results"]}

    first, second = by_configuration(a), by_configuration(b)
    shared = [key for key in first if key in second]
    if not shared:
        raise OptionError("the reports have no configuration in common")
    rows = []
    for key in shared:
        one, other = first[key], second[key]
        row: dict[str, Any] = dict(zip(Configuration.__annotations__, key, strict=True))
        parts = {
            "encode": (one["encode"], other["encode"]),
            "decode": (one["decode"], other["decode"]),
        }
        parts |= {
            name: (one["stages"][name], other["stages"][name])
            for name in one["stages"]
            if name in other["stages"]
        }
        for name, (was, now) in parts.items():
            if was["median"] > 0:
                row[name] = round(now["median"] / was["median"], 3)
        rows.append(row)
    return rows


def _instruction_sets() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    words = {
        word
        for line in text.splitlines()
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    }
    return [flag for flag in (*_FLAGS, *_ARM_FLAGS) if flag in words]


def _peak_memory() -> float | None:
    """Largest resident set of this process so far, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _python(folder: str, *arguments: str) -> str:
    """What a new interpreter prints; in `folder`, since it would import from where it is."""
    command = [sys.executable, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if process.returncode != 0:
        said = process.stderr.strip().splitlines()
        raise FasdiffError(f"a measuring process failed: {said[-1] if said else 'without a word'}")
    return process.stdout


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


if __name__ == "__main__":
    _work = json.loads(sys.argv[1])
    _picture, _options = Path(_work.pop("picture")), _work.pop("options")
    print(json.dumps(measure(Configuration(**_work), _picture, _options)))
