"""JAX, dense and sparse, gives the values and the gradients of the PyTorch dense reference."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gatv2
from gatv2.testing import assert_agrees, masks

jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
KERNELS = tuple(kernel for kernel in gat.dispatch.KERNELS if kernel.name not in ("numba", "pallas"))
"""Without "numba", which "auto" is on the CPU."""


class Case(NamedTuple):
    """Sizes and options; few, since JAX compiles for each."""

    n_queries: int
    n_keys: int
    n_heads: int
    n_hidden: int
    batch_shape: tuple[int, ...] = ()
    mask_heads: int = 1
    mask_batch: tuple[int, ...] = ()
    slope: float = 0.2
    dropout: float = 0.0


CASES = (
    Case(7, 5, 3, 2),
    Case(5, 11, 5, 3, dropout=0.4, slope=-0.5),
    Case(3, 7, 2, 5, batch_shape=(2,), mask_heads=2, dropout=0.3),
    Case(5, 2, 3, 7, batch_shape=(3, 2), mask_heads=3, mask_batch=(3, 2), dropout=0.9),
    Case(1, 13, 8, 1, batch_shape=(2,), mask_batch=(2,), slope=1.0),
)


class Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    attn: Tensor
    cotangent: Tensor
    mask: Tensor
    seed: int

    def to(self, dtype: torch.dtype) -> "Inputs":
        query, key, attn, cotangent = (x.to(dtype) for x in self[:4])
        return Inputs(query, key, attn, cotangent, self.mask, self.seed)


@pytest.fixture(autouse=True)
def _64_bits() -> Any:
    with jax.enable_x64(True):
        yield


def draw_inputs(data: st.DataObject, case: Case) -> Inputs:
    mask = data.draw(masks(case.n_queries, case.n_keys, case.mask_heads, case.mask_batch))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    heads = (case.n_heads, case.n_hidden)
    return Inputs(
        query=normal(*case.batch_shape, case.n_queries, *heads),
        key=normal(*case.batch_shape, case.n_keys, *heads),
        attn=normal(*heads),
        cotangent=normal(*case.batch_shape, case.n_queries, *heads),
        mask=mask,
        seed=data.draw(st.integers(-(2**63), 2**63 - 1)),
    )


def in_torch(inputs: Inputs, case: Case, **options: Any) -> list[Tensor]:
    """Value and gradients to query, key and attn."""
    query, key, attn = leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    out = gatv2.gatv2_attention(
        query,
        key,
        attn,
        inputs.mask,
        negative_slope=case.slope,
        dropout=case.dropout,
        seed=inputs.seed,
        kernel="torch",
        **options,
    )
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs.cotangent)]


@partial(jax.jit, static_argnames=("slope", "dropout", "kernel"))
def value_and_gradients(
    features: Any, cotangent: Any, graph: Any, seed: Any, slope: float, dropout: float, kernel: str
) -> Any:
    def function(query: Any, key: Any, attn: Any) -> Any:
        return gat.gatv2_attention(
            query,
            key,
            attn,
            graph,
            negative_slope=slope,
            dropout=dropout,
            seed=seed,
            kernel=kernel,
        )

    out, pullback = jax.vjp(function, *features)
    return out, *pullback(cotangent)


def in_jax(inputs: Inputs, case: Case, kernel: Any) -> list[Tensor]:
    query, key, attn, cotangent, graph = (gat.as_jax(x) for x in inputs[:5])
    if kernel.backend == "sparse":
        graph = gat.Graph.from_mask(graph)
        graph = graph.padded(int(np.prod(case.mask_batch)) * case.n_queries * case.n_keys)
    seed = gat.random.as_seed(inputs.seed)
    values = value_and_gradients(
        (query, key, attn), cotangent, graph, seed, case.slope, case.dropout, kernel.name
    )
    return [gat.as_torch(value) for value in values]


kernels = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.backend}-{k.name}")


@kernels
@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case[:4])))
@given(data=st.data())
@settings(max_examples=15)
def test_float64(kernel: Any, case: Case, data: st.DataObject) -> None:
    """To 1e-10, with dropout on from one seed, isolated queries, padding, head masks and batches."""
    inputs = draw_inputs(data, case)
    exact = in_torch(inputs, case, backend="dense")
    for e, s in zip(exact, in_torch(inputs, case, backend="sparse"), strict=True):
        assert_agrees(s, e)
    for a, e in zip(in_jax(inputs, case, kernel), exact, strict=True):
        assert_agrees(a, e)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(data=st.data())
@settings(max_examples=6)
def test_low_precision(kernel: Any, dtype: torch.dtype, data: st.DataObject) -> None:
    """As good as PyTorch in the same dtype, and in that dtype."""
    case = CASES[1]
    inputs = draw_inputs(data, case).to(dtype)
    exact = in_torch(inputs.to(torch.float64), case, backend="dense")
    reference = in_torch(inputs, case, backend="dense")
    for a, e, r in zip(in_jax(inputs, case, kernel), exact, reference, strict=True):
        assert a.dtype == dtype
        assert_agrees(a, e, r)


@kernels
@given(data=st.data())
@settings(max_examples=10)
def test_returned_attention_and_its_gradients(kernel: Any, data: st.DataObject) -> None:
    """In the caller's order of edges, zero for padding; a cotangent on it reaches every input."""
    case = CASES[2]
    inputs = draw_inputs(data, case)
    graph: Any = inputs.mask
    n_edges = int(inputs.mask.any(-1).sum())
    if kernel.backend == "sparse":
        order = torch.randperm(n_edges)
        graph = gatv2.Graph.from_mask(inputs.mask)
        graph = replace(graph, edge_id=order.to(graph.edge_id.dtype))
    query, key, attn = leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    options: Any = {"dropout": 0.3, "return_attention": True, "kernel": "torch"}
    out, alpha = gatv2.gatv2_attention(query, key, attn, graph, seed=inputs.seed, **options)
    weights = torch.randn(alpha.shape, dtype=alpha.dtype)
    gradients = torch.autograd.grad((out, alpha), leaves, (inputs.cotangent, weights))

    padding = 0
    if isinstance(graph, gatv2.Graph):
        padding = case.n_queries * case.n_keys - n_edges
        graph = gat.Graph.from_torch(graph).padded(n_edges + padding)
        weights = torch.nn.functional.pad(weights, (0, 0, 0, padding), value=1.0)
    else:
        graph = gat.as_jax(graph)
    actual = attention_and_gradients(
        tuple(gat.as_jax(x) for x in inputs[:3]),
        (gat.as_jax(inputs.cotangent), gat.as_jax(weights)),
        graph,
        gat.random.as_seed(inputs.seed),
        kernel.name,
    )
    actual_out, actual_alpha, *actual_gradients = (gat.as_torch(x) for x in actual)
    assert not actual_alpha[..., n_edges:, :].any() or kernel.backend == "dense"
    actual_alpha = actual_alpha[..., : alpha.shape[-2], :]
    expected = (out.detach(), alpha.detach(), *gradients)
    for a, e in zip((actual_out, actual_alpha, *actual_gradients), expected, strict=True):
        assert_agrees(a, e)


@partial(jax.jit, static_argnames="kernel")
def attention_and_gradients(
    features: Any, cotangents: Any, graph: Any, seed: Any, kernel: str
) -> Any:
    def function(query: Any, key: Any, attn: Any) -> Any:
        return gat.gatv2_attention(
            query,
            key,
            attn,
            graph,
            dropout=0.3,
            seed=seed,
            kernel=kernel,
            return_attention=True,
        )

    outputs, pullback = jax.vjp(function, *features)
    return *outputs, *pullback(cotangents)


def test_another_seed_is_seen() -> None:
    """What agreement must reject: other edges dropped."""
    case = CASES[1]
    mask = torch.ones(case.n_queries, case.n_keys, 1, dtype=torch.bool)
    query, key, attn, cotangent = (
        torch.randn(*shape, case.n_heads, case.n_hidden, dtype=torch.float64)
        for shape in ((case.n_queries,), (case.n_keys,), (), (case.n_queries,))
    )
    inputs = Inputs(query, key, attn, cotangent, mask, seed=3)
    exact = in_torch(inputs._replace(seed=4), case, backend="dense")
    for kernel in KERNELS[:2]:
        with pytest.raises(AssertionError, match=r"largest error"):
            assert_agrees(in_jax(inputs, case, kernel)[0], exact[0])
