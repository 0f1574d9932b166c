"""The last backward pass of a layer overwrites queries and keys, and no other pass does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer

pytestmark = pytest.mark.skipif(
    pytest.importorskip("gatv2.numba.available").FAILURE is not None, reason="needs Numba"
)

from gatv2.numba import gradients as kernels  # noqa: E402
from gatv2.numba.threads import run_chunks  # noqa: E402

N_FEATURES, N_OUT, N_HEADS = 6, 64, 8
"""Heads and features of which no row needs padding."""
SIZES = {"short rows": (50, 300), "long rows": (9, 30_000)}


class Step:
    """A layer's output and what it is a function of."""

    def __init__(self, n_nodes: int, n_edges: int, dtype: torch.dtype, **options: Any) -> None:
        torch.manual_seed(0)
        edge_dim = options.get("edge_dim")
        self.layer = GraphAttentionV2Layer(
            N_FEATURES, N_OUT, N_HEADS, **{"dropout": 0.3, "dtype": dtype, **options}
        )
        self.graph = Graph.from_edge_index(torch.randint(n_nodes, (2, n_edges)), n_nodes)
        self.h = torch.randn(n_nodes, N_FEATURES, dtype=dtype, requires_grad=True)
        self.x = None if edge_dim is None else torch.randn(n_edges, edge_dim, dtype=dtype)
        self.inputs = [self.h, *self.layer.parameters()]
        self.out = self.layer(self.h, self.graph, edge_features=self.x, seed=3)
        assert self.out.grad_fn is not None
        assert self.out.grad_fn.name() == "_ProjectedBackward"
        self.cotangent = torch.randn_like(self.out).requires_grad_()

    def gradients(self, **options: bool) -> tuple[Tensor, ...]:
        """Those of the inputs."""
        return torch.autograd.grad(self.out, self.inputs, self.cotangent, **options)


def assert_same_bits(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_one_bit_is_seen() -> None:
    a = torch.randn(3)
    with pytest.raises(AssertionError):
        assert_same_bits((a,), (a.nextafter(a + 1),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"edge_dim": 5}, {"share_weights": True}, {"bias": "projections"}]
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_pass_is_repeated_while_the_graph_is_kept(
    n_parts: int,
    size: str,
    options: dict[str, Any],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "count_parts", lambda *_: n_parts)
    step = Step(*SIZES[size], dtype, **options)
    expected = step.gradients(retain_graph=True)
    assert_same_bits(step.gradients(retain_graph=True), expected)
    assert_same_bits(step.gradients(), expected)
    with pytest.raises(RuntimeError, match="a second time"):
        step.gradients()


def test_what_was_differentiated_again_is_kept() -> None:
    def upon(step: Step) -> Callable[[], Tensor]:
        """The gradient, in the cotangent, of what a pass that is differentiated again has given."""
        first, *_ = step.gradients(create_graph=True)
        weight = torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
        return lambda: torch.autograd.grad(first, step.cotangent, weight)[0]

    ask = upon(Step(*SIZES["short rows"], torch.float32))
    expected = ask()
    step = Step(*SIZES["short rows"], torch.float32)
    ask = upon(step)
    step.gradients()  # the last pass of this graph, but not the last to read queries and keys
    assert_same_bits((ask(),), (expected,))


@pytest.mark.parametrize("outer_is_last", [False, True])
def test_a_pass_within_another_one_is_right_or_refused(
    outer_is_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As threads may come to one graph at once, though all but the last pass are to keep it."""
    expected = Step(*SIZES["short rows"], torch.float32).gradients()
    step = Step(*SIZES["short rows"], torch.float32)
    found: list[tuple[Tensor, ...]] = []

    def run_another_pass_first(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(kernels, "run_chunks", run_chunks)
        if outer_is_last:
            with pytest.raises(RuntimeError, match="in another thread"):
                step.gradients(retain_graph=True)
        else:
            found.append(step.gradients())
        run_chunks(*arguments, **options)

    monkeypatch.setattr(kernels, "run_chunks", run_another_pass_first)
    found.append(step.gradients(retain_graph=not outer_is_last))
    for gradients in found:
        assert_same_bits(gradients, expected)


def test_after_an_interrupted_pass_the_next_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    step = Step(*SIZES["short rows"], torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "run_chunks", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step.gradients(retain_graph=True)
    expected = step.gradients(retain_graph=True)  # which overwrites nothing
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "run_chunks", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step.gradients()
    with pytest.raises(RuntimeError, match=r"failed.*call the layer again"):
        step.gradients()
    again = Step(*SIZES["short rows"], torch.float32)
    assert_same_bits(again.gradients(), expected)
