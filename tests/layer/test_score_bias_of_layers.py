"""A bias of the scores goes through layers, self-loops, models and inference; misfits are told."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer, gatv2_attention
from gatv2.base import GraphAttention
from gatv2.functional import gat_attention, gatv2_scores
from gatv2.graph import add_self_loops
from gatv2.inference import apply_in_blocks
from gatv2.options import REDUCTIONS
from gatv2.testing import assert_agrees

EDGE_INDEX = torch.tensor([[0, 3, 0, 1, 1, 3, 3, 0], [3, 0, 0, 2, 2, 1, 2, 1]])  # 2 has no keys
MASK = torch.zeros(5, 5, 1, dtype=torch.bool).index_put((*EDGE_INDEX,), torch.tensor(True))


def layer_of(cls: type[Any] = GraphAttentionV2Layer, **options: Any) -> Any:
    return cls(3, 4, 2, dtype=torch.float64, **options).eval()


def given(form: str, n_heads: int = 2) -> tuple[Any, Tensor]:
    """A graph in one of three forms, and a bias laid out as it, with an edge that is removed."""
    shape = (8,) if form == "list" else (5, 5)
    bias = torch.randn(*shape, n_heads, dtype=torch.float64)
    bias[(2,) * len(shape)] = -torch.inf
    return {"list": EDGE_INDEX, "mask": MASK, "none": None}[form], bias


@pytest.mark.parametrize("form", ["list", "mask", "none"])
@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_a_layer_is_the_function(form: str, backend: Any) -> None:
    layer, h = layer_of(backend=backend), torch.randn(5, 3, dtype=torch.float64)
    adj_mat, bias = given(form)
    if form == "list" and backend == "dense":
        adj_mat, bias = EDGE_INDEX.unique(dim=1), bias[:7]  # a mask has no parallel edges
    projected = (layer.linear_l(h).view(5, 2, 2), layer.linear_r(h).view(5, 2, 2))
    options: dict[str, Any] = {"score_bias": bias, "backend": backend}
    expected = gatv2_attention(*projected, layer.attn, adj_mat, **options)
    assert torch.equal(layer(h, adj_mat, score_bias=bias), expected.flatten(-2))
    scores = layer.attention_scores(h, adj_mat, score_bias=bias)
    assert torch.equal(scores, gatv2_scores(*projected, layer.attn, adj_mat, **options))


def test_so_is_the_control() -> None:
    layer, h = layer_of(GraphAttentionLayer), torch.randn(5, 3, dtype=torch.float64)
    adj_mat, bias = given("list", 1)
    projected = (layer.linear_l(h).view(5, 2, 2),) * 2
    vectors = (layer.attn_query, layer.attn_key)
    expected = gat_attention(*projected, *vectors, adj_mat, score_bias=bias)
    assert torch.equal(layer(h, adj_mat, score_bias=bias), expected.flatten(-2))


@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
@pytest.mark.parametrize("form", ["list", "mask"])
def test_self_loops_that_are_added_have_none(form: str, flow: Any) -> None:
    h, (adj_mat, bias) = torch.randn(5, 3, dtype=torch.float64), given(form)
    with_loops = layer_of(add_self_loops=True, flow=flow)
    plain = layer_of(flow=flow)
    plain.load_state_dict(with_loops.state_dict())
    actual = with_loops(h, adj_mat, score_bias=bias)
    if form == "mask":
        loop = torch.eye(5, dtype=torch.bool).unsqueeze(-1)
        expected = plain(h, MASK | loop, score_bias=bias.masked_fill(loop, 0.0))
    else:
        graph, filled = add_self_loops(Graph.from_edge_index(adj_mat, 5, flow=flow), bias, 0.0)
        expected = plain(h, graph, score_bias=filled)
    assert_agrees(actual, expected)


REDUCED: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: sum(values) / max(len(values), 1),
    "sum": sum,
    "add": sum,
    "min": lambda values: min(values, default=0.0),
    "max": lambda values: max(values, default=0.0),
    "mul": math.prod,
}


@pytest.mark.parametrize(
    "loop_bias", [-0.7, np.float32(-0.7), torch.tensor([0.5, -1.0]), *REDUCTIONS], ids=str
)
@pytest.mark.parametrize("form", ["list", "mask"])
def test_or_what_is_asked_for(form: str, loop_bias: Any) -> None:
    """By loops over nodes and heads; what a bias removes is not reduced."""
    h, (adj_mat, bias) = torch.randn(5, 3, dtype=torch.float64), given(form)
    query, key = EDGE_INDEX if form == "list" else MASK.squeeze(-1).nonzero().T
    at = (torch.arange(8),) if form == "list" else (query, key)
    bias[at[0][(query == 0) & (key == 3)], *(() if form == "list" else (3,)), 0] = -torch.inf
    is_other, of_edges = query != key, bias[at]
    filled = torch.zeros(5, 2, dtype=torch.float64)
    for i, head in itertools.product(range(5), range(2)):
        others = of_edges[is_other & (query == i), head]
        filled[i, head] = (
            REDUCED[loop_bias](others[others > -torch.inf].tolist())
            if isinstance(loop_bias, str)
            else torch.as_tensor(loop_bias, dtype=torch.float64).expand(2)[head]
        )
    node = torch.arange(5)
    edge_index = torch.cat((torch.stack((query, key))[:, is_other], node.expand(2, 5)), dim=1)
    with_loops = layer_of(add_self_loops=True, loop_bias=loop_bias)
    plain = layer_of()
    plain.load_state_dict(with_loops.state_dict())
    bias.requires_grad_()
    actual = with_loops(h, adj_mat, score_bias=bias)
    expected = plain(h, edge_index, score_bias=torch.cat((of_edges[is_other], filled)))
    assert_agrees(actual, expected)
    (d_bias,) = torch.autograd.grad(actual, bias, torch.randn_like(actual))
    assert bool(d_bias.isfinite().all())
    assert bool((d_bias[bias == -torch.inf] == 0).all())


@pytest.mark.parametrize("form", ["list", "mask", "none"])
@pytest.mark.parametrize("loops", [False, True])
def test_inference_in_blocks(form: str, loops: bool) -> None:
    h, (adj_mat, bias) = torch.randn(5, 3, dtype=torch.float64), given(form, 1)
    options: dict[str, Any] = {"score_bias": bias}
    model = GATv2(
        3, 4, 2, n_heads=2, add_self_loops=loops, loop_bias="mean", dtype=torch.float64
    ).eval()
    expected = model(h, adj_mat, **options)
    assert_agrees(model.inference(h, adj_mat, block_size=2, **options), expected)
    first, last = (cast(GraphAttention, layer) for layer in model.layers)
    embedded = apply_in_blocks(
        first, h, adj_mat, activation=model.activation, block_size=3, **options
    )
    assert_agrees(embedded, model.embed(h, adj_mat, **options))
    assert_agrees(last(embedded, adj_mat, **options), expected)


H, BIAS = torch.randn(5, 3), torch.zeros(8, 1)
LAYER = GraphAttentionV2Layer(3, 4, 2).eval()


def in_bfloat16(bias: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return LAYER(H, EDGE_INDEX, score_bias=bias)


CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "without heads": (
        lambda: LAYER(H, EDGE_INDEX, score_bias=BIAS[:, 0]),
        ValueError,
        "the last dimension of `score_bias` must be of heads, 1 or 2; got shape (8,): add it with "
        "`.unsqueeze(-1)`",
    ),
    "of other heads": (
        lambda: LAYER(H, EDGE_INDEX, score_bias=BIAS.expand(8, 3)),
        ValueError,
        "the last dimension of `score_bias` must be of heads, 1 or 2; got shape (8, 3)",
    ),
    "with heads in front of the pairs": (
        lambda: LAYER(H, None, score_bias=torch.zeros(2, 5, 5)),
        ValueError,
        "add it with `.unsqueeze(-1)` for all heads, or move the one there is, `.movedim(-3, -1)`",
    ),
    "of the keys": (
        lambda: LAYER(H, None, score_bias=torch.zeros(1, len(H), 1)),
        ValueError,
        "repeat it for all pairs with `.expand(",
    ),
    "a mask": (
        lambda: LAYER(H, EDGE_INDEX, score_bias=BIAS > 0),
        TypeError,
        "got a mask of bools: pass it in the place of the graph",
    ),
    "a mask, under autocast": (
        lambda: in_bfloat16(BIAS > 0),
        TypeError,
        "got a mask of bools: pass it in the place of the graph",
    ),
    "of another dtype": (
        lambda: LAYER(H, EDGE_INDEX, score_bias=BIAS.double()),
        TypeError,
        "`score_bias` must have the dtype of `h`, torch.float32; got torch.float64: convert it with "
        "`.to(h.dtype)`",
    ),
    "not a tensor": (
        lambda: LAYER(H, EDGE_INDEX, score_bias=cast(Tensor, BIAS.tolist())),
        TypeError,
        "`score_bias` must be a torch.Tensor; got list",
    ),
    "loops of other heads": (
        lambda: GraphAttentionV2Layer(3, 4, 2, add_self_loops=True, loop_bias=torch.zeros(3))(
            H, EDGE_INDEX, score_bias=BIAS.expand(8, 2)
        ),
        ValueError,
        "`loop_bias` must be a number or have shape (2,), as `score_bias` has 2; got (3,)",
    ),
    "loops of no kind": (
        lambda: GraphAttentionLayer(3, 4, 2, add_self_loops=True, loop_bias=cast(Any, "median")),
        ValueError,
        "`loop_bias` must be a number, a tensor or one of",
    ),
    "a sparse matrix": (
        lambda: LAYER(H, MASK, score_bias=torch.zeros(5, 5, 1).to_sparse()),
        TypeError,
        "`score_bias` must be a dense tensor; got one of layout torch.sparse_coo: pass the values",
    ),
    "too few edges": (
        lambda: LAYER(H, EDGE_INDEX, score_bias=BIAS[1:]),
        ValueError,
        "`score_bias` must have shape (*batch, n_edges=8, 1 or n_heads), in the order of the edges",
    ),
    "a list for a mask": (
        lambda: LAYER(H, MASK, score_bias=BIAS),
        ValueError,
        "`score_bias` must have shape (*batch, 5, 5, 1 or n_heads), entry for entry as the mask",
    ),
    "a list for no graph": (
        lambda: LAYER(H, None, score_bias=BIAS),
        ValueError,
        "`score_bias` must have shape (*batch, 5, 5, 1 or n_heads), entry for entry as the mask",
    ),
    "neither": (
        lambda: LAYER(H, None),
        TypeError,
        "the graph is None: pass a mask, an edge index or another form of a graph, or a `score_bias`",
    ),
    "a model of other heads": (
        lambda: GATv2(3, 4, 2, n_heads=2)(H, EDGE_INDEX, score_bias=BIAS.expand(8, 2)),
        ValueError,
        "a `score_bias` for 2 heads came to layers with [2, 1] heads: pass one whose last dimension is "
        "1, which is for all heads",
    ),
    "values that want a gradient": (
        lambda: LAYER(H, torch.ones(5, 5, 1, requires_grad=True)),
        ValueError,
        "`adj_mat` must not require a gradient: its values are not read, only where they are non-zero; "
        "pass what is added to the scores as `score_bias`",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), CASES.values(), ids=CASES.keys())
def test_text(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_a_refused_call_does_not_tell_a_layer_its_sizes() -> None:
    layer = GraphAttentionV2Layer(-1, 4, 2)
    for bias in (BIAS[1:], BIAS[:, 0], BIAS.double()):
        with pytest.raises((TypeError, ValueError), match="`score_bias`"):
            layer(H, EDGE_INDEX, score_bias=bias)
    assert layer.in_features == -1
    layer(H, EDGE_INDEX, score_bias=BIAS)
    assert layer.in_features == 3
