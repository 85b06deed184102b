"""The C++ integer entropy model against the reference; malformed models; no float anywhere."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import reference
from reference import Layer, Model, NetworkPrior, Quantiser, Table, TablePrior

from fasdiff_edge import _core

REPOSITORY = Path(__file__).resolve().parent.parent

SHAPES = [
    {},
    {"num_s": 0, "num_z": 1, "num_features": 1, "group_sizes": (1,), "num_scales": 1},
    {"num_s": 17, "num_z": 9, "num_features": 17, "group_sizes": (1, 8, 2, 3), "num_scales": 40},
    {"group_sizes": (4, 4, 4), "last_kernel": 3},
    {"group_sizes": (2, 3, 4, 5), "group_starts": (0, 90, 90, 200), "last_kernel": 3},
]
SCANS = [(1,), (2,), (3,), (1, 1), (2, 3), (3, 2, 1, 3)]
LATENT_SIZES = [(1, 1), (1, 5), (4, 1), (2, 3), (5, 8), (9, 4)]
# Latents of which 4 * hy or 4 * wy is below, at and beyond the 127 that the planes stop at.
PLANE_SIZES = [(1, 1), (3, 2), (5, 7), (8, 31), (32, 9), (2, 256), (256, 1), (33, 47)]


@pytest.fixture(params=[1, 5], ids=["version-1", "version-5"])
def version(request: pytest.FixtureRequest) -> int:
    """Each version of the model file."""
    return int(request.param)


def core_of(model: Model) -> _core.EntropyModel:
    return _core.EntropyModel(reference.serialise(model))


def model_and_core(seed: int, version: int, **shape: object) -> tuple[Model, _core.EntropyModel]:
    model = reference.random_model(np.random.default_rng(seed), version, **shape)
    return model, core_of(model)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("hy", "wy"), LATENT_SIZES)
def test_indexes_and_payload_equal_reference(
    version: int, shape: dict[str, object], hy: int, wy: int
) -> None:
    seed = 100 * hy + wy
    model, core = model_and_core(seed, version, **shape)
    rng = np.random.default_rng(seed)
    for q, spread in ((0, 0.5), (127, 4.0), (252, 60.0)):
        s, z, y = reference.random_latents(rng, model, hy, wy, spread)
        base, table = core.indexes(s, z, y, q)
        assert (base.dtype, table.dtype) == (np.int32, np.uint16)
        expected_base, expected_table = reference.indexes(model, s, z, y, q)
        np.testing.assert_array_equal(base, expected_base)
        np.testing.assert_array_equal(table, expected_table)

        payload = core.encode(s, z, y, q)
        assert payload == reference.encode_latents(model, s, z, y, q)
        expected = reference.codable(model, s, z, y, q)
        for decoded, levels in zip(core.decode(payload, q, hy, wy), expected, strict=True):
            assert decoded.dtype == np.int32
            np.testing.assert_array_equal(decoded, levels)
        for decoded, levels in zip(
            reference.decode_latents(model, payload, q, hy, wy), expected, strict=True
        ):
            np.testing.assert_array_equal(decoded, levels)
        unit = 1 << model.unit_bits
        base = slice(0, model.num_base)
        for levels, given in zip((*expected[:2], expected[2][base]), (s, z, y[base]), strict=True):
            assert (np.abs(levels - given) <= unit // 2).all()
        residual = expected[2][model.num_base :]
        coded = len(model.coded_channels(q)) - model.num_base
        assert not residual[coded:].any()
        assert (np.abs(residual - y[model.num_base :])[:coded] < 1.5 * unit).all()
        # What came back codes to the same bytes.
        assert core.encode(*(levels.astype(np.int32) for levels in expected), q) == payload


@pytest.mark.parametrize("scans", SCANS)
@pytest.mark.parametrize("last_kernel", [1, 3])
def test_every_scan_equals_reference(scans: tuple[int, ...], last_kernel: int) -> None:
    """Groups of one, two and three passes, at sizes of which a pass may have no position."""
    sizes = (3, 1, 2, 2)[: len(scans)]
    shape = {"group_sizes": sizes, "group_scans": scans, "last_kernel": last_kernel}
    model, core = model_and_core(len(scans), 5, **shape)
    assert (core.group_scans, core.num_passes) == (list(scans), sum(scans))
    rng = np.random.default_rng(last_kernel)
    for hy, wy in ((1, 1), (2, 1), (1, 4), (2, 2), (7, 6)):
        s, z, y = reference.random_latents(rng, model, hy, wy)
        np.testing.assert_array_equal(
            core.indexes(s, z, y, 90), reference.indexes(model, s, z, y, 90)
        )
        payload = core.encode(s, z, y, 90)
        assert payload == reference.encode_latents(model, s, z, y, 90)
        expected = reference.codable(model, s, z, y, 90)
        for decoded, levels in zip(core.decode(payload, 90, hy, wy), expected, strict=True):
            np.testing.assert_array_equal(decoded, levels)
        bits = core.part_bits(s, z, y, 90)
        np.testing.assert_allclose(bits, reference.part_bits(model, s, z, y, 90), rtol=1e-9)


@pytest.mark.parametrize("scan", [1, 2, 3])
def test_passes_of_a_group(scan: int) -> None:
    """The positions of each pass, written out; part_bits tells which pass coded a symbol."""
    model, core = model_and_core(scan, 5, group_sizes=(1,), group_scans=(scan,))
    expected = {
        1: ["0000", "0000", "0000"],
        2: ["0101", "1010", "0101"],
        3: ["0202", "2121", "0202"],
    }[scan]
    s, z, y = (
        np.zeros(shape, np.int32) for shape in ((model.num_s,), (model.num_z, 1, 1), (1, 3, 4))
    )
    before = core.part_bits(s, z, y, 0)
    for i, row in enumerate(expected):
        for j, pass_index in enumerate(row):
            far = y.copy()
            far[0, i, j] = 20000 * 16  # an escape of thirty bits
            more = core.part_bits(s, z, far, 0) - before
            # No pass before it changes, and its own by what an escape costs.
            assert (more[: 2 + int(pass_index)] == 0).all()
            assert more[2 + int(pass_index)] > 20


@pytest.mark.parametrize(("hy", "wy"), PLANE_SIZES)
def test_every_size_of_the_planes_equals_reference(hy: int, wy: int) -> None:
    """Networks of version 5 see where a position lies and how large y is."""
    model, core = model_and_core(wy, 5, group_sizes=(1,))
    s, z, y = reference.random_latents(np.random.default_rng(hy), model, hy, wy)
    np.testing.assert_array_equal(core.indexes(s, z, y, 90), reference.indexes(model, s, z, y, 90))
    np.testing.assert_allclose(
        core.part_bits(s, z, y, 90), reference.part_bits(model, s, z, y, 90), rtol=1e-9
    )


@pytest.mark.parametrize("plane", range(5))
@pytest.mark.parametrize(("hy", "wy"), PLANE_SIZES)
def test_planes(plane: int, hy: int, wy: int) -> None:
    """A model that predicts one of the planes as the mean of z, and of y."""
    model = reference.table_model([Table(0, (65535, 1))])
    assert isinstance(model.prior, NetworkPrior)
    wide = Quantiser(model.y.step, model.y.gain * 16, model.y.index_offset)  # whole symbols

    def pick(cin: int, channel: int, cout: int) -> list[Layer]:
        """The first output is input `channel`, the others are zero."""
        weight = np.zeros((cout, cin, 1, 1), np.int64)
        weight[0, channel] = 2
        return [Layer(weight, np.zeros(cout, np.int64), 1, -127, 127)]

    prior = replace(model.prior, z=wide, z_passes=[pick(5, plane, 2), pick(6, plane, 2)])
    passes = [pick(1, 0, 2), pick(2, 0, 2)]
    core = core_of(replace(model, prior=prior, y=wide, h_s_y=pick(6, 1 + plane, 1), passes=passes))
    q = 201
    # Nothing but bases: an empty payload of a few symbols is whole, one of many is cut.
    _, z, y = core.decode(b"", q, hy, wy, truncated_ok=True)

    def along(count: int) -> list[int]:
        """The position of each of `count` rows or columns in 128ths of the image, from -64."""
        return [int((i + 0.5) / count * 128) - 64 for i in range(count)]

    for levels in (z[0], y[0]):
        rows, columns = levels.shape
        expected = [
            np.full((rows, columns), 100),
            np.array(along(rows))[:, None].repeat(columns, 1),
            np.array(along(columns))[None].repeat(rows, 0),
            np.full((rows, columns), min(127, 4 * hy)),
            np.full((rows, columns), min(127, 4 * wy)),
        ]
        np.testing.assert_array_equal(levels, 16 * np.array(expected[plane]))


def test_the_comparison_covers_many_tables_and_bases(version: int) -> None:
    """Otherwise equality with the reference would prove little."""
    model, core = model_and_core(0, version, num_s=12)
    rng = np.random.default_rng(0)
    tables: list[set[int]] = [set(), set(), set()]
    bases: list[set[int]] = [set(), set(), set()]
    for q in (0, 127, 252):
        s, z, y = reference.random_latents(rng, model, 12, 12)
        base, table = core.indexes(s, z, y, q)
        tables[2] |= set(table.ravel().tolist())
        bases[2] |= set(base.ravel().tolist())
        for one in reference.walk(model, s, z, y, q):
            if one.part < 2:
                tables[one.part] |= set(one.table.tolist())
                bases[one.part] |= set(one.base.tolist())
    assert len(tables[2]) > (40 if version == 1 else 12)
    assert len(bases[2]) > 20
    if version == 5:
        assert [len(tables[part]) > 8 for part in (0, 1)] == [True, True]
        assert [len(bases[part]) > 8 for part in (0, 1)] == [True, True]


def test_what_a_prediction_depends_on() -> None:
    """Version 5: the even half of z on s, the odd half on the even one too, y on everything."""
    model, core = model_and_core(4, 5)
    q, hy, wy = 140, 12, 12
    s, z, y = (
        a.astype(np.int64)
        for a in reference.random_latents(np.random.default_rng(4), model, hy, wy)
    )
    even = np.indices((3, 3)).sum(0) % 2 == 0

    def predictions(s: np.ndarray, z: np.ndarray) -> list[tuple[list[int], list[int]]]:
        """Of s and of both halves of z."""
        walk = reference.walk(model, s, z, y, q)
        return [(one.base.tolist(), one.table.tolist()) for one in islice(walk, 3)]

    def payload_is_the_same(s: np.ndarray, z: np.ndarray) -> None:
        latents = [a.astype(np.int32) for a in (s, z, y)]
        assert core.encode(*latents, q) == reference.encode_latents(model, s, z, y, q)

    plain = predictions(s, z)
    other_s = predictions(s + 1, z)
    other_even = predictions(s, np.where(even, z + 2, z))
    other_odd = predictions(s, np.where(even, z, z + 2))
    for part, (s_moves, even_moves) in enumerate([(False, False), (True, False), (True, True)]):
        assert (other_s[part] != plain[part]) == s_moves
        assert (other_even[part] != plain[part]) == even_moves
        assert other_odd[part] == plain[part]
    payload_is_the_same(s + 1, z)
    payload_is_the_same(s, np.where(even, z + 2, z))
    payload_is_the_same(s, np.where(even, z, z + 2))
    features = [
        reference.features(model, *latents, q, hy, wy)
        for latents in ((s, z), (s + 1, z), (s, z + (~even)), (s, z + even))
    ]
    assert all((other != features[0]).any() for other in features[1:])


@pytest.mark.parametrize("shape", SHAPES)
def test_part_bits_equal_reference_and_the_payload(version: int, shape: dict[str, object]) -> None:
    model, core = model_and_core(3, version, **shape)
    s, z, y = reference.random_latents(np.random.default_rng(3), model, 11, 7)
    bits = core.part_bits(s, z, y, 100)
    assert bits.shape == (2 + sum(model.group_scans),)
    np.testing.assert_allclose(bits, reference.part_bits(model, s, z, y, 100), rtol=1e-9)
    payload = core.encode(s, z, y, 100)
    assert bits.sum() / 8 - 4 <= len(payload) <= bits.sum() / 8 * 1.002 + 2


def test_properties(version: int) -> None:
    shape = {"num_s": 5, "num_z": 2, "group_sizes": (2, 3, 4), "num_scales": 7}
    model, core = model_and_core(1, version, **shape)
    assert core.version == version
    assert (core.num_s, core.num_z, core.num_y, core.num_q) == (5, 2, 9, 253)
    assert (core.num_groups, core.group_sizes, core.num_scales) == (3, [2, 3, 4], 7)
    assert core.group_scans == ([2, 2, 2] if version == 1 else [3, 1, 2])
    assert core.residual_from == (None if version == 1 else 120)
    assert core.group_starts == ([0, 0, 0] if version == 1 else [0, 0, 120])
    assert core.num_base == (9 if version == 1 else 5)
    assert core.num_passes == sum(core.group_scans) == 6
    assert core.num_tables == len(model.tables)
    if isinstance(model.prior, NetworkPrior):
        base_row, every = np.minimum(np.arange(253), 120), np.arange(253)  # where the base stays
        y_step = np.concatenate([model.y.step[base_row, :5], model.y.step[every, 5:]], 1)
        expected = [model.prior.s.step[base_row], model.prior.z.step[base_row], y_step]
    else:  # one unit a symbol
        expected = [np.full((253, 5), 4096), np.full((253, 2), 4096), model.y.step]
    for name, step in zip(("s_step", "z_step", "y_step"), expected, strict=True):
        found = getattr(core, name)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, step)
        found[:] = 0  # a copy: the model does not change
        np.testing.assert_array_equal(getattr(core, name), step)


def test_a_model_without_s(version: int) -> None:
    """No component of s: an empty array in and out, no bits, and z does without it."""
    model, core = model_and_core(6, version, num_s=0)
    s, z, y = reference.random_latents(np.random.default_rng(6), model, 9, 6)
    assert s.shape == (0,)
    assert core.s_step.shape == (253, 0)
    payload = core.encode(s, z, y, 33)
    decoded = core.decode(payload, 33, 9, 6)
    assert decoded[0].shape == (0,)
    np.testing.assert_array_equal(decoded[1], reference.codable(model, s, z, y, 33)[1])
    assert core.part_bits(s, z, y, 33)[0] == 0


@pytest.mark.parametrize("q", [0, 252])
def test_extremes(version: int, q: int) -> None:
    """The smallest and the largest symbols, steps, gains, offsets and means, everywhere."""
    random = np.random.default_rng(q)
    for seed in range(4):
        model, _ = model_and_core(seed, version)
        biggest = [
            Quantiser(
                random.choice([1, 2**24 - 1], quantiser.step.shape),
                random.choice([1, 2**20 - 1], quantiser.gain.shape),
                random.choice([-32768, 32767], quantiser.index_offset.shape),
            )
            for quantiser in quantisers(model)
        ]
        model = with_quantisers(model, biggest)
        shifts = [int(shift) for shift in random.choice([0, 24], 3)]
        model = replace(model, ctx_shift=shifts[0], mean_shift=shifts[1], scale_shift=shifts[2])
        if isinstance(model.prior, NetworkPrior):
            ends = random.choice([-32768, 32767], (2, model.num_s))
            model = replace(model, prior=replace(model.prior, s_mean=ends[0], s_scale=ends[1]))
        core = core_of(model)
        latents = reference.random_latents(random, model, 6, 5, 40.0)
        unit = 1 << model.unit_bits
        s, z, y = (np.where(a % 2 == 0, -32768, 32767).astype(np.int32) * unit for a in latents)
        np.testing.assert_array_equal(
            core.indexes(s, z, y, q), reference.indexes(model, s, z, y, q)
        )
        payload = core.encode(s, z, y, q)
        assert payload == reference.encode_latents(model, s, z, y, q)
        for decoded, levels in zip(
            core.decode(payload, q, 6, 5), reference.codable(model, s, z, y, q), strict=True
        ):
            np.testing.assert_array_equal(decoded, levels)
        for decoded in core.decode(b"", q, 6, 5, truncated_ok=True):
            assert decoded.min() >= -32768 * unit and decoded.max() <= 32767 * unit


def quantisers(model: Model) -> list[Quantiser]:
    """Those of the file, in its order."""
    prior = model.prior
    return [prior.s, prior.z, model.y] if isinstance(prior, NetworkPrior) else [model.y]


def with_quantisers(model: Model, all_of_them: list[Quantiser]) -> Model:
    if isinstance(model.prior, NetworkPrior):
        s, z, y = all_of_them
        return replace(model, prior=replace(model.prior, s=s, z=z), y=y)
    return replace(model, y=all_of_them[0])


def test_accumulators_at_the_limit(version: int) -> None:
    """The largest sums that a model may ask for, in both directions, give what integers give."""
    model, _ = model_and_core(5, version, num_features=200, group_sizes=(1,))
    rng = np.random.default_rng(5)
    for sign in (1, -1):
        wide = Layer(
            np.full((200, model.h_s_y[0].weight.shape[1], 3, 3), 127 * sign, np.int64),
            np.full(200, 2**24 - 1, np.int64) * sign,
            1,
            -9240,
            9240,
        )
        deep = Layer(
            np.full((6, 200, 3, 3), -128 if sign == 1 else 127, np.int64),
            np.full(6, 1 - 2**24, np.int64) * sign,
            24,
            -32768,
            32767,
        )
        last = reference.random_layer(rng, 6, 2, 1, -32768, 32767)
        extreme = replace(model, h_s_y=[wide], passes=[[deep, last], *model.passes[1:]])
        core = core_of(extreme)
        s, z, y = reference.random_latents(rng, extreme, 5, 5)
        np.testing.assert_array_equal(
            core.indexes(s, z, y, 252), reference.indexes(extreme, s, z, y, 252)
        )


def test_an_accumulator_beyond_the_limit_is_refused(version: int) -> None:
    model, _ = model_and_core(5, version, num_features=200, group_sizes=(1,))
    wide = replace(model.h_s_y[0], lo=-9400, hi=9400)  # 200 * 9 * 128 * 9400 > 2^31
    deep = Layer(np.ones((6, 200, 3, 3), np.int64), np.zeros(6, np.int64), 9, 0, 127)
    last = reference.random_layer(np.random.default_rng(0), 6, 2, 1, -900, 900)
    bad = replace(model, h_s_y=[wide], passes=[[deep, last], *model.passes[1:]])
    with pytest.raises(ValueError, match="overflow"):
        core_of(bad)


def test_the_accumulators_of_z_passes_are_checked() -> None:
    model, _ = model_and_core(5, 5)
    assert isinstance(model.prior, NetworkPrior)
    for h in (0, 1):
        cin = model.prior.z_passes[h][0].weight.shape[1]
        wide = reference.random_layer(np.random.default_rng(h), cin, 500, 1, -30000, 30000)
        deep = Layer(np.ones((6, 500, 3, 3), np.int64), np.zeros(6, np.int64), 9, -900, 900)
        passes = list(model.prior.z_passes)
        passes[h] = [wide, deep]
        with pytest.raises(ValueError, match="overflow"):
            core_of(replace(model, prior=replace(model.prior, z_passes=passes)))


# -- damaged and cut payloads ----------------------------------------------------------------------
def test_truncated_ok_keeps_what_the_bytes_determine(version: int) -> None:
    model, core = model_and_core(7, version)
    q = 150
    latents = reference.random_latents(np.random.default_rng(7), model, 8, 8)
    latents = reference.codable(model, *latents, q)
    payload = core.encode(*(a.astype(np.int32) for a in latents), q)
    order = coding_order(model, latents)
    intervals = coded_intervals(model, latents, q)
    values = reference.coded_values(model, *latents, q)
    bits = np.cumsum([reference.value_bits(table, value) for _, table, value in values])
    assert len(intervals) == len(order)
    for size in (*range(0, len(payload), 5), len(payload)):
        same = coding_order(model, core.decode(payload[:size], q, 8, 8, truncated_ok=True)) == order
        known = [determines(payload[:size], *interval) for interval in intervals]
        assert known == sorted(known, reverse=True)
        assert same[: sum(known)].all()
        # All but the symbols of the last two or three bytes are known.
        assert sum(known) >= np.searchsorted(bits, 8 * size - 24)
    assert same.all()


def coded_intervals(
    model: Model, latents: tuple[np.ndarray, ...], q: int
) -> list[tuple[int, int, int]]:
    """After each symbol, (low, range, size): the message is in low + [0, range), of 256^size."""
    coder = reference.RangeEncoder()
    intervals = []
    for _, table, value in reference.coded_values(model, *latents, q):
        reference.encode_value(coder, table, value)
        intervals.append((coder.low, coder.range, coder.shifted + 6))
    return intervals


def determines(prefix: bytes, low: int, width: int, size: int) -> bool:
    """Whether every message that starts with these bytes lies in the interval."""
    first = int.from_bytes(prefix, "big") << 8 * max(0, size - len(prefix))
    past = (int.from_bytes(prefix, "big") + 1) << 8 * max(0, size - len(prefix))
    scale = 8 * max(0, len(prefix) - size)
    return low << scale <= first and past <= low + width << scale


def coding_order(model: Model, latents: tuple[np.ndarray, ...]) -> np.ndarray:
    """All symbols in the order in which they are coded."""
    s, z, y = latents

    def scanned(a: np.ndarray, scan: int) -> list[np.ndarray]:
        return [a[:, lattice].ravel() for lattice in reference.lattices(scan, *a.shape[1:])]

    parts = [s, *scanned(z, 1 if model.version == 1 else 2)]
    first = 0
    for size, scan in zip(model.group_sizes, model.group_scans, strict=True):
        parts += scanned(y[first : first + size], scan)
        first += size
    return np.concatenate(parts)


@pytest.mark.parametrize(("hy", "wy"), [(6, 6), (1, 9), (17, 5)])
def test_truncated_ok_fills_in_modes_and_means(version: int, hy: int, wy: int) -> None:
    """Nothing is there: each pass gets its likely symbols, which the next one builds upon."""
    model, core = model_and_core(8, version)

    def mode(table: Table) -> int:
        return table.offset + int(np.argmax(table.frequencies[:-1]))

    s = np.zeros(model.num_s, np.int64)
    z = np.zeros((model.num_z, -(-hy // 4), -(-wy // 4)), np.int64)
    y = np.zeros((model.num_y, hy, wy), np.int64)
    for one in reference.walk(model, s, z, y, 99):
        if version == 1 and one.part < 2:
            likely = one.base + [mode(model.tables[t]) for t in one.table]
        elif version == 1:  # the mean, half up
            likely = one.base + ((one.table & 3) + 2) // 4
        else:  # the mean
            likely = one.base
        (s, z, y)[min(one.part, 2)][one.where] = likely
    for decoded, levels in zip(
        core.decode(b"", 99, hy, wy, truncated_ok=True), (s, z, y), strict=True
    ):
        np.testing.assert_array_equal(decoded, levels)
    assert len(np.unique(y)) > 3


def test_truncated_ok_changes_nothing_for_a_whole_payload(version: int) -> None:
    model, core = model_and_core(9, version)
    rng = np.random.default_rng(9)
    for hy, wy in LATENT_SIZES:
        latents = reference.random_latents(rng, model, hy, wy)
        payload = core.encode(*latents, 60)
        for decoded, whole in zip(
            core.decode(payload, 60, hy, wy, truncated_ok=True),
            core.decode(payload, 60, hy, wy),
            strict=True,
        ):
            np.testing.assert_array_equal(decoded, whole)


def test_truncated_ok_still_refuses_other_damage(version: int) -> None:
    model, core = model_and_core(9, version)
    latents = reference.random_latents(np.random.default_rng(9), model, 4, 4)
    payload = core.encode(*latents, 60)
    with pytest.raises(_core.StreamError, match="bytes are left"):
        core.decode(payload + bytes(4), 60, 4, 4, truncated_ok=True)


def test_a_cut_payload_is_refused(version: int) -> None:
    """Nearly always: a cut can leave a valid payload of other symbols; the CRC is the guard."""
    model, core = model_and_core(10, version)
    latents = reference.random_latents(np.random.default_rng(10), model, 16, 16)
    payload = core.encode(*latents, 120)
    whole = core.decode(payload, 120, 16, 16)
    refused = 0
    for size in range(len(payload) - 2):
        try:
            decoded = core.decode(payload[:size], 120, 16, 16)
        except _core.StreamError as error:
            refused += "ends before" in str(error)
        else:
            assert any((a != b).any() for a, b in zip(decoded, whole, strict=True))
    assert refused > 0.9 * len(payload)


def test_a_symbol_beyond_16_bits_is_refused(version: int) -> None:
    model = reference.table_model([Table(0, (1, 1, 65534))] * 4, version)
    core = core_of(model)
    coder = reference.RangeEncoder()
    reference.encode_value(coder, model.tables[0], 32769)
    with pytest.raises(_core.StreamError, match="symbol is outside"):
        core.decode(coder.finish(), 0, 1, 1)


# -- arguments -------------------------------------------------------------------------------------
def test_arguments_are_checked(version: int) -> None:
    model, core = model_and_core(11, version)
    s, z, y = reference.random_latents(np.random.default_rng(11), model, 8, 4)
    unit = 1 << model.unit_bits
    beyond = 32767 * unit + 1
    bad = [
        ((s[:-1], z, y, 0), r"s must be a C-contiguous int32 array \[4\], got int32 \[3\]"),
        ((s.astype(np.int64), z, y, 0), "s must be .* got int64"),
        ((s, z[:, :1], y, 0), "z must be"),
        ((s, np.asfortranarray(z), y, 0), "z must be"),
        ((s, z, y[:-1].copy(), 0), "y must be"),
        ((s, z, y[:, ::2], 0), "y must be"),
        ((s, z, y[0], 0), "y must be"),
        ((s, z, y.astype(np.float32), 0), "y must be"),
        ((s, z, y, -1), "quality"),
        ((s, z, y, 253), "quality"),
        ((s, z, np.where(y == y[0, 0, 0], beyond, y).astype(np.int32), 0), "outside -32768..32767"),
        ((s, z * 0 - 32768 * unit - 1, y, 0), "outside -32768..32767"),
        ((s * 0 + 40000 * unit, z, y, 0), "outside -32768..32767"),
    ]
    for arguments, reason in bad:
        for call in (core.encode, core.part_bits, core.indexes):
            with pytest.raises(ValueError, match=reason):
                call(*arguments)


def test_unaligned_arrays_are_refused() -> None:
    model, core = model_and_core(11, 5)
    s, z, y = reference.random_latents(np.random.default_rng(11), model, 8, 4)
    shifted = np.frombuffer(b"-" + y.tobytes(), np.int32, offset=1).reshape(y.shape)
    np.testing.assert_array_equal(shifted, y)
    with pytest.raises(ValueError, match="got unaligned int32"):
        core.encode(s, z, shifted, 0)


@pytest.mark.parametrize(("hy", "wy"), [(0, 4), (4, 0), (-1, 4), (257, 1), (1, 257), (2**40, 1)])
def test_latent_sizes_are_bounded(hy: int, wy: int) -> None:
    _, core = model_and_core(11, 5)
    with pytest.raises(ValueError, match=r"outside 1\.\.256"):
        core.decode(b"", 0, hy, wy)


def test_decode_checks_quality() -> None:
    _, core = model_and_core(11, 5)
    for q in (-1, 253):
        with pytest.raises(ValueError, match="quality"):
            core.decode(b"", q, 1, 1)


def test_encode_refuses_latents_that_are_too_large() -> None:
    model, core = model_and_core(11, 5, num_z=1, group_sizes=(1,))
    y = np.zeros((1, 1, 257), np.int32)
    with pytest.raises(ValueError, match=r"outside 1\.\.256"):
        core.encode(np.zeros(4, np.int32), np.zeros((1, 1, 65), np.int32), y, 0)
    with pytest.raises(ValueError, match=r"outside 1\.\.256"):
        core.encode(np.zeros(4, np.int32), np.zeros((1, 0, 1), np.int32), y[:, :0], 0)


def test_one_model_serves_many_threads(version: int) -> None:
    model, core = model_and_core(12, version)
    latents = [
        reference.random_latents(np.random.default_rng(i), model, 6 + i, 9) for i in range(4)
    ]
    payloads = [core.encode(*latents[i], 60 * i) for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(10):
            decoded = core.decode(payloads[i], 60 * i, 6 + i, 9)
            if core.encode(*decoded, 60 * i) != payloads[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- malformed models ------------------------------------------------------------------------------
def small_model(version: int) -> Model:
    return reference.random_model(
        np.random.default_rng(20), version, num_s=2, num_z=2, group_sizes=(1, 2), num_scales=2
    )


def test_every_truncation_of_a_model_is_refused(version: int) -> None:
    data = reference.serialise(small_model(version))
    cuts = {*range(200), *range(200, len(data), 97), *range(len(data) - 300, len(data))}
    for size in cuts:
        with pytest.raises(ValueError, match="too short"):
            _core.EntropyModel(data[:size])
    _core.EntropyModel(data)


def test_bytes_after_a_model_are_refused(version: int) -> None:
    with pytest.raises(ValueError, match="after its last layer"):
        _core.EntropyModel(reference.serialise(small_model(version)) + b"\0")


COUNTS = [  # offset in the file, format, value, reason
    (0, "<B", ord("X"), "magic"),
    (6, "<B", 1, "magic"),
    (7, "<B", 0, "magic"),
    (7, "<B", 2, "magic"),
    (7, "<B", 3, "magic"),
    (7, "<B", 4, "magic"),
    (8, "<H", 257, "count"),  # num_s
    (10, "<H", 0, "count"),  # num_z
    (10, "<H", 257, "count"),
    (12, "<H", 0, "count"),  # num_y
    (12, "<H", 513, "count"),
    (12, "<H", 4, "group sizes"),
    (14, "<H", 0, "count"),  # num_features
    (14, "<H", 257, "count"),
    (16, "<H", 0, "count"),  # num_groups
    (16, "<H", 17, "count"),
    (18, "<H", 2, "group sizes"),  # the first group's size
    (18, "<H", 0, "group sizes"),
]
AFTER_GROUPS = [  # offset from num_q, format, value, reason
    (0, "<H", 252, "count"),  # num_q
    (0, "<H", 254, "count"),
    (2, "<H", 0, "count"),  # num_scales
    (2, "<H", 257, "count"),
    (4, "<B", 25, "shift"),
    (5, "<B", 25, "shift"),
    (6, "<B", 25, "shift"),
]
TABLES = [  # offset from num_tables, format, value, reason
    (0, "<I", 4097, "count"),
    (0, "<I", 2**32 - 1, "count"),
    (6, "<H", 0, "table"),  # n of the first table
    (6, "<H", 1025, "table"),
    (8, "<H", 0, "frequency of zero"),
    (8, "<H", 1, "65536"),
]
FIELDS = [
    *((1, *field) for field in COUNTS),
    (1, 18, "<I", 0x00030000, "group sizes"),  # sizes 0 and 3
    *((1, 22 + offset, *field) for offset, *field in AFTER_GROUPS),
    (1, 29, "<B", 8, "shift"),  # z_shift
    (1, 30, "<I", 7, "count"),  # num_tables < 4 * num_scales
    *((1, 30 + offset, *field) for offset, *field in TABLES),
    *((5, *field) for field in COUNTS),
    (5, 18, "<Q", 0x7801_0003_0002_0000, "group sizes"),  # sizes 0 and 3
    (5, 20, "<B", 0, "scan"),  # scans
    (5, 20, "<B", 4, "scan"),
    (5, 24, "<B", 0, "scan"),
    (5, 24, "<B", 255, "scan"),
    (5, 21, "<B", 1, "start"),  # starts
    (5, 25, "<B", 253, "start"),
    *((5, 26 + offset, *field) for offset, *field in AFTER_GROUPS),
    (5, 33, "<I", 1, "count"),  # num_tables < num_scales
    *((5, 33 + offset, *field) for offset, *field in TABLES),
]


@pytest.mark.parametrize(("file_version", "offset", "layout", "value", "reason"), FIELDS)
def test_header_fields_of_a_model_are_checked(
    file_version: int, offset: int, layout: str, value: int, reason: str
) -> None:
    data = bytearray(reference.serialise(small_model(file_version)))
    struct.pack_into(layout, data, offset, value)
    with pytest.raises(ValueError, match=reason):
        _core.EntropyModel(bytes(data))


@pytest.mark.parametrize("starts", [(0, 90, 60), (0, 90, 0), (30, 90, 90)])
def test_starts_of_groups_never_fall(starts: tuple[int, ...]) -> None:
    model = reference.random_model(
        np.random.default_rng(20), 5, group_sizes=(1, 2, 1), group_starts=starts
    )
    with pytest.raises(ValueError, match="start"):
        core_of(model)


@pytest.mark.parametrize("file_version", [1, 5])
def test_the_versions_are_not_mistaken_for_each_other(file_version: int) -> None:
    data = bytearray(reference.serialise(small_model(file_version)))
    data[7] = 6 - file_version
    with pytest.raises(ValueError):
        _core.EntropyModel(bytes(data))


Nets = list[list[Layer]]


def nets_of(model: Model) -> Nets:
    """All networks in the order of the file."""
    first = model.prior.z_passes if isinstance(model.prior, NetworkPrior) else []
    return [*first, model.h_s_z, model.h_s_y, *model.passes]


def with_nets(model: Model, nets: Nets) -> Model:
    prior = model.prior
    if isinstance(prior, NetworkPrior):
        prior, nets = replace(prior, z_passes=nets[:2]), nets[2:]
    return replace(model, prior=prior, h_s_z=nets[0], h_s_y=nets[1], passes=nets[2:])


def check_refused(bad: dict[str, list[Model]]) -> None:
    """Reason -> models that are refused for it."""
    for reason, models in bad.items():
        for malformed in models:
            with pytest.raises(ValueError, match=reason):
                core_of(malformed)


def test_tables_that_s_and_z_name_are_checked() -> None:
    model = small_model(1)
    prior = model.prior
    assert isinstance(prior, TablePrior)
    priors = [
        replace(prior, s_code=[(0, len(model.tables)), (0, 0)]),
        replace(prior, z_code=[(0, 0), (0, 65535)]),
    ]
    check_refused({"table that does not exist": [replace(model, prior=one) for one in priors]})


@pytest.mark.parametrize("field", ["step", "gain"])
def test_every_quantiser_is_checked(version: int, field: str) -> None:
    """One bad entry, the first or the last, in the quantiser of s, z or y."""
    model = small_model(version)
    beyond = 2**24 if field == "step" else 2**20
    all_of_them = quantisers(model)
    for n, quantiser in enumerate(all_of_them):
        for at in (0, -1):
            for value in (0, -5, beyond, -(2**31), 2**31 - 1):
                values = getattr(quantiser, field).copy()
                values.flat[at] = value
                bad = list(all_of_them)
                bad[n] = replace(quantiser, **{field: values})
                check_refused({"step or gain": [with_quantisers(model, bad)]})
            values.flat[at] = beyond - 1
            bad[n] = replace(quantiser, **{field: values})
            core_of(with_quantisers(model, bad))


def ones_layer(cin: int, cout: int, kernel: int = 1) -> Layer:
    weight = np.ones((cout, cin, kernel, kernel), np.int64)
    return Layer(weight, np.zeros(cout, np.int64), 1, 0, 1)


def test_every_network_is_checked(version: int) -> None:
    model = small_model(version)
    nets = nets_of(model)
    assert len(nets) == (6 if version == 1 else 8)  # (2, 2) passes, or 2 and (3, 1)
    for n, net in enumerate(nets):

        def with_net(layers: list[Layer], n: int = n) -> Model:
            return with_nets(model, [*nets[:n], layers, *nets[n + 1 :]])

        first, *rest = net
        cin, cout = first.weight.shape[1], len(net[-1].bias)
        other = len(first.bias)
        check_refused(
            {
                "size, shift or limit": [
                    with_net([layer, *rest])
                    for layer in (
                        replace(first, shift=0),
                        replace(first, shift=25),
                        replace(first, lo=5, hi=4),
                        ones_layer(cin, other, 5),
                        ones_layer(cin, other, 2),
                        ones_layer(cin, 0),
                        ones_layer(0, other),
                        ones_layer(1025, other),
                        ones_layer(cin, 513),
                    )
                ],
                "do not fit": [
                    with_net([ones_layer(cin + 1, other), *rest]),
                    with_net([*net, ones_layer(600, cout)]),
                ],
                "bias": [
                    with_net([replace(first, bias=first.bias * 0 + bias), *rest])
                    for bias in (2**24, -(2**24))
                ],
                "count": [with_net([]), with_net([first] * 9)],
            }
        )
        if net is model.h_s_z:
            continue  # may give any number of channels
        check_refused(
            {"do not fit": [with_net([ones_layer(cin, count)]) for count in (cout - 1, cout + 1)]}
        )
    check_refused(
        {
            "do not fit": [
                replace(model, num_features=model.num_features - 1),
                with_nets(model, [nets[1], nets[0], *nets[2:]]),
                replace(model, passes=[model.passes[1], model.passes[0], *model.passes[2:]]),
            ]
        }
    )


@pytest.mark.parametrize("file_version", [1, 5])
def test_a_model_that_promises_too_much_is_refused_before_it_is_allocated(
    file_version: int,
) -> None:
    """A layer of 512 x 512 x 3 x 3 weights of which the file has none."""
    model = small_model(file_version)
    empty = [[]] * len(nets_of(model))  # two bytes each
    data = reference.serialise(with_nets(model, empty))[: -2 * len(empty)]
    data += struct.pack("<H2H2B2h", 1, 512, 512, 3, 8, 0, 127)  # one layer's header
    with pytest.raises(ValueError, match="too short"):
        _core.EntropyModel(data)


def test_a_large_quantiser_that_is_not_there_is_refused() -> None:
    """Version 5: 512 channels of y of which the file has none, behind those of s and z."""
    model = small_model(5)
    data = reference.serialise(with_nets(model, [[]] * 8))[: -2 * 8 - 253 * 10 * model.num_y]
    data = data[:12] + struct.pack("<4HBB", 512, model.num_features, 1, 512, 2, 0) + data[26:]
    with pytest.raises(ValueError, match="too short"):
        _core.EntropyModel(data)


# -- no float --------------------------------------------------------------------------------------
def probability_sources() -> list[str]:
    """What CMakeLists.txt lists as deciding probabilities."""
    text = (REPOSITORY / "CMakeLists.txt").read_text()
    match = re.search(r"set\(FASDIFF_PROBABILITY_SOURCES([^)]*)\)", text)
    assert match is not None
    return match[1].split()


def compiles_without_float(source: Path, output: Path) -> bool:
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler is not None, "the tests need a C++ compiler"
    command = [compiler, "-std=c++17", "-O2", "-mgeneral-regs-only", "-I", str(REPOSITORY / "csrc")]
    return subprocess.run([*command, "-c", source, "-o", output], check=False).returncode == 0


def test_the_probability_path_is_all_of_the_entropy_sources() -> None:
    names = {Path(source).stem for source in probability_sources()}
    assert {"range_coder", "cdf_table", "integer_net", "entropy_model", "entropy_coder"} <= names
    for source in probability_sources():
        header = (REPOSITORY / source).with_suffix(".h")
        text = (REPOSITORY / source).read_text() + (header.read_text() if header.exists() else "")
        code = re.sub(r"//[^\n]*", "", text)
        assert re.search(r"\b(float|double|cmath|exp|log2?|pow|sqrt)\b", code) is None, source


def test_the_probability_path_compiles_with_general_registers_only(tmp_path: Path) -> None:
    for source in probability_sources():
        assert compiles_without_float(REPOSITORY / source, tmp_path / "out.o"), source


def test_general_registers_only_rejects_floats(tmp_path: Path) -> None:
    """The check above can fail: part_bits.cpp computes logarithms."""
    assert not compiles_without_float(REPOSITORY / "csrc" / "part_bits.cpp", tmp_path / "out.o")
