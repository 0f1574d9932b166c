"""The layer as a Flax NNX module: needs `pip install flax`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gatv2.jax.layer import apply, init
from gatv2.options import Bias


class GraphAttentionV2Layer(nnx.Module):
    """Graph Attention v2 for Flax NNX: options here, the rest in :func:`gatv2.jax.apply`.

    Arguments are those of :class:`gatv2.GraphAttentionV2Layer`. `rngs` gives the parameters (stream
    "params") and the dropout masks (stream "dropout"); `eval()` turns dropout off and `train()` on.

    Attributes:
        params: `nnx.Param` under the names of the PyTorch layer's state dict; to take over
            :func:`gatv2.jax.from_torch`, set `layer.params[name][...] = array`.

    Example:
        >>> layer = GraphAttentionV2Layer(16, 8, n_heads=2, rngs=nnx.Rngs(0))
        >>> h, adj_mat = jnp.ones((4, 16)), jnp.eye(4, dtype=bool)[..., None]
        >>> layer(h, adj_mat).shape
        (4, 8)
        >>> layer.eval()
        >>> layer(h, adj_mat).shape
        (4, 8)
    """

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
        rngs: nnx.Rngs,
        bias: Bias = False,
        residual: bool = False,
        deterministic: bool = False,
        param_dtype: Any = jnp.float32,
        **options: Any,
    ) -> None:
        sizes = (in_features, out_features, n_heads)
        kinds: Any = {"bias": bias, "residual": residual, "dtype": param_dtype}
        params = init(rngs.params(), *sizes, is_concat, share_weights, **kinds)
        self.params = nnx.Dict({name: nnx.Param(array) for name, array in params.items()})
        self.rngs = rngs.dropout.fork() if dropout > 0 else None
        self.deterministic = deterministic
        self.options = {
            "is_concat": is_concat,
            "dropout": dropout,
            "leaky_relu_negative_slope": leaky_relu_negative_slope,
            **options,
        }

    def __call__(
        self, h: jax.Array, adj_mat: object, *, seed: int | jax.Array | None = None, **options: Any
    ) -> Any:
        """Attend over the graph, with dropout unless `deterministic`.

        A `seed` takes the place of the "dropout" stream.
        """
        params = {name: param[...] for name, param in self.params.items()}
        rng = None
        if self.rngs is None or self.deterministic:
            seed = None
        elif seed is None:
            rng = self.rngs()
        return apply(params, h, adj_mat, rng=rng, seed=seed, **(self.options | options))
