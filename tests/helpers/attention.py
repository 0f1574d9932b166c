"""Attention as a function of its tensors alone, as gradients and transforms want it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import gatv2_attention
from gatv2.dispatch import Kernel
from gatv2.testing import AttentionInputs, attention_inputs

BIAS = ("score_bias",)
"""The names for `attention_over` of what follows query, key and attn in `tensors_of`."""


def by(kernel: Kernel) -> dict[str, Any]:
    """The options that make `gatv2_attention` take this kernel."""
    return {"backend": kernel.backend, "kernel": kernel.name}


def attention_over(
    adj_mat: Any,
    names: Sequence[str] = ("edge_features", "edge_projection", "score_bias"),
    /,
    **options: Any,
) -> Callable[..., Any]:
    """`gatv2_attention` over a graph, of query, key, attn, and maybe what `names` names."""

    def attend(query: Tensor, key: Tensor, attn: Tensor, *edges: Tensor) -> Any:
        of_edges: dict[str, Any] = dict(zip(names, edges, strict=False))
        return gatv2_attention(query, key, attn, adj_mat, **of_edges, **options)

    return attend


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Normal numbers in float64, which a test rounds to the dtype that it wants."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_few_shapes(inputs: AttentionInputs) -> AttentionInputs:
    """At most three heads of four features: each further tiling is compiled, and tested elsewhere."""
    names = ("query", "key", "attn", "cotangent")
    cropped: dict[str, Any] = {name: getattr(inputs, name)[..., :3, :4] for name in names}
    if inputs.score_bias is not None:
        cropped["score_bias"] = inputs.score_bias[..., :3]
    return replace(inputs, mask=inputs.mask[..., :3], **cropped)


def with_or_without_bias(**options: Any) -> st.SearchStrategy[AttentionInputs]:
    """Inputs of attention, some of them with a bias of the scores, and then of few shapes."""
    inputs = attention_inputs(has_score_bias=None, **options)
    return inputs.map(lambda drawn: drawn if drawn.score_bias is None else with_few_shapes(drawn))


def tensors_of(inputs: AttentionInputs) -> list[Tensor]:
    """Query, key, attn and, if there is one, the bias: for `attention_over(mask, BIAS)`."""
    tensors = (inputs.query, inputs.key, inputs.attn, inputs.score_bias)
    return [tensor for tensor in tensors if tensor is not None]


def is_used(inputs: AttentionInputs) -> Tensor:
    """The mask, without what the bias removes."""
    if inputs.score_bias is None:
        return inputs.mask
    return inputs.mask & (inputs.score_bias != -torch.inf)


def as_vector(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """All results of a function as one vector, so that what is derived from it sees each of them."""

    def vector(*tensors: Tensor) -> Tensor:
        return torch.cat([result.flatten() for result in function(*tensors)])

    return vector
