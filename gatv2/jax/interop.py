"""Arrays and parameters between PyTorch and JAX.

Single arrays share memory where the layout allows it. Parameters are copied: an optimizer of PyTorch
writes into its tensors, and what a JAX array holds must not change.

A checkpoint needs no conversion: parameters are a flat dict of arrays, so what
`safetensors.flax.save_file` writes, `safetensors.torch.load_model` reads, and the other way round.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from gatv2.jax.arrays import check_width, is_concrete, on_device
from gatv2.jax.checks import as_array

if TYPE_CHECKING:
    from torch import Tensor, nn

Params = dict[str, jax.Array]
"""Parameters under the names of a PyTorch state dict; what is tied is there once."""


def as_jax(tensor: "Tensor") -> jax.Array:
    """A PyTorch tensor as a JAX array, which shares its memory where it can: do not write to it then.

    Detached from autograd. A tensor on the CPU goes to JAX's default device. A copy is made of what JAX
    can't read in place: strided views, memory that is not aligned to 64 bytes, and memory elsewhere.

    Raises:
        TypeError: no tensor, or the dtype has 64 bits and JAX does not have them enabled.

    Example:
        >>> import torch
        >>> as_jax(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T)
        Array([[1., 3.],
               [2., 4.]], dtype=float32)
    """
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"`tensor` must be one of PyTorch; got {type(tensor).__name__}: arrays of JAX and NumPy are "
            "read as they are"
        )
    check_width(tensor.dtype, "convert the values, `.float()` or `.int()`")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.device.type != "cpu":
        array: jax.Array = jax.dlpack.from_dlpack(tensor.contiguous())
        return array
    if tensor.dtype == torch.bfloat16:  # which NumPy itself does not know
        return on_device(tensor.view(torch.int16).numpy().view(jnp.bfloat16))
    return on_device(tensor.numpy())


def as_torch(array: jax.Array) -> "Tensor":
    """A JAX array as a PyTorch tensor, which shares its memory where it can: do not write to it.

    Raises:
        TypeError: `array` is traced, or no array of numbers.

    Example:
        >>> as_torch(jnp.arange(3) > 0)
        tensor([False,  True,  True])
    """
    import torch.utils.dlpack

    if not is_concrete(array):
        raise TypeError(
            "a traced array has no values for a tensor of PyTorch: call `as_torch` outside of `jit`, "
            "`grad` and `vmap`, on what the compiled function returns, or in `jax.pure_callback`"
        )
    array = as_array("array", array)
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        raise TypeError(
            f"`array` must hold numbers; got {array.dtype}: carry over `jax.random.key_data(array)`"
        )
    tensor: Tensor = torch.utils.dlpack.from_dlpack(array)
    return tensor


def from_torch(module: "nn.Module") -> Params:
    """The parameters and buffers of a PyTorch module, copied, under the names of its state dict.

    A tensor that has several names, as `linear_l.weight` and `linear_r.weight` of a layer with
    `share_weights`, is there once, under the first.

    Raises:
        TypeError: a dtype has 64 bits and JAX does not have them enabled.

    Example:
        >>> import gatv2
        >>> layer = gatv2.GraphAttentionV2Layer(16, 8, n_heads=2)
        >>> params = from_torch(layer)
        >>> {name: array.shape for name, array in params.items()}
        {'attn': (2, 4), 'linear_l.weight': (8, 16), 'linear_r.weight': (8, 16)}
    """
    return {name: jnp.array(as_jax(tensor)) for name, tensor in _untied(module).items()}


def to_torch(params: Mapping[str, jax.Array], module: "nn.Module") -> None:
    """Copy parameters into a PyTorch module, in place, so that its optimizer keeps hold of them.

    Args:
        params: as :func:`from_torch` gives them.
        module: takes them over.

    Raises:
        KeyError: a name is missing, or the module does not have it.
        ValueError: a shape differs.
        TypeError: a dtype differs.

    Example:
        >>> import gatv2
        >>> one, other = (gatv2.GraphAttentionV2Layer(16, 8, n_heads=2) for _ in range(2))
        >>> to_torch(from_torch(one), other)
        >>> import torch
        >>> torch.equal(one.attn, other.attn)
        True
    """
    import torch

    own = _untied(module)
    if missing := own.keys() - params.keys():
        raise KeyError(f"`params` lacks {sorted(missing)}; it has {sorted(params)}")
    if unknown := params.keys() - own.keys():
        raise KeyError(f"the module has no {sorted(unknown)}; it has {sorted(own)}")
    tensors = {name: as_torch(jnp.asarray(array)) for name, array in params.items()}
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"`{name}` must have shape {tuple(own[name].shape)}; got {tuple(tensor.shape)}"
            )
        if tensor.dtype != own[name].dtype:
            raise TypeError(f"`{name}` must have dtype {own[name].dtype}; got {tensor.dtype}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _untied(module: "nn.Module") -> "dict[str, Tensor]":
    """The state dict of a module, each tensor once."""
    tensors: dict[str, Tensor] = module.state_dict(keep_vars=True)
    seen: set[int] = set()
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (id(tensor) in seen or seen.add(id(tensor)))  # type: ignore[func-returns-value]
    }
