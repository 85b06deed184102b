"""The C++ range coder and CDF tables against the big-integer reference, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from reference import Table

from fasdiff_edge import _core

FLAT = Table(-8, (4096,) * 15 + (4096,))
SKEWED = Table(0, (65533, 1, 1, 1))
TOP_HEAVY = Table(0, (1, 1, 65533, 1))
PEAKED = Table(-2, (100, 1000, 60000, 4000, 436))
TABLES = [FLAT, SKEWED, TOP_HEAVY, PEAKED]


def core_model(tables: list[Table]) -> _core.EntropyModel:
    return _core.EntropyModel(reference.serialise(reference.table_model(tables)))


def reference_payload(symbols: np.ndarray, indexes: np.ndarray, tables: list[Table]) -> bytes:
    coder = reference.RangeEncoder()
    for symbol, index in zip(symbols.tolist(), indexes.tolist(), strict=True):
        reference.encode_value(coder, tables[index], symbol)
    return coder.finish()


def check(symbols: np.ndarray, indexes: np.ndarray, tables: list[Table]) -> bytes:
    """Encodes with both, compares, decodes with both, compares; returns the payload."""
    model = core_model(tables)
    symbols, indexes = symbols.astype(np.int32), indexes.astype(np.uint16)
    payload = _core.range_encode(symbols, indexes, model)
    assert payload == reference_payload(symbols, indexes, tables)
    np.testing.assert_array_equal(_core.range_decode(payload, indexes, model), symbols)
    coder = reference.RangeDecoder(payload)
    decoded = [reference.decode_value(coder, tables[i]) for i in indexes.tolist()]
    assert decoded == symbols.tolist()
    return payload


def sample(rng: np.random.Generator, tables: list[Table], indexes: np.ndarray) -> np.ndarray:
    """Symbols drawn from their tables; an escape becomes a value just outside."""
    symbols = []
    for index in indexes.tolist():
        table = tables[index]
        i = rng.choice(table.count + 1, p=np.array(table.frequencies) / 65536)
        symbols.append(table.offset + int(i))
    return np.clip(symbols, -32768, 32767)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10, 100, 1500])
@pytest.mark.parametrize("seed", range(3))
def test_random_tables_equal_reference(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = [reference.random_table(rng, int(rng.integers(1, 60))) for _ in range(6)]
    tables.append(reference.random_table(rng, 1024))
    indexes = rng.integers(0, len(tables), length)
    check(sample(rng, tables, indexes), indexes, tables)


@pytest.mark.parametrize("length", [1, 50])
def test_uniform_symbols_escape_and_come_back(length: int) -> None:
    rng = np.random.default_rng(length)
    check(rng.integers(-32768, 32768, length), rng.integers(0, 4, length), TABLES)


def test_every_escape_near_a_table_comes_back() -> None:
    symbols = np.arange(-400, 401)
    check(symbols, np.full(len(symbols), 3), TABLES)


def test_the_farthest_escapes_come_back() -> None:
    tables = [Table(-32768, (1, 65535)), Table(32767, (1, 65535)), PEAKED, FLAT]
    symbols = np.array([-32768, 32767, -32768, 32767, -32768, 32767])
    check(symbols, np.array([0, 0, 1, 1, 2, 2]), tables)


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("count", [1, 2, 5, 300, 3000])
def test_constant_runs(first: int, count: int) -> None:
    """Rows of the smallest and the largest interval: trailing zeros and long carries."""
    symbols = np.full(count, TABLES[first].offset)
    check(symbols, np.full(count, first), TABLES)
    check(symbols + TABLES[first].count - 1, np.full(count, first), TABLES)


def carried(symbols: np.ndarray, table: Table) -> int:
    """How many symbols changed bytes that were already shifted out."""
    coder = reference.RangeEncoder()
    count = 0
    for symbol in symbols.tolist():
        settled, shifted = coder.low >> 48, coder.shifted
        reference.encode_value(coder, table, symbol)
        count += coder.low >> (48 + 8 * (coder.shifted - shifted)) != settled
    return count


def test_carries_run_through_bytes_already_written() -> None:
    rng = np.random.default_rng(0)
    thirds = Table(0, (21845, 21845, 21845, 1))
    total = 0
    for weights in ((1, 1, 1), (1, 2, 20), (0, 1, 300)):
        for _ in range(10):
            symbols = rng.choice(3, 400, p=np.array(weights) / sum(weights))
            total += carried(symbols, thirds)
            check(symbols, np.zeros(400, int), [thirds] * 4)
    assert total > 100


@pytest.mark.parametrize("tail", [0, 1, 40])
def test_the_smallest_range_shifts_three_bytes(tail: int) -> None:
    """A range just above 2^40 and then a frequency of one: 2^24, the least that there can be."""
    # Three frequencies whose product is in (2^40, 2^40 + 2^16).
    first, second, third = next(
        (a, b, c)
        for a in range(9000, 11000)
        for b in range(9000, 11000)
        for c in [(1 << 40) // (a * b) + 1]
        if a * b * c < (1 << 40) + (1 << 16)
    )
    tables = [Table(0, (f, 65535 - f, 1)) for f in (first, second, third)]
    tables.append(Table(0, (30000, 1, 35535)))
    coder = reference.RangeEncoder()
    for table in tables[:3]:
        reference.encode_value(coder, table, 0)
    assert 1 << 40 < coder.range < (1 << 40) + (1 << 16)
    shifted = coder.shifted
    reference.encode_value(coder, tables[3], 1)
    assert coder.shifted == shifted + 3
    symbols = np.array([0, 0, 0, 1] + [1, 0] * tail)
    check(symbols, np.array([0, 1, 2, 3] + [3, 3] * tail), tables)


def test_golden_payloads() -> None:
    """Literal bytes: a change of these is a change of the format."""
    indexes = np.array([0, 0, 3, 3, 3, 1, 2, 0], np.uint16)
    symbols = np.array([-8, 6, 0, 1, -1, 0, 2, 100], np.int32)
    assert check(symbols, indexes, TABLES).hex() == "0edf08b65e"
    assert check(np.array([-32768, 32767]), np.array([0, 3]), TABLES).hex() == "f0001ffe1fc9806cfe"
    assert check(np.array([], int), np.array([], int), TABLES) == b""
    assert check(np.full(1000, 0), np.full(1000, 1), TABLES) == b""


@pytest.mark.parametrize("index", range(4))
def test_size_is_near_the_entropy(index: int) -> None:
    rng = np.random.default_rng(index)
    indexes = np.full(20000, index)
    symbols = sample(rng, TABLES, indexes)
    bits = sum(reference.value_bits(TABLES[index], int(v)) for v in symbols)
    model = core_model(TABLES)
    payload = _core.range_encode(symbols.astype(np.int32), indexes.astype(np.uint16), model)
    assert len(payload) <= bits / 8 * 1.002 + 2
    assert len(payload) >= bits / 8 - 4


def test_mixed_size_is_near_the_entropy() -> None:
    rng = np.random.default_rng(9)
    tables = [reference.random_table(rng, 30) for _ in range(8)]
    for length in (1, 10, 100, 1000):
        indexes = rng.integers(0, 8, length)
        symbols = sample(rng, tables, indexes)
        bits = sum(
            reference.value_bits(tables[i], v)
            for i, v in zip(indexes.tolist(), symbols.tolist(), strict=True)
        )
        payload = check(symbols, indexes, tables)
        assert len(payload) <= bits / 8 * 1.002 + 2


def coded(length: int = 300) -> tuple[bytes, np.ndarray, np.ndarray, _core.EntropyModel]:
    rng = np.random.default_rng(5)
    indexes = np.zeros(length, np.uint16)
    symbols = sample(rng, TABLES, indexes).astype(np.int32)
    model = core_model(TABLES)
    return _core.range_encode(symbols, indexes, model), symbols, indexes, model


def test_every_truncation_fails_or_changes_the_end_only() -> None:
    payload, symbols, indexes, model = coded()
    failed = 0
    for size in range(len(payload)):
        try:
            decoded = _core.range_decode(payload[:size], indexes, model)
        except _core.StreamError:
            failed += 1
            continue
        same = decoded == symbols
        assert not same.all()
        # At most five bits a symbol: what the bytes that are there say is right.
        assert same[: 8 * size // 5].all()
    assert failed > len(payload) - 10


@pytest.mark.parametrize("extra", [b"\0\0\0\0", b"\1\2\3\4", b"\xff" * 100])
def test_bytes_after_the_end_are_refused(extra: bytes) -> None:
    payload, _, indexes, model = coded()
    with pytest.raises(_core.StreamError, match="bytes are left"):
        _core.range_decode(payload + extra, indexes, model)


def test_an_empty_payload_of_many_symbols_is_truncated() -> None:
    _, _, indexes, model = coded()
    with pytest.raises(_core.StreamError, match="ends before"):
        _core.range_decode(b"", indexes, model)


def test_a_payload_that_no_encoder_writes_is_refused() -> None:
    """65536 units fall short of a range that is no multiple of 65536; nothing lies in the gap."""
    table = Table(0, (21845, 21845, 21846))
    coder = reference.RangeEncoder()
    for _ in range(3):
        coder.encode(0, 21845)
    assert coder.range % 65536 > 0
    payload = (coder.low + coder.range - 1).to_bytes(coder.shifted + 6, "big")
    with pytest.raises(_core.StreamError, match="outside every symbol's interval"):
        _core.range_decode(payload, np.zeros(9, np.uint16), core_model([table] * 4))


def test_an_endless_escape_is_refused() -> None:
    model = core_model([Table(0, (1, 65535))] * 4)
    coder = reference.RangeEncoder()
    coder.encode(1, 65535)
    for _ in range(19):
        coder.encode(0, 32768)
    coder.encode(32768, 32768)
    with pytest.raises(_core.StreamError, match="escape"):
        _core.range_decode(coder.finish(), np.zeros(1, np.uint16), model)


def test_an_escape_beyond_16_bits_is_refused() -> None:
    model = core_model([Table(32000, (1, 65535))] * 4)
    coder = reference.RangeEncoder()
    reference.encode_value(coder, Table(32000, (1, 65535)), 32768)
    with pytest.raises(_core.StreamError, match="symbol is outside"):
        _core.range_decode(coder.finish(), np.zeros(1, np.uint16), model)


def test_random_bytes_never_do_harm() -> None:
    rng = np.random.default_rng(11)
    model = core_model(TABLES)
    outcomes = set()
    for _ in range(500):
        indexes = rng.integers(0, 4, int(rng.integers(0, 60))).astype(np.uint16)
        payload = rng.bytes(int(rng.integers(0, 40)))
        try:
            symbols = _core.range_decode(payload, indexes, model)
            again = _core.range_encode(symbols, indexes, model)
            np.testing.assert_array_equal(_core.range_decode(again, indexes, model), symbols)
            outcomes.add("decoded")
        except _core.StreamError as error:
            outcomes.add(str(error))
    assert len(outcomes) >= 3


@pytest.mark.parametrize(
    ("symbols", "indexes", "reason"),
    [
        (np.zeros(3, np.int64), np.zeros(3, np.uint16), "symbols must be"),
        (np.zeros(3, np.int32), np.zeros(3, np.int32), "table_indexes must be"),
        (np.zeros(3, np.int32), np.zeros(2, np.uint16), "table_indexes must be"),
        (np.zeros((3, 1), np.int32), np.zeros(3, np.uint16), "symbols must be"),
        (np.zeros(3, np.int32), np.full(3, 4, np.uint16), "table index"),
        (np.full(3, 32768, np.int32), np.zeros(3, np.uint16), "outside -32768..32767"),
        (np.full(3, -32769, np.int32), np.zeros(3, np.uint16), "outside -32768..32767"),
    ],
)
def test_arguments_are_checked(symbols: np.ndarray, indexes: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        _core.range_encode(symbols, indexes, core_model(TABLES))
    assert not isinstance(caught.value, _core.StreamError)


def test_decode_refuses_a_table_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="table index"):
        _core.range_decode(b"", np.full(3, 4, np.uint16), core_model(TABLES))
