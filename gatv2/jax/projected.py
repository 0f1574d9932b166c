"""Projected: a layer's inputs and parameters, checked, in one dtype, and projected to heads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.adjacency import (
    Sizes,
    all_pairs,
    common_batch_shape,
    is_mask,
    on_jax,
    read_adjacency,
)
from gatv2.jax.arrays import ArrayLike, DType, check_width
from gatv2.jax.blocks import lead
from gatv2.jax.checks import as_array, check_params
from gatv2.jax.config import LayerOptions
from gatv2.jax.edge_features import as_score_bias, refuse_bool_bias
from gatv2.jax.graph import Graph
from gatv2.jax.interop import Params
from gatv2.jax.self_loops import add_self_loops

NodeFeatures = ArrayLike | tuple[ArrayLike, ArrayLike]
"""Features of the nodes of one graph, or of the two sides of a bipartite one."""


class Projected(NamedTuple):
    """A layer's inputs and parameters, checked, in one dtype, and projected."""

    config: LayerOptions
    params: Params
    h_query: jax.Array
    query: jax.Array
    """`[*batch, n_queries, n_heads, n_hidden]`."""
    key: jax.Array
    """`[*batch, n_keys, n_heads, n_hidden]`."""
    adjacency: Graph | ArrayLike
    edge_features: jax.Array | None
    """Laid out as `adjacency`."""
    score_bias: jax.Array | None
    """Likewise."""

    @classmethod
    def of(
        cls,
        config: LayerOptions,
        params: Params,
        h: NodeFeatures,
        adj_mat: object,
        edge_features: ArrayLike | None,
        score_bias: ArrayLike | None,
    ) -> "Projected":
        """Read what a layer is given."""
        params = _checked_params(config, params)
        dtype = params["linear_l.weight"].dtype
        h_query, h_key = _checked_features(config, h, dtype)
        x = _checked_edge_features(config, edge_features, dtype)
        bias = _checked_score_bias(config, score_bias, h_query)
        if adj_mat is None:
            adj_mat = all_pairs((h_query.shape[-2], h_key.shape[-2]), bias, config.flow)
        batch_shape = common_batch_shape(adj_mat, h_query.shape[:-2])
        sizes = Sizes(h_query.shape[-2], h_key.shape[-2], config.n_heads, batch_shape)
        adjacency = read_adjacency(adj_mat, sizes, flow=config.flow)
        if is_mask(adj_mat) and config.flow == "source_to_target":
            x, bias = (
                jnp.swapaxes(of, -3, -2) if of is not None and of.ndim > 2 else of
                for of in (x, bias)
            )
        if config.add_self_loops:
            with_loops, x = add_self_loops(adjacency, x, config.fill_value)
            if bias is not None:
                _, bias = add_self_loops(adjacency, bias, config.loop_bias, is_bias=True)
            adjacency = with_loops
        used_query, used_key = _with_edges(h_query, h_key, adjacency, batch_shape)
        query = _linear(config, params, "linear_l", used_query)
        right = "linear_l" if config.share_weights else "linear_r"
        is_one = config.share_weights and used_key is used_query
        key = query if is_one else _linear(config, params, right, used_key)
        return cls(config, params, h_query, query, key, adjacency, x, bias)

    def attention_vectors(self) -> list[jax.Array]:
        """What scores a pair."""
        return [self.params[name] for name in self.config.attention_vectors]

    @property
    def edge_projection(self) -> jax.Array | None:
        """`[n_heads, n_hidden, edge_dim]`, which the kernel applies to edge features."""
        if self.edge_features is None:
            return None
        weight = self.params["linear_e.weight"]
        return weight.reshape(self.config.n_heads, self.config.n_hidden, weight.shape[1])

    def join(self, out: jax.Array) -> jax.Array:
        """The result: heads side by side or their mean, the residual of the queries, the bias."""
        n_heads, n_hidden = out.shape[-2:]
        is_concat = self.config.is_concat
        out = out.reshape(*out.shape[:-2], n_heads * n_hidden) if is_concat else out.mean(-2)
        mask = self.adjacency.query_mask if isinstance(self.adjacency, Graph) else None
        if mask is not None:
            mask = mask[:, None]
        if self.config.residual:
            h = (
                self.h_query
                if mask is None
                else jnp.where(lead(mask, self.h_query.ndim), self.h_query, 0)
            )
            out = out + h @ self.params["linear_residual.weight"].T
        if self.config.bias is True:
            out = out + lead(self.params["bias"], out.ndim)
        return out if mask is None else jnp.where(lead(mask, out.ndim), out, 0)


def _checked_params(config: LayerOptions, params: Params) -> Params:
    """Parameters as arrays of JAX, of one dtype, with the names and shapes of the options."""
    check_params(params, "apply(config, params, h, adj_mat)")
    expected = config.shapes
    missing, unknown = expected.keys() - params.keys(), params.keys() - expected.keys()
    if missing or unknown:
        raise ValueError(
            f"`params` must have {sorted(expected)} for these options; it lacks {sorted(missing)} and "
            f"has besides {sorted(unknown)}: draw them with `init(rng, config)`, or take the options "
            "from where the parameters come, `Config.from_torch(layer)`"
        )
    for array in params.values():
        if config.dtype is None and isinstance(array, np.ndarray):
            check_width(array.dtype, "convert the parameters, `.astype('float32')`")
    arrays = {name: jnp.asarray(array) for name, array in params.items()}
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise ValueError(f"`{name}` must have shape {expected[name]}; got {array.shape}")
    if config.dtype is not None:
        return {name: array.astype(config.dtype) for name, array in arrays.items()}
    dtypes = {str(array.dtype) for array in arrays.values()}
    if len(dtypes) > 1:
        raise TypeError(
            f"parameters must have one dtype; got {sorted(dtypes)}: set the option `dtype`, to which "
            "parameters and features are brought"
        )
    return arrays


def _checked_features(
    config: LayerOptions, h: NodeFeatures, dtype: DType
) -> tuple[jax.Array, jax.Array]:
    """Features of queries and of keys."""
    if isinstance(h, tuple | list):
        if len(h) != 2:
            raise TypeError(f"`h` must be an array or a pair of them; got {len(h)} of them")
        h_query, h_key = config.by_role(h)
        names = config.by_role(("h[0]", "h[1]"))
    else:
        h_query, h_key, names = h, h, ("h", "h")
    read = {}
    for name, features, size in zip(names, (h_query, h_key), config.n_inputs, strict=True):
        array = as_array(name, features)
        if array.ndim < 2 or array.shape[-1] != size:
            raise ValueError(
                f"`{name}` must have shape (*batch, n_nodes, in_features={size}); got {array.shape}"
            )
        read[name] = _of_dtype(config, name, array, dtype)
    h_query, h_key = (read[name] for name in names)
    return h_query, h_key


def _checked_edge_features(
    config: LayerOptions, edge_features: ArrayLike | None, dtype: DType
) -> jax.Array | None:
    if config.edge_dim is None:
        if edge_features is not None:
            raise ValueError(
                "`edge_features` came to a layer without `edge_dim`: set edge_dim=D, the last dimension "
                f"of `edge_features`, {edge_features.shape}"
            )
        return None
    array = as_array("edge_features", edge_features)
    if array.shape[-1:] != (config.edge_dim,):
        is_short = config.edge_dim == 1 and array.ndim == 1
        remedy = ": add it with `[..., None]`" if is_short else ""
        raise ValueError(
            f"`edge_features` must have edge_dim={config.edge_dim} as its last dimension; "
            f"got {array.shape}{remedy}"
        )
    return _of_dtype(config, "edge_features", array, dtype)


def _checked_score_bias(
    config: LayerOptions, score_bias: ArrayLike | None, h: jax.Array
) -> jax.Array | None:
    if score_bias is None:
        return None
    given = as_array("score_bias", score_bias)
    refuse_bool_bias(given)
    array = _of_dtype(config, "score_bias", given, h.dtype)
    return as_score_bias(array, h, config.n_heads, "h")


def _of_dtype(config: LayerOptions, name: str, array: jax.Array, dtype: DType) -> jax.Array:
    if config.dtype is None and array.dtype != dtype:
        raise TypeError(
            f"`{name}` must have the parameters' dtype {dtype}; got {array.dtype}: convert one of them "
            "with `.astype(dtype)`, or set the option `dtype`, to which both are brought"
        )
    return array.astype(dtype)


def _with_edges(
    h_query: jax.Array, h_key: jax.Array, adjacency: Graph | ArrayLike, batch_shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Features with zeros for nodes without edges, which nothing reads.

    What such a node has may be NaN, if it is padding, and the gradient of a weight is a sum over all
    nodes: 0 * NaN is NaN.
    """
    if isinstance(adjacency, Graph):
        has_key, is_key = jnp.diff(adjacency.query_ptr) > 0, jnp.diff(adjacency.by_key.ptr) > 0
        if adjacency.batch_dims:
            has_key = has_key.reshape(*batch_shape, h_query.shape[-2])
            is_key = is_key.reshape(*batch_shape, h_key.shape[-2])
    else:
        mask = on_jax(adjacency)
        has_key, is_key = mask.any((-2, -1)), mask.any((-3, -1))
    if h_query is h_key:
        used = _masked(h_query, has_key | is_key)
        return used, used
    return _masked(h_query, has_key), _masked(h_key, is_key)


def _masked(h: jax.Array, is_used: jax.Array) -> jax.Array:
    extra = is_used.ndim - (h.ndim - 1)
    if extra > 0:  # one set of features for a batch of graphs
        is_used = is_used.any(tuple(range(extra)))
    return jnp.where(lead(is_used[..., None], h.ndim), h, 0)


def _linear(config: LayerOptions, params: Params, name: str, h: jax.Array) -> jax.Array:
    out = h @ params[f"{name}.weight"].T
    if config.bias:
        out = out + lead(params[f"{name}.bias"], out.ndim)
    return out.reshape(*h.shape[:-1], config.n_heads, config.n_hidden)
