"""Round weights so that the outputs of a convolution change least, for the inputs that it sees.

GPTQ (Frantar et al., ICLR 2023, section 3), after Optimal Brain Surgeon: the weights are rounded
one input after the other, and the error that each makes is taken off those that are still to come,
as far as their inputs go together. Against rounding each to the nearest it leaves a tenth of the
squared error in the student's first convolution. The range of the inputs is the one with the least
error too: what spans most is rare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.networks import Codec
from export.quantised import ACTIVATION_MAX, WEIGHT_MAX, QuantisedConv2d

SECOND_ORDER = ("g_s.prompt",)
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the largest input, that its range may be
_KEPT = 16  # images of each batch that ranges are tried on


class _Inputs:
    """What a convolution sees: products [K, K] of its K inputs to a pixel, summed, and images."""

    def __init__(self, layer: QuantisedConv2d) -> None:
        self.layer = layer
        self.products = torch.zeros(1)
        self.count = 0
        self.images: list[Tensor] = []
        self._hook = layer.register_forward_pre_hook(self._see)

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        kernel, padding = tuple(self.layer.weight.shape[2:]), self.layer.padding
        assert not isinstance(padding, str)
        columns = F.unfold(x, kernel, padding=padding, stride=self.layer.stride)
        columns = columns.transpose(0, 1).flatten(1)
        self.products = self.products + columns @ columns.T
        self.count += columns.shape[1]
        self.images.append(x[:_KEPT])

    def end(self) -> None:
        self._hook.remove()


def rounded_weights(weight: Tensor, products: Tensor, steps: Tensor) -> Tensor:
    """Multiples of a step for each output, in place of the weights.

    Args:
      weight: float32 [N, K]. The largest of each output is WEIGHT_MAX steps and stays.
      products: float32 [K, K], positive definite: the mean products of the inputs.
      steps: float32 [N].
    Returns:
      float32 [N, K].
    """
    order = products.diagonal().argsort(descending=True)  # the loudest first: most can make up
    products = products.double()[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(products))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = (weight.double() / steps.double()[:, None])[:, order]
    largest = left.abs().argmax(1)
    kept = left.gather(1, largest[:, None])[:, 0].sign() * WEIGHT_MAX
    found = torch.zeros_like(left)
    for column in range(left.shape[1]):
        value = left[:, column].round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
        # a smaller largest weight would mean smaller steps, and another rounding
        value = torch.where(largest == column, kept, value)
        found[:, column] = value
        error = (left[:, column] - value) / factor[column, column]
        left[:, column:] -= error[:, None] * factor[column, column:]
    back = torch.empty_like(found)
    back[:, order] = found
    return (back * steps.double()[:, None]).float()


def _settle_range(layer: QuantisedConv2d, images: list[Tensor]) -> None:
    """Take the range whose rounding and clipping change the outputs least."""
    highest = max(float(image.abs().max()) for image in images)
    padding = layer.padding
    assert not isinstance(padding, str)
    best = math.inf
    for share in _SHARES:
        step = max(highest * share, 1e-6) / ACTIVATION_MAX
        error = 0.0
        for image in images:
            whole = (image / step).round().clamp(-ACTIVATION_MAX - 1, ACTIVATION_MAX)
            off = whole * step - image
            change = F.conv2d(off, layer.weight, stride=layer.stride, padding=padding)
            error += float(change.square().sum())
        if error < best:
            best = error
            layer.input.log2_step.fill_(math.log2(step))


@torch.no_grad()
def round_to_inputs(codec: Codec, names: Iterable[str], look: Callable[[Codec], None]) -> None:
    """Round the weights of these INT8 convolutions of a calibrated codec, in place.

    look: runs the codec on images.
    Raises:
      ValueError: one of them saw nothing.
    """
    layers: dict[str, QuantisedConv2d] = {}
    for name in names:
        layer = codec.get_submodule(name)
        assert isinstance(layer, QuantisedConv2d)
        layers[name] = layer
    seen = {name: _Inputs(layer) for name, layer in layers.items()}
    try:
        look(codec)
    finally:
        for inputs in seen.values():
            inputs.end()
    for name, layer in layers.items():
        inputs = seen[name]
        if not inputs.count:
            raise ValueError(f"{name} saw nothing to be rounded for")
        _settle_range(layer, inputs.images)
        # rounded inputs are off by a twelfth of a squared step, each by itself
        noise = float(layer.input.step()) ** 2 / 12
        products = inputs.products / inputs.count
        products += noise * torch.eye(len(products))
        weight = layer.weight.float()
        rounded = rounded_weights(weight.flatten(1), products, layer.weight_step())
        layer.weight.copy_(rounded.view_as(weight))
