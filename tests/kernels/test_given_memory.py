"""Results are written to memory that the caller has, where a kernel can write to it as it is."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")
from gatv2.dense import numba_kernel as dense
from gatv2.numba.call import ArrayArguments, ArrayCotangents
from gatv2.numba.memory import Array
from gatv2.sparse import numba_kernel as sparse

N_QUERIES, N_KEYS, N_EDGE_FEATURES = 20, 30, 3
KERNELS = {"dense": dense, "sparse": sparse}


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Any:
    """Both backends in turn."""
    return KERNELS[request.param]


def call_of(kernels: ModuleType, n_heads: int, n_hidden: int, dtype: Any) -> ArrayArguments:
    """Attention with edge features and a bias, of which every gradient is wanted."""
    rng = np.random.default_rng(0)
    mask = rng.random((N_QUERIES, N_KEYS, 1)) < 0.3
    queries, keys, _ = np.nonzero(mask)

    def normal(*shape: int) -> Array:
        return rng.normal(size=shape).astype(dtype)

    of_edges = (N_QUERIES, N_KEYS) if kernels is dense else (keys.size,)
    graph: Any = dense.Adjacency(mask)
    if kernels is sparse:
        pointers = np.searchsorted(queries, np.arange(N_QUERIES + 1)).astype(np.int32)
        edge_id = np.arange(keys.size, dtype=np.int32)
        graph = sparse.Adjacency(pointers, keys.astype(np.int32), edge_id=edge_id)
    return ArrayArguments(
        normal(N_QUERIES, n_heads, n_hidden),
        normal(N_KEYS, n_heads, n_hidden),
        normal(n_heads, n_hidden),
        normal(*of_edges, N_EDGE_FEATURES),
        normal(n_heads, n_hidden, N_EDGE_FEATURES),
        graph,
        seed=5,
        n_blocks=1,
        n_mapped=0,
        negative_slope=0.2,
        dropout=0.3,
        wants_rows=True,
        n_threads=2,
        score_bias=normal(*of_edges, n_heads),
        wants_bias_rows=True,
    )


def run(kernels: ModuleType, call: ArrayArguments, direction: str) -> tuple[Array, ...]:
    """The results of a pass; the gradients are of a function of all that forward returns."""
    plan = kernels.Plan(call)
    out, lse, alpha = plan.forward(call._replace(memory=(None,) * 6))
    if direction == "forward":
        results: tuple[Array, ...] = plan.forward(call)
        return results
    d_lse = np.where(np.isfinite(lse), np.float64(0.5), 0).astype(lse.dtype)
    gradients: tuple[Array, ...] = plan.backward(ArrayCotangents(out, d_lse, alpha, lse), call)
    return gradients


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("n_heads", "n_hidden", "dtype"), [(4, 4, "float32"), (3, 3, "float32"), (4, 4, "float64")]
)
def test_same_results_in_given_memory(
    kernels: Any, direction: str, n_heads: int, n_hidden: int, dtype: str
) -> None:
    call = call_of(kernels, n_heads, n_hidden, dtype)
    expected = run(kernels, call, direction)
    given = [np.full_like(x, np.nan) for x in expected]
    memory = (*given, *(None,) * (6 - len(given)))
    actual = run(kernels, call._replace(memory=memory), direction)
    for a, e in zip(actual, expected, strict=True):
        assert np.array_equal(a, e)
        assert not np.isnan(a).any()
    # large ones, `out` and the gradients of query, key and the bias, are not copied once more
    for i in (0,) if direction == "forward" else (0, 1, 5):
        assert np.may_share_memory(actual[i], given[i])


def test_memory_of_another_precision_is_left_alone(kernels: Any) -> None:
    call = call_of(kernels, 8, 8, "float32")
    given = np.full((N_QUERIES, 8, 8), np.nan)
    out, *_ = run(kernels, call._replace(memory=(given, *(None,) * 5)), "forward")
    assert not np.may_share_memory(out, given)
    assert np.isnan(given).all()


@pytest.mark.parametrize("is_in_blocks", [False, True])
def test_gradients_in_the_memory_of_their_features(
    kernels: Any, is_in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_in_blocks:  # of some edges of a mask: keys are read again by the next one
        monkeypatch.setattr(dense, "_BLOCK", 200)
    call = call_of(kernels, 4, 4, "float32")
    expected = run(kernels, call, "backward")
    memory = call.query.copy(), call.key.copy()
    own = call._replace(query=memory[0], key=memory[1], memory=(*memory, *(None,) * 4))
    actual = run(kernels, own, "backward")
    for a, e in zip(actual, expected, strict=True):
        assert np.array_equal(a, e)
    reads_again = is_in_blocks and kernels is dense
    assert np.may_share_memory(actual[0], memory[0])
    assert np.may_share_memory(actual[1], memory[1]) == (not reads_again)
