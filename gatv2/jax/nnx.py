"""The layer as a Flax NNX module: needs `pip install flax`."""

from typing import Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gatv2.jax.arrays import ArrayLike
from gatv2.jax.checks import check_static
from gatv2.jax.config import ModuleOptions
from gatv2.jax.interop import Params
from gatv2.jax.layer import Config, apply
from gatv2.jax.modules import PROJECTIONS, check_params, named_params
from gatv2.jax.projected import NodeFeatures
from gatv2.jax.random import Seed, check_key

Streams = nnx.Rngs | nnx.RngStream | jax.Array
"""What gives a key to `nnx.Dropout`: the stream "dropout" of many, one stream, or a key itself."""


class CallOptions(TypedDict, total=False):
    """What changes from call to call."""

    edge_features: ArrayLike | None
    score_bias: ArrayLike | None
    rngs: Streams | None
    seed: Seed
    deterministic: bool | None


class GraphAttentionV2Layer(nnx.Module):
    """Graph Attention v2 for Flax NNX.

    Arguments are those of :class:`gatv2.jax.Config`. `rngs` gives the parameters (stream "params") and
    the dropout masks (stream "dropout"). `eval()` turns dropout off and `train()` on, as does
    `nnx.view(layer, deterministic=...)` in a copy, and `deterministic` and `rngs` at the call take
    their place. `kernel_init` draws the projections and the attention vectors; `nnx.with_partitioning`
    gives the projections metadata of sharding.

    Attributes:
        linear_l: projects queries.
        linear_r: projects keys and values; None with `share_weights`.
        linear_e: projects edge features; None without `edge_dim`.
        linear_residual: projects queries to the result, or None.
        attn: `[n_heads, n_hidden]`.
        bias: `[out_features]`, or None.
        deterministic: whether dropout is off.
        config: all options.

    Example:
        >>> layer = GraphAttentionV2Layer(16, 8, n_heads=2, rngs=nnx.Rngs(0))
        >>> h, adj_mat = jnp.ones((4, 16)), jnp.eye(4, dtype=bool)[..., None]
        >>> layer(h, adj_mat).shape
        (4, 8)
        >>> layer(h, adj_mat, deterministic=True).shape
        (4, 8)
    """

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
        rngs: nnx.Rngs,
        deterministic: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: nnx.Initializer = nnx.initializers.glorot_uniform(),  # noqa: B008
        bias_init: nnx.Initializer = nnx.initializers.zeros_init(),  # noqa: B008
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
            dtype=dtype,
            param_dtype=param_dtype,
            **options,
        )
        shapes = self.config.shapes
        for name in PROJECTIONS:
            linear = None
            if f"{name}.weight" in shapes:
                n_out, n_in = shapes[f"{name}.weight"]
                linear = nnx.Linear(
                    n_in,
                    n_out,
                    use_bias=f"{name}.bias" in shapes,
                    param_dtype=param_dtype,
                    kernel_init=kernel_init,
                    bias_init=bias_init,
                    rngs=rngs,
                )
            setattr(self, name, linear)
        # as the projections: the last axis is what goes in
        drawn = kernel_init(rngs.params(), shapes["attn"][::-1], param_dtype)
        vectors = getattr(drawn, "raw_value", drawn)  # without metadata, which are of projections
        self.attn = nnx.Param(jnp.swapaxes(vectors, 0, 1))
        self.bias = (
            nnx.Param(bias_init(rngs.params(), shapes["bias"], param_dtype))
            if "bias" in shapes
            else None
        )
        self.rngs = rngs.dropout.fork() if dropout > 0 else None
        self.deterministic = deterministic

    def set_view(self, deterministic: bool | None = None) -> None:
        """Called by `nnx.view`.

        Args:
            deterministic: whether dropout is off.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return self.config.n_heads

    @property
    def params(self) -> Params:
        """The parameters under the names of the PyTorch layer's state dict."""
        projections = {
            name: (linear.kernel[...].T, None if linear.bias is None else linear.bias[...])
            for name in PROJECTIONS
            if (linear := getattr(self, name)) is not None
        }
        bias = None if self.bias is None else self.bias[...]
        return named_params(self.attn[...], bias, projections)

    def load(self, params: Params) -> None:
        """Take over parameters, such as :func:`gatv2.jax.from_torch` gives them.

        Raises:
            ValueError: names or shapes are not those of the layer's options.
        """
        check_params(self.config, params)
        for name, array in params.items():
            part, _, kind = name.rpartition(".")
            owner = getattr(self, part) if part else self
            variable = getattr(owner, "kernel" if kind == "weight" else kind)
            variable[...] = array.T if kind == "weight" else array

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
        rngs: Streams | None = None,
        seed: Seed = None,
        deterministic: bool | None = None,
        return_attention: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Attend over the graph, with dropout unless `deterministic`.

        Randomness is that of `seed`, of `rngs`, as `nnx.Dropout` takes them (the "dropout" stream of
        many, one stream, or a key), or of the layer's own stream.
        """
        is_off = self.deterministic if deterministic is None else deterministic
        check_static(deterministic=is_off)
        rng: jax.Array | None = None
        if not is_off and seed is None and self.rngs is not None:
            given = self.rngs if rngs is None else rngs
            stream = given.dropout if isinstance(given, nnx.Rngs) else given
            rng = stream() if isinstance(stream, nnx.RngStream) else stream
            check_key(rng, "rngs")
        return apply(
            self.config,
            self.params,
            h,
            adj_mat,
            edge_features=edge_features,
            score_bias=score_bias,
            rng=rng,
            seed=seed,
            deterministic=is_off,
            return_attention=return_attention,
        )
