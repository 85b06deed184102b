"""How long encoding and decoding take, how much memory, and how many bytes over the estimate.

For every engine and size a process of its own: it verifies (the file is within its budget and
decodes to the size that was encoded), warms up, then times `Encoder.encode` to a byte budget and
`Decoder.decode`. Cold start is a new process each time, from its launch to its first decoded image,
interpreter and imports included. Peak memory is the resident set of a process that both encodes and
decodes. The estimate is the integer entropy model's own, in ideal bits.

What the numbers do not show: other devices, other thread counts, a busy machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from tables import RESULTS, markdown, write_tsv
from tqdm import tqdm  # type: ignore[import-untyped]

import fasdiff_edge
from fasdiff_edge import Decoder, Encoder
from fasdiff_edge.cli.info import describe
from fasdiff_edge.imaging import read_picture, write_picture
from fasdiff_edge.peers import Image

_WARM_UP = 5
_COLD_STARTS = 5
_SHOWN = (
    "engine",
    "pixels",
    "bytes",
    "encode_ms",
    "encode_ms_p95",
    "decode_ms",
    "decode_ms_p95",
    "cold_start_ms",
    "peak_mb",
    "overhead_percent",
)
_DECODE_ONCE = Path(__file__).with_name("decode_once.py")


def time_calls(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 95th percentile of a call, in milliseconds."""
    for _ in range(_WARM_UP):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), float(np.percentile(times, 95))


def measure(
    image: Image, budget: int, model: str, engine: str, threads: int, repeats: int
) -> dict[str, object]:
    """Everything that is measured within one process.

    Raises:
      RuntimeError: the codec does not do what is being timed.
    """
    encoder = Encoder(model=model, engine=engine, threads=threads)
    decoder = Decoder(model=model, engine=engine, threads=threads)
    data = encoder.encode(image, max_bytes=budget)
    if len(data) > budget or decoder.decode(data).shape != image.shape:
        raise RuntimeError(f"{engine}: {len(data)} bytes for {budget}, or another size decoded")
    encode_ms = time_calls(lambda: encoder.encode(image, max_bytes=budget), repeats)
    decode_ms = time_calls(lambda: decoder.decode(data), repeats)
    parts = describe(data, model)["parts"]
    overhead = float(parts.pop("overhead"))
    estimate = sum(parts.values())
    return {
        "bytes": len(data),
        "estimated_bytes": round(estimate, 2),
        "overhead_percent": round(100.0 * overhead / estimate, 2),
        "encode_ms": round(encode_ms[0], 2),
        "encode_ms_p95": round(encode_ms[1], 2),
        "decode_ms": round(decode_ms[0], 2),
        "decode_ms_p95": round(decode_ms[1], 2),
        # Linux counts ru_maxrss in KiB.
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }


def cold_start(data: bytes, model: str, engine: str, threads: int) -> float:
    """Milliseconds from launching a process to its first decoded image; median of a few."""
    with tempfile.NamedTemporaryFile(suffix=".fsd") as file:
        file.write(data)
        file.flush()
        command = [sys.executable, str(_DECODE_ONCE), model, engine, str(threads), file.name]
        times = []
        for _ in range(_COLD_STARTS):
            start = time.perf_counter()
            subprocess.run(command, check=True)
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def environment(engine: str) -> dict[str, object]:
    """Where and with what the figures were taken."""
    return {
        "version": fasdiff_edge.__version__,
        "device": device_name(),
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "opencv": cv2.__version__,
        "engine": engine,
        "engine_version": importlib.metadata.version(engine),
        "dtype": "float32",
        "num_steps": 1,
    }


def device_name() -> str:
    """The processor, as the system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def test_image(size: int) -> Image:
    """scikit-image's astronaut at `size` x `size`: the region of the face up to 256, else all."""
    import skimage.data

    astronaut: Callable[[], Image] = skimage.data.astronaut
    picture = astronaut()
    if size <= 256:
        picture = np.ascontiguousarray(picture[0:256, 92:348])
    resized = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, dtype=np.uint8)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="256,512", help="sides in pixels (256,512)")
    parser.add_argument("--max-bytes", type=int, default=1000, help="budget (1000)")
    parser.add_argument("--engines", default="openvino,onnxruntime")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--model", default="edge")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the TSV file")
    parser.add_argument("--worker", metavar="IMAGE", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.worker is not None:
        image = read_picture(args.worker.read_bytes())
        measured = measure(
            image, args.max_bytes, args.model, args.engines, args.threads, args.repeats
        )
        print(json.dumps(measured))
        return 0

    cases = [
        (engine, int(size)) for engine in args.engines.split(",") for size in args.sizes.split(",")
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for engine, size in tqdm(cases, unit="case"):
            image = test_image(size)
            path = Path(folder) / f"{size}.png"
            path.write_bytes(write_picture(image, ".png"))
            command = [sys.executable, __file__, "--worker", str(path), "--engines", engine]
            command += ["--max-bytes", str(args.max_bytes), "--threads", str(args.threads)]
            command += ["--repeats", str(args.repeats), "--model", args.model]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            data = Encoder(model=args.model, engine=engine).encode(image, max_bytes=args.max_bytes)
            row = {**environment(engine), "threads": args.threads, "pixels": f"{size}x{size}"}
            row.update(json.loads(output))
            row["cold_start_ms"] = round(cold_start(data, args.model, engine, args.threads))
            rows.append(row)
    results = args.results / "latency.tsv"
    write_tsv(results, rows)
    print(f"{device_name()}, {args.threads} threads, {args.repeats} repeats\n")
    print(markdown([{name: row[name] for name in _SHOWN} for row in rows]), end="\n\n")
    print(f"written: {results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
