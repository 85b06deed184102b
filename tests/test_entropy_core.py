"""The C++ integer entropy model against the reference; malformed models; no float anywhere."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
from reference import Layer, Model, Table

from fasdiff_edge import _core

REPOSITORY = Path(__file__).resolve().parent.parent

SHAPES = [
    {},
    {"num_s": 0, "num_z": 1, "num_features": 1, "group_sizes": (1,), "num_scales": 1},
    {"num_s": 17, "num_z": 9, "num_features": 17, "group_sizes": (1, 8, 2, 3), "num_scales": 40},
    {"group_sizes": (4, 4, 4), "last_kernel": 3},
]
LATENT_SIZES = [(1, 1), (1, 5), (4, 1), (2, 3), (5, 8), (9, 4)]


def model_and_core(seed: int, **shape: object) -> tuple[Model, _core.EntropyModel]:
    model = reference.random_model(np.random.default_rng(seed), **shape)
    return model, _core.EntropyModel(reference.serialise(model))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("hy", "wy"), LATENT_SIZES)
def test_indexes_and_payload_equal_reference(shape: dict[str, object], hy: int, wy: int) -> None:
    seed = 100 * hy + wy
    model, core = model_and_core(seed, **shape)
    rng = np.random.default_rng(seed)
    for q, spread in ((0, 0.5), (127, 4.0), (252, 60.0)):
        s, z, y = reference.random_latents(rng, model, hy, wy, spread)
        base, table = core.indexes(z, y, q)
        assert (base.dtype, table.dtype) == (np.int32, np.uint16)
        expected_base, expected_table = reference.indexes(model, z, y, q)
        np.testing.assert_array_equal(base, expected_base)
        np.testing.assert_array_equal(table, expected_table)

        payload = core.encode(s, z, y, q)
        assert payload == reference.encode_latents(model, s, z, y, q)
        for decoded, symbols in zip(core.decode(payload, q, hy, wy), (s, z, y), strict=True):
            assert decoded.dtype == np.int32
            np.testing.assert_array_equal(decoded, symbols)
        for decoded, symbols in zip(
            reference.decode_latents(model, payload, q, hy, wy), (s, z, y), strict=True
        ):
            np.testing.assert_array_equal(decoded, symbols)


def test_the_comparison_covers_many_tables_and_bases() -> None:
    """Otherwise equality with the reference would prove little."""
    model, core = model_and_core(0)
    rng = np.random.default_rng(0)
    tables, bases = set(), set()
    for q in (0, 127, 252):
        _, z, y = reference.random_latents(rng, model, 12, 12)
        base, table = core.indexes(z, y, q)
        tables |= set(table.ravel().tolist())
        bases |= set(base.ravel().tolist())
    assert len(tables) > 40
    assert len(bases) > 20


@pytest.mark.parametrize("shape", SHAPES)
def test_part_bits_equal_reference_and_the_payload(shape: dict[str, object]) -> None:
    model, core = model_and_core(3, **shape)
    s, z, y = reference.random_latents(np.random.default_rng(3), model, 11, 7)
    bits = core.part_bits(s, z, y, 100)
    assert bits.shape == (2 + 2 * len(model.group_sizes),)
    np.testing.assert_allclose(bits, reference.part_bits(model, s, z, y, 100), rtol=1e-9)
    payload = core.encode(s, z, y, 100)
    assert bits.sum() / 8 - 4 <= len(payload) <= bits.sum() / 8 * 1.002 + 2


def test_properties() -> None:
    model, core = model_and_core(1, num_s=5, num_z=2, group_sizes=(2, 3, 4), num_scales=7)
    assert (core.num_s, core.num_z, core.num_y, core.num_q) == (5, 2, 9, 253)
    assert (core.num_groups, core.group_sizes, core.num_scales) == (3, [2, 3, 4], 7)
    assert core.num_tables == len(model.tables)
    np.testing.assert_array_equal(core.step, model.step)
    np.testing.assert_array_equal(core.gain, model.gain)
    assert core.step.dtype == core.gain.dtype == np.int32
    core.step[:] = 0  # a copy: the model does not change
    np.testing.assert_array_equal(core.step, model.step)


def test_accumulators_at_the_limit() -> None:
    """The largest sums that a model may ask for, in both directions, give what integers give."""
    model, _ = model_and_core(5, num_features=200, group_sizes=(1,))
    rng = np.random.default_rng(5)
    for sign in (1, -1):
        wide = Layer(
            np.full((200, model.nets[1][0].weight.shape[1], 3, 3), 127 * sign, np.int64),
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
        extreme = replace(model, nets=[model.nets[0], [wide], [deep, last], model.nets[3]])
        core = _core.EntropyModel(reference.serialise(extreme))
        _, z, y = reference.random_latents(rng, extreme, 5, 5)
        base, table = core.indexes(z, y, 252)
        expected_base, expected_table = reference.indexes(extreme, z, y, 252)
        np.testing.assert_array_equal(base, expected_base)
        np.testing.assert_array_equal(table, expected_table)


def test_an_accumulator_beyond_the_limit_is_refused() -> None:
    model, _ = model_and_core(5, num_features=200, group_sizes=(1,))
    wide = replace(model.nets[1][0], lo=-9400, hi=9400)  # 200 * 9 * 128 * 9400 > 2^31
    deep = Layer(np.ones((6, 200, 3, 3), np.int64), np.zeros(6, np.int64), 9, 0, 127)
    last = reference.random_layer(np.random.default_rng(0), 6, 2, 1, -900, 900)
    nets = [model.nets[0], [wide], [deep, last], model.nets[3]]
    with pytest.raises(ValueError, match="overflow"):
        _core.EntropyModel(reference.serialise(replace(model, nets=nets)))


# -- damaged and cut payloads ----------------------------------------------------------------------
def test_truncated_ok_keeps_what_the_bytes_determine() -> None:
    model, core = model_and_core(7)
    latents = reference.random_latents(np.random.default_rng(7), model, 8, 8)
    q = 150
    payload = core.encode(*latents, q)
    order = coding_order(model, latents)
    parts = core.part_bits(*latents, q)
    right_before = -1
    for size in range(len(payload) + 1):
        decoded = core.decode(payload[:size], q, 8, 8, truncated_ok=True)
        same = coding_order(model, decoded) == order
        right = len(same) if same.all() else int(np.argmin(same))
        assert right >= right_before, "more bytes never determine fewer symbols"
        right_before = right
        # Whole parts that the bytes cover, with one byte to spare, are there.
        for part in range(len(parts)):
            if 8 * size - 8 > parts[: part + 1].sum():
                assert right >= part_end(model, part, 8, 8)
    assert same.all()


def coding_order(model: Model, latents: tuple[np.ndarray, ...]) -> np.ndarray:
    """All symbols in the order in which they are coded."""
    s, z, y = latents
    parts = [s.ravel(), z.ravel()]
    half = np.add.outer(np.arange(y.shape[1]), np.arange(y.shape[2])) % 2
    first = 0
    for size in model.group_sizes:
        parts += [y[first : first + size, half == h].ravel() for h in (0, 1)]
        first += size
    return np.concatenate(parts)


def part_end(model: Model, part: int, hy: int, wy: int) -> int:
    """How many symbols the parts up to and including `part` have (hy * wy even)."""
    sizes = [model.num_s, model.num_z * -(-hy // 4) * -(-wy // 4)]
    sizes += [size * hy * wy // 2 for size in model.group_sizes for _ in (0, 1)]
    return sum(sizes[: part + 1])


def test_truncated_ok_fills_in_modes_and_means() -> None:
    model, core = model_and_core(8)
    s, z, y = core.decode(b"", 99, 6, 6, truncated_ok=True)

    def mode(code: tuple[int, int]) -> int:
        base, t = code
        table = model.tables[t]
        return base + table.offset + int(np.argmax(table.frequencies[:-1]))

    assert s.tolist() == [mode(code) for code in model.s_code]
    for plane, code in zip(z, model.z_code, strict=True):
        assert (plane == mode(code)).all()
    base, table = reference.indexes(model, z, y, 99)
    np.testing.assert_array_equal(y, base + ((table & 3) + 2) // 4)  # the mean, half up


def test_truncated_ok_changes_nothing_for_a_whole_payload() -> None:
    model, core = model_and_core(9)
    rng = np.random.default_rng(9)
    for hy, wy in LATENT_SIZES:
        latents = reference.random_latents(rng, model, hy, wy)
        payload = core.encode(*latents, 60)
        for decoded, symbols in zip(
            core.decode(payload, 60, hy, wy, truncated_ok=True), latents, strict=True
        ):
            np.testing.assert_array_equal(decoded, symbols)


def test_truncated_ok_still_refuses_other_damage() -> None:
    model, core = model_and_core(9)
    latents = reference.random_latents(np.random.default_rng(9), model, 4, 4)
    payload = core.encode(*latents, 60)
    with pytest.raises(_core.StreamError, match="bytes are left"):
        core.decode(payload + bytes(4), 60, 4, 4, truncated_ok=True)


def test_a_cut_payload_is_refused() -> None:
    """Nearly always: a cut can leave a valid payload of other symbols; the CRC is the guard."""
    model, core = model_and_core(10)
    latents = reference.random_latents(np.random.default_rng(10), model, 16, 16)
    payload = core.encode(*latents, 120)
    refused = 0
    for size in range(len(payload) - 2):
        try:
            decoded = core.decode(payload[:size], 120, 16, 16)
        except _core.StreamError as error:
            refused += "ends before" in str(error)
        else:
            assert any((a != b).any() for a, b in zip(decoded, latents, strict=True))
    assert refused > 0.9 * len(payload)


def test_a_symbol_beyond_16_bits_is_refused() -> None:
    model = reference.table_model([Table(0, (1, 1, 65534))] * 4)
    core = _core.EntropyModel(reference.serialise(model))
    coder = reference.RangeEncoder()
    reference.encode_value(coder, model.tables[0], 32768)
    with pytest.raises(_core.StreamError, match="symbol is outside"):
        core.decode(coder.finish(), 0, 1, 1)


# -- arguments -------------------------------------------------------------------------------------
def test_arguments_are_checked() -> None:
    model, core = model_and_core(11)
    s, z, y = reference.random_latents(np.random.default_rng(11), model, 8, 4)
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
        ((s, z, np.where(y == y[0, 0, 0], 32768, y).astype(np.int32), 0), "outside -32768..32767"),
        ((s, z - 32769, y, 0), "outside -32768..32767"),
        ((s + 40000, z, y, 0), "outside -32768..32767"),
    ]
    for arguments, reason in bad:
        for call in (core.encode, core.part_bits):
            with pytest.raises(ValueError, match=reason):
                call(*arguments)
    with pytest.raises(ValueError, match="outside -32768..32767"):
        core.indexes(z, y + 40000, 0)
    with pytest.raises(ValueError, match="z must be"):
        core.indexes(y, y, 0)


def test_unaligned_arrays_are_refused() -> None:
    model, core = model_and_core(11)
    s, z, y = reference.random_latents(np.random.default_rng(11), model, 8, 4)
    shifted = np.frombuffer(b"-" + y.tobytes(), np.int32, offset=1).reshape(y.shape)
    np.testing.assert_array_equal(shifted, y)
    with pytest.raises(ValueError, match="got unaligned int32"):
        core.encode(s, z, shifted, 0)


@pytest.mark.parametrize(("hy", "wy"), [(0, 4), (4, 0), (-1, 4), (257, 1), (1, 257), (2**40, 1)])
def test_latent_sizes_are_bounded(hy: int, wy: int) -> None:
    _, core = model_and_core(11)
    with pytest.raises(ValueError, match=r"outside 1\.\.256"):
        core.decode(b"", 0, hy, wy)


def test_decode_checks_quality() -> None:
    _, core = model_and_core(11)
    for q in (-1, 253):
        with pytest.raises(ValueError, match="quality"):
            core.decode(b"", q, 1, 1)


def test_encode_refuses_latents_that_are_too_large() -> None:
    model, core = model_and_core(11, num_z=1, group_sizes=(1,))
    y = np.zeros((1, 1, 257), np.int32)
    with pytest.raises(ValueError, match=r"outside 1\.\.256"):
        core.encode(np.zeros(4, np.int32), np.zeros((1, 1, 65), np.int32), y, 0)
    with pytest.raises(ValueError, match=r"outside 1\.\.256"):
        core.encode(np.zeros(4, np.int32), np.zeros((1, 0, 1), np.int32), y[:, :0], 0)


def test_one_model_serves_many_threads() -> None:
    model, core = model_and_core(12)
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
def small_model() -> Model:
    return reference.random_model(
        np.random.default_rng(20), num_s=2, num_z=2, group_sizes=(1, 2), num_scales=2
    )


def test_every_truncation_of_a_model_is_refused() -> None:
    data = reference.serialise(small_model())
    cuts = {*range(200), *range(200, len(data), 97), *range(len(data) - 300, len(data))}
    for size in cuts:
        with pytest.raises(ValueError, match="too short"):
            _core.EntropyModel(data[:size])
    _core.EntropyModel(data)


def test_bytes_after_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="after its last layer"):
        _core.EntropyModel(reference.serialise(small_model()) + b"\0")


HEADER_FIELDS = [  # offset in the file (two groups), format, value, reason
    (0, "<B", ord("X"), "magic"),
    (7, "<B", 2, "magic"),
    (8, "<H", 257, "count"),  # num_s
    (10, "<H", 0, "count"),  # num_z
    (10, "<H", 257, "count"),
    (12, "<H", 0, "count"),  # num_y
    (12, "<H", 513, "count"),
    (12, "<H", 4, "group sizes"),
    (14, "<H", 0, "count"),  # num_features
    (14, "<H", 257, "count"),
    (16, "<H", 0, "count"),  # num_groups
    (16, "<H", 5, "count"),
    (18, "<H", 2, "group sizes"),
    (18, "<I", 0x00030000, "group sizes"),  # sizes 0 and 3
    (22, "<H", 252, "count"),  # num_q
    (22, "<H", 254, "count"),
    (24, "<H", 0, "count"),  # num_scales
    (24, "<H", 257, "count"),
    (26, "<B", 25, "shift"),
    (27, "<B", 25, "shift"),
    (28, "<B", 25, "shift"),
    (29, "<B", 8, "shift"),
    (30, "<I", 7, "count"),  # num_tables < 4 * num_scales
    (30, "<I", 4097, "count"),
    (30, "<I", 2**32 - 1, "count"),
    (36, "<H", 0, "table"),  # n of the first table
    (36, "<H", 1025, "table"),
    (38, "<H", 0, "frequency of zero"),
    (38, "<H", 1, "65536"),
]


@pytest.mark.parametrize(("offset", "layout", "value", "reason"), HEADER_FIELDS)
def test_header_fields_of_a_model_are_checked(
    offset: int, layout: str, value: int, reason: str
) -> None:
    data = bytearray(reference.serialise(small_model()))
    struct.pack_into(layout, data, offset, value)
    with pytest.raises(ValueError, match=reason):
        _core.EntropyModel(bytes(data))


def with_layer(model: Model, net: int, index: int, layer: Layer) -> Model:
    nets = [list(layers) for layers in model.nets]
    nets[net][index] = layer
    return replace(model, nets=nets)


def test_contents_of_a_model_are_checked() -> None:
    model = small_model()
    layer = model.nets[0][0]
    last = model.nets[2][-1]
    ones = np.ones((reference.NUM_Q, 3), np.int64)
    narrow = replace(layer, weight=layer.weight[:, :1])
    bad = {
        "table that does not exist": [
            replace(model, s_code=[(0, len(model.tables)), (0, 0)]),
            replace(model, z_code=[(0, 0), (0, 65535)]),
        ],
        "step or gain": [
            replace(model, step=ones * 0),
            replace(model, step=ones * -5),
            replace(model, step=ones << 24),
            replace(model, gain=ones * 0),
            replace(model, gain=ones << 20),
        ],
        "size, shift or limit": [
            with_layer(model, 0, 0, replace(layer, shift=0)),
            with_layer(model, 0, 0, replace(layer, shift=25)),
            with_layer(model, 0, 0, replace(layer, lo=5, hi=4)),
            with_layer(model, 0, 0, replace(layer, weight=np.ones((2, 2, 5, 5), np.int64))),
            with_layer(model, 0, 0, replace(layer, weight=np.ones((2, 2, 2, 2), np.int64))),
            with_layer(
                model, 0, 0, Layer(np.ones((513, 2, 1, 1)), np.zeros(513, np.int64), 1, 0, 1)
            ),
        ],
        "do not fit": [
            with_layer(model, 0, 0, narrow),
            with_layer(model, 2, len(model.nets[2]) - 1, replace(last, weight=last.weight[:, :-1])),
            replace(model, num_features=model.num_features - 1),
            replace(model, nets=[*model.nets[:2], model.nets[3], *model.nets[3:]]),
        ],
        "bias": [
            with_layer(model, 0, 0, replace(layer, bias=layer.bias + 2**24)),
            with_layer(model, 0, 0, replace(layer, bias=layer.bias - 2**25)),
        ],
        "count": [
            replace(model, nets=[[], *model.nets[1:]]),
            replace(model, nets=[[layer] * 9, *model.nets[1:]]),
        ],
    }
    for reason, models in bad.items():
        for malformed in models:
            with pytest.raises(ValueError, match=reason):
                _core.EntropyModel(reference.serialise(malformed))


def test_a_model_that_promises_too_much_is_refused_before_it_is_allocated() -> None:
    """A layer of 512 x 512 x 3 x 3 weights of which the file has none."""
    model = small_model()
    data = reference.serialise(replace(model, nets=[]))
    data += struct.pack("<H2H2B2h", 1, 512, 512, 3, 8, 0, 127)
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
        text = (REPOSITORY / source).read_text() + (REPOSITORY / source).with_suffix(
            ".h"
        ).read_text()
        code = re.sub(r"//[^\n]*", "", text)
        assert re.search(r"\b(float|double|cmath|exp|log2?|pow|sqrt)\b", code) is None, source


def test_the_probability_path_compiles_with_general_registers_only(tmp_path: Path) -> None:
    for source in probability_sources():
        assert compiles_without_float(REPOSITORY / source, tmp_path / "out.o"), source


def test_general_registers_only_rejects_floats(tmp_path: Path) -> None:
    """The check above can fail: part_bits.cpp computes logarithms."""
    assert not compiles_without_float(REPOSITORY / "csrc" / "part_bits.cpp", tmp_path / "out.o")
