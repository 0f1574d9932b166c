"""State dicts: a layer of one, and one of a layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from gatv2.layer import GraphAttentionV2Layer

State = Mapping[str, Tensor]


def layer_of(
    state: State, *, flow: Any = "target_to_source", is_pair: bool = False, **options: Any
) -> GraphAttentionV2Layer:
    """A layer with these parameters, sizes taken from them."""
    n_query, n_key = (state[f"linear_{side}.weight"].shape[1] for side in "lr")
    pair = (n_query, n_key) if flow == "target_to_source" else (n_key, n_query)
    n_heads, n_hidden = state["attn"].shape
    if options["share_weights"]:
        for name in [name for name in state if name.startswith("linear_l.")]:
            if not torch.equal(state[name], state[name.replace("linear_l.", "linear_r.")]):
                raise ValueError("share_weights=True, but the two matrices differ")
    bias: Any = "bias" in state or ("linear_l.bias" in state and "projections")
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


def known_state(module: Any) -> dict[str, Tensor]:
    """The state dict of a module whose sizes are known."""
    if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters()):
        raise ValueError("the sizes are not known yet: call it once, then convert it")
    state: dict[str, Tensor] = module.state_dict()
    return state


def part_of(state_dict: State, prefix: str, needed: tuple[str, ...]) -> dict[str, Tensor]:
    """The part of a state dict whose names begin with `prefix`, without it."""
    part = {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
    if missing := [prefix + name for name in needed if name not in part]:
        raise KeyError(f"the state dict lacks {missing}; it has {sorted(state_dict)}")
    return part


def check_ours(layer: object) -> None:
    """Raise a TypeError for what is not our layer."""
    if not isinstance(layer, GraphAttentionV2Layer):
        raise TypeError(f"`layer` must be a GraphAttentionV2Layer; got {type(layer).__name__}")
