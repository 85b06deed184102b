"""The gradient of the student, as a graph: what an encoder refines its latents with.

`gradient.onnx` is not a graph of its own but the rest of one: appended to `synthesis.onnx`, byte
after byte, it makes the graph that also tells how the squared error falls with the visual prompt.
Protocol buffers are merged by concatenation: nodes, inputs and outputs follow those before them.
So the weights are stored once, and nothing at run time need know how graphs are written.

    x = bands - target,    error = sum(weight * x^2),    prompt_gradient = d error / d prompt

in reverse mode (Griewank and Walther, 2008, chapter 3). Roundings pass gradients as they are
(straight-through estimator, Bengio et al., 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PREFIX = "gradient/"  # of every name that is added
WANTED, OF = "prompt", "bands"
NOISE, TIME = "x_t", "t"  # 0 and 1: encoders follow the posterior mean, in one step
ROUNDINGS = ("QuantizeLinear", "DequantizeLinear")
SILENT = ("Clip",)  # the student's grid, in small steps, moves no error


class Adjoint:
    """Nodes that carry gradients from an output of a graph back to one of its inputs.

    Args:
      wanted, of: names of that input and that output.
      zero, one: inputs that are 0 and 1 wherever the gradient is asked for. What is then multiplied
        with nothing but zeros has none.
      silent: operators that pass no gradient.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        wanted: str = WANTED,
        of: str = OF,
        zero: str = "",
        one: str = "",
        silent: Sequence[str] = (),
    ) -> None:
        self.graph, self.wanted, self.of = model.graph, wanted, of
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.parts: dict[str, list[str]] = {}  # contributions to the gradient of each tensor
        self.reached = {wanted}  # tensors that the wanted input has a part in
        zeros = {zero} - {""}
        for node in self.graph.node:
            if self._gives_zeros(node, zeros, one):
                zeros.update(node.output)
            nothing = node.op_type in silent or bool(zeros & set(node.output))
            if self.reached & set(node.input) and not nothing:
                self.reached.update(node.output)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.shapes = {  # 0 where a size is not known
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*inferred.value_info, *inferred.output, *inferred.input)
        }
        self.shapes |= {i.name: list(i.dims) for i in self.graph.initializer}
        self.rounded = {
            node.output[0] for node in self.graph.node if node.op_type == "DequantizeLinear"
        }
        self.rules: dict[str, Callable[[onnx.NodeProto, str], None]] = {
            "Add": self._add,
            "Cast": self._as_it_is,
            "Concat": self._concat,
            "Conv": self._conv,
            "DepthToSpace": self._depth_to_space,
            "DequantizeLinear": self._as_it_is,
            "Mul": self._mul,
            "QuantizeLinear": self._as_it_is,
            "Relu": self._relu,
        }

    def _gives_zeros(self, node: onnx.NodeProto, zeros: set[str], one: str) -> bool:
        """Whether nothing but zeros comes out of a node, where these are zeros."""
        given = [name in zeros for name in node.input]
        if node.op_type == "Sub" and node.input[1] == one and self._is_one(node.input[0]):
            return True
        if node.op_type == "Mul":
            return any(given)
        if node.op_type in ("Add", "Sub"):
            return all(given)
        if node.op_type == "Conv":
            return given[0] and len(node.input) == 2  # no bias
        return node.op_type in (*ROUNDINGS, "Div", "Unsqueeze") and given[0]

    def _is_one(self, name: str) -> bool:
        values = [
            n.attribute[0].t
            for n in self.graph.node
            if name in n.output and n.op_type == "Constant"
        ]
        return any(bool((numpy_helper.to_array(value) == 1).all()) for value in values)

    def constant(self, value: np.ndarray) -> str:
        name = f"{PREFIX}constant{len(self.initialisers)}"
        self.initialisers.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        name = name or f"{PREFIX}{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def give(self, name: str, gradient: str) -> None:
        if name in self.reached:
            self.parts.setdefault(name, []).append(gradient)

    def taken(self, name: str) -> str | None:
        """The sum of what was given to a tensor."""
        first, *others = self.parts.pop(name, [""])
        for other in others:
            first = self.node("Add", [first, other])
        return first or None

    def run(self, seed: str) -> str:
        """The gradient of the wanted input, where that of the output is `seed`."""
        self.give(self.of, seed)
        for node in reversed(self.graph.node):
            gradient = self.taken(node.output[0]) if node.output[0] in self.reached else None
            if gradient is None:
                continue
            if node.op_type not in self.rules:
                raise ValueError(f"no gradient is known of {node.op_type}: {node.output[0]}")
            self.rules[node.op_type](node, gradient)
        found = self.taken(self.wanted)
        if found is None:
            raise ValueError(f"{self.of} does not depend on {self.wanted}")
        return found

    # -- one operator each: the gradient of its output, given to its inputs ------------------------
    def _as_it_is(self, node: onnx.NodeProto, gradient: str) -> None:
        self.give(node.input[0], gradient)

    def _add(self, node: onnx.NodeProto, gradient: str) -> None:
        for name in node.input:
            self.give(name, gradient)

    def _mul(self, node: onnx.NodeProto, gradient: str) -> None:
        a, b = node.input
        for one, other in ((a, b), (b, a)):
            if one in self.reached:
                self.give(one, self.node("Mul", [gradient, other]))

    def _relu(self, node: onnx.NodeProto, gradient: str) -> None:
        # of what is over zero afterwards: the input may have been fused away by then
        passed = self.node("Sign", [node.output[0]])
        self.give(node.input[0], self.node("Mul", [gradient, passed]))

    def _concat(self, node: onnx.NodeProto, gradient: str) -> None:
        start = 0
        axis = self.constant(np.array([1], np.int64))
        for name in node.input:
            end = start + self.shapes[name][1]
            ends = [self.constant(np.array([v], np.int64)) for v in (start, end)]
            self.give(name, self.node("Slice", [gradient, *ends, axis]))
            start = end

    def _conv(self, node: onnx.NodeProto, gradient: str) -> None:
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if set(kept.get("dilations", [1])) != {1} or kept.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise ValueError(f"no gradient is known of a convolution like {node.output[0]}")
        source, weight = node.input[:2]
        sizes, out, kernel = (self.shapes[name] for name in (source, node.output[0], weight))
        pads, strides = kept.get("pads", [0] * 4), kept.get("strides", [1, 1])
        turned: dict[str, Any] = {"pads": pads}
        if kept.get("group", 1) != 1:
            turned["group"] = kept["group"]
        if set(strides) != {1}:
            if not all(sizes[2:]):
                raise ValueError(f"{node.output[0]} has strides, and {source} no known size")
            # rows and columns at the end that no stride comes to
            turned["strides"], turned["output_padding"] = (
                strides,
                [
                    sizes[2 + i]
                    - ((out[2 + i] - 1) * strides[i] - pads[i] - pads[2 + i] + kernel[2 + i])
                    for i in range(2)
                ],
            )
        if weight not in self.rounded and sizes[1] == out[1]:
            # OpenVINO 2026.4 gives ConvTranspose float weights as laid out for the forward
            # convolution, if as many channels go out as in: let them be others.
            weight, gradient = self.node("Neg", [weight]), self.node("Neg", [gradient])
        self.give(source, self.node("ConvTranspose", [gradient, weight], **turned))

    def _depth_to_space(self, node: onnx.NodeProto, gradient: str) -> None:
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        block = kept["blocksize"]
        blocks = self.node("SpaceToDepth", [gradient], blocksize=block)
        # SpaceToDepth puts blocks first; pixel shuffling, channels
        if kept.get("mode") == b"CRD":
            order = np.arange(self.shapes[node.output[0]][1] * block**2).reshape(block**2, -1).T
            blocks = self.node("Gather", [blocks, self.constant(order.ravel())], axis=1)
        self.give(node.input[0], blocks)


def gradient_of(synthesis: onnx.ModelProto) -> onnx.ModelProto:
    """What to append to a synthesis graph, with or without INT8.

    Raises:
      ValueError: it has an operator whose gradient is not known here.
    """
    adjoint = Adjoint(synthesis, zero=NOISE, one=TIME, silent=SILENT)
    difference = adjoint.node("Sub", [OF, "target"])
    weighted = adjoint.node("Mul", [difference, "weight"])
    squares = adjoint.node("Mul", [weighted, difference])
    adjoint.node("ReduceSum", [squares], name="error", keepdims=0)
    gradient = adjoint.run(weighted)
    adjoint.node("Add", [gradient, gradient], name=f"{WANTED}_gradient")
    spatial = {value.name: value for value in synthesis.graph.input}
    like_bands = [1, adjoint.shapes[OF][1], "h", "w"]
    channels = spatial[WANTED].type.tensor_type.shape.dim[1].dim_value
    graph = onnx.GraphProto(
        node=adjoint.nodes,
        initializer=adjoint.initialisers,
        input=[
            helper.make_tensor_value_info("target", TensorProto.FLOAT, like_bands),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, [1, 1, "h", "w"]),
        ],
        output=[
            helper.make_tensor_value_info("error", TensorProto.FLOAT, []),
            helper.make_tensor_value_info(
                f"{WANTED}_gradient", TensorProto.FLOAT, [1, channels, "hy", "wy"]
            ),
        ],
    )
    return onnx.ModelProto(graph=graph)


def write_gradient(folder: Path) -> None:
    """Write gradient.onnx beside the synthesis.onnx of a folder."""
    whole = (folder / "synthesis.onnx").read_bytes()
    rest = gradient_of(onnx.load_model_from_string(whole)).SerializeToString()
    onnx.checker.check_model(onnx.load_model_from_string(whole + rest), full_check=True)
    (folder / "gradient.onnx").write_bytes(rest)
