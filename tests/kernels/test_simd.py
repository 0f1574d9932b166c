"""SIMD vectors in Numba do what NumPy does, for any number of lanes."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from gatv2.random import philox_4x32_10

simd = pytest.importorskip("gatv2.numba.simd", reason="needs Numba")

from gatv2.numba.arguments import Block, Buffers, Dropout, Place, Strip  # noqa: E402
from gatv2.numba.compile import kernel  # noqa: E402
from gatv2.numba.exp import exp  # noqa: E402
from gatv2.numba.log import log  # noqa: E402
from gatv2.numba.philox import LANES, keep_factors  # noqa: E402
from gatv2.numba.simd import (  # noqa: E402
    bits_of,
    broadcast_each,
    count_bits,
    expand,
    fma,
    fold,
    group_sum,
    has_nan,
    load,
    load_bits,
    load_mask,
    lowest_bit,
    repeat,
    select,
    splat,
    store,
    store_bits,
    turn,
)
from gatv2.numba.threads import first_row  # noqa: E402
from gatv2.numba.vectors import Vectors  # noqa: E402


@pytest.fixture(params=[np.float32, np.float64])
def scalar(request: pytest.FixtureRequest) -> Any:
    """Both floating-point types in turn."""
    return request.param


@kernel
def _lanes(vectors: Any, x: Any, bits: Any, out: Any) -> None:
    wide, heads = vectors.wide, vectors.heads
    n, g = wide.lanes, heads.lanes
    v = load(wide, x, 0)
    sums = group_sum(heads, v)
    store(out, 0, fma(v, splat(wide, 2.0), v / splat(wide, 4.0) - v))
    store(out, n, expand(wide, sums))
    store(out, 2 * n, repeat(wide, load(heads, x, 0)))
    store_bits(bits, 0, v > splat(wide, 0.0))
    store(out, 3 * n, select(load_bits(wide, bits, 0), v, splat(v, -1.0)))
    store(out, 4 * n, sums)
    store(out, 4 * n + g, fold(heads, v))
    store(out, 4 * n + 2 * g, broadcast_each(wide, heads, x, 0, g))


@pytest.mark.parametrize(("lanes", "groups"), [(1, 1), (4, 1), (16, 4), (32, 32), (64, 8)])
def test_lanes(scalar: Any, lanes: int, groups: int) -> None:
    x = np.random.default_rng(0).normal(size=lanes).astype(scalar)
    out, bits = np.full(5 * lanes + 2 * groups, np.nan, scalar), np.zeros(8, np.uint8)
    _lanes(Vectors(wide=(scalar, lanes), heads=(scalar, groups)), x, bits, out)
    elementwise, expanded, tiled, selected = out[: 4 * lanes].reshape(4, lanes)
    sums = x.reshape(groups, -1).sum(1)
    eps = np.finfo(scalar).eps
    np.testing.assert_allclose(elementwise, 2 * x + (x / 4 - x), rtol=8 * eps, atol=8 * eps)
    np.testing.assert_allclose(expanded, sums.repeat(lanes // groups), atol=64 * eps)
    np.testing.assert_array_equal(tiled, np.tile(x[:groups], lanes // groups))
    np.testing.assert_array_equal(selected, np.where(x > 0, x, -1))
    np.testing.assert_allclose(out[4 * lanes :][:groups], sums, atol=64 * eps)
    folded = x.reshape(-1, groups).sum(0)
    np.testing.assert_allclose(out[4 * lanes + groups :][:groups], folded, atol=64 * eps)
    np.testing.assert_array_equal(out[4 * lanes + 2 * groups :], x[::groups].repeat(groups))
    assert [bool(bits[i // 8] >> i % 8 & 1) for i in range(lanes)] == (x > 0).tolist()


@kernel
def _turn(vectors: Any, x: Any, n_columns: Any, at: Any, out: Any, n_rows: Any, to: Any) -> None:
    turn(vectors.wide, x, at, n_columns, out, to, n_rows)


@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
def test_turn(scalar: Any, lanes: int) -> None:
    x = np.random.default_rng(0).normal(size=(lanes + 3, lanes + 5)).astype(scalar)
    out = np.zeros((lanes + 2, lanes + 7), scalar)
    vectors, (i, j) = Vectors(wide=(scalar, lanes)), (2, 3)
    _turn(vectors, x.ravel(), x.shape[1], i * x.shape[1] + j, out.ravel(), out.shape[1], 1)
    expected = np.zeros_like(out)
    expected[:lanes, 1 : lanes + 1] = x[i:, j:][:lanes, :lanes].T
    np.testing.assert_array_equal(out, expected)


@kernel
def _exp(vectors: Any, x: Any, out: Any) -> None:
    for at in range(0, x.size, vectors.wide.lanes):
        store(out, at, exp(load(vectors.wide, x, at)))


def test_exp(scalar: Any) -> None:
    lowest = {np.float32: -87.0, np.float64: -707.0}[scalar]
    x = np.linspace(lowest, 1.0, 1 << 16).astype(scalar)
    x[-8:] = 0.0, -0.0, 1e-30, -np.inf, np.nan, -1e30, lowest, -1.0
    out = np.empty_like(x)
    _exp(Vectors(wide=(scalar, 16)), x, out)
    exact = np.exp(x.astype(np.longdouble))
    normal = exact > np.finfo(scalar).tiny
    error = np.abs(out[normal] - exact[normal]) / exact[normal]
    assert error.max() < 2 * np.finfo(scalar).eps
    assert (out[x == 0] == 1).all()
    assert (out[x < 2 * lowest] == 0).all()
    assert np.isnan(out[np.isnan(x)]).all()


@kernel
def _log(vectors: Any, x: Any, out: Any) -> None:
    for at in range(0, x.size, vectors.wide.lanes):
        store(out, at, log(load(vectors.wide, x, at)))


def test_log(scalar: Any) -> None:
    x = np.geomspace(1e-30, 1e30, 1 << 15).astype(scalar)
    x = np.concatenate((x, np.linspace(0.5, 4.0, 1 << 15).astype(scalar)))
    x[:4] = 1.0, 2.0, np.nextafter(scalar(1), scalar(2)), np.nan
    out = np.empty_like(x)
    _log(Vectors(wide=(scalar, 16)), x, out)
    exact = np.log(x.astype(np.longdouble))
    scale = np.maximum(np.abs(exact), 1e-6)
    error = np.abs(out[4:] - exact[4:]) / scale[4:]
    assert error.max() < 2 * np.finfo(scalar).eps
    assert out[0] == 0
    np.testing.assert_allclose(out[1:3], np.log(x[1:3]), rtol=2 * np.finfo(scalar).eps)
    assert np.isnan(out[3])


@kernel
def _mask(vectors: Any, flags: Any, out: Any) -> None:
    bits = bits_of(load_mask(vectors.word, flags, 0))
    out[0] = count_bits(bits)
    n = 1
    while bits != 0:
        out[n] = lowest_bit(bits)
        bits &= bits - np.uint64(1)
        n += 1


@kernel
def _has_nan(vectors: Any, x: Any, out: Any) -> None:
    out[0] = has_nan(load(vectors.wide, x, 0))


def test_nan_in_any_lane(scalar: Any) -> None:
    vectors, out = Vectors(wide=(scalar, 16)), np.zeros(1, bool)
    x = np.array([np.inf, -np.inf, 0.0, -0.0] * 4, scalar)
    _has_nan(vectors, x, out)
    assert not out[0]
    for lane in range(16):
        one = x.copy()
        one[lane] = np.nan
        _has_nan(vectors, one, out)
        assert out[0]


def test_mask_as_integer() -> None:
    flags, out = np.random.default_rng(0).random(64) < 0.4, np.full(65, -1)
    flags[[0, 63]] = True
    _mask(Vectors(word=(np.uint32, 64)), flags, out)
    assert out[: out[0] + 1].tolist() == [flags.sum(), *flags.nonzero()[0]]


@kernel
def _philox(vectors: Any, keys: Any, counters: Any, keep: Any) -> None:
    dropout = Dropout(0x80000000, 2.0, 0xA4093822, 0x299F31D0)
    place = Place(
        row=0,
        start=0,
        stop=1,
        first_key=0,
        first_edge=0,
        first_x=0,
        drop_query=0x243F6A88,
        drop_key=0,
        drop_word=0x03707344,
    )
    buffers = Buffers(keep, keep, keep, counters)
    strip, block = Strip(place, 0, 0, 1, 0, 1), Block(0, 0, 1, 0)
    keep_factors(vectors.words, dropout, strip, None, None, keys, block, 4, buffers)


def test_philox_gives_the_words_of_the_reference() -> None:
    counters, keep = np.zeros(3 * (1 + LANES) + 4 * LANES, np.uint32), np.zeros(4)
    _philox(Vectors(words=(np.uint32, LANES)), np.array([0x05A308D3]), counters, keep)
    counter = [torch.tensor(word) for word in (0x243F6A88, 0x05A308D3, 0, 0x03707344)]
    seed = (torch.tensor(0xA4093822), torch.tensor(0x299F31D0))
    expected = [int(word) for word in philox_4x32_10(tuple(counter), seed)]  # type: ignore[arg-type]
    assert counters[-4 * LANES :: LANES].tolist() == expected
    assert keep.tolist() == [2.0 if word >= 0x80000000 else 0.0 for word in expected]


@kernel
def _first_row(ptr: Any, chunk: Any, n_chunks: Any) -> Any:
    return first_row(ptr, chunk, n_chunks)


@pytest.mark.parametrize("n_chunks", [1, 2, 5, 64])
@pytest.mark.parametrize(
    "counts", [[], [0, 0, 0], [3], [1] * 100, [0, 500, *[0] * 30, 2], [1000, *[1] * 50]], ids=len
)
def test_chunks_are_a_partition(counts: list[int], n_chunks: int) -> None:
    ptr = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    starts = [_first_row(ptr, chunk, n_chunks) for chunk in range(n_chunks + 1)]
    assert starts[0] == 0
    assert starts[-1] == len(counts)
    assert starts == sorted(starts)
    largest = max(counts, default=0) + 1
    for begin, end in pairwise(starts):
        work = ptr[end] - ptr[begin] + end - begin
        assert work <= (ptr[-1] + len(counts)) / n_chunks + largest
