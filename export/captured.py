"""Steps of a training run recorded as CUDA graphs: a GPU waits for Python otherwise.

A step of this codec is some thousand small kernels; started one by one they take longer to start
than to run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from export.precision import device

WARM_UP = 3  # calls before a recording: algorithms are chosen and states made in them


class Captured:
    """A function of tensors, recorded for each key at its first call and replayed from then on.

    It must start no transfer and wait for no result. What it returns lies where the next call of
    the same key writes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}

    def __call__(self, key: Hashable, inputs: Sequence[Tensor] = ()) -> Any:
        if key not in self.recorded:
            self.recorded[key] = self._record([v.to(device(), copy=True) for v in inputs])
        graph, own, output = self.recorded[key]
        for place, value in zip(own, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return output

    def _record(self, own: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.function(*own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.function(*own)
        return graph, own, output


class Uploads:
    """Batches brought to the GPU while it computes, beside what it computes."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.waiting: list[Tensor] | None = None

    def start(self, batch: Sequence[Tensor]) -> None:
        """Returns when the batch has been read, which may change afterwards."""
        with torch.cuda.stream(self.stream):
            self.waiting = [part.to(device()) for part in batch]

    def take(self) -> list[Tensor] | None:
        """What was started, for the current stream; None if nothing was."""
        batch, self.waiting = self.waiting, None
        stream = torch.cuda.current_stream()
        stream.wait_stream(self.stream)
        for part in batch or ():
            part.record_stream(stream)
        return batch


def make_capturable(optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Let learning rates be tensors, so that recorded steps follow the schedule, in place.

    Gradients are made as well: each recording adds to the same ones.
    """
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]))
            if "capturable" in group:
                group["capturable"] = True
            for p in group["params"]:
                p.grad = torch.zeros_like(p)


def zero_gradients(model: nn.Module) -> None:
    torch._foreach_zero_([p.grad for p in model.parameters() if p.grad is not None])
