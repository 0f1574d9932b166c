"""What the modules of Flax and Equinox share: the names of their parameters."""

from collections.abc import Mapping

import jax

from gatv2.jax.config import LayerOptions
from gatv2.jax.interop import Params

PROJECTIONS = ("linear_l", "linear_r", "linear_e", "linear_residual")
"""Attributes of a module; None for what its options leave out."""

Projection = tuple[jax.Array, jax.Array | None]
"""Weight, `[out, in]`, and bias."""


def named_params(
    attn: jax.Array, bias: jax.Array | None, projections: Mapping[str, Projection]
) -> Params:
    """The parameters of a module under the names of the PyTorch layer's state dict."""
    params = {"attn": attn}
    for name, (weight, own_bias) in projections.items():
        params[f"{name}.weight"] = weight
        if own_bias is not None:
            params[f"{name}.bias"] = own_bias
    return params if bias is None else params | {"bias": bias}


def check_params(options: LayerOptions, params: Params) -> None:
    """Raise a ValueError unless parameters have the names and shapes of a layer's options."""
    expected = options.shapes
    if {name: array.shape for name, array in params.items()} != expected:
        raise ValueError(
            f"`params` must have {sorted(expected)} in the shapes of the layer; got {sorted(params)}"
        )
