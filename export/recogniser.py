"""A face recogniser with its gradient, for `fasdiff_edge.Recogniser`.

    python -m export.recogniser mobilefacenet.onnx recogniser.onnx --mean 127.5 --scale 0.0078125

The recogniser is yours: an ONNX file that takes one aligned face of 112x112 (the five-point
alignment of ArcFace, Deng et al., CVPR 2019) and gives its embedding. The graph that is written
takes

    chip       float32 [1, 3, 112, 112], RGB, 0..255
    reference  float32 [1, D], the embedding of the original

and gives

    embedding      [1, D], of unit length
    distance       [1, 1], 1 - the cosine of embedding and reference
    chip_gradient  [1, 3, 112, 112], d distance / d chip

by reverse mode, as `export/gradient.py` does it for the student.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.gradient import PREFIX, Adjoint

CHIP = [1, 3, 112, 112]
OPSET = 17
EPSILON = 1e-12  # of a squared length


class _Recogniser(Adjoint):
    """Rules of the operators that recognisers have besides the student's; all sizes are known."""

    def __init__(self, model: onnx.ModelProto, wanted: str, of: str) -> None:
        super().__init__(model, wanted, of)
        self.values = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant":
                kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                self.values[node.output[0]] = numpy_helper.to_array(kept["value"])
        self.rules |= {
            "BatchNormalization": self._batch_normalisation,
            "Clip": self._clip,
            "Div": self._div,
            "Dropout": self._as_it_is,
            "Flatten": self._reshape,
            "Gemm": self._gemm,
            "GlobalAveragePool": self._mean,
            "Identity": self._as_it_is,
            "MatMul": self._matmul,
            "PRelu": self._prelu,
            "Reshape": self._reshape,
            "Sigmoid": self._sigmoid,
            "Sub": self._sub,
        }

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def known(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise ValueError(f"{name} must be a constant")
        return self.values[name]

    def _same_size(self, node: onnx.NodeProto) -> None:
        """Gradients of what is repeated would have to be summed: no recogniser asks for that."""
        size = self.shapes[node.output[0]]
        for name in node.input:
            if name in self.reached and self.shapes[name] != size:
                raise ValueError(f"{node.output[0]} repeats {name}, which has no gradient here")

    def _add(self, node: onnx.NodeProto, gradient: str) -> None:
        self._same_size(node)
        super()._add(node, gradient)

    def _mul(self, node: onnx.NodeProto, gradient: str) -> None:
        self._same_size(node)
        super()._mul(node, gradient)

    def _sub(self, node: onnx.NodeProto, gradient: str) -> None:
        self._same_size(node)
        a, b = node.input
        self.give(a, gradient)
        if b in self.reached:
            self.give(b, self.node("Neg", [gradient]))

    def _div(self, node: onnx.NodeProto, gradient: str) -> None:
        self._same_size(node)
        self.known(node.input[1])
        self.give(node.input[0], self.node("Div", [gradient, node.input[1]]))

    def _sigmoid(self, node: onnx.NodeProto, gradient: str) -> None:
        rest = self.node("Sub", [self.scalar(1.0), node.output[0]])
        slope = self.node("Mul", [node.output[0], rest])
        self.give(node.input[0], self.node("Mul", [gradient, slope]))

    def _clip(self, node: onnx.NodeProto, gradient: str) -> None:
        for name, kind in zip(node.input[1:], ("Greater", "Less"), strict=False):
            if name:
                inside = self.node("Cast", [self.node(kind, [node.output[0], name])], to=1)
                gradient = self.node("Mul", [gradient, inside])
        self.give(node.input[0], gradient)

    def _prelu(self, node: onnx.NodeProto, gradient: str) -> None:
        source, slope = node.input
        positive = self.node("Greater", [source, self.scalar(0.0)])
        self.give(
            source,
            self.node("Where", [positive, gradient, self.node("Mul", [gradient, slope])]),
        )

    def _batch_normalisation(self, node: onnx.NodeProto, gradient: str) -> None:
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        scale, _, _, variance = (self.known(name) for name in node.input[1:5])
        factor = scale / np.sqrt(variance + kept.get("epsilon", 1e-5))
        behind = [1] * (len(self.shapes[node.input[0]]) - 2)
        factor = factor.reshape(1, -1, *behind).astype(np.float32)
        self.give(node.input[0], self.node("Mul", [gradient, self.constant(factor)]))

    def _gemm(self, node: onnx.NodeProto, gradient: str) -> None:
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if kept.get("transA", 0):
            raise ValueError(f"no gradient is known of a product like {node.output[0]}")
        weight = self.known(node.input[1]) * np.float32(kept.get("alpha", 1.0))
        turned = weight if kept.get("transB", 0) else weight.T
        self.give(node.input[0], self.node("MatMul", [gradient, self.constant(turned)]))

    def _matmul(self, node: onnx.NodeProto, gradient: str) -> None:
        turned = self.known(node.input[1]).T
        self.give(node.input[0], self.node("MatMul", [gradient, self.constant(turned)]))

    def _reshape(self, node: onnx.NodeProto, gradient: str) -> None:
        shape = self.constant(np.array(self.shapes[node.input[0]], np.int64))
        self.give(node.input[0], self.node("Reshape", [gradient, shape]))

    def _mean(self, node: onnx.NodeProto, gradient: str) -> None:
        size = self.shapes[node.input[0]]
        share = self.node("Mul", [gradient, self.scalar(1 / float(np.prod(size[2:])))])
        self.give(
            node.input[0],
            self.node("Expand", [share, self.constant(np.array(size, np.int64))]),
        )


def with_gradient(
    recogniser: onnx.ModelProto,
    mean: float | tuple[float, float, float] = 127.5,
    scale: float | tuple[float, float, float] = 1 / 128,
    *,
    bgr: bool = False,
) -> onnx.ModelProto:
    """The graph that `fasdiff_edge.Recogniser` takes.

    Args:
      recogniser: takes float32 [1, 3, 112, 112], or [N, ...], and gives [1, D].
      mean, scale: it expects (value - mean) * scale of values in 0..255; one number, or one for
        each of red, green and blue.
      bgr: it expects blue first.
    Raises:
      ValueError: it is no such graph, or has an operator whose gradient is not known here.
    """
    model = onnx.ModelProto()
    model.CopyFrom(recogniser)
    if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    graph = model.graph
    constants = {i.name for i in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError(
            f"it has {len(inputs)} inputs and {len(graph.output)} outputs, not 1 and 1"
        )
    source, of = inputs[0].name, graph.output[0].name
    size = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    if size[1:] != CHIP[1:] or size[0] > 1:
        raise ValueError(f"its input is {size}, not {CHIP}")
    inputs[0].type.tensor_type.shape.dim[0].dim_value = 1
    for output in graph.output:  # whose size may be of any number of faces
        output.type.tensor_type.ClearField("shape")
    del graph.value_info[:]

    adjoint = _Recogniser(model, source, of)
    length = adjoint.shapes[of]
    if len(length) != 2 or length[0] != 1 or length[1] < 1:
        raise ValueError(f"its output is {length}, not [1, D]")
    squares = adjoint.node("ReduceSum", [adjoint.node("Mul", [of, of])], keepdims=1)
    safe = adjoint.node("Add", [squares, adjoint.scalar(EPSILON)])
    norm = adjoint.node("Sqrt", [adjoint.node("Reshape", [safe, _shape(adjoint, 1, 1)])])
    adjoint.node("Div", [of, norm], name="embedding")
    products = adjoint.node("Mul", ["embedding", "reference"])
    cosine = adjoint.node(
        "Reshape", [adjoint.node("ReduceSum", [products], keepdims=1), _shape(adjoint, 1, 1)]
    )
    adjoint.node("Sub", [adjoint.scalar(1.0), cosine], name="distance")
    along = adjoint.node("Mul", ["embedding", cosine])
    away = adjoint.node("Div", [adjoint.node("Sub", [along, "reference"]), norm])
    gradient = adjoint.run(away)

    def named(name: str) -> str:
        return f"{PREFIX}{name}"

    # what it is given, of a chip; its own input becomes what follows from that
    values = {"mean": mean, "scale": scale}
    for name, value in values.items():
        each = np.broadcast_to(np.asarray(value, np.float32), (3,)).reshape(1, 3, 1, 1)
        graph.initializer.append(numpy_helper.from_array(each.copy(), named(name)))
    order = np.array([2, 1, 0] if bgr else [0, 1, 2])
    graph.initializer.append(numpy_helper.from_array(order, named("order")))
    before = [
        helper.make_node("Sub", ["chip", named("mean")], [named("centred")]),
        helper.make_node("Mul", [named("centred"), named("scale")], [named("scaled")]),
        helper.make_node("Gather", [named("scaled"), named("order")], [source], axis=1),
    ]
    unordered = adjoint.node("Gather", [gradient, named("order")], axis=1)  # its own inverse
    adjoint.node("Mul", [unordered, named("scale")], name="chip_gradient")

    nodes = [*before, *graph.node, *adjoint.nodes]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.extend(adjoint.initialisers)
    taken: dict[str, list[Any]] = {"chip": CHIP, "reference": [1, "d"]}
    for name, shape in taken.items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    del graph.output[:]
    outputs: dict[str, list[Any]] = {
        "embedding": length,
        "distance": [1, 1],
        "chip_gradient": CHIP,
    }
    for name, shape in outputs.items():
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    return model


def _shape(adjoint: Adjoint, *sizes: int) -> str:
    return adjoint.constant(np.array(sizes, np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recogniser", type=Path, help="ONNX, one face of 112x112 -> embedding")
    parser.add_argument("out", type=Path)
    parser.add_argument("--mean", type=float, nargs="+", default=[127.5], help="one, or R G B")
    parser.add_argument("--scale", type=float, nargs="+", default=[1 / 128], help="one, or R G B")
    parser.add_argument("--bgr", action="store_true", help="it takes blue first")
    args = parser.parse_args()
    found = with_gradient(
        onnx.load(str(args.recogniser)), tuple(args.mean), tuple(args.scale), bgr=args.bgr
    )
    onnx.save(found, str(args.out))
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
