"""A recogniser of faces that has learnt nothing, for tests."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export.recogniser import with_gradient
from fasdiff_edge.recognition import CHIP


class Small(nn.Module):
    """A recogniser with an operator of each kind that is known."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.PReLU(8), nn.Dropout()
        )
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU6())
        self.mix = nn.Conv2d(8, 8, 1)
        self.wide = nn.Sequential(nn.Conv2d(8, 12, 4, 3), nn.ReLU())  # leaves rows at the end
        rest = {
            "pool": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 16)],
            "flatten": [nn.Flatten(), nn.Linear(12 * 81, 16, bias=False), nn.BatchNorm1d(16)],
        }
        self.head = nn.Sequential(*rest[head])
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                for value in (module.running_var, module.weight):
                    assert value is not None
                    nn.init.uniform_(value, 0.5, 2)
                for value in (module.running_mean, module.bias):
                    assert value is not None
                    nn.init.normal_(value)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        x = x + self.mix(x)
        x = x * torch.sigmoid(x) - (0.25 - x) / 2.0
        found: Tensor = self.head(self.wide(x))
        return found


def small(head: str = "pool", seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return Small(head).eval()


def exported(net: nn.Module, path: Path, **options: object) -> onnx.ModelProto:
    torch.onnx.export(
        net, (torch.zeros(1, 3, CHIP, CHIP),), str(path), dynamo=False, opset_version=13, **options
    )
    return onnx.load(str(path))


def write_recogniser(folder: Path) -> Path:
    """A file for `fasdiff_edge.Recogniser` in a folder."""
    net = small("flatten")
    # what all pictures have in common is taken off, or else all would be alike
    last = net.head[-1]  # type: ignore[index]
    last.momentum, last.weight.data, last.bias.data = 1.0, torch.ones(16), torch.zeros(16)
    last.train()
    coarse = torch.rand(64, 3, 7, 7) * 2 - 1
    with torch.no_grad():
        net(nn.functional.interpolate(coarse, (CHIP, CHIP), mode="bicubic"))
    whole = with_gradient(exported(net.eval(), folder / "plain.onnx"))
    onnx.save(whole, str(folder / "whole.onnx"))
    return folder / "whole.onnx"
