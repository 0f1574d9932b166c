"""Attention to keys that are spread over devices: parts are joined by their log-sum-exp."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def join_parts(
    out: jax.Array, lse: jax.Array, axis_name: str | tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    r"""Join what queries have attended to on each device, in `jax.shard_map` or `jax.vmap`.

    .. math::

        \mathrm{lse} = \log \sum_p \exp \mathrm{lse}_p, \qquad
        \mathrm{out} = \sum_p \exp(\mathrm{lse}_p - \mathrm{lse}) \, \mathrm{out}_p

    Differentiable; each device sends as much as a result.

    Args:
        out: `[*batch, n_queries, n_heads, n_hidden]`, the result of this device's keys.
        lse: `[*batch, n_queries, n_heads]`, its log-sum-exp, of `return_lse=True`.
        axis_name: of the mesh, or of `jax.vmap`, over which the keys are split.

    Returns:
        The result of all keys, and its log-sum-exp; the same on each device.

    Example:
        >>> import gatv2.jax as gat
        >>> h, a = jnp.ones((4, 2, 3)), jnp.ones((2, 3))
        >>> parts = gat.Graph.from_mask(jnp.ones((4, 4, 1), bool)).split(2, side="keys")
        >>> def attend(part, key):
        ...     out, lse = gat.gatv2_attention(h, key, a, part, return_lse=True)
        ...     return join_parts(out, lse, "parts")
        >>> out, _ = jax.vmap(attend, axis_name="parts")(parts, h.reshape(2, 2, 2, 3))
        >>> out.shape, bool(jnp.allclose(out, 1))
        ((2, 4, 2, 3), True)
    """
    has_keys = lse != -math.inf  # NaN is of keys
    largest = jax.lax.pmax(
        jax.lax.stop_gradient(jnp.where(has_keys, lse, np.finfo(lse.dtype).min)), axis_name
    )
    weight = jnp.where(has_keys, jnp.exp(jnp.where(has_keys, lse, largest) - largest), 0)
    total = jax.lax.psum(weight, axis_name)
    divisor = jnp.where(total == 0, 1, total)
    weighted = jax.lax.psum(weight[..., None] * out.astype(weight.dtype), axis_name)
    joined = (weighted / divisor[..., None]).astype(out.dtype)
    return joined, jnp.where(total == 0, -math.inf, largest + jnp.log(divisor))
