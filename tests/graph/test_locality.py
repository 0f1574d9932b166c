"""A graph in another order of its nodes gives what it gave, dropout included, once that is undone."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.graph.check import check_graph
from gatv2.testing import SIZES, edge_indices

locality = pytest.importorskip("gatv2.locality")
pytest.importorskip("scipy")


def assert_close(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_the_check_rejects_another_result() -> None:
    one = torch.ones(3).double()
    for other in (one + 1e-9, torch.tensor([1.0, 1.0, torch.nan]).double(), one[:2]):
        with pytest.raises(AssertionError):
            assert_close(other, one)
        with pytest.raises(AssertionError):
            assert_close(one, other)


def results(
    layer: GraphAttentionV2Layer, h: Tensor, graph: Graph, cotangent: Tensor, way: Any = None
) -> list[Tensor]:
    """Output, attention weights, gradients of features and parameters."""
    h = h.clone().requires_grad_()
    torch.manual_seed(1)  # of dropout
    there, back = (way.apply, way.undo) if way else (lambda x: x, lambda x: x)
    out, alpha = layer(there(h), graph, return_attention=True)
    out = back(out)
    leaves = (h, *layer.parameters())
    return [out, alpha, *torch.autograd.grad(out, leaves, cotangent)]


@pytest.mark.parametrize("kernel", ["numba", "torch"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@given(data=st.data())
def test_results_are_those_of_the_graph(kernel: str, dropout: float, data: Any) -> None:
    n_nodes = data.draw(st.sampled_from(SIZES))
    graph = Graph.from_edge_index(data.draw(edge_indices(n_nodes, n_nodes)), n_nodes)
    if data.draw(st.booleans()):
        graph = replace(graph, head_mask=torch.rand(graph.n_edges, 2) < 0.7)
    if data.draw(st.booleans()):
        graph = replace(graph, query_id=torch.randperm(n_nodes) + 5)
    torch.manual_seed(0)
    layer = GraphAttentionV2Layer(
        3, 10, 2, dropout=dropout, kernel=kernel, backend="sparse"
    ).double()
    h, cotangent = torch.randn(n_nodes, 3).double(), torch.randn(n_nodes, 10).double()
    order = torch.randperm(n_nodes) if data.draw(st.booleans()) else None
    reordered = locality.reorder(graph, order)
    check_graph(reordered.graph)
    expected = results(layer, h, graph, cotangent)
    actual = results(layer, h, reordered.graph, cotangent, reordered)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


def test_features_of_edges_stay_in_the_callers_order() -> None:
    graph = Graph.from_edge_index(torch.randint(9, (2, 40)), 9)
    reordered = locality.reorder(graph)
    features, projection = torch.randn(40, 3).double(), torch.randn(2, 5, 3).double()
    query, key = torch.randn(2, 9, 2, 5).double()
    attn = torch.randn(2, 5).double()
    options: Any = {"edge_features": features, "edge_projection": projection}
    expected = gatv2_attention(query, key, attn, graph, **options)
    moved = reordered.apply(torch.stack((query, key)), dim=-3)
    out = gatv2_attention(moved[0], moved[1], attn, reordered.graph, **options)
    assert_close(reordered.undo(out, dim=-3), expected)
    rank = reordered.rank
    assert torch.equal(reordered.graph.edge_index, rank[graph.edge_index])


def test_a_second_order_is_undone_too() -> None:
    graph = Graph.from_edge_index(torch.randint(9, (2, 40)), 9)
    layer = GraphAttentionV2Layer(3, 10, 2, dropout=0.5).double()
    h, cotangent = torch.randn(9, 3).double(), torch.randn(9, 10).double()
    first = locality.reorder(graph)
    second = locality.reorder(first.graph)
    expected = results(layer, h, graph, cotangent)
    h_first, cotangent_first = first.apply(h), first.apply(cotangent)
    out, alpha, of_h, *of_parameters = results(
        layer, h_first, second.graph, cotangent_first, second
    )
    actual = [first.undo(out), alpha, first.undo(of_h), *of_parameters]
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


def test_neighbours_come_close() -> None:
    n_nodes = 1000
    node = torch.arange(n_nodes)
    path = torch.randperm(n_nodes)[torch.stack((node[:-1], node[1:]))]
    graph = locality.reorder(Graph.from_edge_index(path, n_nodes)).graph
    assert int((graph.query_index - graph.key_index).abs().max()) == 1


@pytest.mark.parametrize(
    "graph",
    [
        Graph.from_edge_index(torch.tensor([[0], [1]]), (2, 3)),
        Graph.from_mask(torch.ones(2, 3, 3, 1, dtype=torch.bool)),
    ],
    ids=["bipartite", "blocks"],
)
def test_what_has_no_one_set_of_nodes_is_an_error(graph: Graph) -> None:
    with pytest.raises(ValueError, match=r"must have one set of nodes; got \d queries and \d keys"):
        locality.reorder(graph)


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1], [[0, 1, 2]]], ids=str)
def test_what_is_no_order_is_an_error(order: Any) -> None:
    graph = Graph.from_edge_index(torch.tensor([[0], [1]]), 3)
    with pytest.raises(ValueError, match="`order` must have each of the 3 nodes once; got shape"):
        locality.reorder(graph, torch.tensor(order))


@pytest.mark.parametrize("order", [[0, 1, 2], torch.tensor([0.0, 1.0, 2.7]), torch.ones(3) > 0])
def test_an_order_of_no_integers_is_an_error(order: Any) -> None:
    graph = Graph.from_edge_index(torch.tensor([[0], [1]]), 3)
    with pytest.raises(TypeError, match="`order` must be a tensor of integers; got"):
        locality.reorder(graph, order)


def test_a_graph_without_nodes_has_an_order() -> None:
    graph = Graph.from_edge_index(torch.empty(2, 0, dtype=torch.int64), 0)
    assert locality.reorder(graph).order.tolist() == []


def test_without_scipy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"pip install 'gatv2-layers\[scipy\]'"):
        locality.reorder(Graph.from_edge_index(torch.tensor([[0], [1]]), 2))


@pytest.mark.parametrize("n_rows", [0, 2, 4])
def test_rows_of_other_nodes_are_refused(n_rows: int) -> None:
    reordered = locality.reorder(Graph.from_edge_index(torch.tensor([[0], [1]]), 3))
    for there_or_back in (reordered.apply, reordered.undo):
        with pytest.raises(ValueError, match=r"of the graph's 3 nodes; got \("):
            there_or_back(torch.ones(n_rows, 5))


def test_rows_of_numpy_are_refused() -> None:
    reordered = locality.reorder(Graph.from_edge_index(torch.tensor([[0], [1]]), 3))
    rows: Any = torch.ones(3, 5).numpy()
    for there_or_back in (reordered.apply, reordered.undo):
        with pytest.raises(
            TypeError, match=r"must be a torch.Tensor; got ndarray: convert it with"
        ):
            there_or_back(rows)
