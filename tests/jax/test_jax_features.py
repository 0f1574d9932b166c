"""What the PyTorch layer does, the JAX layer does, under the same names: one answer, dropout too."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gatv2
from gatv2.testing import assert_agrees

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")

N, M, D = 6, 4, 3
EDGE_INDEX = torch.tensor([[0, 4, 0, 5, 2, 4, 3, 2, 0, 4], [1, 4, 2, 0, 3, 3, 5, 2, 1, 0]])
BIPARTITE = torch.tensor([[0, 5, 0, 2, 2, 4], [1, 0, 3, 2, 2, 0]])


@pytest.fixture(autouse=True)
def _64_bits() -> Any:
    with jax.enable_x64(True):
        yield


def jit(function: Any) -> Any:
    return jax.jit(function)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mask_of(edge_index: Tensor, shape: tuple[int, int]) -> Tensor:
    mask = torch.zeros(*shape, 1, dtype=torch.bool)
    mask[edge_index[0], edge_index[1]] = True
    return mask


CASES: dict[str, dict[str, Any]] = {
    "edge features": {"edge_dim": D},
    "self-loops": {"edge_dim": D, "add_self_loops": True, "residual": True, "bias": True},
    "minimum": {"edge_dim": D, "add_self_loops": True, "fill_value": "min", "share_weights": True},
    "product": {"edge_dim": D, "add_self_loops": True, "fill_value": "mul"},
    "vector": {"edge_dim": D, "add_self_loops": True, "fill_value": torch.arange(3.0)},
    "source to target": {"edge_dim": D, "add_self_loops": True, "flow": "source_to_target"},
    "averaged": {"add_self_loops": True, "is_concat": False},
}


def assert_one_answer(layer: Any, h: Any, adj_mat: Any, in_jax: Any, **inputs: Any) -> None:
    """Result, coefficients and gradients by parameters, in training, from one seed."""
    config = gat.Config.from_torch(layer)
    out, alpha = layer(h, adj_mat, **inputs, return_attention=True, seed=9)
    weights = normal(*out.shape, seed=5)
    (out * weights).sum().backward()
    own = {name: gat.as_jax(x) for name, x in inputs.items()}
    features = tuple(map(gat.as_jax, h)) if isinstance(h, tuple) else gat.as_jax(h)

    @jit
    def step(params: Any, features: Any, own: Any) -> Any:
        def loss(params: Any) -> Any:
            results = config.apply(params, features, in_jax, **own, seed=9, return_attention=True)
            return (results[0] * gat.as_jax(weights)).sum(), results

        return jax.grad(loss, has_aux=True)(params)

    gradients, results = step(gat.from_torch(layer), features, own)
    for a, e in zip(results, (out, alpha), strict=True):
        assert_agrees(gat.as_torch(a), e.detach())
    for name, gradient in gradients.items():
        grad = layer.get_parameter(name).grad
        assert grad is not None
        assert_agrees(gat.as_torch(gradient), grad)


def test_another_answer_is_rejected() -> None:
    layer = gatv2.GraphAttentionV2Layer(5, 6, 2, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_one_answer(layer, normal(N, 5), EDGE_INDEX, EDGE_INDEX.flip(0).numpy())


@pytest.mark.parametrize("form", ["edges", "mask"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_options(options: dict[str, Any], form: str) -> None:
    layer = gatv2.GraphAttentionV2Layer(5, 6, 2, dropout=0.4, **options, dtype=torch.float64)
    h = normal(N, 5)
    adj_mat = EDGE_INDEX if form == "edges" else mask_of(EDGE_INDEX, (N, N))
    x = normal(EDGE_INDEX.shape[1], D) if form == "edges" else normal(N, N, D)
    inputs = {"edge_features": x} if "edge_dim" in options else {}
    assert_one_answer(layer, h, adj_mat, adj_mat.numpy(), **inputs)


@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
def test_bipartite(flow: Any) -> None:
    sides, edge_index = ((N, 5), (M, 3)), BIPARTITE
    if flow == "source_to_target":
        sides, edge_index = sides[::-1], edge_index.flip(0)
    layer = gatv2.GraphAttentionV2Layer(
        (sides[0][1], sides[1][1]), 6, 2, dropout=0.4, flow=flow, bias=True, dtype=torch.float64
    )
    h = (normal(*sides[0]), normal(*sides[1], seed=1))
    assert_one_answer(layer, h, edge_index, edge_index.numpy())


def test_static_control() -> None:
    layer = gatv2.GraphAttentionLayer(5, 6, 2, dropout=0.4, dtype=torch.float64)
    h, params = normal(N, 5), gat.from_torch(layer)
    config = gat.StaticConfig(5, 6, 2, dropout=0.4, param_dtype=jnp.float64)
    for adj_mat in (EDGE_INDEX, mask_of(EDGE_INDEX.unique(dim=1), (N, N))):
        expected = layer(h, adj_mat, return_attention=True, seed=3)
        actual = config.apply(params, gat.as_jax(h), adj_mat.numpy(), return_attention=True, seed=3)
        for a, e in zip(actual, expected, strict=True):
            assert_agrees(gat.as_torch(a), e.detach())
        scores = gat.attention_scores(config, params, gat.as_jax(h), adj_mat.numpy())
        finite = jnp.where(jnp.isfinite(scores), scores, 0)
        exact = layer.attention_scores(h, adj_mat).detach()
        assert_agrees(gat.as_torch(finite), exact.masked_fill(exact.isinf(), 0))


def test_stack() -> None:
    model = gatv2.GATv2(5, 8, 3, n_layers=3, n_heads=2, edge_dim=D, bias=True).double().eval()
    h, x = normal(N, 5), normal(EDGE_INDEX.shape[1], D)
    options = {"edge_dim": D, "bias": True, "param_dtype": jnp.float64}
    same = gat.GATv2(5, 8, 3, n_layers=3, n_heads=2, options=options)
    params = gat.from_torch(model)
    drawn = same.init(jax.random.key(0))
    assert {name: a.shape for name, a in drawn.items()} == {n: a.shape for n, a in params.items()}
    apply = jax.jit(same.apply, static_argnames="deterministic")
    graph = EDGE_INDEX.numpy()
    out = apply(params, gat.as_jax(h), graph, edge_features=gat.as_jax(x), deterministic=True)
    assert_agrees(gat.as_torch(out), model(h, EDGE_INDEX, edge_features=x).detach())
    one, other = (
        apply(params, gat.as_jax(h), graph, edge_features=gat.as_jax(x), rng=jax.random.key(i))
        for i in range(2)
    )
    assert not np.allclose(one, other)
    with pytest.raises(ValueError, match=r"dropout needs randomness"):
        same.apply(params, gat.as_jax(h), graph, edge_features=gat.as_jax(x))
    with pytest.raises(TypeError, match=r"can't be \['kernal'\]"):
        gat.GATv2(5, 8, 3, options={"kernal": "jax"})
    with pytest.raises(TypeError, match=r"`feature_dropout` must be a number in .*; got None"):
        gat.GATv2(5, 8, 3, feature_dropout=None)
    with pytest.raises(TypeError, match=r"`feature_dropout` must be known when a function is tr"):
        jax.jit(lambda rate: gat.GATv2(5, 8, 3, feature_dropout=rate).n_heads)(0.5)


@pytest.mark.parametrize("mode", [{"deterministic": True}, {"rng": 0}])
def test_a_stack_refuses_features_that_are_no_floating_point_numbers(mode: Any) -> None:
    """In training as in evaluation, unless its layers convert them, before some are dropped."""
    mode = {name: jax.random.key(0) if name == "rng" else value for name, value in mode.items()}
    model = gat.GATv2(3, 8, 3, n_heads=2, options={"param_dtype": "float64"})
    params, h = model.init(jax.random.key(0)), np.arange(N * 3).reshape(N, 3)
    graph = EDGE_INDEX.numpy()
    for numbers in (h, h > 2):
        with pytest.raises(TypeError, match=r"`h` must have the parameters' dtype float64; got"):
            model.apply(params, numbers, graph, **mode)
    converting = gat.GATv2(3, 8, 3, n_heads=2, options={"dtype": "float64"})
    out = converting.apply(params, h, graph, **mode)
    assert np.array_equal(out, model.apply(params, h.astype("float64"), graph, **mode))


def test_rates_of_a_stack_are_numbers_of_python() -> None:
    """Which hash, and make no other dtype of features."""
    stack = partial(gat.GATv2, 3, 8, 3, n_heads=2, options={"param_dtype": "bfloat16"})
    params, h = stack().init(jax.random.key(0)), jnp.ones((N, 3), "bfloat16")

    @partial(jax.jit, static_argnums=0)
    def apply(model: Any) -> Any:
        return model.apply(params, h, EDGE_INDEX.numpy(), rng=jax.random.key(1))

    for rate in (np.float32(0.5), jnp.float32(0.5)):
        model = stack(dropout=rate, feature_dropout=rate)
        assert model == stack(dropout=0.5, feature_dropout=0.5)
        assert apply(model).dtype == h.dtype


def test_a_stack_takes_one_set_of_features_for_a_batch_of_graphs() -> None:
    """As its layers do: that of a `Graph` is the answer of the masks that it was made of."""
    model = gat.GATv2(5, 8, 3, n_heads=2, options={"param_dtype": "float64"})
    params, h = model.init(jax.random.key(0)), gat.as_jax(normal(N, 5))
    masks = np.random.default_rng(0).random((2, N, N, 1)) < 0.5
    expected = model.apply(params, h, masks, deterministic=True)
    out = model.apply(params, h, gat.Graph.from_mask(masks), deterministic=True)
    assert out.shape == (2, N, 3)
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_a_stack_reads_its_own_parameters_and_features_alone() -> None:
    """In training as in evaluation; a layer that it does not have is not left out."""
    options = {"param_dtype": "float64"}
    model, deeper = (gat.GATv2(8, 8, 8, n_layers=n, n_heads=1, options=options) for n in (2, 3))
    params, h, graph = model.init(jax.random.key(0)), gat.as_jax(normal(N, 8)), EDGE_INDEX.numpy()
    call: dict[str, Any]
    for call in ({"rng": jax.random.key(0)}, {"deterministic": True}):
        with pytest.raises(ValueError, match=r"n_layers=2 layers.* besides \['layers.2.attn'"):
            model.apply(deeper.init(jax.random.key(0)), h, graph, **call)
        with pytest.raises(ValueError, match=r"besides \['encoder.attn'\]"):
            model.apply(params | {"encoder.attn": h}, h, graph, **call)
        with pytest.raises(TypeError, match=r"`params` must be a dict .*apply\(params, h"):
            model.apply(h, params, graph, **call)
        with pytest.raises(TypeError, match=r"`h` must be an array .*; got list"):
            model.apply(params, h.tolist(), graph, **call)


def test_a_stack_is_static_whatever_its_options() -> None:
    """Options are as a layer reads them: the same said otherwise is the same stack, which hashes."""
    one, other = (
        gat.GATv2(5, 8, 3, options={"edge_dim": D, "fill_value": fill, "dtype": dtype})
        for fill, dtype in (([0, 1, 2], "float32"), (np.arange(3.0), jnp.float32))
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one != gat.GATv2(5, 8, 3, options={"edge_dim": D, "fill_value": 1, "dtype": "float32"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_joins_parts_hides_no_nan(value: float) -> None:
    """Neither in the result nor in its log-sum-exp; the other queries are as they were."""
    lse = jnp.array([[[value], [0.0], [-np.inf]], [[1.0], [1.0], [-np.inf]]])
    out = jnp.where(jnp.isfinite(lse), 1.0, jnp.where(lse == -jnp.inf, 0.0, jnp.nan))[..., None]
    join = jax.vmap(partial(gat.join_parts, axis_name="parts"), axis_name="parts")
    for results in zip(*join(out, lse), strict=True):
        joined, joined_lse = (x.ravel() for x in results)
        assert jnp.isnan(joined[0])
        assert jnp.isnan(joined_lse[0])
        np.testing.assert_allclose(joined[1:], [1, 0])
        np.testing.assert_allclose(joined_lse[1:], [np.logaddexp(0, 1), -np.inf])


def test_log_sum_exp_joins_parts() -> None:
    """Attention over parts of the keys, joined, is attention over all."""
    query, key, attn = (gat.as_jax(normal(*shape)) for shape in ((N, 2, 3), (M, 2, 3), (2, 3)))
    edges = BIPARTITE.numpy()
    whole = gat.gatv2_attention(query, key, attn, edges, return_lse=True)
    parts = [
        gat.gatv2_attention(query, key, attn, edges[:, rows], return_lse=True)
        for rows in (slice(0, 3), slice(3, None))
    ]
    lse = jnp.logaddexp(parts[0][1], parts[1][1])
    shares = [jnp.where(jnp.isfinite(lse), jnp.exp(part[1] - lse), 0) for part in parts]
    joined = sum(share[..., None] * part[0] for share, part in zip(shares, parts, strict=True))
    assert np.allclose(joined, whole[0], atol=1e-12)
    assert np.array_equal(np.isfinite(whole[1]).any(1), np.isin(np.arange(N), edges[0]))


def test_self_loops_under_jit() -> None:
    """Those that there were become padding: the result is the same, in every bit of the sums."""
    layer = gatv2.GraphAttentionV2Layer(
        5, 6, 2, edge_dim=D, add_self_loops=True, dropout=0.0, dtype=torch.float64
    )
    config, params = gat.Config.from_torch(layer), gat.from_torch(layer)
    h, x = gat.as_jax(normal(N, 5)), gat.as_jax(normal(EDGE_INDEX.shape[1], D))
    graph = gat.Graph.from_edge_index(EDGE_INDEX.numpy(), N)
    outside = config.apply(params, h, graph, edge_features=x)

    @jit
    def inside(graph: Any, x: Any) -> Any:
        return config.apply(params, h, graph, edge_features=x, return_attention=True)

    for padding in (0, 3):
        padded = jnp.pad(x, ((0, padding), (0, 0)), constant_values=jnp.nan)
        out, alpha = inside(graph.padded(graph.n_edges + padding), padded)
        assert_agrees(gat.as_torch(out), gat.as_torch(outside))
        assert alpha.shape == (graph.n_edges + padding + N, 2)
        is_loop = (EDGE_INDEX[0] == EDGE_INDEX[1]).numpy()
        assert not alpha[: graph.n_edges][is_loop].any()


@pytest.mark.parametrize("fill_value", ["mean", "sum", "min", "max", "mul"])
def test_what_self_loops_reduce_has_the_gradients_of_pytorch(fill_value: Any) -> None:
    """Also where values are equal or zero, which a product must not divide by."""
    layer = gatv2.GraphAttentionV2Layer(
        5, 6, 2, edge_dim=D, add_self_loops=True, fill_value=fill_value, dtype=torch.float64
    ).eval()
    h, x = normal(N, 5), normal(EDGE_INDEX.shape[1], D).round().requires_grad_()
    (expected,) = torch.autograd.grad(layer(h, EDGE_INDEX, edge_features=x).sum(), x)
    config, params = gat.Config.from_torch(layer), gat.from_torch(layer)

    def total(x: Any, edge_index: Any) -> Any:
        return config.apply(
            params, gat.as_jax(h), edge_index, edge_features=x, deterministic=True
        ).sum()

    gradient = jax.grad(total)
    for function in (gradient, jit(gradient)):
        actual = function(gat.as_jax(x), gat.as_jax(EDGE_INDEX))
        assert_agrees(gat.as_torch(actual), expected)


def test_batches_of_graphs_share_a_compilation() -> None:
    """Batched and padded, results and gradients are those of each graph alone."""
    rng = np.random.default_rng(0)
    config = gat.Config(5, 6, 2, edge_dim=D, dropout=0.0, param_dtype=jnp.float64)
    params = config.init(jax.random.key(0))
    traces = 0

    @jit
    def step(params: Any, graph: Any, h: Any, x: Any) -> Any:
        nonlocal traces
        traces += 1

        def loss(params: Any) -> Any:
            out = config.apply(params, h, graph, edge_features=x)
            return (out**2).sum(), out

        return jax.grad(loss, has_aux=True)(params)

    for _ in range(2):
        sizes = rng.integers(1, 8, 3)
        graphs = [gat.Graph.from_edge_index(rng.integers(0, n, (2, 2 * n)), int(n)) for n in sizes]
        hs = [rng.normal(size=(n, 5)) for n in sizes]
        xs = [rng.normal(size=(2 * n, D)) for n in sizes]
        n_nodes, n_edges = 25, 50
        batch = gat.Graph.batch(graphs)
        assert np.array_equal(
            batch.by_key.query,
            gat.Graph.from_edge_index(np.asarray(batch.edge_index), batch.n_queries).by_key.query,
        )
        h, x = np.full((n_nodes, 5), np.nan), np.full((n_edges, D), np.nan)
        h[: sum(sizes)], x[: 2 * sum(sizes)] = np.concatenate(hs), np.concatenate(xs)
        gradients, out = step(params, batch.padded(n_edges, n_nodes), h, x)
        begin, total = 0, jax.tree.map(jnp.zeros_like, params)
        for graph, own_h, own_x in zip(graphs, hs, xs, strict=True):
            alone = config.apply(params, own_h, graph, edge_features=own_x)
            assert_agrees(gat.as_torch(out[begin : begin + len(own_h)]), gat.as_torch(alone))
            of_one = jax.grad(
                lambda params, *inputs: (
                    config.apply(params, inputs[0], inputs[2], edge_features=inputs[1]) ** 2
                ).sum()
            )(params, own_h, own_x, graph)
            total = jax.tree.map(jnp.add, total, of_one)
            begin += len(own_h)
        assert not out[begin:].any()
        for name, gradient in gradients.items():
            assert_agrees(gat.as_torch(gradient), gat.as_torch(total[name]))
    assert traces == 1
    with pytest.raises(ValueError, match=r"pad the batch"):
        gat.Graph.batch([graphs[0].padded(50)])
    of_generator = gat.Graph.batch(graph for graph in graphs)
    assert np.array_equal(of_generator.edge_index, batch.edge_index)
    for none in (graphs[:0], iter(graphs[:0])):
        with pytest.raises(ValueError, match=r"at least one graph"):
            gat.Graph.batch(none)


def test_graphs_cross_and_are_saved(tmp_path: Path) -> None:
    edges = torch.cat((EDGE_INDEX, EDGE_INDEX[:, :3]), dim=1)  # parallel ones
    in_torch = gatv2.Graph.from_edge_index(edges, N)
    graph = gat.Graph.from_torch(in_torch)
    assert torch.equal(graph.to_torch().edge_index, in_torch.edge_index)
    assert np.array_equal(graph.coalesce().edge_index, in_torch.coalesce().edge_index)
    mask = in_torch.coalesce().to_mask()
    assert np.array_equal(graph.coalesce().to_mask(), mask)
    looped = in_torch.add_self_loops().edge_index
    assert np.array_equal(graph.add_self_loops().edge_index, looped)
    with pytest.raises(ValueError, match=r"parallel edges.*graph\.coalesce\(\)"):
        graph.to_mask()
    graph.save(tmp_path / "graph.safetensors")
    assert torch.equal(gatv2.Graph.load(tmp_path / "graph.safetensors").edge_index, edges)
    assert np.array_equal(gat.Graph.load(tmp_path / "graph.safetensors").edge_index, edges)
    with pytest.raises(ValueError, match=r"has no padding, and this graph has"):
        graph.padded(50).save(tmp_path / "padded.safetensors")


def test_graphs_of_jraph() -> None:
    """Receivers attend to senders."""
    graphs = SimpleNamespace(
        nodes={"h": np.ones((N, 2))},
        senders=EDGE_INDEX[1].numpy(),
        receivers=EDGE_INDEX[0].numpy(),
        n_node=np.array([4, 2]),
    )
    expected = EDGE_INDEX.numpy()
    assert np.array_equal(gat.Graph.from_graphs_tuple(graphs).edge_index, expected)
    graphs.nodes = None
    assert np.array_equal(gat.Graph.from_graphs_tuple(graphs).edge_index, expected)


def test_sparse_matrices() -> None:
    """Their edges are the entries that are not zero, after duplicates are summed."""
    from jax.experimental.sparse import BCOO, BCSR
    from scipy import sparse

    dense = np.array([[0, 2, 0], [0, 0, 0], [1, -1, 0]], np.float32)
    sizes = gat.adjacency.Sizes(3, 3, 1, ())
    read = {"flow": "target_to_source", "backend": "sparse"}
    expected = gat.adjacency.as_adjacency(dense != 0, sizes, **read).edge_index
    indices = jnp.array([[2, 1], [0, 1], [0, 2], [0, 2], [2, 0], [3, 3]])
    entries = BCOO((jnp.array([-1.0, 2.0, 1.0, -1.0, 1.0, 9.0]), indices), shape=(3, 3))
    for matrix in (
        entries,
        BCOO.fromdense(jnp.asarray(dense)),
        BCSR.from_bcoo(BCOO.fromdense(jnp.asarray(dense))),
        sparse.csr_array(dense),
    ):
        assert np.array_equal(
            gat.adjacency.as_adjacency(matrix, sizes, **read).edge_index, expected
        )
    with pytest.raises(ValueError, match=r"must have shape \(3, 3\); got \(3, 4\)"):
        gat.adjacency.as_adjacency(sparse.csr_array((3, 4)), sizes, **read)
    with pytest.raises(TypeError, match=r"only outside of `jit`"):
        jax.jit(lambda matrix: gat.adjacency.as_adjacency(matrix, sizes, **read).n_edges)(entries)


@pytest.mark.parametrize("form", ["edges", "graph", "padded", "mask"])
@pytest.mark.parametrize("is_traced", [False, True])
def test_a_node_without_edges_attends_to_its_self_loop(form: str, is_traced: bool) -> None:
    """Its result is its own value; features are zeroed of nodes alone that nothing reads."""
    n_nodes, alone = N + 2, N
    config = gat.Config(5, 6, 2, add_self_loops=True, dropout=0.0, param_dtype="float64")
    params, h = config.init(jax.random.key(0)), gat.as_jax(normal(n_nodes, 5))
    forms: dict[str, Any] = {
        "edges": EDGE_INDEX.numpy(),
        "graph": gat.Graph.from_edge_index(EDGE_INDEX.numpy(), n_nodes),
        "padded": gat.Graph.from_edge_index(EDGE_INDEX.numpy(), n_nodes - 1).padded(12, n_nodes),
        "mask": mask_of(EDGE_INDEX, (n_nodes, n_nodes)).numpy(),
    }
    apply = jit(config.apply) if is_traced else config.apply
    out = apply(params, h, forms[form])
    np.testing.assert_allclose(out[alone], params["linear_r.weight"] @ h[alone], atol=1e-12)
