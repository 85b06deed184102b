"""Convert the ONNX graphs of a model directory to OpenVINO IR with the same float32 values.

    python -m export.to_openvino fasdiff_edge/models/edge IR_FOLDER

The runtime reads the ONNX files with either engine; the IR is for users who deploy OpenVINO alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

GRAPHS = ("analysis", "synthesis", "residual")


def convert(model_folder: Path, out: Path) -> list[Path]:
    """Write GRAPHS as .xml + .bin to `out`; returns the .xml paths."""
    import openvino

    out.mkdir(parents=True, exist_ok=True)
    written = []
    for graph in GRAPHS:
        model = openvino.convert_model(str(model_folder / f"{graph}.onnx"))
        path = out / f"{graph}.xml"
        openvino.save_model(model, str(path), compress_to_fp16=False)
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for path in convert(args.model, args.out):
        print(path)


if __name__ == "__main__":
    main()
