"""A bias of the scores is added to them, and minus infinity takes an edge away, in every kernel."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention import attention_over, by, normal, with_few_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_rounded_once
from runnable import RUNNABLE
from torch import Tensor
from torch.nn.functional import leaky_relu

from gatv2 import Graph, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.functional import gat_attention, gat_scores, gatv2_scores
from gatv2.testing import (
    AttentionInputs,
    assert_agrees,
    attention_inputs,
    edge_indices,
    edges_to_dense,
    value_and_gradients,
)

# functions of any arguments, as they are given in dictionaries
attend: Callable[..., Any] = gatv2_attention
control: Callable[..., Any] = gat_attention
SPARSE = [kernel for kernel in RUNNABLE if kernel.backend == "sparse"]


def few(**options: Any) -> st.SearchStrategy[AttentionInputs]:
    """Inputs of few shapes."""
    return attention_inputs(**options).map(with_few_shapes)


@given(edge_index=edge_indices(5, 7), heads=st.sampled_from((1, 2)), data=st.data())
def test_is_the_softmax_of_scores_and_bias(
    kernel: Kernel, dtype: torch.dtype, edge_index: Tensor, heads: int, data: st.DataObject
) -> None:
    """By loops over queries; edges in any order, and parallel but for a mask; rows of -inf are zeros."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    if kernel.backend == "dense":
        edge_index = edge_index.unique(dim=1)
        edge_index = edge_index[:, torch.randperm(edge_index.shape[1], generator=generator)]
    n_edges = edge_index.shape[1]
    tensors = [
        normal(generator, *shape) for shape in ((5, 2, 3), (7, 2, 3), (2, 3), (n_edges, heads))
    ]
    removed = torch.rand(n_edges, heads, generator=generator) < 0.3
    removed[edge_index[0] == 1] = True
    tensors[3] = tensors[3].masked_fill(removed, -math.inf)
    cotangent = normal(generator, 5, 2, 3)

    def by_loops(query: Tensor, key: Tensor, attn: Tensor, bias: Tensor) -> Tensor:
        rows = []
        for i in range(5):
            for head in range(2):
                b = bias[:, head % heads]
                (edges,) = ((edge_index[0] == i) & (b > -math.inf)).nonzero(as_tuple=True)
                keys = key[edge_index[1, edges].long(), head]
                scores = (leaky_relu(query[i, head] + keys, 0.2) * attn[head]).sum(-1)
                rows.append((scores + b[edges]).softmax(0) @ keys)
        return torch.stack(rows).view(5, 2, 3)

    graph = Graph.from_edge_index(edge_index, (5, 7))
    fused = attention_over(graph, ["score_bias"], **by(kernel))
    rounded = [x.to(dtype).double() for x in tensors]
    exact = value_and_gradients(by_loops, rounded, cotangent.to(dtype).double())
    reference = value_and_gradients(by_loops, [x.to(dtype) for x in tensors], cotangent.to(dtype))
    actual = value_and_gradients(fused, [x.to(dtype) for x in tensors], cotangent.to(dtype))
    for a, e, r in zip(actual, exact, reference, strict=True):
        assert_agrees(a, e, r)
    assert bool((actual[4][removed] == 0).all())


@given(inputs=few(has_score_bias=True), dropout=st.sampled_from((0.0, 0.4)))
@settings(max_examples=2 * settings().max_examples)
def test_values_and_gradients(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs, dropout: float
) -> None:
    """Those of the dense reference, with masks of heads and batches of either."""

    def step(data: AttentionInputs, **options: Any) -> list[Tensor]:
        function = attention_over(
            data.mask, ["score_bias"], dropout=dropout, seed=data.seed, **options
        )
        assert data.score_bias is not None
        tensors = (data.query, data.key, data.attn, data.score_bias)
        return value_and_gradients(function, tensors, data.cotangent)

    rounded = inputs.to(dtype)
    exact = step(rounded.to(torch.float64), backend="dense", kernel="torch")
    reference = step(rounded, backend="dense", kernel="torch")
    for a, e, r in zip(step(rounded, **by(kernel)), exact, reference, strict=True):
        assert a.dtype == dtype
        assert_agrees(a, e, r)


@pytest.mark.parametrize("kernel", SPARSE, ids=lambda kernel: kernel.name)
@given(edge_index=edge_indices(5, 7), data=st.data())
def test_the_logarithm_of_a_weight_is_that_many_edges(
    kernel: Kernel, edge_index: Tensor, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    weight = torch.randint(0, 4, (edge_index.shape[1],), generator=generator)  # zero is no edge
    features = [normal(generator, *shape) for shape in ((5, 2, 3), (7, 2, 3), (2, 3))]
    out = attend(
        *features,
        Graph.from_edge_index(edge_index, (5, 7)),
        score_bias=weight.double().log().unsqueeze(-1),
        kernel=kernel.name,
    )
    repeated = Graph.from_edge_index(edge_index.repeat_interleave(weight, dim=1), (5, 7))
    assert_agrees(out, attend(*features, repeated, kernel="torch"))


def results(inputs: AttentionInputs, bias: Tensor | None, **options: Any) -> list[Tensor]:
    """Out, coefficients and log-sum-exp, and the gradients of random cotangents of theirs."""
    leaves = [x.clone().requires_grad_() for x in (inputs.query, inputs.key, inputs.attn)]
    outcome = attend(
        *leaves,
        inputs.mask,
        score_bias=bias,
        seed=inputs.seed,
        return_attention=True,
        return_lse=True,
        **options,
    )
    generator = torch.Generator().manual_seed(0)
    cotangents = [normal(generator, *x.shape).to(x.dtype) for x in outcome]
    cotangents[2] = cotangents[2].masked_fill(outcome[2] == -math.inf, 0.0)
    return [x.detach() for x in (*outcome, *torch.autograd.grad(outcome, leaves, cotangents))]


@given(inputs=few(), for_all=st.booleans())
def test_zero_is_none_to_the_bit(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs, for_all: bool
) -> None:
    data, options = inputs.to(dtype), {"dropout": 0.3, **by(kernel)}
    n_heads = 1 if for_all else data.query.shape[-2]
    zero = torch.zeros(data.query.shape[-3], data.key.shape[-3], n_heads, dtype=dtype)
    is_same_sums = kernel.name != "numba" or data.mask.shape[-1] == 1
    for actual, expected in zip(
        results(data, zero, **options), results(data, None, **options), strict=True
    ):
        if is_same_sums:
            assert torch.equal(actual, expected)
        else:  # of a head mask it makes minus infinity
            torch.testing.assert_close(actual, expected)


@given(inputs=few(has_head_mask=True))
def test_minus_infinity_is_a_mask(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs
) -> None:
    """With no graph but the bias; and what no head uses may hold anything."""
    data = inputs.to(dtype)
    bias = torch.zeros(data.mask.shape, dtype=dtype).masked_fill(~data.mask, -math.inf)
    is_used = data.mask.any(-3).unsqueeze(-1)  # of keys, by heads
    hostile = data.key.masked_fill(~is_used, math.nan)

    def step(key: Tensor, adj_mat: Tensor | None, bias: Tensor | None) -> list[Tensor]:
        function = attention_over(adj_mat, score_bias=bias, **by(kernel))
        return value_and_gradients(function, (data.query, key, data.attn), data.cotangent)

    actual, expected = step(hostile, None, bias), step(data.key, data.mask, None)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
    assert bool((actual[2].masked_select(~is_used) == 0).all())


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, of what is interpreted
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("n_heads", [2, 3])
def test_what_is_not_finite_reaches_its_query_and_head_only(
    kernel: Kernel, dtype: torch.dtype, value: float, n_heads: int
) -> None:
    """There everything is NaN, and what minus infinity took away still gets no gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, n_heads, 3), (5, n_heads, 3), (n_heads, 3), (4, 5, n_heads))
    query, key, attn, clean = (normal(generator, *shape).to(dtype) for shape in shapes)
    clean[1, 2] = -math.inf
    hostile = clean.clone()
    hostile[1, 3, 1] = value
    function = attention_over(None, ["score_bias"], **by(kernel))
    cotangent = normal(generator, 4, n_heads, 3).to(dtype)
    actual, expected = (
        value_and_gradients(function, (query, key, attn, bias), cotangent)
        for bias in (hostile, clean)
    )
    is_hit = torch.zeros(4, n_heads, dtype=torch.bool)
    is_hit[1, 1] = True
    for i in (0, 1):  # out, d_query
        assert bool(actual[i][is_hit].isnan().all())
        assert torch.equal(actual[i][~is_hit], expected[i][~is_hit])
    d_bias = actual[4]
    assert torch.equal(d_bias.movedim(1, 2)[~is_hit], expected[4].movedim(1, 2)[~is_hit])
    assert bool((d_bias[1, 2] == 0).all())
    assert torch.equal(actual[2][2], expected[2][2])  # the key of the edges that were removed


@given(inputs=few(mask_has_batch=False, has_head_mask=False, has_score_bias=True))
def test_either_layout_goes_into_either_backend(kernel: Kernel, inputs: AttentionInputs) -> None:
    """As a mask lays it out, or as a list of edges; coefficients, scores and the static control too."""
    mask, bias = inputs.mask, inputs.score_bias
    assert bias is not None
    query, key = mask.squeeze(-1).nonzero().T
    order = torch.randperm(query.shape[0])
    edge_index, shape = torch.stack((query, key))[:, order], (mask.shape[-3], mask.shape[-2])
    listed = bias[..., query, key, :].index_select(-2, order)
    features = (inputs.query, inputs.key, inputs.attn)
    dense: dict[str, Any] = {"backend": "dense", "score_bias": bias}
    options: dict[str, Any] = {"dropout": 0.3, "seed": inputs.seed}
    exact, exact_alpha = attend(
        *features, mask, kernel="torch", return_attention=True, **dense, **options
    )
    exact_scores = gatv2_scores(*features, mask, **dense)
    exact_control = control(*features, inputs.attn, mask, **dense, **options)
    control_scores = gat_scores(*features, inputs.attn, mask, **dense)
    mine: dict[str, Any] = {"backend": kernel.backend}
    for graph, b in ((mask, bias), (Graph.from_edge_index(edge_index, shape), listed)):
        out, alpha = attend(
            *features, graph, score_bias=b, return_attention=True, **by(kernel), **options
        )
        scores = gatv2_scores(*features, graph, score_bias=b, **mine)
        of_control = gat_scores(*features, inputs.attn, graph, score_bias=b, **mine)
        if kernel.backend == "sparse":
            edges = mask.squeeze(-1).nonzero().T if graph is mask else edge_index
            alpha, scores, of_control = (
                edges_to_dense(x, edges, shape).masked_fill(~mask, at)
                for x, at in ((alpha, 0.0), (scores, -math.inf), (of_control, -math.inf))
            )
        assert_agrees(out, exact)
        assert_agrees(alpha, exact_alpha)
        torch.testing.assert_close(scores, exact_scores)
        torch.testing.assert_close(of_control, control_scores)
        actual = control(*features, inputs.attn, graph, score_bias=b, **mine, **options)
        assert_agrees(actual, exact_control)


@given(inputs=few(mask_has_batch=True, has_head_mask=False, has_score_bias=True))
def test_a_batch_of_graphs_has_one_list_of_edges(kernel: Kernel, inputs: AttentionInputs) -> None:
    batch_shape, bias = inputs.query.shape[:-3], inputs.score_bias
    assert bias is not None
    if len(batch_shape) > 1:
        return  # one `Graph` is one dimension of graphs
    pairs = bias.expand(*batch_shape, *bias.shape[-3:])
    features = (inputs.query, inputs.key, inputs.attn)
    out = attend(
        *features,
        Graph.from_mask(inputs.mask),
        score_bias=pairs[inputs.mask.squeeze(-1)],
        **by(kernel),
    )
    exact = attend(*features, inputs.mask, score_bias=bias, kernel="torch")
    assert_agrees(out, exact)


@pytest.mark.parametrize("flow", ["target_to_source", "source_to_target"])
def test_flow_turns_it_round_with_the_graph(kernel: Kernel, flow: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    features = [normal(generator, *shape) for shape in ((3, 2, 5), (4, 2, 5), (2, 5))]
    bias = normal(generator, 3, 4, 2)
    exact = attend(*features, None, score_bias=bias, kernel="torch")
    given_bias = bias.transpose(0, 1) if flow == "source_to_target" else bias
    out = attend(*features, None, score_bias=given_bias, flow=flow, **by(kernel))
    assert_agrees(out, exact)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(kernel: Kernel, half: torch.dtype) -> None:
    """Computed in float32, and within twice the rounding error of what is exact."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((12, 2, 4), (15, 2, 4), (2, 4), (12, 15, 1))
    tensors = [normal(generator, *shape).to(half) for shape in shapes]
    tensors[3][:, ::3] = -math.inf
    cotangent = normal(generator, 12, 2, 4).to(half)
    function = attention_over(None, ["score_bias"], **by(kernel))
    exact = value_and_gradients(function, [x.double() for x in tensors], cotangent.double())
    for actual, e in zip(value_and_gradients(function, tensors, cotangent), exact, strict=True):
        assert actual.dtype == half
        assert_rounded_once(actual, e)
