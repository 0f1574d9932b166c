"""Strict settings of JAX, export for any size, and arguments that are not what they should be."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")

N, H, F = 5, 2, 3


def features(dtype: Any = "float32") -> list[Any]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in ((N, H, F), (N, H, F), (H, F))]


def mask() -> Any:
    return np.random.default_rng(1).random((N, N, 1)) < 0.5


def loss(graph: Any, *features: Any, kernel: str) -> Any:
    out, alpha = gat.gatv2_attention(
        *features, graph, dropout=0.3, seed=3, return_attention=True, kernel=kernel
    )
    return out.astype("float32").sum() + alpha.astype("float32").sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["auto", "jax"])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_nothing_is_promoted_unseen(form: str, kernel: str, dtype: str) -> None:
    """Under the settings with which Equinox tests itself: gradients, forward mode, a layer."""
    graph = jnp.asarray(mask()) if form == "dense" else gat.Graph.from_mask(mask())
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        inputs = features(dtype)
        function = partial(loss, graph, kernel=kernel)
        jax.jit(jax.grad(function, argnums=(0, 1, 2)))(*inputs)
        jax.jit(lambda *x: jax.jvp(function, x, x))(*inputs)
        config = gat.Config(
            4,
            6,
            2,
            edge_dim=2,
            bias=True,
            residual=True,
            add_self_loops=True,
            dtype=dtype,
            kernel=kernel,
        )
        params, h = config.init(jax.random.key(0)), jnp.ones((N, 4), "float32")
        x = jnp.ones((graph.n_edges, 2) if form == "sparse" else (N, N, 2))
        apply = jax.jit(partial(config.apply, seed=1))
        jax.jit(jax.grad(lambda p: apply(p, h, graph, edge_features=x).astype("float32").sum()))(
            params
        )
        with pytest.raises(Exception, match=r"promotion"):  # what the settings must refuse
            _ = jnp.ones(3, dtype) * jnp.ones(3, "float16")


def test_export() -> None:
    """For any number of edges, with a `Graph` as an argument, and back from bytes."""
    graph = gat.Graph.from_mask(mask())
    attend = jax.jit(partial(loss, kernel="auto"))
    exported = jax.export.export(attend)(graph, *features())
    back = jax.export.deserialize(exported.serialize())
    assert np.allclose(back.call(graph, *features()), attend(graph, *features()), atol=1e-5)

    def of_edges(edge_index: Any, *features: Any) -> Any:
        return loss(edge_index, *features, kernel="auto")

    (n_edges,) = jax.export.symbolic_shape("n_edges")
    shape = jax.ShapeDtypeStruct((2, n_edges), jnp.int32)
    exported = jax.export.export(jax.jit(of_edges))(shape, *features())
    for size in (3, 11, 1100):
        edge_index = np.random.default_rng(size).integers(0, N, (2, size), dtype=np.int32)
        actual = exported.call(edge_index, *features())
        assert np.allclose(actual, of_edges(edge_index, *features()), atol=1e-5)


LOADING = """
import pickle, sys
import jax
from jax.experimental.serialize_executable import deserialize_and_load
import gatv2.jax as gat

with open(sys.argv[1], "rb") as file:
    written, arguments, expected = pickle.load(file)
try:
    deserialize_and_load(*written)
except jax.errors.JaxRuntimeError as error:
    assert "gatv2_sparse_forward" in str(error)
else:
    raise AssertionError("kernels are known before they are asked for")
gat.register_kernels()
gradients = deserialize_and_load(*written)(*arguments)
for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
    assert (one == other).all()
"""


def test_a_compiled_program_is_loaded_by_another_process(tmp_path: Path) -> None:
    serialize = pytest.importorskip("jax.experimental.serialize_executable").serialize
    arguments = (gat.Graph.from_mask(mask()), *features())
    gradients = jax.grad(partial(loss, kernel="auto"), argnums=(1, 2, 3))
    program = jax.jit(gradients).lower(*arguments).compile()
    path = tmp_path / "program.pickle"
    path.write_bytes(pickle.dumps((serialize(program), arguments, program(*arguments))))
    result = subprocess.run(
        [sys.executable, "-c", LOADING, path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_export_for_any_batch() -> None:
    def of_mask(mask: Any, query: Any, key: Any, attn: Any) -> Any:
        return gat.gatv2_attention(query, key, attn, mask)

    (n_batch,) = jax.export.symbolic_shape("n_batch")
    query, key, attn = features()
    shapes = [jax.ShapeDtypeStruct((n_batch, *x.shape), x.dtype) for x in (mask(), query, key)]
    exported = jax.export.export(jax.jit(of_mask))(*shapes, attn)
    inputs = [np.stack((x, x)) for x in (mask(), query, key)]
    assert np.allclose(
        exported.call(*inputs, attn)[1], of_mask(mask(), query, key, attn), atol=1e-5
    )


def test_arguments_that_are_none() -> None:
    query, key, attn = features()
    attend = partial(gat.gatv2_attention, query, key, attn)
    edges = np.array([[0, 1], [1, 2]])
    with pytest.raises(TypeError, match=r"`seed` must be an int.*got float"):
        attend(edges, dropout=0.5, seed=1.0)
    with pytest.raises(TypeError, match=r"`seed` must be .*got key<fry>: `gatv2.jax.seed_from_key"):
        attend(edges, dropout=0.5, seed=jax.random.key(0))
    with pytest.raises(TypeError, match=r"`dropout` must be known .*static_argnames='dropout'"):
        jax.jit(lambda dropout: attend(edges, dropout=dropout, seed=1))(0.5)
    with pytest.raises(TypeError, match=r"`adj_mat` must be an array .*; got list"):
        attend([[0, 1], [1, 2]])
    with pytest.raises(TypeError, match=r"the number of nodes must be an integer, .*; got 2.5"):
        gat.Graph.from_edge_index(edges, 2.5)
    with pytest.raises(ValueError, match=r"must not be negative"):
        gat.Graph.from_edge_index(edges, -1)
    with pytest.raises(TypeError, match=r"an edge index must be an array .*; got list"):
        gat.Graph.from_edge_index([[0], [1]], 2)


@pytest.mark.parametrize("number", [3, np.int64(3), jnp.uint32(3), 3.0, np.ones(2)], ids=repr)
def test_a_number_is_no_key(number: Any) -> None:
    config, model, h, mask = (
        gat.Config(4, 4, 2),
        gat.GATv2(4, 8, 2),
        jnp.ones((3, 4)),
        np.eye(3) > 0,
    )
    rng = jnp.zeros(2, "uint32")  # a key of the old kind
    params, of_model = config.init(rng), model.init(rng)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: config.apply(params, h, mask, rng=number),
        lambda: model.apply(of_model, h, mask, rng=number),
        lambda: config.init(number),
        lambda: model.init(number),
        lambda: gat.seed_from_key(number),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"`rng` must be a JAX key, .*random.key.*`seed=`"):
            call()


def test_sizes_and_seeds_of_numpy() -> None:
    """Inside and outside of `jit` alike; without a warning."""
    edges = np.array([[0, 1], [1, 0]], np.int32)
    outside = gat.Graph.from_edge_index(edges, np.int64(2))
    inside = jax.jit(lambda edges: gat.Graph.from_edge_index(edges, np.int64(2)))(edges)
    assert (inside.n_queries, inside.n_keys) == (outside.n_queries, outside.n_keys) == (2, 2)
    for seed in (np.int64(2**40 + 1), np.array(2**40 + 1), np.uint64(2**40 + 1)):
        assert gat.random.as_seed(seed).tolist() == [1, 2**8]
