"""What the primitives compute, by plain JAX and by the fused kernels, and what is static in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.dense import reference as dense
from gatv2.jax.edge_features import EdgeInputs
from gatv2.jax.fused import Options
from gatv2.jax.graph import Graph
from gatv2.jax.mesh import vary_alike
from gatv2.jax.numba import kernel as numba_kernel
from gatv2.jax.sparse import pallas_kernel
from gatv2.jax.sparse import reference as sparse
from gatv2.jax.sparse.tangent import Features, tangent

Arrays = tuple[jax.Array, ...]

UNSUPPORTED = {"numba": numba_kernel.unsupported, "pallas": pallas_kernel.unsupported}
"""What tells the reasons against each of the fused kernels."""


@dataclass(frozen=True)
class Call:
    """What is static in a call of attention.

    Attributes:
        adjacency: the structure of the graph's arrays.
        n_features: number of arrays that are differentiated by: 3, two more with edge features and
            their projection, and one with a bias.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability that a coefficient is dropped.
        with_alpha: whether the coefficients are wanted; else they are empty.
        kernel: "auto", or the name of a fused kernel, without which the call is an error.
        fused: names of the fused kernels that serve the call.
    """

    adjacency: jax.tree_util.PyTreeDef
    n_features: int
    negative_slope: float
    dropout: float
    with_alpha: bool
    kernel: str
    fused: tuple[str, ...]

    @property
    def options(self) -> Options:
        """What the fused kernels read."""
        return Options(self.negative_slope, self.dropout, self.with_alpha)

    def features(self, arrays: Sequence[jax.Array]) -> Features:
        """The first arrays, by name."""
        query, key, attn = arrays[:3]
        edges = EdgeInputs(*arrays[3:5]) if self.n_features >= 5 else None
        bias = arrays[self.n_features - 1] if self.n_features % 2 == 0 else None
        return Features(query, key, attn, edges, bias)

    def read(self, arrays: Sequence[jax.Array]) -> tuple[Features, jax.Array, Adjacency]:
        """Features, seed and graph of the arguments of `attend_p`."""
        seed, *leaves = arrays[self.n_features :]
        adjacency: Adjacency = jax.tree.unflatten(self.adjacency, leaves)
        return self.features(arrays), seed, adjacency


def attend_plainly(*arrays: jax.Array, call: Call) -> Arrays:
    """`attend_p` by plain JAX: (out, lse, alpha), alpha empty unless it is wanted."""
    features, seed, adjacency = call.read(arrays)
    query, key, attn, edges, score_bias = features
    attention = (
        partial(sparse.gatv2_attention, query, key, attn, adjacency, edges)
        if isinstance(adjacency, Graph)
        else partial(dense.gatv2_attention, query, key, attn, adjacency, edges)
    )
    out, lse, alpha = attention(
        negative_slope=call.negative_slope,
        dropout=call.dropout,
        seed=seed if call.dropout > 0 else None,
        return_attention=call.with_alpha,
        score_bias=score_bias,
    )
    return out, lse, _nothing_like(out) if alpha is None else alpha


def tangent_plainly(*arrays: jax.Array, call: Call) -> Arrays:
    """`tangent_p` by plain JAX.

    The arguments are (lse, out), those of `attend_p`, and a direction for each feature.
    """
    (lse, out), direction = arrays[:2], arrays[-call.n_features :]
    arrays = arrays[2 : -call.n_features]
    features, seed, adjacency = call.read(arrays)
    if isinstance(adjacency, Graph):
        d_out, d_lse, d_alpha = tangent(
            features,
            call.features(direction),
            lse,
            out,
            adjacency,
            negative_slope=call.negative_slope,
            dropout=call.dropout,
            seed=seed if call.dropout > 0 else None,
            with_alpha=call.with_alpha,
        )
        return d_out, d_lse, _nothing_like(d_out) if d_alpha is None else d_alpha

    def of_features(*features: jax.Array) -> Arrays:
        return attend_plainly(*features, *arrays[call.n_features :], call=call)

    tangents: Arrays = jax.jvp(of_features, arrays[: call.n_features], direction)[1]
    return tangents


def cotangent_plainly(*arrays: jax.Array, call: Call, wanted: tuple[bool, ...]) -> Arrays:
    """`cotangent_p` by plain JAX.

    The arguments are (lse, out), those of `attend_p`, and cotangents of (out, lse, alpha).
    """
    cotangents, arrays = arrays[-3:], arrays[2:-3]

    def of_features(*features: jax.Array) -> Arrays:
        return attend_plainly(*features, *arrays[call.n_features :], call=call)

    results, pullback = jax.vjp(of_features, *arrays[: call.n_features])
    gradients: Arrays = pullback(
        tuple(
            jnp.zeros_like(result) if cotangent.shape != result.shape else cotangent
            for result, cotangent in zip(results, cotangents, strict=True)
        )
    )
    return gradients


def _nothing_like(out: jax.Array) -> jax.Array:
    """In the place of coefficients that are not wanted: empty, varying over devices as `out` does."""
    return vary_alike(out, jnp.zeros(0, out.dtype))[1]


def attend_by_numba(*arrays: jax.Array, call: Call) -> Arrays:
    """`attend_p` by the fused kernels for the CPU."""
    features, seed, adjacency = call.read(arrays)
    return numba_kernel.forward(features, seed, adjacency, call.options)


def cotangent_by_numba(*arrays: jax.Array, call: Call, wanted: tuple[bool, ...]) -> Arrays:
    """`cotangent_p` by the fused kernels for the CPU."""
    lse, cotangents = arrays[0], arrays[-3:]
    features, seed, adjacency = call.read(arrays[2:-3])
    return numba_kernel.backward(
        (*cotangents, lse), features, seed, adjacency, call.options, wanted
    )


def attend_by_pallas(*arrays: jax.Array, call: Call) -> Arrays:
    """`attend_p` by the fused kernels for GPUs."""
    features, seed, adjacency = call.read(arrays)
    assert isinstance(adjacency, Graph)
    return pallas_kernel.forward(features, seed, adjacency, call.options)


def cotangent_by_pallas(*arrays: jax.Array, call: Call, wanted: tuple[bool, ...]) -> Arrays:
    """`cotangent_p` by the fused kernels for GPUs."""
    lse, cotangents = arrays[0], arrays[-3:]
    features, seed, adjacency = call.read(arrays[2:-3])
    assert isinstance(adjacency, Graph)
    return pallas_kernel.backward(
        (*cotangents, lse), features, seed, adjacency, call.options, wanted
    )
