"""Graph in JAX: every way to build it gives one graph, and padding changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gatv2
from gatv2.options import FLOWS
from gatv2.testing import assert_agrees, masks

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
sparse = pytest.importorskip("jax.experimental.sparse")


def assert_equal(one: Any, other: Any) -> None:
    """Every array and every static field."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


@st.composite
def edges(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Edge indices of 5 queries and 7 keys, with parallel edges; of two sizes: JAX compiles for each."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from((np.int32, np.int64)))
    return generator.integers(0, (5, 7), (draw(st.sampled_from((0, 30))), 2)).T.astype(dtype)


@given(edges())
def test_numpy_jax_and_pytorch_build_one_graph(edge_index: np.ndarray[Any, Any]) -> None:
    torch_graph = gatv2.Graph.from_edge_index(torch.from_numpy(edge_index), (5, 7))
    graph = gat.Graph.from_torch(torch_graph)
    assert_equal(gat.Graph.from_edge_index(edge_index, (5, 7)), graph)
    assert_equal(gat.Graph.from_edge_index(jnp.asarray(edge_index), (5, 7)), graph)
    flipped = gat.Graph.from_edge_index(edge_index[::-1], (5, 7), flow="source_to_target")
    assert_equal(replace(flipped, flow="target_to_source"), graph)
    assert_equal(traced_graph(edge_index), graph)
    assert np.array_equal(graph.edge_index, edge_index)
    assert np.array_equal(graph.multiplicity(), torch_graph.multiplicity)


traced_graph = jax.jit(lambda edge_index: gat.Graph.from_edge_index(edge_index, (5, 7)))


@given(masks(5, 7, 3, (2,)))
def test_masks_build_a_graph_and_back(mask: Tensor) -> None:
    graph = gat.Graph.from_mask(mask.numpy())
    assert_equal(graph, gat.Graph.from_torch(gatv2.Graph.from_mask(mask)))
    sizes = gat.adjacency.Sizes(5, 7, 3, (2,))
    padded = graph.padded(140)  # of one size: JAX compiles for each
    back = gat.adjacency.as_adjacency(padded, sizes, flow="target_to_source", backend="dense")
    assert np.array_equal(back, mask)


def test_a_large_graph_is_taken_over_without_a_copy() -> None:
    graph = gatv2.Graph.from_edge_index(torch.randint(1000, (2, 50_000)), 1000)
    shared = gat.Graph.from_torch(graph)
    assert shared.key_index.unsafe_buffer_pointer() == graph.key_index.data_ptr()


def test_a_graph_is_a_pytree_with_static_sizes() -> None:
    graph = gat.Graph.from_edge_index(np.array([[0, 1], [1, 0]]), 2)
    doubled = jax.tree.map(lambda x: x + x, graph)
    assert isinstance(doubled, gat.Graph)
    assert (doubled.n_queries, doubled.n_keys, doubled.n_blocks) == (2, 2, 1)
    assert len(jax.tree.leaves(graph)) == 7


def test_what_transformations_make_of_a_graph_can_be_shown() -> None:
    graph = gat.Graph.from_edge_index(np.array([[0, 1], [1, 0]]), 2)
    for leaf in (None, 0, "spec", jnp.zeros(())):
        other = jax.tree.map(lambda _, leaf=leaf: leaf, graph)
        assert f"key_index={leaf!r}" in repr(other)
    shapes = jax.eval_shape(lambda: graph)
    assert repr(shapes) == repr(graph) == "Graph(n_queries=2, n_keys=2, n_edges=2, dtype=int32)"


@pytest.mark.parametrize("n_graphs", [2, 4])
def test_stacked_graphs_are_mapped_over(n_graphs: int) -> None:
    """Also if there is one more of them than nodes."""
    graph = gat.Graph.from_edge_index(np.array([[0, 1, 2], [1, 0, 2]]), 3)
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *[graph] * n_graphs)
    assert (stacked.n_queries, stacked.n_edges, stacked.stacked) == (3, 3, (n_graphs,))
    assert f"n_queries=3, n_keys=3, n_edges=3, stacked=({n_graphs},)" in repr(stacked)
    x, attn = jnp.arange(24.0).reshape(3, 2, 4), jnp.ones((2, 4))
    for attend in (gat.gatv2_attention, jax.jit(gat.gatv2_attention), gat.gatv2_scores):
        with pytest.raises(ValueError, match=rf"is {n_graphs} graphs, stacked: map over them"):
            attend(x, x, attn, stacked)
    makers = (stacked.coalesce, partial(stacked.split, 3), stacked.to_torch)
    for make in (*makers, partial(gat.Graph.batch, [stacked])):
        with pytest.raises(ValueError, match=rf"is {n_graphs} graphs, stacked: map over them"):
            make()
    mapped = jax.vmap(lambda graph: gat.gatv2_attention(x, x, attn, graph))(stacked)
    assert np.allclose(mapped, gat.gatv2_attention(x, x, attn, graph))


@pytest.mark.parametrize("kernel", ["jax", "numba"])
def test_padding_changes_nothing(kernel: str) -> None:
    """No bit of the result, and no more than the order of a sum in the gradients."""
    edge_index = np.array([[0, 2, 2, 0, 2], [1, 1, 3, 1, 0]])  # parallel edges, isolated query 1
    graph = gat.Graph.from_edge_index(edge_index, (3, 4))
    rng = np.random.default_rng(0)
    query, key, attn = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 2, 3), (4, 2, 3), (2, 3))
    )
    query = query.at[1].set(jnp.nan)  # of no edge
    key = key.at[2].set(jnp.inf)

    def both(graph: Any) -> Any:
        def function(*features: Any) -> Any:
            out, alpha = gat.gatv2_attention(
                *features, graph, dropout=0.5, seed=8, return_attention=True, kernel=kernel
            )
            return (out**2).sum() + (alpha**3).sum(), (out, alpha)

        return jax.grad(function, argnums=(0, 1, 2), has_aux=True)(query, key, attn)

    step = jax.jit(both)
    gradients, (out, alpha) = step(graph)
    for n_edges in (6, 50):
        padded_gradients, (padded_out, padded_alpha) = step(graph.padded(n_edges))
        assert np.array_equal(padded_out, out)
        assert np.array_equal(padded_alpha[:5], alpha)
        assert not padded_alpha[5:].any()
        for padded, plain in zip(padded_gradients, gradients, strict=True):
            assert np.isfinite(plain).all()
            assert np.allclose(padded, plain, rtol=1e-5, atol=1e-6)


def test_parts_are_the_graph() -> None:
    edge_index = np.random.default_rng(0).integers(0, 6, (2, 20))
    graph = gat.Graph.from_edge_index(edge_index, (6, 7))
    parts = graph.split(3)
    edges: list[list[int]] = []
    for i in range(3):
        part = jax.tree.map(lambda x, i=i: x[i], parts)
        assert (part.n_queries, part.n_keys) == (2, 7)
        assert np.array_equal(part.query_id, [2 * i, 2 * i + 1])
        pairs = np.stack((part.query_index + 2 * i, part.key_index), axis=1)
        edges += pairs[: part.query_ptr[-1]].tolist()
    assert edges == np.stack((graph.query_index, graph.key_index), axis=1).tolist()


OTHER_FORMS: dict[str, Callable[[Tensor], object]] = {
    "bool mask": lambda mask: mask.squeeze(-1).numpy(),
    "number mask": lambda mask: jnp.asarray(mask.numpy() * 3.0),
    "edge index": lambda mask: mask.squeeze(-1).nonzero().T.numpy(),
    "jax graph": lambda mask: gat.Graph.from_mask(mask.numpy()),
    "torch mask": lambda mask: mask,
    "torch graph": gatv2.Graph.from_mask,
    "torch sparse": lambda mask: mask.squeeze(-1).int().to_sparse(),
}


@pytest.mark.parametrize("backend", ["auto", "dense", "sparse"])
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_every_form_is_one_graph(form: str, backend: str) -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 1, 0]]).bool().unsqueeze(-1)
    query, key, attn = (jnp.asarray(np.random.default_rng(i).random((3, 1, 2))) for i in range(3))
    expected = gat.gatv2_attention(query, key, attn[0], mask.numpy())
    actual = gat.gatv2_attention(query, key, attn[0], OTHER_FORMS[form](mask), backend=backend)
    assert np.allclose(actual, expected, rtol=1e-6)


def test_errors_say_what_was_expected_and_what_came() -> None:
    x = jnp.ones((3, 2, 4))
    attn = jnp.ones((2, 4))

    def attend(graph: Any, **options: Any) -> Any:
        return gat.gatv2_attention(x, x, attn, graph, **options)

    with pytest.raises(ValueError, match=r"must have shape \(3, 3, 1\) or \(3, 3, 2\) with n=3"):
        attend(jnp.ones((3, 4, 1), bool))
    with pytest.raises(IndexError, match=r"edge 1 has key 3, .*\[0, 3\)"):
        attend(np.array([[0, 1], [1, 3]]))
    with pytest.raises(ValueError, match=r"got float32 with shape \(2, 5\), which is neither"):
        attend(jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"pass `adj_mat\.T` for an edge index$"):
        attend(jnp.ones((5, 2), int))
    with pytest.raises(ValueError, match=r"which is neither: pass `adj_mat != 0` for a mask$"):
        attend(jnp.ones((3, 3)))
    with pytest.raises(ValueError, match=r"for an additive mask of 0 and -inf pass `adj_mat == 0`"):
        attend(jnp.full((3, 3), -jnp.inf))
    with pytest.raises(
        ValueError, match=r"add it with `\[\.\.\., None\]`.*`jnp\.moveaxis\(x, -3, -1\)`"
    ):
        attend(jnp.ones((2, 3, 3), bool))
    with pytest.raises(ValueError, match=r"`jnp\.broadcast_to\(x, \(4, 3, 3, 1\)\)`"):
        attend(jnp.ones((4, 1, 3, 1), bool))
    with pytest.raises(
        TypeError, match=r"got list: pass an array of integers of shape \(2, n_edges\)"
    ):
        attend([(0, 1), (1, 2)])
    with pytest.raises(TypeError, match=r"to_scipy_sparse_array\(adj_mat, weight=None\)"):
        attend(pytest.importorskip("networkx").path_graph(3))
    for added in (-1e4, float(np.finfo("f").min)):
        with pytest.raises(ValueError, match=r"as an additive mask has .*pass `adj_mat == 0`"):
            attend(jnp.full((3, 3, 1), added))
    for dtype in (np.int8, np.uint8, jnp.bfloat16, np.float16):
        attend(jnp.ones((3, 3, 1), dtype))
    with pytest.raises(ValueError, match=r"as an additive mask has"):
        attend(jnp.full((3, 3, 1), -1e4, jnp.bfloat16))
    with pytest.raises(ValueError, match=r"as an additive mask has"):
        attend(np.full((3, 3, 1), -10_000))
    for matrix in (
        scipy.sparse.coo_array(([np.nan], ([0], [1])), shape=(3, 3)),
        sparse.BCOO((jnp.array([jnp.inf]), jnp.array([[0, 1]])), shape=(3, 3)),
    ):
        with pytest.raises(ValueError, match=r"must have finite values"):
            attend(matrix)
    with pytest.raises(ValueError, match=r"entries that are not finite"):
        attend(jnp.full((3, 3, 1), -jnp.inf))
    with pytest.raises(ValueError, match=r"4 queries and 4 keys, but the features have 3"):
        attend(gat.Graph.from_edge_index(np.zeros((2, 1), int), 4))
    with pytest.raises(ValueError, match=r"parallel edges"):
        attend(np.zeros((2, 2), int), backend="dense")
    with pytest.raises(ValueError, match=r"`dropout`=0\.5 needs a `seed`"):
        attend(np.zeros((2, 2), int), dropout=0.5)
    with pytest.raises(ValueError, match=r"`dropout` must lie in"):
        attend(np.zeros((2, 2), int), dropout=1.0)
    with pytest.raises(TypeError, match=r"`adj_mat` must be"):
        attend("edges")
    with pytest.raises(TypeError, match=r"one floating-point dtype"):
        gat.gatv2_attention(x, x, attn.astype(jnp.bfloat16), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match=r"can't be padded to 1"):
        gat.Graph.from_edge_index(np.zeros((2, 2), int), 3).padded(1)
    with pytest.raises(ValueError, match=r"divide by 2"):
        gat.Graph.from_edge_index(np.zeros((2, 2), int), 3).split(2)
    graph = gat.Graph.from_edge_index(np.zeros((2, 2), int), 3)
    with pytest.raises(ValueError, match=r"`n_parts` must be positive; got 0"):
        graph.split(0)
    with pytest.raises(TypeError, match=r"`n_edges` must be an int; got float"):
        graph.padded(4.5)
    with pytest.raises(TypeError, match=r"`n_edges` must be an int; got .*Tracer"):
        jax.jit(graph.padded)(4)
    for other in (np.zeros((2, 2), int), graph.to_torch()):
        with pytest.raises(TypeError, match=r"a gatv2\.jax\.Graph was expected; got"):
            gat.Graph.batch([graph, other])
    with pytest.raises(TypeError, match=r"a gatv2\.Graph was expected; got Tensor"):
        gat.Graph.from_torch(torch.zeros(2, 2))
    with pytest.raises(TypeError, match=r"outside of `jit`"):
        jax.jit(lambda mask: attend(mask, backend="sparse"))(jnp.ones((3, 3, 1), bool))


def test_two_rows_of_integers_are_an_edge_index() -> None:
    """Whatever the number of edges: also where a mask would have that shape."""
    x, attn = jnp.ones((2, 2, 4)), jnp.ones((2, 4))
    edges = np.array([[0, 1], [1, 1]])
    _, alpha = gat.gatv2_attention(x, x, attn, edges, return_attention=True)
    assert alpha.shape == (2, 2)
    with pytest.raises(ValueError, match=r"which is neither"):
        gat.gatv2_attention(jnp.ones((3, 2, 4)), jnp.ones((3, 2, 4)), attn, np.ones((3, 3), int))


@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
@pytest.mark.parametrize("form", ["coo", "csr", "csc", "BCOO", "BCSR"])
def test_edges_of_a_matrix_are_numbered_as_its_entries(form: str, flow: Any) -> None:
    """Edge features come, and coefficients go, in the order in which a matrix has its entries."""
    rng = np.random.default_rng(0)
    place = rng.permutation(20)[:9]  # in no order
    values = np.where(np.arange(9) == 4, 0.0, 1.0)  # an entry of zero is no edge
    coo = scipy.sparse.coo_array((values, (place // 5, place % 5)), shape=(4, 5))
    if form.startswith("BC"):
        matrix: Any = sparse.BCOO(
            (jnp.asarray(values), jnp.asarray(np.stack(coo.coords, 1))), shape=(4, 5)
        )
        matrix = matrix if form == "BCOO" else sparse.BCSR.from_bcoo(matrix.sort_indices())
        entries = np.asarray((matrix if form == "BCOO" else matrix.to_bcoo()).indices).T
        stored = np.asarray(matrix.data)
    else:
        matrix = coo.asformat(form)
        entries, stored = np.stack(matrix.tocoo().coords), matrix.tocoo().data
    edge_index = entries[:, stored != 0]
    sides = (4, 5) if flow == "target_to_source" else (5, 4)
    query, key = (jnp.asarray(rng.normal(size=(n, 2, 3))) for n in sides)
    attn, projection = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=(2, 3, 2)))
    x = jnp.asarray(rng.normal(size=(8, 2)))
    actual, expected = (
        gat.gatv2_attention(
            *(query, key, attn, graph),
            edge_features=x,
            edge_projection=projection,
            flow=flow,
            return_attention=True,
        )
        for graph in (matrix, edge_index)
    )
    for mine, its in zip(actual, expected, strict=True):
        assert np.array_equal(mine, its)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (3, 3)], ids=str)
@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_nothing_to_attend_to(backend: Any, shape: tuple[int, int]) -> None:
    n_queries, n_keys = shape
    query, key = jnp.ones((2, n_queries, 2, 3)), jnp.ones((2, n_keys, 2, 3))
    mask = np.zeros((n_queries, n_keys, 1), bool)

    def total(*features: Any) -> Any:
        return gat.gatv2_attention(*features, mask, backend=backend, dropout=0.5, seed=1).sum()

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    value, gradients = step(query, key, jnp.ones((2, 3)))
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)


FLOW: Any = "source_to_target"
EDGES = np.array([[0, 1, 2, 0], [1, 2, 3, 4]])


def through_an_export(graph: Any) -> Any:
    """What a program that was exported, and read again, gives back of a graph."""
    exported = jax.export.export(jax.jit(lambda graph: graph))(graph)
    return jax.export.deserialize(exported.serialize()).call(graph)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "batch": lambda graph: gat.Graph.batch([graph, graph]),
    "coalesce": lambda graph: graph.coalesce(),
    "self-loops": lambda graph: graph.add_self_loops(),
    "traced self-loops": jax.jit(lambda graph: graph.add_self_loops()),
    "padding": lambda graph: graph.padded(7, 6),
    "part": lambda graph: graph.split(5),
    "to PyTorch": lambda graph: graph.to_torch(),
    "from PyTorch": lambda graph: gat.Graph.from_torch(graph.to_torch()),
    "jit": jax.jit(lambda graph: graph),
    "export": through_an_export,
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_graph_knows_its_flow(change: Callable[[Any], Any], flow: Any) -> None:
    assert change(gat.Graph.from_edge_index(EDGES, 5, flow=flow)).flow == flow
    mask = np.zeros((1, 5, 5, 1), bool)
    mask[0, EDGES[0], EDGES[1]] = True
    if change not in (CHANGES["batch"], CHANGES["part"]):  # of which one is no batch of masks
        changed = change(gat.Graph.from_mask(mask, flow=flow))
        assert (changed.flow, changed.batch_dims) == (flow, (1,))


def test_files_keep_it(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    graph = gat.Graph.from_edge_index(EDGES, 5, flow=FLOW)
    graph.save(tmp_path / "graph")
    assert_equal(gat.Graph.load(tmp_path / "graph"), graph)


def test_the_other_flow_is_refused() -> None:
    right = gat.Graph.from_edge_index(EDGES, 5, flow=FLOW)
    wrong = gat.Graph.from_edge_index(EDGES, 5)
    h, features, attn = jnp.ones((5, 4)), jnp.ones((5, 2, 3)), jnp.ones((2, 3))
    in_torch = gatv2.GraphAttentionV2Layer(4, 6, 2, flow=FLOW)
    config, params = gat.Config.from_torch(in_torch), gat.from_torch(in_torch)
    looped = config.replace(add_self_loops=True)
    model = gat.GATv2(4, 8, 3, n_heads=2, options={"flow": FLOW})
    of_model = model.init(jax.random.key(0))
    named: Any = {"flow": FLOW}
    calls: list[Callable[[Any], Any]] = [
        lambda graph: gat.apply(config, params, h, graph, deterministic=True),
        lambda graph: gat.apply(looped, params, h, graph, deterministic=True),
        lambda graph: gat.attention_scores(config, params, h, graph),
        lambda graph: model.apply(of_model, h, graph, deterministic=True),
        lambda graph: gat.gatv2_attention(features, features, attn, graph, **named),
        lambda graph: gat.gatv2_scores(features, features, attn, graph, **named),
        lambda graph: gat.gat_attention(features, features, attn, attn, graph, **named),
        lambda graph: gat.gat_scores(features, features, attn, attn, graph, **named),
    ]
    for call in calls:
        for graph in (wrong, wrong.padded(6), wrong.to_torch()):
            with pytest.raises(
                ValueError, match=r"'target_to_source', .*make it with flow='source"
            ):
                call(graph)
        assert np.array_equal(call(right), call(EDGES))
    # the other way round nothing can be wrong: a graph is what its maker says
    config = config.replace(flow="target_to_source")
    out = gat.apply(config, params, h, right, deterministic=True)
    assert np.array_equal(out, gat.apply(config, params, h, EDGES[::-1], deterministic=True))
    with pytest.raises(ValueError, match="one flow; got"):
        gat.Graph.batch([right, wrong])


def test_a_batch_of_bipartite_graphs_has_no_self_loops() -> None:
    one = gat.Graph.from_edge_index(np.array([[0, 1], [2, 0]]), (2, 3))
    other = gat.Graph.from_edge_index(np.array([[0, 2], [1, 0]]), (3, 2))
    batch = gat.Graph.batch([one, other])
    layer = gatv2.GraphAttentionV2Layer(4, 6, 2, add_self_loops=True)
    config, params = gat.Config.from_torch(layer), gat.from_torch(layer)
    for graph in (batch, batch.coalesce(), gat.Graph.batch([batch, batch]), batch.padded(9)):
        assert graph.n_queries == graph.n_keys
        with pytest.raises(ValueError, match="a batch of bipartite graphs has no self-loops"):
            graph.add_self_loops()
        h = jnp.ones((graph.n_queries, 4))
        with pytest.raises(ValueError, match="a batch of bipartite graphs has no self-loops"):
            gat.apply(config, params, h, graph, deterministic=True)
    assert gat.Graph.batch([gat.Graph.from_edge_index(EDGES, 5)] * 2).add_self_loops().n_edges == 18


@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("shape", "kernel"), [((1,), "jax"), ((1,), "numba"), ((0,), "numba"), ((2, 3), "jax")]
)
def test_a_graph_of_masks_attends_as_they_do(
    shape: tuple[int, ...], backend: Any, kernel: str
) -> None:
    """One answer of one rank, with features of edges; nodes may have no batch of their own."""
    rng = np.random.default_rng(0)
    mask = rng.random((*shape, 5, 5, 2)) < 0.5
    graph = gat.Graph.from_mask(mask)
    assert graph.batch_dims == shape
    x = rng.normal(size=(*shape, 5, 5, 4)).astype(np.float32)
    query, key, attn, projection = (
        rng.normal(size=size).astype(np.float32)
        for size in ((*shape, 5, 2, 3), (5, 2, 3), (2, 3), (2, 3, 4))
    )
    options: Any = {"edge_projection": projection, "backend": backend, "return_attention": True}
    expected = gatv2.gatv2_attention(
        *map(torch.from_numpy, (query, np.broadcast_to(key, query.shape).copy(), attn, mask)),
        **options | {"edge_projection": torch.from_numpy(projection)},
        edge_features=torch.from_numpy(x),
        kernel="torch",
    )
    for form, features in ((mask, x), (graph, x[mask.any(-1)])):
        results = gat.gatv2_attention(
            *(query, np.broadcast_to(key, query.shape), attn, form),
            edge_features=features,
            kernel=kernel,
            **options,
        )
        for a, e in zip(map(gat.as_torch, results), expected, strict=True):
            assert a.shape == e.shape
            assert_agrees(a, e.double(), e)
    layer = gatv2.GraphAttentionV2Layer(4, 6, 2, backend=backend).eval()
    config, params = gat.Config.from_torch(layer, kernel=kernel), gat.from_torch(layer)
    h = rng.normal(size=(5, 4)).astype(np.float32)
    out = gat.as_torch(gat.apply(config, params, h, graph, deterministic=True))
    exact = layer(torch.from_numpy(h), torch.from_numpy(mask)).detach()
    assert out.shape == (*shape, 5, 6)
    assert_agrees(out, exact.double(), exact)
    with pytest.raises(ValueError, match=r"the graph is a batch of .* graphs, but the features"):
        gat.apply(config, params, np.ones((7, 5, 4), np.float32), graph, deterministic=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph.add_self_loops(),
        lambda graph: graph.coalesce(),
        lambda graph: graph.coalesce().to_mask(),
        lambda graph: graph.add_self_loops().coalesce().to_mask(),
        lambda graph: gat.Graph.from_edge_index(np.array([[1, 1], [0, 2]]), 3).to_mask(),
    ],
)
@pytest.mark.parametrize("n_padding", [0, 2])
def test_what_is_known_is_known_where_a_program_is_traced(
    change: Callable[[Any], Any], n_padding: int
) -> None:
    """A graph that a compiled function closes over becomes what it does outside of it."""
    graph = gat.Graph.from_edge_index(np.array([[0, 2, 2, 0], [1, 2, 0, 1]]), 3)
    graph = graph.padded(graph.n_edges + n_padding)
    assert_equal(jax.jit(lambda: change(graph))(), change(graph))


@pytest.mark.parametrize("name", ["query_ptr", "query_index", "key_index", "edge_id", "query_mask"])
def test_what_is_traced_of_a_graph_makes_all_of_it_traced(name: str) -> None:
    """Such as a mask of nodes that is an argument, of edges that a function closes over."""
    graph = gat.Graph.from_edge_index(np.array([[0, 2, 2, 0], [1, 2, 0, 1]]), 3).padded(6, 5)
    config = gat.Config(2, 4, n_heads=2, dropout=0.0, edge_dim=1, add_self_loops=True)
    params, h, x = config.init(jax.random.key(0)), jnp.ones((5, 2)), jnp.arange(6.0)[:, None]

    def traced(change: Callable[[Any], Any]) -> Any:
        return jax.jit(lambda own: change(replace(graph, **{name: own})))(getattr(graph, name))

    def apply(graph: Any) -> Any:
        return config.apply(params, h, graph, edge_features=x)

    np.testing.assert_allclose(traced(apply), apply(graph), rtol=1e-5)
    for change in (lambda graph: graph.coalesce(), lambda graph: graph.to_mask()):
        with pytest.raises(TypeError, match=r"outside of `jit`|where the graph is traced"):
            traced(change)


@pytest.mark.parametrize("options", [{"add_self_loops": True}, {"backend": "dense"}])
@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: jax.jit(jax.grad(f))])
def test_a_compiled_layer_may_close_over_its_graph(
    transform: Callable[..., Any], options: dict[str, Any]
) -> None:
    graph = gat.Graph.from_edge_index(np.array([[0, 2, 2], [1, 2, 0]]), 3)
    config = gat.Config(2, 4, n_heads=2, dropout=0.0, **options)
    params, h = config.init(jax.random.key(0)), jnp.arange(6.0).reshape(3, 2)

    def total(h: Any, adj_mat: Any = graph) -> Any:
        return config.apply(params, h, adj_mat).sum()

    expected = jax.grad(total)(h) if transform is not jax.jit else total(h)
    for form in (graph, graph.edge_index):
        np.testing.assert_allclose(
            transform(lambda h, form=form: total(h, form))(h), expected, rtol=1e-5
        )


@pytest.mark.parametrize("add_self_loops", [False, True])
@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_a_compiled_layer_may_close_over_its_mask(
    kind: Callable[..., Any], flow: Any, add_self_loops: bool
) -> None:
    """For the sparse backend, which has to know its edges, in every form of a mask."""
    options: dict[str, Any] = {"flow": flow, "add_self_loops": add_self_loops}
    config = gat.Config(2, 4, n_heads=2, dropout=0.0, backend="sparse", **options)
    params, h = config.init(jax.random.key(0)), jnp.arange(12.0).reshape(2, 3, 2)
    mask = np.array([[True, False, False], [True, True, False], [False, True, False]])
    forms = (mask, mask[..., None], mask[..., None] * 2, mask[None, ..., None], None)
    bias = jnp.ones((3, 3, 1))
    for form in forms:
        adj_mat = None if form is None else kind(form)
        attend = partial(config.apply, params, adj_mat=adj_mat, score_bias=bias)
        np.testing.assert_allclose(jax.jit(attend)(h), attend(h), rtol=1e-5)


@pytest.mark.parametrize("kernel", ["jax", "auto"])
@pytest.mark.parametrize("sizes", [(3, 0), (0, 3), (0, 0)])
def test_padding_where_one_side_has_no_nodes(sizes: tuple[int, int], kernel: str) -> None:
    graph = gat.Graph.from_edge_index(np.zeros((2, 0), int), sizes).padded(4)
    query, key = (jnp.ones((n, 2, 3)) for n in sizes)
    arrays = query, key, jnp.ones((2, 3)), jnp.ones((4, 1))

    def attend(query: Any, key: Any, attn: Any, bias: Any) -> Any:
        options: dict[str, Any] = {"score_bias": bias, "kernel": kernel}
        return gat.gatv2_attention(query, key, attn, graph, **options)

    out, tangent = jax.jvp(attend, arrays, arrays)
    gradients = jax.grad(lambda *arrays: attend(*arrays).sum(), (0, 1, 2, 3))(*arrays)
    for result, like in zip((out, tangent, *gradients), (query, query, *arrays), strict=True):
        assert result.shape == like.shape
        assert not result.any()
    assert gat.gatv2_scores(*arrays[:3], graph).shape == (4, 2)
