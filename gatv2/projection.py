"""Linear projections: made, also of inputs whose size only the first one tells, and looked into."""

from typing import NamedTuple, TypedDict, TypeGuard, Unpack

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

_LINEAR_FORWARD = nn.Linear.forward
_PLAIN = {Tensor, nn.Parameter}


class Where(TypedDict):
    """Where a projection is made, and in which dtype."""

    device: torch.device | str | None
    dtype: torch.dtype | None


def linear(n_inputs: int, n_outputs: int, *, bias: bool, **where: Unpack[Where]) -> nn.Linear:
    """A projection, not yet drawn; with `n_inputs` -1 one that its first input gives its size."""
    if n_inputs == -1:
        return _LazyLinear(n_outputs, bias=bias, **where)
    return nn.Linear(n_inputs, n_outputs, bias=bias, **where)


def n_inputs_of(projection: nn.Module) -> int:
    """Features of an input; -1 if they are not known yet, or a module of the user's does not tell."""
    weight = getattr(projection, "weight", None)
    if isinstance(weight, UninitializedTensorMixin):
        return -1
    if isinstance(weight, Tensor):
        return weight.shape[1]
    n_inputs = getattr(projection, "in_features", -1)
    return n_inputs if isinstance(n_inputs, int) else -1


def weight_of(projection: nn.Module) -> Tensor | None:
    """The matrix of a projection; None if a module of the user's has none, as a quantized one has."""
    weight = getattr(projection, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.is_floating_point() else None


def weight_and_size(projection: nn.Module) -> tuple[Tensor | None, int]:
    """`weight_of` and `n_inputs_of`, in one look for what most projections have."""
    weight = getattr(projection, "weight", None)
    if type(weight) is nn.Parameter and weight.is_floating_point():
        return weight, weight.shape[1]
    return weight_of(projection), n_inputs_of(projection)


def has_bias(projection: nn.Module) -> bool:
    """Whether a projection has a bias; of a quantized one it is a method."""
    bias = getattr(projection, "bias", None)
    return (bias() if callable(bias) and not isinstance(bias, Tensor) else bias) is not None


def edge_projection(
    projection: nn.Module, edge_features: Tensor, n_heads: int, plain: type[nn.Module] = nn.Linear
) -> tuple[Tensor, Tensor]:
    """Edge features, and the matrix `[n_heads, n_hidden, D]` by which a kernel projects them.

    The weight of a plain projection goes to the kernel, which makes nothing of size edges x heads x
    features. A projection that a hook or a wrapper changes is called, and the kernel projects what came
    of it by the identity.
    """
    weight = weight_of(projection)
    if weight is not None and is_plain(projection, plain) and not has_bias(projection):
        return edge_features, weight.unflatten(0, (n_heads, -1))
    projected = projection(edge_features)
    identity = torch.eye(projected.shape[-1], dtype=projected.dtype, device=projected.device)
    return projected, identity.unflatten(0, (n_heads, -1))


def is_plain(projection: nn.Module, plain: type[nn.Module]) -> bool:
    """Whether a call is a product with `projection.weight`, plus a bias, and nothing else."""
    return (
        isinstance(projection, plain)
        and type(projection).forward is plain.forward
        and "forward" not in projection.__dict__  # some libraries put theirs there
        and not projection._forward_hooks
        and not projection._forward_pre_hooks
        and not projection._backward_hooks
        and not projection._backward_pre_hooks
    )


class Projections(NamedTuple):
    """What queries, keys and edges are projections of, and by what: `h @ weight.T + bias`."""

    h_query: Tensor
    """`[n_queries, in_features]`."""
    weight_query: Tensor
    bias_query: Tensor | None
    h_key: Tensor | None
    """`[n_keys, in_features]`; None, with the next two, if the queries are the keys."""
    weight_key: Tensor | None
    bias_key: Tensor | None
    edge_features: Tensor | None
    """`[n_edges, D]`, or None with its weight."""
    weight_edge: Tensor | None

    @property
    def n_keys(self) -> int:
        """Rows of the keys."""
        return (self.h_query if self.h_key is None else self.h_key).shape[0]


_Product = tuple[Tensor, Tensor, Tensor | None]
"""(h, weight, bias)."""


def as_projections(
    h_query: object,
    h_key: object,
    edge_features: object,
    linears: tuple[nn.Module | None, nn.Module | None, nn.Module | None],
    attn: Tensor,
) -> Projections | None:
    """What a layer's modules project on the CPU, for vectors `attn`; None if they do anything else.

    Args:
        h_query: features of queries.
        h_key: features of keys.
        edge_features: features of edges, or None.
        linears: what projects each of these, None for what is not projected.
        attn: `[n_heads, n_hidden]`.
    """
    of_query, of_key, of_edges = linears
    dtype, width, is_one_side = attn.dtype, attn.numel(), h_key is h_query
    if (
        nn.Linear.forward is not _LINEAR_FORWARD
        or not attn.is_cpu
        or not _is_matrix(h_query, dtype)
        or not (is_one_side or _is_matrix(h_key, dtype))
    ):
        return None
    shape = width, h_query.shape[1]
    query = _weight_and_bias(of_query, shape, dtype)
    if query is None:
        return None
    key: _Product | tuple[None, None, None] = (None, None, None)
    if of_key is not of_query or not is_one_side:
        if not is_one_side:
            shape = width, h_key.shape[1]
        found = _weight_and_bias(of_key, shape, dtype)
        if found is None:
            return None
        key = h_key, *found
    if of_edges is None or edge_features is None:
        return Projections(h_query, *query, *key, None, None)
    if not _is_matrix(edge_features, dtype):
        return None
    edge = _weight_and_bias(of_edges, (width, edge_features.shape[1]), dtype)
    if edge is None or edge[1] is not None:
        return None
    return Projections(h_query, *query, *key, edge_features, edge[0])


def _is_matrix(h: object, dtype: torch.dtype) -> TypeGuard[Tensor]:
    """Whether features are rows in the memory of the CPU."""
    return (
        type(h) is Tensor
        and h.ndim == 2
        and h.dtype is dtype
        and h.is_cpu
        and h.layout is torch.strided
    )


def _weight_and_bias(
    linear: nn.Module | None, shape: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor | None] | None:
    """What a plain module of PyTorch's multiplies by and adds, if its weight is of this shape."""
    if type(linear) is not nn.Linear or not is_plain(linear, nn.Linear):
        return None
    # past `nn.Module.__getattr__`, which takes longer than all else here
    own, parameters = linear.__dict__, linear._parameters
    if "weight" in own or "bias" in own or "bias" not in parameters:  # it may be anything
        return None
    weight, bias = parameters.get("weight"), parameters["bias"]
    fits = (
        weight is not None
        and type(weight) in _PLAIN
        and (bias is None or (type(bias) in _PLAIN and bias.ndim == 1))
        and weight.shape == shape
        and weight.dtype is dtype
        and weight.is_cpu
    )
    return (weight, bias) if fits else None  # type: ignore[return-value]


def reset_parameters(module: nn.Module) -> None:
    """Draw all parameters that have a size: Glorot uniform; biases are zero."""
    for parameter in module.parameters():
        if not isinstance(parameter, UninitializedTensorMixin):
            _reset(parameter)


def _reset(parameter: Tensor) -> None:
    if parameter.ndim > 1:
        nn.init.xavier_uniform_(parameter)
    else:
        nn.init.zeros_(parameter)


class _LazyLinear(nn.LazyLinear):
    """Becomes an `nn.Linear` at its first input, drawn as our parameters are."""

    def reset_parameters(self) -> None:
        if self.in_features:  # else this is the constructor of nn.LazyLinear
            reset_parameters(self)
