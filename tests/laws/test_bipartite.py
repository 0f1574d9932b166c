"""Queries and keys may be different nodes: features are a pair, and a block's queries its first keys."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attention import by
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.dispatch import Kernel
from gatv2.testing import SIZES, assert_agrees, masks, value_and_gradients


@st.composite
def bipartite_masks(draw: st.DrawFn) -> Tensor:
    return draw(masks(draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))))


def options_of(kernel: Kernel) -> Any:
    return {**by(kernel), "dtype": torch.float64}


def on_one_set_of_nodes(layer: Any) -> Any:
    """The same layer for nodes that have the features of both sides, side by side."""
    n_query, n_key = layer.in_features
    square = type(layer)(
        n_query + n_key,
        layer.out_features,
        layer.n_heads,
        layer.is_concat,
        share_weights=False,
        dtype=torch.float64,
    )
    square.load_state_dict(
        layer.state_dict()
        | {
            "linear_l.weight": torch.nn.functional.pad(layer.linear_l.weight, (0, n_key)),
            "linear_r.weight": torch.nn.functional.pad(layer.linear_r.weight, (n_query, 0)),
        }
    )
    return square.eval()


def only(values: Sequence[Tensor]) -> Tensor | None:
    return values[0] if values else None


@given(mask=bipartite_masks(), is_concat=st.booleans(), has_bias=st.booleans())
def test_is_the_corner_of_a_square(
    kernel: Kernel, mask: Tensor, is_concat: bool, has_bias: bool
) -> None:
    n, m = mask.shape[:2]
    layer = GraphAttentionV2Layer((3, 5), 8, 2, is_concat, **options_of(kernel)).eval()
    square = on_one_set_of_nodes(layer)
    corner = torch.nn.functional.pad(mask, (0, 0, n, 0, 0, m))
    cotangent = torch.randn(n, 8).double()
    features = [torch.randn(n, 3).double(), torch.randn(m, 5).double()]
    if has_bias:
        features.append(torch.randn(n, m, 2).double())

    def in_corner(h_query: Tensor, h_key: Tensor, *bias: Tensor) -> Tensor:
        padded = [torch.nn.functional.pad(b, (0, 0, n, 0, 0, m)) for b in bias]
        out = square(torch.block_diag(h_query, h_key), corner, score_bias=only(padded))
        return out[:n]  # type: ignore[no-any-return]

    actual = value_and_gradients(
        lambda q, k, *bias: layer((q, k), mask, score_bias=only(bias)), features, cotangent
    )
    expected = value_and_gradients(in_corner, features, cotangent)
    for a, e in zip(actual, expected, strict=True):
        assert_agrees(a, e)


def test_the_control_takes_a_pair_too() -> None:
    mask = torch.rand(4, 7, 1) < 0.5
    layer = GraphAttentionLayer((3, 5), 8, 2, share_weights=False, dtype=torch.float64).eval()
    square = on_one_set_of_nodes(layer)
    h = torch.randn(4, 3).double(), torch.randn(7, 5).double()
    corner = torch.nn.functional.pad(mask, (0, 0, 4, 0, 0, 7))
    assert_agrees(layer(h, mask), square(torch.block_diag(*h), corner)[:4])


@given(mask=bipartite_masks())
def test_a_pair_is_in_the_order_of_the_rows(kernel: Kernel, mask: Tensor) -> None:
    n, m = mask.shape[:2]
    ours = GraphAttentionV2Layer((3, 5), 8, 2, **options_of(kernel)).eval()
    theirs = GraphAttentionV2Layer(
        (5, 3), 8, 2, flow="source_to_target", **options_of(kernel)
    ).eval()
    assert (ours.in_features, theirs.in_features) == ((3, 5), (5, 3))
    theirs.load_state_dict(ours.state_dict())
    h_query, h_key = torch.randn(n, 3).double(), torch.randn(m, 5).double()
    expected = ours((h_query, h_key), mask)
    edge_index = mask.squeeze(-1).nonzero().T
    theirs_index = edge_index.flip(0)
    graph = Graph.from_edge_index(theirs_index, (n, m), flow="source_to_target")
    for form in (theirs_index, mask.transpose(0, 1), graph):
        assert_agrees(theirs((h_key, h_query), form), expected)


@given(mask=masks(7, 7), n_queries=st.integers(1, 7))
def test_a_block_is_the_first_rows(kernel: Kernel, mask: Tensor, n_queries: int) -> None:
    """A sampled block has the nodes it computes in front of the nodes it reads."""
    layer = GraphAttentionV2Layer(3, 8, 2, bias=True, residual=True, **options_of(kernel)).eval()
    h = torch.randn(7, 3).double()
    expected = layer(h, mask)[:n_queries]
    out = layer((h[:n_queries], h), mask[:n_queries])
    assert_agrees(out, expected)


@given(mask=bipartite_masks())
def test_both_sides_may_share_weights(mask: Tensor) -> None:
    n, m = mask.shape[:2]
    shared = GraphAttentionV2Layer((3, 3), 8, 2, share_weights=True, dtype=torch.float64).eval()
    apart = GraphAttentionV2Layer((3, 3), 8, 2, dtype=torch.float64).eval()
    apart.load_state_dict(shared.state_dict())
    h = torch.randn(n, 3).double(), torch.randn(m, 3).double()
    assert torch.equal(shared(h, mask), apart(h, mask))


def test_a_batch_of_pairs(kernel: Kernel) -> None:
    layer = GraphAttentionV2Layer((3, 5), 8, 2, **options_of(kernel)).eval()
    mask = torch.rand(6, 4, 7, 1) < 0.5
    h = torch.randn(6, 4, 3).double(), torch.randn(6, 7, 5).double()
    together = layer(h, mask)
    for one in range(6):
        assert_agrees(together[one], layer((h[0][one], h[1][one]), mask[one]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: GraphAttentionV2Layer((3, 5), 8, 2, share_weights=True),
            ValueError,
            "with share_weights=True one matrix projects both sides, but `in_features` is (3, 5)",
        ),
        (
            lambda: GraphAttentionV2Layer((3, 5, 7), 8, 2),  # type: ignore[arg-type]
            ValueError,
            "`in_features` must be an int or a pair of them; got (3, 5, 7)",
        ),
        (
            lambda: GraphAttentionV2Layer((3, 5), 8, 2)(torch.zeros(4, 3), torch.ones(4, 4, 1)),
            ValueError,
            "`h` must have shape (*batch, n_nodes, in_features=5); got (4, 3): "
            "the layer has in_features=(3, 5)",
        ),
        (
            lambda: GraphAttentionV2Layer((3, 5), 8, 2)(
                (torch.zeros(4, 5), torch.zeros(7, 3)), torch.ones(4, 7, 1)
            ),
            ValueError,
            "`h[0]` must have shape (*batch, n_nodes, in_features=3); got (4, 5)",
        ),
        (
            lambda: GraphAttentionV2Layer(3, 8, 2)(
                (torch.zeros(4, 3), None),  # type: ignore[arg-type]
                torch.ones(4, 4, 1),
            ),
            TypeError,
            "`h[1]` must be a torch.Tensor, dense or sparse, or a scipy.sparse matrix; got NoneType",
        ),
        (
            lambda: GraphAttentionV2Layer(3, 8, 2)(
                (torch.zeros(4, 3),),  # type: ignore[arg-type]
                torch.ones(4, 4, 1),
            ),
            TypeError,
            "`h` must be a torch.Tensor or a pair of them; got 1 of them",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)
