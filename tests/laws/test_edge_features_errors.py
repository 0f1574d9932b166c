"""Edge features that do not fit are an error that says what to do."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gatv2 import Graph, GraphAttentionLayer, GraphAttentionV2Layer, gatv2_attention
from gatv2.functional import gatv2_scores

H, QUERY, ATTN = torch.zeros(5, 3), torch.zeros(5, 2, 4), torch.zeros(2, 4)
EDGE_INDEX = torch.tensor([[0, 1, 2], [1, 2, 4]])
MASK = torch.eye(5, dtype=torch.bool).unsqueeze(-1)
X, PROJECTION = torch.zeros(3, 6), torch.zeros(2, 4, 6)
BATCH = Graph.from_mask(MASK.expand(3, -1, -1, -1))


def layer(**options: Any) -> GraphAttentionV2Layer:
    return GraphAttentionV2Layer(3, 8, 2, **options)


def attend(adj_mat: Any, x: Any, projection: Any = PROJECTION, **options: Any) -> object:
    return gatv2_attention(
        QUERY, QUERY, ATTN, adj_mat, edge_features=x, edge_projection=projection, **options
    )


CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "edge_dim of zero": (
        lambda: layer(edge_dim=0),
        ValueError,
        "`edge_dim` must be positive; got 0",
    ),
    "edge_dim of a float": (
        lambda: layer(edge_dim=1.0),
        TypeError,
        "`edge_dim` must be an int; got float",
    ),
    "none for a layer with edge_dim": (
        lambda: layer(edge_dim=6)(H, EDGE_INDEX),
        TypeError,
        "`edge_features` must be a torch.Tensor, as edge_dim=6; got NoneType",
    ),
    "some for a layer without edge_dim": (
        lambda: layer()(H, EDGE_INDEX, edge_features=X),
        ValueError,
        "`edge_features` came to a layer without `edge_dim`: construct it with edge_dim=D, the last "
        "dimension of `edge_features`, (3, 6)",
    ),
    "of another width than the layer's": (
        lambda: layer(edge_dim=4).attention_scores(H, EDGE_INDEX, edge_features=X),
        ValueError,
        "`edge_features` must have edge_dim=4 as its last dimension; got (3, 6)",
    ),
    "of one number, without a dimension for it": (
        lambda: layer(edge_dim=1)(H, EDGE_INDEX, edge_features=X[:, 0]),
        ValueError,
        "must have edge_dim=1 as its last dimension; got (3,): add it with `.unsqueeze(-1)`",
    ),
    "integers for a layer": (
        lambda: layer(edge_dim=6)(H, EDGE_INDEX, edge_features=X.long()),
        TypeError,
        "`edge_features` must have the layer's dtype torch.float32; got torch.int64: convert it",
    ),
    "for the static control": (
        lambda: GraphAttentionLayer(3, 8, 2)(H, EDGE_INDEX, edge_features=X),
        ValueError,
        "the static control has no `edge_features`: pass them to a GraphAttentionV2Layer",
    ),
    "for the scores of the static control": (
        lambda: GraphAttentionLayer(3, 8, 2).attention_scores(H, EDGE_INDEX, edge_features=X),
        ValueError,
        "the static control has no `edge_features`",
    ),
    "without a projection": (
        lambda: attend(EDGE_INDEX, X, None),
        ValueError,
        "`edge_features` come with `edge_projection`; got only `edge_features`",
    ),
    "a projection alone": (
        lambda: gatv2_scores(QUERY, QUERY, ATTN, EDGE_INDEX, edge_projection=PROJECTION),
        ValueError,
        "`edge_features` come with `edge_projection`; got only `edge_projection`",
    ),
    "not a tensor": (
        lambda: attend(EDGE_INDEX, X.tolist()),
        TypeError,
        "`edge_features` must be a torch.Tensor; got list",
    ),
    "of another dtype": (
        lambda: attend(EDGE_INDEX, X.double()),
        TypeError,
        "`edge_features` must have the dtype of `query`, torch.float32; got torch.float64: "
        "convert it with `.to(query.dtype)`",
    ),
    "on another device": (
        lambda: attend(EDGE_INDEX, X, PROJECTION.to("meta")),
        ValueError,
        "`edge_projection` is on meta and `query` is on cpu: move one of them",
    ),
    "a projection to other heads": (
        lambda: attend(EDGE_INDEX, X, PROJECTION.transpose(0, 1)),
        ValueError,
        "`edge_projection` must have shape (n_heads, n_hidden, D)=(2, 4, D); got (4, 2, 6)",
    ),
    "of another width": (
        lambda: attend(EDGE_INDEX, X[:, 1:]),
        ValueError,
        "the last dimension of `edge_features` must be D=6, as `edge_projection` has it; "
        "got shape (3, 5)",
    ),
    "too few edges": (
        lambda: attend(EDGE_INDEX, X[1:]),
        ValueError,
        "`edge_features` must have shape (*batch, n_edges=3, D=6), in the order of the edges, as the "
        "graph is a list of edges (with a mask, the shape is (*batch, n_queries, n_keys, D)); "
        "got (2, 6)",
    ),
    "too few edges, for the dense backend": (
        lambda: attend(EDGE_INDEX, X[1:], backend="dense"),
        ValueError,
        "`edge_features` must have shape (*batch, n_edges=3, D=6), in the order of the edges",
    ),
    "a list for a mask": (
        lambda: attend(MASK, torch.zeros(5, 6)),
        ValueError,
        "`edge_features` must have shape (*batch, 5, 5, D=6), entry for entry as the mask (with a "
        "list of edges, the shape is (*batch, n_edges, D)); got (5, 6)",
    ),
    "a list for a mask, for the sparse backend": (
        lambda: attend(MASK, torch.zeros(5, 6), backend="sparse"),
        ValueError,
        "`edge_features` must have shape (*batch, 5, 5, D=6), entry for entry as the mask",
    ),
    "a batch that does not broadcast": (
        lambda: gatv2_attention(
            *(QUERY.expand(2, 5, 2, 4),) * 2,
            ATTN,
            EDGE_INDEX,
            edge_features=X.expand(3, 3, 6),
            edge_projection=PROJECTION,
        ),
        ValueError,
        "the batch dimensions of `edge_features`, (3,), do not broadcast with those of the nodes' "
        "features and the graph, (2,)",
    ),
    "a batch for a batch of graphs": (
        lambda: attend(BATCH, torch.zeros(3, 5, 6)),
        ValueError,
        "the graph is a batch of 3 graphs: `edge_features` must have shape (n_edges, D)=(15, 6), the "
        "edges of all of them; got (3, 5, 6)",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), CASES.values(), ids=CASES.keys())
def test_text(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()
