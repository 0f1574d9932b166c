"""Half precision is computed in float32 and rounded once, of a hub with thousands of edges.

What the laws of all kernels do not ask: the static control, scores, and forward mode of plain JAX.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from rounding import assert_rounded_once

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")

H, F, DEGREE = 2, 4, 3000
GIVEN = ["float16", "bfloat16"]


@pytest.fixture(autouse=True)
def _64_bits() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["sparse", "dense"])
def backend(request: pytest.FixtureRequest) -> Any:
    """Both backends in turn."""
    return request.param


def inputs(n_vectors: int, given: str, dtype: str) -> list[Any]:
    """Query, keys and vectors of heads, rounded; of one sign, so that nothing cancels."""
    rng = np.random.default_rng(0)
    shapes = ((1, H, F), (DEGREE, H, F), *((H, F),) * n_vectors)
    return [jnp.asarray(rng.random(shape), given).astype(dtype) for shape in shapes]


def star(backend: str) -> Any:
    """A query that attends to every key."""
    mask = np.ones((1, DEGREE, 1), bool)
    return mask if backend == "dense" else gat.Graph.from_mask(mask)


def assert_as_rounded(function: Callable[..., Any], n_vectors: int, given: str) -> None:
    """Assert that results in half precision are those in float64, rounded."""
    run = jax.jit(function)
    actual, exact = (run(*inputs(n_vectors, given, dtype)) for dtype in (given, "float64"))
    for a, e in zip(actual, exact, strict=True):
        assert a.dtype == given
        assert_rounded_once(gat.as_torch(a), gat.as_torch(e))


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_off_or_of_another_dtype_is_rejected(given: str) -> None:
    def off(query: Any, *_: Any) -> Any:
        return (query * (1 if query.dtype == "float64" else 1.1),)

    def wide(query: Any, *_: Any) -> Any:
        return (query.astype("float32"),)

    for function in (off, wide):
        with pytest.raises(AssertionError):
            assert_as_rounded(function, 1, given)


def with_gradients(function: Callable[..., Any], *features: Any) -> Any:
    """Results, and the gradients of random cotangents of theirs."""
    results, pullback = jax.vjp(function, *features)
    rng = np.random.default_rng(1)
    cotangents = [jnp.asarray(rng.random(x.shape), "bfloat16").astype(x.dtype) for x in results]
    return *results, *pullback(tuple(cotangents))


@pytest.mark.parametrize("given", GIVEN)
def test_of_the_static_control(backend: Any, given: str) -> None:
    attend = partial(gat.gat_attention, graph=star(backend), return_attention=True)
    assert_as_rounded(partial(with_gradients, attend), 2, given)


@pytest.mark.parametrize("given", GIVEN)
def test_of_scores(backend: Any, given: str) -> None:
    for function, n_vectors in ((gat.gatv2_scores, 1), (gat.gat_scores, 2)):

        def scores(*features: Any, function: Any = function) -> Any:
            return (function(*features, star(backend)),)

        assert_as_rounded(partial(with_gradients, scores), n_vectors, given)


@pytest.mark.parametrize("given", GIVEN)
def test_of_forward_mode(backend: Any, given: str) -> None:
    def along(*features: Any) -> Any:
        def attend(*features: Any) -> Any:
            return gat.gatv2_attention(
                *features, star(backend), kernel="jax", return_attention=True
            )

        return jax.jvp(attend, features, features)[1]

    assert_as_rounded(along, 1, given)
