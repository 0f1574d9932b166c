"""What does not fit is refused on every rank, and before anyone waits for anyone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor
from torch.autograd import forward_ad

from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.distributed import Partition
from gatv2.distributed import gatv2_attention as attention_of_part
from gatv2.functional import gatv2_attention, gatv2_scores

N_PROCESSES = 3
needs_gloo = pytest.mark.skipif(
    not dist.is_gloo_available(), reason="PyTorch was built without gloo"
)


def graph_of(n_nodes: int = 12) -> Graph:
    generator = torch.Generator().manual_seed(0)
    return Graph.from_edge_index(torch.randint(n_nodes, (2, 40), generator=generator), n_nodes)


def message_of(call: Callable[[], object]) -> tuple[str, str]:
    """The error that a call raises: its type and its text."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def dual(layer: GraphAttentionV2Layer, h: Tensor, partition: Partition) -> None:
    """Forward-mode differentiation, without torch.func."""
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(h, h), partition)


def refusals(rank: int) -> dict[str, tuple[str, str]]:
    """What this process says to calls that do not fit."""
    graph, bounds = graph_of(), (0, 4, 8, 12)
    own = torch.arange(4) + bounds[rank]
    edge_index = torch.stack((own, (own + 5) % 12))
    from_edges, from_graph = Partition.from_edge_index, Partition.from_graph
    partition = from_edges(edge_index, bounds)
    torch.manual_seed(0)
    layer, h = GraphAttentionV2Layer(3, 4, 2), torch.randn(4, 3)
    model = GATv2(3, 4, 2, n_heads=2)
    array: Any = h.numpy()
    pair: Any = dist.new_group([0, 1])
    odd = rank == 1  # the process that passes something else

    def attend(**options: Any) -> Tensor:
        """Attention that must be refused before anything is sent."""
        with mock.patch.object(dist, "all_to_all_single", side_effect=AssertionError("sent")):
            features = torch.randn(4, 2, 3)
            out: Tensor = attention_of_part(
                features, features, torch.randn(2, 3), partition, **options
            )
            return out

    calls: dict[str, Callable[[], object]] = {
        "another graph": lambda: from_graph(graph_of(13 if odd else 12)),
        "a graph of other degrees": lambda: from_graph(
            Graph.from_edge_index(graph.edge_index.flip(0) if odd else graph.edge_index, 12)
        ),
        "nodes of other numbers": lambda: from_graph(
            replace(graph, query_id=torch.arange(12) + rank)
        ),
        "a bipartite graph": lambda: from_graph(
            Graph.from_edge_index(edge_index, (12, 14)) if odd else graph
        ),
        "other bounds": lambda: from_edges(edge_index, (0, 3, 8, 12) if rank == 0 else bounds),
        "more bounds": lambda: from_edges(edge_index, (0, 4, 8, 13 if odd else 12)),
        "too few bounds": lambda: from_edges(edge_index, bounds[:3]),
        "falling bounds": lambda: from_edges(edge_index, (0, 8, 4, 12)),
        "another's query": lambda: from_edges(edge_index.flip(0) if odd else edge_index, bounds),
        "no such key": lambda: from_edges(
            torch.stack((own, own + (1 if rank == 2 else 0))), bounds
        ),
        "floats": lambda: from_edges(edge_index.double() if odd else edge_index, bounds),
        "three rows": lambda: from_edges(edge_index.new_zeros(3, 4) if odd else edge_index, bounds),
        "unknown flow": lambda: from_edges(edge_index, bounds, flow="up"),  # type: ignore[arg-type]
        "fractional bounds": lambda: from_edges(edge_index, (0, 4.9, 8, 12)),  # type: ignore[arg-type]
        "a number of nodes": lambda: from_edges(edge_index, 12),  # type: ignore[arg-type]
        "unknown kernel": lambda: attend(kernel="odd"),
        "unknown backend": lambda: attend(backend="odd"),
        "dropout": lambda: attend(dropout=1.5),
        "slope": lambda: attend(negative_slope=float("nan")),
        "features of a model": lambda: model(array if odd else h, partition),
        "a model's bias": lambda: model(h, partition, score_bias=torch.zeros(4, 2 if odd else 1)),
        "features of an embedding": lambda: model.embed(array if odd else h, partition),
        "rows": lambda: layer(torch.randn(12, 3), partition),
        "edge rows": lambda: GraphAttentionV2Layer(3, 4, 2, edge_dim=2)(
            h, partition, edge_features=torch.randn(5, 2)
        ),
        "another's part": lambda: layer(h, replace(partition, rank=(rank + 1) % 3)),
        "another group": lambda: layer(h, replace(partition, group=pair)),
        "vmap": lambda: torch.vmap(lambda h: layer(h, partition))(h.expand(2, 4, 3)),
        "grad": lambda: torch.func.grad(lambda h: layer(h, partition).sum())(h),
        "forward mode": lambda: torch.func.jvp(lambda h: layer(h, partition), (h,), (h,)),
        "dual tensors": lambda: dual(layer, h, partition),
        "one compiled graph": lambda: torch.compile(layer, fullgraph=True, backend="eager")(
            h, partition
        ),
        "compiled": lambda: torch.compile(layer, backend="eager")(
            h[:, 1:] if odd else h, partition
        ),
    }
    messages = {name: message_of(call) for name, call in calls.items()}
    compiled = torch.compile(layer.eval(), backend="eager")
    assert torch.equal(compiled(h, partition), layer(h, partition))  # nobody was left behind
    return messages


FAILED = "another process of the group failed: rank {}: "
NO_TRANSFORM = "no transform of torch.func goes across processes"
EXPECTED: dict[str, tuple[str, str, tuple[int, ...]]] = {
    # error, its text, and where: the other ranks tell which of these it was
    "another graph": ("ValueError", "the processes split different graphs", (0, 1, 2)),
    "a bipartite graph": ("ValueError", "got 12 queries, 14 keys", (1,)),
    "other bounds": ("IndexError", "edge 3 has query 3, but the nodes of rank 0 are those", (0,)),
    "more bounds": ("ValueError", "the processes split different graphs", (0, 1, 2)),
    "too few bounds": ("ValueError", "`bounds` must be n_parts + 1 = 4 numbers", (0, 1, 2)),
    "falling bounds": ("ValueError", "that do not descend", (0, 1, 2)),
    "another's query": ("IndexError", "edge 0 has query 9, but the nodes of rank 1", (1,)),
    "no such key": ("IndexError", "edge 3 has key 12, but there are 12 key nodes", (2,)),
    "floats": ("TypeError", "must hold integers", (1,)),
    "three rows": ("ValueError", "must have shape (2, n_edges)", (1,)),
    "unknown flow": ("ValueError", "`flow` must be one of", (0, 1, 2)),
    "a graph of other degrees": ("ValueError", "split different graphs", (0, 1, 2)),
    "nodes of other numbers": ("ValueError", "split different graphs", (0, 1, 2)),
    "fractional bounds": ("TypeError", "`bounds` must be n_parts + 1 = 4 integers", (0, 1, 2)),
    "a number of nodes": (
        "TypeError",
        "`bounds` must be n_parts + 1 = 4 integers; got 12",
        (0, 1, 2),
    ),
    "unknown kernel": ("ValueError", "`kernel` must be 'auto' or", (0, 1, 2)),
    "unknown backend": ("ValueError", "needs backend='sparse' or 'auto'; got 'odd'", (0, 1, 2)),
    "dropout": ("ValueError", "`dropout` must lie in [0, 1); got 1.5", (0, 1, 2)),
    "slope": ("ValueError", "`negative_slope` must be a finite number", (0, 1, 2)),
    "features of a model": ("TypeError", "got ndarray", (1,)),
    "a model's bias": ("ValueError", "came to layers with [2, 1] heads", (1,)),
    "features of an embedding": ("TypeError", "got ndarray", (1,)),
    "rows": ("ValueError", "`query` must have a row for each of the 4 nodes", (0, 1, 2)),
    "edge rows": ("ValueError", "a row for each of the 4 edges", (0, 1, 2)),
    "another's part": ("ValueError", "but this process is rank", (0, 1, 2)),
    "another group": ("ValueError", "of 2: make or load it in each process of the group", (0, 1)),
    "vmap": ("RuntimeError", NO_TRANSFORM, (0, 1, 2)),
    "grad": ("RuntimeError", NO_TRANSFORM, (0, 1, 2)),
    "forward mode": ("RuntimeError", NO_TRANSFORM, (0, 1, 2)),
    "dual tensors": ("NotImplementedError", "forward mode", (0, 1, 2)),
    "one compiled graph": ("Unsupported", "the function `disable`", (0, 1, 2)),
    "compiled": ("ValueError", "in_features=3); got (4, 2)", (1,)),
}


@needs_gloo
def test_every_rank_refuses(tmp_path: Path) -> None:
    of_ranks = run_processes(refusals, N_PROCESSES, tmp_path)
    for rank, messages in of_ranks.items():
        assert messages.keys() == EXPECTED.keys()
        for name, (kind, text) in messages.items():
            expected_kind, expected_text, where = EXPECTED[name]
            if rank in where:
                assert (kind, expected_text in text) == (expected_kind, True), (name, kind, text)
            elif name == "another group":
                assert "this process is not in the group" in text
            else:
                assert kind == "RuntimeError"
                assert text.startswith(FAILED.format(where[0])), text
                assert expected_text in text


def test_a_partition_is_no_graph() -> None:
    """Who can't exchange rows says so."""
    (partition,) = Partition.split(graph_of(), 1)
    h, query, attn = torch.randn(12, 3), torch.randn(12, 2, 4), torch.randn(2, 4)
    calls: tuple[Callable[[], object], ...] = (
        lambda: gatv2_attention(query, query, attn, partition),
        lambda: gatv2_scores(query, query, attn, partition),
        lambda: GraphAttentionLayer(3, 4, 2)(h, partition),
        lambda: GraphAttentionV2Layer(3, 4, 2).attention_scores(h, partition),
        lambda: GATv2(3, 4, 2, n_heads=2, layer=GraphAttentionLayer)(h, partition),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"a Partition is read by GraphAttentionV2Layer"):
            call()
    with pytest.raises(ValueError, match="needs backend='sparse' or 'auto'"):
        GraphAttentionV2Layer(3, 4, 2, backend="dense")(h, partition)


def test_it_takes_a_group_and_parts() -> None:
    graph = graph_of()
    query = torch.randn(12, 2, 4)
    no_parts: tuple[Any, ...] = graph, graph.edge_index
    for other in no_parts:
        with pytest.raises(TypeError, match=r"`partition` must be a .*Partition; got "):
            attention_of_part(query, query, query[0], other)
    first, _ = Partition.split(graph, 2)
    for call in (
        lambda: Partition.from_graph(graph),
        lambda: Partition.from_edge_index(graph.edge_index, (0, 12)),
        lambda: GraphAttentionV2Layer(3, 4, 2)(torch.randn(first.n_own, 3), first),
    ):
        with pytest.raises(RuntimeError, match="start the program with torchrun"):
            call()
    with pytest.raises(ValueError, match="`n_parts` must be positive; got 0"):
        Partition.split(graph, 0)
    with pytest.raises(ValueError, match="n_blocks=2"):
        Partition.split(Graph.from_mask(torch.ones(2, 3, 3, 1, dtype=torch.bool)), 2)
