"""Queries without keys give exact zeros with zero gradients; nothing is too small."""

from typing import Any

import pytest
import torch
from attention import BIAS, attention_over, by, tensors_of, with_or_without_bias
from hypothesis import given
from hypothesis import strategies as st

from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.testing import AttentionInputs, attention_inputs, value_and_gradients


@given(inputs=with_or_without_bias(has_head_mask=False), dropout=st.sampled_from((0.0, 0.5)))
def test_isolated_nodes_are_zero_and_untouched(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs, dropout: float
) -> None:
    """Whatever padding holds, NaN included."""
    data = inputs.to(dtype)
    batch_shape = data.query.shape[:-3]
    mask = data.mask.expand(*batch_shape, *data.mask.shape[-3:])
    is_isolated_query, is_isolated_key = ~mask.any(-2).squeeze(-1), ~mask.any(-3).squeeze(-1)
    query, key, *others = map(torch.clone, tensors_of(data))
    query[is_isolated_query] = torch.nan
    key[is_isolated_key] = torch.nan
    results = value_and_gradients(
        attention_over(data.mask, BIAS, dropout=dropout, seed=data.seed, **by(kernel)),
        (query, key, *others),
        data.cotangent,
    )
    out, grad_query, grad_key = results[:3]
    assert (out[is_isolated_query] == 0).all()
    assert (grad_query[is_isolated_query] == 0).all()
    assert (grad_key[is_isolated_key] == 0).all()
    for result in results:
        assert result.isfinite().all()


@pytest.mark.parametrize("layer_class", [GraphAttentionV2Layer, GraphAttentionLayer])
@pytest.mark.parametrize("backend", ["dense", "sparse"])
@pytest.mark.parametrize("batch_shape", [(), (2,), (0,)])
@pytest.mark.parametrize("n_nodes", [0, 1, 4])
def test_graphs_without_edges(
    layer_class: type[GraphAttentionV2Layer],
    backend: Any,
    batch_shape: tuple[int, ...],
    n_nodes: int,
    dtype: torch.dtype,
) -> None:
    layer = layer_class(3, 4, 2, backend=backend, dtype=dtype)
    h = torch.randn(*batch_shape, n_nodes, 3, dtype=dtype, requires_grad=True)
    forms = {
        "mask": torch.zeros(n_nodes, n_nodes, 1, dtype=torch.bool),
        "batch of masks": torch.zeros(*batch_shape, n_nodes, n_nodes, 1, dtype=torch.bool),
        "mask per head": torch.zeros(n_nodes, n_nodes, 2, dtype=torch.bool),
        "edge index": torch.zeros(2, 0, dtype=torch.int64),
    }
    for adj_mat in forms.values():
        out, _ = layer(h, adj_mat, return_attention=True)
        assert out.shape == (*batch_shape, n_nodes, 4)
        assert (out == 0).all()
        (grad,) = torch.autograd.grad(out, h, torch.randn_like(out))
        assert (grad == 0).all()


@given(inputs=attention_inputs())
def test_a_single_key_passes_its_value_on(kernel: Kernel, inputs: AttentionInputs) -> None:
    data = inputs.to(torch.float32)
    mask = torch.ones(data.query.shape[-3], 1, 1, dtype=torch.bool)
    value = data.key[..., :1, :, :]
    out = gatv2_attention(data.query, value, data.attn, mask, **by(kernel))
    torch.testing.assert_close(out, value.expand_as(out), rtol=1e-6, atol=0)
