"""Make a checkpoint INT8: ranges from training faces, training with the rounding, ONNX and IR.

    python -m export.quantise RUN/checkpoint.pt OUT --data FACES --weights HELPERS --minutes 20

Writes `OUT/checkpoint.pt`, which `export.train` goes on from as from any other, after calibration;
trains it for `--minutes` more, against the data and against the float codec that it came from, or
with `--student` the student alone, to draw what the float one draws; and exports `OUT/model`, ONNX
with QuantizeLinear and DequantizeLinear (QDQ), and `OUT/ir`, OpenVINO's version of it.
`export/verify.py` compares them with torch.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from export.data import Face, FaceSampler, crops_and_faces, read_index
from export.diffusion import condition_of, decode
from export.equalise import equalise
from export.networks import Codec, ModelConfig, codec_from_dict, split_bands
from export.quantised import ActivationQuantiser, QuantisedConv2d, SplitConv2d, quantisers
from export.second_order import SECOND_ORDER, round_to_inputs

CALIBRATION_STEPS = 2
CALIBRATION_BATCHES = 6


def quantised_copy(codec: Codec) -> Codec:
    """The same codec with its INT8 convolutions, not yet calibrated."""
    config: ModelConfig = replace(codec.config, quantised=True)
    found = Codec(config)
    found.load_state_dict({**found.state_dict(), **codec.state_dict()})
    return found.eval()


@torch.no_grad()
def look_at(codec: Codec, batches: list[Tensor]) -> None:
    """Run the codec on batches of images, float32 [B, 3, H, W] of 0..255, for its activations.

    Every image at a quality of its own, from 0 to 63.
    """
    first = codec.config.entropy.residual_from
    for image in batches:
        bands = split_bands(image)
        count = len(bands)
        q = torch.linspace(0, first - 1, count).round().long()
        noise = torch.randn_like(bands)
        told, _ = condition_of(codec, bands, q)
        decode(codec, told, noise, (torch.arange(count) % 2).float(), CALIBRATION_STEPS)
        top = torch.linspace(first, 252, count).round().long()
        codec.refine(codec.base(bands), top)


def calibrate(codec: Codec, batches: list[Tensor]) -> None:
    """Find the ranges of all activations on batches of images, as `look_at` takes them."""
    split = [m for m in codec.modules() if isinstance(m, SplitConv2d)]
    for quantiser in quantisers(codec):
        quantiser.seen = []
    for layer in split:
        layer.highest = torch.zeros_like(layer.factors)
    look_at(codec, batches)
    for quantiser in quantisers(codec):
        quantiser.settle()
    for layer in split:
        layer.settle()


def calibration_batches(faces: list[Face]) -> list[Tensor]:
    sampler = FaceSampler(faces, 11, crops_and_faces(16, 4, 0.5))
    return [torch.from_numpy(sampler.next()[0]).float() for _ in range(CALIBRATION_BATCHES)]


def quantised_state(state: dict[str, Any], faces: list[Face]) -> dict[str, Any]:
    """A training checkpoint of a float codec as one of an INT8 codec; optimisers start afresh."""
    codec = codec_from_dict(state["config"])
    codec.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    batches = calibration_batches(faces)
    equalise(codec, lambda codec: look_at(codec, batches))
    found = quantised_copy(codec)
    calibrate(found, batches)
    round_to_inputs(found, SECOND_ORDER, lambda codec: look_at(codec, batches))
    return state_with(state, found)


def state_with(state: dict[str, Any], codec: Codec) -> dict[str, Any]:
    """A training checkpoint with another codec in place of its own; optimisers start afresh."""
    weights = {k: v.detach().clone() for k, v in codec.state_dict().items()}
    kept = {k: v for k, v in state.items() if k not in ("muon", "adam", "best")}
    return {**kept, "config": codec.config_dict(), "model": weights, "ema": weights}


# -- the graph -----------------------------------------------------------------------------------
class _Surgeon:
    """Adds QuantizeLinear and DequantizeLinear around the convolutions of an exported graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.initialisers = {i.name: i for i in self.graph.initializer}
        for node in self.graph.node:  # equal values are stored once
            if node.op_type == "Identity" and node.input[0] in self.initialisers:
                self.initialisers[node.output[0]] = self.initialisers[node.input[0]]
        self.before: dict[int, list[onnx.NodeProto]] = {}  # by the node they come before
        self.after: dict[int, list[onnx.NodeProto]] = {}
        self.known: dict[tuple[str, float], str] = {}  # quantised once

    def constant(self, name: str, value: np.ndarray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def around(
        self, source: str, name: str, quantiser: ActivationQuantiser
    ) -> list[onnx.NodeProto]:
        """Nodes that make `name` of `source` by rounding it."""
        scale = self.constant(f"{name}_scale", quantiser.step().detach().numpy())
        zero = self.constant(f"{name}_zero", np.array(0, np.int8))
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [name]),
        ]

    def dequantised(self, name: str, values: np.ndarray, steps: np.ndarray) -> onnx.NodeProto:
        """A node that makes `name` of integers with a step for each index of axis 0."""
        quantised = self.constant(f"{name}_q", values)
        scale = self.constant(f"{name}_scale", steps.astype(np.float32))
        zero = self.constant(f"{name}_zero", np.zeros(len(steps), values.dtype))
        return helper.make_node("DequantizeLinear", [quantised, scale, zero], [name], axis=0)

    def convolution(self, index: int, node: onnx.NodeProto, layer: QuantisedConv2d) -> None:
        source, weight, *bias = node.input
        before = self.before.setdefault(index, [])
        step = float(layer.input.step().detach())
        key = (source, step)
        if key not in self.known:
            self.known[key] = f"{node.output[0]}_in"
            before += self.around(source, self.known[key], layer.input)
        steps = layer.weight_step().numpy()
        if bias:
            biases = numpy_helper.to_array(self.initialisers[bias[0]])
            # a channel whose weights are zero, or next to it, must still hold its bias
            steps = np.maximum(steps, np.abs(biases) / (step * 2**30))
        values = numpy_helper.to_array(self.initialisers[weight])
        rounded = np.rint(values / steps[:, None, None, None]).astype(np.int8)
        before.append(self.dequantised(f"{weight}_int8", rounded, steps))
        node.input[:] = [self.known[key], f"{weight}_int8"]
        if bias:
            of_bias = steps.astype(np.float64) * step
            whole = np.rint(biases / of_bias).astype(np.int32)
            before.append(self.dequantised(f"{bias[0]}_int32", whole, of_bias))
            node.input.append(f"{bias[0]}_int32")
        output = layer.input if layer.copies else layer.output
        if output is not None:
            name = node.output[0]
            node.output[0] = f"{name}_raw"
            self.after[index] = self.around(f"{name}_raw", name, output)

    def finish(self) -> None:
        nodes = []
        for index, node in enumerate(self.graph.node):
            nodes += [*self.before.get(index, []), node, *self.after.get(index, [])]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [i for i in self.graph.initializer if i.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def to_qdq(model: onnx.ModelProto, layers: dict[str, QuantisedConv2d]) -> onnx.ModelProto:
    """Quantise the convolutions of a graph, in place.

    Args:
      layers: by the name of the weight in the graph, less ".weight".
    Raises:
      ValueError: a layer is not in the graph.
    """
    surgeon = _Surgeon(model)
    missing = set(layers)
    for index, node in enumerate(model.graph.node):
        name = node.input[1].removesuffix(".weight") if node.op_type == "Conv" else ""
        if name in layers:
            surgeon.convolution(index, node, layers[name])
            missing.discard(name)
    if missing:
        raise ValueError(f"the graph has no {', '.join(sorted(missing))}")
    surgeon.finish()
    onnx.checker.check_model(model)
    return model


def main() -> None:
    from export.to_onnx import export_model, load_codec
    from export.to_openvino import convert
    from export.train import Settings, Trainer
    from export.train_rounding import RoundingSettings, RoundingTrainer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="of a float codec")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv")
    parser.add_argument("--weights", required=True, help="folder with mobilefacenet.onnx")
    parser.add_argument("--minutes", type=float, default=0.0, help="of training; 0: ranges alone")
    parser.add_argument(
        "--student", action="store_true", help="train it alone: files stay the same"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that cut crops")
    parser.add_argument("--validate-every", type=float, default=10.0, help="minutes")
    parser.add_argument("--validate-count", type=int, default=24)
    parser.add_argument("--set", dest="override", type=json.loads, default={}, help="JSON settings")
    parser.add_argument("--name", default="edge")
    parser.add_argument("--min-quality", type=float, default=0.0)
    parser.add_argument("--per-octave", type=float, default=0.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="that it was trained for")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(11)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "checkpoint.pt"
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    if not path.exists():
        torch.save(quantised_state(state, read_index(args.data, "train")), path)
    if args.minutes:
        before = state["elapsed"] / 60
        args.minutes += before  # the trainer counts from the start of the float codec
        args.override.setdefault("decay_from", before / args.minutes)
        args.init, args.teacher = None, None if args.student else args.checkpoint
        if args.student:
            args.codec = args.checkpoint
            RoundingTrainer(args, RoundingSettings(**args.override)).run()
        else:
            Trainer(args, Settings(**args.override)).run()
    codec, record = load_codec(path)
    manifest = export_model(
        codec,
        args.out / "model",
        record,
        name=args.name,
        min_quality=args.min_quality,
        per_octave=args.per_octave,
        num_steps=args.steps,
    )
    convert(args.out / "model", args.out / "ir")
    print(f"model {manifest['model_id']} in {args.out / 'model'}")


if __name__ == "__main__":
    main()
