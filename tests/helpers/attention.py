"""Attention as a function of its tensors alone, as gradients and transforms want it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gatv2 import gatv2_attention
from gatv2.dispatch import Kernel


def by(kernel: Kernel) -> dict[str, Any]:
    """The options that make `gatv2_attention` take this kernel."""
    return {"backend": kernel.backend, "kernel": kernel.name}


def attention_over(adj_mat: Any, **options: Any) -> Callable[..., Any]:
    """`gatv2_attention` over a graph, of query, key, attn, and maybe edge features and projection."""

    def attend(query: Tensor, key: Tensor, attn: Tensor, *edges: Tensor) -> Any:
        names = ("edge_features", "edge_projection")[: len(edges)]
        of_edges: dict[str, Any] = dict(zip(names, edges, strict=True))
        return gatv2_attention(query, key, attn, adj_mat, **of_edges, **options)

    return attend


def as_vector(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """All results of a function as one vector, so that what is derived from it sees each of them."""

    def vector(*tensors: Tensor) -> Tensor:
        return torch.cat([result.flatten() for result in function(*tensors)])

    return vector
