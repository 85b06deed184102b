"""The trainer's simulation of the integer entropy model against the C++: equal, not close."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from export.integer_entropy import (
    KNOT_STEP,
    KNOTS,
    NUM_Q,
    Coded,
    EntropyConfig,
    EntropyModel,
    gains_at,
    lattices,
    logistic_table,
    q_tables,
    scale_of_index,
    serialize,
    straight_through,
)
from export.set_gains import set_gains
from fasdiff_edge import _core
from fasdiff_edge import entropy_model as runtime

CONFIG = EntropyConfig(
    num_s=5,
    num_z=4,
    num_y=24,
    num_features=16,
    group_sizes=[6, 8, 10],
    group_scans=[3, 2, 1],
    residual_sizes=[3, 4, 5],
    residual_scans=[2, 1, 2],
    residual_starts=[110, 110, 180],
    hidden_z=16,
    hidden_pass=32,
)
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def residual_groups() -> list[tuple[int, int, int]]:
    """(size, scan, start) of each."""
    c = CONFIG
    return [*zip(c.residual_sizes, c.residual_scans, c.residual_starts, strict=True)]


def test_a_straight_through_value_is_the_hard_one_and_its_gradient_the_soft_ones() -> None:
    soft = torch.tensor([0.3, 1e8], requires_grad=True)
    hard = (2 * soft).round()
    found = straight_through(3 * soft, hard)
    assert torch.equal(found, hard)  # a sum and a difference would have rounded
    found.sum().backward()
    assert soft.grad is not None
    assert soft.grad.tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        straight_through(soft, hard[:1])


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


def random_symbols(seed: int, hy: int, wy: int, q: int) -> Arrays:
    """s, z and y, that of the base and, where q has one, of the residual."""
    rng = np.random.default_rng(seed)
    s = np.rint(rng.standard_t(3, CONFIG.num_s) * 2).astype(np.int32)
    z = np.rint(rng.standard_t(3, (CONFIG.num_z, (hy + 3) // 4, (wy + 3) // 4)) * 2)
    y = np.rint(rng.standard_t(2, (CONFIG.num_y + CONFIG.num_residual, hy, wy)) * 2)
    coded = sum(size for size, _, start in residual_groups() if q >= start)
    y[CONFIG.num_y + coded :] = 0
    return s, z.astype(np.int32), y.astype(np.int32)


@torch.no_grad()
def code(model: EntropyModel, symbols: Arrays, q: int) -> tuple[Coded, Coded, Coded]:
    """s, z and y as the trainer codes them, when these are the symbols."""
    s, z, y = (torch.from_numpy(v)[None].float() for v in symbols)
    c = model.config
    y, residual = y.split([c.num_y, c.num_residual], 1)
    base = model.code(s, z, y, torch.tensor([min(q, c.residual_from)]), given=True)
    if q < c.residual_from:
        of_residual = Coded(*[torch.zeros_like(residual)] * 4)
    else:
        of_residual = model.code_residual(base, residual, torch.tensor([q]), given=True)
    return base[0], base[1], Coded.cat([base[2], of_residual])


def levels_of(coded: tuple[Coded, Coded, Coded]) -> Arrays:
    """What the core takes and gives: decoded values in sixteenths of a symbol."""
    s, z, y = (one.value[0].double().numpy() * 16 for one in coded)
    for v in (s, z, y):
        np.testing.assert_array_equal(v, np.rint(v))
    return s.astype(np.int32), z.astype(np.int32), y.astype(np.int32)


def part_masks(model: EntropyModel, latents: Arrays, q: int) -> list[tuple[int, np.ndarray]]:
    """Of every pass in coding order: the latent it belongs to (s, z, y) and a mask over it."""
    s, z, y = latents
    masks = [(0, np.ones(s.shape, bool))]
    for lattice in lattices(2, *z.shape[1:]):
        masks.append((1, np.broadcast_to(lattice[0].numpy() > 0, z.shape)))
    c = model.config
    for mask in model.y_masks(*y.shape[1:]):
        masks.append((2, np.pad(mask[0].numpy() > 0, ((0, c.num_residual), (0, 0), (0, 0)))))
    done = c.num_y
    for size, scan, start in residual_groups():
        for lattice in lattices(scan, *y.shape[1:]) if q >= start else []:
            of_group = np.broadcast_to(lattice[0].numpy() > 0, (size, *y.shape[1:]))
            after = len(y) - done - size
            masks.append((2, np.pad(of_group, ((done, after), (0, 0), (0, 0)))))
        done += size
    return masks


@torch.no_grad()
def trained_bits(model: EntropyModel, coded: tuple[Coded, Coded, Coded]) -> dict[str, float]:
    """As the trainer counts them; of the residual, pass by pass, after those of the base."""
    s, z, y = coded
    c = model.config
    base, rest = (
        Coded(*tensors)
        for tensors in zip(*(v.split([c.num_y, c.num_residual], 1) for v in y), strict=True)
    )
    parts = {name: float(bits[0]) for name, bits in model.bits(s, z, base).items()}
    done, number = 0, sum(c.group_scans)
    for size, scan, _ in residual_groups():
        for lattice in lattices(scan, *y.bits.shape[2:]):
            parts[f"y{number}"] = float((rest.bits[:, done : done + size] * lattice).sum())
            number += 1
        done += size
    return parts


@pytest.mark.parametrize("q", [0, 97, 130, 252])
@pytest.mark.parametrize("shape", [(16, 16), (7, 5), (1, 1), (2, 37), (33, 3)])
@pytest.mark.parametrize("octaves", [0.3, 5.0])
def test_every_prediction_equals_the_core(q: int, shape: tuple[int, int], octaves: float) -> None:
    model = random_model(q, octaves=octaves)
    core = _core.EntropyModel(serialize(model))
    symbols = random_symbols(q, *shape, q)
    coded = code(model, symbols, q)
    levels = levels_of(coded)
    mean, table = core.indexes(*levels, q)
    np.testing.assert_array_equal(coded[2].mean[0].numpy(), mean)
    np.testing.assert_array_equal(coded[2].scale[0].numpy(), table)
    for one, given, level in zip(coded, symbols, levels, strict=True):
        np.testing.assert_array_equal(one.symbols[0].numpy(), given)
        np.testing.assert_array_equal(16 * given + one.mean[0].numpy(), level)
    # s and z, and the order of everything: their tables give the same bytes
    values, tables = [], []
    for which, mask in part_masks(model, symbols, q):
        values.append(symbols[which][mask])
        tables.append(coded[which].scale[0].numpy()[mask])
    payload = _core.range_encode(
        np.concatenate(values).astype(np.int32), np.concatenate(tables).astype(np.uint16), core
    )
    assert payload == core.encode(*levels, q)
    for got, want in zip(core.decode(payload, q, *shape), levels, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_comparison_covers_many_tables_and_means() -> None:
    scales: list[set[float]] = [set(), set(), set()]
    means: list[set[float]] = [set(), set(), set()]
    for q in (0, 97, 252):
        coded = code(random_model(q), random_symbols(q, 16, 16, q), q)
        for which, one in enumerate(coded):
            scales[which] |= set(one.scale.flatten().tolist())
            means[which] |= set(one.mean.flatten().tolist())
    assert [len(v) > n for v, n in zip(scales, (6, 8, 30), strict=True)] == [True] * 3
    assert [len(v) > n for v, n in zip(means, (6, 30, 200), strict=True)] == [True] * 3


def test_part_names_and_masks() -> None:
    model = random_model(0)
    symbols = random_symbols(0, 5, 6, 200)
    parts = trained_bits(model, code(model, symbols, 200))
    assert list(parts) == ["s", "z", *(f"y{p}" for p in range(11))]
    count = [np.zeros(v.shape, int) for v in symbols]
    for which, mask in part_masks(model, symbols, 200):
        count[which] += mask
    assert all((c == 1).all() for c in count), "each symbol is coded once"


def draw(model: EntropyModel, q: int, hy: int, wy: int, seed: int) -> Arrays:
    """Symbols from the model's own distributions, pass by pass, so that each sees its context."""
    rng = np.random.default_rng(seed)
    symbols = random_symbols(seed, hy, wy, q)
    for v in symbols:
        v[...] = 0
    for which, mask in part_masks(model, symbols, q):
        one = code(model, symbols, q)[which]
        scale = np.vectorize(scale_of_index)(one.scale[0].numpy())
        drawn = np.rint(rng.logistic(0.0, scale)).astype(np.int32)
        symbols[which][mask] = drawn[mask]
    return symbols


@pytest.mark.parametrize("q", [40, 120, 200])
def test_trained_rate_is_the_coded_rate(q: int) -> None:
    """Symbols drawn from the model's own distributions cost what the loss says, within 1 %."""
    model = random_model(3)
    core = _core.EntropyModel(serialize(model))
    coded = code(model, draw(model, q, 32, 32, seed=q), q)
    trained = np.array(list(trained_bits(model, coded).values()))
    ideal = core.part_bits(*levels_of(coded), q)
    assert trained.shape == ideal.shape
    assert (np.abs(trained - ideal) <= 0.01 * trained + 2).all(), (trained, ideal)
    size = 8 * len(core.encode(*levels_of(coded), q))
    assert abs(size - trained.sum()) <= 0.01 * trained.sum() + 16


def test_the_rate_that_is_learnt_from_is_the_rate_of_the_symbols() -> None:
    """Noise shapes gradients alone; a symbol of zero has one too, towards its mean."""
    model = random_model(1)
    at = torch.tensor([100])
    rng = torch.Generator().manual_seed(0)
    s, z, y = (
        (0.2 * torch.randn((1, *v.shape), generator=rng)).requires_grad_()
        for v in random_symbols(0, 8, 8, 0)
    )
    y = y.detach()[:, : CONFIG.num_y].requires_grad_()
    coded = model.train().code(s, z, y, at)
    still = model.eval().code(s, z, y, at)
    for one, other in zip(coded, still, strict=True):
        torch.testing.assert_close(one.bits, other.bits, rtol=1e-5, atol=1e-5)
        assert torch.equal(one.symbols, other.symbols)
    zeros = coded[2].symbols == 0
    assert zeros.any()
    (gradient,) = torch.autograd.grad(coded[2].bits[zeros].sum(), y)
    assert (gradient[zeros] != 0).float().mean() > 0.5


@pytest.mark.parametrize("q", [0, 97, 130, 252])
def test_latents_are_rounded_and_restored_as_in_training(q: int) -> None:
    model = random_model(q + 1).eval()
    entropy = runtime.EntropyModel(serialize(model))
    rng = np.random.default_rng(q)
    latents = [rng.normal(0, 4, v.shape).astype(np.float32) for v in random_symbols(0, 9, 6, q)]
    latents[2] = latents[2][: CONFIG.num_y]
    at = torch.tensor([min(q, CONFIG.residual_from)])
    with torch.no_grad():
        coded = model.code(*(torch.from_numpy(v)[None] for v in latents), at)
        s, z, y = (
            model.dequantise(one, gains, at)[0].numpy()
            for one, gains in zip(coded, (model.s_gains, model.z_gains, model.y_gains), strict=True)
        )
        step = model.step(model.y_gains.at(at, 2))[0].numpy()
    payload = entropy.encode(entropy.round_latents(*latents, q), q)
    levels = entropy.decode(payload, q, (9, 6))
    base = levels.y[: CONFIG.num_y]
    for got, want in zip((levels.s, levels.z, base), levels_of(coded), strict=True):
        np.testing.assert_array_equal(got, want)
    prompt = entropy.visual_prompt(levels, q)
    assert prompt.dtype == np.float32 and prompt.shape == (len(y) + len(z), 9, 6)
    np.testing.assert_allclose(prompt[: len(y)], y, rtol=3e-7)
    i, j = np.indices((9, 6)) // 4
    np.testing.assert_allclose(prompt[len(y) :], z[:, i, j], rtol=3e-7)
    np.testing.assert_allclose(entropy.semantics(levels, q), s, rtol=3e-7)
    # a latent is off by half a step and the half of a level at most
    assert (np.abs(y - latents[2]) <= (0.5 + 1 / 32 + 1e-4) * step).all()


def test_the_file_holds_the_steps_of_training() -> None:
    model = random_model(2)
    core = _core.EntropyModel(serialize(model))
    assert core.version == 5
    assert core.group_sizes == [6, 8, 10, 3, 4, 5]
    assert core.group_scans == [3, 2, 1, 2, 1, 2]
    assert core.group_starts == [0, 0, 0, 110, 110, 180]
    row = np.minimum(np.arange(NUM_Q), CONFIG.residual_from)  # where the base stays
    for gains, step in (
        (model.s_gains, core.s_step),
        (model.z_gains, core.z_step),
        (model.y_gains, core.y_step[:, : CONFIG.num_y]),
    ):
        assert len(step) == NUM_Q
        np.testing.assert_array_equal(q_tables(gains.all_q())[0].numpy()[row], step)
    of_residual = q_tables(model.residual_gains.all_q())[0].numpy()
    np.testing.assert_array_equal(of_residual, core.y_step[:, CONFIG.num_y :])


def test_only_the_residual_weighs_bits_against_error() -> None:
    """Some coefficients over half a step are not worth their bits; all else is rounded."""
    model = random_model(4).eval()
    core = _core.EntropyModel(serialize(model))
    rng = np.random.default_rng(4)
    s, z, y = (np.rint(16 * rng.normal(0, 1.5, v.shape)) for v in random_symbols(0, 24, 24, 200))
    levels = [v.astype(np.int32) for v in (s, z, y)]
    base, _ = core.indexes(*levels, 200)
    coded = core.decode(core.encode(*levels, 200), 200, *levels[2].shape[1:])[2]
    residual = slice(CONFIG.num_y, None)
    away, taken = (v[residual] for v in (levels[2] - base, coded - base))
    smaller = np.abs(taken) < np.abs(np.rint(away / 16) * 16)
    assert (np.abs(away - taken) <= 24).all()
    assert 0.02 < smaller.mean() < 0.5
    # all else is rounded to the nearest
    rest = np.abs(levels[2] - coded)[: CONFIG.num_y]
    assert rest.max() <= 8


def random_levels(rng: np.random.Generator, q: int) -> list[np.ndarray]:
    """s, z and y of 10 x 7 positions, int32."""
    return [
        np.rint(16 * rng.normal(0, 1.5, v.shape)).astype(np.int32)
        for v in random_symbols(0, 10, 7, q)
    ]


def test_a_base_is_coded_once_for_all_residuals() -> None:
    core = _core.EntropyModel(serialize(random_model(6)))
    first = core.residual_from
    rng = np.random.default_rng(6)
    s, z, y = random_levels(rng, first)
    base = core.code_base(s, z, y)
    y[: CONFIG.num_y] = rng.permuted(y[: CONFIG.num_y])  # a copy is kept
    s_hat, z_hat, y_hat = base.levels
    assert not y_hat[CONFIG.num_y :].any()
    for q in (first, 200, NUM_Q - 1, first):
        residual = np.rint(16 * rng.normal(0, 2, y[CONFIG.num_y :].shape)).astype(np.int32)
        payload = base.encode(residual, q)
        whole = np.concatenate([y_hat[: CONFIG.num_y], residual])
        assert payload == core.encode(s_hat, z_hat, whole, q)
        again = core.decode(payload, q, *y.shape[1:])
        np.testing.assert_array_equal(again[0], s_hat)
        np.testing.assert_array_equal(again[2][: CONFIG.num_y], y_hat[: CONFIG.num_y])
    for q in (-1, first - 1, NUM_Q):
        with pytest.raises(ValueError, match="quality"):
            base.encode(residual, q)
    with pytest.raises(ValueError, match="residual must be"):
        base.encode(residual[:, 1:].copy(), first)
    residual[0, 0, 0] = 16 * 32768
    with pytest.raises(ValueError, match="outside"):
        base.encode(residual, first)


def test_bits_of_the_residual_have_a_price_at_each_position() -> None:
    core = _core.EntropyModel(serialize(random_model(6)))
    q = CONFIG.residual_starts[-1]
    s, z, y = random_levels(np.random.default_rng(6), q)
    base = core.code_base(s, z, y)
    residual = y[CONFIG.num_y :]

    def away(prices: np.ndarray) -> np.ndarray:
        """Of what comes back, in sixteenths of a symbol."""
        decoded = core.decode(base.encode(residual, q, prices), q, *y.shape[1:])[2]
        found: np.ndarray = np.abs(decoded[CONFIG.num_y :] - residual)
        return found

    even = np.full(y.shape[1:], 120, np.int32)
    assert base.encode(residual, q, even) == base.encode(residual, q)
    assert away(0 * even).max() <= 8, "free: the nearest"
    dear = even.copy()
    dear[::2], dear[1::2] = 0, 65535
    found = away(dear)
    assert found[:, ::2].max() <= 8 < found[:, 1::2].max() <= 24
    sizes = [len(base.encode(residual, q, np.full_like(even, p))) for p in (0, 60, 120, 480)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    for wrong in (-1, 65536):
        dear[3, 3] = wrong
        with pytest.raises(ValueError, match="price is outside"):
            base.encode(residual, q, dear)
    with pytest.raises(ValueError, match="prices must be"):
        base.encode(residual, q, even[1:].copy())
    with pytest.raises(ValueError, match="int32"):
        base.encode(residual, q, even.astype(np.int64))


def test_an_accumulator_that_float32_cannot_hold_is_refused() -> None:
    model = random_model(0, replace(CONFIG, num_features=200))
    serialize(model)
    with torch.no_grad():
        model.passes[2][0].weight.fill_(1.0)
    with pytest.raises(ValueError, match="over 2\\^24"):
        serialize(model)


@pytest.mark.parametrize("k", range(48))
def test_logistic_tables(k: int) -> None:
    offset, freq = logistic_table(scale_of_index(k))
    assert sum(freq) == 1 << 16 and min(freq) >= 1
    assert len(freq) - 1 == 1 - 2 * offset, "symmetric"
    symbols = np.arange(offset, offset + len(freq) - 1)
    edges = np.append(symbols - 0.5, symbols[-1] + 0.5) / scale_of_index(k)
    pmf = np.diff(1 / (1 + np.exp(-edges)))
    np.testing.assert_allclose(np.array(freq[:-1]) / 2**16, pmf, atol=len(freq) / 2**16)


def gains_state() -> dict[str, Any]:
    """What `set_gains` looks at of a checkpoint."""
    rng = np.random.default_rng(4)
    gains = {
        f"entropy.{latent}_gains.log2_gain": torch.from_numpy(rng.normal(size=(KNOTS, 5))).float()
        for latent in ("y", "z", "residual")
    }
    config = {"entropy": {"residual_starts": [132, 132]}}
    return {"config": config, "ema": gains, "model": gains, "muon": {}, "best": 1.0, "step": 3}


def test_gains_of_the_residual_are_set_from_the_last_knot() -> None:
    state = gains_state()
    new = set_gains(state, start=28, residual=[-3.0, -2.5])
    name = "entropy.residual_gains.log2_gain"
    assert (new["ema"][name][-2] == -3).all() and (new["ema"][name][-1] == -2.5).all()
    assert torch.equal(new["ema"][name][:-2], state["ema"][name][:-2])
    assert new["config"]["entropy"]["residual_starts"] == [112, 112]
    assert state["config"]["entropy"]["residual_starts"] == [132, 132]
    assert new["model"] is new["ema"] and "muon" not in new and "best" not in new
    assert torch.equal(
        new["ema"]["entropy.y_gains.log2_gain"], state["ema"]["entropy.y_gains.log2_gain"]
    )


def test_low_qualities_take_the_gains_of_others() -> None:
    state = gains_state()
    new = set_gains(state, low=[-KNOT_STEP / 4, KNOT_STEP / 8])["ema"]
    for latent in ("y", "z"):
        name = f"entropy.{latent}_gains.log2_gain"
        old = state["ema"][name]
        torch.testing.assert_close(new[name][0], 2 * old[0] - old[1])  # a knot below the first
        torch.testing.assert_close(new[name][1], (old[0] + old[1]) / 2)
        assert torch.equal(new[name][2:], old[2:])
    gains = state["ema"]["entropy.y_gains.log2_gain"]
    torch.testing.assert_close(gains_at(gains, KNOT_STEP * torch.arange(KNOTS)), gains)


@pytest.mark.parametrize("start", [0, 28.1, 63.25, -1])
def test_a_start_that_is_no_quality_is_refused(start: float) -> None:
    with pytest.raises(ValueError, match="quarter step"):
        set_gains(gains_state(), start=start)
    with pytest.raises(ValueError, match="9 knots"):
        set_gains(gains_state(), residual=[0.0] * 10)
