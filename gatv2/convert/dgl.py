"""DGL's `GATv2Conv`, by its state dict."""

import torch
from torch import Tensor

from gatv2.checks import is_same
from gatv2.convert.state import (
    Shapes,
    State,
    check_ours,
    check_together,
    known_state,
    layer_of,
    read_state,
)
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
_SHAPES: Shapes = {
    "attn": (1, "H", "F"),
    "fc_src.weight": ("H * F", "sources"),
    "fc_src.bias": ("H * F",),
    "fc_dst.weight": ("H * F", "destinations"),
    "fc_dst.bias": ("H * F",),
    "res_fc.weight": ("H * F", "destinations"),
    "res_fc.bias": ("H * F",),
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

    A DGL layer with `residual=True` and without `res_fc.weight` adds its input as it is, which becomes a
    `linear_residual` without gradients. Where the input has the size of the result it is the
    identity, as in DGL since 0.8; where it has the size of a head it is one identity a head, as in the
    file that came with the paper.

    Args:
        state_dict: of the layer, or of a model that holds it.
        residual: as DGL's layer was made.
        share_weights: as DGL's layer was made; False if its `in_feats` is a pair, as DGL shares nothing
            there.
        attn_drop: as DGL's layer was made.
        negative_slope: as DGL's layer was made.
        prefix: what the names of the layer begin with, such as "layers.0.".

    Raises:
        TypeError: `state_dict` holds something else than tensors of one floating-point dtype.
        KeyError: a parameter is missing.
        ValueError: the state dict contradicts the arguments, or its shapes one another.

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
    given = read_state(state_dict, prefix, _SHAPES, ("attn", "fc_src.weight", "fc_dst.weight"))
    has_residual = "res_fc.weight" in given
    biases = ("fc_src.bias", "fc_dst.bias", *(("res_fc.bias",) if has_residual else ()))
    check_together(given, prefix, biases)
    if has_residual and not residual:
        raise ValueError("the state dict has 'res_fc.weight': pass residual=True")
    if "res_fc.bias" in given and not has_residual:
        raise ValueError("the state dict has 'res_fc.bias' without 'res_fc.weight'")
    renamed = {_DGL_NAMES[name]: x for name, x in given.items()}
    renamed["attn"] = given["attn"][0]
    if share_weights and not all(
        is_same(given[f"fc_src.{kind}"], given[f"fc_dst.{kind}"])
        for kind in ("weight", "bias")
        if f"fc_src.{kind}" in given
    ):
        raise ValueError(
            "share_weights=True, but the two matrices differ: pass share_weights=False, as for each DGL "
            "layer whose `in_feats` is a pair, of which DGL shares nothing"
        )
    is_identity = residual and not has_residual
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
    of DGL 0.8 or newer, with the layer's options. DGL's edges go from the node attended to, to the one
    that attends, and `in_feats` of a bipartite graph are (sources, destinations), in this order.

    Raises:
        TypeError: `layer` is not a :class:`gatv2.GraphAttentionV2Layer`.
        ValueError: DGL's layer can't compute what the layer does: methods of a subclass, heads that are
            averaged, added self-loops, edge features, a bias of the output without a residual, or a
            residual that is not the identity where DGL's is.

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
            f"DGL's layer has no edge features: the layer has edge_dim={layer.edge_dim}"
        )
    residual = state.pop("linear_residual.weight", None)
    bias = state.pop("bias", None)
    theirs = {name: state[ours] for name, ours in _DGL_NAMES.items() if ours in state}
    theirs["attn"] = state["attn"].unsqueeze(0)
    is_identity = residual is not None and residual.shape[0] == residual.shape[1]
    if residual is not None and is_identity and not residual.equal(_identity_residual(state)):
        raise ValueError(
            f"where the input has the size of the result, {layer.out_features}, DGL's residual is the "
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
    """An input added as it is: to the result if it has the size of that, else to each head."""
    attn = state["attn"]
    (n_heads, n_hidden), n_query = attn.shape, state["linear_l.weight"].shape[1]
    width = n_heads * n_hidden
    if n_query not in (width, n_hidden):
        raise ValueError(
            "residual=True without 'res_fc.weight' adds the input as it is, but the input has "
            f"{n_query} features, a head {n_hidden} and the result {width}"
        )
    identity = torch.eye(n_query, dtype=attn.dtype, device=attn.device)
    return identity.repeat(width // n_query, 1)
