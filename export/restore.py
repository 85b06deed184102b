"""Read the INT8 graphs of a model directory back into a checkpoint that training can go on from.

    python -m export.restore fasdiff_edge/models/edge export/checkpoints/edge.pt RUN/checkpoint.pt

The graphs hold all that an INT8 codec has, its weights as they were rounded: exported again, they
are what they were. What they do not have, the entropy model, the residual's transform and the
record of the training, is the float checkpoint's.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.networks import Codec, Student, codec_from_dict
from export.quantise import quantised_copy, state_with
from export.quantised import ActivationQuantiser, FixedConv2d, QuantisedConv2d
from export.to_onnx import regrouped
from export.training import rewrite

_PARTS = {"analysis.onnx": "g_a.", "synthesis.onnx": "g_s."}


class _Graph:
    """Values and nodes of a graph by the names of tensors."""

    def __init__(self, path: Path, part: str) -> None:
        self.part = part
        graph = onnx.load(str(path)).graph
        self.values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self.nodes = list(graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output}

    def value(self, name: str) -> np.ndarray:
        """A constant, through casts and dequantisation."""
        if name in self.values:
            return self.values[name].astype(np.float32)
        node = self.makers[name]
        if node.op_type in ("Cast", "Identity"):
            return self.value(node.input[0])
        if node.op_type != "DequantizeLinear":
            raise ValueError(f"{name} is not a constant")
        values, steps, _ = (self.values[n] for n in node.input)
        shape = [-1] + [1] * (values.ndim - 1)
        return (values.astype(np.float64) * steps.reshape(shape)).astype(np.float32)

    def step(self, name: str) -> float | None:
        """The step of an activation that is rounded; None where it is not."""
        node = self.makers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return float(self.values[node.input[1]])

    def parameter(self, node: onnx.NodeProto, place: int) -> Tensor:
        """An input of a convolution, its outputs in the codec's order; see `blocks_first`."""
        found = self.value(node.input[place])
        for reader in self.nodes:
            if reader.op_type == "DepthToSpace" and reader.input[0] == node.output[0]:
                kept = {a.name: onnx.helper.get_attribute_value(a) for a in reader.attribute}
                if kept["mode"] == b"DCR":
                    found = regrouped(found, kept["blocksize"] ** 2)
        return torch.from_numpy(found)

    def layer(self, name: str) -> str:
        """The codec's name of a layer of the graph."""
        return f"{self.part}{name.removeprefix(f'codec.{self.part}')}"


def _log2(step: float) -> float:
    """The number whose power of 2 is this very float32, or the nearest there is."""
    first = np.float32(math.log2(step))
    near = [first]
    for towards in (-np.inf, np.inf):
        value = first
        for _ in range(4):
            value = np.nextafter(value, np.float32(towards))
            near.append(value)
    return float(min(near, key=lambda v: abs(float(torch.exp2(torch.tensor(v))) - step)))


def _set_step(quantiser: ActivationQuantiser, step: float | None, name: str) -> None:
    if step is None:
        raise ValueError(f"{name} is not rounded in the graph")
    quantiser.log2_step.fill_(_log2(step))


def _convolution(graph: _Graph, node: onnx.NodeProto, layers: dict[str, nn.Module]) -> None:
    weight = node.input[1].removesuffix("_int8")
    if weight.endswith(".weight"):
        name = graph.layer(weight.removesuffix(".weight"))
    else:  # exported without its name
        name = node.name.strip("/").removesuffix("/Conv").replace("/", ".")
    layer = layers.get(name)
    if layer is None or isinstance(layer, FixedConv2d):
        return  # of the residual's transform, or given
    if isinstance(layer, Student):
        _films(layer.film_layers(), graph.parameter(node, 1), graph.parameter(node, 2))
        return
    if isinstance(layer, QuantisedConv2d):
        _set_step(layer.input, graph.step(node.input[0]), name)
        if layer.output is not None:
            (following,) = (
                n
                for n in graph.nodes
                if n.op_type == "QuantizeLinear" and n.input[0] == node.output[0]
            )
            _set_step(layer.output, float(graph.values[following.input[1]]), name)
        if not isinstance(layer.weight, nn.Parameter):
            return
    if not isinstance(layer, nn.Conv2d | QuantisedConv2d):
        raise ValueError(f"{name} is not rounded in the graph")
    layer.weight.copy_(graph.parameter(node, 1))
    if layer.bias is not None:
        layer.bias.copy_(graph.parameter(node, 2))


def _linear(layer: nn.Module, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"{layer} is a product in the graph")
    layer.weight.copy_(torch.from_numpy(weight))
    if bias is not None:
        layer.bias.copy_(torch.from_numpy(bias))


def _films(layers: list[nn.Linear], weight: Tensor, bias: Tensor) -> None:
    """What `films` joins, apart again."""
    sizes = 2 * [layer.out_features // 2 for layer in layers]
    weights, biases = weight.flatten(1).split(sizes), bias.split(sizes)
    for place, layer in enumerate(layers):
        layer.weight.copy_(torch.cat(weights[place :: len(layers)]))
        layer.bias.copy_(torch.cat(biases[place :: len(layers)]))


@torch.no_grad()
def read_graphs(codec: Codec, folder: Path) -> None:
    """Set analysis and student of an INT8 codec to what the graphs of a model directory have.

    Raises:
      ValueError: the graphs are of another codec.
    """
    for file, part in _PARTS.items():
        graph = _Graph(folder / file, part)
        layers = {name: m for name, m in codec.named_modules() if f"{name}.".startswith(part)}
        for node in graph.nodes:
            if node.op_type == "Conv":
                _convolution(graph, node, layers)
            elif node.op_type == "Gemm":
                weight, bias = (graph.value(name) for name in node.input[1:])
                name = graph.layer(node.input[1].removesuffix(".weight"))
                _linear(layers[name], weight, bias)
            elif node.op_type == "MatMul":
                _linear(codec.g_s.time, graph.value(node.input[1]).T)
        for name, buffer in codec.named_buffers():
            if name.startswith(part) and (known := name.removeprefix(part)) in graph.values:
                buffer.copy_(torch.from_numpy(graph.values[known].copy()))


def restored(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A float checkpoint with the INT8 codec of a model directory in place of its own."""
    codec = codec_from_dict(state["config"])
    codec.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    found = quantised_copy(codec)
    read_graphs(found, folder)
    return state_with(state, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="directory of INT8 graphs")
    parser.add_argument("checkpoint", type=Path, help="of the float codec")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rewrite(args.checkpoint, args.out, lambda state: restored(state, args.model))


if __name__ == "__main__":
    main()
