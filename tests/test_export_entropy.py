"""The trainer's simulation of the integer entropy model against the C++: equal, not close."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from export.integer_entropy import (
    NUM_Q,
    EntropyConfig,
    EntropyModel,
    Prediction,
    lattices,
    logistic_table,
    q_tables,
    scale_of_index,
    serialize,
)
from fasdiff_edge import _core
from fasdiff_edge import entropy_model as runtime

CONFIG = EntropyConfig(
    num_s=5,
    num_z=4,
    num_y=24,
    num_features=16,
    group_sizes=[6, 8, 10],
    group_scans=[3, 2, 1],
    hidden_z=16,
    hidden_pass=32,
)
Latents = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_model(seed: int, config: EntropyConfig = CONFIG, octaves: float = 0.3) -> EntropyModel:
    """A model with large random weights, so that clamps and shifts all come into play."""
    torch.manual_seed(seed)
    model = EntropyModel(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.add_(torch.randn_like(p) * 3)
            if name.endswith("log2_gain"):
                p.add_(torch.randn_like(p) * octaves)
        model.s_mean.add_(torch.randn_like(model.s_mean) * 20)
        model.s_scale.add_(torch.randn_like(model.s_scale) * 30)
    return model


def random_latents(seed: int, hy: int, wy: int) -> Latents:
    rng = np.random.default_rng(seed)
    s = np.rint(rng.standard_t(3, CONFIG.num_s) * 2).astype(np.int32)
    z = np.rint(rng.standard_t(3, (CONFIG.num_z, (hy + 3) // 4, (wy + 3) // 4)) * 2)
    y = np.rint(rng.standard_t(2, (CONFIG.num_y, hy, wy)) * 2)
    return s, z.astype(np.int32), y.astype(np.int32)


def tensors(latents: Latents) -> tuple[Tensor, Tensor, Tensor]:
    s, z, y = (torch.from_numpy(v)[None].float() for v in latents)
    return s, z, y


@torch.no_grad()
def predictions(
    model: EntropyModel, latents: Latents, q: int
) -> tuple[Prediction, Prediction, Prediction]:
    """Of s, z and y."""
    s, z, y = tensors(latents)
    at = torch.tensor([q])
    context = model.context(s, model.s_gains.at(at, 0))
    return (
        model.s_parameters(at),
        model.z_parameters(context, z, at, *y.shape[2:]),
        model.y_parameters(s, z, y, at),
    )


def part_masks(model: EntropyModel, latents: Latents) -> list[tuple[int, np.ndarray]]:
    """Of every pass in coding order: the latent it belongs to (s, z, y) and a mask over it."""
    s, z, y = latents
    masks = [(0, np.ones(s.shape, bool))]
    for lattice in lattices(2, *z.shape[1:]):
        masks.append((1, np.broadcast_to(lattice[0].numpy() > 0, z.shape)))
    masks += [(2, mask[0].numpy() > 0) for mask in model.y_masks(*y.shape[1:])]
    return masks


@torch.no_grad()
def trained_bits(model: EntropyModel, latents: Latents, q: int) -> dict[str, float]:
    parts = model.bits(*tensors(latents), torch.tensor([q]))
    return {name: float(bits[0]) for name, bits in parts.items()}


@pytest.mark.parametrize("q", [0, 97, 252])
@pytest.mark.parametrize("shape", [(16, 16), (7, 5), (1, 1), (2, 37), (33, 3)])
@pytest.mark.parametrize("octaves", [0.3, 6.0])
def test_every_prediction_equals_the_core(q: int, shape: tuple[int, int], octaves: float) -> None:
    model = random_model(q, octaves=octaves)
    core = _core.EntropyModel(serialize(model))
    latents = random_latents(q, *shape)
    found = predictions(model, latents, q)
    base, table = core.indexes(*latents, q)
    np.testing.assert_array_equal(found[2].base[0].numpy(), base)
    np.testing.assert_array_equal(found[2].table[0].numpy(), table)
    # what the straight-through tensors hold is what the tables stand for
    for one in found:
        assert torch.equal(one.m4.long(), 4 * one.base + one.table % 4)
        assert torch.equal(one.k.long(), one.table // 4)
        assert torch.equal(one.m4, one.m4.round()) and torch.equal(one.k, one.k.round())
    # s and z, and the order of everything: their tables give the same bytes
    values, tables = [], []
    for which, mask in part_masks(model, latents):
        values.append(latents[which][mask] - found[which].base[0].numpy()[mask])
        tables.append(found[which].table[0].numpy()[mask])
    payload = _core.range_encode(
        np.concatenate(values).astype(np.int32), np.concatenate(tables).astype(np.uint16), core
    )
    assert payload == core.encode(*latents, q)
    for got, want in zip(core.decode(payload, q, *shape), latents, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_comparison_covers_many_tables_and_bases() -> None:
    tables: list[set[int]] = [set(), set(), set()]
    bases: list[set[int]] = [set(), set(), set()]
    for q in (0, 97, 252):
        found = predictions(random_model(q), random_latents(q, 16, 16), q)
        for which, one in enumerate(found):
            tables[which] |= set(one.table.flatten().tolist())
            bases[which] |= set(one.base.flatten().tolist())
    assert len(tables[0]) > 8 and len(tables[1]) > 25 and len(tables[2]) > 100
    assert len(bases[0]) > 3 and len(bases[1]) > 5 and len(bases[2]) > 20


def test_part_names_and_masks() -> None:
    model = random_model(0)
    latents = random_latents(0, 5, 6)
    assert list(trained_bits(model, latents, 9)) == ["s", "z", *(f"y{p}" for p in range(6))]
    count = [np.zeros(v.shape, int) for v in latents]
    for which, mask in part_masks(model, latents):
        count[which] += mask
    assert all((c == 1).all() for c in count), "each symbol is coded once"


def draw(model: EntropyModel, q: int, hy: int, wy: int, seed: int) -> Latents:
    """Symbols from the model's own distributions, pass by pass, so that each sees its context."""
    rng = np.random.default_rng(seed)
    latents = random_latents(seed, hy, wy)
    for v in latents:
        v[...] = 0
    for which, mask in part_masks(model, latents):
        one = predictions(model, latents, q)[which]
        scale = np.vectorize(scale_of_index)(one.k[0].numpy())
        drawn = np.rint(rng.logistic(one.m4[0].numpy() / 4, scale)).astype(np.int32)
        latents[which][mask] = drawn[mask]
    return latents


@pytest.mark.parametrize("q", [40, 120, 200])
def test_trained_rate_is_the_coded_rate(q: int) -> None:
    """Symbols drawn from the model's own distributions cost what the loss says, within 1 %."""
    model = random_model(3)
    core = _core.EntropyModel(serialize(model))
    latents = draw(model, q, 32, 32, seed=q)
    trained = np.array(list(trained_bits(model, latents, q).values()))
    ideal = core.part_bits(*latents, q)
    assert trained.shape == ideal.shape
    assert (np.abs(trained - ideal) <= 0.01 * trained + 2).all(), (trained, ideal)
    coded = 8 * len(core.encode(*latents, q))
    assert abs(coded - trained.sum()) <= 0.01 * trained.sum() + 16


@pytest.mark.parametrize("q", [0, 97, 252])
def test_latents_are_rounded_and_restored_as_in_training(q: int) -> None:
    model = random_model(q + 1)
    entropy = runtime.EntropyModel(serialize(model))
    rng = np.random.default_rng(q)
    s, z, y = (rng.normal(0, 4, v.shape).astype(np.float32) for v in random_latents(0, 9, 6))
    symbols = entropy.round_latents(s, z, y, q)
    at = torch.tensor([q])
    with torch.no_grad():
        for gains, latent, rounded in (
            (model.s_gains, s, symbols.s),
            (model.z_gains, z, symbols.z),
            (model.y_gains, y, symbols.y),
        ):
            trained = gains.round(torch.from_numpy(latent)[None], at)[0].numpy()
            np.testing.assert_array_equal(rounded, trained)
        y_hat = torch.from_numpy(symbols.y)[None].float() * model.y_gains.step(at, 2)
        s_hat = torch.from_numpy(symbols.s)[None].float() * model.s_gains.step(at, 0)
    np.testing.assert_allclose(entropy.visual_prompt(symbols.y, q), y_hat[0].numpy(), rtol=2e-7)
    np.testing.assert_allclose(entropy.semantics(symbols.s, q), s_hat[0].numpy(), rtol=2e-7)
    # a symbol is off by half a step at most
    step = model.y_gains.step(at, 2)[0].detach().numpy()
    assert (np.abs(y_hat[0].numpy() - y) <= 0.5001 * step).all()


def test_the_file_holds_the_steps_of_training() -> None:
    model = random_model(2)
    core = _core.EntropyModel(serialize(model))
    assert (core.version, core.group_sizes, core.group_scans) == (2, [6, 8, 10], [3, 2, 1])
    for gains, step in (
        (model.s_gains, core.s_step),
        (model.z_gains, core.z_step),
        (model.y_gains, core.y_step),
    ):
        assert len(step) == NUM_Q
        np.testing.assert_array_equal(q_tables(gains.all_q())[0].numpy(), step)


def test_an_accumulator_that_float32_cannot_hold_is_refused() -> None:
    model = random_model(0, replace(CONFIG, num_features=200))
    serialize(model)
    with torch.no_grad():
        model.passes[2][0].weight.fill_(1.0)
    with pytest.raises(ValueError, match="over 2\\^24"):
        serialize(model)


@pytest.mark.parametrize("k", range(0, 48, 5))
@pytest.mark.parametrize("frac", range(4))
def test_logistic_tables(k: int, frac: int) -> None:
    offset, freq = logistic_table(scale_of_index(k), frac / 4)
    assert sum(freq) == 1 << 16 and min(freq) >= 1
    symbols = np.arange(offset, offset + len(freq) - 1)
    mean = float((symbols * freq[:-1]).sum() / sum(freq[:-1]))
    tolerance = 0.02 * scale_of_index(k) + (0.3 if scale_of_index(k) < 0.4 else 0.02)
    assert abs(mean - frac / 4) < tolerance
