"""The layer as two pure functions of its options: `init` makes parameters, `apply` attends with them.

Parameters are a dict with the names and the shapes of the PyTorch layer's state dict:

    linear_l.weight  [n_heads * n_hidden, in_features]   W_l, projects queries
    linear_r.weight  [n_heads * n_hidden, in_features]   W_r, projects keys; left out if W_l = W_r
    attn             [n_heads, n_hidden]                 a

and, for a layer that has them, `linear_e.weight`, `linear_l.bias`, `linear_r.bias`, `bias` and
`linear_residual.weight`; the static control has `attn_query` and `attn_key` in the place of `attn`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp

from gatv2.jax.arrays import ArrayLike
from gatv2.jax.checks import check_static
from gatv2.jax.config import LayerOptions
from gatv2.jax.functional import Options as AttentionOptions
from gatv2.jax.functional import (
    gat_attention,
    gat_scores,
    gatv2_attention,
    gatv2_scores,
)
from gatv2.jax.interop import Params
from gatv2.jax.projected import NodeFeatures, Projected
from gatv2.jax.random import Seed, check_key, seed_from_key


class Options(TypedDict, total=False):
    """What changes from call to call; see :func:`apply`."""

    edge_features: ArrayLike | None
    score_bias: ArrayLike | None
    rng: jax.Array | None
    seed: Seed
    deterministic: bool


@dataclass(frozen=True)
class Config(LayerOptions):
    """The options of a layer of Graph Attention v2; frozen, hashable, and so static under `jit`.

    Attributes and errors are those of :class:`gatv2.jax.config.LayerOptions`.

    Example:
        >>> config = Config(16, 8, n_heads=2, dropout=0.0)
        >>> params = config.init(jax.random.key(0))
        >>> config.apply(params, jnp.ones((4, 16)), jnp.eye(4, dtype=bool)).shape
        (4, 8)
    """

    def init(self, rng: jax.Array) -> Params:
        """Draw parameters; see :func:`gatv2.jax.init`."""
        return init(rng, self)

    @overload
    def apply(
        self,
        params: Params,
        h: NodeFeatures,
        adj_mat: object,
        *,
        return_attention: Literal[False] = ...,
        **options: Unpack[Options],
    ) -> jax.Array: ...
    @overload
    def apply(
        self,
        params: Params,
        h: NodeFeatures,
        adj_mat: object,
        *,
        return_attention: Literal[True],
        **options: Unpack[Options],
    ) -> tuple[jax.Array, jax.Array]: ...
    @overload
    def apply(
        self,
        params: Params,
        h: NodeFeatures,
        adj_mat: object,
        *,
        return_attention: bool,
        **options: Unpack[Options],
    ) -> jax.Array | tuple[jax.Array, jax.Array]: ...
    def apply(
        self,
        params: Params,
        h: NodeFeatures,
        adj_mat: object,
        *,
        return_attention: bool = False,
        **options: Unpack[Options],
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Attend over a graph; see :func:`gatv2.jax.apply`."""
        return apply(self, params, h, adj_mat, return_attention=return_attention, **options)


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
        if self.kernel not in ("auto", "jax"):
            raise ValueError(
                f"the static control has only kernel='jax' (or 'auto'); got {self.kernel!r}"
            )
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
    check_key(rng)
    draw = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
    keys = jax.random.split(rng, len(config.shapes))
    return {
        name: jnp.zeros(shape, config.param_dtype)
        if name.endswith("bias")
        else draw(key, shape, config.param_dtype)
        for key, (name, shape) in zip(keys, config.shapes.items(), strict=True)
    }


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
    return_attention: Literal[True],
    **options: Unpack[Options],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def apply(
    config: Config,
    params: Params,
    h: NodeFeatures,
    adj_mat: object,
    *,
    return_attention: bool,
    **options: Unpack[Options],
) -> jax.Array | tuple[jax.Array, jax.Array]: ...


def apply(
    config: Config,
    params: Params,
    h: NodeFeatures,
    adj_mat: object,
    *,
    edge_features: ArrayLike | None = None,
    score_bias: ArrayLike | None = None,
    rng: jax.Array | None = None,
    seed: Seed = None,
    deterministic: bool = False,
    return_attention: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""Attend over the graph.

    .. math::

        \begin{aligned}
        e_{ij} &= a \cdot \mathrm{LeakyReLU}(W_l h_i + W_r h_j) \\
        \alpha_{ij} &= \mathrm{softmax}_{j \in N_i}(e_{ij}) \\
        h'_i &= \sum_{j \in N_i} \alpha_{ij} W_r h_j
        \end{aligned}

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
            None, with a `score_bias`: all attend to all.
        edge_features: features of each edge, laid out as `adj_mat`, for a layer with `edge_dim`:
            `[*batch, n_edges, edge_dim]` in the order of a list of edges, then padding, or
            `[*batch, n_nodes, n_nodes, edge_dim]` with a mask.
        score_bias: what is added to the scores :math:`e_{ij}`, for one or for each head, laid out as
            `adj_mat`: `[*batch, n_edges, 1 or n_heads]`, or `[*batch, n_nodes, n_nodes, 1 or n_heads]`
            with a mask. -inf takes an edge from a head; `jnp.log(weight)` makes coefficients
            proportional to edge weights. Self-loops that the layer adds have that of `loop_bias`.
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
        layer = Projected.of(config, params, h, adj_mat, edge_features, score_bias)
        options: AttentionOptions = {
            "negative_slope": config.leaky_relu_negative_slope,
            "dropout": 0.0 if seed is None else config.dropout,
            "seed": seed,
            "backend": config.backend,
            "score_bias": layer.score_bias,
        }
        if config.is_dynamic:
            (attn,) = layer.attention_vectors()
            result = gatv2_attention(
                layer.query,
                layer.key,
                attn,
                layer.adjacency,
                edge_features=layer.edge_features,
                edge_projection=layer.edge_projection,
                kernel=config.kernel,
                return_attention=return_attention,
                **options,
            )
        else:
            attn_query, attn_key = layer.attention_vectors()
            result = gat_attention(
                layer.query,
                layer.key,
                attn_query,
                attn_key,
                layer.adjacency,
                return_attention=return_attention,
                **options,
            )
        out, alpha = result if isinstance(result, tuple) else (result, None)
        out = layer.join(out)
    return out if alpha is None else (out, alpha)


def attention_scores(
    config: Config,
    params: Params,
    h: NodeFeatures,
    adj_mat: object,
    *,
    edge_features: ArrayLike | None = None,
    score_bias: ArrayLike | None = None,
) -> jax.Array:
    """The scores e_ij before the softmax, with their bias, -inf where a head has no edge.

    `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
    `[*batch, n_queries, n_keys, n_heads]` (dense). Arguments are those of :func:`apply`.
    """
    _check_config(config)
    layer = Projected.of(config, params, h, adj_mat, edge_features, score_bias)
    slope, backend = config.leaky_relu_negative_slope, config.backend
    if config.is_dynamic:
        (attn,) = layer.attention_vectors()
        return gatv2_scores(
            layer.query,
            layer.key,
            attn,
            layer.adjacency,
            score_bias=layer.score_bias,
            edge_features=layer.edge_features,
            edge_projection=layer.edge_projection,
            negative_slope=slope,
            backend=backend,
        )
    attn_query, attn_key = layer.attention_vectors()
    return gat_scores(
        layer.query,
        layer.key,
        attn_query,
        attn_key,
        layer.adjacency,
        score_bias=layer.score_bias,
        negative_slope=slope,
        backend=backend,
    )


def _check_config(config: object) -> None:
    check_static(config=config)
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
