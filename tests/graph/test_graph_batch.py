"""A batch of graphs of different sizes is each of them, one by one."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Batch, Data

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.dispatch import Kernel
from gatv2.testing import SIZES, assert_agrees, edge_indices, masks


@st.composite
def graphs(draw: st.DrawFn) -> list[Graph]:
    """Edge lists with parallel edges, masks with heads, and graphs without nodes or edges."""
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        sizes = draw(st.sampled_from((0, *SIZES))), draw(st.sampled_from((0, *SIZES)))
        if draw(st.booleans()):
            drawn.append(Graph.from_mask(draw(masks(*sizes, 2))))
        else:
            drawn.append(Graph.from_edge_index(draw(edge_indices(*sizes)), sizes))
    return drawn


@given(drawn=graphs())
def test_is_one_by_one(kernel: Kernel, drawn: list[Graph]) -> None:
    if kernel.backend == "dense":
        drawn = [graph.coalesce() for graph in drawn]
    options: Any = {"backend": kernel.backend, "kernel": kernel.name, "dtype": torch.float64}
    layer = GraphAttentionV2Layer((3, 5), 8, 2, **options).eval()
    features = [
        (torch.randn(g.n_queries, 3).double(), torch.randn(g.n_keys, 5).double()) for g in drawn
    ]
    batch = Graph.batch(drawn)
    of_queries, of_keys = map(torch.cat, zip(*features, strict=True))
    out = layer((of_queries, of_keys), batch)
    for one, h, graph in zip(out.split([g.n_queries for g in drawn]), features, drawn, strict=True):
        assert_agrees(one, layer(h, graph))


@given(drawn=graphs())
def test_is_as_if_prepared_whole(drawn: list[Graph]) -> None:
    batch = Graph.batch(drawn)
    whole = Graph.from_edge_index(batch.edge_index, (batch.n_queries, batch.n_keys))
    for name in ("query_ptr", "key_index", "query_index", "edge_id"):
        ours, expected = getattr(batch, name), getattr(whole, name)
        assert torch.equal(ours, expected)
        assert ours.dtype == expected.dtype
    offset = torch.zeros(2, 1, dtype=torch.int64)
    of_each: list[Tensor] = []
    for graph in drawn:
        of_each.append(graph.edge_index + offset)
        offset = offset + torch.tensor([[graph.n_queries], [graph.n_keys]])
    assert torch.equal(batch.edge_index, torch.cat(of_each, dim=1))


@given(data=st.data())
def test_is_the_batch_of_pyg(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4))
    items = [
        Data(x=torch.randn(n, 3), edge_index=data.draw(edge_indices(n, n)).long(), num_nodes=n)
        for n in sizes
    ]
    theirs: Any = Batch.from_data_list(items)
    ours = Graph.batch(
        [
            Graph.from_edge_index(item.edge_index, item.num_nodes, flow="source_to_target")
            for item in items
        ]
    )
    assert torch.equal(ours.edge_index.flip(0), theirs.edge_index)
    layer = GraphAttentionV2Layer(3, 8, 2, flow="source_to_target", backend="sparse").eval()
    graph = Graph.from_edge_index(theirs.edge_index, theirs.num_nodes, flow=layer.flow)
    out = layer(theirs.x, ours)
    assert torch.equal(out, layer(theirs.x, graph))
    ptr = theirs.ptr.tolist()
    for item, start, end in zip(items, ptr[:-1], ptr[1:], strict=True):
        of_item = Graph.from_edge_index(item.edge_index, item.num_nodes, flow=layer.flow)
        torch.testing.assert_close(out[start:end], layer(item.x, of_item))


@given(data=st.data(), sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=4))
def test_is_a_padded_batch_of_masks(data: st.DataObject, sizes: list[int]) -> None:
    """Padding may hold anything: a node that is not there has no edges."""
    drawn = [data.draw(masks(n, n)) for n in sizes]
    size = max(sizes)
    padded = torch.stack(
        [
            torch.nn.functional.pad(mask, (0, 0, 0, size - n, 0, size - n))
            for mask, n in zip(drawn, sizes, strict=True)
        ]
    )
    h = torch.randn(len(sizes), size, 3).double()
    is_node = torch.arange(size) < torch.tensor(sizes).unsqueeze(1)
    layer = GraphAttentionV2Layer(3, 8, 2, dtype=torch.float64).eval()
    out = layer(h[is_node], Graph.batch([Graph.from_mask(mask) for mask in drawn]))
    holey = h.masked_fill(~is_node.unsqueeze(-1), torch.nan)
    for backend in ("dense", "sparse"):
        layer.backend = backend
        assert_agrees(layer(holey, padded)[is_node], out)


def test_errors() -> None:
    with pytest.raises(ValueError, match="a batch needs at least one graph; got none"):
        Graph.batch([])
    of_heads = [Graph.from_mask(torch.ones(2, 2, heads) > 0) for heads in (2, 3)]
    with pytest.raises(ValueError, match=r"must be for one number of heads; got \[2, 3\]"):
        Graph.batch(of_heads)


@pytest.mark.parametrize("query", [-1, 3, 10**9])
def test_a_graph_that_was_written_to_is_refused(query: int) -> None:
    graphs = [Graph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), n_nodes=3) for _ in range(2)]
    graphs[1].query_index[0] = query
    with pytest.raises(IndexError, match="query out of range"):
        Graph.batch(graphs)
