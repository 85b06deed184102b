"""Give every channel of an activation the same range, so that one step of INT8 suits them all.

Cross-layer equalisation (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.1), with ranges of activations seen on images in place of those of
weights: it is the activations' rounding that costs PSNR here, since weights have a step per output
channel already. A channel is multiplied by a positive factor where it is made and divided by it
where it is used; convolutions, sums and ReLU let it through, and FiLM does once its shift is
multiplied too. In float nothing changes but the rounding of the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from export.networks import Codec, ResidualBlock

_LIMIT = 32.0  # a channel that is nearly silent is not blown up further


@dataclass
class Stream:
    """What the blocks of one scale add to, where it is made, and where it is used.

    Attributes:
      blocks: run one after the other on it.
      sources: convolutions whose outputs sum up to what the first block takes; the channels of one
        that `pixel_shuffle` follows are four rows each.
      readers: convolutions that take what the last block gives, through a ReLU or not.
      films: give scales and shifts to what the last block gives, before the readers, whose ranges
        then say nothing of the stream.
    """

    blocks: list[ResidualBlock]
    sources: list[nn.Conv2d]
    readers: list[nn.Conv2d]
    films: list[nn.Linear] = field(default_factory=list)


def streams(codec: Codec) -> list[Stream]:
    """All of a float codec."""
    a, s = codec.g_a, codec.g_s

    def blocks(found: Iterable[nn.Module]) -> list[ResidualBlock]:
        return [block for block in found if isinstance(block, ResidualBlock)]

    def first(layers: nn.Sequential) -> nn.Conv2d:
        layer = layers[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    return [
        Stream(blocks(a.b4), [a.fuse], [a.down8]),
        Stream(blocks(a.b8), [a.down8], [a.down16]),
        Stream(blocks(a.b16), [a.down16], [a.to_y, first(a.h_a), first(a.near)]),
        Stream(blocks(s.b16), [s.prompt, s.residual16, s.noise16], [s.up8]),
        Stream(blocks(s.b8), [s.up8, s.noise8], [s.up4]),
        Stream(
            blocks(s.b4),
            [s.up4, s.noise4, s.residual4],
            [s.low, s.high, s.texture],
            [s.film_low, s.film_high],
        ),
    ]


class _Ranges:
    """The largest magnitude of each channel, at the inputs and outputs of some convolutions."""

    def __init__(self, layers: Iterable[nn.Conv2d]) -> None:
        self.inputs: dict[nn.Conv2d, Tensor] = {}
        self.outputs: dict[nn.Conv2d, Tensor] = {}
        self._hooks = [layer.register_forward_hook(self._see) for layer in layers]

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        for ranges, values in ((self.inputs, inputs[0]), (self.outputs, output)):
            high = values.detach().abs().amax((0, 2, 3))
            ranges[layer] = torch.maximum(high, ranges.get(layer, high))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _factors(ranges: Tensor) -> Tensor:
    """What brings the ranges [C] to their geometric mean, within the limit."""
    middle = ranges.clamp_min(1e-12).log().mean().exp()
    return (middle / ranges.clamp_min(1e-12)).clamp(1 / _LIMIT, _LIMIT)


def _scale_outputs(layer: nn.Conv2d, factors: Tensor) -> None:
    factors = factors.repeat_interleave(layer.out_channels // len(factors))
    layer.weight.mul_(factors[:, None, None, None])
    if layer.bias is not None:
        layer.bias.mul_(factors)


def _scale_inputs(layer: nn.Conv2d, factors: Tensor) -> None:
    layer.weight.div_(factors[None, :, None, None])


def _scale_shift(film: nn.Linear, factors: Tensor) -> None:
    count = len(factors)
    film.weight[count:].mul_(factors[:, None])
    film.bias[count:].mul_(factors)


@torch.no_grad()
def equalise(codec: Codec, run: Callable[[Codec], None]) -> None:
    """Equalise the channels of a float codec, in place.

    Args:
      run: runs the codec on images that stand for all others.
    """
    found = streams(codec)
    layers = [layer for s in found for b in s.blocks for layer in (b.conv1, b.conv2)]
    layers += [layer for s in found for layer in s.readers]
    seen = _Ranges(layers)
    run(codec)
    seen.close()
    for stream in found:
        for block in stream.blocks:
            ranges = torch.maximum(seen.outputs[block.conv1], seen.inputs[block.conv2])
            factors = _factors(ranges)
            _scale_outputs(block.conv1, factors)
            if block.film is not None:
                _scale_shift(block.film, factors)
            _scale_inputs(block.conv2, factors)
        takers = [block.conv1 for block in stream.blocks]
        if not stream.films:
            takers += stream.readers
        factors = _factors(torch.stack([seen.inputs[layer] for layer in takers]).amax(0))
        for source in stream.sources:
            _scale_outputs(source, factors)
        for block in stream.blocks:
            _scale_inputs(block.conv1, factors)
            _scale_outputs(block.conv2, factors)
        for film in stream.films:
            _scale_shift(film, factors)
        for reader in stream.readers:
            _scale_inputs(reader, factors)
