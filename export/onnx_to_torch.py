"""A small reader of ONNX files into torch, for the fixed embedder of the identity loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

SUPPORTED = ("Conv", "Clip", "Relu", "PRelu", "Add", "Gemm", "Flatten", "Reshape")


class OnnxModule(nn.Module):
    """Runs a feed-forward ONNX graph; SUPPORTED lists the operators.

    Raises:
      ValueError: the graph holds an operator that is not among these.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(str(path)).graph
        self.input, self.output = graph.input[0].name, graph.output[0].name
        constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self.nodes = []
        for node in graph.node:
            attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                constants[node.output[0]] = numpy_helper.to_array(attrs["value"])
            elif node.op_type in SUPPORTED:
                if node.op_type == "Clip":  # as numbers: a GPU's tensors would have to be awaited
                    attrs["bounds"] = [float(constants[name]) for name in node.input[1:]]
                self.nodes.append((node.op_type, list(node.input), node.output[0], attrs))
            else:
                raise ValueError(f"{path}: ONNX operator {node.op_type} is not supported here")
        self.keys = {name: f"c{i}" for i, name in enumerate(constants)}
        for name, value in constants.items():
            self.register_buffer(self.keys[name], torch.from_numpy(value.copy()))

    def forward(self, x: Tensor, taps: tuple[str, ...] = ()) -> list[Tensor]:
        """The graph's output, then the tensors named in `taps`."""
        values = {name: getattr(self, key) for name, key in self.keys.items()}
        values[self.input] = x
        for op, inputs, output, attrs in self.nodes:
            args = [values[i] for i in inputs if i]
            values[output] = self._run(op, args, attrs)
        return [values[name] for name in (self.output, *taps)]

    @staticmethod
    def _run(op: str, args: list[Tensor], attrs: dict[str, Any]) -> Tensor:
        if op == "Conv":
            pads = attrs.get("pads", [0, 0, 0, 0])
            if pads[:2] != pads[2:]:
                raise ValueError("asymmetric padding is not supported here")
            return F.conv2d(  # type: ignore[call-overload]
                *args,
                stride=attrs.get("strides", [1, 1]),
                padding=pads[:2],
                groups=attrs.get("group", 1),
            )
        if op == "Clip":
            # hardtanh, not clamp: its backward pass is one kernel instead of three
            return F.hardtanh(args[0], *attrs["bounds"])
        if op == "Relu":
            return F.relu(args[0])
        if op == "PRelu":
            return F.prelu(args[0], args[1].flatten())
        if op == "Add":
            return args[0] + args[1]
        if op == "Gemm":
            return F.linear(args[0], args[1] if attrs.get("transB") else args[1].T, *args[2:])
        return args[0].flatten(1)  # Flatten, and Reshape to [N, -1]
