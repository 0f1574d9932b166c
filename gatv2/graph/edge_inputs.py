"""EdgeInputs: edge features and their projection, which come together or not at all."""

from typing import NamedTuple

import torch
from torch import Tensor

from gatv2.options import BOOL_BIAS, how_to_add_heads


class EdgeInputs(NamedTuple):
    """What edge features add to the score of a pair: `projection @ features`, for each head."""

    features: Tensor
    """`[*batch, n_edges, D]` or, laid out as a mask, `[*batch, n_queries, n_keys, D]`."""
    projection: Tensor
    """`[n_heads, n_hidden, D]`."""

    @classmethod
    def join(
        cls, edge_features: Tensor | None, edge_projection: Tensor | None
    ) -> "EdgeInputs | None":
        """What a caller gave: both or, which is None, neither; one alone is a ValueError."""
        if edge_features is None and edge_projection is None:
            return None
        if edge_features is None or edge_projection is None:
            given = "edge_features" if edge_projection is None else "edge_projection"
            raise ValueError(f"`edge_features` come with `edge_projection`; got only `{given}`")
        return cls(edge_features, edge_projection)


def check_edge_inputs(edges: EdgeInputs | None, query: Tensor) -> None:
    """Raise unless edge features and their projection fit the queries and one another.

    Raises:
        TypeError: not a tensor, or of another dtype than `query`.
        ValueError: another device, or sizes that do not fit.
    """
    if edges is None:
        return
    _check_fits(edges.features, "edge_features", query)
    _check_fits(edges.projection, "edge_projection", query)
    n_heads, n_hidden = query.shape[-2:]
    if edges.projection.ndim != 3 or edges.projection.shape[:2] != (n_heads, n_hidden):
        raise ValueError(
            f"`edge_projection` must have shape (n_heads, n_hidden, D)=({n_heads}, {n_hidden}, D); "
            f"got {tuple(edges.projection.shape)}"
        )
    n_features = edges.projection.shape[2]
    if edges.features.ndim < 2 or edges.features.shape[-1] != n_features:
        raise ValueError(
            f"the last dimension of `edge_features` must be D={n_features}, as `edge_projection` "
            f"has it; got shape {tuple(edges.features.shape)}"
        )


def given_of_edges(edge_features: Tensor | None, score_bias: Tensor | None) -> dict[str, Tensor]:
    """What a caller gave of the edges, by its name."""
    of_edges = {"edge_features": edge_features, "score_bias": score_bias}
    return {name: values for name, values in of_edges.items() if values is not None}


def check_score_bias(
    score_bias: Tensor | None, nodes: Tensor, n_heads: int, name: str = "query"
) -> None:
    """Raise unless a bias of the scores fits features of nodes, which errors call `name`.

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: another device, or its last dimension is not that of heads.
    """
    if score_bias is None:
        return
    refuse_bool_bias(score_bias)
    _check_fits(score_bias, "score_bias", nodes, name)
    if score_bias.ndim < 2 or score_bias.shape[-1] not in (1, n_heads):
        raise ValueError(
            f"the last dimension of `score_bias` must be of heads, 1 or {n_heads}; got shape "
            f"{tuple(score_bias.shape)}: {how_to_add_heads(score_bias.shape, n_heads)}"
        )


def refuse_bool_bias(score_bias: object) -> None:
    """Raise a TypeError for a mask of bools, which would be added as 0 and 1 once it was converted."""
    if isinstance(score_bias, Tensor) and score_bias.dtype == torch.bool:
        raise TypeError(BOOL_BIAS)


def check_tensor(tensor: object, name: str, nodes: Tensor, of: str) -> None:
    """Raise unless what edges have is a dense tensor on the device of `nodes`.

    Errors call the two `name` and `of`.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"`{name}` must be a torch.Tensor; got {type(tensor).__name__}: convert it with "
            f"`torch.as_tensor({name})`"
        )
    if tensor.layout != torch.strided:
        raise TypeError(
            f"`{name}` must be a dense tensor; got one of layout {tensor.layout}: pass the values of "
            "its entries, in the order of the edges"
        )
    if tensor.device != nodes.device:
        raise ValueError(
            f"`{name}` is on {tensor.device} and `{of}` is on {nodes.device}: "
            "move one of them with `.to(device)`"
        )


def _check_fits(tensor: Tensor, name: str, nodes: Tensor, of: str = "query") -> None:
    check_tensor(tensor, name, nodes, of)
    if tensor.dtype != nodes.dtype:
        raise TypeError(
            f"`{name}` must have the dtype of `{of}`, {nodes.dtype}; got {tensor.dtype}: "
            f"convert it with `.to({of}.dtype)`"
        )
