"""Bad input is an error where the user stands, and its text says what to do."""

import re
from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Data

from gatv2 import (
    GATv2,
    Graph,
    GraphAttentionLayer,
    GraphAttentionV2Layer,
    gatv2_attention,
    select_kernel,
)
from gatv2.functional import gat_attention
from gatv2.inference import apply_in_blocks
from gatv2.ranking import measure_ranking

H = torch.zeros(5, 3)
QUERY = torch.zeros(5, 2, 4)
ATTN = torch.zeros(2, 4)
EDGE_INDEX = torch.tensor([[0, 1, 2], [1, 2, 4]])
PARALLEL = torch.tensor([[0, 0, 1], [1, 1, 4]])


def layer(**options: Any) -> GraphAttentionV2Layer:
    return GraphAttentionV2Layer(3, 8, 2, **options)


def wrong(value: Any) -> Any:
    """What a type checker would not let pass."""
    return value


def edges(*columns: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(columns).T


def under_autocast(layer: GraphAttentionV2Layer, h: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: torch.Tensor = layer(h, EDGE_INDEX, **options)
    return out


def watched(layer: GraphAttentionV2Layer) -> GraphAttentionV2Layer:
    """A layer whose projection of edge features has a hook, and so is called."""
    assert layer.linear_e is not None
    layer.linear_e.register_forward_hook(lambda *_: None)
    return layer


def of_module(name: str) -> object:
    """An object of a class that says to be of a module, which is all that is looked at."""
    return type("Graph", (), {"__module__": name})()


Case = tuple[Callable[[], object], type[Exception], str]

CONSTRUCTORS: dict[str, Case] = {
    "not divisible": (
        lambda: GraphAttentionV2Layer(3, 7, 2),
        ValueError,
        "with is_concat=True, `out_features`=7 must be divisible by `n_heads`=2",
    ),
    "no heads": (
        lambda: GraphAttentionV2Layer(3, 8, 0),
        ValueError,
        "`n_heads` must be positive; got 0",
    ),
    "negative features": (
        lambda: GraphAttentionV2Layer(-3, 8, 2),
        ValueError,
        "`in_features` must be positive, or -1 for lazy initialisation; got -3",
    ),
    "fractional features": (
        lambda: GraphAttentionV2Layer(3, wrong(8.0), 2),
        TypeError,
        "`out_features` must be an int; got float",
    ),
    "boolean heads": (
        lambda: GraphAttentionV2Layer(3, 8, True),
        TypeError,
        "`n_heads` must be an int; got bool",
    ),
    "dropout of one": (
        lambda: layer(dropout=1.0),
        ValueError,
        "`dropout` must lie in [0, 1); got 1.0",
    ),
    "negative dropout": (
        lambda: layer(dropout=-0.1),
        ValueError,
        "`dropout` must lie in [0, 1); got -0.1",
    ),
    "dropout NaN": (
        lambda: layer(dropout=float("nan")),
        ValueError,
        "`dropout` must lie in [0, 1); got nan",
    ),
    "slope NaN": (
        lambda: layer(leaky_relu_negative_slope=float("nan")),
        ValueError,
        "`leaky_relu_negative_slope` must be a finite number; got nan",
    ),
    "no dropout": (
        lambda: layer(dropout=None),
        TypeError,
        "`dropout` must be a number in [0, 1), 0 for none; got None",
    ),
    "dropout as text": (
        lambda: layer(dropout="0.5"),
        TypeError,
        "`dropout` must be a number in [0, 1), 0 for none; got '0.5'",
    ),
    "no slope": (
        lambda: layer(leaky_relu_negative_slope=None),
        TypeError,
        "`leaky_relu_negative_slope` must be a finite number; got None",
    ),
    "learned dropout": (
        lambda: layer(dropout=torch.nn.Parameter(torch.tensor(0.5))),
        TypeError,
        "`dropout` must be a number in [0, 1), 0 for none; got a Parameter: take its value with "
        "`.item()`",
    ),
    "slope in a tensor": (
        lambda: layer(leaky_relu_negative_slope=torch.tensor(0.5)),
        TypeError,
        "`leaky_relu_negative_slope` must be a finite number; got a Tensor: take its value with "
        "`.item()`",
    ),
    "slope too large for a float": (
        lambda: layer(leaky_relu_negative_slope=10**400),
        ValueError,
        "`leaky_relu_negative_slope` must be a finite number; got one that is too large for a float",
    ),
    "complex slope of NumPy": (
        lambda: layer(leaky_relu_negative_slope=wrong(np.complex64(0.5))),
        TypeError,
        "`leaky_relu_negative_slope` must be a finite number; got (0.5+0j)",
    ),
    "dropout of an array": (
        lambda: layer(dropout=wrong(np.array([0.5]))),
        TypeError,
        "`dropout` must be a number in [0, 1), 0 for none; got array([0.5])",
    ),
    "dropout of an object": (
        lambda: layer(dropout=wrong({0.5})),
        TypeError,
        "`dropout` must be a number in [0, 1), 0 for none; got {0.5}",
    ),
    "layers and a half": (
        lambda: GATv2(3, 8, 2, n_layers=wrong(2.5)),
        TypeError,
        "`n_layers` must be an int; got float",
    ),
    "feature dropout of two": (
        lambda: GATv2(3, 8, 2, feature_dropout=2),
        ValueError,
        "`feature_dropout` must lie in [0, 1); got 2",
    ),
    "no feature dropout": (
        lambda: GATv2(3, 8, 2, feature_dropout=wrong(None)),
        TypeError,
        "`feature_dropout` must be a number in [0, 1), 0 for none; got None",
    ),
    "integer parameters": (
        lambda: layer(dtype=torch.int32),
        TypeError,
        "`dtype` must be a floating-point dtype of PyTorch, as torch.float32; got torch.int32",
    ),
    "slope infinite": (
        lambda: layer(leaky_relu_negative_slope=float("inf")),
        ValueError,
        "`leaky_relu_negative_slope` must be a finite number; got inf",
    ),
    "unknown backend": (
        lambda: layer(backend="csr"),
        ValueError,
        "`backend` must be one of ('auto', 'dense', 'sparse'); got 'csr'",
    ),
    "unknown kernel": (
        lambda: layer(kernel="cuda"),
        ValueError,
        "`kernel` must be one of ('auto', ",
    ),
    "unknown flow": (
        lambda: layer(flow="backwards"),
        ValueError,
        "`flow` must be one of ('target_to_source', 'source_to_target'); got 'backwards'",
    ),
    "control has one kernel": (
        lambda: GraphAttentionLayer(3, 8, 2, kernel="numba"),
        ValueError,
        "the static control has only kernel='torch' (or 'auto'); got 'numba'",
    ),
}

CALLS: dict[str, Case] = {
    "features of another width": (
        lambda: layer()(torch.zeros(5, 4), EDGE_INDEX),
        ValueError,
        "`h` must have shape (*batch, n_nodes, in_features=3); got (5, 4)",
    ),
    "one-dimensional features": (
        lambda: layer()(torch.zeros(3), EDGE_INDEX),
        ValueError,
        "`h` must have shape (*batch, n_nodes, in_features=3); got (3,)",
    ),
    "features of another dtype": (
        lambda: layer()(H.double(), EDGE_INDEX),
        TypeError,
        "`h` must have the layer's dtype torch.float32; got torch.float64: "
        "convert one of them with `.to(dtype)`",
    ),
    "features that autocast does not convert": (
        lambda: under_autocast(layer(), H.double()),
        TypeError,
        "`h` must have the layer's dtype torch.float32; got torch.float64, which autocast does not "
        "convert: convert one of them with `.to(dtype)`",
    ),
    "integers under autocast": (
        lambda: under_autocast(layer(), H.long()),
        TypeError,
        "`h` must have the layer's dtype torch.float32; got torch.int64, which autocast does not "
        "convert: convert one of them with `.to(dtype)`",
    ),
    "a layer that autocast does not convert": (
        lambda: under_autocast(layer(dtype=torch.float64), H),
        TypeError,
        "`h` must have the layer's dtype torch.float64; got torch.float32: convert one of them",
    ),
    "edge features that autocast does not convert for a wrapped projection": (
        lambda: under_autocast(
            watched(layer(edge_dim=2)), H, edge_features=torch.zeros(3, 2, dtype=torch.float64)
        ),
        TypeError,
        "`edge_features` must have the layer's dtype torch.float32; got torch.float64, which autocast "
        "does not convert: convert it with `.to(dtype)`",
    ),
    "features elsewhere": (
        lambda: layer()(H.to("meta"), EDGE_INDEX),
        ValueError,
        "`h` is on meta and the layer is on cpu",
    ),
    "features of NumPy": (
        lambda: layer()(H.numpy(), EDGE_INDEX),  # type: ignore[call-overload]
        TypeError,
        "`h` must be a torch.Tensor, dense or sparse, or a scipy.sparse matrix; got ndarray: convert it "
        "with `torch.as_tensor(h)`",
    ),
    "mask of another size": (
        lambda: layer()(H, torch.ones(5, 4, 1)),
        ValueError,
        "`adj_mat` must have shape (5, 5, 1) or (5, 5, 2) with n=5 and 2 heads",
    ),
    "mask for other heads": (
        lambda: layer()(H, torch.ones(5, 5, 3)),
        ValueError,
        "got torch.float32 with shape (5, 5, 3)",
    ),
    "bool mask of another size": (
        lambda: layer()(H, torch.ones(2, 5, dtype=torch.bool)),
        ValueError,
        "or an integer edge index of shape (2, n_edges); got torch.bool with shape (2, 5)",
    ),
    "batches that do not broadcast": (
        lambda: layer()(torch.zeros(4, 5, 3), torch.ones(2, 5, 5, 1)),
        ValueError,
        "the batch dimensions of `adj_mat`, (2,), do not broadcast with those of the features, (4,)",
    ),
    "additive mask": (
        lambda: layer()(H, torch.full((5, 5, 1), -torch.inf)),
        ValueError,
        "for an additive mask of 0 and -inf pass `adj_mat == 0`",
    ),
    "two-dimensional integer mask": (
        lambda: layer()(H, torch.ones(5, 5, dtype=torch.int64)),
        ValueError,
        "must be an integer edge index of shape (2, n_edges) or a bool mask of shape (5, 5); "
        "got torch.int64 with shape (5, 5): pass `adj_mat != 0` for a mask",
    ),
    "two-dimensional float mask": (
        lambda: layer()(H, torch.ones(5, 5)),
        ValueError,
        "got torch.float32 with shape (5, 5): pass `adj_mat != 0` for a mask",
    ),
    "edge index or mask of floats": (
        lambda: layer()(torch.zeros(2, 3), torch.ones(2, 2)),
        ValueError,
        "got torch.float32 with shape (2, 2): pass `adj_mat.long()` for an edge index, "
        "`adj_mat != 0` for a mask",
    ),
    "edge index of floats": (
        lambda: layer()(H, EDGE_INDEX.float()),
        ValueError,
        "got torch.float32 with shape (2, 3): pass `adj_mat.long()` for an edge index",
    ),
    "edge index transposed": (
        lambda: layer()(H, EDGE_INDEX.T.repeat(2, 1)),
        ValueError,
        "got torch.int64 with shape (6, 2): pass `adj_mat.T` for an edge index",
    ),
    "edge index transposed, of floats": (
        lambda: layer()(H, EDGE_INDEX.T.float()),
        ValueError,
        "got torch.float32 with shape (3, 2): pass `adj_mat.T.long()` for an edge index",
    ),
    "neither edges nor a mask": (
        lambda: layer()(H, torch.zeros(3, 4)),
        ValueError,
        "got torch.float32 with shape (3, 4): pass one of these",
    ),
    "masks without heads": (
        lambda: layer()(torch.zeros(4, 5, 3), torch.ones(4, 5, 5)),
        ValueError,
        "got torch.float32 with shape (4, 5, 5): the last dimension is of heads, add it with "
        "`.unsqueeze(-1)`",
    ),
    "masks with heads in front of the pairs": (
        lambda: layer()(torch.zeros(4, 5, 3), torch.ones(4, 2, 5, 5)),
        ValueError,
        "add it with `.unsqueeze(-1)` for all heads, or move the one there is, `.movedim(-3, -1)`",
    ),
    "two-dimensional additive mask": (
        lambda: layer()(H, torch.zeros(5, 5).fill_diagonal_(-torch.inf)),
        ValueError,
        "for an additive mask of 0 and -inf pass `adj_mat == 0`",
    ),
    "two-dimensional additive mask of NumPy": (
        lambda: layer()(H, np.eye(5) * -1e9),
        ValueError,
        "pass `adj_mat == 0` for an additive mask",
    ),
    "mask of keys": (
        lambda: layer()(torch.zeros(4, 5, 3), torch.ones(4, 1, 5, 1)),
        ValueError,
        "got torch.float32 with shape (4, 1, 5, 1): "
        "repeat it for all pairs with `.expand(-1, 5, 5, -1)`",
    ),
    "a list of pairs": (
        lambda: layer()(H, EDGE_INDEX.T.tolist()),
        TypeError,
        "got list: convert it with `torch.as_tensor(adj_mat).T`",
    ),
    "two pairs": (
        lambda: layer()(H, [(0, 1), (1, 2)]),
        TypeError,
        "got list: convert it with `torch.as_tensor(adj_mat).T`",
    ),
    "rows of an edge index": (
        lambda: layer()(H, tuple(EDGE_INDEX)),
        TypeError,
        "got tuple: convert it with `torch.stack(adj_mat)`",
    ),
    "nothing": (
        lambda: layer()(H, []),
        TypeError,
        "got list: convert it with `torch.as_tensor(adj_mat)`",
    ),
    "a list of edges": (
        lambda: layer()(H, EDGE_INDEX.tolist()),
        TypeError,
        "got list: convert it with `torch.as_tensor(adj_mat)`",
    ),
    "a mask of NumPy": (
        lambda: layer()(H, np.eye(5, dtype=bool)),
        TypeError,
        "got bool with shape (5, 5): convert a mask with `torch.from_numpy(adj_mat)`",
    ),
    "a matrix of NumPy": (
        lambda: layer()(H, np.eye(5)),
        TypeError,
        "got float64 with shape (5, 5): convert a mask with `torch.from_numpy(adj_mat != 0)`",
    ),
    "edge index of NumPy, of floats": (
        lambda: layer()(H, EDGE_INDEX.T.numpy().astype(float)),
        TypeError,
        "got float64: convert it with `edge_index.T.astype(numpy.int64)`",
    ),
    "a graph of PyTorch Geometric": (
        lambda: layer()(H, Data(edge_index=EDGE_INDEX)),
        TypeError,
        "got Data: pass `adj_mat.edge_index` with flow='source_to_target'",
    ),
    "a graph of NetworkX": (
        lambda: layer()(H, networkx.path_graph(5)),
        TypeError,
        "pass `networkx.to_scipy_sparse_array(adj_mat, weight=None)` with flow='source_to_target'",
    ),
    "a graph of DGL": (
        lambda: layer()(H, of_module("dgl.heterograph")),
        TypeError,
        "pass `torch.stack(adj_mat.edges())` with flow='source_to_target'",
    ),
    "features and graph swapped": (
        lambda: layer()(EDGE_INDEX, H),
        TypeError,
        "features come first, and then the graph: call `layer(h, adj_mat)`",
    ),
    "graph and features swapped": (
        lambda: layer()(wrong(Graph.from_edge_index(EDGE_INDEX, 5)), H),
        TypeError,
        "features come first, and then the graph: call `layer(h, adj_mat)`",
    ),
    "graph and features swapped in a model": (
        lambda: GATv2(3, 8, 2, n_heads=2)(wrong(Graph.from_edge_index(EDGE_INDEX, 5)), H),
        TypeError,
        "features come first, and then the graph: call `layer(h, adj_mat)`",
    ),
    "keyword of PyTorch Geometric in a model": (
        lambda: GATv2(3, 8, 2, n_heads=2)(H, EDGE_INDEX, edge_attr=H),  # type: ignore[call-overload]
        TypeError,
        "GATv2 has no argument 'edge_attr': here it is edge_features",
    ),
    "edge features by position, as PyTorch Geometric has them": (
        lambda: GraphAttentionV2Layer(3, 8, 2, edge_dim=3)(H, EDGE_INDEX, H),  # type: ignore[call-overload]
        TypeError,
        "takes ('h', 'adj_mat') by position, and by name ('edge_features', 'score_bias', "
        "'return_attention', 'seed'); got 3 by position",
    ),
    "too many by position where others are handed on": (
        lambda: GATv2(3, 8, 2, 2, 2, 0.5),  # type: ignore[arg-type, call-arg]
        TypeError,
        "'n_layers', 'n_heads') by position, and by name ('out_heads',",
    ),
    "weights as graph convolutions name them": (
        lambda: GraphAttentionV2Layer(3, 8, 2)(H, EDGE_INDEX, edge_weight=H),  # type: ignore[call-overload]
        TypeError,
        "has no argument 'edge_weight': here it is score_bias, of edge_weight.log().unsqueeze(-1)",
    ),
    "size of PyTorch Geometric in a model": (
        lambda: GATv2(3, hidden_channels=8, out_features=2),  # type: ignore[call-arg]
        TypeError,
        "GATv2 has no argument 'hidden_channels': here it is hidden_features",
    ),
    "number of heads as PyTorch Geometric names it": (
        lambda: GraphAttentionV2Layer(3, 8, heads=2),  # type: ignore[call-arg]
        TypeError,
        "GraphAttentionV2Layer has no argument 'heads': here it is n_heads",
    ),
    "number of heads as PyTorch Geometric names it, in the static control": (
        lambda: GraphAttentionLayer(3, 8, heads=2),  # type: ignore[call-arg]
        TypeError,
        "GraphAttentionLayer has no argument 'heads': here it is n_heads",
    ),
    "a dense layer of edges, exported": (
        lambda: torch.export.export(layer(backend="dense").eval(), (H, EDGE_INDEX)),
        NotImplementedError,
        "export with backend='sparse', or pass a mask",
    ),
    "ranking of a layer of others": (
        lambda: measure_ranking(wrong(torch.nn.Linear(3, 4)), H, EDGE_INDEX),
        TypeError,
        "got Linear: convert it with `gatv2.convert`, or pass its scores or",
    ),
    "ranking of a pair": (
        lambda: measure_ranking(layer(), wrong((H, H)), EDGE_INDEX),
        TypeError,
        "for a bipartite graph pass `layer.attention_scores(h, adj_mat)`",
    ),
    "ranking of a matrix of SciPy": (
        lambda: measure_ranking(layer(), wrong(scipy.sparse.csr_matrix((5, 3))), EDGE_INDEX),
        TypeError,
        "got csr_matrix: for a matrix of SciPy, or for a bipartite graph pass `layer.attention_sc",
    ),
    "ranking of a batch": (
        lambda: measure_ranking(layer(), H.expand(2, 5, 3), torch.ones(5, 5, 1)),
        ValueError,
        "got (2, 5, 3) and a batch of shape (2,): measure one element",
    ),
    "ranking of masks": (
        lambda: measure_ranking(layer(backend="sparse"), H, torch.ones(2, 5, 5, 1)),
        ValueError,
        "got (5, 3) and a batch of shape (2,): measure one element",
    ),
    "batches of a pair": (
        lambda: layer()((torch.zeros(2, 5, 3), torch.zeros(3, 5, 3)), EDGE_INDEX),
        ValueError,
        "`h[0]` and `h[1]` must have the same batch dimensions; got (2, 5, 3) and (3, 5, 3)",
    ),
    "mask of heads in a model": (
        lambda: GATv2(3, 8, 2, n_heads=2)(H, torch.ones(5, 5, 2)),
        ValueError,
        "a mask for 2 heads came to layers with [2, 1] heads: pass one whose last dimension is 1",
    ),
    "edge features of NumPy": (
        lambda: layer(edge_dim=2)(H, EDGE_INDEX, edge_features=wrong(np.zeros((3, 2)))),
        TypeError,
        "got ndarray: convert it with `torch.as_tensor(edge_features, dtype=layer.attn.dtype)`",
    ),
    "seed of half": (
        lambda: layer()(H, EDGE_INDEX, seed=wrong(0.5)),
        TypeError,
        "`seed` must be an int or a 0-d int64 tensor; got float",
    ),
    "blocks of half": (
        lambda: apply_in_blocks(layer().eval(), H, EDGE_INDEX, block_size=wrong(2.5)),
        TypeError,
        "`block_size` must be an int; got float",
    ),
    "key past the end": (
        lambda: layer()(H, edges((0, 1), (2, 5), (9, 0))),
        IndexError,
        "edge 2 has query 9, but there are 5 query nodes: indices must lie in [0, 5)",
    ),
    "negative key": (
        lambda: layer()(H, edges((0, 1), (2, -1))),
        IndexError,
        "edge 1 has key -1, but there are 5 key nodes: indices must lie in [0, 5)",
    ),
    "edge index elsewhere": (
        lambda: layer()(H, EDGE_INDEX.to("meta")),
        ValueError,
        "the graph is on meta and the features are on cpu: move one of them with `.to(device)`",
    ),
    "graph of another size": (
        lambda: layer()(H, Graph.from_edge_index(EDGE_INDEX, 6)),
        ValueError,
        "the graph has 6 queries and 6 keys, but the features have 5 queries and 5 keys",
    ),
    "graph of a batch": (
        lambda: layer()(torch.zeros(4, 5, 3), Graph.from_mask(torch.ones(3, 5, 5, 1) > 0)),
        ValueError,
        "the graph is a batch of 3 graphs, but the features have batch dimensions (4,)",
    ),
    "graph for other heads": (
        lambda: layer()(H, Graph.from_mask(torch.ones(5, 5, 4) > 0)),
        ValueError,
        "`head_mask` must have 2 heads, as the features do; got 4: make the mask for 2 heads",
    ),
    "parallel edges in a dense mask": (
        lambda: layer(backend="dense")(H, PARALLEL),
        ValueError,
        "the graph has parallel edges, which a dense mask cannot hold: use backend='sparse', "
        "or merge them with `graph.coalesce()`",
    ),
    "sparse matrix of another size": (
        lambda: layer()(H, scipy.sparse.csr_array((4, 5))),
        ValueError,
        "a sparse `adj_mat` must have shape (5, 5); got (4, 5)",
    ),
    "torch.sparse of another size": (
        lambda: layer()(H, torch.eye(4).to_sparse_coo()),
        ValueError,
        "a sparse `adj_mat` must have shape (5, 5); got (4, 4)",
    ),
    "mask of NumPy": (
        lambda: layer()(H, np.ones((5, 5, 1), dtype=bool)),
        TypeError,
        "got bool with shape (5, 5, 1): convert a mask with `torch.from_numpy(adj_mat)`",
    ),
    "no graph": (lambda: layer()(H, None), TypeError, "the graph is None: pass a mask"),
    "seed of floats": (
        lambda: layer()(H, EDGE_INDEX, seed=torch.tensor(0.5)),
        ValueError,
        "`seed` must be an int or a 0-d int64 tensor; got torch.float32 with shape ()",
    ),
    "fractional seed": (
        lambda: layer()(H, EDGE_INDEX, seed=wrong(1.5)),
        TypeError,
        "`seed` must be an int or a 0-d int64 tensor; got float",
    ),
    "seed too large": (
        lambda: layer()(H, EDGE_INDEX, seed=2**64),
        ValueError,
        "`seed` must lie in [-2**63, 2**63); got 18446744073709551616",
    ),
}

FUNCTIONS: dict[str, Case] = {
    "query without heads": (
        lambda: gatv2_attention(QUERY[:, 0], QUERY, ATTN, EDGE_INDEX),
        ValueError,
        "`query` must have shape (*batch, n_queries, n_heads, n_hidden); got (5, 4)",
    ),
    "key of another width": (
        lambda: gatv2_attention(QUERY, QUERY[..., 1:], ATTN, EDGE_INDEX),
        ValueError,
        "`key` must have the shape of `query` but for the number of nodes; "
        "got (5, 2, 3) and (5, 2, 4)",
    ),
    "attn of another shape": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN.T, EDGE_INDEX),
        ValueError,
        "`attn` must have shape (n_heads, n_hidden)=(2, 4); got (4, 2)",
    ),
    "integer query": (
        lambda: gatv2_attention(QUERY.long(), QUERY, ATTN, EDGE_INDEX),
        TypeError,
        "query, key, attn must have one floating-point dtype; "
        "got query: torch.int64, key: torch.float32, attn: torch.float32",
    ),
    "key elsewhere": (
        lambda: gatv2_attention(QUERY, QUERY.to("meta"), ATTN, EDGE_INDEX),
        ValueError,
        "query, key, attn must be on one device; got query: cpu, key: meta, attn: cpu",
    ),
    "unknown kernel": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN, EDGE_INDEX, kernel="fast"),
        ValueError,
        "for the sparse backend, one of (",
    ),
    "unknown backend": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN, EDGE_INDEX, backend=wrong("fast")),
        ValueError,
        "`backend` must be one of ('auto', 'dense', 'sparse'); got 'fast'",
    ),
    "unknown kernel, selected": (
        lambda: select_kernel(QUERY, QUERY, ATTN, Graph.from_edge_index(EDGE_INDEX, 5), kernel="x"),
        ValueError,
        "`kernel` must be 'auto' or, for the sparse backend, one of (",
    ),
    "dropout": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN, EDGE_INDEX, dropout=1.5),
        ValueError,
        "`dropout` must lie in [0, 1); got 1.5",
    ),
    "dropout in a tensor": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN, EDGE_INDEX, dropout=wrong(torch.tensor(0.5))),
        TypeError,
        "`dropout` must be a number in [0, 1), 0 for none; got a Tensor: take its value with `.item()`",
    ),
    "slope": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN, EDGE_INDEX, negative_slope=float("nan")),
        ValueError,
        "`negative_slope` must be a finite number; got nan",
    ),
    "slope too large for float32": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN, EDGE_INDEX, negative_slope=1e300),
        ValueError,
        "`negative_slope` must be a finite number in the dtype that is computed in, which holds none "
        "above 3.4e+38; got 1e+300",
    ),
    "slope too large for the static control": (
        lambda: gat_attention(QUERY, QUERY, ATTN, ATTN, EDGE_INDEX, negative_slope=-1e300),
        ValueError,
        "`negative_slope` must be a finite number in the dtype that is computed in, which holds none "
        "above 3.4e+38; got -1e+300",
    ),
    "sparse edge index": (
        lambda: Graph.from_edge_index(EDGE_INDEX.to_sparse(), 5),
        TypeError,
        "an edge index must be a dense tensor; got one of layout torch.sparse_coo: convert it with "
        "`edge_index.to_dense()`, or pass a sparse matrix, as the graph, to a layer itself",
    ),
    "sparse mask of a graph": (
        lambda: Graph.from_mask(torch.ones(5, 5, 1, dtype=torch.bool).to_sparse()),
        TypeError,
        "`mask` must be a dense tensor; got one of layout torch.sparse_coo: convert it with "
        "`mask.to_dense()`",
    ),
    "graph in a layout of its own": (
        lambda: layer()(H, torch.eye(5).to_mkldnn()),
        TypeError,
        "got one of layout torch._mkldnn: convert it with `adj_mat.to_dense()`",
    ),
    "features in a layout of their own": (
        lambda: layer()(H.to_mkldnn(), EDGE_INDEX),
        TypeError,
        "got one of layout torch._mkldnn: convert it with `h.to_dense()`",
    ),
    "blocks of no layer of ours": (
        lambda: apply_in_blocks(wrong(torch.nn.Linear(3, 3).eval()), H, EDGE_INDEX),
        TypeError,
        "`layer` must be a GraphAttentionV2Layer or a GraphAttentionLayer; got Linear: ",
    ),
    "graph of floats": (
        lambda: Graph.from_edge_index(EDGE_INDEX.float(), 5),
        TypeError,
        "an edge index must hold integers; got torch.float32: convert it with `edge_index.long()`",
    ),
    "graph of three rows": (
        lambda: Graph.from_edge_index(torch.zeros(3, 4, dtype=torch.int64), 5),
        ValueError,
        "an edge index must have shape (2, n_edges); got (3, 4)",
    ),
    "graph of columns": (
        lambda: Graph.from_edge_index(EDGE_INDEX.T, 5),
        ValueError,
        "an edge index must have shape (2, n_edges); got (3, 2): pass `edge_index.T`",
    ),
    "graph of columns of floats": (
        lambda: Graph.from_edge_index(EDGE_INDEX.T.double(), 5),
        TypeError,
        "got torch.float64: convert it with `edge_index.T.long()`",
    ),
    "no dropout": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN, EDGE_INDEX, dropout=wrong(None)),
        TypeError,
        "`dropout` must be a number in [0, 1), 0 for none; got None",
    ),
    "no slope": (
        lambda: gatv2_attention(QUERY, QUERY, ATTN, EDGE_INDEX, negative_slope=wrong(None)),
        TypeError,
        "`negative_slope` must be a finite number; got None",
    ),
    "graph without nodes": (
        lambda: Graph.from_edge_index(EDGE_INDEX, -1),
        ValueError,
        "numbers of nodes must not be negative; got (-1, -1)",
    ),
    "graph of a mask of NumPy": (
        lambda: Graph.from_mask(wrong(np.ones((5, 5, 1), np.bool_))),
        TypeError,
        "`mask` must be a torch.Tensor; got ndarray: convert it with `torch.as_tensor(mask)`",
    ),
    "graph of a two-dimensional mask": (
        lambda: Graph.from_mask(torch.ones(5, 5, dtype=torch.bool)),
        ValueError,
        "`mask` must be bool with shape (*batch, n_queries, n_keys, 1 or n_heads); "
        "got torch.bool with shape (5, 5)",
    ),
    "graph with an unknown flow": (
        lambda: Graph.from_edge_index(EDGE_INDEX, 5, flow=wrong("up")),
        ValueError,
        "`flow` must be one of ('target_to_source', 'source_to_target'); got 'up'",
    ),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {"layer": CONSTRUCTORS, "call": CALLS, "function": FUNCTIONS}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize(("call", "error", "text"), CASES.values(), ids=CASES.keys())
def test_text(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_two_dimensional_bool_mask_is_not_ambiguous() -> None:
    mask, h = torch.eye(2, dtype=torch.bool), torch.randn(2, 3)
    masked = layer(dropout=0.0)
    assert torch.equal(masked(h, mask), masked(h, mask.unsqueeze(-1)))
