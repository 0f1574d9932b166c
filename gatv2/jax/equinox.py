"""The layer as an Equinox module: needs `pip install equinox`."""

from typing import Literal, TypedDict, Unpack, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gatv2.jax.arrays import ArrayLike
from gatv2.jax.checks import check_static
from gatv2.jax.config import ModuleOptions
from gatv2.jax.interop import Params
from gatv2.jax.layer import Config, apply, init
from gatv2.jax.modules import PROJECTIONS, check_params, named_params
from gatv2.jax.projected import NodeFeatures
from gatv2.jax.random import Seed, check_key


class CallOptions(TypedDict, total=False):
    """What changes from call to call."""

    edge_features: ArrayLike | None
    score_bias: ArrayLike | None
    key: jax.Array | None
    seed: Seed
    inference: bool | None


class GraphAttentionV2Layer(eqx.Module):
    """Graph Attention v2 for Equinox.

    Arguments are those of :class:`gatv2.jax.Config`; `key` is a JAX key, and `dtype`, as Equinox has it,
    that of the parameters. As in `equinox.nn.Dropout`, `inference` turns dropout off,
    `equinox.nn.inference_mode` sets it, and `inference` at the call takes its place.

    Attributes:
        linear_l: projects queries.
        linear_r: projects keys and values; None with `share_weights`.
        linear_e: projects edge features; None without `edge_dim`.
        linear_residual: projects queries to the result, or None.
        attn: `[n_heads, n_hidden]`.
        bias: `[out_features]`, or None.
        inference: whether dropout is off.
        config: all options.

    Example:
        >>> layer = GraphAttentionV2Layer(16, 8, n_heads=2, key=jax.random.key(0))
        >>> h, adj_mat = jnp.ones((4, 16)), jnp.eye(4, dtype=bool)[..., None]
        >>> layer(h, adj_mat, key=jax.random.key(1)).shape
        (4, 8)
        >>> layer(h, adj_mat, inference=True).shape
        (4, 8)
    """

    linear_l: eqx.nn.Linear
    linear_r: eqx.nn.Linear | None
    linear_e: eqx.nn.Linear | None
    linear_residual: eqx.nn.Linear | None
    attn: jax.Array
    bias: jax.Array | None
    inference: bool
    config: Config = eqx.field(static=True)

    def __init__(
        self,
        in_features: int | tuple[int, int],
        out_features: int,
        n_heads: int,
        is_concat: bool = True,
        dropout: float = 0.6,
        leaky_relu_negative_slope: float = 0.2,
        share_weights: bool = False,
        *,
        key: jax.Array,
        inference: bool = False,
        dtype: DTypeLike = jnp.float32,
        compute_dtype: DTypeLike | None = None,
        **options: Unpack[ModuleOptions],
    ) -> None:
        self.config = Config(
            in_features,
            out_features,
            n_heads,
            is_concat,
            dropout,
            leaky_relu_negative_slope,
            share_weights,
            dtype=compute_dtype,
            param_dtype=dtype,
            **options,
        )
        check_key(key, "key")
        params = init(key, self.config)
        linears = {
            name: _linear(params[f"{name}.weight"], params.get(f"{name}.bias"))
            for name in PROJECTIONS
            if f"{name}.weight" in params
        }
        self.linear_l = linears["linear_l"]
        self.linear_r = linears.get("linear_r")
        self.linear_e = linears.get("linear_e")
        self.linear_residual = linears.get("linear_residual")
        self.attn, self.bias = params["attn"], params.get("bias")
        self.inference = inference

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return self.config.n_heads

    @property
    def params(self) -> Params:
        """The parameters under the names of the PyTorch layer's state dict."""
        projections = {
            name: (linear.weight, linear.bias)
            for name in PROJECTIONS
            if (linear := getattr(self, name)) is not None
        }
        return named_params(self.attn, self.bias, projections)

    def with_params(self, params: Params) -> "GraphAttentionV2Layer":
        """The layer with other parameters, such as :func:`gatv2.jax.from_torch` gives them.

        Raises:
            ValueError: names or shapes are not those of the layer's options.
        """
        check_params(self.config, params)

        def parts(layer: GraphAttentionV2Layer) -> list[jax.Array]:
            return list(layer.params.values())

        values = [params[name] for name in self.params]
        layer: GraphAttentionV2Layer = eqx.tree_at(parts, self, values)
        return layer

    @overload
    def __call__(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        return_attention: Literal[False] = ...,
        **options: Unpack[CallOptions],
    ) -> jax.Array: ...
    @overload
    def __call__(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        return_attention: Literal[True],
        **options: Unpack[CallOptions],
    ) -> tuple[jax.Array, jax.Array]: ...
    @overload
    def __call__(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        return_attention: bool,
        **options: Unpack[CallOptions],
    ) -> jax.Array | tuple[jax.Array, jax.Array]: ...
    def __call__(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        edge_features: ArrayLike | None = None,
        score_bias: ArrayLike | None = None,
        key: jax.Array | None = None,
        seed: Seed = None,
        inference: bool | None = None,
        return_attention: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Attend over the graph, with dropout from `key` or `seed` unless `inference`.

        Raises:
            ValueError: dropout has neither `key` nor `seed`; or what :func:`gatv2.jax.apply` raises.
        """
        is_off = self.inference if inference is None else inference
        check_static(inference=is_off)
        if not is_off and self.config.dropout > 0:
            if key is None and seed is None:
                raise ValueError("pass a `key` for dropout, or set `inference=True`")
            if key is not None:
                check_key(key, "key")
        return apply(
            self.config,
            self.params,
            h,
            adj_mat,
            edge_features=edge_features,
            score_bias=score_bias,
            rng=key,
            seed=seed,
            deterministic=is_off,
            return_attention=return_attention,
        )


def _linear(weight: jax.Array, bias: jax.Array | None) -> eqx.nn.Linear:
    n_out, n_in = weight.shape
    linear = eqx.nn.Linear(n_in, n_out, use_bias=bias is not None, key=jax.random.key(0))
    parts = (weight,) if bias is None else (weight, bias)
    result: eqx.nn.Linear = eqx.tree_at(lambda x: (x.weight, x.bias)[: len(parts)], linear, parts)
    return result
