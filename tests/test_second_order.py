"""Rounding that looks at the inputs, and the order of channels that engines like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from test_export_networks import small_codec
from test_quantise import calibrated, images
from torch import Tensor, nn

from export.quantise import look_at, quantised_copy, to_qdq
from export.quantised import ACTIVATION_MAX, WEIGHT_MAX, QuantisedConv2d
from export.second_order import SECOND_ORDER, round_to_inputs, rounded_weights
from export.to_onnx import blocks_first, export_model


def related(count: int, seed: int = 0) -> Tensor:
    """Products of inputs that go together, as neighbours of a picture do; float32 [K, K]."""
    torch.manual_seed(seed)
    inputs = torch.randn(count, 4 * count).cumsum(0) + 0.3 * torch.randn(count, 4 * count)
    return inputs @ inputs.T / inputs.shape[1]


def error(change: Tensor, products: Tensor) -> Tensor:
    """Squared errors of outputs, [N]."""
    return torch.einsum("nk,kl,nl->n", change, products, change)


def test_weights_are_whole_steps_of_which_the_largest_stays() -> None:
    weight = torch.randn(6, 40)
    steps = weight.abs().amax(1) / WEIGHT_MAX
    found = rounded_weights(weight, related(40), steps)
    whole = found / steps[:, None]
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-4)
    assert whole.abs().max() < WEIGHT_MAX + 1e-3
    largest = weight.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(found.gather(1, largest), weight.gather(1, largest))


def test_outputs_change_less_than_by_the_nearest_step() -> None:
    products = related(60, seed=1)
    weight = torch.randn(8, 60)
    steps = weight.abs().amax(1) / 15
    found = rounded_weights(weight, products, steps * 15 / WEIGHT_MAX)
    nearest = (weight / steps[:, None] * WEIGHT_MAX / 15).round() * steps[:, None] * 15 / WEIGHT_MAX
    assert error(found - weight, products).sum() < 0.5 * error(nearest - weight, products).sum()
    assert (error(found - weight, products) < error(nearest - weight, products)).all()


def test_without_relations_each_is_rounded_by_itself() -> None:
    weight = torch.randn(4, 30)
    steps = weight.abs().amax(1) / WEIGHT_MAX
    found = rounded_weights(weight, torch.diag(torch.rand(30) + 0.1), steps)
    torch.testing.assert_close(found, (weight / steps[:, None]).round() * steps[:, None])


def test_a_calibrated_codec_errs_less_in_the_layers_that_are_rounded_so() -> None:
    plain, codec = calibrated()
    batches = [images(8)]
    torch.manual_seed(4)
    seen: dict[str, list[Tensor]] = {name: [] for name in SECOND_ORDER}
    hooks = [
        codec.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(inputs[0].detach())
        )
        for name in SECOND_ORDER
    ]
    look_at(codec, batches)
    for hook in hooks:
        hook.remove()

    def errors() -> dict[str, float]:
        found = {}
        for name in SECOND_ORDER:
            layer, before = codec.get_submodule(name), plain.get_submodule(name)
            assert isinstance(layer, QuantisedConv2d) and isinstance(before, nn.Conv2d)
            with torch.no_grad():
                off = [(layer(x) - before(x)).square().sum() for x in seen[name]]
            found[name] = float(sum(off))
        return found

    by_nearest = errors()
    torch.manual_seed(4)
    round_to_inputs(codec, SECOND_ORDER, lambda codec: look_at(codec, batches))
    by_inputs = errors()
    for name in SECOND_ORDER:
        assert 0 < by_inputs[name] < 0.8 * by_nearest[name], name
        layer = codec.get_submodule(name)
        assert isinstance(layer, QuantisedConv2d)
        # rounding again, as training and export do, changes nothing
        torch.testing.assert_close(layer.rounded_weight(), layer.weight, rtol=1e-5, atol=1e-7)


def test_the_range_leaves_out_what_is_rare() -> None:
    layer = QuantisedConv2d(nn.Conv2d(4, 8, 1), output=False)
    model = nn.Sequential(layer)
    torch.manual_seed(0)
    usual = torch.rand(1, 4, 256, 256)
    round_to_inputs(model, ["0"], lambda model: model(usual))  # type: ignore[arg-type]
    whole = float(layer.input.step().detach()) * ACTIVATION_MAX
    assert whole == pytest.approx(1, rel=0.02)
    usual[0, 0, 0, 0] = 1.8
    round_to_inputs(model, ["0"], lambda model: model(usual))  # type: ignore[arg-type]
    assert 0.9 < float(layer.input.step().detach()) * ACTIVATION_MAX < 1.5


def test_a_layer_that_sees_nothing_is_an_error() -> None:
    codec = quantised_copy(small_codec())
    with pytest.raises(ValueError, match=r"g_s\.prompt saw nothing"):
        round_to_inputs(codec, ["g_s.prompt"], lambda codec: None)
    assert not codec.get_submodule("g_s.prompt")._forward_pre_hooks


def test_what_copies_its_inputs_gives_them_as_the_bytes_that_they_are(tmp_path: Path) -> None:
    """Repeated noise and amounts of textures: rounded with the step that they were rounded with."""
    _, codec = calibrated()
    copies = {n for n, m in codec.named_modules() if isinstance(m, QuantisedConv2d) and m.copies}
    assert copies == {"g_s.amounts", "g_s.noise", "g_s.pick"}
    export_model(codec, tmp_path, {}, name="small", min_quality=0.0)
    graph = onnx.load(str(tmp_path / "synthesis.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    values = {i.name: float(numpy_helper.to_array(i)) for i in graph.initializer if not i.dims}
    for name in copies:
        (node,) = (n for n in graph.node if n.name == f"/{name.replace('.', '/')}/Conv")
        (reader,) = (n for n in graph.node if node.output[0] in n.input)
        assert reader.op_type == "QuantizeLinear"
        assert values[reader.input[1]] == values[makers[node.input[0]].input[1]]


# -- the order of channels -----------------------------------------------------------------------
def shuffled(folder: Path, *, bias: bool) -> tuple[onnx.ModelProto, nn.Conv2d, np.ndarray]:
    """A graph of a convolution and a pixel shuffle, and what it gives of a random input."""
    torch.manual_seed(2)
    layer = nn.Conv2d(6, 20, 1, bias=bias)

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = layer

        def forward(self, x: Tensor) -> Tensor:
            return F.pixel_shuffle(self.up(x), 2)

    path = folder / "up.onnx"
    x = torch.randn(1, 6, 5, 7)
    torch.onnx.export(Up(), (x,), str(path), input_names=["x"], opset_version=17, dynamo=False)
    return onnx.load(str(path)), layer, x.numpy()


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def mode(model: onnx.ModelProto) -> bytes:
    (node,) = (n for n in model.graph.node if n.op_type == "DepthToSpace")
    found: bytes = next(a.s for a in node.attribute if a.name == "mode")
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
def test_blocks_come_first_and_the_graph_gives_the_same(
    bias: bool, rounded: bool, tmp_path: Path
) -> None:
    model, layer, x = shuffled(tmp_path, bias=bias)
    if rounded and bias:
        quantised = QuantisedConv2d(layer, output=False)
        quantised.input.log2_step.data.fill_(-5.0)
        to_qdq(model, {"up": quantised})
    elif rounded:
        value = next(i for i in model.graph.initializer if i.name == "up.weight")
        held = helper.make_node("Constant", [], ["given"], value=value)
        model.graph.node.insert(0, held)
        next(n for n in model.graph.node if n.op_type == "Conv").input[1] = "given"
        model.graph.initializer.remove(value)
    expected = run(model, x)
    assert mode(model) == b"CRD"
    blocks_first(model)
    assert mode(model) == b"DCR"
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-6, atol=1e-6)


def test_channels_of_weights_that_are_computed_or_shared_stay(tmp_path: Path) -> None:
    model, _, x = shuffled(tmp_path, bias=True)
    expected = run(model, x)
    convolution = next(n for n in model.graph.node if n.op_type == "Conv")
    weight = convolution.input[1]
    double = helper.make_node("Identity", [weight], ["computed"])
    model.graph.node.insert(0, double)
    convolution.input[1] = "computed"
    blocks_first(model)
    assert mode(model) == b"CRD"
    convolution.input[1] = weight  # which the Identity reads as well
    blocks_first(model)
    assert mode(model) == b"CRD"
    np.testing.assert_array_equal(run(model, x), expected)
