"""A plugin of pytest (`-p jax_kernels`): the kernels of `gatv2.jax` stand beside those of PyTorch.

So the laws that kernels obey are tested of them too, by the same tests. Whatever PyTorch asks of a
function, its gradients, those along a direction, a `vmap`, is asked of JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import pytest
import torch
from torch import Tensor

import gatv2.jax as gat
from gatv2 import dispatch
from gatv2.graph import Graph
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.jax.dispatch import KERNELS
from gatv2.jax.edge_features import EdgeInputs as EdgeArrays
from gatv2.torch_internals import without_transforms

Arrays = tuple[jax.Array, ...]

NAMES = {"jax": "jax", "auto": "jax-fused"}
"""Of JAX's kernels, as those of PyTorch are named; "numba" is what "auto" is on the CPU."""


class Function(Protocol):
    """A function of JAX, which is static, of a graph with a seed, and of arrays."""

    def __call__(self, given: Any, *arrays: jax.Array) -> Arrays: ...


@dataclass(frozen=True)
class Attend:
    """Attention by a kernel of JAX: of query, key, attn, and what edges have."""

    name: str
    backend: str
    negative_slope: float
    dropout: float
    return_attention: bool
    has_edges: bool
    has_bias: bool

    def __call__(self, given: Any, *arrays: jax.Array) -> Arrays:
        (kernel,) = (k for k in KERNELS if (k.name, k.backend) == (self.name, self.backend))
        (adjacency, seed), (query, key, attn, *more) = given, arrays
        out, lse, alpha = kernel.attention(
            query,
            key,
            attn,
            adjacency,
            EdgeArrays(*more[:2]) if self.has_edges else None,
            negative_slope=self.negative_slope,
            dropout=self.dropout,
            seed=seed,
            return_attention=self.return_attention,
            score_bias=more[-1] if self.has_bias else None,
        )
        if alpha is None:
            return out, lse
        is_graph = isinstance(adjacency, gat.Graph)
        return out, lse, adjacency.in_callers_order(alpha, axis=-2) if is_graph else alpha


@dataclass(frozen=True)
class Gradients:
    """Of a function: of its arrays, and then cotangents of its results."""

    function: Function
    n_arrays: int

    def __call__(self, given: Any, *arrays: jax.Array) -> Arrays:
        primals, cotangents = arrays[: self.n_arrays], arrays[self.n_arrays :]
        gradients: Arrays = jax.vjp(partial(self.function, given), *primals)[1](cotangents)
        return gradients


@dataclass(frozen=True)
class Along:
    """The derivatives of a function's results: of its arrays, and then a direction of each."""

    function: Function

    def __call__(self, given: Any, *arrays: jax.Array) -> Arrays:
        n = len(arrays) // 2
        tangents: Arrays = jax.jvp(partial(self.function, given), arrays[:n], arrays[n:])[1]
        return tangents


@dataclass(frozen=True)
class Mapped:
    """A function under `vmap`."""

    function: Function
    axes: tuple[int | None, ...]

    def __call__(self, given: Any, *arrays: jax.Array) -> Arrays:
        results: Arrays = jax.vmap(partial(self.function, given), in_axes=self.axes)(*arrays)
        return results


def call(function: Function, given: Any, *arrays: jax.Array) -> Arrays:
    """A function of JAX, compiled once for one size."""
    return function(given, *arrays)


compiled = jax.jit(call, static_argnums=0)


class Apply(torch.autograd.Function):
    """A function of JAX as one of PyTorch, with its derivatives of every order."""

    @staticmethod
    def forward(function: Function, given: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        arrays = (gat.as_jax(tensor.contiguous()) for tensor in tensors)
        # what PyTorch writes to is not shared with JAX
        return tuple(gat.as_torch(result).clone() for result in compiled(function, given, *arrays))

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Any) -> None:
        context.function, context.given, *tensors = inputs
        context.save_for_backward(*tensors)
        context.save_for_forward(*tensors)

    @staticmethod
    def backward(context: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors = context.saved_tensors
        function = Gradients(context.function, len(tensors))
        return None, None, *apply(function, context.given, *tensors, *cotangents)

    @staticmethod
    def jvp(context: Any, _function: None, _given: None, *tangents: Tensor | None) -> Any:
        tensors = context.saved_tensors
        direction = (
            torch.zeros_like(tensor) if tangent is None else tangent
            for tensor, tangent in zip(tensors, tangents, strict=True)
        )
        return apply(Along(context.function), context.given, *tensors, *direction)

    @staticmethod
    def vmap(info: Any, axes: Any, function: Function, given: Any, *tensors: Tensor) -> Any:
        results = apply(Mapped(function, tuple(axes[2:])), given, *tensors)
        return results, (0,) * len(results)


apply: Callable[..., tuple[Tensor, ...]] = Apply.apply


def attention_of(name: str, backend: str) -> dispatch.Attention:
    """A kernel of JAX with the signature of those of PyTorch."""

    def attend(
        query: Tensor,
        key: Tensor,
        attn: Tensor,
        adjacency: Any,
        /,
        *,
        negative_slope: float,
        dropout: float,
        seed: Tensor | None,
        return_attention: bool,
        edges: EdgeInputs | None = None,
        score_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        is_graph = isinstance(adjacency, Graph)
        with without_transforms():
            given = (
                gat.Graph.from_torch(adjacency) if is_graph else gat.as_jax(adjacency.contiguous()),
                None if seed is None else gat.random.as_seed(int(seed)),
            )
        function = Attend(
            name,
            backend,
            negative_slope,
            dropout,
            return_attention,
            edges is not None,
            score_bias is not None,
        )
        more = (*(edges or ()), *(() if score_bias is None else (score_bias,)))
        out, lse, *alpha = apply(function, given, query, key, attn, *more)
        return out, lse, alpha[0] if alpha else None

    return attend


def unsupported(*_features: Tensor) -> list[str]:
    """JAX is called from Python, which PyTorch's compiler does not see."""
    return ["it is called from Python"] if torch.compiler.is_compiling() else []


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Put kernels of JAX beside the others, before anybody asks for them.

    Not on import: whoever looks for doctests imports this.
    """
    jax.config.update("jax_enable_x64", True)
    dispatch.KERNELS += tuple(
        dispatch.Kernel(NAMES[kernel.name], kernel.backend, attention, unsupported)
        for kernel in KERNELS
        if kernel.name in NAMES
        for attention in (attention_of(kernel.name, kernel.backend),)
    )
