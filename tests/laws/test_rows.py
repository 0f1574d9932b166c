"""The coefficients of a query are a distribution over its keys, and come in the caller's order."""

from typing import Any

import torch
from attention import by, is_used, with_or_without_bias
from hypothesis import given
from hypothesis import strategies as st

from gatv2 import Graph, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.testing import (
    SIZES,
    AttentionInputs,
    assert_rows_sum_to_one,
    edge_indices,
    edges_to_dense,
)


@given(inputs=with_or_without_bias(mask_has_batch=False))
def test_rows_sum_to_one(kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs) -> None:
    data = inputs.to(dtype)
    _, alpha = gatv2_attention(
        data.query,
        data.key,
        data.attn,
        data.mask,
        score_bias=data.score_bias,
        dropout=0.5,  # what comes back is from before dropout
        **by(kernel),
        return_attention=True,
    )
    if kernel.backend == "sparse":
        shape = (data.query.shape[-3], data.key.shape[-3])
        alpha = edges_to_dense(alpha, data.mask.any(-1).nonzero().T, shape)
    assert_rows_sum_to_one(alpha, is_used(data))


@given(data=st.data())
def test_coefficients_come_in_the_callers_order(kernel: Kernel, data: st.DataObject) -> None:
    n_queries, n_keys = data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from(SIZES))
    edge_index = data.draw(edge_indices(n_queries, n_keys))
    graph = Graph.from_edge_index(edge_index, (n_queries, n_keys))
    if kernel.backend == "dense":
        graph = graph.coalesce()
        edge_index = graph.edge_index
    assert torch.equal(graph.edge_index, edge_index.long())
    query, key = torch.randn(n_queries, 2, 3), torch.randn(n_keys, 2, 3)
    attn = torch.randn(2, 3)
    options: dict[str, Any] = {
        **by(kernel),
        "return_attention": True,
    }
    out, alpha = gatv2_attention(query, key, attn, graph, **options)
    if kernel.backend == "dense":
        alpha = alpha[edge_index[0], edge_index[1]]
    assert alpha.shape == (edge_index.shape[1], 2)
    message = alpha.unsqueeze(-1) * key[edge_index[1].long()]
    rebuilt = torch.zeros_like(out).index_add(0, edge_index[0], message)
    torch.testing.assert_close(rebuilt, out)
