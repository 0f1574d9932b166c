"""One to four processes, each with its part of a graph, compute what one does with all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gatv2 import GATv2, Graph, GraphAttentionV2Layer
from gatv2.distributed import Partition
from gatv2.testing import assert_agrees

pytestmark = pytest.mark.skipif(
    not dist.is_gloo_available(), reason="PyTorch was built without gloo"
)
N_PROCESSES = 4
N_FEATURES, EDGE_DIM = 5, 3


def graphs() -> dict[str, Graph]:
    """Graphs that split in every way there is."""
    generator = torch.Generator().manual_seed(0)

    def some(n_nodes: int, n_edges: int) -> Tensor:
        return torch.randint(n_nodes, (2, n_edges), generator=generator)

    node = torch.arange(19)
    hub = torch.cat((torch.stack((node * 0 + 7, node)), torch.stack((node, node * 0 + 11))), dim=1)
    graph = Graph.from_edge_index
    return {
        "parallel edges": graph(torch.cat((some(13, 60), some(13, 9).repeat(1, 3)), 1), 13),
        "nodes without edges": graph(some(9, 40) * 2 + 3, 29),
        "hubs": graph(hub, 19),
        "no halo": graph(torch.stack((node, node)), 19),
        "halo alone": graph(torch.stack((node, (node + 10) % 19)), 19),
        "fewer nodes than processes": graph(torch.tensor([[0, 0, 1], [0, 1, 0]]), 2),
        "no edges": graph(some(5, 0), 5),
        "masks of heads": Graph.from_mask(torch.rand(11, 11, 2, generator=generator) < 0.3),
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "concatenated": {"bias": True, "residual": True},
    "averaged": {"is_concat": False, "share_weights": True, "kernel": "torch"},
    "edge features": {"edge_dim": EDGE_DIM, "bias": "projections"},
    "self-loops": {"edge_dim": EDGE_DIM, "add_self_loops": True},
}


def outcome(
    layer: GraphAttentionV2Layer,
    h: Tensor,
    graph: Any,
    edge_features: Tensor,
    cotangents: list[Tensor],
    seed: int | None,
) -> list[Tensor]:
    """Results of a layer, and gradients to features of nodes and edges and to parameters."""
    h, edge_features = h.clone().requires_grad_(), edge_features.clone().requires_grad_()
    of_edges: dict[str, Any] = {}
    if layer.edge_dim is not None:
        bias = edge_features[..., :2]
        bias = bias.masked_fill(bias > 1, -torch.inf)
        of_edges = {"edge_features": edge_features, "score_bias": bias}
    out, alpha = layer(h, graph, **of_edges, return_attention=True, seed=seed)
    inputs = [h, edge_features, *layer.parameters()]
    gradients = torch.autograd.grad((out, alpha), inputs, cotangents, allow_unused=True)
    results = zip(gradients, inputs, strict=True)
    return [out, alpha, *(torch.zeros_like(x) if g is None else g for g, x in results)]


def check_layer(
    graph: Graph, partitions: list[Partition], options: dict[str, Any], seed: int | None
) -> None:
    """One layer on one graph: results and gradients of this process's parts against the whole's."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    torch.manual_seed(2)
    layer = GraphAttentionV2Layer(N_FEATURES, 6, 2, dropout=0.4, dtype=torch.float64, **options)
    batch = (2,) if options.get("residual") else ()
    n_edges = graph.add_self_loops().n_edges if layer.add_self_loops else graph.n_edges
    h, edge_features = normal(*batch, graph.n_queries, 5), normal(*batch, graph.n_edges, EDGE_DIM)
    cotangents = [normal(*batch, graph.n_queries, 6), normal(*batch, n_edges, 2)]
    torch.manual_seed(3)
    expected = outcome(layer, h, graph, edge_features, cotangents, seed)
    for partition in partitions:
        own, edge_id = partition.own, partition.edge_id
        of_alpha = with_self_loops(graph, partition) if layer.add_self_loops else edge_id
        torch.manual_seed(3 + 10 * partition.rank)  # a seed that is drawn is rank 0's
        results = outcome(
            layer,
            h[..., own, :],
            partition,
            edge_features[..., edge_id, :],
            [cotangents[0][..., own, :], cotangents[1][..., of_alpha, :]],
            seed,
        )
        for gradient in results[4:]:
            dist.all_reduce(gradient, group=partition.group)
        chosen: list[Any] = [own, of_alpha, own, edge_id]
        for i, rows in enumerate(chosen):
            assert_agrees(results[i], expected[i][..., rows, :])
        for gradient, exact in zip(results[4:], expected[4:], strict=True):
            assert_agrees(gradient, exact)


def with_self_loops(graph: Graph, partition: Partition) -> Tensor:
    """What a part's edges with self-loops are among those of the whole graph with self-loops."""
    is_kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    is_kept[graph.self_loops.kept] = True
    kept = partition.edge_id[partition.self_loops.kept]
    own = torch.arange(graph.n_queries)[partition.own]
    return torch.cat(((is_kept.cumsum(0) - 1)[kept], int(is_kept.sum()) + own))


def check_twice(graph: Graph, partition: Partition) -> None:
    """The second derivative: the gradient of a gradient's norm, as in a gradient penalty."""
    torch.manual_seed(4)
    model = GATv2(N_FEATURES, 6, 2, n_heads=2, feature_dropout=0.0, dtype=torch.float64)
    h = torch.randn(graph.n_queries, N_FEATURES, dtype=torch.float64)
    cotangent = torch.randn(graph.n_queries, 2, dtype=torch.float64)

    def penalty(h: Tensor, adj_mat: object, cotangent: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        h = h.clone().requires_grad_()
        (d_h,) = torch.autograd.grad(model(h, adj_mat), h, cotangent, create_graph=True)
        return torch.autograd.grad(d_h.square().sum(), (h, *model.parameters()))

    exact, *of_parameters = penalty(h, graph, cotangent)
    own = partition.own
    actual, *shares = penalty(h[own], partition, cotangent[own])
    assert_agrees(actual, exact[own])
    for share, of_parameter in zip(shares, of_parameters, strict=True):
        dist.all_reduce(share, group=partition.group)
        assert_agrees(share, of_parameter)


def check_precision(graph: Graph, partition: Partition, dtype: torch.dtype) -> None:
    """Rows travel in every floating-point dtype."""
    torch.manual_seed(6)
    layer = GraphAttentionV2Layer(N_FEATURES, 6, 2, dropout=0.4).to(dtype)
    h = torch.randn(graph.n_queries, N_FEATURES).to(dtype)
    reference = layer(h, graph, seed=7)
    exact = layer.double()(h.double(), graph, seed=7)
    result = layer.to(dtype)(h[partition.own], partition, seed=7)
    assert result.dtype == dtype
    assert_agrees(result, exact[partition.own], reference[partition.own])


def check_modes(graph: Graph, partition: Partition) -> None:
    """Backward twice over what was retained, recomputation in backward, inference: all the same."""
    torch.manual_seed(8)
    model = GATv2(N_FEATURES, 6, 2, n_heads=2, feature_dropout=0.0, dtype=torch.float64)
    h = torch.randn(graph.n_queries, N_FEATURES, dtype=torch.float64)[partition.own]
    h.requires_grad_()
    cotangent = torch.randn(partition.n_own, 2, dtype=torch.float64)

    def gradient(out: Tensor) -> Tensor:
        return torch.autograd.grad(out, h, cotangent, retain_graph=True)[0]

    torch.manual_seed(9)
    out = model(h, partition)
    expected = gradient(out)
    assert torch.equal(gradient(out), expected)
    torch.manual_seed(9)
    recomputed: Any = checkpoint(model, h, partition, use_reentrant=False)
    assert torch.equal(recomputed, out)
    assert torch.equal(gradient(recomputed), expected)
    torch.manual_seed(9)
    with torch.inference_mode():
        assert torch.equal(model(h, partition), out)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.float()(h.float(), partition).dtype == torch.bfloat16


def check_all(rank: int) -> list[int]:
    """Everything, in groups of one, two, three and four processes: the sizes of this process's."""
    groups: list[Any] = [dist.new_group(list(range(n))) for n in range(1, N_PROCESSES)]
    groups = [group for group in groups if dist.get_rank(group) >= 0] + [None]
    for name, graph in graphs().items():
        partitions = [Partition.from_graph(graph, group) for group in groups]
        # a seed that is drawn is rank 0's, whatever the graph
        seeds = (9, None) if name == "parallel edges" else (9,)
        for options in OPTIONS.values():
            for seed in seeds:
                check_layer(graph, partitions, options, seed)
        if name in ("parallel edges", "fewer nodes than processes"):
            for partition in partitions:
                check_twice(graph, partition)
                check_modes(graph, partition)
                for dtype in (torch.float32, torch.float16, torch.bfloat16):
                    check_precision(graph, partition, dtype)
    return [dist.get_world_size(group) for group in groups]


def test_parts_agree_with_the_whole(tmp_path: Path) -> None:
    sizes = run_processes(check_all, N_PROCESSES, tmp_path)
    assert list(sizes.values()) == [[1, 2, 3, 4], [2, 3, 4], [3, 4], [4]]
