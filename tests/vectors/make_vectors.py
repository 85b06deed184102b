"""Make the golden streams of a version of the entropy model file, once.

They come from the Python reference alone, so that the C++ core is checked against something that
it did not write. Released streams never change: this refuses to write into a directory that holds
any. A new version of the format or of the model file gets a directory of its own.

    python tests/vectors/make_vectors.py tests/vectors/v5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import reference

SEED = 20240607
MODEL_VERSION = 5
# every kind of scan, and a residual of two groups
SHAPE = {
    "group_sizes": (2, 3, 3, 2),
    "group_scans": (3, 2, 1, 2),
    "group_starts": (0, 0, 100, 150),
}
# name, width, height, scale, quality in quarter steps, how the symbols are chosen
STREAMS = [
    ("typical-64x64", 64, 64, 0, 128, "sampled"),
    ("lowest-quality-49x33", 49, 33, 0, 0, "sampled"),
    ("highest-quality-256x160", 256, 160, 0, 252, "sampled"),
    ("one-pixel", 1, 1, 0, 7, "sampled"),
    ("half-size-130x71", 130, 71, 1, 77, "sampled"),
    ("eighth-size-1000x701", 1000, 701, 3, 31, "sampled"),
    ("all-zero-64x64", 64, 64, 0, 100, "zero"),
    ("escapes-80x48", 80, 48, 0, 200, "escapes"),
    ("extremes-32x16", 32, 16, 0, 64, "extremes"),
    ("zero-bytes-48x48", 48, 48, 0, 160, "zero bytes"),
    ("tall-33x640", 33, 640, 0, 90, "sampled"),
]


def choose_symbols(
    rng: np.random.Generator, model: reference.Model, kind: str, q: int, hy: int, wy: int
) -> tuple[reference.Int, reference.Int, reference.Int]:
    """Levels (s, z, y) of a stream."""
    if kind == "sampled":  # the decoder turns random bytes into what the model finds likely
        return reference.decode_latents(model, rng.bytes(8192), q, hy, wy)
    if kind == "zero bytes":  # every symbol the first of its table: a message of zeros
        return reference.decode_latents(model, b"", q, hy, wy)
    s, z, y = (a.astype(np.int64) for a in reference.random_latents(rng, model, hy, wy, 40.0))
    if kind == "zero":
        s, z, y = 0 * s, 0 * z, 0 * y
    if kind == "extremes":
        unit = 1 << model.unit_bits
        s, z, y = (np.where(a % 2 == 0, -32768 * unit, 32767 * unit) for a in (s, z, y))
    return s, z, y


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    if directory.exists() and any(directory.iterdir()):
        print(f"{directory} is not empty; golden streams are never rewritten", file=sys.stderr)
        return 2
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    model = reference.random_model(rng, MODEL_VERSION, **SHAPE)
    model_file = reference.serialise(model)
    model_id = hashlib.sha256(model_file).digest()[:2]
    (directory / "entropy_model.bin").write_bytes(model_file)
    streams = []
    for name, width, height, scale, quality, kind in STREAMS:
        hy, wy = (math.ceil(math.ceil(side / 2**scale) / 16) for side in (height, width))
        s, z, y = choose_symbols(rng, model, kind, quality, hy, wy)
        payload = reference.encode_latents(model, s, z, y, quality)
        s, z, y = reference.decode_latents(model, payload, quality, hy, wy)
        file = reference.pack_file(
            payload, int.from_bytes(model_id, "big"), width, height, quality, scale
        )
        symbols = b"".join(a.astype("<i4").tobytes() for a in (s, z, y))
        (directory / f"{name}.fsd").write_bytes(file)
        streams.append(
            {
                "file": f"{name}.fsd",
                "symbols_sha256": hashlib.sha256(symbols).hexdigest(),
                "file_sha256": hashlib.sha256(file).hexdigest(),
                "width": width,
                "height": height,
                "scale": scale,
                "quality": quality,
                "latent": [hy, wy],
                "symbols": kind,
            }
        )
        print(f"{name}: {len(file)} bytes")
    index = {
        "format_version": 2,
        "model_version": MODEL_VERSION,
        "entropy_model": "entropy_model.bin",
        "entropy_model_sha256": hashlib.sha256(model_file).hexdigest(),
        "model_id": model_id.hex(),
        "about": "symbols_sha256 is of s, z and y in C order, concatenated, as little-endian int32",
        "streams": streams,
    }
    (directory / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
