"""The layer as two pure functions of its options: `init` makes parameters, `apply` attends with them.

Parameters are a dict with the names and the shapes of the PyTorch layer's state dict:

    linear_l.weight  [n_heads * n_hidden, in_features]   W_l, projects queries
    linear_r.weight  [n_heads * n_hidden, in_features]   W_r, projects keys; left out if W_l = W_r
    attn             [n_heads, n_hidden]                 a

and, for a layer that has them, `linear_e.weight`, `linear_l.bias`, `linear_r.bias`, `bias` and
`linear_residual.weight`; the static control has `attn_query` and `attn_key` in the place of `attn`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.adjacency import Sizes, common_batch_shape, is_mask, read_adjacency
from gatv2.jax.blocks import lead
from gatv2.jax.checks import check_static
from gatv2.jax.config import LayerOptions
from gatv2.jax.functional import (
    gat_attention,
    gat_scores,
    gatv2_attention,
    gatv2_scores,
)
from gatv2.jax.graph import ArrayLike, Graph
from gatv2.jax.interop import Params
from gatv2.jax.random import Seed, seed_from_key
from gatv2.jax.self_loops import add_self_loops

NodeFeatures = ArrayLike | tuple[ArrayLike, ArrayLike]
"""Features of the nodes of one graph, or of the two sides of a bipartite one."""


@dataclass(frozen=True)
class Config(LayerOptions):
    """The options of a layer of Graph Attention v2; frozen, hashable, and so static under `jit`.

    Attributes and errors are those of :class:`gatv2.jax.config.LayerOptions`.

    Example:
        >>> config = Config(16, 8, n_heads=2, dropout=0.0)
        >>> params = config.init(jax.random.key(0))
        >>> config.apply(params, jnp.ones((4, 16)), np.eye(4, dtype=bool)).shape
        (4, 8)
    """

    def init(self, rng: jax.Array) -> Params:
        """Draw parameters; see :func:`gatv2.jax.init`."""
        return init(rng, self)

    def apply(self, params: Params, h: NodeFeatures, adj_mat: object, **arguments: Any) -> Any:
        """Attend over a graph; see :func:`gatv2.jax.apply`."""
        return apply(self, params, h, adj_mat, **arguments)


@dataclass(frozen=True)
class StaticConfig(Config):
    """The options of a layer of the original, static GAT, the control of every claim about GATv2.

    Attributes are those of :class:`gatv2.jax.Config`, but for `share_weights`, which is True by default.
    `kernel` is "jax" or "auto", and edges have no features.
    """

    share_weights: bool = True

    attention_vectors: ClassVar[tuple[str, ...]] = ("attn_query", "attn_key")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel == "numba":
            raise ValueError("the static control has only kernel='jax' (or 'auto'); got 'numba'")
        if self.edge_dim is not None:
            raise ValueError("edges of the static control have no features: use a `Config`")


def init(rng: jax.Array, config: Config) -> Params:
    """Draw the parameters of a layer: Glorot uniform, as the paper's code; biases are zero.

    Args:
        rng: a JAX key.
        config: the layer's options.

    Example:
        >>> params = init(jax.random.key(0), Config(16, 8, n_heads=2))
        >>> {name: array.shape for name, array in params.items()}
        {'attn': (2, 4), 'linear_l.weight': (8, 16), 'linear_r.weight': (8, 16)}
    """
    _check_config(config)
    draw = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
    keys = jax.random.split(rng, len(config.shapes))
    return {
        name: jnp.zeros(shape, config.param_dtype)
        if name.endswith("bias")
        else draw(key, shape, config.param_dtype)
        for key, (name, shape) in zip(keys, config.shapes.items(), strict=True)
    }


class Options(TypedDict, total=False):
    """What changes from call to call; see :func:`apply`."""

    edge_features: ArrayLike | None
    rng: jax.Array | None
    seed: Seed
    deterministic: bool


@overload
def apply(
    config: Config,
    params: Params,
    h: NodeFeatures,
    adj_mat: object,
    *,
    return_attention: Literal[False] = ...,
    **options: Unpack[Options],
) -> jax.Array: ...
@overload
def apply(
    config: Config,
    params: Params,
    h: NodeFeatures,
    adj_mat: object,
    *,
    return_attention: bool,
    **options: Unpack[Options],
) -> Any: ...


def apply(
    config: Config,
    params: Params,
    h: NodeFeatures,
    adj_mat: object,
    *,
    edge_features: ArrayLike | None = None,
    rng: jax.Array | None = None,
    seed: Seed = None,
    deterministic: bool = False,
    return_attention: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""Attend over the graph.

    .. math::

        e_{ij} = a \cdot \mathrm{LeakyReLU}(W_l h_i + W_r h_j), \qquad
        \alpha_{ij} = \mathrm{softmax}_{j \in N_i}(e_{ij}), \qquad
        h'_i = \sum_{j \in N_i} \alpha_{ij} W_r h_j

    for each head; :math:`N_i` are the j with `adj_mat[i][j]`. Heads are concatenated or averaged. A
    node without neighbours gives zeros. Features of nodes without edges reach no gradient of attention,
    and those of nodes that are padding (:meth:`gatv2.jax.Graph.padded`) no gradient at all: they may be
    NaN.

    Args:
        config: the layer's options; static under `jit`, `jax.jit(apply, static_argnums=0)`.
        params: as :func:`init` draws them, or :func:`gatv2.jax.from_torch` takes them over.
        h: `[*batch, n_nodes, in_features]`. For a bipartite graph the pair of its two sides, in the
            order of the rows of an edge index: `(h_query, h_key)`, and with `flow="source_to_target"`
            `(h_key, h_query)`.
        adj_mat: mask `[*batch, n_nodes, n_nodes, 1 or n_heads]`, edge index `[2, n_edges]`,
            :class:`gatv2.jax.Graph` or any other form of a graph; `adj_mat[i][j]` lets i attend to j.
        edge_features: features of the edges, laid out as `adj_mat`, for a layer with `edge_dim`:
            `[*batch, n_edges, edge_dim]` in the order of a list of edges, then padding, or
            `[*batch, n_nodes, n_nodes, edge_dim]` with a mask.
        rng: a JAX key, from which the seed of the dropout mask is drawn.
        seed: the seed itself, in its place; an int drops the same edges as in PyTorch.
        deterministic: whether dropout is left out: for evaluation. Otherwise it acts, and needs one of
            `rng` and `seed`; static.
        return_attention: whether to return the coefficients too, after the softmax and before dropout.

    Returns:
        `[*batch, n_queries, out_features]`; with `return_attention` the pair of it and the
        coefficients, `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse) or
        `[*batch, n_queries, n_keys, n_heads]` (dense). With `add_self_loops` the edges of a list are
        those of :func:`gatv2.jax.self_loops.add_self_loops`.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes or parameters do not fit, dropout has neither `rng` nor `seed`, or both are
            given.

    Example:
        >>> config = Config(in_features=16, out_features=8, n_heads=2, dropout=0.5)
        >>> params = init(jax.random.key(0), config)
        >>> h, adj_mat = jnp.ones((4, 16)), jnp.eye(4, dtype=bool)
        >>> apply(config, params, h, adj_mat, rng=jax.random.key(1)).shape
        (4, 8)
        >>> apply(config, params, h, adj_mat, deterministic=True).shape
        (4, 8)

    Source: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022, equation 7.
    """
    _check_config(config)
    check_static(deterministic=deterministic, return_attention=return_attention)
    seed = _seed_of(config, rng, seed, deterministic)
    with jax.named_scope("gatv2"):
        layer = _Layer.of(config, params, h, adj_mat, edge_features)
        options: Any = {
            "negative_slope": config.leaky_relu_negative_slope,
            "dropout": 0.0 if seed is None else config.dropout,
            "seed": seed,
            "backend": config.backend,
            "return_attention": return_attention,
        }
        if "attn" in config.attention_vectors:
            options |= {"kernel": config.kernel, **layer.edges()}
        attention: Any = gatv2_attention if "attn" in config.attention_vectors else gat_attention
        result = attention(
            layer.query, layer.key, *layer.attention_vectors(), layer.adjacency, **options
        )
        out, alpha = result if return_attention else (result, None)
        out = layer.join(out)
    return out if alpha is None else (out, alpha)


def attention_scores(
    config: Config,
    params: Params,
    h: NodeFeatures,
    adj_mat: object,
    *,
    edge_features: ArrayLike | None = None,
) -> jax.Array:
    """The scores e_ij before the softmax, -inf where a head has no edge.

    `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
    `[*batch, n_queries, n_keys, n_heads]` (dense). Arguments are those of :func:`apply`.
    """
    _check_config(config)
    layer = _Layer.of(config, params, h, adj_mat, edge_features)
    is_dynamic = "attn" in config.attention_vectors
    scores: Any = gatv2_scores if is_dynamic else gat_scores
    result: jax.Array = scores(
        layer.query,
        layer.key,
        *layer.attention_vectors(),
        layer.adjacency,
        negative_slope=config.leaky_relu_negative_slope,
        backend=config.backend,
        **(layer.edges() if is_dynamic else {}),
    )
    return result


class _Layer(NamedTuple):
    """A layer's inputs and parameters, checked, in one dtype, and projected."""

    config: Config
    params: Params
    h_query: jax.Array
    query: jax.Array
    """`[*batch, n_queries, n_heads, n_hidden]`."""
    key: jax.Array
    """`[*batch, n_keys, n_heads, n_hidden]`."""
    adjacency: Graph | ArrayLike
    edge_features: jax.Array | None
    """Laid out as `adjacency`."""

    @classmethod
    def of(
        cls,
        config: Config,
        params: Params,
        h: NodeFeatures,
        adj_mat: object,
        edge_features: ArrayLike | None,
    ) -> "_Layer":
        params = _checked_params(config, params)
        dtype = params["linear_l.weight"].dtype
        h_query, h_key = _checked_features(config, h, dtype)
        x = _checked_edge_features(config, edge_features, dtype)
        batch_shape = common_batch_shape(adj_mat, h_query.shape[:-2])
        sizes = Sizes(h_query.shape[-2], h_key.shape[-2], config.n_heads, batch_shape)
        adjacency = read_adjacency(adj_mat, sizes, flow=config.flow)
        if x is not None and is_mask(adj_mat) and config.flow == "source_to_target":
            x = jnp.swapaxes(x, -3, -2)
        used_query, used_key = _with_edges(h_query, h_key, adjacency, batch_shape)
        query = _linear(config, params, "linear_l", used_query)
        right = "linear_l" if config.share_weights else "linear_r"
        is_one = config.share_weights and used_key is used_query
        key = query if is_one else _linear(config, params, right, used_key)
        if config.add_self_loops:
            adjacency, x = add_self_loops(adjacency, x, config.fill_value)
        return cls(config, params, h_query, query, key, adjacency, x)

    def attention_vectors(self) -> list[jax.Array]:
        """What scores a pair."""
        return [self.params[name] for name in self.config.attention_vectors]

    def edges(self) -> dict[str, Any]:
        """Features of edges and their projection, which the kernel applies."""
        if self.edge_features is None:
            return {}
        weight = self.params["linear_e.weight"]
        heads = (self.config.n_heads, self.config.n_hidden)
        return {
            "edge_features": self.edge_features,
            "edge_projection": weight.reshape(*heads, weight.shape[1]),
        }

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


def _check_config(config: object) -> None:
    if not isinstance(config, Config):
        raise TypeError(
            f"`config` must be a gatv2.jax.Config; got {type(config).__name__}: "
            "call `init(rng, config)` and `apply(config, params, h, adj_mat)`"
        )


def _seed_of(config: Config, rng: jax.Array | None, seed: Seed, deterministic: bool) -> Seed:
    """The seed of the dropout mask; None where dropout does not act."""
    if rng is not None and seed is not None:
        raise ValueError("`rng` and `seed` are two ways to say the same: pass one of them")
    if deterministic or config.dropout == 0:
        return None
    if rng is None and seed is None:
        raise ValueError(
            f"`dropout`={config.dropout} needs randomness: pass a JAX key as `rng`, or a `seed`; "
            "for evaluation pass `deterministic=True`"
        )
    return seed if rng is None else seed_from_key(rng)


def _checked_params(config: Config, params: Params) -> Params:
    """Parameters as arrays of JAX, of one dtype, with the names and shapes of the options."""
    expected = config.shapes
    missing, unknown = expected.keys() - params.keys(), params.keys() - expected.keys()
    if missing or unknown:
        raise ValueError(
            f"`params` must have {sorted(expected)} for these options; it lacks {sorted(missing)} and "
            f"has besides {sorted(unknown)}: draw them with `init(rng, config)`, or take the options "
            "from where the parameters come, `Config.from_torch(layer)`"
        )
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


def _checked_features(config: Config, h: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
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
        array = _as_array(name, features)
        if array.ndim < 2 or array.shape[-1] != size:
            raise ValueError(
                f"`{name}` must have shape (*batch, n_nodes, in_features={size}); got {array.shape}"
            )
        read[name] = _of_dtype(config, name, array, dtype)
    h_query, h_key = (read[name] for name in names)
    return h_query, h_key


def _checked_edge_features(config: Config, edge_features: Any, dtype: Any) -> jax.Array | None:
    if config.edge_dim is None:
        if edge_features is not None:
            raise ValueError(
                "`edge_features` came to a layer without `edge_dim`: set edge_dim=D, the last dimension "
                f"of `edge_features`, {edge_features.shape}"
            )
        return None
    array = _as_array("edge_features", edge_features)
    if array.shape[-1:] != (config.edge_dim,):
        raise ValueError(
            f"`edge_features` must have edge_dim={config.edge_dim} as its last dimension; "
            f"got {array.shape}"
        )
    return _of_dtype(config, "edge_features", array, dtype)


def _as_array(name: str, array: Any) -> jax.Array:
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(
            f"`{name}` must be an array of JAX or NumPy; got {type(array).__name__}: convert it with "
            "`jnp.asarray`, or `gatv2.jax.as_jax` if it is one of PyTorch"
        )
    return jnp.asarray(array)


def _of_dtype(config: Config, name: str, array: jax.Array, dtype: Any) -> jax.Array:
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
        if adjacency.n_blocks != 1:
            has_key, is_key = (x.reshape(*batch_shape, -1) for x in (has_key, is_key))
    else:
        mask = jnp.asarray(adjacency)
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


def _linear(config: Config, params: Params, name: str, h: jax.Array) -> jax.Array:
    out = h @ params[f"{name}.weight"].T
    if config.bias:
        out = out + lead(params[f"{name}.bias"], out.ndim)
    return out.reshape(*h.shape[:-1], config.n_heads, config.n_hidden)
