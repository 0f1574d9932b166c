"""A call that is refused leaves nothing behind: a layer that waits for its sizes goes on waiting."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gatv2.pyg
from gatv2 import GATv2, Graph, GraphAttentionLayer, GraphAttentionV2Layer, gatv2_attention
from gatv2.distributed import Partition
from gatv2.functional import gat_attention, gat_scores, gatv2_scores
from gatv2.inference import apply_in_blocks
from gatv2.testing import assert_agrees

EDGES = torch.tensor([[0, 1, 2], [1, 2, 4]])
H = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
GRAPH = Graph.from_edge_index(EDGES, 5)

REFUSED: dict[str, object] = {
    "index past the end": EDGES + 3,
    "floats": EDGES.float(),
    "three rows": torch.zeros(3, 3, dtype=torch.int64),
    "mask of another size": torch.ones(4, 5, 1),
    "mask for other heads": torch.ones(5, 5, 3),
    "additive mask": torch.full((5, 5, 1), -1e9),
    "no graph": "edges",
    "graph of another size": Graph.from_edge_index(EDGES, 6),
    "graph for other heads": Graph.from_mask(torch.ones(5, 5, 3) > 0),
    "no graph of ours": replace(GRAPH, n_keys=2, query_ptr=GRAPH.query_ptr[:3]),
    "matrix of another size": torch.eye(4).to_sparse_coo(),
    "part of another graph": Partition.split(Graph.from_edge_index(EDGES, 6), 1)[0],
}


def lazy(**options: Any) -> list[torch.nn.Module]:
    return [
        GraphAttentionV2Layer(-1, 6, 2, **options),
        GraphAttentionV2Layer(-1, 6, 2, share_weights=True, residual=True, **options),
        GraphAttentionV2Layer((-1, -1), 6, 2, **options),
    ]


def assert_waits(layer: Any) -> None:
    assert layer.in_features in (-1, (-1, -1))


@pytest.mark.parametrize("in_features", [4, (4, -1)])
def test_a_layer_that_knows_a_size_waits_no_more(in_features: Any) -> None:
    with pytest.raises(AssertionError):
        assert_waits(GraphAttentionV2Layer(in_features, 6, 2))


@pytest.mark.parametrize("adj_mat", REFUSED.values(), ids=REFUSED.keys())
def test_sizes_stay_unknown(adj_mat: object) -> None:
    for loops in (False, True):
        for layer in (*lazy(add_self_loops=loops), GraphAttentionLayer(-1, 6, 2)):
            with pytest.raises((ValueError, TypeError, IndexError)):
                layer(H, adj_mat)
            assert_waits(layer)
            with pytest.raises((ValueError, TypeError, IndexError)):
                layer.attention_scores(H, adj_mat)  # type: ignore[operator]
            assert_waits(layer)
    model = GATv2(-1, 8, 3, n_heads=2)
    for call in (model, model.eval().inference):
        with pytest.raises((ValueError, TypeError, IndexError)):
            call(H, adj_mat)
        assert_waits(model.layers[0])
    assert model(torch.randn(5, 7), EDGES).shape == (5, 3)


@pytest.mark.parametrize("kernel", ["triton", "numba"])
def test_sizes_stay_unknown_to_a_kernel_that_cannot(kernel: str) -> None:
    """Triton's runs on GPUs, and Numba's has no forward-mode derivative."""
    masks = EDGES, torch.ones(5, 5, 1), GRAPH, Partition.split(GRAPH, 1)[0]
    for layer in lazy(kernel=kernel):
        for adj_mat in masks:
            h = (H, H) if layer.in_features != -1 else H
            if isinstance(h, tuple) and isinstance(adj_mat, Partition):
                continue
            with pytest.raises(ValueError, match=f"kernel='{kernel}' can't serve this call"):
                torch.func.jvp(lambda h: layer(h, adj_mat), (h,), (h,))  # noqa: B023
            assert_waits(layer)


CALLS: dict[str, Callable[[Any], Any]] = {
    "too few edge features": lambda layer: layer(H, EDGES, edge_features=torch.ones(2, 3)),
    "no edge features": lambda layer: layer(H, EDGES),
    "features of another width": lambda layer: layer(H, EDGES, edge_features=torch.ones(3, 2)),
    "features of a mask": lambda layer: layer(
        H, torch.ones(5, 5, 1), edge_features=torch.ones(3, 3)
    ),
    "seed": lambda layer: layer(H, EDGES, edge_features=torch.ones(3, 3), seed=0.5),
    "batches of a pair": lambda layer: layer(
        (H.expand(2, 5, 4), H), EDGES, edge_features=torch.ones(3, 3)
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_sizes_stay_unknown_with_features_of_edges(call: Callable[[Any], Any]) -> None:
    for layer in lazy(edge_dim=3):
        with pytest.raises((ValueError, TypeError)):
            call(layer)
        assert_waits(layer)
        h = (H, H) if layer.in_features != -1 else H
        assert layer(h, EDGES, edge_features=torch.ones(3, 3)).shape == (5, 6)
        assert layer.in_features in (4, (4, 4))


def test_dense_parallel_edges() -> None:
    parallel = torch.tensor([[0, 0, 1], [1, 1, 1]])
    layer = GraphAttentionV2Layer(-1, 6, 2, backend="dense")
    with pytest.raises(ValueError, match="parallel edges"):
        layer(H, parallel)
    assert_waits(layer)


@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("n_edges", [0, 3, 5, 25])
def test_blocks_read_features_as_the_layer_does(flow: Any, loops: bool, n_edges: int) -> None:
    """Those of a mask are laid out as the mask, whatever the number of its edges."""
    torch.manual_seed(n_edges)
    mask = torch.zeros(25, dtype=torch.bool)
    mask[torch.randperm(25)[:n_edges]] = True
    layer = GraphAttentionV2Layer(4, 6, 2, edge_dim=3, flow=flow, add_self_loops=loops)
    layer.double().eval()
    h = H.double()
    for form in (mask.reshape(5, 5), mask.reshape(5, 5, 1), mask.reshape(5, 5, 1).expand(5, 5, 2)):
        for batch in ((), (2,)):
            features = torch.randn(*batch, 5, 5, 3).double()
            expected = layer(h, form, edge_features=features)
            found = apply_in_blocks(layer, h, form, edge_features=features, block_size=2)
            assert_agrees(found, expected)
        with pytest.raises(ValueError, match="entry for entry as the mask"):
            apply_in_blocks(layer, h, form, edge_features=torch.randn(n_edges, 3).double())


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy_are_sizes_and_seeds(kind: Any) -> None:
    torch.manual_seed(0)
    layer = GraphAttentionV2Layer(kind(4), kind(6), kind(2), edge_dim=kind(3))
    torch.manual_seed(0)
    expected = GraphAttentionV2Layer(4, 6, 2, edge_dim=3)
    features = torch.ones(3, 3)
    out: Tensor = layer(H, EDGES, edge_features=features, seed=kind(3))
    assert torch.equal(out, expected(H, EDGES, edge_features=features, seed=3))
    assert repr(layer) == repr(expected)
    assert all(type(x) is int for x in (layer.out_features, layer.n_heads, layer.edge_dim))
    model = GATv2(kind(4), kind(8), kind(3), n_layers=kind(3), n_heads=kind(2)).eval()
    assert_agrees(
        model.double().inference(H.double(), EDGES, block_size=kind(2)), model(H.double(), EDGES)
    )
    assert len(Partition.split(GRAPH, kind(2))) == 2


@pytest.mark.parametrize(
    "kind", [np.float16, np.longdouble, np.array, Fraction, Decimal, np.float64]
)
def test_numbers_of_others_are_slopes_and_probabilities(kind: Any) -> None:
    query, number = H.view(5, 2, 2), kind(0.5)
    attn = query[0]
    for call in (
        partial(gatv2_attention, query, query, attn, EDGES, seed=3),
        partial(gatv2_attention, query, query, attn, EDGES, seed=3, kernel="torch"),
        partial(gatv2_attention, query, query, attn, torch.ones(5, 5, 1) > 0, seed=3),
        partial(gat_attention, query, query, attn, attn, EDGES, seed=3),
    ):
        out = call(negative_slope=number, dropout=number)
        assert torch.equal(out, call(negative_slope=0.5, dropout=0.5))
    for score in (
        partial(gatv2_scores, query, query, attn, EDGES),
        partial(gat_scores, query, query, attn, attn, EDGES),
    ):
        assert torch.equal(score(negative_slope=number), score(negative_slope=0.5))

    def outcome(number: Any) -> list[Tensor]:
        torch.manual_seed(0)
        slope: dict[str, Any] = {"dropout": number, "leaky_relu_negative_slope": number}
        models = (
            GraphAttentionV2Layer(4, 6, 2, **slope),
            GraphAttentionLayer(4, 6, 2, **slope),
            GATv2(4, 8, 3, n_heads=2, feature_dropout=number, **slope),
        )
        assert type(models[0].dropout) is type(models[0].leaky_relu_negative_slope) is float
        outs = [model(H, EDGES) for model in models]
        conv = gatv2.pyg.GATv2Conv(4, 3, 2, dropout=number, negative_slope=number)
        return [*outs, conv(H, EDGES)]

    for result, expected in zip(outcome(number), outcome(0.5), strict=True):
        assert torch.equal(result, expected)


def test_a_graph_of_numpy_is_read_by_a_layer() -> None:
    layer = GraphAttentionV2Layer(4, 6, 2, edge_dim=3, add_self_loops=True).eval()
    features = torch.randn(3, 3)
    expected = layer(H, EDGES, edge_features=features)
    assert torch.equal(layer(H, EDGES.numpy(), edge_features=features), expected)
    model = GATv2(4, 8, 3, n_heads=2).eval()
    assert torch.equal(model(H, EDGES.numpy()), model(H, EDGES))
