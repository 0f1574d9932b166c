"""The layer as an Equinox module: needs `pip install equinox`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from gatv2.jax.interop import Params
from gatv2.jax.layer import apply, init
from gatv2.options import Bias


class GraphAttentionV2Layer(eqx.Module):
    """Graph Attention v2 for Equinox: options here, the rest in :func:`gatv2.jax.apply`.

    Arguments are those of :class:`gatv2.GraphAttentionV2Layer`; `key` is a JAX key. As in
    `equinox.nn.Dropout`, `inference` turns dropout off, and `equinox.nn.inference_mode` sets it.

    Attributes:
        params: as :func:`gatv2.jax.from_torch` gives them; replace them with `equinox.tree_at`.

    Example:
        >>> layer = GraphAttentionV2Layer(16, 8, n_heads=2, key=jax.random.key(0))
        >>> h, adj_mat = jnp.ones((4, 16)), jnp.eye(4, dtype=bool)[..., None]
        >>> layer(h, adj_mat, key=jax.random.key(1)).shape
        (4, 8)
        >>> eqx.nn.inference_mode(layer)(h, adj_mat).shape
        (4, 8)
    """

    params: Params
    inference: bool
    options: dict[str, Any] = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_heads: int,
        is_concat: bool = True,
        dropout: float = 0.6,
        leaky_relu_negative_slope: float = 0.2,
        share_weights: bool = False,
        *,
        key: jax.Array,
        bias: Bias = False,
        residual: bool = False,
        inference: bool = False,
        dtype: Any = jnp.float32,
        **options: Any,
    ) -> None:
        sizes = (in_features, out_features, n_heads)
        kinds: Any = {"bias": bias, "residual": residual, "dtype": dtype}
        self.params = init(key, *sizes, is_concat, share_weights, **kinds)
        self.inference = inference
        self.options = {
            "is_concat": is_concat,
            "dropout": dropout,
            "leaky_relu_negative_slope": leaky_relu_negative_slope,
            **options,
        }

    def __call__(
        self,
        h: jax.Array,
        adj_mat: object,
        *,
        key: jax.Array | None = None,
        seed: int | jax.Array | None = None,
        **options: Any,
    ) -> Any:
        """Attend over the graph, with dropout from `key` or `seed` unless `inference`.

        Raises:
            ValueError: dropout has neither `key` nor `seed`.
        """
        if self.inference or self.options["dropout"] == 0:
            key = seed = None
        elif key is None and seed is None:
            raise ValueError("pass a `key` for dropout, or set `inference=True`")
        return apply(self.params, h, adj_mat, rng=key, seed=seed, **(self.options | options))
