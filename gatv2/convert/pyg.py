"""PyTorch Geometric's `GATv2Conv`."""

from typing import TYPE_CHECKING

from torch import Tensor

from gatv2.convert.state import Shapes, check_ours, known_state, layer_of, overridden_among
from gatv2.graph.self_loops import FillValue, check_fill_value
from gatv2.layer import GraphAttentionV2Layer

if TYPE_CHECKING:
    from torch_geometric.nn import GATv2Conv

_MESSAGES = ("edge_update", "message", "aggregate", "update", "message_and_aggregate")
_CALLERS = ("propagate", "edge_updater")
"""What calls those; PyTorch Geometric compiles it for each class, to a function of a module's."""


def from_pyg(conv: "GATv2Conv") -> GraphAttentionV2Layer:
    """PyTorch Geometric's `GATv2Conv` as our layer.

    The layer is called as `conv` is: with `x`, or the pair of sources and targets, and `edge_index`;
    `edge_attr`, which must be `[n_edges, edge_dim]`, by name as `edge_features`. With
    `flow="target_to_source"` our pairs have the order of the rows of the edge index, which is the other
    one. What is frozen stays frozen.

    Args:
        conv: a `torch_geometric.nn.GATv2Conv`, with its sizes known.

    Raises:
        TypeError: `conv` is something else.
        ValueError: `conv` aggregates by something else than the sum, its class has messages of its own,
            something wraps or quantizes its projections, its sizes are not known yet, or it has
            flow="target_to_source" where that is not ours: on a bipartite graph, and where features of
            self-loops are reduced from those of other edges.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import GATv2Conv
        >>> conv = GATv2Conv(16, 8, heads=4)
        >>> layer = from_pyg(conv)
        >>> x, edge_index = torch.randn(20, 16), torch.randint(20, (2, 60))
        >>> torch.allclose(layer(x, edge_index), conv(x, edge_index), atol=1e-5)
        True

    Source: torch_geometric/nn/conv/gatv2_conv.py of PyTorch Geometric 2.8.
    """
    from torch_geometric.nn import GATv2Conv

    if not isinstance(conv, GATv2Conv):
        raise TypeError(f"`conv` must be a torch_geometric.nn.GATv2Conv; got {type(conv).__name__}")
    if not is_sum(conv.aggr_module):
        raise ValueError(f"our layer sums over the keys; `conv` has aggr={conv.aggr_module}")
    if others := overridden(conv):
        raise ValueError(
            f"{type(conv).__name__} has {others} of its own, of which our layer knows nothing: convert "
            "a GATv2Conv with its parameters"
        )
    check_flow(conv)
    state = {our_name(name): x for name, x in known_state(conv, shapes_of(conv.concat)).items()}
    layer = layer_of(
        state | {"attn": conv.att[0]},
        is_concat=bool(conv.concat),  # theirs may be any
        dropout=conv.dropout,
        leaky_relu_negative_slope=conv.negative_slope,
        share_weights=bool(conv.share_weights),
        add_self_loops=bool(conv.add_self_loops),
        fill_value=our_fill_value(conv),
        flow=conv.flow,
        is_pair=not isinstance(conv.in_channels, int),
    )
    for name, parameter in conv.named_parameters():
        layer.get_parameter(our_name(name)).requires_grad_(parameter.requires_grad)
    return layer.train(conv.training)


def to_pyg(layer: GraphAttentionV2Layer) -> "GATv2Conv":
    """Our layer as PyTorch Geometric's `GATv2Conv`, called as `layer` is, with an edge index.

    Its `flow` is the layer's, and what is frozen stays frozen. What it does not know, `backend`,
    `kernel` and `loop_bias`, is left out.

    Raises:
        TypeError: `layer` is not a :class:`gatv2.GraphAttentionV2Layer`.
        ValueError: the layer's sizes are not known yet, its class computes otherwise, or `GATv2Conv` has
            not what the layer has: a bias of the projections alone, or our flow on a bipartite graph.

    Example:
        >>> layer = GraphAttentionV2Layer(16, 32, n_heads=4)
        >>> to_pyg(layer)
        GATv2Conv(16, 8, heads=4)
    """
    from torch_geometric.nn import GATv2Conv

    check_ours(layer)
    state = known_state(layer)
    has_bias = layer.bias is not None
    if has_bias != (layer.linear_l.bias is not None):
        raise ValueError(
            "`GATv2Conv` has a bias of the projections and of the output, or none: the layer has "
            "bias='projections'"
        )
    fill_value = layer.fill_value
    conv = GATv2Conv(
        layer.in_features,
        layer.n_hidden,
        heads=layer.n_heads,
        concat=layer.is_concat,
        negative_slope=layer.leaky_relu_negative_slope,
        dropout=layer.dropout,
        add_self_loops=layer.add_self_loops,
        edge_dim=layer.edge_dim,
        # no number of NumPy's, which PyTorch Geometric refuses when it is called
        fill_value=fill_value if isinstance(fill_value, str | Tensor) else float(fill_value),
        bias=has_bias,
        share_weights=layer.share_weights,
        residual=layer.linear_residual is not None,
        flow=layer.flow,
    ).to(layer.attn)
    check_flow(conv)
    renamed = {name: state[our_name(name)] for name in conv.state_dict()}
    conv.load_state_dict(renamed | {"att": layer.attn.unsqueeze(0)})
    for name, parameter in conv.named_parameters():
        parameter.requires_grad_(layer.get_parameter(our_name(name)).requires_grad)
    return conv.train(layer.training)


def shapes_of(concat: bool) -> Shapes:
    """The shapes of the parameters of `GATv2Conv`."""
    width = "H * F" if concat else "F"
    return {
        "att": (1, "H", "F"),
        "lin_l.weight": ("H * F", "sources"),
        "lin_l.bias": ("H * F",),
        "lin_r.weight": ("H * F", "targets"),
        "lin_r.bias": ("H * F",),
        "lin_edge.weight": ("H * F", "edge_dim"),
        "res.weight": (width, "targets"),
        "bias": (width,),
    }


def our_name(name: str) -> str:
    """Our name for a parameter of `GATv2Conv`, whose `lin_l` is of the keys with either flow."""
    ours = {
        "lin_l": "linear_r",
        "lin_r": "linear_l",
        "lin_edge": "linear_e",
        "res": "linear_residual",
        "att": "attn",
    }
    module, _, rest = name.partition(".")
    return ".".join(filter(None, (ours.get(module, module), rest)))


def our_fill_value(conv: "GATv2Conv") -> FillValue:
    """The features of self-loops of a `GATv2Conv`, which reads None as 1 and takes a row of a matrix."""
    fill_value: FillValue | None = conv.fill_value
    if fill_value is None:
        return 1.0
    check_fill_value(fill_value)
    if isinstance(fill_value, Tensor) and fill_value.ndim == 2:
        return fill_value.squeeze(0)
    return fill_value


def is_sum(aggr: object) -> bool:
    """Whether the `aggr_module` of a `GATv2Conv` sums; its `aggr` is but the name it was made with."""
    from torch_geometric.nn.aggr import SumAggregation

    return type(aggr) is SumAggregation


def overridden(conv: "GATv2Conv") -> list[str]:
    """The methods by which a `GATv2Conv` or its class makes other messages, or joins them otherwise."""
    from torch_geometric.nn.conv.gatv2_conv import GATv2Conv

    own = overridden_among(_MESSAGES, conv, GATv2Conv)
    for name in _CALLERS:
        path = getattr(getattr(conv, name), "__qualname__", None)
        if path not in (name, f"MessagePassing.{name}"):
            own.append(name)
    return own


def check_flow(conv: "GATv2Conv") -> None:
    """Raise a ValueError for a `GATv2Conv` that does with a flow what our formula does not."""
    if conv.flow == "source_to_target":
        return
    # PyTorch Geometric 2.8 takes some of its sides by the flow, and others as if it were the default
    if not isinstance(conv.in_channels, int):
        problem = "does not work on a bipartite graph"
    elif conv.add_self_loops and conv.edge_dim is not None and isinstance(conv.fill_value, str):
        problem = "reduces edge features over their sources, not over their targets,"
    else:
        return
    raise ValueError(
        f"`GATv2Conv` {problem} with flow='target_to_source': set `flow` to 'source_to_target', and "
        "give pairs and the rows of the edge index in that order"
    )
