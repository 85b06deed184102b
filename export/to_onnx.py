"""Export a checkpoint to the model directory that the runtime reads.

    python -m export.to_onnx RUN/checkpoint.pt fasdiff_edge/models/edge

Writes analysis.onnx, synthesis.onnx and residual.onnx (float16 weights, cast to float32 in the
graph), gradient.onnx (`export.gradient`), entropy_model.bin and manifest.json with the SHA-256 of
each. The EMA weights are exported.
"""

from __future__ import annotations

import argparse
import collections
import copy
import hashlib
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.diffusion import TIME_SHIFT
from export.gradient import write_gradient
from export.integer_entropy import serialize
from export.networks import NUM_BANDS, Codec, codec_from_dict
from export.pack import RANGES
from export.quantise import to_qdq
from export.quantised import QuantisedConv2d, restore_convolutions

OPSET = 17
GRAPHS = ("analysis.onnx", "synthesis.onnx", "residual.onnx", "gradient.onnx")
HALF_FROM = 256  # initialisers with at least so many values are stored as float16


def load_codec(checkpoint: Path) -> tuple[Codec, dict[str, Any]]:
    """EMA model in eval mode, its graph weights rounded to float16, and the training record."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    codec = codec_from_dict(state["config"])
    codec.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    for part in (codec.g_a, codec.g_s, codec.residual):
        for key, p in part.named_parameters():
            if not key.endswith(RANGES):
                p.data = p.data.half().float()
    record = {k: state[k] for k in ("config", "settings", "step", "images", "elapsed")}
    return codec.eval(), record


class Synthesis(nn.Module):
    """`Codec.synthesise` with a residual, which is zero where none is coded."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(
        self,
        prompt: Tensor,
        s_hat: Tensor,
        x_t: Tensor,
        t: Tensor,
        realism: Tensor,
        quality: Tensor,
        residual: Tensor,
    ) -> Tensor:
        return self.codec.synthesise(prompt, s_hat, x_t, t, realism, quality, residual)


def halve_initialisers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large initialisers as float16 behind a Cast; the graph still computes in float32."""
    graph = model.graph
    dequantise = (node for node in graph.node if node.op_type == "DequantizeLinear")
    steps = {node.input[1] for node in dequantise}
    casts = []
    for init in graph.initializer:
        value = numpy_helper.to_array(init)
        if init.name in steps:
            continue
        if init.data_type != TensorProto.FLOAT or value.size < HALF_FROM:
            continue
        name = init.name
        init.CopyFrom(numpy_helper.from_array(value.astype(np.float16), name + "_f16"))
        casts.append(helper.make_node("Cast", [name + "_f16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def regrouped(values: np.ndarray, groups: int) -> np.ndarray:
    """The first of each of so many groups that follow each other, then all second ones, ..."""
    found = values.reshape(groups, -1, *values.shape[1:]).swapaxes(0, 1)
    return np.ascontiguousarray(found.reshape(values.shape))


def blocks_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Order the outputs of convolutions as DepthToSpace takes them at once, in place.

    `F.pixel_shuffle` takes a channel's four from neighbours. Engines compute channels last: all
    of a pixel are copied in one run where each of the four has its own block of channels.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    initialisers = {i.name: i for i in graph.initializer}
    readers = collections.Counter(name for node in graph.node for name in node.input)

    def constants(name: str) -> list[TensorProto]:
        """What a weight or bias is made of; nothing if it is computed or shared."""
        if readers[name] > 1:
            return []
        if name in initialisers:
            return [initialisers[name]]
        maker = makers[name]
        if maker.op_type == "Constant":
            return [maker.attribute[0].t]
        if maker.op_type != "DequantizeLinear":
            return []
        return [tensor for part in maker.input for tensor in constants(part)]

    for node in graph.node:
        if node.op_type != "DepthToSpace":
            continue
        maker = makers.get(node.input[0])
        if maker is None or maker.op_type != "Conv" or readers[node.input[0]] > 1:
            continue
        parts = [constants(name) for name in maker.input[1:]]
        if not all(parts):
            continue
        size = next(a.i for a in node.attribute if a.name == "blocksize")
        for tensor in itertools.chain(*parts):
            value = numpy_helper.to_array(tensor)
            moved = regrouped(value, len(value) // size**2)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
        next(a for a in node.attribute if a.name == "mode").s = b"DCR"
    return model


def export_graph(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    dynamic: dict[str, dict[int, str]],
    path: Path,
    layers: dict[str, QuantisedConv2d] | None = None,
) -> None:
    """`layers`: see `to_qdq`."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "graph.onnx"
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(raw),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(str(raw))
    if layers:
        to_qdq(model, layers)
    onnx.save(halve_initialisers(blocks_first(model)), str(path))


def export_model(
    codec: Codec,
    folder: Path,
    record: dict[str, Any],
    *,
    name: str,
    min_quality: float,
    per_octave: float = 0.0,
    num_steps: Sequence[int] = (1,),
) -> dict[str, Any]:
    """Write the model directory; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    e = codec.config.entropy
    codec = copy.deepcopy(codec)
    quantised = restore_convolutions(codec)
    of_analysis = {n.removeprefix("g_a."): m for n, m in quantised.items() if n[:4] == "g_a."}
    of_student = {f"codec.{n}": m for n, m in quantised.items() if n[:4] == "g_s."}
    spatial = {2: "h", 3: "w"}
    export_graph(
        codec.g_a,
        {"bands": torch.zeros(1, NUM_BANDS, 64, 64)},
        ["y", "z", "s", "price"],
        {
            "bands": spatial,
            "y": {2: "hy", 3: "wy"},
            "z": {2: "hz", 3: "wz"},
            "price": {2: "hy", 3: "wy"},
        },
        folder / "analysis.onnx",
        of_analysis,
    )
    export_graph(
        codec.residual,
        {"bands": torch.zeros(1, NUM_BANDS, 64, 64)},
        ["residual"],
        {"bands": spatial, "residual": {2: "hy", 3: "wy"}},
        folder / "residual.onnx",
    )
    export_graph(
        Synthesis(codec),
        {
            "prompt": torch.zeros(1, e.num_y + e.num_z, 16, 16),
            "s_hat": torch.zeros(1, e.num_s),
            "x_t": torch.zeros(1, NUM_BANDS, 64, 64),
            "t": torch.ones(1),
            "realism": torch.ones(1),
            "quality": torch.ones(1),
            "residual": torch.zeros(1, e.num_residual, 16, 16),
        },
        ["bands"],
        {
            "prompt": {2: "hy", 3: "wy"},
            "x_t": spatial,
            "residual": {2: "hy", 3: "wy"},
            "bands": spatial,
        },
        folder / "synthesis.onnx",
        of_student,
    )
    write_gradient(folder)
    (folder / "entropy_model.bin").write_bytes(serialize(codec.entropy))
    files = {
        f: hashlib.sha256((folder / f).read_bytes()).hexdigest()
        for f in (*GRAPHS, "entropy_model.bin")
    }
    manifest = {
        "format": 1,
        "name": name,
        "model_id": files["entropy_model.bin"][:4],
        "precision": "int8" if quantised else "float32",
        "num_steps": list(num_steps),
        "time_shift": TIME_SHIFT,
        "deviations": [round(v, 6) for v in codec.g_s.scale.flatten().tolist()],
        "num_y": e.num_y + e.num_residual,
        "num_z": e.num_z,
        "num_s": e.num_s,
        "min_quality_before_downscale": min_quality,
        "min_quality_per_octave": per_octave,
        "files": files,
        "training": record,
    }
    path = folder / "manifest.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if "rate" in before and before.get("model_id") == manifest["model_id"]:
        manifest["rate"] = before["rate"]
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="edge")
    parser.add_argument("--min-quality", type=float, default=0.0)
    parser.add_argument("--per-octave", type=float, default=0.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="that it was trained for")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec, record = load_codec(args.checkpoint)
    manifest = export_model(
        codec,
        args.folder,
        record,
        name=args.name,
        min_quality=args.min_quality,
        per_octave=args.per_octave,
        num_steps=args.steps,
    )
    sizes = {f: (args.folder / f).stat().st_size for f in manifest["files"]}
    print(f"model {manifest['model_id']}: {sizes}")


if __name__ == "__main__":
    main()
