"""A split has each edge once, equal numbers of edges, and parts that fetch what the others send."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.distributed import Partition, attention, gatv2_attention
from gatv2.distributed.agreement import Header
from gatv2.distributed.call import Call
from gatv2.functional import gatv2_attention as attention_of_one
from gatv2.testing import assert_agrees, edge_indices, value_and_gradients

PARTS = st.integers(1, 7)


class Met:
    """A meeting with processes that all do the same."""

    number = 0

    def __init__(self, seed: Tensor | None) -> None:
        self.seed = 0 if seed is None else int(seed)

    def agreed(self) -> list[Header]:
        return [Header(1, self.number, self.seed)]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs of any shape, some with heads of their own, some with nodes named anew."""
    n_nodes = draw(st.integers(0, 17))
    graph = Graph.from_edge_index(draw(edge_indices(n_nodes, n_nodes)), n_nodes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        graph = replace(graph, head_mask=torch.rand(graph.n_edges, 3, generator=generator) < 0.6)
    if draw(st.booleans()):
        names = torch.randperm(n_nodes, generator=generator)
        graph = replace(graph, query_id=names, key_id=names + 100)
    return graph


@given(graph=graphs(), n_parts=PARTS)
def test_every_edge_is_in_one_part(graph: Graph, n_parts: int) -> None:
    parts = Partition.split(graph, n_parts)
    numbers = torch.cat([part.edge_id for part in parts])
    assert numbers.sort().values.tolist() == list(range(graph.n_edges))
    heads = None if graph.head_mask is None else graph.in_callers_order(graph.head_mask, 0)
    for part in parts:
        assert part.edge_id.tolist() == sorted(part.edge_id.tolist())
        own = torch.arange(part.n_nodes)[part.own]
        for piece, keys, chosen in (
            (part.local, own, part.is_local),
            (part.remote, part.halo, ~part.is_local),
        ):
            query, key = piece.edge_index
            expected = graph.edge_index[:, part.edge_id[chosen].long()]
            assert torch.equal(torch.stack((own[query], keys[key])), expected)
            assert (piece.n_queries, piece.n_keys) == (part.n_own, len(keys))
            for name, nodes in (("query_id", own), ("key_id", keys)):
                names = getattr(graph, name)
                assert torch.equal(getattr(piece, name), nodes if names is None else names[nodes])
            if heads is not None:
                assert piece.head_mask is not None
                of_piece = piece.in_callers_order(piece.head_mask, 0)
                assert torch.equal(of_piece, heads[part.edge_id[chosen].long()])


@given(graph=graphs(), n_parts=PARTS)
def test_blocks_have_equal_numbers_of_edges(graph: Graph, n_parts: int) -> None:
    parts = Partition.split(graph, n_parts)
    bounds = list(parts[0].bounds)
    assert bounds == sorted(bounds)
    assert (len(bounds), bounds[0], bounds[-1]) == (n_parts + 1, 0, graph.n_queries)
    largest = max(graph.query_ptr.diff().tolist(), default=0)
    for rank, part in enumerate(parts):
        assert (part.rank, part.bounds) == (rank, tuple(bounds))
        assert part.n_edges * n_parts <= graph.n_edges + n_parts * largest


@given(n_nodes=st.integers(0, 30), n_parts=PARTS)
def test_nodes_without_edges_are_spread(n_nodes: int, n_parts: int) -> None:
    graph = Graph.from_edge_index(torch.empty(2, 0, dtype=torch.int64), n_nodes)
    sizes = [part.n_own for part in Partition.split(graph, n_parts)]
    assert max(sizes) - min(sizes) <= 1


@given(graph=graphs(), n_parts=PARTS)
def test_parts_fetch_what_others_send(graph: Graph, n_parts: int) -> None:
    parts = Partition.split(graph, n_parts)
    for part in parts:
        fetched = part.halo.split(part.halo_counts)
        used = graph.edge_index[1, part.edge_id[~part.is_local].long()]
        assert part.halo.tolist() == sorted(set(used.tolist()))
        for rank, (other, nodes) in enumerate(zip(parts, fetched, strict=True)):
            sent = other.sent.split(other.sent_counts)[part.rank]
            assert torch.equal(nodes, sent + other.bounds[rank])
        assert part.halo_counts[part.rank] == part.sent_counts[part.rank] == 0


@given(graph=graphs(), n_parts=PARTS)
def test_parts_know_their_split(graph: Graph, n_parts: int) -> None:
    (split_id,) = {part.split_id for part in Partition.split(graph, n_parts)}
    assert Partition.split(graph, n_parts)[0].split_id == split_id
    assert Partition.split(graph, n_parts + 1)[0].split_id != split_id
    if graph.n_edges:
        fewer = Graph.from_edge_index(graph.edge_index[:, 1:], graph.n_queries)
        fewer = replace(fewer, query_id=graph.query_id, key_id=graph.key_id)
        assert Partition.split(fewer, n_parts)[0].split_id != split_id


def test_self_loops_made_in_inference_mode_train() -> None:
    (part,) = Partition.split(Graph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3), 1)
    layer = GraphAttentionV2Layer(3, 4, 2, add_self_loops=True)
    with torch.inference_mode():
        layer(torch.randn(3, 3), part)
    layer(torch.randn(3, 3), part).backward(torch.randn(3, 4))


def test_parts_made_in_inference_mode_train() -> None:
    h, (query, key) = torch.randn(3, 3), torch.tensor([[0, 1], [1, 2]])
    with torch.inference_mode():
        (part,) = Partition.split(Graph.from_edge_index(torch.stack((query, key)), 3), 1)
    GraphAttentionV2Layer(3, 4, 2)(h, part).backward(torch.randn(3, 4))


@given(
    graph=graphs(),
    n_parts=st.integers(2, 7),
    dropout=st.sampled_from((0.0, 0.5)),
    seed=st.integers(0, 2**62),
)
def test_joined_parts_are_the_whole(graph: Graph, n_parts: int, dropout: float, seed: int) -> None:
    """Values and gradients, with the exchange replaced by what it stands for."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_nodes = graph.n_queries
    inputs = [normal(n_nodes, 3, 2), normal(n_nodes, 3, 2), normal(3, 2)]
    inputs += [normal(graph.n_edges, 4), normal(3, 2, 4)]
    cotangent = normal(n_nodes + graph.n_edges, 6)
    options: Any = {"dropout": dropout, "seed": seed, "return_attention": True}

    def joined(out: Tensor, alpha: Tensor) -> Tensor:
        return torch.cat((out.flatten(1), alpha.repeat(1, 2)))

    def whole(query: Tensor, key: Tensor, attn: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return joined(
            *attention_of_one(
                query, key, attn, graph, edge_features=x, edge_projection=w, **options
            )
        )

    def of_parts(query: Tensor, key: Tensor, attn: Tensor, x: Tensor, w: Tensor) -> Tensor:
        outs, alphas, numbers = [], [], []
        for part in Partition.split(graph, n_parts):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(attention, "place_in", lambda _, part=part: (part.rank, n_parts))
                patch.setattr(Call, "meet", lambda _call, _attn, seed, _part: Met(seed))
                patch.setattr(attention, "start", lambda rows, _: rows)
                patch.setattr(
                    attention, "finish", lambda *_, halo=part.halo: key.index_select(0, halo)
                )
                out, alpha = gatv2_attention(
                    *(query[part.own], key[part.own], attn, part),
                    edge_features=x[part.edge_id.long()],
                    edge_projection=w,
                    **options,
                )
            outs.append(out)
            alphas.append(alpha)
            numbers.append(part.edge_id.long())
        order = torch.cat(numbers).argsort()
        return joined(torch.cat(outs), torch.cat(alphas)[order])

    exact = value_and_gradients(whole, inputs, cotangent)
    for actual, expected in zip(
        value_and_gradients(of_parts, inputs, cotangent), exact, strict=True
    ):
        assert_agrees(actual, expected)
