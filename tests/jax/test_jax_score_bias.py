"""A bias of the scores in JAX is PyTorch's: values, gradients, and what minus infinity takes away."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import gatv2
from gatv2.functional import gat_attention, gat_scores, gatv2_scores
from gatv2.graph import add_self_loops as of_torch_loops
from gatv2.options import REDUCTIONS
from gatv2.testing import assert_agrees

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
of_jax_loops = pytest.importorskip("gatv2.jax.self_loops").add_self_loops

N, M, H, F, D = 6, 5, 3, 4, 2
KERNELS = [("dense", "auto"), ("dense", "jax"), ("sparse", "auto"), ("sparse", "jax")]
kernels = pytest.mark.parametrize(("backend", "kernel"), KERNELS)
attend_in_torch: Any = gatv2.gatv2_attention  # of arguments that are given in dictionaries
NAMES = ("score_bias", "edge_features", "edge_projection")


@pytest.fixture(autouse=True)
def _64_bits() -> Any:
    with jax.enable_x64(True):
        yield


def draw_bias(rng: np.random.Generator, *shape: int) -> Any:
    """A bias, a third of it minus infinity."""
    return np.where(rng.random(shape) < 0.3, -math.inf, rng.normal(size=shape))


def draw_features(rng: np.random.Generator, *batch: int) -> list[Any]:
    """Query, key and attn."""
    shapes = ((*batch, N, H, F), (*batch, M, H, F), (H, F))
    return [rng.normal(size=shape) for shape in shapes]


def in_torch(arrays: list[Any], cotangents: list[Any], graph: Any, **options: Any) -> list[Any]:
    """Out, alpha, and the gradients of query, key, attn, bias, and what edges have."""
    leaves: Any = [torch.from_numpy(x).requires_grad_() for x in arrays]
    named: Any = dict(zip(NAMES, leaves[3:], strict=False))
    graph = None if graph is None else torch.from_numpy(graph)
    results = attend_in_torch(
        *leaves[:3], graph, kernel="torch", return_attention=True, **named, **options
    )
    gradients = torch.autograd.grad(results, leaves, [torch.from_numpy(x) for x in cotangents])
    return [*(x.detach() for x in results), *gradients]


def in_jax(arrays: list[Any], cotangents: list[Any], graph: Any, **options: Any) -> list[Any]:
    """The same under `jit`, but for a graph that becomes a mask, whose edges must be known."""
    is_known = not isinstance(graph, gat.Graph)
    compiled: Any = (lambda x: x) if options.get("backend") == "dense" and not is_known else jax.jit

    def step(leaves: Any, cotangents: Any, traced: Any) -> Any:
        def attend(*leaves: Any) -> Any:
            named: Any = dict(zip(NAMES, leaves[3:], strict=False))
            read = graph if is_known else traced
            return gat.gatv2_attention(*leaves[:3], read, return_attention=True, **named, **options)

        results, pullback = jax.vjp(attend, *leaves)
        return *results, *pullback(cotangents)

    leaves, given = (tuple(map(jnp.asarray, x)) for x in (arrays, cotangents))
    values = compiled(step)(leaves, given, None if is_known else graph)
    return [gat.as_torch(x) for x in values]


def assert_same(actual: list[Any], expected: list[Any]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_agrees(a, e)


@kernels
@pytest.mark.parametrize("heads", [1, H])
def test_of_a_list_of_edges(backend: str, kernel: str, heads: int) -> None:
    """In any order, parallel but for a mask; of padding nothing is read, and its gradient is zero."""
    rng = np.random.default_rng(heads)
    edge_index = rng.integers(0, (N, M), (14, 2)).T
    if backend == "dense":
        edge_index = np.unique(edge_index, axis=1)[:, ::-1].copy()
    n_edges, n_padding = edge_index.shape[1], 4
    bias = draw_bias(rng, n_edges, heads)
    bias[edge_index[0] == 2] = -math.inf
    arrays = [*draw_features(rng), bias]
    d_out, d_alpha = rng.normal(size=(N, H, F)), rng.normal(size=(n_edges, H))
    options: Any = {"dropout": 0.3, "seed": 7}
    graph = gat.Graph.from_edge_index(edge_index, (N, M))
    if backend == "dense":
        cotangents = [d_out, rng.normal(size=(N, M, H))]
        assert_same(
            in_jax(arrays, cotangents, graph, backend="dense", kernel=kernel, **options),
            in_torch(arrays, cotangents, edge_index, backend="dense", **options),
        )
        return
    expected = in_torch(arrays, [d_out, d_alpha], edge_index, **options)
    graph = graph.padded(n_edges + n_padding)
    arrays[3] = np.concatenate((bias, np.full((n_padding, heads), math.nan)))
    d_alpha = np.concatenate((d_alpha, np.ones((n_padding, H))))
    *actual, d_bias = in_jax(arrays, [d_out, d_alpha], graph, kernel=kernel, **options)
    assert not d_bias[n_edges:].any()
    assert not d_bias[:n_edges][torch.from_numpy(bias == -math.inf)].any()
    actual[1], d_bias = actual[1][:n_edges], d_bias[:n_edges]
    assert not actual[0][2].any()
    assert_same([*actual, d_bias], expected)


@kernels
@pytest.mark.parametrize(
    ("heads", "mask_shape"), [(1, (2, M, N, 1)), (1, (M, N, H)), (H, (2, M, N, H)), (H, None)]
)
def test_of_a_mask(
    backend: str, kernel: str, heads: int, mask_shape: tuple[int, ...] | None
) -> None:
    """With masks of heads or none, a batch, dropout, and edge features, in either direction."""
    rng = np.random.default_rng(3)
    mask = None if mask_shape is None else rng.random(mask_shape) < 0.6
    bias = draw_bias(rng, 2, M, N, heads)
    bias[1, :, 4] = -math.inf
    x, projection = rng.normal(size=(M, N, D)), rng.normal(size=(H, F, D))
    arrays = [*draw_features(rng, 2), bias, x, projection]
    options: Any = {"dropout": 0.3, "seed": 5, "flow": "source_to_target", "backend": backend}
    n_edges = N * M if mask is None else int(mask.any(-1).sum())
    of_graph: tuple[int, ...] = (2, n_edges) if backend == "sparse" else (2, N, M)
    if mask is not None and mask.ndim == 4 and backend == "sparse":
        of_graph = (n_edges,)  # of both graphs of the batch
    cotangents = [rng.normal(size=(2, N, H, F)), rng.normal(size=(*of_graph, H))]
    assert_same(
        in_jax(arrays, cotangents, mask, kernel=kernel, **options),
        in_torch(arrays, cotangents, mask, **options),
    )


@kernels
def test_half_precision(backend: str, kernel: str) -> None:
    """In bfloat16 as good as PyTorch, and in that dtype."""
    rng = np.random.default_rng(9)
    mask, bias = rng.random((N, M, 1)) < 0.6, draw_bias(rng, N, M, 1)
    leaves = [torch.from_numpy(x).bfloat16() for x in (*draw_features(rng), bias)]
    cotangent = torch.from_numpy(rng.normal(size=(N, H, F))).bfloat16()

    def by_torch(dtype: torch.dtype) -> list[Any]:
        of_dtype: Any = [x.to(dtype).requires_grad_() for x in leaves]
        query, key, attn, last = of_dtype
        options: Any = {"score_bias": last, "backend": "dense", "kernel": "torch"}
        out = attend_in_torch(query, key, attn, torch.from_numpy(mask), **options)
        return [out.detach(), *torch.autograd.grad(out, of_dtype, cotangent.to(dtype))]

    def attend(query: Any, key: Any, attn: Any, bias: Any) -> Any:
        options: Any = {"score_bias": bias, "backend": backend, "kernel": kernel}
        return gat.gatv2_attention(query, key, attn, mask, **options)

    def step(*leaves: Any) -> Any:
        out, pullback = jax.vjp(attend, *leaves)
        return out, *pullback(gat.as_jax(cotangent))

    actual = map(gat.as_torch, jax.jit(step)(*map(gat.as_jax, leaves)))
    expected = zip(by_torch(torch.float64), by_torch(torch.bfloat16), strict=True)
    for a, (e, r) in zip(actual, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert_agrees(a, e, r)


def test_agreement_sees_another_bias() -> None:
    """What it must reject: a bias that is left out, or in another order."""
    rng = np.random.default_rng(0)
    edge_index = rng.integers(0, (N, M), (14, 2)).T.copy()
    *arrays, bias = *draw_features(rng), rng.normal(size=(14, 1))
    cotangents = [rng.normal(size=(N, H, F)), rng.normal(size=(14, H))]
    expected = in_torch([*arrays, bias], cotangents, edge_index)
    for wrong in (np.zeros_like(bias), bias[::-1].copy()):
        actual = in_jax([*arrays, wrong], cotangents, jnp.asarray(edge_index))
        with pytest.raises(AssertionError, match=r"largest error"):
            assert_agrees(actual[0], expected[0])


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_transformations_of_the_fused_kernel(backend: str) -> None:
    """`vmap` over biases, a Hessian, and forward mode, backward too, are those of plain JAX."""
    rng = np.random.default_rng(2)
    mask = rng.random((N, M, 1)) < 0.6
    graph: Any = jnp.asarray(mask) if backend == "dense" else gat.Graph.from_mask(mask).padded(28)
    shape = (N, M, 1) if backend == "dense" else (28, H)
    query, key, attn = map(jnp.asarray, draw_features(rng))
    biases = jnp.asarray(draw_bias(rng, 3, *shape))
    weight = jnp.asarray(rng.normal(size=(N, H, F)))
    directions = [jnp.asarray(rng.normal(size=x.shape)) for x in (query, key, attn, biases[0])]

    def loss(kernel: str, query: Any, key: Any, attn: Any, bias: Any) -> Any:
        out, lse = gat.gatv2_attention(
            query, key, attn, graph, score_bias=bias, kernel=kernel, return_lse=True
        )
        return (out**2 * weight).sum() + jnp.where(jnp.isfinite(lse), lse, 0).sum()

    def results(kernel: str) -> Any:
        function = partial(loss, kernel)
        gradients = jax.grad(function, (0, 1, 2, 3))
        inputs = (query, key, attn, biases[0])

        def along(*inputs: Any) -> Any:
            return jax.jvp(function, inputs, tuple(directions))[1]

        return (
            jax.vmap(gradients, (None, None, None, 0))(query, key, attn, biases),
            jax.vmap(jax.vmap(function, (None, None, 0, None)), (None, None, None, 0))(
                query, key, jnp.stack((attn, -attn)), biases
            ),
            along(*inputs),
            jax.grad(along, (0, 1, 2, 3))(*inputs),
            jax.hessian(function, (2, 3))(*inputs),
        )

    fused, plain = (
        jax.tree.leaves(jax.jit(partial(results, kernel))()) for kernel in ("numba", "jax")
    )
    assert all(bool(jnp.isfinite(x).all()) for x in plain)
    assert_same(list(map(gat.as_torch, fused)), list(map(gat.as_torch, plain)))
    single = jax.grad(partial(loss, "jax"), 3)(query, key, attn, biases[1])
    assert_agrees(gat.as_torch(plain[3][1]), gat.as_torch(single))


@pytest.mark.parametrize("kernel", ["auto", "jax"])
def test_in_blocks_of_edges(kernel: str) -> None:
    """A list of edges so long that plain JAX cuts it up."""
    rng = np.random.default_rng(4)
    n, n_edges = 50, 5000
    edge_index = rng.integers(0, n, (2, n_edges))
    shapes = ((n, 2, 64), (n, 2, 64), (2, 64))
    arrays = [*(rng.normal(size=shape) for shape in shapes), draw_bias(rng, n_edges, 2)]
    assert gat.blocks.count_blocks(n_edges, 2 * 64) > 1
    cotangents = [rng.normal(size=(n, 2, 64)), rng.normal(size=(n_edges, 2))]
    expected = in_torch(arrays, cotangents, edge_index)
    graph = gat.Graph.from_edge_index(edge_index, n)
    assert_same(in_jax(arrays, cotangents, graph, kernel=kernel), expected)
    inputs = tuple(map(jnp.asarray, arrays))
    attend = partial(gat.gatv2_attention, kernel=kernel)
    _, tangent = jax.jvp(lambda *x: attend(*x[:3], graph, score_bias=x[3]), inputs, inputs)
    products = sum(
        (gradient * torch.from_numpy(x).nan_to_num(neginf=0)).sum()
        for gradient, x in zip(
            in_torch(arrays, [cotangents[0], 0 * cotangents[1]], edge_index)[2:],
            arrays,
            strict=True,
        )
    )
    assert_agrees(gat.as_torch((tangent * cotangents[0]).sum()), products)


@kernels
def test_what_is_removed_may_be_nan(backend: str, kernel: str) -> None:
    """A node whose edges a bias takes away reaches no result and no gradient."""
    rng = np.random.default_rng(5)
    query, key, attn = draw_features(rng)
    bias = rng.normal(size=(N, M, 1))
    bias[:, 3], bias[1] = -math.inf, -math.inf
    cotangent = rng.normal(size=(N, H, F))
    options: Any = {"backend": backend, "kernel": kernel}

    def step(query: Any, key: Any) -> Any:
        def attend(*leaves: Any) -> Any:
            return gat.gatv2_attention(*leaves[:3], None, score_bias=leaves[3], **options)

        out, pullback = jax.vjp(attend, *map(jnp.asarray, (query, key, attn, bias)))
        return [gat.as_torch(x) for x in (out, *pullback(jnp.asarray(cotangent)))]

    clean = step(query, key)
    query[1], key[3] = math.nan, math.nan
    assert_same(step(query, key), clean)


@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("by_bias", [True, False])
def test_so_it_may_in_the_control(backend: Any, by_bias: bool) -> None:
    """Also where a mask, of heads or of nodes, takes the edges away."""
    rng = np.random.default_rng(5)
    query, key, attn = draw_features(rng)
    attn_key = attn[::-1].copy()
    bias, mask = rng.normal(size=(N, M, H)), np.ones((N, M, H), bool)
    used = np.ones((N, M, H), bool)
    used[:, 3], used[1], used[:, 2, 0] = False, False, False
    if by_bias:
        bias[~used] = -math.inf
    else:
        mask = used
    d_out = jnp.asarray(rng.normal(size=(N, H, F)))

    def step(query: Any, key: Any) -> Any:
        def attend(*leaves: Any) -> Any:
            *features, last = leaves
            return gat.gat_attention(*features, mask, score_bias=last, backend=backend)

        leaves = map(jnp.asarray, (query, key, attn, attn_key, bias))
        out, pullback = jax.vjp(attend, *leaves)
        return [gat.as_torch(x) for x in (out, *pullback(d_out))]

    clean = step(query, key)
    query[1], key[3], key[2, 0] = math.nan, math.nan, math.inf
    assert_same(step(query, key), clean)


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_scores_and_the_control(backend: Any) -> None:
    rng = np.random.default_rng(6)
    edge_index = np.unique(rng.integers(0, (N, M), (14, 2)), axis=0)[::-1].T.copy()
    bias = draw_bias(rng, edge_index.shape[1], H)
    query, key, attn = draw_features(rng)
    in_dense: Any = {"backend": backend}
    tensors = [torch.from_numpy(x) for x in (query, key, attn, edge_index, bias)]
    arrays = [jnp.asarray(x) for x in (query, key, attn, edge_index, bias)]
    functions: list[tuple[Any, Any, int]] = [
        (gatv2_scores, gat.gatv2_scores, 1),
        (gat_scores, gat.gat_scores, 2),
        (gat_attention, gat.gat_attention, 2),
    ]
    for of_torch, of_jax, n_vectors in functions:
        expected = of_torch(
            *tensors[:2], *tensors[2:3] * n_vectors, tensors[3], score_bias=tensors[4], **in_dense
        )
        actual = of_jax(
            *arrays[:2], *arrays[2:3] * n_vectors, arrays[3], score_bias=arrays[4], **in_dense
        )
        removed = expected == -math.inf
        assert bool(removed.any()) == (of_torch is not gat_attention)
        assert torch.equal(gat.as_torch(actual) == -math.inf, removed)
        assert_agrees(gat.as_torch(actual)[~removed], expected[~removed])


@pytest.mark.parametrize("form", ["list", "mask", "all"])
def test_of_layers(form: str) -> None:
    """Functions, modules of Flax and Equinox, and stacks are PyTorch's, with self-loops and flow."""
    rng = np.random.default_rng(8)
    n = 5
    h = rng.normal(size=(n, 4))
    graph: Any = {
        "list": rng.integers(0, n, (2, 9)),
        "mask": rng.random((n, n, 1)) < 0.5,
        "all": None,
    }[form]
    bias = draw_bias(rng, *((9, 1) if form == "list" else (n, n, 1)))
    options: Any = {"flow": "source_to_target", "add_self_loops": True, "dropout": 0.0}
    options["loop_bias"] = {"list": "mean", "mask": "max", "all": -0.5}[form]
    layer = gatv2.GraphAttentionV2Layer(4, 4, 2, **options).double()
    in_torch = (torch.from_numpy(h), None if graph is None else torch.from_numpy(graph))
    with torch.no_grad():
        expected = layer(*in_torch, score_bias=torch.from_numpy(bias))
        without = layer(
            in_torch[0], torch.ones(n, n, dtype=torch.bool) if graph is None else in_torch[1]
        )
    with pytest.raises(AssertionError, match=r"largest error"):
        assert_agrees(without, expected)
    config, params = gat.Config.from_torch(layer), gat.from_torch(layer)
    of_graph = None if graph is None else jnp.asarray(graph)
    inputs = (jnp.asarray(h), of_graph)
    assert_agrees(gat.as_torch(gat.apply(config, params, *inputs, score_bias=bias)), expected)
    of_config = jax.jit(lambda bias: config.apply(params, *inputs, score_bias=bias))
    assert_agrees(gat.as_torch(of_config(jnp.asarray(bias))), expected)
    scores = gat.attention_scores(config, params, *inputs, score_bias=bias)
    exact = layer.attention_scores(*in_torch, score_bias=torch.from_numpy(bias)).detach()
    is_there = exact > -math.inf
    assert_agrees(gat.as_torch(scores)[is_there], exact[is_there])
    for module in modules(params, **options):
        assert_agrees(gat.as_torch(module(*inputs, score_bias=bias)), expected)

    model = gatv2.GATv2(
        4, 6, 3, n_heads=2, dropout=0.0, feature_dropout=0.0, flow="source_to_target"
    )
    model = model.double()
    stack = gat.GATv2(
        4, 6, 3, n_heads=2, dropout=0.0, feature_dropout=0.0, options={"flow": "source_to_target"}
    )
    out = stack.apply(gat.from_torch(model), *inputs, score_bias=bias)
    with torch.no_grad():
        assert_agrees(gat.as_torch(out), model(*in_torch, score_bias=torch.from_numpy(bias)))


def modules(params: Any, **options: Any) -> Any:
    """The layer of Flax and of Equinox, where they are installed."""
    try:
        from flax import nnx

        from gatv2.jax import nnx as of_flax
    except ImportError:
        pass
    else:
        module = of_flax.GraphAttentionV2Layer(
            4, 4, 2, rngs=nnx.Rngs(0), param_dtype=jnp.float64, **options
        )
        module.load(params)
        yield module
    try:
        from gatv2.jax import equinox as of_equinox
    except ImportError:
        return
    layer = of_equinox.GraphAttentionV2Layer(
        4, 4, 2, key=jax.random.key(0), dtype=jnp.float64, **options
    )
    yield layer.with_params(params)


@pytest.mark.parametrize("how", REDUCTIONS)
def test_the_bias_of_added_self_loops(how: Any) -> None:
    """Reduced as in PyTorch, of a list and of a mask, in float64 and, rounded once, in bfloat16."""
    rng = np.random.default_rng(7)
    n = 301
    edge_index = np.stack((np.zeros(n - 1, int), np.arange(1, n)))
    bias = torch.from_numpy(draw_bias(rng, n - 1, 2) / 100)
    bias[5] = -math.inf
    pairs = bias.new_zeros(n, n, 2)
    pairs[0, 1:] = bias
    in_torch = gatv2.Graph.from_edge_index(torch.from_numpy(edge_index), n)
    in_jax = gat.Graph.from_edge_index(edge_index, n)
    for dtype in (torch.float64, torch.bfloat16):
        forms: list[Any] = [
            (in_torch, in_jax, bias),
            (in_torch.to_mask(), in_jax.to_mask(), pairs),
        ]
        for of_torch, of_jax, values in forms:
            given = values.to(dtype)
            expected: Any = of_torch_loops(of_torch, given, how, is_bias=True)[1]
            actual = gat.as_torch(of_jax_loops(of_jax, gat.as_jax(given), how, is_bias=True)[1])
            removed = expected == -math.inf
            assert torch.equal(actual == -math.inf, removed)
            assert_agrees(actual[~removed], expected[~removed].double(), expected[~removed])


def test_all_pairs_are_no_constant() -> None:
    """Of a graph that is None nothing is baked into a program; of a mask that is known, all is."""
    query, key, attn = map(jnp.asarray, draw_features(np.random.default_rng(0)))

    def largest(graph: Any) -> int:
        attend = partial(gat.gatv2_attention, graph=graph, kernel="jax")
        program = jax.make_jaxpr(lambda bias: attend(query, key, attn, score_bias=bias))
        masks = [x for x in program(jnp.zeros((N, M, 1))).consts if x.dtype == bool]
        return max(map(np.size, masks), default=0)

    assert largest(None) == 0
    assert largest(np.ones((N, M, 1), bool)) == N * M


def test_what_does_not_fit_is_an_error() -> None:
    query, key, attn = map(jnp.asarray, draw_features(np.random.default_rng(0)))
    edge_index = jnp.array([[0, 1, 1], [2, 0, 2]])
    graphs = gat.Graph.from_mask(np.ones((2, 2, 2, 1), bool))
    batch = jnp.zeros((2, 2, H, F))
    mask = jnp.ones((N, M, 1), bool)
    ones, zeros = jnp.ones, jnp.zeros
    cases: list[tuple[type[Exception], str, Any, Any]] = [
        (TypeError, r"graph is None: .*`score_bias`", None, None),
        (TypeError, r"`score_bias` must be an array .*got list", edge_index, [0.0] * 3),
        (TypeError, r"must have the dtype of `query`", edge_index, zeros((3, 1), "f4")),
        (TypeError, r"a mask of bools: .* as `adj_mat`", edge_index, ones((3, 1), bool)),
        (ValueError, r"repeat it for all pairs, `jnp", None, zeros((1, M, 1))),
        (ValueError, r"of heads, 1 or 3; got shape \(3, 2\)", edge_index, zeros((3, 2))),
        (ValueError, r"`score_bias` .*n_edges=3, 1 or n_heads\)", edge_index, zeros((4, 1))),
        (ValueError, r"`score_bias` .*, 6, 5, 1 or n_heads\)", mask, zeros((M, N, 1))),
        (ValueError, r"of `score_bias`, \(2,\)", ones((3, N, M, 1)), zeros((2, N, M, 1))),
        (ValueError, r"or the mask as `score_bias`", jnp.full((N, M, 1), -jnp.inf), None),
        (ValueError, r"or that as `score_bias`", jnp.full((N, M, 1), -1e9), None),
    ]
    for error, message, graph, bias in cases:
        with pytest.raises(error, match=message):
            gat.gatv2_attention(query, key, attn, graph, score_bias=bias)
    with pytest.raises(ValueError, match=r"a batch of 2 graphs: `score_bias` must have shape"):
        gat.gatv2_attention(batch, batch, attn, graphs, score_bias=zeros((2, 8, 1)))
