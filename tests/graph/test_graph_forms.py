"""Every form of one graph gives one answer, in both backends."""

import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.graph.adjacency import Sizes, as_adjacency
from gatv2.graph.graph import graph_for_gradients
from gatv2.graph.kept import MOST_KEPT, _kept
from gatv2.options import FLOWS
from gatv2.testing import assert_agrees, masks

N_NODES, N_HEADS = 7, 3


def weights(mask: Tensor) -> Tensor:
    """A float matrix with the mask's edges, negative entries among them."""
    return torch.where(mask.squeeze(-1), torch.randn(mask.shape[:2]).abs() + 0.1, 0.0) * -1.5


def as_scipy(name: str, mask: Tensor) -> object:
    return getattr(scipy.sparse, name)(weights(mask).numpy())


SCIPY_FORMS = [
    f"{layout}_{kind}"
    for layout in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
    for kind in ("array", "matrix")
]
FORMS: dict[str, Callable[[Tensor], object]] = {
    "bool": lambda mask: mask,
    "bool, two-dimensional": lambda mask: mask.squeeze(-1),
    "bool, per head": lambda mask: mask.expand(-1, -1, N_HEADS),
    "int64": lambda mask: mask * 3,
    "uint8": lambda mask: mask.to(torch.uint8),
    "float32": lambda mask: weights(mask).unsqueeze(-1),
    "float16": lambda mask: mask.half(),
    "edge index": lambda mask: mask.squeeze(-1).nonzero().T,
    "edge index, int32": lambda mask: mask.squeeze(-1).nonzero().T.int(),
    "edge index, reversed": lambda mask: mask.squeeze(-1).nonzero().T.flip(1),
    "graph of edges": lambda mask: Graph.from_edge_index(mask.squeeze(-1).nonzero().T, N_NODES),
    "graph of a mask": Graph.from_mask,
    "torch COO": lambda mask: weights(mask).to_sparse_coo(),
    "torch COO, bool": lambda mask: mask.squeeze(-1).to_sparse_coo(),
    "torch CSR": lambda mask: weights(mask).to_sparse_csr(),
    "torch CSC": lambda mask: weights(mask).to_sparse_csc(),
    "torch COO, uncoalesced": lambda mask: torch.sparse_coo_tensor(
        mask.squeeze(-1).nonzero().T.repeat(1, 2), torch.ones(2 * int(mask.sum())), mask.shape[:2]
    ),
    "torch COO, stored zeros": lambda mask: torch.sparse_coo_tensor(
        torch.ones(N_NODES, N_NODES).nonzero().T, weights(mask).flatten(), mask.shape[:2]
    ),
}

FORMS |= {f"scipy {name}": partial(as_scipy, name) for name in SCIPY_FORMS}


def layers(**options: Any) -> Iterator[GraphAttentionV2Layer]:
    for backend in ("auto", "dense", "sparse"):
        torch.manual_seed(1)
        yield GraphAttentionV2Layer(5, 6, N_HEADS, dropout=0.3, backend=backend, **options).double()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@given(mask=masks(N_NODES, N_NODES))
@settings(max_examples=10)
def test_one_answer(form: Callable[[Tensor], object], mask: Tensor) -> None:
    h = torch.randn(N_NODES, 5, dtype=torch.float64)
    expected = next(layers())(h, mask, seed=4)
    for layer in layers():
        assert_agrees(layer(h, form(mask), seed=4), expected)
    for layer in layers(flow="source_to_target"):
        turned = form(mask.transpose(0, 1))
        if isinstance(turned, Graph):
            continue  # settled when it was prepared
        assert_agrees(layer(h, turned, seed=4), expected)


@given(mask=masks(N_NODES, N_NODES))
def test_torch_sparse(mask: Tensor) -> None:
    torch_sparse = pytest.importorskip(
        "torch_sparse", reason="torch_sparse has no wheels: it is built from source"
    )
    h = torch.randn(N_NODES, 5, dtype=torch.float64)
    row, column = mask.squeeze(-1).nonzero().T
    for value in (None, weights(mask)[row, column]):
        matrix = torch_sparse.SparseTensor(
            row=row, col=column, value=value, sparse_sizes=(N_NODES, N_NODES)
        )
        for layer in layers():
            assert_agrees(layer(h, matrix, seed=4), layer(h, mask, seed=4))
        for layer in layers(flow="source_to_target"):
            assert_agrees(layer(h, matrix.t(), seed=4), layer(h, mask.transpose(0, 1), seed=4))


@given(mask=masks(5, 3))
def test_queries_and_keys_of_different_number(mask: Tensor) -> None:
    query, key = torch.randn(5, 2, 4).double(), torch.randn(3, 2, 4).double()
    attn = torch.randn(2, 4).double()
    edge_index = mask.squeeze(-1).nonzero().T
    expected = gatv2_attention(query, key, attn, mask)
    forms: list[Any] = [
        edge_index,
        Graph.from_edge_index(edge_index, (5, 3)),
        Graph.from_edge_index(edge_index.flip(0), (5, 3), flow="source_to_target"),
        scipy.sparse.csr_array(mask.squeeze(-1).numpy()),
        mask.squeeze(-1),
    ]
    for form in forms:
        for backend in ("dense", "sparse"):
            assert_agrees(gatv2_attention(query, key, attn, form, backend=backend), expected)
    turned = scipy.sparse.csr_array(mask.squeeze(-1).numpy().T)
    assert_agrees(gatv2_attention(query, key, attn, turned, flow="source_to_target"), expected)


MATRICES: dict[str, Callable[[Tensor], Any]] = {
    "coo": Tensor.to_sparse_coo,
    "csr": Tensor.to_sparse_csr,
    "scipy coo": lambda dense: scipy.sparse.coo_array(dense.numpy()),
    "scipy csr": lambda dense: scipy.sparse.csr_array(dense.numpy()),
}


class TestPreparedOnce:
    """A raw edge index passed again is not prepared again, unless it holds something else by now."""

    @pytest.fixture
    def prepared(self, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
        """What has been prepared."""
        seen: list[Tensor] = []
        prepare = Graph.from_edge_index.__func__  # type: ignore[attr-defined]

        def spy(cls: type[Graph], edge_index: Tensor, *args: Any, **kwargs: Any) -> Graph:
            seen.append(edge_index)
            return prepare(cls, edge_index, *args, **kwargs)  # type: ignore[no-any-return]

        def spy_too(edge_index: Tensor, *args: Any) -> Graph:
            seen.append(edge_index)
            return graph_for_gradients(edge_index, *args)

        monkeypatch.setattr(Graph, "from_edge_index", classmethod(spy))
        monkeypatch.setattr("gatv2.graph.adjacency.graph_for_gradients", spy_too)
        return seen

    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_with_what_backward_reads_if_there_are_gradients(self, mode: Any) -> None:
        pytest.importorskip("numba")
        edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        sizes = Sizes(3, 3, 2, torch.Size(()), edge_index.device)
        with mode():
            graph = as_adjacency(edge_index, sizes, flow="target_to_source", backend="auto")
        assert ("_by_key" in vars(graph)) == (mode is torch.enable_grad)

    def test_by_layers_and_epochs(self, prepared: list[Tensor]) -> None:
        edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        for layer in (GraphAttentionV2Layer(3, 4, 2), GraphAttentionV2Layer(3, 6, 1)):
            for _ in range(3):
                layer(torch.randn(4, 3), edge_index)
        assert len(prepared) == 1
        layer(torch.randn(5, 3), edge_index)  # another number of nodes
        assert len(prepared) == 2

    @pytest.mark.parametrize("way", ["in place", "data", "numpy", "inference mode"])
    def test_changes_are_seen(self, prepared: list[Tensor], way: str) -> None:
        with torch.inference_mode(way == "inference mode"):
            array = np.array([[0, 1, 2], [1, 2, 0]])
            edge_index = torch.from_numpy(array)
            layer = GraphAttentionV2Layer(3, 4, 2, dropout=0.0)
            h = torch.randn(4, 3)
            layer(h, edge_index)
            if way == "numpy":
                array[1, 0] = 3
            elif way == "data":
                edge_index.data[1, 0] = 3
            else:
                edge_index[1, 0] = 3
            changed = layer(h, edge_index)
            assert len(prepared) == 2
            assert torch.equal(changed, layer(h, torch.tensor([[0, 1, 2], [3, 2, 0]])))

    @pytest.mark.parametrize("add_self_loops", [False, True])
    @pytest.mark.parametrize("prepares", [False, True])
    def test_what_inference_mode_has_seen_is_trained_on(
        self, add_self_loops: bool, prepares: bool
    ) -> None:
        edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        graph = Graph.from_edge_index(edge_index, 4) if prepares else edge_index
        layer = GraphAttentionV2Layer(3, 4, 2, dropout=0.0, add_self_loops=add_self_loops)
        h = torch.randn(4, 3, requires_grad=True)
        with torch.inference_mode():
            expected = layer(h, graph).clone()
        out = layer(h, graph)
        out.backward(torch.randn_like(out))
        assert torch.equal(out.detach(), expected)
        assert h.grad is not None

    def test_nothing_is_kept_alive(self, prepared: list[Tensor]) -> None:
        edge_index = torch.tensor([[0], [1]])
        GraphAttentionV2Layer(3, 4, 2)(torch.randn(3, 3), edge_index)
        before = len(_kept)
        prepared.clear()
        del edge_index
        assert len(_kept) == before - 1

    def test_readings_do_not_push_one_another_out(self, prepared: list[Tensor]) -> None:
        edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        layers = [GraphAttentionV2Layer(3, 4, 2, flow=flow) for flow in FLOWS]
        for n_nodes in (4, 5, 4, 5):
            for layer in layers:
                layer(torch.randn(n_nodes, 3), edge_index)
        assert len(prepared) == 4

    def test_no_more_than_a_number_are_kept(self, prepared: list[Tensor]) -> None:
        layer = GraphAttentionV2Layer(3, 4, 2)
        alive = [torch.tensor([[0, i], [1, 0]]) for i in range(MOST_KEPT + 5)]
        for edge_index in alive:
            layer(torch.randn(MOST_KEPT + 5, 3), edge_index)
        assert len(_kept) == MOST_KEPT
        n_nodes = [len(source.readings) for source in _kept.values()]
        layer(torch.randn(MOST_KEPT + 5, 3), alive[-1])  # a new one is still known
        assert len(prepared) == len(alive)
        for n in range(MOST_KEPT + 6, MOST_KEPT + 20):
            layer(torch.randn(n, 3), alive[-1])
        now = [len(source.readings) for source in _kept.values()]
        assert sum(n_nodes) <= sum(now) <= sum(n_nodes) + 4

    def test_a_finalizer_of_what_is_dropped_may_make_a_graph(self) -> None:
        layer, others = GraphAttentionV2Layer(3, 4, 2), []
        edge_index, other = torch.tensor([[0], [1]]), torch.tensor([[1], [0]])

        def finalize() -> None:
            others.append(layer(torch.randn(3, 3), other))

        def drop() -> None:
            for n_nodes in range(2, 8):
                layer(torch.randn(n_nodes, 3), edge_index)
                if n_nodes == 2:
                    ((_, graph),) = _kept[id(edge_index)].readings.values()
                    weakref.finalize(graph, finalize)
                    del graph

        thread = threading.Thread(target=drop, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert len(others) == 1

    @pytest.mark.parametrize("form", MATRICES)
    def test_matrices(self, prepared: list[Tensor], form: str) -> None:
        matrix = MATRICES[form](torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]))
        layer, h = GraphAttentionV2Layer(3, 4, 2, dropout=0.0), torch.randn(3, 3)
        before = layer(h, matrix)
        assert torch.equal(layer(h, matrix), before)
        n_prepared = len(prepared)
        values = (
            matrix.values() if form == "csr" else matrix._values() if form == "coo" else matrix.data
        )
        values[1] = 0  # the edge from 0 to 2 is none any more
        after = layer(h, matrix)
        assert len(prepared) > n_prepared
        assert not torch.equal(after[0], before[0])
        assert torch.equal(after[1:], before[1:])


@given(data=st.data())
def test_auto_follows_the_form(data: st.DataObject) -> None:
    mask = data.draw(masks(N_NODES, N_NODES))
    h = torch.randn(N_NODES, 5, dtype=torch.float64)
    auto = next(layers())
    _, alpha = auto(h, mask, return_attention=True)
    assert alpha.shape == (N_NODES, N_NODES, N_HEADS)
    edge_index = mask.squeeze(-1).nonzero().T
    _, alpha = auto(h, edge_index, return_attention=True)
    assert alpha.shape == (edge_index.shape[1], N_HEADS)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_every_integer_dtype(dtype: torch.dtype) -> None:
    """Numbers of nodes need not fit into the dtype of the indices."""
    n_nodes = 70_000
    edge_index = torch.tensor([[0, 1, 2, 100], [1, 2, 0, 0]])
    graph = Graph.from_edge_index(edge_index.to(dtype), n_nodes)
    assert torch.equal(graph.edge_index, edge_index)


def test_integers_are_an_edge_index() -> None:
    """Of two nodes, too, and of as many edges as there are nodes: a 2-D mask is bool."""
    layer = GraphAttentionV2Layer((4, 4), 8, 2, flow="source_to_target")
    two, five = torch.randn(2, 4), torch.randn(5, 4)
    both = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]])
    assert torch.equal(layer((two, five), both)[2:], torch.zeros(3, 8))  # two keys, five queries
    edges = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 1, 0, 1]])
    assert layer((five, two), edges).shape == (2, 8)
    with pytest.raises(ValueError, match=r"must have shape \(2, 5, 1\) .*; got .*\(5, 2, 1\)"):
        layer((two, five), torch.ones(5, 2, 1))


@pytest.mark.parametrize("backend", ["auto", "dense", "sparse"])
@given(data=st.data())
@settings(max_examples=10)
def test_two_nodes(backend: Any, data: st.DataObject) -> None:
    edges = torch.unique(torch.randint(2, (2, data.draw(st.integers(0, 4)))), dim=1)
    layer = GraphAttentionV2Layer(5, 6, 3, backend=backend).double().eval()
    h = torch.randn(2, 5).double()
    expected = layer(h, Graph.from_edge_index(edges, 2))
    assert_agrees(layer(h, edges), expected)
    assert_agrees(layer(h, edges.numpy()), expected)
    mask = Graph.from_edge_index(edges, 2).to_mask().squeeze(-1)
    assert_agrees(layer(h, mask), expected)
