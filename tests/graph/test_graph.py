"""What a prepared graph holds."""

import io
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.distributed import Partition
from gatv2.graph.edges import is_trusted
from gatv2.testing import SIZES, edge_indices


@st.composite
def graphs_and_edges(draw: st.DrawFn) -> tuple[Graph, Tensor]:
    sizes = draw(st.sampled_from((0, *SIZES))), draw(st.sampled_from((0, *SIZES)))
    edge_index = draw(edge_indices(*sizes))
    return Graph.from_edge_index(edge_index, sizes), edge_index.long()


def tensors(graph: Graph) -> list[Tensor]:
    fields = (graph.query_ptr, graph.key_index, graph.query_index, graph.edge_id)
    return [*fields, *graph.by_key, graph.multiplicity]


@given(drawn=graphs_and_edges())
def test_edges_are_sorted_by_query_and_key_and_stay_the_same_edges(
    drawn: tuple[Graph, Tensor],
) -> None:
    graph, edge_index = drawn
    pairs = list(zip(graph.query_index.tolist(), graph.key_index.tolist(), strict=True))
    assert pairs == sorted(pairs)
    assert torch.equal(edge_index[:, graph.edge_id.long()].T, torch.tensor(pairs).view(-1, 2))
    assert sorted(graph.edge_id.tolist()) == list(range(graph.n_edges))
    assert torch.equal(graph.edge_index, edge_index)


@given(drawn=graphs_and_edges())
def test_pointers_delimit_queries_and_keys(drawn: tuple[Graph, Tensor]) -> None:
    graph, edge_index = drawn
    query_degree = torch.bincount(edge_index[0], minlength=graph.n_queries)
    key_degree = torch.bincount(edge_index[1], minlength=graph.n_keys)
    assert torch.equal(graph.query_ptr.long().diff(), query_degree)
    assert torch.equal(graph.by_key.ptr.long().diff(), key_degree)
    assert graph.query_ptr[0] == graph.by_key.ptr[0] == 0


@given(drawn=graphs_and_edges())
def test_key_order_is_the_transpose(drawn: tuple[Graph, Tensor]) -> None:
    graph, _ = drawn
    edge = graph.by_key.edge.long()
    assert torch.equal(graph.by_key.query, graph.query_index[edge])
    pairs = list(zip(graph.key_index[edge].tolist(), edge.tolist(), strict=True))
    assert pairs == sorted(pairs)


@given(drawn=graphs_and_edges())
def test_multiplicity_counts_parallel_edges(drawn: tuple[Graph, Tensor]) -> None:
    graph, _ = drawn
    seen: dict[tuple[int, int], int] = {}
    for query, key, multiplicity in zip(
        graph.query_index.tolist(),
        graph.key_index.tolist(),
        graph.multiplicity.tolist(),
        strict=True,
    ):
        assert multiplicity == seen.get((query, key), 0)
        seen[query, key] = multiplicity + 1
    assert graph.coalesce().n_edges == len(seen)


@given(drawn=graphs_and_edges())
def test_index_dtype_is_int32_and_one(drawn: tuple[Graph, Tensor]) -> None:
    graph, _ = drawn
    assert {x.dtype for x in tensors(graph)[:-1]} == {torch.int32}


@given(drawn=graphs_and_edges())
def test_copies_hold_the_same(drawn: tuple[Graph, Tensor]) -> None:
    graph, _ = drawn
    saved = io.BytesIO()
    torch.save({"graph": graph}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)["graph"]
    for copy in (pickle.loads(pickle.dumps(graph)), loaded, graph.to("cpu")):
        for mine, its in zip(tensors(graph), tensors(copy), strict=True):
            assert torch.equal(mine, its)


def test_pickles_hold_nothing_that_can_be_made_again() -> None:
    graph = Graph.from_edge_index(torch.randint(9, (2, 50)), 9)
    (part,) = Partition.split(graph, 1)
    for whole in (graph, part):
        before = pickle.dumps(whole)
        for each in (graph, part.local):
            _ = each.by_key, each.self_loops
        _ = whole.self_loops
        assert pickle.dumps(whole) == before
    assert not is_trusted(pickle.loads(pickle.dumps(graph)))
    with pytest.raises(TypeError, match=r"save it with `partition.save\(directory\)`"):
        pickle.dumps(replace(part, group="a group"))  # type: ignore[arg-type]


@pytest.mark.parametrize("n_edges", [10, 100_000])
def test_large_graphs_are_sorted_alike(n_edges: int) -> None:
    """PyTorch and our kernels change algorithms with the size."""
    edge_index = torch.randint(300, (2, n_edges))
    graph = Graph.from_edge_index(edge_index, 300)
    order = (edge_index[0] * 300 + edge_index[1]).argsort(stable=True)
    assert torch.equal(graph.edge_id.long(), order)


@pytest.mark.parametrize("non_blocking", [False, True])
def test_all_of_a_graph_goes_to_another_device(non_blocking: bool) -> None:
    mask = torch.ones(2, 3, 3, 2, dtype=torch.bool)
    graph = replace(
        Graph.from_mask(mask), query_id=torch.arange(6), key_id=torch.arange(6), is_bipartite=True
    )
    moved = graph.to("meta", non_blocking=non_blocking)
    for field in fields(graph):
        value, there = getattr(graph, field.name), getattr(moved, field.name)
        if isinstance(value, Tensor):
            assert (there.device.type, there.shape, there.dtype) == (
                "meta",
                value.shape,
                value.dtype,
            )
        else:
            assert there == value


def test_a_graph_is_pinned() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), n_nodes=2)
    if not torch.accelerator.is_available():
        with pytest.raises(RuntimeError, match="accelerator"):
            graph.pin_memory()
        return
    assert graph.pin_memory().key_index.is_pinned()


MASK = torch.rand(5, 5, 2, generator=torch.Generator().manual_seed(3)) < 0.6
MADE: dict[str, Callable[[], Graph]] = {
    "from_edge_index": lambda: Graph.from_edge_index(MASK.any(-1).nonzero().T, 5),
    "from_edge_index of NumPy": lambda: Graph.from_edge_index(MASK.any(-1).nonzero().T.numpy(), 5),
    "from_mask": lambda: Graph.from_mask(MASK),
    "batch": lambda: Graph.batch([Graph.from_mask(MASK)]),
    "coalesce": lambda: Graph.from_mask(MASK).coalesce(),
    "add_self_loops": lambda: Graph.from_mask(MASK).add_self_loops(),
    "to": lambda: Graph.from_mask(MASK).to("cpu"),
}


@pytest.mark.parametrize("kernel", ["numba", "torch"])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_one_made_in_inference_mode_is_trained_on(make: Callable[[], Graph], kernel: str) -> None:
    if kernel == "numba":
        pytest.importorskip("numba")
    layer = GraphAttentionV2Layer(3, 4, 2, dropout=0.0, kernel=kernel)
    h, d_out = torch.randn(5, 3), torch.randn(5, 4)
    with torch.inference_mode():
        made = make()
    gradients = [
        torch.autograd.grad(layer(h, graph), list(layer.parameters()), d_out)
        for graph in (made, make())
    ]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("has_loops", [False, True])
def test_one_of_which_operations_were_recorded_is_trained_on(has_loops: bool) -> None:
    layer = GraphAttentionV2Layer(3, 4, 2, dropout=0.0, add_self_loops=has_loops)
    graph, h = Graph.from_mask(MASK), torch.randn(5, 3)
    expected = torch.autograd.grad(layer(h, Graph.from_mask(MASK)).sum(), layer.attn)
    make_fx(lambda h: layer(h, graph), tracing_mode="fake", _allow_non_fake_inputs=True)(h)
    assert_close(torch.autograd.grad(layer(h, graph).sum(), layer.attn), expected)


@pytest.mark.parametrize("mmap", [False, True])
def test_one_loaded_in_inference_mode_is_trained_on(tmp_path: Path, mmap: bool) -> None:
    pytest.importorskip("safetensors")
    MADE["from_mask"]().save(tmp_path / "graph")
    with torch.inference_mode():
        graph = Graph.load(tmp_path / "graph", mmap=mmap)
    GraphAttentionV2Layer(3, 4, 2)(torch.randn(5, 3), graph).backward(torch.randn(5, 4))
