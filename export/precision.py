"""Where training computes, and bfloat16 where that is fast.

On a processor without it torch emulates bfloat16, at a seventh of float32's speed (measured with
AVX2 alone: 24 against 163 GFLOP/s in a convolution). Intel's have it twice: tiles (AMX) are fast,
and without them, as where a virtual machine hides them, float32 is (measured with AVX-512: 270
against 165; an EPYC's AVX-512 gives 250 in bfloat16 and 125 in float32).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_device = torch.device("cpu")


def device() -> torch.device:
    """Where tensors are made: the processor, or the GPU after `use_gpu`.

    torch's own way to ask makes a tensor to find out, which a recorded step must not.
    """
    return _device


def use_gpu() -> None:
    """Make tensors on the GPU from now on, where torch finds one.

    Float32 convolutions compute in TF32 there. The entropy model's stay exact: its integers, up to
    127, fit into TF32's 11 bits, and sums are float32.
    """
    global _device
    if not torch.cuda.is_available():
        return
    _device = torch.device("cuda", torch.cuda.current_device())
    torch.set_default_device(_device)
    torch.backends.cudnn.allow_tf32 = True


def to_device(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device())


def fast_bfloat16() -> bool:
    if device().type == "cuda":
        return True
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and not _is_intel()


@functools.cache
def _is_intel() -> bool:
    known = Path("/proc/cpuinfo")
    return known.exists() and "GenuineIntel" in known.read_text()


def mixed_precision(enabled: bool = True) -> torch.autocast:
    """A context in which convolutions and products are computed in bfloat16, where that is fast."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=enabled and fast_bfloat16())
