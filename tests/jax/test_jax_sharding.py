"""Over four devices attention gives what one device gives, and nothing is sent that need not be.

Batch, heads, queries and keys are cut up, by `shard_map` and by meshes with Auto and Explicit axes; with
gradients, dropout, features of edges and a bias of the scores.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
from gatv2.jax.edge_features import EdgeInputs  # noqa: E402
from gatv2.jax.fused import Options  # noqa: E402
from gatv2.jax.sparse import pallas_kernel  # noqa: E402
from gatv2.jax.sparse.tangent import Features  # noqa: E402

P, NamedSharding = jax.sharding.PartitionSpec, jax.sharding.NamedSharding
AxisType = jax.sharding.AxisType

B, N, M, H, F, D = 2, 8, 4, 8, 3, 2
SEED = 2**40 + 5
COLLECTIVES = "all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"


class Inputs(NamedTuple):
    """Of attention, as arrays, parts of arrays, or how they are cut up."""

    query: Any
    key: Any
    attn: Any
    edge_features: Any
    edge_projection: Any
    score_bias: Any


Attend = Callable[..., Any]
"""Attention of `Inputs` and a graph."""


def attend(inputs: Inputs, graph: Any, *, kernel: str = "auto", **options: Any) -> Any:
    """With all that a call may have."""
    query, key, attn, *edges = inputs
    names = ("edge_features", "edge_projection", "score_bias")
    of_edges = dict(zip(names, edges, strict=True))
    return gat.gatv2_attention(query, key, attn, graph, kernel=kernel, **of_edges, **options)


def draw(*batch: int) -> tuple[Inputs, Any, Any]:
    """Inputs laid out as a list of edges, a cotangent, and a mask with a query without keys."""
    rng = np.random.default_rng(0)
    mask = rng.random((N, M, 1)) < 0.5
    mask[1] = False
    shapes = Inputs(
        (*batch, N, H, F), (*batch, M, H, F), (H, F), (mask.sum(), D), (H, F, D), (mask.sum(), H)
    )
    arrays = [jnp.asarray(rng.normal(size=shape)) for shape in (*shapes, shapes.query)]
    return Inputs(*arrays[:-1]), arrays[-1], mask


def laid_out_as(mask: Any, inputs: Inputs) -> Inputs:
    """What edges have, laid out as the mask."""

    def pairs(values: Any) -> Any:
        cell = jnp.zeros((N, M, values.shape[-1]))
        return cell.at[tuple(np.argwhere(mask.any(-1)).T)].set(values)

    return inputs._replace(
        edge_features=pairs(inputs.edge_features), score_bias=pairs(inputs.score_bias)
    )


def value_and_gradients(function: Attend, inputs: Inputs, graph: Any, cotangent: Any) -> Any:
    out, pullback = jax.vjp(lambda inputs: function(inputs, graph), inputs)
    return out, *pullback(cotangent)[0]


def assert_same(actual: Any, expected: Any) -> None:
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.allclose(a, e, rtol=1e-10, atol=1e-10)


def collectives(program: Any) -> set[str]:
    """What a compiled program sends between devices."""
    text = program.as_text()
    return {name for name in COLLECTIVES if re.search(rf"\b{name}(-start)?\(", text)}


def is_fused_on_gpus(traced: Any) -> bool:
    """Whether a program for GPUs has kernels of Pallas."""
    return "__gpu$xla.gpu.triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


def check(
    function: Attend,
    inputs: Inputs,
    graph: Any,
    cotangent: Any,
    expected: Any,
    sends_forward: tuple[str, ...] = (),
) -> None:
    """The gradients of parameters are summed over devices, and nothing else is sent."""
    forward = jax.jit(function).lower(inputs, graph).compile()
    assert collectives(forward) == set(sends_forward)
    both = jax.jit(partial(value_and_gradients, function))
    program = both.lower(inputs, graph, cotangent).compile()
    assert collectives(program) <= {"all-reduce"}
    assert_same(program(inputs, graph, cotangent), expected)


def reference(inputs: Inputs, graph: Any, cotangent: Any, **options: Any) -> Any:
    """On one device, by plain JAX."""
    function = partial(attend, kernel="jax", **options)
    return jax.jit(partial(value_and_gradients, function))(inputs, graph, cotangent)


def placed(mesh: Any, specs: Any, values: Any) -> Any:
    """Pytrees of arrays on the devices of a mesh."""
    return jax.tree.map(
        lambda spec, of_one: jax.device_put(of_one, NamedSharding(mesh, spec)),
        specs,
        values,
        is_leaf=lambda x: isinstance(x, P),
    )


def first_of_parts(parts: Any) -> Any:
    return jax.tree.map(lambda x: x[0], parts)


def queries_in_shard_map() -> None:
    """Each device has its queries, all keys, and its part of the graph or rows of the mask."""
    mesh = jax.make_mesh((4,), ("x",))
    inputs, cotangent, mask = draw()
    graph = gat.Graph.from_mask(mask)
    own = P("x")
    specs = Inputs(own, P(), P(), own, P(), own)
    split = inputs._replace(
        edge_features=graph.split_edges(inputs.edge_features, 4),
        score_bias=graph.split_edges(inputs.score_bias, 4),
    )
    on_devices = placed(mesh, specs, split)
    parts, cotangents = (placed(mesh, own, x) for x in (graph.split(4), cotangent))
    shard = partial(jax.shard_map, mesh=mesh, in_specs=(specs, own), out_specs=own)

    def of_part(inputs: Inputs, parts: Any, **options: Any) -> Any:
        edges = {"edge_features": inputs.edge_features[0], "score_bias": inputs.score_bias[0]}
        return attend(inputs._replace(**edges), first_of_parts(parts), **options)

    options: Any = {"dropout": 0.4, "seed": SEED}
    expected = reference(inputs, graph, cotangent, **options)
    expected = (
        *expected[:4],
        graph.split_edges(expected[4], 4),
        expected[5],
        graph.split_edges(expected[6], 4),
    )
    for kernel in ("numba", "jax"):
        function = shard(partial(of_part, kernel=kernel, **options))
        check(function, on_devices, parts, cotangents, expected)
    by_default = jax.jit(shard(of_part)).trace(on_devices, parts)
    assert "gatv2_sparse_forward" in by_default.lower().as_text()
    assert is_fused_on_gpus(by_default)
    with pytest.raises(ValueError, match=r"out_specs"):  # results differ from device to device
        jax.shard_map(of_part, mesh=mesh, in_specs=(specs, own), out_specs=P())(on_devices, parts)

    def along(inputs: Inputs, parts: Any) -> Any:
        return jax.jvp(lambda inputs: of_part(inputs, parts), (inputs,), (inputs,))[1]

    of_whole = jax.jvp(lambda inputs: attend(inputs, graph), (inputs,), (inputs,))[1]
    assert_same(jax.jit(shard(along))(on_devices, parts), of_whole)

    def unnumbered(inputs: Inputs, parts: Any) -> Any:
        first = jnp.broadcast_to(jnp.arange(parts.query_id.shape[1]), parts.query_id.shape)
        return of_part(inputs, replace(parts, query_id=first), **options)

    with pytest.raises(AssertionError):  # what the comparison must reject: other edges dropped
        assert_same(jax.jit(shard(unnumbered))(on_devices, parts), expected[0])

    dense = laid_out_as(mask, inputs)
    on_devices, rows = placed(mesh, specs, dense), placed(mesh, own, mask)
    expected = reference(dense, mask, cotangent)
    for kernel in ("numba", "jax"):
        check(shard(partial(attend, kernel=kernel)), on_devices, rows, cotangents, expected)


def interpreted_in_shard_map() -> None:
    """The kernels for GPUs, as each device has them: values and gradients."""
    mesh = jax.make_mesh((4,), ("x",))
    inputs, cotangent, mask = draw()
    graph = gat.Graph.from_mask(mask)
    own, everywhere = P("x"), P()
    split = inputs._replace(
        edge_features=graph.split_edges(inputs.edge_features, 4),
        score_bias=graph.split_edges(inputs.score_bias, 4),
    )
    options = Options(negative_slope=0.2, dropout=0.0, with_alpha=False)

    def of_part(inputs: Inputs, parts: Any, d_out: Any) -> Any:
        rows, bias = inputs.edge_features[0], inputs.score_bias[0]
        edges = EdgeInputs(rows, inputs.edge_projection)
        features = Features(inputs.query, inputs.key, inputs.attn, edges, bias)
        call = (features, gat.random.as_seed(0), first_of_parts(parts), options)
        out, lse, nothing = pallas_kernel.forward(*call, interpret=True)
        given = (d_out, nothing, nothing, lse)
        gradients = pallas_kernel.backward(given, *call, (True,) * 6, interpret=True)
        d_query, *shared, d_rows, d_projection, d_bias = gradients
        d_key, d_attn, d_projection = (jax.lax.psum(x, "x") for x in (*shared, d_projection))
        return out, Inputs(d_query, d_key, d_attn, d_rows[None], d_projection, d_bias[None])

    specs = Inputs(own, everywhere, everywhere, own, everywhere, own)
    function = jax.shard_map(
        of_part,
        mesh=mesh,
        in_specs=(specs, own, own),
        out_specs=(own, specs),
        check_vma=False,  # Pallas's interpreter does not know of it
    )
    out, *gradients = reference(inputs, graph, cotangent)
    of_whole = Inputs(*gradients)
    expected = of_whole._replace(
        edge_features=graph.split_edges(of_whole.edge_features, 4),
        score_bias=graph.split_edges(of_whole.score_bias, 4),
    )
    on_devices = placed(mesh, specs, split)
    parts, cotangents = (placed(mesh, own, x) for x in (graph.split(4), cotangent))
    assert_same(jax.jit(function)(on_devices, parts, cotangents), (out, expected))


def keys_in_shard_map() -> None:
    """Each device has its keys and its part of the graph; what queries have found is joined."""
    mesh = jax.make_mesh((4,), ("x",))
    inputs, cotangent, mask = draw()
    graph = gat.Graph.from_mask(mask)
    own = P("x")
    specs = Inputs(P(), own, P(), own, P(), own)
    split = inputs._replace(
        edge_features=graph.split_edges(inputs.edge_features, 4, "keys"),
        score_bias=graph.split_edges(inputs.score_bias, 4, "keys"),
    )

    def of_part(inputs: Inputs, parts: Any) -> Any:
        edges = {"edge_features": inputs.edge_features[0], "score_bias": inputs.score_bias[0]}
        own = inputs._replace(**edges)
        results = attend(own, first_of_parts(parts), dropout=0.4, seed=SEED, return_lse=True)
        return gat.join_parts(*results, "x")[0]

    expected = reference(inputs, graph, cotangent, dropout=0.4, seed=SEED)
    expected = (
        *expected[:4],
        graph.split_edges(expected[4], 4, "keys"),
        expected[5],
        graph.split_edges(expected[6], 4, "keys"),
    )
    check(
        jax.shard_map(of_part, mesh=mesh, in_specs=(specs, own), out_specs=P()),
        placed(mesh, specs, split),
        placed(mesh, own, graph.split(4, "keys")),
        placed(mesh, P(), cotangent),
        expected,
        sends_forward=("all-reduce",),
    )


def batch_and_heads() -> None:
    """By XLA on Auto and Explicit axes, with dropout, and in `shard_map`."""
    sparse, cotangent, mask = draw(B)
    # with a bias of each head, gradients would be gathered over the heads that share edge features
    sparse = sparse._replace(score_bias=sparse.score_bias[:, :1])
    dense = laid_out_as(mask, sparse)
    nodes, heads = P("b", None, "h"), P("h")
    own = Inputs(nodes, nodes, heads, P(), heads, P())
    graph = gat.Graph.from_mask(mask)
    options: Any = {"dropout": 0.4, "seed": SEED}
    for inputs, adjacency in ((sparse, graph), (dense, jnp.asarray(mask))):
        expected = reference(inputs, adjacency, cotangent, **options)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((2, 2), ("b", "h"), axis_types=(kind, kind))
            on_devices = placed(mesh, own, inputs)
            everywhere, cotangents = placed(mesh, P(), adjacency), placed(mesh, nodes, cotangent)
            check(partial(attend, **options), on_devices, everywhere, cotangents, expected)
            assert not is_fused_on_gpus(jax.jit(attend).trace(on_devices, everywhere))
            by_name = jax.jit(partial(attend, kernel="numba")).trace(on_devices, everywhere)
            with pytest.raises(ValueError, match=r"call it in `jax.shard_map`, or use kernel='a"):
                by_name.lower()
        mesh = jax.make_mesh((2, 2), ("b", "h"))
        function = jax.shard_map(
            partial(attend, kernel="numba"), mesh=mesh, in_specs=(own, P()), out_specs=nodes
        )
        on_devices = placed(mesh, own, inputs)
        everywhere, cotangents = placed(mesh, P(), adjacency), placed(mesh, nodes, cotangent)
        expected = reference(inputs, adjacency, cotangent)
        check(function, on_devices, everywhere, cotangents, expected)


def batch_in_shard_map_heads_by_xla() -> None:
    """One axis of a mesh in `shard_map`, the other left to XLA, with derivatives of both modes."""
    mesh = jax.make_mesh((2, 2), ("b", "h"), axis_types=(AxisType.Auto,) * 2)
    sparse, cotangent, mask = draw(B)
    batch, nodes, heads = P("b"), P("b", None, "h"), P("h")
    in_specs = (Inputs(batch, batch, P(), P(), P(), P()), P())
    function = jax.shard_map(
        attend, mesh=mesh, in_specs=in_specs, out_specs=batch, axis_names={"b"}
    )

    def along(function: Attend, inputs: Inputs, graph: Any) -> Any:
        return jax.jvp(lambda inputs: function(inputs, graph), (inputs,), (inputs,))

    pairs = ((sparse, gat.Graph.from_mask(mask)), (laid_out_as(mask, sparse), jnp.asarray(mask)))
    for inputs, adjacency in pairs:
        own = Inputs(nodes, nodes, heads, P(), heads, P())
        on_devices, everywhere = placed(mesh, own, inputs), placed(mesh, P(), adjacency)
        both = jax.jit(partial(value_and_gradients, function))
        expected = reference(inputs, adjacency, cotangent)
        assert_same(both(on_devices, everywhere, placed(mesh, nodes, cotangent)), expected)
        directional = jax.jit(partial(along, function))(on_devices, everywhere)
        assert_same(directional, along(attend, inputs, adjacency))


def results_on_explicit_axes() -> None:
    """Coefficients, log-sum-exp, scores and the static control, of types that say how they lie."""
    mesh = jax.make_mesh((2, 2), ("b", "h"), axis_types=(AxisType.Explicit,) * 2)
    inputs, _, mask = draw(B)
    query, key, attn = inputs[:3]
    nodes, heads = P("b", None, "h"), P("h")
    on_devices = placed(mesh, (nodes, nodes, heads), (query, key, attn))
    for graph in (gat.Graph.from_mask(mask), jnp.asarray(mask)):
        functions: list[Attend] = [
            partial(gat.gatv2_attention, graph=graph, return_attention=True, return_lse=True),
            partial(gat.gatv2_scores, graph=graph),
            lambda query, key, attn, graph=graph: gat.gat_attention(
                query, key, attn, attn, graph, return_attention=True
            ),
            lambda query, key, attn, graph=graph: gat.gat_scores(query, key, attn, attn, graph),
        ]
        for function in functions:
            results = jax.jit(function)(*on_devices)
            assert_same(results, function(query, key, attn))
            for result in jax.tree.leaves(results):
                axes = jax.typeof(result).sharding.spec
                assert (axes[0], "h" in axes) == ("b", True)


def queries_by_xla() -> None:
    """Rows of a mask on Auto and Explicit axes: each device has what it needs."""
    inputs, cotangent, mask = draw()
    dense = laid_out_as(mask, inputs)
    own = P("x")
    specs = Inputs(own, P(), P(), own, P(), own)
    expected = reference(dense, mask, cotangent, dropout=0.4, seed=SEED)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
        rows, cotangents = placed(mesh, own, mask), placed(mesh, own, cotangent)
        function = partial(attend, dropout=0.4, seed=SEED)
        on_devices = placed(mesh, specs, dense)
        check(function, on_devices, rows, cotangents, expected)


def what_is_sent_is_seen() -> None:
    """What the check of programs must reject."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    values = placed(mesh, P("x"), jnp.arange(8.0))
    program = jax.jit(lambda x: x[::-1] + x.sum()).lower(values).compile()
    assert "all-reduce" in collectives(program)
    assert len(collectives(program)) > 1


CASES = (
    queries_in_shard_map,
    interpreted_in_shard_map,
    keys_in_shard_map,
    batch_and_heads,
    batch_in_shard_map_heads_by_xla,
    results_on_explicit_axes,
    queries_by_xla,
    what_is_sent_is_seen,
)


def main() -> None:
    for case in CASES:
        case()
        print(case.__name__)


def test_four_devices() -> None:
    """In a process of its own: the number of devices is settled when JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [case.__name__ for case in CASES]


if __name__ == "__main__":
    main()
