"""No kernel holds as much as a number for each edge, head and feature: measured in compiled programs."""

from functools import partial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")

N, N_EDGES, H, F = 2000, 50_000, 8, 8


def temporaries(function: Any, *inputs: Any, n_edges: int = N_EDGES) -> float:
    """Bytes that a compiled program holds beside inputs and results, in units of `[E, H, F]` floats."""
    analysis = jax.jit(function).lower(*inputs).compile().memory_analysis()
    return float(analysis.temp_size_in_bytes / (4 * n_edges * H * F))


def attend(graph: Any, *features: Any, kernel: str, dropout: float) -> Any:
    out = gat.gatv2_attention(*features, graph, kernel=kernel, dropout=dropout, seed=1)
    return (out**2).sum()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("kernel", "allowed"), [("auto", 0.1), ("jax", 1.0)])
@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_temporaries_of_gradients(
    backend: str, kernel: str, allowed: float, dropout: float
) -> None:
    """Of edges, and of the pairs of a mask."""
    rng = np.random.default_rng(0)
    if backend == "sparse":
        graph, n_edges = gat.Graph.from_edge_index(rng.integers(0, N, (2, N_EDGES)), N), N_EDGES
    else:
        graph, n_edges = jnp.asarray(rng.random((N, N, 1)) < 0.1), N * N
    features = [jnp.ones(shape) for shape in ((N, H, F), (N, H, F), (H, F))]
    gradient = jax.grad(partial(attend, kernel=kernel, dropout=dropout), argnums=(1, 2, 3))
    assert temporaries(gradient, graph, *features, n_edges=n_edges) < allowed


def test_the_measure_sees_what_is_held() -> None:
    """What it must reject: one array of `[E, H, F]` between two operations."""
    query, index = jnp.ones((N, H, F)), jnp.arange(N_EDGES) % N

    def hold(query: Any) -> Any:
        return jnp.sort(jnp.sort(query[index], axis=1), axis=0).sum(0)

    assert temporaries(hold, query) >= 1


def test_blocks_change_nothing() -> None:
    """With so many edges that they come in blocks: value, gradients and forward mode."""
    rng = np.random.default_rng(1)
    n, n_edges = 60, 9001
    edge_index = rng.integers(0, n, (2, n_edges))
    graph = gat.Graph.from_edge_index(edge_index, n).padded(n_edges + 10)
    assert gat.blocks.count_blocks(graph.n_edges, H * F) > 1
    features = [jnp.asarray(rng.normal(size=s), "float32") for s in ((n, H, F), (n, H, F), (H, F))]

    def everything(kernel: str) -> Any:
        def run(*features: Any) -> Any:
            function = partial(attend, graph, kernel=kernel, dropout=0.3)
            value, gradients = jax.value_and_grad(function, argnums=(0, 1, 2))(*features)
            return value, gradients, jax.jvp(function, features, features)

        return jax.jit(run)(*features)

    for fused, plain in zip(
        jax.tree.leaves(everything("auto")), jax.tree.leaves(everything("jax")), strict=True
    ):
        assert np.allclose(fused, plain, rtol=2e-4, atol=2e-4)
