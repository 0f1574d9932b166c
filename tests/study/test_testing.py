"""Each assertion rejects what it must reject, NaN included."""

import math

import pytest
import torch
from hypothesis import find
from hypothesis import strategies as st

from gatv2.testing import (
    assert_agrees,
    assert_rows_sum_to_one,
    attention_inputs,
    edge_indices,
    edges_to_dense,
    largest_error,
    masks,
)

EXACT = torch.tensor([1.0, 2.0], dtype=torch.float64)
NAN = torch.tensor([1.0, torch.nan])


@pytest.mark.parametrize(
    ("actual", "text"),
    [
        (EXACT + 1e-9, "largest error 1e-09, allowed 2e-10"),
        (NAN.double(), "not finite"),
        (torch.tensor([1.0, torch.inf]).double(), "not finite"),
        (EXACT.unsqueeze(0), "shape"),
    ],
)
def test_agreement_in_double_precision(actual: torch.Tensor, text: str) -> None:
    assert_agrees(EXACT + 1e-12, EXACT)
    with pytest.raises(AssertionError, match=text):
        assert_agrees(actual, EXACT)


def test_agreement_in_single_precision() -> None:
    reference = (EXACT + 1e-5).float()
    assert_agrees((EXACT + 1.9e-5).float(), EXACT, reference)
    with pytest.raises(AssertionError, match="largest error"):
        assert_agrees((EXACT + 2.1e-5).float(), EXACT, reference)
    with pytest.raises(AssertionError, match="not finite"):
        assert_agrees(NAN, EXACT, reference)
    with pytest.raises(ValueError, match="needs a reference"):
        assert_agrees(EXACT.float(), EXACT)


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_agreement_with_what_is_not_finite_is_none(wrong: float) -> None:
    """Neither of what is exact nor of the reference: with infinity, any error would be allowed."""
    not_finite = torch.tensor([1.0, wrong])
    with pytest.raises(AssertionError, match="an exact value is not finite"):
        assert_agrees(EXACT, not_finite.double())
    with pytest.raises(AssertionError, match="a value of the reference is not finite"):
        assert_agrees(EXACT.float() + 5, EXACT, not_finite)


def test_a_reference_of_another_shape_is_none() -> None:
    with pytest.raises(AssertionError, match=r"a reference of shape \(1,\)"):
        assert_agrees(EXACT.float(), EXACT, torch.ones(1))


def test_the_largest_error_of_what_is_zero() -> None:
    zero, none = torch.zeros(2), torch.zeros(0)
    assert largest_error([zero, none], [zero.double(), none.double()]) == 0
    assert largest_error([zero + 0.1, zero], [zero.double(), zero.double()]) == torch.inf
    assert math.isnan(largest_error([zero, NAN], [zero.double(), zero.double()]))


@pytest.mark.parametrize("shape", [(1,), (1, 2), (0,), ()])
def test_the_largest_error_of_another_shape_is_none(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"not \(2,\)"):
        largest_error([torch.ones(shape)], [EXACT])


@pytest.mark.parametrize("edge", [(0, 2), (0, -1), (3, 0), (-1, 1)])
def test_an_edge_to_what_is_not_there_has_no_cell(edge: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match=r"must lie in \[0, [23]\); got"):
        edges_to_dense(torch.ones(2, 1), torch.tensor([(1, 1), edge]).T, (3, 2))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_edges_of_any_dtype_have_their_cells(dtype: torch.dtype) -> None:
    edge_index = torch.tensor([[0, 19, 19], [1, 0, 18]], dtype=dtype)
    dense = edges_to_dense(torch.ones(3, 1), edge_index, (20, 20))
    assert torch.equal(dense.squeeze(-1).nonzero().T, edge_index.long())


MASK = torch.tensor([[[True], [True]], [[False], [False]]])


def alpha(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(2, 2, 1)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (alpha(0.25, 0.7, 0, 0), "off by"),
        (alpha(1.5, -0.5, 0, 0), "negative"),
        (alpha(0.25, 0.75, 0.5, 0), "not zero where there is no edge"),
        (alpha(torch.nan, 0.75, 0, 0), "not finite"),
        (alpha(0, 0, 0, 0), "off by"),
    ],
)
def test_rows(wrong: torch.Tensor, text: str) -> None:
    assert_rows_sum_to_one(alpha(0.25, 0.75, 0, 0), MASK)
    with pytest.raises(AssertionError, match=text):
        assert_rows_sum_to_one(wrong, MASK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_rows_in_half_precision(dtype: torch.dtype) -> None:
    """The roundings of many keys make up for one another, and must not excuse a row of zeros."""
    mask = torch.ones(3, 1000, 1, dtype=torch.bool)
    alpha = torch.randn(3, 1000, 1).softmax(-2).to(dtype)
    assert_rows_sum_to_one(alpha, mask)
    for wrong in (alpha * 0, alpha * 1.1):
        with pytest.raises(AssertionError, match="off by"):
            assert_rows_sum_to_one(wrong, mask)


def test_strategies_reach_the_corners() -> None:
    """Empty and full masks, isolated nodes, parallel edges, batches, masks per head."""
    assert not find(masks(3, 4), lambda mask: not mask.any()).any()
    assert find(masks(3, 4), lambda mask: bool(mask.all())).all()
    find(masks(5, 5), lambda mask: bool(mask.any()) and not mask.any(-2).all())
    find(edge_indices(3, 3), lambda edges: len(set(map(tuple, edges.T.tolist()))) < edges.shape[1])
    find(attention_inputs(), lambda inputs: inputs.query.ndim == 5 and inputs.mask.ndim == 5)
    find(attention_inputs(), lambda inputs: inputs.mask.shape[-1] > 1)
    find(st.tuples(edge_indices(0, 3)), lambda drawn: drawn[0].shape == (2, 0))
