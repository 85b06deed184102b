"""Convolutions that compute as their INT8 versions will: for quantisation-aware training.

Symmetric weights per output channel, symmetric activations of 8 bits per tensor: TensorRT, which
Jetson devices run, takes nothing else. Inside
residual blocks both ends of a convolution are quantised, so that every engine can run it in
integers; what feeds the sum that the blocks add to stays float at its output. The steps of
activations are learnt (LSQ, Esser et al., ICLR 2020). Weights span -63..63: the sum of two products
of an unsigned with a signed byte, which is how CPUs without VNNI multiply, stays below 2^15.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATION_MAX = 127
WEIGHT_MAX = 63
_SAMPLES = 1 << 16  # values of an activation that its range starts from


class ActivationQuantiser(nn.Module):
    """Rounds to one of 256 levels around 0; the step is found by `calibrate` and then learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.log2_step = nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] | None = None  # while calibrating: largest magnitudes

    def step(self) -> Tensor:
        return torch.exp2(self.log2_step)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.seen is not None:
            values = x.detach().flatten()
            self.seen.append(values[:: max(1, values.numel() // _SAMPLES)].abs().max())
            return x
        factor = 1.0 / math.sqrt(x[0].numel() * ACTIVATION_MAX)  # of the gradient; LSQ
        found: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x, self.step()[None], x.new_zeros(1), -ACTIVATION_MAX - 1, ACTIVATION_MAX, factor
        )
        return found

    def settle(self) -> None:
        """End the calibration: take the range of all that was seen.

        What a range leaves out is clipped, which costs more than coarser steps do.
        """
        if not self.seen:
            raise ValueError("nothing was seen to calibrate with")
        high = float(max(self.seen))
        with torch.no_grad():
            self.log2_step.fill_(math.log2(max(high, 1e-6) / ACTIVATION_MAX))
        self.seen = None


class FixedConv2d(nn.Conv2d):
    """A convolution whose weights [Cout, Cin / groups, k, k] are given, not learnt, not kept."""

    def __init__(self, weight: Tensor, padding: int = 0, stride: int = 1, groups: int = 1) -> None:
        cout, cin, *kernel = weight.shape
        size: tuple[int, int] = tuple(kernel)  # type: ignore[assignment]
        super().__init__(cin * groups, cout, size, stride, padding, groups=groups, bias=False)
        del self.weight
        self.register_buffer("weight", weight, persistent=False)


class QuantisedConv2d(nn.Module):
    """`nn.Conv2d` with quantised weights and inputs, and outputs; its parameters and the ranges."""

    def __init__(self, plain: nn.Conv2d, *, output: bool) -> None:
        super().__init__()
        if isinstance(plain, FixedConv2d):
            self.register_buffer("weight", plain.weight, persistent=False)
            self.bias = None
        elif plain.bias is None:
            raise ValueError("a quantised convolution has a bias")
        else:
            self.weight, self.bias = plain.weight, plain.bias
        self.stride, self.padding = plain.stride, plain.padding
        whole = self.weight.detach().float()
        # outputs that are inputs, each by itself, are whole steps already: they may stay bytes
        self.copies = bool(
            ((whole == 0) | (whole == 1)).all() and (whole.sum((1, 2, 3)) == 1).all()
        )
        self.input = ActivationQuantiser()
        self.output = ActivationQuantiser() if output else None

    def weight_step(self) -> Tensor:
        """[Cout]; the largest weight of a channel is WEIGHT_MAX steps."""
        return self.weight.detach().float().abs().amax((1, 2, 3)).clamp_min(1e-8) / WEIGHT_MAX

    def rounded_weight(self) -> Tensor:
        step = self.weight_step()
        found: Tensor = torch.fake_quantize_per_channel_affine(
            self.weight.float(),
            step,
            torch.zeros(len(step), dtype=torch.int32),
            0,
            -WEIGHT_MAX,
            WEIGHT_MAX,
        )
        return found

    def forward(self, x: Tensor) -> Tensor:
        weight = self.rounded_weight().contiguous(memory_format=torch.channels_last)
        y = F.conv2d(self.input(x), weight, self.bias, self.stride, self.padding)
        return y if self.output is None else self.output(y)  # type: ignore[no-any-return]

    def plain(self) -> nn.Conv2d:
        """A convolution with the rounded weights, for export."""
        cout, cin, *kernel = self.weight.shape
        has_bias = self.bias is not None
        found = nn.Conv2d(cin, cout, tuple(kernel), self.stride, self.padding, bias=has_bias)  # type: ignore[arg-type]
        with torch.no_grad():
            found.weight.copy_(self.rounded_weight())
            if found.bias is not None and self.bias is not None:
                found.bias.copy_(self.bias)
        return found


class SplitConv2d(nn.Module):
    """A convolution in two: of its first channels in float, of all others in INT8.

    For inputs of which a few channels span more than 8 bits. The others are multiplied by `factors`
    first, after which one step suits them all.

    Args:
      plain: what it is to compute. Its `state_dict`, or such a one's, can be loaded.
      exact: how many channels stay float.
    """

    factors: Tensor

    def __init__(self, plain: nn.Conv2d, exact: int) -> None:
        super().__init__()
        cin, cout, size = plain.in_channels, plain.out_channels, plain.kernel_size
        at = {"stride": plain.stride, "padding": plain.padding}
        self.exact = nn.Conv2d(exact, cout, size, bias=False, **at)  # type: ignore[arg-type]
        rest = nn.Conv2d(cin - exact, cout, size, **at)  # type: ignore[arg-type]
        self.rounded = QuantisedConv2d(rest, output=False)
        self.register_buffer("factors", torch.ones(1, cin - exact, 1, 1))
        self.highest: Tensor | None = None  # while calibrating: largest magnitudes, as `factors`
        self.register_load_state_dict_pre_hook(_divide_weights)
        self.load_state_dict(plain.state_dict(), strict=False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.exact.in_channels
        with torch.autocast(x.device.type, enabled=False):
            few, others = x[:, :first].float(), x[:, first:].float()
            if self.highest is not None:
                found = others.detach().abs().amax((0, 2, 3), keepdim=True)
                self.highest = torch.maximum(self.highest, found)
            y: Tensor = self.exact(few) + self.rounded(others * self.factors)
        return y

    def settle(self) -> None:
        """End the calibration: as `ActivationQuantiser.settle`, with a range for each channel."""
        if self.highest is None or not self.highest.any():
            raise ValueError("nothing was seen to calibrate with")
        high = self.highest.clamp_min(1e-6)
        with torch.no_grad():
            self.rounded.weight.mul_(self.factors * high)
            self.factors.copy_(1 / high)
            self.rounded.input.log2_step.fill_(-math.log2(ACTIVATION_MAX))
        self.highest = None


def _divide_weights(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a SplitConv2d load what a plain convolution has."""
    assert isinstance(module, SplitConv2d)
    weight = state.pop(f"{prefix}weight", None)
    if weight is not None:
        first = module.exact.in_channels
        state[f"{prefix}exact.weight"] = weight[:, :first]
        state[f"{prefix}rounded.weight"] = weight[:, first:] / module.factors
        state[f"{prefix}rounded.bias"] = state.pop(f"{prefix}bias")


def quantise_convolutions(module: nn.Module, names: dict[str, bool]) -> None:
    """Replace the convolutions of these names, or under them, in place; True: outputs as well."""
    for name, child in list(module.named_modules()):
        if not isinstance(child, nn.Conv2d):
            continue
        for chosen, output in names.items():
            if name == chosen or name.startswith(chosen + "."):
                parent, _, leaf = name.rpartition(".")
                quantised = QuantisedConv2d(child, output=output)
                setattr(module.get_submodule(parent), leaf, quantised)


def restore_convolutions(module: nn.Module) -> dict[str, QuantisedConv2d]:
    """Put plain convolutions with rounded weights back, in place; returns what was replaced."""
    replaced = {n: m for n, m in module.named_modules() if isinstance(m, QuantisedConv2d)}
    for name, child in replaced.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, child.plain())
    return replaced


def quantisers(module: nn.Module) -> list[ActivationQuantiser]:
    return [m for m in module.modules() if isinstance(m, ActivationQuantiser)]
