"""The layer as two pure functions: `init` makes parameters, `apply` attends with them.

Parameters are a dict with the names and the shapes of the PyTorch layer's state dict:

    linear_l.weight  [n_heads * n_hidden, in_features]   W_l, projects queries
    linear_r.weight  [n_heads * n_hidden, in_features]   W_r, projects keys; left out if W_l = W_r
    attn             [n_heads, n_hidden]                 a

and, for a layer that has them, `linear_l.bias`, `linear_r.bias`, `bias` and `linear_residual.weight`.
"""

from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.functional import gatv2_attention, gatv2_scores
from gatv2.jax.interop import Params
from gatv2.jax.random import seed_from_key
from gatv2.options import Backend, Bias, Flow, check_sizes, hidden_of

Seed = int | np.integer[Any] | jax.Array | None
_NAMES = {
    "attn",
    "bias",
    "linear_l.bias",
    "linear_l.weight",
    "linear_r.bias",
    "linear_r.weight",
    "linear_residual.weight",
}


def init(
    rng: jax.Array,
    in_features: int,
    out_features: int,
    n_heads: int,
    is_concat: bool = True,
    share_weights: bool = False,
    *,
    bias: Bias = False,
    residual: bool = False,
    dtype: Any = jnp.float32,
) -> Params:
    """Draw the parameters of a layer: Glorot uniform, as the paper's code; biases are zero.

    Args:
        rng: a JAX key.
        in_features: features of a node.
        out_features: features of the result; with `is_concat` each head has
            `out_features / n_heads` of them, else each head has all.
        n_heads: number of heads.
        is_concat: whether heads are concatenated (True) or averaged (False).
        share_weights: whether :math:`W_l = W_r`.
        bias: whether the projections and the output have a bias; "projections" for these alone.
        residual: whether a learned projection of the queries' features is added to the result.
        dtype: dtype of the parameters.

    Raises:
        TypeError: a size is not an int.
        ValueError: a size is not positive, or `out_features` does not divide by `n_heads`.

    Example:
        >>> params = init(jax.random.key(0), 16, 8, n_heads=2)
        >>> {name: array.shape for name, array in params.items()}
        {'attn': (2, 4), 'linear_l.weight': (8, 16), 'linear_r.weight': (8, 16)}
    """
    check_sizes(in_features=in_features, out_features=out_features, n_heads=n_heads)
    n_hidden = hidden_of(out_features, n_heads, is_concat)
    shapes = {"attn": (n_heads, n_hidden), "linear_l.weight": (n_heads * n_hidden, in_features)}
    if not share_weights:
        shapes["linear_r.weight"] = shapes["linear_l.weight"]
    if residual:
        shapes["linear_residual.weight"] = (out_features, in_features)
    draw = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
    keys = jax.random.split(rng, len(shapes))
    params = {
        name: draw(key, shape, dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    if bias:
        of_projections = ["linear_l.bias"] + ["linear_r.bias"] * (not share_weights)
        params |= {name: jnp.zeros(n_heads * n_hidden, dtype) for name in of_projections}
    if bias is True:
        params["bias"] = jnp.zeros(out_features, dtype)
    return params


class Options(TypedDict, total=False):
    """Options of a layer; see :func:`apply`."""

    rng: jax.Array | None
    seed: Seed
    is_concat: bool
    dropout: float
    leaky_relu_negative_slope: float
    backend: Backend
    kernel: str
    flow: Flow


@overload
def apply(
    params: Params,
    h: jax.Array,
    adj_mat: object,
    *,
    return_attention: Literal[False] = ...,
    **options: Unpack[Options],
) -> jax.Array: ...
@overload
def apply(
    params: Params,
    h: jax.Array,
    adj_mat: object,
    *,
    return_attention: bool,
    **options: Unpack[Options],
) -> Any: ...


def apply(
    params: Params,
    h: jax.Array,
    adj_mat: object,
    *,
    rng: jax.Array | None = None,
    seed: Seed = None,
    is_concat: bool = True,
    dropout: float = 0.6,
    leaky_relu_negative_slope: float = 0.2,
    backend: Backend = "auto",
    kernel: str = "auto",
    flow: Flow = "target_to_source",
    return_attention: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""Attend over the graph.

    .. math::

        e_{ij} = a \cdot \mathrm{LeakyReLU}(W_l h_i + W_r h_j), \qquad
        \alpha_{ij} = \mathrm{softmax}_{j \in N_i}(e_{ij}), \qquad
        h'_i = \sum_{j \in N_i} \alpha_{ij} W_r h_j

    for each head; :math:`N_i` are the j with `adj_mat[i][j]`. Heads are concatenated or averaged. A
    node without neighbours gives zeros; self-loops are not added. Biases and a residual are added if
    `params` has them.

    Args:
        params: as :func:`init` draws them, or :func:`gatv2.jax.from_torch` takes them over. Without
            `linear_r.weight`, `linear_l.weight` serves for both.
        h: `[*batch, n_nodes, in_features]`.
        adj_mat: mask `[*batch, n_nodes, n_nodes, 1 or n_heads]`, edge index `[2, n_edges]`,
            :class:`gatv2.jax.Graph` or any other form of a graph; `adj_mat[i][j]` lets i attend to j.
        rng: a JAX key, from which the seed of the dropout mask is drawn.
        seed: the seed itself; an int drops the same edges as in PyTorch. Dropout acts if one of `rng`
            and `seed` is given: training. With neither, it does not: evaluation.
        is_concat: whether heads are concatenated (True) or averaged (False).
        dropout: probability, in [0, 1), that a coefficient is dropped.
        leaky_relu_negative_slope: slope of LeakyReLU below zero.
        backend: "dense" (masked attention), "sparse" (edges), or "auto": by the form of `adj_mat`.
        kernel: which kernel does the work; see :func:`gatv2.jax.gatv2_attention`.
        flow: what row 0 of an edge index holds. "target_to_source": the nodes that attend;
            "source_to_target", PyTorch Geometric's default: the nodes attended to.
        return_attention: whether to return the coefficients too, after the softmax and before dropout.

    Returns:
        `[*batch, n_nodes, out_features]`; with `return_attention` the pair of it and the
        coefficients, `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse) or
        `[*batch, n_nodes, n_nodes, n_heads]` (dense).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or options do not fit, or both `rng` and `seed` are given.

    Example:
        >>> params = init(jax.random.key(0), in_features=16, out_features=8, n_heads=2)
        >>> apply(params, jnp.ones((4, 16)), jnp.eye(4, dtype=bool)[..., None]).shape
        (4, 8)

    Source: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022, equation 7.
    """
    if rng is not None:
        if seed is not None:
            raise ValueError("`rng` and `seed` are two ways to say the same: pass one of them")
        seed = seed_from_key(rng)
    query, key = _project(params, h)
    result = gatv2_attention(
        query,
        key,
        params["attn"],
        adj_mat,
        negative_slope=leaky_relu_negative_slope,
        dropout=0.0 if seed is None else dropout,
        seed=seed,
        flow=flow,
        backend=backend,
        kernel=kernel,
        return_attention=return_attention,
    )
    out, alpha = result if return_attention else (result, None)
    out = (
        out.reshape(*out.shape[:-2], query.shape[-2] * query.shape[-1])
        if is_concat
        else out.mean(-2)
    )
    if "linear_residual.weight" in params:
        out = out + h @ params["linear_residual.weight"].T
    if "bias" in params:
        out = out + params["bias"]
    return out if alpha is None else (out, alpha)


def attention_scores(
    params: Params,
    h: jax.Array,
    adj_mat: object,
    *,
    leaky_relu_negative_slope: float = 0.2,
    backend: Backend = "auto",
    flow: Flow = "target_to_source",
) -> jax.Array:
    """The scores e_ij before the softmax, -inf where a head has no edge.

    `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
    `[*batch, n_nodes, n_nodes, n_heads]` (dense). Arguments are those of :func:`apply`.
    """
    query, key = _project(params, h)
    return gatv2_scores(
        query,
        key,
        params["attn"],
        adj_mat,
        negative_slope=leaky_relu_negative_slope,
        flow=flow,
        backend=backend,
    )


def _project(params: Params, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`h` as queries and as keys, each `[*batch, n_nodes, n_heads, n_hidden]`."""
    if unknown := params.keys() - _NAMES:
        raise ValueError(
            f"`params` has {sorted(unknown)}, which this layer does not know: in JAX there are no "
            "features of edges, and it is one layer that is applied, not a stack"
        )
    weight = params["linear_l.weight"]
    in_features = weight.shape[1]
    if not isinstance(h, jax.Array):
        raise TypeError(
            f"`h` must be a jax.Array; got {type(h).__name__}: convert it with `jnp.asarray`, "
            "or `gatv2.jax.as_jax` if it is one of PyTorch"
        )
    if h.ndim < 2 or h.shape[-1] != in_features:
        raise ValueError(
            f"`h` must have shape (*batch, n_nodes, in_features={in_features}); got {h.shape}"
        )
    if h.dtype != weight.dtype:
        raise TypeError(
            f"`h` must have the parameters' dtype {weight.dtype}; got {h.dtype}: "
            "convert one of them with `.astype(dtype)`"
        )
    query = _linear(params, "linear_l", h)
    return query, _linear(params, "linear_r", h) if "linear_r.weight" in params else query


def _linear(params: Params, name: str, h: jax.Array) -> jax.Array:
    out = h @ params[f"{name}.weight"].T
    if f"{name}.bias" in params:
        out = out + params[f"{name}.bias"]
    return out.reshape(*h.shape[:-1], *params["attn"].shape)
