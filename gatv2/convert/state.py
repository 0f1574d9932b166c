"""State dicts: a layer of one, and one of a layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from gatv2.checks import is_same
from gatv2.layer import GraphAttentionV2Layer
from gatv2.options import Bias, Flow, by_role

State = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int | str, ...]]
"""The shapes of parameters, in the order in which they are read: a word stands for one number, which the
first shape that has it tells. "H" and "F" are heads and features of a head, "H * F" is their product."""

_OURS: Shapes = {
    "attn": ("H", "F"),
    "linear_l.weight": ("H * F", "queries"),
    "linear_l.bias": ("H * F",),
    "linear_r.weight": ("H * F", "keys"),
    "linear_r.bias": ("H * F",),
    "linear_e.weight": ("H * F", "edges"),
    "linear_residual.weight": ("out", "queries"),
    "bias": ("out",),
}


_STEPS = ("as_pair", "attend", "join", "further_terms")
"""The methods that make the result of a layer of its parameters."""


def layer_of(
    state: State, *, flow: Flow = "target_to_source", is_pair: bool = False, **options: Any
) -> GraphAttentionV2Layer:
    """A layer with these parameters, sizes taken from them."""
    n_query, n_key = (state[f"linear_{side}.weight"].shape[1] for side in "lr")
    pair = by_role((n_query, n_key), flow)
    n_heads, n_hidden = state["attn"].shape
    if options["share_weights"]:
        for name in [name for name in state if name.startswith("linear_l.")]:
            if not is_same(state[name], state[name.replace("linear_l.", "linear_r.")]):
                raise ValueError("share_weights=True, but the two matrices differ")
    bias: Bias = "bias" in state or ("linear_l.bias" in state and "projections")
    of_edges = state.get("linear_e.weight")
    layer = GraphAttentionV2Layer(
        pair if is_pair or n_query != n_key else n_query,
        n_hidden * n_heads if options.get("is_concat", True) else n_hidden,
        n_heads,
        edge_dim=None if of_edges is None else of_edges.shape[1],
        bias=bias,
        residual="linear_residual.weight" in state,
        flow=flow,
        device=state["attn"].device,
        dtype=state["attn"].dtype,
        **options,
    )
    layer.load_state_dict({name: tensor.detach() for name, tensor in state.items()})
    return layer


def known_state(module: nn.Module, shapes: Shapes = _OURS) -> dict[str, Tensor]:
    """The state dict of a layer, ours by default, whose sizes are known."""
    if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters()):
        raise ValueError("the sizes are not known yet: call it once, then convert it")
    state = module.state_dict()
    kind = type(module).__name__
    if unknown := sorted(state.keys() - shapes.keys()):
        raise ValueError(
            f"the {kind} has {unknown}, which a layer of plain projections has not: merge what wraps "
            "or quantizes them, then convert it"
        )
    return read_state(state, "", shapes, ())


def read_state(
    state_dict: Mapping[str, object], prefix: str, shapes: Shapes, needed: tuple[str, ...]
) -> dict[str, Tensor]:
    """The parameters of a layer, checked: those whose names begin with `prefix`, without it.

    Args:
        state_dict: tensors, or NumPy arrays, by name.
        prefix: what the names of the layer begin with.
        shapes: of each parameter that the layer can have.
        needed: names of those that it must have.

    Raises:
        TypeError: not a state dict, or parameters not of one floating-point dtype.
        KeyError: a parameter is missing.
        ValueError: a parameter is unknown, or a shape does not fit.
    """
    if not (isinstance(state_dict, Mapping) and all(isinstance(name, str) for name in state_dict)):
        remedy = ": pass its `state_dict()`" if isinstance(state_dict, nn.Module) else ""
        raise TypeError(
            "`state_dict` must map the names of parameters to tensors; "
            f"got {type(state_dict).__name__}{remedy}"
        )
    part = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    if missing := [prefix + name for name in needed if name not in part]:
        raise KeyError(f"the state dict lacks {missing}; it has {sorted(state_dict)}")
    if unknown := [prefix + name for name in sorted(part.keys() - shapes.keys())]:
        raise ValueError(
            f"the state dict has {unknown}, which are no parameters of this layer: pass the state dict "
            "of the layer alone, or as `prefix` what its names begin with"
        )
    tensors = {name: _as_tensor(prefix + name, value) for name, value in part.items()}
    _check_dtypes(tensors, prefix)
    _check_shapes(tensors, prefix, shapes)
    return tensors


def check_together(state: State, prefix: str, names: tuple[str, ...]) -> None:
    """Raise a ValueError if a state dict has some of these parameters and not all."""
    has = [prefix + name for name in names if name in state]
    if has and len(has) < len(names):
        lacks = [prefix + name for name in names if name not in state]
        raise ValueError(
            f"the state dict has {has} without {lacks}: a layer has all or none of them"
        )


def check_ours(layer: object) -> None:
    """Raise for what is not our layer: a TypeError, or a ValueError if its class computes otherwise."""
    if not isinstance(layer, GraphAttentionV2Layer):
        raise TypeError(f"`layer` must be a GraphAttentionV2Layer; got {type(layer).__name__}")
    others = overridden_among(_STEPS, layer, GraphAttentionV2Layer)
    if others:
        raise ValueError(
            f"{type(layer).__name__} has {others} of its own, of which other libraries know nothing: "
            "convert a GraphAttentionV2Layer with its parameters"
        )


def overridden_among(names: tuple[str, ...], module: nn.Module, made: type[nn.Module]) -> list[str]:
    """Those of some methods that a module or its class has not from the class that it was made as."""
    return [
        name
        for name in names
        if name in module.__dict__ or getattr(type(module), name) is not getattr(made, name)
    ]


def _as_tensor(name: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got {type(value).__name__}")
    return value


def _check_dtypes(tensors: State, prefix: str) -> None:
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        got = ", ".join(f"{prefix}{name}: {tensor.dtype}" for name, tensor in tensors.items())
        raise TypeError(
            f"parameters must have one floating-point dtype; got {got}: convert them to one"
        )


def _check_shapes(tensors: State, prefix: str, shapes: Shapes) -> None:
    known: dict[int | str, int] = {}
    for name, shape in shapes.items():
        if name not in tensors:
            continue
        actual = tuple(tensors[name].shape)
        wanted = [size if isinstance(size, int) else known.get(size) for size in shape]
        fits = len(actual) == len(wanted) and all(
            n > 0 and n == (n if want is None else want)
            for n, want in zip(actual, wanted, strict=True)
        )
        if not fits:
            told = ", ".join(
                str(size) if want is None or isinstance(size, int) else f"{size}={want}"
                for size, want in zip(shape, wanted, strict=True)
            )
            raise ValueError(f"`{prefix}{name}` must have shape ({told}), no size 0; got {actual}")
        known |= zip(shape, actual, strict=True)
        if "H" in known and "F" in known:
            known["H * F"] = known["H"] * known["F"]
