"""vmap maps over graphs as a loop does, or an error says what does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from gatv2 import Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.functional import gat_attention, gatv2_scores
from gatv2.inference import apply_in_blocks
from gatv2.locality import reorder
from gatv2.testing import assert_agrees

torch.manual_seed(0)
QUERY, KEY = (torch.randn(4, 2, 3, dtype=torch.float64) for _ in range(2))
ATTN, H = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3)
FEATURES, PROJECTION = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 2), (2, 3, 2)))
EDGE_INDICES, MASKS = torch.randint(4, (3, 2, 5)), torch.rand(3, 4, 4, 1) < 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_over_graphs_of_the_backend(kernel: Kernel, dropout: float) -> None:
    graphs = EDGE_INDICES if kernel.backend == "sparse" else MASKS

    def function(graph: Tensor) -> tuple[Tensor, Tensor]:
        out, alpha = gatv2_attention(
            *(QUERY, KEY, ATTN, graph),
            kernel=kernel.name,
            dropout=dropout,
            seed=1,
            return_attention=True,
        )
        return out, alpha

    for i, result in enumerate(zip(*vmap(function)(graphs), strict=True)):
        for actual, expected in zip(result, function(graphs[i]), strict=True):
            assert_agrees(actual, expected)


def test_over_edges_with_features(kernel: Kernel) -> None:
    if kernel.backend == "dense":
        return

    def function(graph: Tensor) -> Tensor:
        return gatv2_attention(
            *(QUERY, KEY, ATTN, graph),
            kernel=kernel.name,
            edge_features=FEATURES,
            edge_projection=PROJECTION,
            dropout=0.5,
            seed=1,
        )

    for actual, graph in zip(vmap(function)(EDGE_INDICES), EDGE_INDICES, strict=True):
        assert_agrees(actual, function(graph))


def graph_of(edge_index: Tensor) -> Graph:
    return Graph.from_edge_index(edge_index, 4)


REFUSED: dict[str, tuple[Callable[[Tensor], object], Tensor, str]] = {
    "masks as edges": (
        lambda mask: gatv2_attention(QUERY, KEY, ATTN, mask, backend="sparse"),
        MASKS,
        "use backend='dense'",
    ),
    "scores of masks": (
        lambda mask: gatv2_scores(QUERY, KEY, ATTN, mask, backend="sparse"),
        MASKS,
        "use backend='dense'",
    ),
    "static attention": (
        lambda mask: gat_attention(QUERY, KEY, ATTN, ATTN, mask, backend="sparse"),
        MASKS,
        "use backend='dense'",
    ),
    "edges as masks": (
        lambda edges: gatv2_attention(QUERY, KEY, ATTN, edges, backend="dense"),
        EDGE_INDICES,
        "use backend='sparse'",
    ),
    "self-loops": (
        lambda edges: GraphAttentionV2Layer(3, 4, 2, add_self_loops=True)(H, edges),
        EDGE_INDICES,
        "add the self-loops before vmap",
    ),
    "from_mask": (Graph.from_mask, MASKS, "use backend='dense'"),
    "to_mask": (lambda edges: graph_of(edges).to_mask(), EDGE_INDICES, "backend='sparse'"),
    "coalesce": (lambda edges: graph_of(edges).coalesce(), EDGE_INDICES, "before vmap"),
    "check": (lambda edges: graph_of(edges).check(), EDGE_INDICES, "before vmap"),
    "reorder": (lambda edges: reorder(graph_of(edges)), EDGE_INDICES, "before vmap"),
    "blocks": (
        lambda edges: apply_in_blocks(GraphAttentionV2Layer(3, 4, 2).eval(), H, edges),
        EDGE_INDICES,
        "call the layer itself",
    ),
}


@pytest.mark.parametrize(("function", "graphs", "remedy"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_mapped_says_what_can(
    function: Callable[[Tensor], object], graphs: Tensor, remedy: str
) -> None:
    with pytest.raises(NotImplementedError, match=f"vmap can't map over graphs here.*{remedy}"):
        vmap(function, randomness="same")(graphs)


def test_without_the_private_name_pytorch_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._functorch, "is_batchedtensor")
    with pytest.raises(RuntimeError, match="nonzero"):
        vmap(Graph.from_mask)(MASKS)
