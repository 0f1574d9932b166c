"""DGL's `GATv2Conv`, by its state dict."""

import torch
from torch import Tensor

from gatv2.convert.state import State, check_ours, known_state, layer_of, part_of
from gatv2.layer import GraphAttentionV2Layer

_DGL_NAMES = {
    "attn": "attn",
    "fc_src.weight": "linear_r.weight",
    "fc_src.bias": "linear_r.bias",
    "fc_dst.weight": "linear_l.weight",
    "fc_dst.bias": "linear_l.bias",
    "res_fc.weight": "linear_residual.weight",
    "res_fc.bias": "bias",
}


def from_dgl(
    state_dict: State,
    *,
    residual: bool = False,
    share_weights: bool = False,
    attn_drop: float = 0.0,
    negative_slope: float = 0.2,
    prefix: str = "",
) -> GraphAttentionV2Layer:
    """The state dict of DGL's `GATv2Conv` as our layer; DGL itself is not needed.

    The layer takes `torch.stack(graph.edges())`, and the pair of sources and destinations if the graph
    is bipartite. Its result is DGL's with the heads concatenated, `[N, H * F]` for `[N, H, F]`. What
    DGL's layer does around attention, `feat_drop` and `activation`, stays with the caller.

    A DGL layer with `residual=True` whose input has the size of a head adds the input to each head. It
    becomes a `linear_residual` of identity matrices without gradients.

    Args:
        state_dict: of the layer, or of a model that holds it.
        residual: as DGL's layer was made.
        share_weights: as DGL's layer was made.
        attn_drop: as DGL's layer was made.
        negative_slope: as DGL's layer was made.
        prefix: what the names of the layer begin with, such as "layers.0.".

    Raises:
        KeyError: a parameter is missing.
        ValueError: the state dict contradicts the arguments.

    Example:
        >>> state_dict = {
        ...     "attn": torch.randn(1, 4, 8), "fc_src.weight": torch.randn(32, 16),
        ...     "fc_src.bias": torch.zeros(32), "fc_dst.weight": torch.randn(32, 16),
        ...     "fc_dst.bias": torch.zeros(32),
        ... }
        >>> from_dgl(state_dict)(torch.randn(20, 16), torch.randint(20, (2, 60))).shape
        torch.Size([20, 32])

    Source: python/dgl/nn/pytorch/conv/gatv2conv.py of DGL.
    """
    given = part_of(state_dict, prefix, ("attn", "fc_src.weight", "fc_dst.weight"))
    renamed = {_DGL_NAMES[name]: x for name, x in given.items() if name in _DGL_NAMES}
    renamed["attn"] = given["attn"].squeeze(0)
    is_identity = residual and "res_fc.weight" not in given
    if "res_fc.weight" in given and not residual:
        raise ValueError("the state dict has 'res_fc.weight': pass residual=True")
    if is_identity:
        renamed["linear_residual.weight"] = _identity_residual(renamed)
    layer = layer_of(
        renamed,
        dropout=attn_drop,
        leaky_relu_negative_slope=negative_slope,
        share_weights=share_weights,
        flow="source_to_target",
    )
    if is_identity and layer.linear_residual is not None:
        layer.linear_residual.requires_grad_(False)
    return layer


def to_dgl(layer: GraphAttentionV2Layer) -> dict[str, Tensor]:
    """The state dict of DGL's `GATv2Conv` that computes what `layer` does.

    For `GATv2Conv(in_feats, layer.n_hidden, layer.n_heads, bias=..., residual=..., share_weights=...)`
    with the layer's options. DGL's edges go from the node attended to, to the one that attends.

    Raises:
        TypeError: `layer` is not a :class:`gatv2.GraphAttentionV2Layer`.
        ValueError: DGL's layer can't compute what the layer does: heads that are averaged, added
            self-loops, features of edges, a bias of the output without a residual, or a residual that
            is not the identity where DGL's is.

    Example:
        >>> sorted(to_dgl(GraphAttentionV2Layer(16, 32, n_heads=4)))
        ['attn', 'fc_dst.weight', 'fc_src.weight']
    """
    check_ours(layer)
    state = known_state(layer)
    if not layer.is_concat:
        raise ValueError("DGL's layer does not average its heads: the layer has is_concat=False")
    if layer.add_self_loops:
        raise ValueError(
            "DGL's layer adds no self-loops: use `dgl.add_self_loop`, and convert a layer with "
            "add_self_loops=False"
        )
    if layer.edge_dim is not None:
        raise ValueError(
            f"DGL's layer has no features of edges: the layer has edge_dim={layer.edge_dim}"
        )
    residual = state.pop("linear_residual.weight", None)
    bias = state.pop("bias", None)
    theirs = {name: state[ours] for name, ours in _DGL_NAMES.items() if ours in state}
    theirs["attn"] = state["attn"].unsqueeze(0)
    is_identity = residual is not None and residual.shape[1] == layer.n_hidden
    if residual is not None and is_identity and not residual.equal(_identity_residual(state)):
        raise ValueError(
            f"where the input has the size of a head, {layer.n_hidden}, DGL's residual is the "
            "identity: the layer's `linear_residual` is not"
        )
    if residual is not None and not is_identity:
        theirs["res_fc.weight"] = residual
        if layer.linear_l.bias is not None:
            theirs["res_fc.bias"] = residual.new_zeros(len(residual)) if bias is None else bias
    elif bias is not None and bool((bias != 0).any()):
        raise ValueError(
            "DGL's layer has a bias of the output in its residual's projection only: the layer's "
            "`bias` is not zero"
        )
    return {name: value.clone() for name, value in theirs.items()}


def _identity_residual(state: State) -> Tensor:
    """An input of the size of a head, for each head: `[n_heads * n_hidden, n_hidden]`."""
    (n_heads, n_hidden), n_query = state["attn"].shape, state["linear_l.weight"].shape[1]
    if n_query != n_hidden:
        raise ValueError(
            f"residual=True without 'res_fc.weight' adds the input to each head, but the input has "
            f"{n_query} features and a head {n_hidden}"
        )
    return torch.eye(n_hidden).to(state["attn"]).repeat(n_heads, 1)
