"""The ranking of keys is the same for every query of GAT, always, and not so for GATv2."""

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gatv2 import Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.ranking import measure_ranking, measure_scores
from gatv2.testing import HEAD_SHAPES, SIZES, edge_indices, masks

NO_EDGE = -math.inf


def everyone(n_nodes: int) -> Tensor:
    return torch.ones(n_nodes, n_nodes, 1, dtype=torch.bool)


@given(data=st.data())
def test_gat_is_static_always(dtype: torch.dtype, data: st.DataObject) -> None:
    n_nodes = data.draw(st.sampled_from(SIZES[2:]))
    n_heads, n_hidden = data.draw(st.sampled_from(HEAD_SHAPES))
    layer = GraphAttentionLayer(
        3, n_heads * n_hidden, n_heads, share_weights=data.draw(st.booleans()), dtype=dtype
    )
    torch.manual_seed(data.draw(st.integers(0, 2**32)))
    # from sums that round away the smaller part to scores where LeakyReLU's kink is all there is
    exponents = st.sampled_from((-9, -4, 0, 4, 9))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=10.0 ** data.draw(exponents))
    h = torch.randn(n_nodes, 3, dtype=dtype) * 10.0 ** data.draw(exponents)
    h *= 10.0 ** torch.randint(-3, 4, (n_nodes, 1))
    graph = data.draw(st.one_of(masks(n_nodes, n_nodes, n_heads), edge_indices(n_nodes, n_nodes)))
    ranking = measure_ranking(layer, h, graph)
    assert ranking.is_static
    for head in ranking.heads:
        assert head.n_rankings == min(1, head.n_queries)
        assert head.reversed_pairs == 0 or math.isnan(head.reversed_pairs)


@given(seed=st.integers(0, 2**32), n_heads=st.sampled_from((1, 2, 3, 5, 8)))
def test_gatv2_is_dynamic(dtype: torch.dtype, seed: int, n_heads: int) -> None:
    """Random weights and inputs do: two queries that rank keys differently are soon found."""
    torch.manual_seed(seed)
    layer = GraphAttentionV2Layer(5, 8 * n_heads, n_heads, dtype=dtype)
    h = torch.randn(40, 5, dtype=dtype)
    ranking = measure_ranking(layer, h, everyone(40), max_queries=12)
    for head in ranking.heads:
        assert not head.is_static
        assert head.n_rankings > 1
        assert head.correlation < 1
        assert head.reversed_pairs > 0


@given(choice=st.lists(st.integers(0, 6), min_size=7, max_size=7))
def test_gatv2_ranks_any_key_first_for_any_query(choice: list[int]) -> None:
    """Definition 3.2: for any map from queries to keys there are weights whose scores peak there.

    Nodes are one-hot, W_r = 1, and W_l sends a query to minus its chosen key. The sum of projections is
    then zero for the chosen key; for any other it has a 1 and a -1, and a = -1 scores it
    -(1 - 0.2) < 0.
    """
    layer = GraphAttentionV2Layer(7, 7, 1, leaky_relu_negative_slope=0.2)
    h = torch.eye(7)
    with torch.no_grad():
        layer.linear_r.weight.copy_(h)
        layer.linear_l.weight.copy_(-h[choice].T)
        layer.attn.fill_(-1.0)
    scores = layer.attention_scores(h, everyone(7)).squeeze(-1)
    assert scores.argmax(dim=1).tolist() == choice
    assert measure_ranking(layer, h, everyone(7)).is_static == (len(set(choice)) == 1)


@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
@given(mask=masks(11, 11), seed=st.integers(0, 2**32))
def test_every_form_of_a_graph_has_one_ranking(flow: Any, mask: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    layer = GraphAttentionV2Layer(5, 8, 2, flow=flow).double()
    h = torch.randn(11, 5).double()
    numbers = repr(measure_ranking(layer, h, mask))
    edge_index = mask.squeeze(-1).nonzero().T
    edge_index = edge_index[:, torch.randperm(edge_index.shape[1])]
    assert repr(measure_ranking(layer, h, edge_index)) == numbers
    assert (
        repr(measure_ranking(layer, h, Graph.from_edge_index(edge_index, 11, flow=flow))) == numbers
    )
    scores = layer.attention_scores(h, edge_index)
    assert repr(measure_scores(scores, edge_index, flow=flow)) == numbers
    scores = layer.attention_scores(h, mask)
    assert repr(measure_scores(scores)) == numbers
    mask = mask if flow == "target_to_source" else mask.transpose(0, 1)
    assert repr(measure_scores(scores.nan_to_num(neginf=0.5), mask=mask)) == numbers


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_layers_of_pytorch_geometric(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from importing it
        from torch_geometric import nn as pyg
    edge_index = torch.randint(30, (2, 400)).unique(dim=1)
    conv = getattr(pyg, name)(5, 16, heads=3)
    with torch.no_grad():
        _, (edges, alpha) = conv(torch.randn(30, 5), edge_index, return_attention_weights=True)
    ranking = measure_scores(alpha, edges, flow="source_to_target")
    assert [head.is_static for head in ranking.heads] == [name == "GATConv"] * 3
    assert not measure_scores(alpha, edges).is_static  # the other way round means nothing


def test_a_cycle_without_two_queries_that_disagree_is_dynamic() -> None:
    scores = np.array([[1.0, 2.0, NO_EDGE], [NO_EDGE, 1.0, 2.0], [2.0, NO_EDGE, 1.0]])
    (head,) = measure_scores(scores).heads
    assert not head.is_static
    assert head.n_rankings == 2
    assert head.n_pairs == 0
    scores[2] = [1.0, NO_EDGE, 2.0]
    (head,) = measure_scores(scores).heads
    assert head.is_static
    assert head.n_rankings == 1


@given(seed=st.integers(0, 2**32), n_levels=st.integers(1, 6), density=st.floats(0, 1))
def test_the_verdict_is_that_of_every_order(seed: int, n_levels: int, density: float) -> None:
    """On four keys all 24 orders can be tried; scores have ties and missing edges."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, n_levels, (3, 4)).astype(float)
    scores[rng.random((3, 4)) < density] = NO_EDGE
    orders = np.array(np.meshgrid(*[range(4)] * 4)).reshape(4, -1).T  # any four heights of the keys
    explains = np.ones(len(orders), bool)
    for row in scores:
        for low, high in np.argwhere(row[:, None] < row[None, :]):
            if row[low] > NO_EDGE:
                explains &= orders[:, low] < orders[:, high]
    (head,) = measure_scores(scores).heads
    assert head.is_static == explains.any()
    assert head.n_rankings <= 1 or not head.is_static


@pytest.mark.parametrize(
    ("scores", "n_rankings", "correlation", "reversed_pairs"),
    [
        pytest.param([[1, 2, 3], [4, 6, 9]], 1, 1.0, 0.0, id="same"),
        pytest.param([[1, 2, 3], [9, 6, 4]], 2, -1.0, 1.0, id="reversed"),
        pytest.param([[1, 2, 3], [1, 3, 2]], 2, 1 / 3, 1.0, id="one pair reversed"),
        pytest.param([[1, 2, 3], [0, 0, 0]], 1, math.nan, 0.0, id="all tied"),
        pytest.param([[0, 0, 0], [1, 2, 3], [3, 2, 1]], 2, -1.0, 1 / 3, id="tied, then not"),
        pytest.param([[1, 2], [1, 2], [2, 1], [2, 1]], 2, -1 / 3, 4 / 6, id="two and two"),
    ],
)
def test_numbers_by_hand(
    scores: list[list[int]], n_rankings: int, correlation: float, reversed_pairs: float
) -> None:
    (head,) = measure_scores(np.array(scores)).heads
    assert head.is_static == (n_rankings == 1)
    assert head.n_rankings == n_rankings
    assert head.correlation == pytest.approx(correlation, nan_ok=True)
    assert head.reversed_pairs == pytest.approx(reversed_pairs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rounding_is_no_ranking(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    scores = torch.tensor([[1.0, 1.0 + 4 * eps], [1.0 + 4 * eps, 1.0]], dtype=dtype)
    assert measure_scores(scores).is_static
    assert not measure_scores(scores, rtol=0.0).is_static
    scores = torch.tensor([[1.0, 1.0 + 64 * eps], [1.0 + 64 * eps, 1.0]], dtype=dtype)
    assert not measure_scores(scores).is_static


@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
@given(mask=masks(7, 7), seed=st.integers(0, 2**32))
def test_a_layer_ranks_the_self_loops_that_it_adds(flow: Any, mask: Tensor, seed: int) -> None:
    """Also where each node has one, and their number does not change."""
    torch.manual_seed(seed)
    layer = GraphAttentionV2Layer(5, 8, 2, flow=flow, add_self_loops=True).double()
    h = torch.randn(7, 5).double()
    looped = mask | torch.eye(7, dtype=torch.bool).unsqueeze(-1)
    for given_mask in (mask, looped):
        edge_index = given_mask.squeeze(-1).nonzero().T
        numbers = repr(measure_ranking(layer, h, edge_index))
        assert numbers == repr(measure_ranking(layer, h, given_mask))
        graph = Graph.from_edge_index(edge_index, 7, flow=flow)
        assert numbers == repr(measure_ranking(layer, h, graph))


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (5, 1), (1, 5), (1, 1), (3, 3, 0)])
def test_too_little_to_rank_is_static(shape: tuple[int, ...]) -> None:
    assert measure_scores(np.ones(shape)).is_static
    assert measure_scores(np.full(shape, NO_EDGE)).is_static


def test_a_graph_without_edges() -> None:
    ranking = measure_scores(np.zeros((0, 2)), np.zeros((2, 0), np.int64))
    assert (ranking.n_queries, ranking.n_keys, len(ranking.heads)) == (0, 0, 2)
    assert "static attention: 0 queries, 0 keys" in str(ranking)
    assert "n/a" in str(ranking)


def test_parallel_edges() -> None:
    edge_index = np.array([[0, 0, 0, 1, 1], [0, 0, 1, 0, 1]])
    scores = np.array([1.0, 1.0, 2.0, 3.0, 4.0])
    assert measure_scores(scores, edge_index).is_static
    scores[1] = 5.0
    with pytest.raises(ValueError, match="from query 0 to key 0 have different scores"):
        measure_scores(scores, edge_index)


def test_a_large_graph_is_sampled_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    edge_index = np.unique(rng.integers(0, 300, (2, 6000)), axis=1)
    heights = rng.normal(size=300)
    scores = np.stack([heights[edge_index[1]], rng.normal(size=edge_index.shape[1])], axis=1)
    ranking = measure_scores(scores, edge_index, max_queries=20, seed=1)
    assert repr(ranking) == repr(measure_scores(scores, edge_index, max_queries=20, seed=1))
    static, dynamic = ranking.heads
    assert static.is_static
    assert static.correlation == pytest.approx(1)
    assert not dynamic.is_static
    assert abs(dynamic.correlation) < 0.5
    for head in ranking.heads:
        assert head.n_queries == 20
        assert head.n_pairs >= 10  # each query has brought a partner


def test_nodes_may_have_numbers_of_any_size() -> None:
    rng = np.random.default_rng(0)
    edge_index = np.unique(rng.integers(0, 30, (2, 300)), axis=1)
    scores = rng.normal(size=edge_index.shape[1:])
    expected = measure_scores(scores, edge_index, max_queries=10)
    assert repr(measure_scores(scores, edge_index * 10**15, max_queries=10)) == repr(expected)


def nan_at(array: npt.NDArray[Any], *index: int) -> npt.NDArray[Any]:
    array[index] = math.nan
    return array


EDGES = np.array([[0, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": nan_at(np.ones((2, 3, 2)), 1, 2, 0)}, "got nan for query 1, key 2, head 0"),
        ({"scores": nan_at(np.ones(3), 2), "edge_index": EDGES}, "got nan for query 1, key 0"),
        ({"scores": np.full((2, 2), math.inf)}, "got inf for query 0, key 0, head 0"),
        ({"scores": np.ones(3)}, r"must have shape \(n_queries, n_keys\) or"),
        ({"scores": np.ones((2, 3)), "mask": np.ones((3, 2))}, r"`mask` must have shape \(2, 3\)"),
        (
            {"scores": np.ones(3), "edge_index": EDGES, "mask": np.ones(3)},
            "pass `edge_index` or `mask`, not both",
        ),
        (
            {"scores": np.ones(4), "edge_index": EDGES},
            r"shape \(3,\) or \(3, n_heads\); got \(4,\)",
        ),
        ({"scores": np.ones(3), "edge_index": EDGES.T}, r"shape \(2, n_edges\); got int64 with"),
        ({"scores": np.ones(3), "edge_index": EDGES * 1.0}, "must hold integers"),
        ({"scores": np.ones(3), "edge_index": -EDGES}, "must not be negative; got -1"),
        ({"scores": np.ones(3), "edge_index": EDGES, "flow": "up"}, "`flow` must be one of"),
        ({"scores": np.ones((2, 2)), "rtol": -1e-3}, "`rtol` must be a finite number, 0 or more"),
        (
            {"scores": np.ones((2, 2)), "rtol": math.nan},
            "`rtol` must be a finite number, 0 or more",
        ),
        ({"scores": np.ones((2, 2)), "max_queries": 1}, "`max_queries` must be at least 2"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_scores(**arguments)


@pytest.mark.parametrize("seed", [2.5, "3", None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(TypeError, match="`seed` must be an int; got"):
        measure_scores(np.ones((9, 3)), seed=seed)
    with pytest.raises(ValueError, match="`seed` must be 0 or more; got -1"):
        measure_scores(np.ones((9, 3)), seed=-1)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.longdouble])
def test_large_integers_are_ranked_as_they_are(dtype: Any) -> None:
    """Float64 takes neighbours above 2**53 for one; a longer float is compared in float64."""
    few = np.array([[0, 1, 2], [2, 0, 1]])
    large = (few.astype(np.uint64) + 2**60).astype(dtype)
    expected = measure_scores(np.zeros_like(few) if dtype is np.longdouble else few)
    assert repr(measure_scores(large)) == repr(expected)
    if dtype is np.int64:
        assert repr(measure_scores(torch.from_numpy(large))) == repr(expected)
        assert measure_scores(large, rtol=1e-9).is_static


@pytest.mark.parametrize("max_queries", [2.5, 3.0, math.inf, "3", None])
def test_a_sample_has_a_whole_number_of_queries(max_queries: Any) -> None:
    with pytest.raises(TypeError, match="`max_queries` must be an int; got"):
        measure_scores(np.ones((9, 3)), max_queries=max_queries)


@pytest.mark.parametrize(
    "scores", [np.ones((2, 2), complex), torch.ones(2, 2, dtype=torch.complex64), [["a", "b"]]]
)
def test_what_has_no_order_is_not_ranked(scores: Any) -> None:
    with pytest.raises(TypeError, match="`scores` must be real numbers"):
        measure_scores(scores)


def test_a_batch_has_no_one_ranking() -> None:
    layer = GraphAttentionV2Layer(4, 4, 1)
    with pytest.raises(ValueError, match="one element of a batch at a time"):
        measure_ranking(layer, torch.randn(2, 3, 4), everyone(3))


def test_a_layer_with_edge_features_is_measured_by_its_scores() -> None:
    layer, h = GraphAttentionV2Layer(3, 4, 2, edge_dim=1), torch.randn(5, 3)
    edge_index = everyone(5).squeeze(-1).nonzero().T
    with pytest.raises(ValueError, match=r"edge_dim=1.* pass `layer.attention_scores"):
        measure_ranking(layer, h, edge_index)
    scores = layer.attention_scores(h, edge_index, edge_features=torch.randn(25, 1))
    assert measure_scores(scores, edge_index).n_queries == 5
