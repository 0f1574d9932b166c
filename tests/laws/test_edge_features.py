"""Edge features enter the score inside LeakyReLU, alike in every kernel and every layout."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attention import attention_over, by, normal, with_few_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from runnable import RUNNABLE
from torch import Tensor
from torch.nn.functional import leaky_relu

from gatv2 import Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.functional import gatv2_scores
from gatv2.testing import (
    AttentionInputs,
    assert_agrees,
    attention_inputs,
    edge_indices,
    edges_to_dense,
    value_and_gradients,
)

DIMS = (0, 1, 2, 5, 17)


@st.composite
def inputs_and_edges(draw: st.DrawFn, /, **options: Any) -> tuple[AttentionInputs, Tensor, Tensor]:
    """Inputs, edge features as a mask holds them, with or without the batch, and a projection."""
    inputs = with_few_shapes(draw(attention_inputs(has_score_bias=None, **options)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    *batch_shape, n_queries, n_heads, n_hidden = inputs.query.shape
    if not draw(st.booleans()):
        batch_shape = []
    n_features = draw(st.sampled_from(DIMS))
    shape = (*batch_shape, n_queries, inputs.key.shape[-3], n_features)
    return inputs, normal(generator, *shape), normal(generator, n_heads, n_hidden, n_features)


def as_list(edge_features: Tensor, mask: Tensor) -> Tensor:
    """Features laid out as a mask, for the edges of `mask[..., 0].nonzero()`."""
    query, key = mask.any(-1).nonzero().T
    return edge_features[..., query, key, :]


def step(
    inputs: AttentionInputs, edges: Sequence[Tensor], dtype: torch.dtype, **options: Any
) -> list[Tensor]:
    """Value, and gradients to query, key, attn, edge features, their projection, maybe a bias."""
    function = attention_over(inputs.mask, seed=inputs.seed, **options)
    bias = [] if inputs.score_bias is None else [inputs.score_bias]
    tensors = (inputs.query, inputs.key, inputs.attn, *edges, *bias)
    return value_and_gradients(function, [x.to(dtype) for x in tensors], inputs.cotangent.to(dtype))


@given(
    drawn=inputs_and_edges(),
    dropout=st.sampled_from((0.0, 0.4)),
    slope=st.sampled_from((0.2, 0.0, -0.5)),
)
@settings(max_examples=2 * settings().max_examples)
def test_values_and_gradients(
    kernel: Kernel,
    dtype: torch.dtype,
    drawn: tuple[AttentionInputs, Tensor, Tensor],
    dropout: float,
    slope: float,
) -> None:
    inputs, *edges = drawn
    rounded, edges = inputs.to(dtype).to(torch.float64), [x.to(dtype).double() for x in edges]
    options: dict[str, Any] = {"dropout": dropout, "negative_slope": slope}
    exact = step(rounded, edges, torch.float64, backend="dense", kernel="torch", **options)
    reference = step(rounded, edges, dtype, backend="dense", kernel="torch", **options)
    actual = step(rounded, edges, dtype, **by(kernel), **options)
    for a, e, r in zip(actual, exact, reference, strict=True):
        assert a.dtype == dtype
        assert_agrees(a, e, r)


def test_by_hand(kernel: Kernel) -> None:
    """The formula, written out for one query and two keys."""
    query, key = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5, 1.0]], [[-1.0, 3.0]]])
    attn, projection = torch.tensor([[2.0, 1.0]]), torch.tensor([[[1.0], [-1.0]]])
    x = torch.tensor([[[3.0], [-0.5]]])
    scores = [
        2 * leaky_relu(torch.tensor(1 + k[0] + v), 0.2)
        + leaky_relu(torch.tensor(-2 + k[1] - v), 0.2)
        for k, v in (((0.5, 1.0), 3.0), ((-1.0, 3.0), -0.5))
    ]
    alpha = torch.stack(scores).softmax(0)
    out = gatv2_attention(
        query,
        key,
        attn,
        torch.ones(1, 2, 1, dtype=torch.bool),
        edge_features=x,
        edge_projection=projection,
        **by(kernel),
    )
    torch.testing.assert_close(out, (alpha.view(2, 1, 1) * key).sum(0, keepdim=True))


@given(drawn=inputs_and_edges(mask_has_batch=False))
def test_either_layout_goes_into_either_backend(
    kernel: Kernel, drawn: tuple[AttentionInputs, Tensor, Tensor]
) -> None:
    """As a mask lays them out, or as a list of edges; coefficients and scores too."""
    inputs, edge_features, projection = drawn
    mask = inputs.mask.any(-1, keepdim=True)
    edge_index = mask.squeeze(-1).nonzero().T
    graph = Graph.from_edge_index(edge_index, (mask.shape[-3], mask.shape[-2]))
    layouts: tuple[tuple[Any, Tensor], ...] = (
        (mask, edge_features),
        (graph, as_list(edge_features, mask)),
    )
    features = (inputs.query, inputs.key, inputs.attn)
    exact, exact_alpha = gatv2_attention(
        *features,
        mask,
        edge_features=edge_features,
        edge_projection=projection,
        dropout=0.3,
        seed=inputs.seed,
        backend="dense",
        kernel="torch",
        return_attention=True,
    )
    exact_scores = gatv2_scores(
        *features, mask, edge_features=edge_features, edge_projection=projection, backend="dense"
    )
    for adj_mat, x in layouts:
        out, alpha = gatv2_attention(
            *features,
            adj_mat,
            edge_features=x,
            edge_projection=projection,
            dropout=0.3,
            seed=inputs.seed,
            **by(kernel),
            return_attention=True,
        )
        scores = gatv2_scores(
            *features,
            adj_mat,
            edge_features=x,
            edge_projection=projection,
            backend=kernel.backend,
        )
        if kernel.backend == "sparse":
            alpha = edges_to_dense(alpha, edge_index, (mask.shape[-3], mask.shape[-2]))
            scores = edges_to_dense(scores, edge_index, (mask.shape[-3], mask.shape[-2]))
        assert_agrees(out, exact)
        assert_agrees(alpha, exact_alpha)
        assert_agrees(scores.masked_fill(~mask, 0.0), exact_scores.masked_fill(~mask, 0.0))


@given(drawn=inputs_and_edges(mask_has_batch=True, has_head_mask=False))
def test_a_batch_of_graphs_has_one_list_of_edges(
    kernel: Kernel, drawn: tuple[AttentionInputs, Tensor, Tensor]
) -> None:
    inputs, edge_features, projection = drawn
    graph = Graph.from_mask(inputs.mask)
    batch_shape = inputs.query.shape[:-3]
    if len(batch_shape) > 1:
        return  # one `Graph` is one dimension of graphs
    pairs = edge_features.expand(*batch_shape, *edge_features.shape[-3:])
    listed = pairs[inputs.mask.squeeze(-1)]
    features = (inputs.query, inputs.key, inputs.attn)
    out = gatv2_attention(
        *features,
        graph,
        edge_features=listed,
        edge_projection=projection,
        **by(kernel),
    )
    exact = gatv2_attention(
        *features, inputs.mask, edge_features=pairs, edge_projection=projection, kernel="torch"
    )
    assert_agrees(out, exact)


@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
def test_flow_turns_them_round_with_the_mask(kernel: Kernel, flow: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = normal(generator, 3, 2, 5), normal(generator, 4, 2, 5)
    attn, projection = normal(generator, 2, 5), normal(generator, 2, 5, 3)
    mask, x = torch.rand(3, 4, 1, generator=generator) < 0.6, normal(generator, 3, 4, 3)
    exact = gatv2_attention(query, key, attn, mask, edge_features=x, edge_projection=projection)
    is_turned = flow == "source_to_target"
    out = gatv2_attention(
        query,
        key,
        attn,
        mask.transpose(0, 1) if is_turned else mask,
        edge_features=x.transpose(0, 1) if is_turned else x,
        edge_projection=projection,
        flow=flow,
        **by(kernel),
    )
    assert_agrees(out, exact)


SPARSE = [kernel for kernel in RUNNABLE if kernel.backend == "sparse"]


@pytest.mark.parametrize("kernel", SPARSE, ids=lambda kernel: kernel.name)
@given(edge_index=edge_indices(5, 7), data=st.data())
def test_order_of_edges_and_parallel_edges(
    kernel: Kernel, dtype: torch.dtype, edge_index: Tensor, data: st.DataObject
) -> None:
    """Edges in any order, some of them parallel, each with features and a gradient of its own.

    Against the formula with loops over the edges; a query without edges gives zeros.
    """
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    n_edges = edge_index.shape[1]
    tensors = [
        normal(generator, *shape)
        for shape in ((5, 2, 3), (7, 2, 3), (2, 3), (n_edges, 4), (2, 3, 4))
    ]
    cotangent = normal(generator, 5, 2, 3)

    def by_loops(query: Tensor, key: Tensor, attn: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        rows = []
        for i in range(5):
            (edges,) = (edge_index[0] == i).nonzero(as_tuple=True)
            keys = key[edge_index[1, edges].long()]
            pair = query[i] + keys + torch.einsum("ed,hfd->ehf", x[edges], weight)
            alpha = (leaky_relu(pair, 0.2) * attn).sum(-1).softmax(0)
            rows.append((alpha.unsqueeze(-1) * keys).sum(0))
        return torch.stack(rows)

    def fused(query: Tensor, key: Tensor, attn: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return gatv2_attention(
            query,
            key,
            attn,
            Graph.from_edge_index(edge_index, (5, 7)),
            edge_features=x,
            edge_projection=weight,
            kernel=kernel.name,
        )

    rounded = [x.to(dtype).double() for x in tensors]
    exact = value_and_gradients(by_loops, rounded, cotangent.to(dtype).double())
    reference = value_and_gradients(by_loops, [x.to(dtype) for x in tensors], cotangent.to(dtype))
    actual = value_and_gradients(fused, [x.to(dtype) for x in tensors], cotangent.to(dtype))
    for a, e, r in zip(actual, exact, reference, strict=True):
        assert_agrees(a, e, r)


@given(drawn=inputs_and_edges())
def test_a_zero_projection_is_no_features(
    kernel: Kernel, drawn: tuple[AttentionInputs, Tensor, Tensor]
) -> None:
    inputs, edge_features, projection = drawn
    options: dict[str, Any] = {**by(kernel), "dropout": 0.3}
    out = step(inputs, (edge_features, torch.zeros_like(projection)), torch.float64, **options)[0]
    without = gatv2_attention(
        inputs.query,
        inputs.key,
        inputs.attn,
        inputs.mask,
        score_bias=inputs.score_bias,
        seed=inputs.seed,
        **options,
    )
    assert_agrees(out, without.expand_as(out))


@given(drawn=inputs_and_edges())
def test_they_are_a_batch_of_their_own(
    kernel: Kernel, drawn: tuple[AttentionInputs, Tensor, Tensor]
) -> None:
    """Features of nodes without a batch meet edge features with one."""
    inputs, edge_features, projection = drawn
    query, key = (x.reshape(-1, *x.shape[-3:])[0] for x in (inputs.query, inputs.key))
    mask = inputs.mask.reshape(-1, *inputs.mask.shape[-3:])[0]
    first = edge_features[(0,) * (edge_features.ndim - 3)]
    x = torch.stack((first, first - 1))
    out = gatv2_attention(
        query,
        key,
        inputs.attn,
        mask,
        edge_features=x,
        edge_projection=projection,
        **by(kernel),
    )
    for element, features in zip(out, x, strict=True):
        exact = gatv2_attention(
            query,
            key,
            inputs.attn,
            mask,
            edge_features=features,
            edge_projection=projection,
            backend="dense",
            kernel="torch",
        )
        assert_agrees(element, exact)


def test_what_stands_beside_an_edge_is_not_read(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = normal(generator, 4, 2, 3), normal(generator, 5, 2, 3)
    attn, projection = normal(generator, 2, 3), normal(generator, 2, 3, 2)
    mask, x = torch.rand(4, 5, 1, generator=generator) < 0.5, normal(generator, 4, 5, 2)

    function = attention_over(mask, **by(kernel))
    cotangent = torch.randn_like(query)
    results = [
        value_and_gradients(function, (query, key, attn, x, projection), cotangent)
        for x in (x, x.masked_fill(~mask, torch.nan))
    ]
    for actual, exact in zip(*results, strict=True):
        assert_agrees(actual, exact)
    assert (results[0][4][~mask.squeeze(-1)] == 0).all()


@pytest.mark.parametrize("backend", ["dense", "sparse"])
def test_layer_is_the_function(backend: Any) -> None:
    layer = GraphAttentionV2Layer(3, 4, 2, edge_dim=3, backend=backend, dtype=torch.float64).eval()
    h, mask = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 5, 1) < 0.5
    x = torch.randn(5, 5, 3, dtype=torch.float64)
    assert layer.linear_e is not None
    assert layer.linear_e.weight.shape == (4, 3)
    arguments = (
        layer.linear_l(h).view(5, 2, 2),
        layer.linear_r(h).view(5, 2, 2),
        layer.attn,
        mask,
    )
    edges: dict[str, Any] = {
        "edge_features": x,
        "edge_projection": layer.linear_e.weight.view(2, 2, 3),
        "backend": backend,
    }
    assert_agrees(layer(h, mask, edge_features=x), gatv2_attention(*arguments, **edges).flatten(-2))
    scores = layer.attention_scores(h, mask, edge_features=x)
    assert torch.equal(scores, gatv2_scores(*arguments, **edges))


def test_repr_names_edge_dim() -> None:
    assert "share_weights=False, edge_dim=3, bias=False" in repr(
        GraphAttentionV2Layer(3, 4, 2, edge_dim=3)
    )
    assert "edge_dim" not in repr(GraphAttentionV2Layer(3, 4, 2))
