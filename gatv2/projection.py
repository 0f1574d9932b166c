"""Linear projections: made, also of inputs whose size only the first one tells, and looked into."""

from collections.abc import Callable
from typing import NamedTuple, TypedDict, TypeGuard, Unpack

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

PLAIN = {Tensor, nn.Parameter}
"""Types of tensors that are no subclasses of the user's."""


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
    if _has_no_size_to_trace(projection):
        return -1
    weight = getattr(projection, "weight", None)
    if isinstance(weight, UninitializedTensorMixin):
        return -1
    if isinstance(weight, Tensor):
        return weight.shape[1]
    n_inputs = getattr(projection, "in_features", -1)
    return n_inputs if isinstance(n_inputs, int) else -1


def weight_of(projection: nn.Module) -> Tensor | None:
    """The matrix of a projection; None if a module of the user's has none, as a quantized one has."""
    if _has_no_size_to_trace(projection):
        return None
    weight = getattr(projection, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.is_floating_point() else None


def weight_and_size(projection: nn.Module) -> tuple[Tensor | None, int]:
    """`weight_of` and `n_inputs_of`, in one look for what most projections have."""
    if _has_no_size_to_trace(projection):
        return None, -1
    weight = getattr(projection, "weight", None)
    if type(weight) is nn.Parameter and weight.is_floating_point():
        return weight, weight.shape[1]
    return weight_of(projection), n_inputs_of(projection)


def _has_no_size_to_trace(projection: nn.Module) -> bool:
    """Whether torch.compile will give a projection its size, and must see no weight of it before."""
    return torch.compiler.is_compiling() and isinstance(projection, LazyModuleMixin)


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


class LinearKind(NamedTuple):
    """A class of modules that project by `h @ weight.T + bias`, as its library made it."""

    module: type[nn.Module]
    forward: Callable[..., Tensor]


NN_LINEAR = LinearKind(nn.Linear, nn.Linear.forward)


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
    kind: LinearKind = NN_LINEAR,
) -> Projections | None:
    """What a layer's modules project on the CPU, for vectors `attn`; None if they do anything else.

    Args:
        h_query: features of queries.
        h_key: features of keys.
        edge_features: features of edges, or None.
        linears: what projects each of these, None for what is not projected.
        attn: `[n_heads, n_hidden]`.
        kind: of the modules.
    """
    of_query, of_key, of_edges = linears
    n_heads, n_hidden = attn.shape
    dtype, width = attn.dtype, n_heads * n_hidden
    if (
        kind.module.forward is not kind.forward  # somebody has put another one in its place
        or not attn.is_cpu
        or not _is_matrix(h_query, dtype)
    ):
        return None
    query = _as_product(of_query, h_query, width, dtype, kind)
    key: _Product | tuple[None, None, None] | None = (None, None, None)
    if h_key is h_query:  # which has been looked at
        if of_key is not of_query:
            key = _as_product(of_key, h_query, width, dtype, kind)
    else:
        key = _as_product(of_key, h_key, width, dtype, kind) if _is_matrix(h_key, dtype) else None
    edge: _Product | tuple[None, None, None] | None = (None, None, None)
    if of_edges is not None and edge_features is not None:
        edge = None
        if _is_matrix(edge_features, dtype):
            edge = _as_product(of_edges, edge_features, width, dtype, kind)
    if query is None or key is None or edge is None or edge[2] is not None:
        return None
    # past a named tuple's own constructor, which is a function in Python
    return tuple.__new__(Projections, (*query, *key, *edge[:2]))


def _is_matrix(h: object, dtype: torch.dtype) -> TypeGuard[Tensor]:
    """Whether features are a plain tensor of rows of this dtype, in the CPU's memory."""
    return (
        type(h) is Tensor
        and h.ndim == 2
        and h.dtype is dtype
        and h.is_cpu
        and h.layout is torch.strided
    )


def _as_product(
    linear: nn.Module | None, h: Tensor, width: int, dtype: torch.dtype, kind: LinearKind
) -> _Product | None:
    """What a plain module of PyTorch's makes of rows, if that fits and gives `width` numbers each."""
    if linear is None or type(linear) is not kind.module or not is_plain(linear, kind.module):
        return None
    # past `nn.Module.__getattr__`, which takes longer than all else here
    own, parameters = linear.__dict__, linear._parameters
    if "weight" in own or "bias" in own or "bias" not in parameters:  # it may be anything
        return None
    weight, bias = parameters.get("weight"), parameters["bias"]
    fits = (
        weight is not None
        and type(weight) in PLAIN
        and (bias is None or (type(bias) in PLAIN and bias.ndim == 1))
        and weight.shape == (width, h.shape[1])
        and weight.dtype is dtype
        and weight.is_cpu
    )
    return (h, weight, bias) if fits else None  # type: ignore[return-value]


def are_parameters_freed() -> bool:
    """Whether FSDP may free the memory of parameters between its passes, for which there is a group.

    `Tensor.numpy` has memory never change its size again: copies are read then.
    """
    return torch.distributed.is_available() and torch.distributed.is_initialized()


_GIVEN = "fill_value", "loop_bias"
"""Names of what a layer is given; it may be a parameter, and learned."""


def reset_parameters(module: nn.Module) -> None:
    """Draw all parameters that have a size and were not given: Glorot uniform; biases are zero."""
    for name, parameter in module.named_parameters():
        is_given = name.rpartition(".")[2] in _GIVEN
        if not (is_given or isinstance(parameter, UninitializedTensorMixin)):
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
