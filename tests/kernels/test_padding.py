"""Rows are padded and cut as NumPy would do it, whatever their sizes, and on any number of threads."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")
from gatv2.numba.memory import Array
from gatv2.numba.padding import reshaped

SIZES = st.integers(0, 40)


def expected_of(rows: Array, n_heads: int, n_features: int, filling: float) -> Array:
    """What `reshaped` is to give, by slices."""
    result = np.full((*rows.shape[:-2], n_heads, n_features), filling, rows.dtype)
    some = np.s_[..., : rows.shape[-2], : rows.shape[-1]]
    result[some] = rows[..., :n_heads, :n_features]
    return result


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 5), SIZES, SIZES),
    n_heads=SIZES,
    n_features=SIZES,
    filling=st.sampled_from([0.0, np.inf]),
    dtype=st.sampled_from(["float32", "float64", "bool"]),
)
def test_reshaped_as_by_slices(
    shape: tuple[int, ...], n_heads: int, n_features: int, filling: float, dtype: str
) -> None:
    filling = 0.0 if dtype == "bool" else filling
    rows = np.random.default_rng(0).normal(size=shape).astype(dtype)
    actual = reshaped(rows, n_heads, n_features, filling=filling, n_threads=1)
    assert actual.dtype == rows.dtype
    np.testing.assert_array_equal(actual, expected_of(rows, n_heads, n_features, filling))


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize(("given_shape", "shape"), [((3, 5), (4, 8)), ((4, 8), (3, 5))])
def test_chunks_keep_to_their_own_rows(
    given_shape: tuple[int, int], shape: tuple[int, int], n_threads: int
) -> None:
    rows = np.random.default_rng(0).normal(size=(30_000, *given_shape)).astype("float32")
    actual = reshaped(rows, *shape, n_threads=n_threads)
    np.testing.assert_array_equal(actual, expected_of(rows, *shape, 0.0))


@pytest.mark.parametrize(("n_rows", "is_written"), [(6, True), (5, False)])
def test_written_to_memory_that_fits(n_rows: int, is_written: bool) -> None:
    rows, memory = np.ones((6, 4, 8), "float32"), np.zeros((n_rows, 3, 5), "float32")
    actual: Any = reshaped(rows, 3, 5, memory=memory, n_threads=1)
    assert np.may_share_memory(actual, memory) == is_written
    np.testing.assert_array_equal(actual, 1.0)
    np.testing.assert_array_equal(memory, float(is_written))


def test_nothing_is_written_around_the_result() -> None:
    rows, memory = np.ones((50, 4, 8), "float32"), np.zeros(50 * 15 + 40, "float32")
    inner = memory[20:-20]
    reshaped(rows, 3, 5, memory=inner, n_threads=1)
    np.testing.assert_array_equal(inner, 1.0)
    assert not memory[:20].any()
    assert not memory[-20:].any()
