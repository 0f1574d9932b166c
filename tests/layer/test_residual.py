"""The residual is a projection of the queries' features, added after the heads are joined."""

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.testing import assert_agrees, masks


@pytest.mark.parametrize("layer_class", [GraphAttentionV2Layer, GraphAttentionLayer])
@pytest.mark.parametrize("is_concat", [False, True])
@given(mask=masks(5, 5))
def test_is_added_to_the_result(layer_class: Any, is_concat: bool, mask: Tensor) -> None:
    options: Any = {"bias": True, "dtype": torch.float64}
    layer = layer_class(3, 8, 2, is_concat, residual=True, **options).eval()
    torch.nn.init.normal_(layer.bias)
    plain = layer_class(3, 8, 2, is_concat, **options).eval()
    state = layer.state_dict()
    assert layer.linear_residual.bias is None
    residual = state.pop("linear_residual.weight")
    assert residual.shape == (8, 3)
    plain.load_state_dict(state)
    h = torch.randn(5, 3).double()
    for form in (mask, mask.squeeze(-1).nonzero().T):
        assert_agrees(layer(h, form), plain(h, form) + h @ residual.T)


def test_is_of_the_queries() -> None:
    layer = GraphAttentionV2Layer((3, 7), 8, 2, residual=True)
    out = layer((torch.randn(2, 3), torch.randn(5, 7)), torch.zeros(2, 5, 1, dtype=torch.bool))
    assert out.shape == (2, 8)
    turned = GraphAttentionV2Layer((7, 3), 8, 2, residual=True, flow="source_to_target")
    assert turned.linear_residual is not None
    assert turned.linear_residual.weight.shape == (8, 3)
