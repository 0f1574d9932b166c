"""The kernels for GPUs, over edges: forward and backward of a call; `gatv2.jax.primitives` binds them.

Of an edge nothing is written, in no pass, but for what is asked for, and, with dropout, how often it is
repeated.
"""

import math

import jax
import jax.numpy as jnp

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.fused import Options
from gatv2.jax.graph import Graph
from gatv2.jax.pallas import edge_pass, kernels
from gatv2.jax.pallas.call import Call, Inputs, padded_sizes, summed_like
from gatv2.jax.pallas.passes import Statistics
from gatv2.jax.precision import computed_in
from gatv2.jax.sparse.tangent import Features

Arrays = tuple[jax.Array, ...]


def unsupported(features: Features, adjacency: Adjacency) -> list[str]:
    """The reasons why the kernels can't serve a call; the platform is seen later."""
    reasons = []
    if not isinstance(adjacency, Graph):
        reasons.append("it reads edges, and not a mask (backend='dense')")
    if features.query.dtype not in ("float16", "bfloat16", "float32", "float64"):
        reasons.append(f"it does not compute in {features.query.dtype}")
    longest = edge_pass.LONGEST[computed_in(features.query.dtype).name]
    if features.edges is not None and math.prod(padded_sizes(features.query)) > longest:
        reasons.append(
            f"of edges with features it takes nodes with {longest} numbers at most, heads and hidden "
            "features each rounded up to a power of two"
        )
    return reasons


def forward(
    features: Features, seed: jax.Array, graph: Graph, options: Options, *, interpret: bool = False
) -> Arrays:
    """(out, log-sum-exp, alpha), alpha in the graph's order of edges, and empty unless asked for."""
    call = Call(features, seed, graph, options, interpret)
    query, with_alpha = features.query, options.with_alpha
    alpha_shape = (*call.batch_shape, graph.n_edges, call.n_heads) if with_alpha else (0,)
    if call.is_empty:
        lse = jnp.full(query.shape[:-1], -math.inf, call.dtype)
        return jnp.zeros_like(query), lse, jnp.zeros(alpha_shape, query.dtype)

    def of_one(inputs: Inputs, batch: jax.Array) -> Arrays:
        shape, run = call.tile()
        arguments = call.arguments(inputs, batch)
        out, lse, *statistics = kernels.attend(arguments, shape, run, with_alpha=with_alpha)
        if not with_alpha:
            return out, lse
        arguments = arguments._replace(statistics=Statistics(*statistics))
        alpha = edge_pass.weigh(arguments, graph.query_index, call.n_heads, shape, run)
        return out, lse, alpha

    out, lse, *alpha = call.of_each(of_one, call.inputs())
    return (
        call.cropped(call.batched(out)),
        call.batched(lse)[..., : call.n_heads],
        call.batched(alpha[0]) if alpha else jnp.zeros(alpha_shape, query.dtype),
    )


def backward(
    cotangents: Arrays,
    features: Features,
    seed: jax.Array,
    graph: Graph,
    options: Options,
    wanted: tuple[bool, ...],
    *,
    interpret: bool = False,
) -> Arrays:
    """Gradients of the features; cotangents are of (out, lse, alpha), then the log-sum-exp itself.

    Those of what edges have are zeros unless they are `wanted`.
    """
    d_out, d_lse, d_alpha, lse = cotangents
    call = Call(features, seed, graph, options, interpret)
    flat: Arrays = tuple(jax.tree.leaves(features))
    if call.is_empty:
        return tuple(jnp.zeros_like(x) for x in flat)
    wants_rows, wants_projection = wanted[3:5] if call.edges is not None else (False, False)
    wants_bias = features.score_bias is not None and wanted[-1]

    def of_one(inputs: Inputs, batch: jax.Array) -> dict[str, jax.Array]:
        shape, run = call.tile()
        arguments = call.arguments(inputs, batch)
        d_query, *statistics = kernels.differentiate_queries(arguments, shape, run)
        arguments = arguments._replace(statistics=Statistics(*statistics))
        by_key = arguments._replace(order=call.by_key(inputs))
        of_keys = shape._replace(is_by_key=True)
        d_key, d_attn = kernels.differentiate_keys(by_key, of_keys, run)
        results = {"query": d_query, "key": d_key, "attn": d_attn.sum(0)}
        if wants_bias:
            results["bias"] = edge_pass.differentiate_bias(arguments, graph.query_index, shape, run)
        if wants_rows or wants_projection:
            shape, run = call.tile(edge_pass.WIDTH, edge_pass.ELEMENTS)
            shares, *rows = edge_pass.differentiate_features(
                arguments, graph.query_index, shape, run, wants_rows=wants_rows
            )
            results["projection"] = shares.sum(0)
            results |= {"features": rows[0]} if rows else {}
        return results

    inputs = call.inputs()._replace(
        d_out=call.padded(d_out),
        d_lse=call.padded_heads(d_lse) if d_lse.size else None,
        d_alpha=d_alpha if d_alpha.size else None,
        lse=call.padded_heads(lse),
    )
    results = call.of_each(of_one, inputs)
    gradients = [
        call.cropped(call.batched(results["query"])),
        call.cropped(call.batched(results["key"])),
        call.cropped(results["attn"].sum(0)),
    ]
    if features.edges is not None:
        x, projection = features.edges
        d_projection = jnp.zeros_like(projection)
        if "projection" in results:
            d_projection = jnp.moveaxis(call.cropped(results["projection"].sum(0)), 0, -1)
        gradients += [summed_like(x, results.get("features")), d_projection]
    if features.score_bias is not None:
        gradients.append(summed_like(features.score_bias, results.get("bias")))
    return tuple(gradients)
