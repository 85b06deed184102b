"""The trainer's simulation of the integer entropy model against the C++: equal, not close."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.integer_entropy import (
    EntropyConfig,
    EntropyModel,
    logistic_table,
    scale_of_index,
    serialize,
)
from fasdiff_edge import _core


def random_model(seed: int) -> EntropyModel:
    """A model with large random weights, so that clamps and shifts all come into play."""
    torch.manual_seed(seed)
    model = EntropyModel(
        EntropyConfig(
            num_s=5, num_z=4, num_y=24, num_features=16, group_sizes=[8, 16], hidden_pass=32
        )
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.add_(torch.randn_like(p) * 3)
        model.log2_gain.add_(torch.randn_like(model.log2_gain) * 0.3)
        model.z_mean.normal_()
        model.s_mean.normal_()
        model.z_scale.add_(torch.randn_like(model.z_scale) * 8)
    return model


def random_latents(seed: int, hy: int, wy: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    s = np.rint(rng.standard_t(3, 5)).astype(np.int32)
    z = np.rint(rng.standard_t(3, (4, (hy + 3) // 4, (wy + 3) // 4)) * 2).astype(np.int32)
    y = np.rint(rng.standard_t(2, (24, hy, wy)) * 2).astype(np.int32)
    return s, z, y


@pytest.mark.parametrize("q", [0, 97, 252])
@pytest.mark.parametrize("shape", [(16, 16), (7, 5), (1, 1)])
def test_indexes_and_rates_equal_the_core(q: int, shape: tuple[int, int]) -> None:
    model = random_model(q)
    core = _core.EntropyModel(serialize(model))
    s, z, y = random_latents(q, *shape)
    with torch.no_grad():
        _, _, base, table, masks = model.y_parameters(
            torch.from_numpy(z)[None].float(), torch.from_numpy(y)[None].float(), torch.tensor([q])
        )
        parts = model.bits(
            *(torch.from_numpy(v)[None].float() for v in (s, z, y)), torch.tensor([q])
        )
    core_base, core_table = core.indexes(z, y, q)
    np.testing.assert_array_equal(base[0].numpy(), core_base)
    np.testing.assert_array_equal(table[0].numpy(), core_table)
    assert sum(int(m.sum()) for m in masks) == y.size
    # the rate that training minimises is the rate of the file, but for symbols far in the tails
    trained = np.array([float(v[0]) for v in parts.values()])
    ideal = np.asarray(core.part_bits(s, z, y, q))
    payload = core.encode(s, z, y, q)
    assert abs(8 * len(payload) - ideal.sum()) <= 0.002 * ideal.sum() + 16
    assert trained.shape == ideal.shape
    for got, want in zip(core.decode(payload, q, *shape), (s, z, y), strict=True):
        np.testing.assert_array_equal(got, want)


def test_trained_rate_is_the_coded_rate() -> None:
    """Symbols drawn from the model's own distributions cost what the loss says, within 1 %."""
    model = random_model(3)
    core = _core.EntropyModel(serialize(model))
    rng = np.random.default_rng(0)
    s = np.zeros(5, np.int32)
    z = np.zeros((4, 8, 8), np.int32)
    y = np.zeros((24, 32, 32), np.int32)
    # draw y pass by pass, so that each pass sees its true context
    for p in range(4):
        with torch.no_grad():
            m4, k, _, _, masks = model.y_parameters(
                torch.from_numpy(z)[None].float(),
                torch.from_numpy(y)[None].float(),
                torch.tensor([120]),
            )
        scale = 0.05 * 2.0 ** (k[0].numpy() / 5)
        draw = np.rint(rng.logistic(m4[0].numpy() / 4, scale)).astype(np.int32)
        mask = masks[p][0].numpy()
        y[mask] = draw[mask]
    with torch.no_grad():
        parts = model.bits(
            *(torch.from_numpy(v)[None].float() for v in (s, z, y)), torch.tensor([120])
        )
    trained = sum(float(v) for v in parts.values())
    coded = 8 * len(core.encode(s, z, y, 120))
    assert abs(coded - trained) <= 0.01 * trained + 16


@pytest.mark.parametrize("k", range(0, 48, 5))
@pytest.mark.parametrize("frac", range(4))
def test_logistic_tables(k: int, frac: int) -> None:
    offset, freq = logistic_table(scale_of_index(k), frac / 4)
    assert sum(freq) == 1 << 16 and min(freq) >= 1
    symbols = np.arange(offset, offset + len(freq) - 1)
    mean = float((symbols * freq[:-1]).sum() / sum(freq[:-1]))
    tolerance = 0.02 * scale_of_index(k) + (0.3 if scale_of_index(k) < 0.4 else 0.02)
    assert abs(mean - frac / 4) < tolerance
