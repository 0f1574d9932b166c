"""Whatever PyTorch's default device is, a graph on the CPU is made, changed and read on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from runnable import RUNNABLE
from torch import Tensor

from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.dispatch import Kernel
from gatv2.distributed import Partition
from gatv2.functional import gat_scores, gatv2_attention, gatv2_scores
from gatv2.graph import add_self_loops
from gatv2.inference import apply_in_blocks
from gatv2.locality import reorder
from gatv2.ranking import measure_ranking

GENERATOR = torch.Generator().manual_seed(0)
EDGES = torch.tensor([[0, 1, 2, 0, 4], [1, 0, 0, 1, 4]])
GRAPH = Graph.from_edge_index(EDGES, 5)
MASK = torch.rand(5, 5, 2, generator=GENERATOR) < 0.5
WEIGHTS = MASK.any(-1).float()
H = torch.randn(5, 4, generator=GENERATOR)
FEATURES = torch.randn(5, 3, generator=GENERATOR)
LAYER = GraphAttentionV2Layer(4, 6, 2, edge_dim=3, add_self_loops=True)
PLAIN = GraphAttentionV2Layer(4, 6, 2)
STATIC = GraphAttentionLayer(4, 6, 2)
MODEL = GATv2(4, 8, 3, n_heads=2).eval()


def parts(graph: Graph) -> tuple[Any, ...]:
    order = graph.by_key
    return graph.edge_index, graph.key_index, graph.multiplicity, *order, graph.head_mask


def saved(tmp_path: Path) -> Graph:
    GRAPH.save(tmp_path / "graph")
    return Graph.load(tmp_path / "graph")


def filled_with(fill_value: Any) -> Callable[[], Any]:
    return lambda: add_self_loops(GRAPH, FEATURES, fill_value)[1]


WAYS: dict[str, Callable[[], Any]] = {
    "edge index": lambda: parts(Graph.from_edge_index(EDGES, 5)),
    "edge index of NumPy": lambda: parts(Graph.from_edge_index(EDGES.numpy(), 5)),
    "mask": lambda: parts(Graph.from_mask(MASK)),
    "batch": lambda: parts(Graph.batch([GRAPH, GRAPH])),
    "batch of masks": lambda: parts(Graph.batch([Graph.from_mask(MASK), GRAPH])),
    "batch of reordered": lambda: parts(Graph.batch([reorder(GRAPH).graph, GRAPH])),
    "coalesce": lambda: parts(GRAPH.coalesce()),
    "self-loops": lambda: parts(Graph.from_edge_index(EDGES, 5).add_self_loops()),
    "self-loops of a mask": lambda: add_self_loops(MASK),
    "to mask": lambda: GRAPH.coalesce().to_mask(),
    "to": lambda: parts(GRAPH.to("cpu")),
    "check": lambda: GRAPH.check(),
    "reorder": lambda: parts(reorder(GRAPH).graph),
    "reorder by": lambda: reorder(GRAPH, torch.arange(5, device="cpu").flip(0)).rank,
    "split": lambda: [parts(part.local) for part in Partition.split(GRAPH, 2)],
    "split, self-loops": lambda: [
        parts(part.self_loops.graph.local) for part in Partition.split(GRAPH, 2)
    ],
    **{
        f"fill_value {fill_value}": filled_with(fill_value)
        for fill_value in ("mean", "sum", "mul", "max", 2.0)
    },
    "layer": lambda: LAYER(H, EDGES, edge_features=FEATURES, seed=3),
    "layer, a matrix": lambda: PLAIN(H, WEIGHTS.to_sparse_csc(), seed=3),
    "layer, blocks": lambda: PLAIN(H[:4], WEIGHTS[:4, :4].to_sparse_bsr((2, 2)), seed=3),
    "layer, a matrix of SciPy": lambda: PLAIN(H, scipy.sparse.coo_array(np.eye(5)), seed=3),
    "static layer": lambda: STATIC(H, GRAPH, seed=3),
    "model": lambda: MODEL(H, EDGES),
    "inference": lambda: MODEL.inference(H, EDGES, block_size=2),
    "inference of a layer": lambda: apply_in_blocks(PLAIN.eval(), H, MASK, block_size=2),
    "ranking": lambda: str(measure_ranking(PLAIN, H, EDGES)),
    "scores": lambda: gatv2_scores(*heads(), GRAPH),
    "static scores": lambda: gat_scores(*heads(), heads()[-1], GRAPH),
}


def heads() -> tuple[Tensor, Tensor, Tensor]:
    query = H.unflatten(-1, (2, 2))
    return query, query, query[0]


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, (tuple, list)):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, Tensor):
        assert one.device == other.device == torch.device("cpu")
        assert torch.equal(one, other)
    else:
        assert np.all(one == other)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_graphs_are_where_their_edges_are(way: Callable[[], Any]) -> None:
    expected = way()
    with torch.device("meta"):
        found = way()
    assert_equal(found, expected)


def test_the_comparison_rejects() -> None:
    with pytest.raises(AssertionError):
        assert_equal([torch.zeros(2)], [torch.zeros(2, device="meta")])
    with pytest.raises(AssertionError):
        assert_equal([torch.zeros(2)], [torch.ones(2)])


def test_files(tmp_path: Path) -> None:
    expected = parts(saved(tmp_path))
    with torch.device("meta"):
        assert_equal(parts(saved(tmp_path)), expected)


@pytest.mark.parametrize("kernel", RUNNABLE, ids=lambda kernel: f"{kernel.backend}-{kernel.name}")
def test_kernels(kernel: Kernel) -> None:
    options: Any = {"backend": kernel.backend, "kernel": kernel.name, "dropout": 0.5}
    leaves = [x.clone().requires_grad_() for x in heads()]

    def step(seed: Any) -> tuple[Tensor, ...]:
        out = gatv2_attention(
            leaves[0], leaves[1], leaves[2], GRAPH.coalesce(), seed=seed, **options
        )
        return out, *torch.autograd.grad(out.sum(), leaves)

    expected = step(3)
    with torch.device("meta"):
        assert_equal(step(3), expected)
        assert step(None)[0].device == torch.device("cpu")
