"""A graph that was made by hand is checked before a kernel trusts it, once; ours are not checked."""

import copy
import pickle
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from attention import by
from torch import Tensor

import gatv2.graph.check
from gatv2 import GATv2, Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import KERNELS, Kernel
from gatv2.distributed import Partition
from gatv2.functional import gat_attention
from gatv2.graph.graph import graph_for_gradients
from gatv2.inference import apply_in_blocks
from gatv2.locality import reorder

GRAPH = Graph.from_edge_index(torch.tensor([[0, 0, 2, 1], [1, 2, 0, 1]]), 3)
H = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
HEADS = H.unflatten(-1, (2, 2))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


WRONG: dict[str, dict[str, Any]] = {
    "key past the end": {"key_index": ints(1, 2, 1, 50)},
    "negative key": {"key_index": ints(1, 2, 1, -1)},
    "query past the end": {"query_index": ints(0, 0, 1, 50)},
    "pointer past the end": {"query_ptr": ints(0, 2, 3, 400)},
    "pointers descend": {"query_ptr": ints(0, 3, 2, 4)},
    "edge_id past the end": {"edge_id": ints(0, 1, 2, 400)},
    "edge_id twice": {"edge_id": ints(0, 1, 1, 2)},
    "fewer keys": {"n_keys": 2},
    "keys are not sorted": {"key_index": ints(2, 1, 1, 0)},
    "head mask too short": {"head_mask": torch.ones(2, 2, dtype=torch.bool)},
    "numbers of too few nodes": {"query_id": torch.arange(2)},
    "blocks": {"n_blocks": 2},
    "another dtype": {"key_index": torch.tensor([1, 2, 1, 0])},
    "another device": {"edge_id": ints(0, 1, 2, 3).to("meta")},
    "a list": {"key_index": [1, 2, 1, 0]},
    "another flow": {"flow": "upwards"},
    "flags": {"is_bipartite": 1},
}


def by_constructor(changes: dict[str, Any]) -> Graph:
    values = {field.name: getattr(GRAPH, field.name) for field in fields(GRAPH)}
    return Graph(**values | changes)


MAKERS: dict[str, Callable[[dict[str, Any]], Graph]] = {
    "constructor": by_constructor,
    "replace": lambda changes: replace(GRAPH, **changes),
    "to": lambda changes: replace(GRAPH, **changes).to("cpu"),
    "copy": lambda changes: copy.copy(replace(GRAPH, **changes)),
    "pickle": lambda changes: pickle.loads(pickle.dumps(replace(GRAPH, **changes))),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG.keys())
def test_it_is_refused(changes: dict[str, Any], make: Callable[[dict[str, Any]], Graph]) -> None:
    if changes is WRONG["another device"] and make is MAKERS["to"]:
        return  # it is on one then, but without values
    graph = make(changes)
    layer, looped = (GraphAttentionV2Layer(4, 6, 2, add_self_loops=x).eval() for x in (False, True))
    for call in (
        lambda: graph.check(),
        lambda: layer(H, graph),
        lambda: looped(H, graph),
        lambda: apply_in_blocks(layer, H, graph),
        lambda: GATv2(4, 8, 3, n_heads=2)(H, graph),
        lambda: gat_attention(HEADS, HEADS, HEADS[0], HEADS[0], graph),
        lambda: reorder(graph),
        lambda: Partition.split(graph, 2),
    ):
        with pytest.raises(ValueError, match="not a graph: "):
            call()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.backend}-{kernel.name}")
def test_every_kernel_is_kept_from_it(kernel: Kernel) -> None:
    leaves = [x.clone().requires_grad_() for x in (HEADS, HEADS, HEADS[0])]
    for changes in WRONG.values():
        with pytest.raises(ValueError, match="not a graph: "):
            gatv2_attention(*leaves, replace(GRAPH, **changes), **by(kernel))  # type: ignore[call-overload]


def test_what_the_backward_pass_reads_is_not_made_of_it() -> None:
    for name in ("key past the end", "negative key", "pointer past the end", "pointers descend"):
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            replace(GRAPH, **WRONG[name]).by_key  # noqa: B018


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that have been checked."""
    seen: list[Graph] = []
    check = gatv2.graph.check.check_graph

    def recorded(graph: Graph) -> None:
        seen.append(graph)
        check(graph)

    monkeypatch.setattr(gatv2.graph.check, "check_graph", recorded)
    return seen


def test_it_is_checked_once(checked: list[Graph]) -> None:
    graph = replace(GRAPH, query_id=torch.tensor([5, 6, 7]))
    layer = GraphAttentionV2Layer(4, 6, 2, add_self_loops=True)
    for _ in range(3):
        layer(H, graph)
    assert len(checked) == 1
    reordered = reorder(graph).graph
    for each in (graph.to("cpu"), graph.coalesce(), graph.add_self_loops(), reordered):
        layer(H, each)
    layer(torch.cat((H, H)), Graph.batch([graph, graph]))
    assert len(checked) == 1


def test_ours_are_not_checked(checked: list[Graph]) -> None:
    edges = torch.tensor([[0, 0, 2, 1], [1, 2, 0, 1]])
    layer = GraphAttentionV2Layer(4, 6, 2)
    mask = torch.rand(3, 3, 2) < 0.5
    masks = torch.rand(2, 3, 3, 1) < 0.5
    for graph in (
        Graph.from_edge_index(edges, 3),
        Graph.from_edge_index(edges, 3, flow="source_to_target"),
        Graph.from_mask(mask),
        Graph.from_mask(masks),
        Graph.from_edge_index(edges, 3).coalesce(),
        Graph.from_edge_index(edges, 3).add_self_loops(),
        Graph.from_edge_index(edges, 3).to("cpu"),
        reorder(Graph.from_edge_index(edges, 3)).graph,
    ):
        layer(H, graph)
    layer(torch.cat((H, H)), Graph.batch([GRAPH, GRAPH]))
    layer(H, Partition.split(GRAPH, 1)[0])
    apply_in_blocks(layer.eval(), H, edges, block_size=1)
    for form in (edges, mask, mask.any(-1).float().to_sparse_coo()):
        layer(H, form)
    assert not checked


def test_under_compile_nothing_is_checked(checked: list[Graph]) -> None:
    graph = replace(GRAPH, n_keys=3)
    layer = GraphAttentionV2Layer(4, 6, 2, kernel="torch").eval()
    out = torch.compile(layer, backend="eager", fullgraph=True)(H, graph)
    assert not checked
    torch.testing.assert_close(out, layer(H, graph))
    assert len(checked) == 1


def with_key_order(edge_index: Tensor, n_nodes: int) -> Graph:
    """A graph as a training step prepares it: by two threads, if there is a team."""
    return graph_for_gradients(edge_index, n_nodes, n_nodes, "target_to_source")


def test_an_index_that_changes_after_its_check_stays_inside() -> None:
    """What the sort reads it reads once, and checks it: any writing meanwhile makes other edges."""
    counting_sort = pytest.importorskip("gatv2.numba.counting_sort", reason="needs Numba")
    for query, key in (([0, 9], [0, 0]), ([0, -1], [0, 0]), ([0, 1], [0, 5]), ([0, 1], [0, -3])):
        with pytest.raises(
            IndexError, match=r"edge 1 is out of range: .* \[0, 2\), keys in \[0, 3\)"
        ):
            counting_sort.sort_edges(np.array(query), np.array(key), 2, 3)


@pytest.mark.parametrize("make", [Graph.from_edge_index, with_key_order])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_writing_thread_makes_no_other_than_a_graph(
    dtype: torch.dtype, make: Callable[[Tensor, int], Graph]
) -> None:
    n_nodes, n_edges = 50, 20_000
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(n_nodes, (2, n_edges), generator=generator).to(dtype)
    is_over = threading.Event()

    def write() -> None:
        array = edge_index.numpy()
        while not is_over.is_set():
            for value in (2**31 - 1, 7, -(2**31), 3):
                array[:, ::97] = value

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            try:
                graph = make(edge_index, n_nodes)
            except IndexError:
                continue
            graph.check()
            for kept, made in zip(graph.by_key, replace(graph).by_key, strict=True):
                assert torch.equal(kept, made)
    finally:
        is_over.set()
        writer.join()
    graph = Graph.from_edge_index(edge_index.clamp(0, n_nodes - 1), n_nodes)
    graph.check()
