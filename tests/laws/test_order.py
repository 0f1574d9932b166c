"""Names of nodes and the order of edges carry no meaning."""

from typing import Any

import torch
from attention import with_or_without_bias
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import GraphAttentionV2Layer, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.testing import (
    SIZES,
    AttentionInputs,
    assert_agrees,
    edge_indices,
    permuted,
)


@given(inputs=with_or_without_bias(is_square=True))
def test_permuting_nodes_permutes_the_output(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs
) -> None:
    permutation = torch.randperm(inputs.query.shape[-3])

    def attend(data: AttentionInputs, backend: Any, name: str, *, renamed: bool) -> Tensor:
        query, key, mask, bias = data.query, data.key, data.mask, data.score_bias
        if renamed:
            query, key = query[..., permutation, :, :], key[..., permutation, :, :]
            mask = permuted(mask, permutation)
            bias = None if bias is None else permuted(bias, permutation)
        options: dict[str, Any] = {"backend": backend, "kernel": name, "score_bias": bias}
        out: Tensor = gatv2_attention(query, key, data.attn, mask, **options)
        return out

    rounded = inputs.to(dtype)
    exact = attend(rounded.to(torch.float64), "dense", "torch", renamed=False)
    reference = attend(rounded, "dense", "torch", renamed=False)
    actual = attend(rounded, kernel.backend, kernel.name, renamed=True)
    assert_agrees(actual, exact[..., permutation, :, :], reference[..., permutation, :, :])


@given(data=st.data())
def test_the_order_of_edges_does_not_matter(dtype: torch.dtype, data: st.DataObject) -> None:
    """Not to the last bit, with dropout on and a bias, and coefficients follow their edges."""
    n_nodes = data.draw(st.sampled_from(SIZES))
    edge_index = torch.unique(data.draw(edge_indices(n_nodes, n_nodes)), dim=1)
    order = torch.randperm(edge_index.shape[1])
    layer = GraphAttentionV2Layer(5, 6, 3, dropout=0.5, backend="sparse", dtype=dtype)
    h = torch.randn(n_nodes, 5, dtype=dtype)
    bias = torch.randn(edge_index.shape[1], data.draw(st.sampled_from((1, 3))), dtype=dtype)
    options: dict[str, Any] = {"seed": 3, "return_attention": True}
    out, alpha = layer(h, edge_index, score_bias=bias, **options)
    shuffled_out, shuffled_alpha = layer(h, edge_index[:, order], score_bias=bias[order], **options)
    assert torch.equal(out, shuffled_out)
    assert torch.equal(alpha[order], shuffled_alpha)
