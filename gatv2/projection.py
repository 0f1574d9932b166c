"""Linear projections: made, also of inputs whose size only the first one tells, and looked into."""

from typing import NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

_LINEAR_FORWARD = nn.Linear.forward


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
        and "forward" not in vars(projection)  # some libraries put theirs there
        and not projection._forward_hooks
        and not projection._forward_pre_hooks
        and not projection._backward_hooks
        and not projection._backward_pre_hooks
    )


class Form(NamedTuple):
    """What is known of a tensor before it is there, by the names that a tensor has."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    layout: torch.layout = torch.strided


class Projection(NamedTuple):
    """What is projected, `[n_nodes, in_features]`, and by what."""

    h: Tensor
    weight: Tensor
    bias: Tensor | None

    def heads(self, attn: Tensor) -> Tensor:
        """`[n_nodes, n_heads, n_hidden]`, of which `attn` has the last two dimensions."""
        return nn.functional.linear(self.h, self.weight, self.bias).view(
            self.h.shape[0], *attn.shape
        )

    def form(self, attn: Tensor) -> Form:
        """The form of the heads."""
        return Form(torch.Size((self.h.shape[0], *attn.shape)), attn.dtype, attn.device)


class Projections(NamedTuple):
    """What queries and keys are projections of."""

    query: Projection
    key: Projection | None
    """None if the queries are the keys."""

    def forms(self, attn: Tensor) -> tuple[Form, Form]:
        """The forms of queries and keys."""
        query = self.query.form(attn)
        return query, query if self.key is None else self.key.form(attn)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of both."""
        return (*self.query, *(self.key or ()))


def as_projections(
    h_query: Tensor, h_key: Tensor, query: nn.Module, key: nn.Module, attn: Tensor
) -> Projections | None:
    """What two modules project from rows of features, for vectors `attn`; None if they do anything else.

    Args:
        h_query: features, checked to fit `query`.
        h_key: features, checked to fit `key`.
        query: projects those of queries.
        key: projects those of keys; the same one, of the same features, if the queries are the keys.
        attn: `[n_heads, n_hidden]`.
    """
    is_usual = (
        type(query) is type(key) is nn.Linear
        and nn.Linear.forward is _LINEAR_FORWARD
        and is_plain(query, nn.Linear)
        and (key is query or is_plain(key, nn.Linear))
        and h_query.ndim == h_key.ndim == 2
        and h_query.layout is h_key.layout is torch.strided
        and h_query.dtype is h_key.dtype is attn.dtype
        and not torch.is_autocast_enabled(attn.device.type)
    )
    if not is_usual:
        return None
    of_query, of_key = _projection(query, h_query), None
    if key is not query or h_key is not h_query:
        of_key = _projection(key, h_key)
    for _, weight, bias in filter(None, (of_query, of_key)):
        if weight.shape[0] != attn.numel() or (bias is not None and bias.ndim != 1):
            return None
    return Projections(of_query, of_key)


def _projection(linear: nn.Module, h: Tensor) -> Projection:
    return Projection(h, linear.weight, linear.bias)  # type: ignore[arg-type]


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
