"""Bad indices and NaN in padding: no crash, nothing wraps, nothing leaks, in every kernel alike."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
from gatv2.jax.edge_features import EdgeInputs  # noqa: E402
from gatv2.jax.fused import Options  # noqa: E402
from gatv2.jax.sparse import pallas_kernel  # noqa: E402
from gatv2.jax.sparse.tangent import Features  # noqa: E402

N, M, H, F, D, N_EDGES = 5, 4, 2, 3, 2, 12
N_DRAWN = 200
BAD = (-1, -3, -N, M, N, 10**8, -(10**8), 2**31 - 1, -(2**31))
KERNELS = ("auto", "jax")
DROPOUT, SEED = 0.4, 3


def attend(graph: Any, *features: Any, kernel: str) -> Any:
    """Result, coefficients, and gradients by all features, with dropout."""

    def loss(*features: Any) -> Any:
        query, key, attn, edge_features, edge_projection = features
        out, alpha = gat.gatv2_attention(
            query,
            key,
            attn,
            graph,
            edge_features=edge_features,
            edge_projection=edge_projection,
            dropout=DROPOUT,
            seed=SEED,
            kernel=kernel,
            return_attention=True,
        )
        return (out**2).sum() + (alpha**3).sum(), (out, alpha)

    gradients, results = jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)(*features)
    return *results, *gradients


def attend_by_pallas(graph: Any, *features: Any) -> Any:
    """The same by the kernels for GPUs, interpreted."""
    if not isinstance(graph, gat.Graph):
        graph = gat.Graph.from_edge_index(graph, (N, M))
    query, key, attn, *edges = features
    options = Options(negative_slope=0.2, dropout=DROPOUT, with_alpha=True)
    call = (
        Features(query, key, attn, EdgeInputs(*edges), None),
        gat.random.as_seed(SEED),
        graph,
        options,
    )
    out, lse, alpha = pallas_kernel.forward(*call, interpret=True)
    cotangents = (2 * out, jnp.zeros(0), 3 * alpha**2, lse)
    wanted = (True,) * len(features)
    gradients = pallas_kernel.backward(cotangents, *call, wanted, interpret=True)
    return out, graph.in_callers_order(alpha, axis=-2), *gradients


WAYS = {kernel: partial(attend, kernel=kernel) for kernel in KERNELS} | {"pallas": attend_by_pallas}


def draw(rng: Any) -> Any:
    """An edge index of which some indices, or all, are bad."""
    edges = np.stack((rng.integers(0, N, N_EDGES), rng.integers(0, M, N_EDGES))).astype(np.int32)
    is_bad = rng.random(edges.shape) < rng.choice((0.1, 0.3, 1.0))
    return np.where(is_bad, rng.choice(np.array(BAD, np.int32), edges.shape), edges)


def without_bad_edges(edge_index: Any) -> Any:
    """The graph that must be attended to, with the numbers of the edges that it keeps."""
    query, key = edge_index
    (kept,) = np.nonzero((query >= 0) & (query < N) & (key >= 0) & (key < M))
    rest = np.setdiff1d(np.arange(N_EDGES), kept)
    graph = gat.Graph.from_edge_index(edge_index[:, kept], (N, M)).padded(N_EDGES)
    # numbered as the caller has them
    return replace(graph, edge_id=jnp.asarray(np.concatenate((kept, rest)), "int32")[graph.edge_id])


def assert_close(actual: Any, expected: Any) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert np.isfinite(a).all()
        assert np.allclose(a, e, rtol=1e-5, atol=1e-5)


def main() -> None:
    """Attend to many bad graphs in one process: a crash ends it."""
    rng = np.random.default_rng(0)
    shapes = ((N, H, F), (M, H, F), (H, F), (N_EDGES, D), (H, F, D))
    features = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    compiled = {way: jax.jit(function) for way, function in WAYS.items()}
    n_bad = 0
    for _ in range(N_DRAWN):
        edge_index = draw(rng)
        graph = without_bad_edges(edge_index)
        n_bad += int(graph.query_ptr[-1]) < N_EDGES
        for step in compiled.values():
            assert_close(step(edge_index, *features), step(graph, *features))
    wrong = gat.Graph.from_edge_index(edge_index % M, (N, M))
    for step in compiled.values():
        with pytest.raises(AssertionError):  # what the comparison must reject: indices that wrap
            assert_close(step(wrong, *features), step(graph, *features))
    print(n_bad)


def test_bad_indices_under_jit_are_dropped() -> None:
    """Values and gradients are those of the graph without them, with coefficients of zero for them."""
    result = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > N_DRAWN / 2


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64"])
def test_indices_are_compared_before_they_are_cut(dtype: str) -> None:
    """To the 32 bits that are sorted, of which those of 2**32 + 1 would be those of 1."""
    n, limits = 200, np.iinfo(dtype)
    candidates = (limits.min, -1, limits.max, 2**32 + 1)
    bad = [x for x in candidates if limits.min <= x <= limits.max and not 0 <= x < n]
    good = np.array([[0, 5, 7], [1, 6, 100]])
    with jax.enable_x64(True):
        features = jnp.ones((n, 1, 2)), jnp.ones((n, 1, 2)), jnp.ones((1, 2))
        attend = jax.jit(partial(gat.gatv2_attention, *features))
        expected = attend(jnp.asarray(good, dtype))
        for side in (0, 1):
            with_bad = np.concatenate((good, np.full((2, len(bad)), 3)), axis=1).astype(dtype)
            with_bad[side, 3:] = bad
            assert_close([attend(jnp.asarray(with_bad))], [expected])
        in_range = np.concatenate((good, [[3], [3]]), axis=1).astype(dtype)
        with pytest.raises(AssertionError):  # what the comparison must reject: one edge more
            assert_close([attend(jnp.asarray(in_range))], [expected])


def test_bad_indices_outside_of_jit_are_errors() -> None:
    features = jnp.ones((4, 1, 2)), jnp.ones((4, 1, 2)), jnp.ones((1, 2))
    for kernel, backend in (*product(KERNELS, ("sparse", "dense")), ("pallas", "sparse")):
        function = partial(gat.gatv2_attention, *features, kernel=kernel, backend=backend)
        with pytest.raises(
            IndexError, match=r"edge 1 has query 100000000, but there are 4 query nodes"
        ):
            function(jnp.array([[0, 10**8], [1, 2]]))
        with pytest.raises(IndexError, match=r"edge 0 has key -1, .* must lie in \[0, 4\)"):
            function(np.array([[0, 1], [-1, 2]]))
    with pytest.raises(TypeError, match=r"backend='dense' needs a mask where the graph is traced"):
        jax.jit(partial(gat.gatv2_attention, *features, backend="dense"))(np.array([[0], [-1]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_index": [10**8, 1]}, "`key_index` of the graph must lie in"),
        ({"key_index": [0, -1]}, "`key_index` of the graph must lie in"),
        ({"query_ptr": [0, 2, 1, 2, 2]}, "`query_ptr` of the graph must ascend"),
        ({"query_ptr": [0, 1, 1, 1, 9]}, "`query_ptr` of the graph must ascend"),
        ({"edge_id": [0, 10**9]}, "`edge_id` of the graph must lie in"),
        ({"edge_id": [0]}, "`edge_id` of the graph must have 2 rows; got 1"),
        ({"head_mask": [[True]]}, "`head_mask` of the graph must have 2 rows; got 1"),
        ({"query_id": [0]}, "`query_id` of the graph must have 4 rows; got 1"),
        ({"key_id": [0]}, "`key_id` of the graph must have 4 rows; got 1"),
    ],
)
def test_a_graph_made_by_hand_is_checked(change: dict[str, list[Any]], message: str) -> None:
    """By the fused kernel, which would read and write wherever it is told to."""
    graph = gat.Graph.from_edge_index(np.array([[0, 1], [1, 2]]), 4)
    graph = replace(graph, **{name: jnp.array(values) for name, values in change.items()})
    features = jnp.ones((4, 1, 2)), jnp.ones((4, 1, 2)), jnp.ones((1, 2))
    edges = {"edge_features": jnp.ones((2, 3)), "edge_projection": jnp.ones((1, 2, 3))}
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(gat.gatv2_attention(*features, graph, **edges, kernel="numba"))


def test_what_padding_made_by_hand_has_is_checked() -> None:
    graph = gat.Graph.from_edge_index(np.array([[1, 0], [1, 2]]), 4).padded(3)
    graph = replace(graph, edge_id=graph.edge_id.at[2].set(10**9))
    features = jnp.ones((4, 1, 2)), jnp.ones((4, 1, 2)), jnp.ones((1, 2))
    options: dict[str, Any] = {"score_bias": jnp.ones((3, 1)), "kernel": "numba"}
    with pytest.raises(jax.errors.JaxRuntimeError, match="`edge_id` of the graph must lie in"):
        jax.block_until_ready(gat.gatv2_attention(*features, graph, **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ptr": [0, 9, 9, 9, 9]}, "`key_ptr` of the graph must ascend"),
        ({"ptr": [0, 2]}, "`key_ptr` of the graph must have 5 rows; got 2"),
        ({"edge": [0]}, "`edges_by_key` of the graph must have 2 rows; got 1"),
        ({"edge": [10**8, 0]}, "`by_key.edge` of the graph must lie in"),
        ({"query": [0, -1]}, "`by_key.query` of the graph must lie in"),
    ],
)
def test_so_is_its_order_by_key(change: dict[str, list[int]], message: str) -> None:
    """Which gradients read."""
    graph = gat.Graph.from_edge_index(np.array([[0, 1], [1, 2]]), 4)
    arrays = {name: jnp.array(values) for name, values in change.items()}
    graph = replace(graph, by_key=graph.by_key._replace(**arrays))
    features = jnp.ones((4, 1, 2)), jnp.ones((4, 1, 2)), jnp.ones((1, 2))

    def loss(query: Any, key: Any, attn: Any) -> Any:
        return gat.gatv2_attention(query, key, attn, graph, kernel="numba").sum()

    assert jnp.isfinite(loss(*features))
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(jax.grad(loss)(*features))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("form", ["graph", "mask"])
def test_nan_in_padding_reaches_no_gradient(form: str, kernel: str) -> None:
    """Of nodes and of edges: results and all gradients are those of the graph without padding."""
    rng = np.random.default_rng(1)
    config = gat.Config(
        4, 6, 3, edge_dim=D, bias=True, residual=form == "graph", dropout=0.3, kernel=kernel
    )
    params = config.init(jax.random.key(0))
    edge_index = np.array([[0, 2, 2, 3], [1, 1, 3, 0]])
    h, x = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((4, 4), (4, D)))
    nan_h = jnp.pad(h, ((0, 3), (0, 0)), constant_values=jnp.nan)
    if form == "graph":
        adj_mat: Any = gat.Graph.from_edge_index(edge_index, 4)
        padded: Any = adj_mat.padded(9, 7)
        nan_x = jnp.pad(x, ((0, 5), (0, 0)), constant_values=jnp.nan)
    else:
        adj_mat, nan_x = np.zeros((4, 4), bool), np.full((4, 4, D), np.nan, np.float32)
        adj_mat[tuple(edge_index)] = True
        nan_x[tuple(edge_index)] = x
        x = jnp.nan_to_num(nan_x)
        padded = np.pad(adj_mat, (0, 3))
        nan_x = jnp.pad(nan_x, ((0, 3), (0, 3), (0, 0)), constant_values=jnp.nan)

    def gradients_of(params: Any, h: Any, x: Any, graph: Any) -> Any:
        def loss(params: Any) -> Any:
            out = config.apply(params, h, graph, edge_features=x, seed=7)
            return (out[:4] ** 2).sum(), out

        return jax.grad(loss, has_aux=True)(params)

    step = jax.jit(gradients_of)
    gradients, out = step(params, h, x, adj_mat)
    padded_gradients, padded_out = step(params, nan_h, nan_x, padded)
    assert_close([padded_out[:4], *padded_gradients.values()], [out, *gradients.values()])
    if form == "graph":
        assert not padded_out[4:].any()
    poisoned = step(params, nan_h.at[0].set(jnp.nan), nan_x, padded)[0]
    with pytest.raises(AssertionError):  # what the comparison must reject: NaN that is read
        assert_close(poisoned.values(), gradients.values())


if __name__ == "__main__":
    main()


def results_over(
    mask: Any, query: Any, key: Any, attn: Any, backend: Any, kernel: str
) -> list[Any]:
    """Out, coefficients by pairs and log-sum-exp, gradients, and derivatives along a direction."""

    def attend(*features: Any) -> Any:
        out, alpha, lse = gat.gatv2_attention(
            *features,
            mask,
            backend=backend,
            kernel=kernel,
            return_attention=True,
            return_lse=True,
        )
        if backend == "sparse":
            alpha = jnp.zeros((N, M, H), alpha.dtype).at[np.nonzero(mask.any(-1))].set(alpha)
        return out, alpha, lse

    features = tuple(map(jnp.asarray, (query, key, attn)))
    outcome, pullback = jax.vjp(attend, *features)
    rng = np.random.default_rng(1)
    direction = tuple(jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in features)
    tangents = jax.jvp(attend, features, direction)[1]
    cotangents = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in outcome]
    cotangents[2] = jnp.where(jnp.isfinite(outcome[2]), cotangents[2], 0)
    return [*map(np.asarray, (*outcome, *pullback(tuple(cotangents)), *tangents))]


def hostile_inputs() -> tuple[Any, Any, Any, Any]:
    """Query, key, attn, and a mask of a query without keys, one of which one query alone has."""
    rng = np.random.default_rng(0)
    query, key, attn = (
        rng.normal(size=shape).astype(np.float32) for shape in ((N, H, F), (M, H, F), (H, F))
    )
    mask = np.ones((N, M, 1), bool)
    mask[3], mask[1:, 0] = False, False
    return query, key, attn, mask


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("side", ["query", "key"])
def test_an_infinite_feature_whose_score_is_minus_infinity_has_no_edge(
    backend: Any, kernel: str, side: str
) -> None:
    query, key, attn, mask = hostile_inputs()
    attn[0, 0] = -1
    others = np.repeat(mask, H, axis=2)
    others[(1, slice(None), 0) if side == "query" else (slice(None), 1, 0)] = False
    expected = results_over(others, query, key, attn, backend, kernel)
    (query if side == "query" else key)[1, 0, 0] = np.inf
    actual = results_over(mask, query, key, attn, backend, kernel)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_an_edge_uses_reaches_its_query_and_head_only(
    backend: Any, kernel: str, value: float
) -> None:
    query, key, attn, mask = hostile_inputs()
    attn[0, 0] = 1
    clean = results_over(mask, query, key, attn, backend, kernel)
    key[0, 0, 0] = value  # of which query 0 makes use
    hostile = results_over(mask, query, key, attn, backend, kernel)
    out, _, _, d_query, d_key, d_attn, *_ = hostile
    assert np.isnan(out[0, 0, 0])
    for i in (0, 1, 2, 6, 7, 8):  # values, and derivatives along a direction
        np.testing.assert_array_equal(hostile[i][1:], clean[i][1:])
    np.testing.assert_array_equal(out[:, 1], clean[0][:, 1])
    np.testing.assert_array_equal(d_query[1:], clean[3][1:])
    for actual, expected in ((d_query, clean[3]), (d_key, clean[4])):
        np.testing.assert_array_equal(actual[:, 1], expected[:, 1])
    np.testing.assert_array_equal(d_attn[1], clean[5][1])
