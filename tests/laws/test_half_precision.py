"""Half precision is computed in float32 or float64 and rounded once, for rows of up to 100,000 edges.

Single precision is summed as carefully.
"""

from typing import Any

import pytest
import torch
from attention import attention_over, by
from rounding import assert_rounded_once
from torch import Tensor

from gatv2 import Graph
from gatv2.dispatch import Kernel
from gatv2.functional import gat_attention

HALF = [torch.float16, torch.bfloat16]


def test_assert_rounded_once_rejects_a_sum_in_half_precision() -> None:
    values = torch.full((3000,), 0.1, dtype=torch.bfloat16)
    assert_rounded_once(values.sum(dtype=torch.float32).bfloat16(), values.double().sum())
    naive = torch.zeros((), dtype=torch.bfloat16)
    for value in values:
        naive = naive + value
    with pytest.raises(AssertionError, match="allowed"):
        assert_rounded_once(naive, values.double().sum())


def star(n_keys: int, *, to_hub: bool) -> Graph:
    """One query with many keys, or many queries with one key."""
    many, hub = torch.arange(n_keys), torch.zeros(n_keys, dtype=torch.long)
    pair = (hub, many) if to_hub else (many, hub)
    sizes = (1, n_keys) if to_hub else (n_keys, 1)
    return Graph.from_edge_index(torch.stack(pair), sizes)


def results(
    graph: Graph | Tensor,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    given: torch.dtype,
    *,
    of_edges: bool = False,
    **options: Any,
) -> list[Tensor]:
    """Out, alpha and log-sum-exp, and the gradients of random cotangents, from inputs in `given`."""
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(sizes[0], 2, 4), (sizes[1], 2, 4), (2, 4)]
    if of_edges:
        shapes += [(max(sizes), 2), (2, 4, 2), (max(sizes), 2)]
    # of one sign, so that what is lost in a sum does not cancel
    inputs = [torch.rand(shape, generator=generator).to(given).to(dtype) for shape in shapes]
    leaves = [x.requires_grad_() for x in inputs]
    attend = attention_over(graph, return_attention=True, return_lse=True, **options)
    outcome = attend(*leaves)
    cotangents = [torch.rand(x.shape, generator=generator).to(given).to(x.dtype) for x in outcome]
    gradients = torch.autograd.grad(outcome, leaves, cotangents)
    return [x.detach() for x in (*outcome, *gradients)]


@pytest.mark.parametrize("given", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("to_hub", [True, False])
@pytest.mark.parametrize(("degree", "of_edges"), [(300, False), (3_000, True), (100_000, False)])
@pytest.mark.many_edges
def test_of_a_hub(
    kernel: Kernel, given: torch.dtype, degree: int, to_hub: bool, of_edges: bool
) -> None:
    """Of edges that have features and a bias of their scores, too."""
    if kernel.name == "triton":  # interpreted, where an edge takes long: 25,000 at most
        degree = min(degree, 25_000)
    graph = star(degree, to_hub=to_hub)
    sizes = graph.n_queries, graph.n_keys
    options: Any = {"backend": kernel.backend, "of_edges": of_edges}
    exact = results(graph, sizes, torch.float64, given, kernel="torch", **options)
    actual = results(graph, sizes, given, given, kernel=kernel.name, **options)
    for a, e in zip(actual, exact, strict=True):
        assert_rounded_once(a, e)


@pytest.mark.parametrize("given", HALF, ids=str)
@pytest.mark.many_edges
def test_under_autocast(kernel: Kernel, given: torch.dtype) -> None:
    """What autocast lowers is not what attention sums."""
    graph, options = star(3_000, to_hub=True), by(kernel)
    expected = results(graph, (1, 3_000), given, given, **options)
    with torch.autocast("cpu", given):
        actual = results(graph, (1, 3_000), given, given, **options)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("given", HALF, ids=str)
@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_of_the_static_control(backend: Any, given: torch.dtype) -> None:
    def control(dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, 2, 4), (3_000, 2, 4), (2, 4), (2, 4)]
        query, key, attn_query, attn_key = leaves = [
            torch.rand(shape, generator=generator).to(given).to(dtype).requires_grad_()
            for shape in shapes
        ]
        graph = star(3_000, to_hub=True)
        out, alpha = gat_attention(
            query, key, attn_query, attn_key, graph, backend=backend, return_attention=True
        )
        cotangents = [
            torch.rand(x.shape, generator=generator).to(given).to(dtype) for x in (out, alpha)
        ]
        gradients = torch.autograd.grad((out, alpha), leaves, cotangents)
        return [x.detach() for x in (out, alpha, *gradients)]

    for actual, exact in zip(control(given), control(torch.float64), strict=True):
        assert_rounded_once(actual, exact)
