"""Each assertion rejects what it must reject, NaN included."""

import pytest
import torch
from hypothesis import find
from hypothesis import strategies as st

from gatv2.testing import (
    assert_agrees,
    assert_rows_sum_to_one,
    attention_inputs,
    edge_indices,
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


def test_strategies_reach_the_corners() -> None:
    """Empty and full masks, isolated nodes, parallel edges, batches, masks per head."""
    assert not find(masks(3, 4), lambda mask: not mask.any()).any()
    assert find(masks(3, 4), lambda mask: bool(mask.all())).all()
    find(masks(5, 5), lambda mask: bool(mask.any()) and not mask.any(-2).all())
    find(edge_indices(3, 3), lambda edges: len(set(map(tuple, edges.T.tolist()))) < edges.shape[1])
    find(attention_inputs(), lambda inputs: inputs.query.ndim == 5 and inputs.mask.ndim == 5)
    find(attention_inputs(), lambda inputs: inputs.mask.shape[-1] > 1)
    find(st.tuples(edge_indices(0, 3)), lambda drawn: drawn[0].shape == (2, 0))
