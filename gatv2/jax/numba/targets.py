"""What XLA calls for kernel="numba": the fused operators of PyTorch, on XLA's own buffers.

They become known to XLA when a kernel is first asked for; Numba is imported when it is first called.
"""

import importlib
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import zip_longest
from typing import Any, Literal

import jax
import numpy as np
import torch
from torch import Tensor

from gatv2.jax.numba.xla_ffi import register

ARRAYS = {
    "sparse": (
        "query_ptr",
        "key_index",
        "key_ptr",
        "edges_by_key",
        "queries_by_key",
        "head_mask",  # None if it is missing
        "edge_id",  # the rest is always missing
        "query_id",
        "key_id",
    ),
    "dense": ("mask",),
}
"""Names of the arrays that tell a kernel the graph, as in the operators of PyTorch."""


def _forward(
    backend: str, inputs: list[Tensor], outputs: list[Tensor], attributes: dict[str, Any]
) -> None:
    attention, names = _operators(backend)[0], ARRAYS[backend]
    for (query, key, attn, seed, *arrays), (out, lse, alpha) in _mapped(inputs, outputs):
        results = attention(
            query=query,
            key=key,
            attn=attn,
            edge_features=None,
            edge_projection=None,
            **dict(zip_longest(names, arrays)),
            **_options(seed, attributes),
            with_alpha=alpha.numel() > 0,
        )
        for output, result in zip((out, lse, alpha), results, strict=True):
            if output.numel():
                output.copy_(result)


def _backward(
    backend: str, inputs: list[Tensor], outputs: list[Tensor], attributes: dict[str, Any]
) -> None:
    gradient, names = _operators(backend)[1], ARRAYS[backend]
    for call, gradients in _mapped(inputs, outputs):
        query, key, attn, seed, d_out, d_alpha, lse, *arrays = call
        results = gradient(
            d_out=d_out,
            d_lse=d_out.new_empty(0),  # JAX does not differentiate it
            d_alpha=d_alpha,
            lse=lse,
            query=query,
            key=key,
            attn=attn,
            edge_features=None,
            edge_projection=None,
            **dict(zip_longest(names, arrays)),
            **_options(seed, attributes),
            with_d_edge_features=False,
        )
        for output, result in zip(gradients, results[:3], strict=True):
            output.copy_(result)


def _operators(backend: str) -> tuple[Any, Any]:
    """A fused kernel and its gradient, as operators of PyTorch."""
    importlib.import_module(f"gatv2.{backend}.operator")  # defines them
    namespace = torch.ops.gatv2
    names = (f"{backend}_attention", f"{backend}_attention_backward")
    forward, backward = (getattr(namespace, name) for name in names)
    return forward, backward


def _options(seed: Tensor, attributes: dict[str, Any]) -> dict[str, Any]:
    low, high = seed.tolist()
    if high >= 2**31:
        high -= 2**32  # the sign of an int64
    has_dropout = attributes["dropout"] > 0
    return {
        "seed": torch.tensor(high << 32 | low) if has_dropout else None,
        "n_mapped": 0,
        **attributes,
    }


def _mapped(
    inputs: list[Tensor], outputs: list[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The calls that `vmap` put together: it gives every input as many more dimensions, 1 or all."""
    n_mapped = inputs[2].ndim - 2  # attn
    shape = outputs[0].shape[:n_mapped]
    for index in np.ndindex(*shape):

        def select(tensor: Tensor, index: tuple[int, ...] = index) -> Tensor:
            sizes = tensor.shape[:n_mapped]
            return tensor[tuple(i if n > 1 else 0 for i, n in zip(index, sizes, strict=True))]

        yield [select(x) for x in inputs], [select(x) for x in outputs]


@lru_cache
def target(backend: str, direction: Literal["forward", "backward"]) -> str:
    """The name under which XLA knows a kernel, from the first time that it is asked for."""
    jax.devices("cpu")  # a target that XLA rejects must not keep JAX from starting
    name = f"gatv2_{backend}_{direction}"
    register(name, partial(_forward if direction == "forward" else _backward, backend))
    return name
