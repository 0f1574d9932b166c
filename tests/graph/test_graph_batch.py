"""A batch of graphs of different sizes is each of them, one by one."""

import pickle
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import fields, replace
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Batch, Data

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.dispatch import Kernel
from gatv2.distributed import Partition
from gatv2.locality import reorder
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


INDICES = ("query_ptr", "key_index", "query_index", "edge_id")
NO_GRAPHS = [torch.tensor([[0], [1]]), torch.ones(2, 2, 1) > 0, [[0], [1]], "edges", None]


@pytest.fixture(params=["in place", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How graphs are read."""
    if request.param == "copied":
        monkeypatch.setattr("gatv2.graph.join._kernels", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("graph", NO_GRAPHS, ids=lambda graph: type(graph).__name__)
def test_what_is_no_graph_is_told(way: str, graph: Any) -> None:
    whole = Graph.from_edge_index(torch.tensor([[0], [1]]), 2)
    for call in (
        lambda: Graph.batch([whole, graph]),
        lambda: Partition.split(graph, 2),
        lambda: reorder(graph),
    ):
        with pytest.raises(TypeError, match=r"a gatv2\.Graph was expected; got"):
            call()


def two_graphs() -> list[Graph]:
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 2]])
    return [Graph.from_edge_index(edge_index, n_nodes=3) for _ in range(2)]


@pytest.mark.parametrize("is_counted", [False, True])
@pytest.mark.parametrize("beyond", [None, 0, 10**9])
@pytest.mark.parametrize(("name", "end"), [("query_index", 3), ("key_index", 3), ("edge_id", 4)])
@pytest.mark.parametrize("comes_again", [False, True])
def test_a_graph_that_was_written_to_is_refused(
    way: str, comes_again: bool, name: str, end: int, beyond: int | None, is_counted: bool
) -> None:
    """By the check of one that an operation has written to, else by what joins them."""
    graphs = two_graphs()
    if comes_again:
        Graph.batch(graphs)
    tensor = getattr(graphs[1], name)
    written = tensor if is_counted else tensor.numpy()
    written[0] = -1 if beyond is None else end + beyond
    is_checked = is_counted and (way == "copied" or not comes_again)
    error, text = (
        (ValueError, f"`{name}` must lie in") if is_checked else (IndexError, "out of range")
    )
    with pytest.raises(error, match=text):
        Graph.batch(graphs)


def share(tensor: Tensor) -> None:
    tensor.share_memory_()


def point_elsewhere(tensor: Tensor) -> None:
    tensor.set_(tensor.flip(0))  # type: ignore[call-overload]


def replace_data(tensor: Tensor) -> None:
    tensor.data = tensor.flip(0)


def widen(tensor: Tensor) -> None:
    tensor.data = tensor.long()


def spread(tensor: Tensor) -> None:
    tensor.data = torch.stack((tensor, tensor.flip(0)), 1)[:, 0]


def repeat(tensor: Tensor) -> None:
    tensor.data = torch.zeros(1, dtype=tensor.dtype).expand(len(tensor))


def exchange(tensor: Tensor) -> None:
    torch.utils.swap_tensors(tensor, tensor.flip(0))


def add(tensor: Tensor) -> None:
    tensor.numpy()[:] = tensor.flip(0).numpy()


@pytest.mark.parametrize("name", ["key_index", "edge_id"])
@pytest.mark.parametrize(
    "move",
    [share, point_elsewhere, replace_data, widen, spread, repeat, exchange, add],
    ids=lambda move: move.__name__,
)
def test_what_a_tensor_holds_is_read_wherever_it_is(name: str, move: Any) -> None:
    graphs = two_graphs()
    before = getattr(Graph.batch(graphs), name).tolist()
    tensor = getattr(graphs[0], name)
    move(tensor)
    tensor.numpy()[-1] = 1  # nobody counts that: what an operation has written to is checked
    after = getattr(Graph.batch(graphs), name)
    assert after[:4].tolist() == tensor.tolist()
    assert after[4:].tolist() == before[4:]


def test_a_tensor_that_has_become_shorter_is_noticed(way: str) -> None:
    graphs = two_graphs()
    Graph.batch(graphs)
    edge_id = graphs[0].edge_id
    edge_id.data = edge_id[:2]  # nobody counts that
    with pytest.raises(IndexError):
        Graph.batch(graphs)
    edge_id.resize_(1)
    with pytest.raises(ValueError, match=r"`edge_id` must be torch\.int32 with shape \(4,\)"):
        Graph.batch(graphs)


@given(drawn=graphs())
def test_both_ways_agree(drawn: list[Graph]) -> None:
    in_place = Graph.batch(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gatv2.graph.join._kernels", lambda: None)
        copied = Graph.batch(drawn)
    for field in fields(Graph):
        ours, expected = getattr(in_place, field.name), getattr(copied, field.name)
        if isinstance(expected, Tensor):
            assert torch.equal(ours, expected)
            assert ours.dtype == expected.dtype
        else:
            assert ours == expected


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, tensor), 1)[:, 0]


@pytest.mark.parametrize("stored", [Tensor.long, with_gaps])
def test_of_graphs_that_differ_in_how_they_are_stored(stored: Any) -> None:
    def change(graph: Graph) -> Graph:
        tensors: Any = {name: stored(getattr(graph, name)) for name in INDICES}
        return replace(graph, **tensors)

    one, other = two_graphs()
    expected = Graph.batch([one, other])
    for graphs in ([one, change(other)], [change(one), other], [change(one), change(other)]):
        for _ in range(2):
            batch = Graph.batch(graphs)
            for name in INDICES:
                assert torch.equal(getattr(batch, name), getattr(expected, name))
                assert getattr(batch, name).dtype == torch.int32


@pytest.mark.parametrize(
    "copied",
    [copy, deepcopy, lambda graph: pickle.loads(pickle.dumps(graph)), replace],
    ids=["copy", "deepcopy", "pickle", "replace"],
)
def test_a_record_stays_with_its_graph(copied: Any) -> None:
    one, other = two_graphs()
    batch = Graph.batch([one, other])
    again = copied(one)
    assert hasattr(one, "_gatv2_record")
    assert not hasattr(again, "_gatv2_record")
    assert torch.equal(Graph.batch([again, other]).edge_index, batch.edge_index)


def test_tensors_live_as_long_as_a_record_has_their_addresses() -> None:
    graph = two_graphs()[0]
    Graph.batch([graph])
    tensor = ref(graph.key_index)
    object.__setattr__(graph, "key_index", graph.key_index.clone())
    assert tensor() is not None


def test_what_is_no_tensor_is_noticed() -> None:
    joined = pytest.importorskip("gatv2.numba.joined")
    dlpack = pytest.importorskip("gatv2.numba.dlpack")
    assert dlpack.asker(int) == 0
    tensors: list[object] = [torch.arange(2, dtype=torch.int32) for _ in range(3)]
    for odd in (object(), None, torch.ones(2), torch.ones(2, 1, dtype=torch.int32)):
        for i in range(3):
            given = [*tensors[:i], odd, *tensors[i + 1 :]]
            table = np.array([*map(id, given), 2, 2, 2, 0])
            assert not joined.find_edges(dlpack.asker(Tensor), table)[0]
    table = np.array([*map(id, tensors), 2, 3, 2, 5])
    assert joined.find_edges(dlpack.asker(Tensor), table) == (True, 2, 3, 2, 5, 5)


class MadeWhenAskedFor(Sequence[Graph]):
    """Graphs that nobody else keeps."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> Any:
        if i >= self.n:
            raise IndexError
        graph = Graph.from_edge_index(torch.tensor([[0, 1, i % 3], [1, 2, 0]]), 3)
        Graph.batch([graph])
        return graph


def test_graphs_need_not_be_kept() -> None:
    expected = Graph.batch([*MadeWhenAskedFor(60)])
    for graphs in (MadeWhenAskedFor(60), iter(MadeWhenAskedFor(60))):
        batch = Graph.batch(graphs)
        batch.check()
        assert torch.equal(batch.edge_index, expected.edge_index)


def test_generators_keep_masks() -> None:
    one = Graph.from_mask(torch.tensor([[[True, False]]]))
    for _ in range(2):
        batch = Graph.batch(graph for graph in (one, one))
        assert batch.head_mask is not None
        assert batch.head_mask.tolist() == [[True, False]] * 2


def test_wrappers_without_memory() -> None:
    """Those of a transform are of PyTorch's own type and say that they lie in memory."""
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])

    def join(x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        graph = Graph.from_edge_index(edge_index, 3)
        for _ in range(2):
            batch = Graph.batch([graph, graph])
        return x * 2, batch.key_index

    _, key_index = torch.func.functionalize(join)(torch.ones(2), edge_index)
    assert key_index.tolist() == [1, 2, 0, 4, 5, 3]


def test_numbers_that_are_negated_when_read() -> None:
    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    graph = Graph(ints(0, 1, 2), torch._neg_view(ints(0, -1)), ints(0, 1), ints(0, 1), 2)
    graph.check()
    for _ in range(2):
        batch = Graph.batch([graph, graph])
        batch.check()
        assert batch.key_index.tolist() == [0, 1, 2, 3]


class PicklesAll(Graph):
    def __getstate__(self) -> dict[str, object]:
        return dict(vars(self))


def test_a_pickled_record_is_none() -> None:
    edge_index = torch.tensor([[0, 1], [1, 0]])
    one = PicklesAll.from_edge_index(edge_index, 2)
    PicklesAll.batch([one])
    again = pickle.loads(pickle.dumps(one))
    assert PicklesAll.batch([again, one]).edge_index.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]


def test_queries_out_of_order_are_refused() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 2], [0, 0, 0]]), 3)
    Graph.batch([graph])
    graph.query_index.copy_(torch.tensor([2, 0, 1]))
    with pytest.raises(IndexError, match="out of order"):
        Graph.batch([graph])


def test_another_table_of_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatv2.numba.dlpack import asker

    assert asker(type("Other", (), {"__dlpack_c_exchange_api__": object()})) == 0
    assert asker(type("None", (), {})) == 0
    assert asker(Tensor) > 0
