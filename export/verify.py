"""Check that torch, ONNX Runtime and OpenVINO (ONNX and IR) compute the same; non-zero exit if not.

    python -m export.verify RUN/checkpoint.pt fasdiff_edge/models/edge

The inputs are bands of a synthetic image with edges, ramps and noise, at an even and an odd size.
Latents are compared in y units, bands in their own units. The outputs of a float graph may differ
by TOLERANCE at most. In an INT8 graph a value that lies between two levels may fall on either, and
what follows differs a little everywhere: there it is the root mean square of the difference that
may be INT8_TOLERANCE of that of the output at most. The gradient of the student, which has no unit,
is always measured so; that of an INT8 student, where ReLUs may be open in one engine and closed in
another, may differ by GRADIENT_INT8_TOLERANCE.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.integer_entropy import NUM_Q
from export.networks import Codec, band_scale, split_bands
from export.to_onnx import Synthesis, load_codec
from export.to_openvino import convert

TOLERANCE = 2e-3
INT8_TOLERANCE = 0.03
GRADIENT_INT8_TOLERANCE = 0.2  # a cosine of 0.98
QUALITY = 126
Arrays = dict[str, np.ndarray]
Graph = Callable[[Arrays], list[np.ndarray]]


def synthetic_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 RGB [H, W, 3]: a shaded disc on a ramp, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([x / width, y / height, 1 - x / width], 2) * 200
    disc = ((x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 3) ** 2)[..., None]
    image = np.where(disc, 230 - 0.5 * ramp, ramp) + rng.normal(0, 6, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


class Gradient(nn.Module):
    """What `gradient.onnx` adds to the synthesis graph, and that graph's bands before it."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.synthesis = Synthesis(codec)

    @torch.enable_grad()
    def forward(self, prompt: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs as of `Synthesis`, then the target [1, 48, h, w] and the weights [1, 1, h, w]."""
        *others, target, weight = inputs
        prompt = prompt.detach().requires_grad_()
        degrid = self.synthesis.codec.g_s.degrid  # passes no gradient; `export.gradient.SILENT`
        with degrid.register_forward_hook(lambda _, inputs, found: found.detach()):
            bands = self.synthesis(prompt, *others)
        error = (weight * (bands - target).square()).sum()
        (gradient,) = torch.autograd.grad(error, prompt)
        return bands.detach(), error.detach(), gradient


def graph_inputs(codec: Codec, height: int, width: int) -> tuple[Arrays, Arrays, Arrays]:
    """Inputs of the analysis and of the synthesis graph, and of the latter with its gradient."""
    image = torch.from_numpy(synthetic_image(height, width).transpose(2, 0, 1).copy())[None].float()
    bands = split_bands(image)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        q = torch.tensor([QUALITY])
        prompt, s_hat = codec.decoded(codec.entropy.code(*codec.latents(bands), q), q)
    synthesis = {
        "prompt": prompt.numpy(),
        "s_hat": s_hat.numpy(),
        "x_t": rng.standard_normal(bands.shape).astype(np.float32),
        "t": np.full(1, 0.6, np.float32),
        "realism": np.ones(1, np.float32),
        "quality": np.full(1, QUALITY / (NUM_Q - 1), np.float32),
        "residual": rng.standard_normal(
            (1, codec.entropy.config.num_residual, *prompt.shape[2:])
        ).astype(np.float32),
    }
    weight = rng.uniform(0.5, 2.0, (1, 1, *bands.shape[2:])).astype(np.float32)
    # far enough from what is decoded for the roundings to be small beside the error
    away = rng.standard_normal(bands.shape).astype(np.float32) * band_scale().numpy()
    gradient = {**synthesis, "target": bands.numpy() + away, "weight": weight}
    # what encoders follow is the posterior mean
    gradient |= {name: np.zeros_like(synthesis[name]) for name in ("x_t", "realism")}
    gradient["t"] = np.ones(1, np.float32)
    return {"bands": bands.numpy()}, synthesis, gradient


def onnxruntime_graph(path: Path) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda inputs: list(session.run(None, inputs))


def openvino_graph(path: Path) -> Graph:
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(str(path), "CPU", config)

    def run(inputs: Arrays) -> list[np.ndarray]:
        result = compiled(inputs)
        return [np.array(result[o]) for o in compiled.outputs]

    return run


def is_int8(codec: Codec, graph: str) -> bool:
    return codec.config.quantised and not graph.startswith("residual")


def tolerance(codec: Codec, graph: str) -> float:
    """What `differences` may be for a graph."""
    if is_int8(codec, graph) and graph.startswith("gradient"):
        return GRADIENT_INT8_TOLERANCE
    return INT8_TOLERANCE if is_int8(codec, graph) else TOLERANCE


def difference(found: np.ndarray, expected: np.ndarray, *, relative: bool) -> float:
    """The largest absolute difference; or its root mean square over that of `expected`."""
    away = found.astype(np.float64) - expected
    if not relative:
        return float(np.abs(away).max())
    return float(np.sqrt(np.square(away).mean() / np.square(expected).mean()))


def differences(codec: Codec, folder: Path, height: int, width: int) -> dict[str, float]:
    """The largest difference to torch of an output, per graph and engine."""
    analysis, synthesis, gradient = graph_inputs(codec, height, width)
    found = {}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        made = Path(temporary)
        convert(folder, made)
        parts = [(folder / f"{name}.onnx").read_bytes() for name in ("synthesis", "gradient")]
        (made / "gradient.onnx").write_bytes(b"".join(parts))  # as the runtime reads it
        for name, module, inputs, at in (
            ("analysis", codec.g_a, analysis, folder),
            ("synthesis", Synthesis(codec), synthesis, folder),
            ("residual", codec.residual, analysis, folder),
            ("gradient", Gradient(codec), gradient, made),
        ):
            expected = module(*(torch.from_numpy(v) for v in inputs.values()))
            expected = expected if isinstance(expected, tuple) else (expected,)
            graphs = {
                "onnxruntime": onnxruntime_graph(at / f"{name}.onnx"),
                "openvino": openvino_graph(at / f"{name}.onnx"),
            }
            if (ir := made / f"{name}.xml").exists():
                graphs["openvino-ir"] = openvino_graph(ir)
            for engine, graph in graphs.items():
                got = graph(inputs)
                pairs = zip(got, expected, strict=True)
                relative = is_int8(codec, name) or name == "gradient"
                worst = max(difference(a, b.numpy(), relative=relative) for a, b in pairs)
                found[f"{name} {engine} {width}x{height}"] = worst
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec, _ = load_codec(args.checkpoint)
    failed = False
    for height, width in ((256, 256), (144, 112)):
        for name, worst in differences(codec, args.folder, height, width).items():
            allowed = tolerance(codec, name)
            ok = worst <= allowed
            failed |= not ok
            print(f"{'ok  ' if ok else 'FAIL'} {name}: {worst:.2e} (tolerance {allowed:.0e})")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
