"""A mask per head is each head alone with its own mask."""

import torch
from attention import by, with_or_without_bias
from hypothesis import given
from torch import Tensor

from gatv2 import Graph, gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.testing import AttentionInputs, assert_agrees, attention_inputs


@given(inputs=with_or_without_bias(has_head_mask=True))
def test_heads_do_not_see_each_other(
    kernel: Kernel, dtype: torch.dtype, inputs: AttentionInputs
) -> None:
    data = inputs.to(dtype)
    out = gatv2_attention(
        data.query, data.key, data.attn, data.mask, score_bias=data.score_bias, **by(kernel)
    )
    for head in range(data.attn.shape[0]):
        one = slice(head, head + 1)

        def of_head(bias: Tensor | None, one: slice = one) -> Tensor | None:
            return bias if bias is None or bias.shape[-1] == 1 else bias[..., one]

        alone, exact = (
            gatv2_attention(
                x.query[..., one, :],
                x.key[..., one, :],
                x.attn[one],
                x.mask[..., one],
                score_bias=of_head(x.score_bias),
                backend="dense",
                kernel="torch",
            )
            for x in (data, data.to(torch.float64))
        )
        assert_agrees(out[..., one, :], exact, alone)


@given(inputs=attention_inputs(has_head_mask=True, mask_has_batch=False))
def test_a_graph_keeps_them(inputs: AttentionInputs) -> None:
    graph = Graph.from_mask(inputs.mask)
    assert torch.equal(graph.to_mask().expand_as(inputs.mask), inputs.mask)
