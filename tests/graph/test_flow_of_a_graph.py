"""A graph knows how its edges were read, and of whose nodes they are; nobody reads them otherwise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.convert import from_pyg
from gatv2.distributed import Partition
from gatv2.functional import gat_attention, gat_scores, gatv2_attention, gatv2_scores
from gatv2.graph import add_self_loops
from gatv2.inference import apply_in_blocks
from gatv2.locality import reorder
from gatv2.options import FLOWS, Flow
from gatv2.ranking import measure_ranking
from gatv2.tensor_file import load_tensors, save_tensors
from gatv2.testing import assert_agrees

EDGES = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 4]])
H = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
HEADS = H.unflatten(-1, (2, 2))


def made(flow: Flow = "source_to_target") -> Graph:
    return Graph.from_edge_index(EDGES, 5, flow=flow)


def through_a_file(graph: Graph, tmp_path: Path) -> Graph:
    graph.save(tmp_path / "graph")
    return Graph.load(tmp_path / "graph")


CHANGES: dict[str, Callable[[Graph], Graph]] = {
    "to": lambda graph: graph.to("cpu"),
    "batch": lambda graph: Graph.batch([graph, graph]),
    "coalesce": lambda graph: graph.coalesce(),
    "add_self_loops": lambda graph: graph.add_self_loops(),
    "add_self_loops of all forms": lambda graph: add_self_loops(graph)[0],  # type: ignore[dict-item,return-value]
    "replace": lambda graph: replace(graph, key_id=torch.arange(5)),
    "reorder": lambda graph: reorder(graph).graph,
    "part": lambda graph: Partition.split(graph, 2)[1].local,
    "halo": lambda graph: Partition.split(graph, 2)[1].remote,
    "part with self-loops": lambda graph: Partition.split(graph, 2)[1].self_loops.graph.local,
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_it_is_kept(change: Callable[[Graph], Graph], flow: Flow) -> None:
    assert change(made(flow)).flow == flow


@pytest.mark.parametrize("flow", FLOWS)
def test_files_keep_it(tmp_path: Path, flow: Flow) -> None:
    graph = through_a_file(made(flow), tmp_path)
    assert graph.flow == flow
    assert torch.equal(graph.edge_index, made(flow).edge_index)
    for part in Partition.split(made(flow), 1):
        part.save(tmp_path)
    tensors, metadata = load_tensors(tmp_path / "part-00000-of-00001.safetensors", "partition")
    assert metadata["flow"] == flow
    assert tensors


def test_a_file_from_before_has_the_default(tmp_path: Path) -> None:
    made("target_to_source").save(tmp_path / "graph")
    tensors, metadata = load_tensors(tmp_path / "graph", "graph")
    old = {name: text for name, text in metadata.items() if name not in ("flow", "is_bipartite")}
    save_tensors(tmp_path / "old", tensors, old)
    graph = Graph.load(tmp_path / "old")
    assert (graph.flow, graph.is_bipartite) == ("target_to_source", False)
    for name, text in (("flow", "backwards"), ("is_bipartite", "perhaps")):
        save_tensors(tmp_path / "wrong", tensors, metadata | {name: text})
        with pytest.raises(ValueError, match="holds no graph"):
            Graph.load(tmp_path / "wrong")


def test_a_mask_is_made_with_a_flow(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = torch.rand(2, 5, 4, 3) < 0.4
    graph = Graph.from_mask(mask, flow="source_to_target")
    turned = Graph.from_mask(mask.transpose(1, 2))
    assert graph.flow == "source_to_target"
    assert torch.equal(graph.to_mask(), turned.to_mask())
    block, row, column = mask.any(-1).nonzero().T
    assert torch.equal(graph.edge_index, torch.stack((column + 4 * block, row + 5 * block)))
    with pytest.raises(ValueError, match="`flow` must be one of"):
        Graph.from_mask(mask, flow="up")  # type: ignore[arg-type]


def refusing_calls() -> dict[str, Callable[[object], Any]]:
    """Calls of flow="source_to_target", of a graph."""
    flow: Flow = "source_to_target"
    layer = GraphAttentionV2Layer(4, 6, 2, flow=flow).eval()
    looped = GraphAttentionV2Layer(4, 6, 2, flow=flow, add_self_loops=True).eval()
    static = GraphAttentionLayer(4, 6, 2, flow=flow).eval()
    dense = GraphAttentionV2Layer(4, 6, 2, flow=flow, backend="dense").eval()
    lazy = GraphAttentionV2Layer(-1, 6, 2, flow=flow).eval()
    edged = GraphAttentionV2Layer(4, 6, 2, edge_dim=3, flow=flow).eval()
    model = GATv2(4, 8, 3, n_heads=2, flow=flow).eval()
    query, attn = HEADS, HEADS[0]
    return {
        "layer": lambda graph: layer(H, graph),
        "layer with self-loops": lambda graph: looped(H, graph),
        "layer of unknown sizes": lambda graph: lazy(H, graph),
        "static layer": lambda graph: static(H, graph),
        "dense layer": lambda graph: dense(H, graph),
        "layer with edge features": lambda graph: edged(
            H, graph, edge_features=torch.arange(12.0).reshape(4, 3)
        ),
        "scores of a layer": lambda graph: layer.attention_scores(H, graph),
        "model": lambda graph: model(H, graph),
        "inference": lambda graph: model.inference(H, graph),
        "inference of a layer": lambda graph: apply_in_blocks(layer, H, graph),
        "ranking": lambda graph: str(measure_ranking(layer, H, graph)),
        "gatv2_attention": lambda graph: gatv2_attention(query, query, attn, graph, flow=flow),
        "gatv2_scores": lambda graph: gatv2_scores(query, query, attn, graph, flow=flow),
        "gat_attention": lambda graph: gat_attention(query, query, attn, attn, graph, flow=flow),
        "gat_scores": lambda graph: gat_scores(query, query, attn, attn, graph, flow=flow),
    }


@pytest.mark.parametrize("name", refusing_calls().keys())
def test_the_other_flow_is_refused(name: str) -> None:
    call = refusing_calls()[name]
    with pytest.raises(
        ValueError, match=r"made with flow='target_to_source'.*make it with flow='sou"
    ):
        call(made("target_to_source"))
    found, expected = call(made("source_to_target")), call(EDGES)
    if isinstance(found, Tensor):
        assert torch.equal(found, expected)


def test_classes_of_pyg_refuse_it() -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    from gatv2.pyg import GATv2Conv

    for loops in (False, True):
        ours = GATv2Conv(4, 3, heads=2, add_self_loops=loops)
        converted = from_pyg(nn.GATv2Conv(4, 3, heads=2, add_self_loops=loops))
        for conv in (ours, converted):
            with pytest.raises(ValueError, match="make it with flow='source_to_target'"):
                conv(H, made("target_to_source"))
            assert_agrees(conv.double()(H.double(), made()), conv(H.double(), EDGES))


def test_what_the_maker_says_is_read() -> None:
    """The other way round nothing can be wrong: a graph was made with the flow that its maker named."""
    layer = GraphAttentionV2Layer(4, 6, 2).eval()
    assert torch.equal(layer(H, made("source_to_target")), layer(H, EDGES.flip(0)))
    (part,) = Partition.split(made("source_to_target"), 1)
    assert torch.equal(layer(H, part), layer(H, EDGES.flip(0)))


@pytest.mark.parametrize("add_self_loops", [False, True])
def test_a_partition_knows_it(add_self_loops: bool) -> None:
    options: Any = {"flow": "source_to_target", "add_self_loops": add_self_loops}
    layer = GraphAttentionV2Layer(4, 6, 2, **options).eval()
    lazy = GraphAttentionV2Layer(-1, 6, 2, **options).eval()
    (wrong,) = Partition.split(made("target_to_source"), 1)
    (right,) = Partition.split(made("source_to_target"), 1)
    assert (wrong.flow, right.flow) == FLOWS
    for each in (layer, lazy):
        with pytest.raises(ValueError, match="make it with flow='source_to_target'"):
            each(H, wrong)
    assert lazy.in_features == -1
    assert torch.equal(layer(H, right), layer(H, EDGES))


def test_a_batch_has_one_flow() -> None:
    with pytest.raises(
        ValueError, match=r"one flow; got \['source_to_target', 'target_to_source'\]"
    ):
        Graph.batch([made(flow) for flow in FLOWS])


def bipartite_batch() -> Graph:
    """Two graphs of 2 queries and 3 keys, and the other way about: five of each, and no pair of one."""
    one = Graph.from_edge_index(torch.tensor([[0, 1], [2, 0]]), (2, 3))
    other = Graph.from_edge_index(torch.tensor([[0, 2], [1, 0]]), (3, 2))
    return Graph.batch([one, other])


KEPT: dict[str, Callable[[Graph], Graph]] = {
    "batch": lambda graph: graph,
    "to": lambda graph: graph.to("cpu"),
    "coalesce": lambda graph: graph.coalesce(),
    "batch of batches": lambda graph: Graph.batch([graph, made("target_to_source")]),
    "replace": lambda graph: replace(graph, key_id=torch.arange(5)),
}


@pytest.mark.parametrize("through_file", [False, True])
@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT.keys())
def test_a_batch_of_bipartite_graphs_is_none_of_one_set_of_nodes(
    change: Callable[[Graph], Graph], through_file: bool, tmp_path: Path
) -> None:
    graph = change(bipartite_batch())
    if through_file:
        graph = through_a_file(graph, tmp_path)
    assert graph.is_bipartite
    assert graph.n_queries == graph.n_keys
    h = torch.randn(graph.n_queries, 4)
    for refused in (
        lambda: graph.add_self_loops(),
        lambda: add_self_loops(graph, torch.randn(graph.n_edges, 3)),
        lambda: GraphAttentionV2Layer(4, 6, 2, add_self_loops=True)(h, graph),
        lambda: GraphAttentionV2Layer((4, 4), 6, 2, add_self_loops=True)((h, h), graph),
        lambda: apply_in_blocks(
            GraphAttentionV2Layer(4, 6, 2, add_self_loops=True).eval(), h, graph
        ),
        lambda: reorder(graph),
        lambda: Partition.split(graph, 2),
    ):
        with pytest.raises(ValueError, match="bipartite"):
            refused()
    GraphAttentionV2Layer((4, 4), 6, 2)((h, h), graph)


def test_a_batch_of_other_graphs_is_of_one_set_of_nodes() -> None:
    batch = Graph.batch([made(), made()])
    assert not batch.is_bipartite
    assert batch.add_self_loops().n_edges == 18
