"""Assertions about attention over graphs, and what they compare; needs no Hypothesis."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def value_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor]:
    """The value of `function(*inputs)`, and the gradient of `(value * cotangent).sum()` to each input.

    Example:
        >>> x = torch.tensor([1.0, 2.0])
        >>> value_and_gradients(torch.square, [x], torch.tensor([1.0, 10.0]))
        [tensor([1., 4.]), tensor([ 2., 40.])]
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves, cotangent, allow_unused=True)
    zeros = (
        torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)
    )
    return [value.detach(), *zeros]


def largest_error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest of the results' errors, each relative to the largest entry of what is exact.

    NaN if one of them is, so compare it as `not error <= allowed`.

    Raises:
        ValueError: a result has not the shape of what is exact.

    Example:
        >>> largest_error([torch.tensor([1.0, 2.1])], [torch.tensor([1.0, 2.0]).double()])
        0.04999995231628418
    """
    errors = [
        _relative_error(result.detach().double(), expected)
        for result, expected in zip(results, exact, strict=True)
    ]
    return float(torch.stack(errors).max()) if errors else 0.0


def _relative_error(result: Tensor, exact: Tensor) -> Tensor:
    if result.shape != exact.shape:  # else they may broadcast
        raise ValueError(f"shape {tuple(result.shape)}, not {tuple(exact.shape)}")
    if not result.numel():
        return exact.new_zeros(())
    error = (result - exact).abs().max()
    return error if error == 0 else error / exact.abs().max()  # 0 / 0 is no error


def assert_agrees(actual: Tensor, exact: Tensor, reference: Tensor | None = None) -> None:
    """Assert that a result is as good as its dtype allows; NaN or infinity never is.

    In float64 it is within 1e-10 of `exact`, relative to the largest entry. In a lower precision its
    largest error is at most twice that of `reference`, or 64 roundings of the largest entry.

    Args:
        actual: the result.
        exact: the result in float64.
        reference: the result of a trusted function in the precision of `actual`; needed below float64.

    Raises:
        AssertionError: the shapes differ, the error is too large, or a value is not finite.
        ValueError: `reference` is needed.

    Example:
        >>> assert_agrees(torch.tensor([1.0]).double(), torch.tensor([1.0]).double())
        >>> assert_agrees(torch.tensor([1.1]).double(), torch.tensor([1.0]).double())
        Traceback (most recent call last):
        AssertionError: largest error 0.1, allowed 1e-10
    """
    actual, exact = actual.detach(), exact.detach()
    _require(actual.shape == exact.shape, f"shape {tuple(actual.shape)}, not {tuple(exact.shape)}")
    _require(bool(actual.isfinite().all()), "a value is not finite")
    _require(bool(exact.isfinite().all()), "an exact value is not finite")  # any would be near it
    if actual.numel() == 0:
        return
    scale = max(1.0, float(exact.abs().max()))
    if actual.dtype == torch.float64:
        allowed = 1e-10 * scale
    elif reference is None:
        raise ValueError(f"{actual.dtype} needs a reference of its own precision")
    else:
        reference = reference.detach()
        _require(reference.shape == exact.shape, f"a reference of shape {tuple(reference.shape)}")
        _require(bool(reference.isfinite().all()), "a value of the reference is not finite")
        of_reference = float((reference.double() - exact).abs().max())
        allowed = max(2 * of_reference, 64 * torch.finfo(actual.dtype).eps * scale)
    error = float((actual.double() - exact).abs().max())
    _require(error <= allowed, f"largest error {error:.3g}, allowed {allowed:.3g}")


def assert_rows_sum_to_one(alpha: Tensor, mask: Tensor) -> None:
    """Assert that coefficients are a distribution over the keys of each query, and zero elsewhere.

    Args:
        alpha: `[*batch, n_queries, n_keys, n_heads]`.
        mask: broadcasts with it, bool.

    Raises:
        AssertionError: a row of a query with keys does not sum to one, or a coefficient is negative,
            not finite, or not zero where there is no edge.
    """
    alpha, mask = alpha.detach(), mask.expand_as(alpha)
    _require(bool(alpha.isfinite().all()), "a coefficient is not finite")
    _require(bool((alpha >= 0).all()), "a coefficient is negative")
    _require(bool((alpha[~mask] == 0).all()), "a coefficient is not zero where there is no edge")
    total, expected = alpha.double().sum(-2), mask.any(-2).double()
    error = float((total - expected).abs().max()) if total.numel() else 0.0
    # half precision is computed in float32, and rounded once: not once more with each key
    computed = torch.promote_types(alpha.dtype, torch.float32)
    of_sum = torch.finfo(computed).eps * alpha.shape[-2]
    allowed = 8 * max(torch.finfo(alpha.dtype).eps, of_sum)
    _require(error <= allowed, f"the sum of a row is off by {error:.3g}, allowed {allowed:.3g}")


def _require(condition: bool, message: str) -> None:
    # not an assert statement, which `python -O` leaves out
    if not condition:
        raise AssertionError(message)


def edges_to_dense(values: Tensor, edge_index: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sum values of edges `[*batch, n_edges, n_heads]` into `[*batch, n_queries, n_keys, n_heads]`.

    Raises:
        IndexError: an edge has a query or a key that there is not.

    Example:
        >>> edges_to_dense(torch.tensor([[5.0]]), torch.tensor([[0], [1]]), (1, 2)).tolist()
        [[[0.0], [5.0]]]
    """
    n_queries, n_keys = shape
    query, key = edge_index.long()  # in eight bits a cell's number would not fit
    for name, index, n in (("query", query, n_queries), ("key", key, n_keys)):
        outside = index[(index < 0) | (index >= n)]
        if len(outside):  # its cell could be another edge's
            raise IndexError(f"each {name} must lie in [0, {n}); got {int(outside[0])}")
    cell = query * n_keys + key
    flat = values.new_zeros(*values.shape[:-2], n_queries * n_keys, values.shape[-1])
    summed: Tensor = flat.index_add(-2, cell, values)
    return summed.reshape(*values.shape[:-2], *shape, values.shape[-1])


def permuted(mask: Tensor, permutation: Tensor) -> Tensor:
    """A square mask `[*batch, n, n, heads]` with its nodes renamed."""
    return mask.index_select(-3, permutation).index_select(-2, permutation)
