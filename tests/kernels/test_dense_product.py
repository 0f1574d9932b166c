"""Our products of projections are sums, but for rounding, and serve a layer as PyTorch's do."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.operator import products

dense_product = pytest.importorskip("gatv2.numba.dense_product")

LANES = {dtype: dense_product._least_lanes(np.dtype(dtype).itemsize) for dtype in ("f4", "f8")}
N_ROWS = st.sampled_from([1, 3, 4, 63, 64, 65, 130])
DTYPES = st.sampled_from(["f4", "f8"])


def assert_is_product(actual: Any, a: Any, b: Any, bias: Any = 0.0) -> None:
    """`actual` is `a @ b + bias` but for the rounding of its sums, one after the other."""
    unit = np.finfo(actual.dtype).eps
    a, b, bias = (np.asarray(x, np.float64) for x in (a, b, bias))
    bound = (a.shape[1] + 2) * unit * (np.abs(a) @ np.abs(b) + np.abs(bias))
    assert actual.shape == (len(a), b.shape[1])
    assert (np.abs(actual - (a @ b + bias)) <= bound).all()


def random(*shape: int, dtype: str = "f4") -> Any:
    return np.random.default_rng(len(shape) + sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("fault", ["one term less", "one row for another", "no bias"])
def test_a_wrong_product_is_seen(fault: str) -> None:
    a, b, bias = random(6, 40), random(40, 3), random(3)
    wrong = a @ b + bias
    assert_is_product(wrong, a, b, bias)
    if fault == "one term less":
        wrong = wrong - a[:, -1:] * b[-1]
    elif fault == "no bias":
        wrong = a @ b
    else:
        wrong[1] = wrong[0]
    with pytest.raises(AssertionError):
        assert_is_product(wrong, a, b, bias)


@given(
    n_rows=N_ROWS,
    depth=st.sampled_from([1, 2, 127, 128, 129, 300]),
    n_panels=st.integers(1, 5),
    dtype=DTYPES,
    has_bias=st.booleans(),
)
def test_projections(n_rows: int, depth: int, n_panels: int, dtype: str, has_bias: bool) -> None:
    n_outputs = n_panels * LANES[dtype]
    h, weight = random(n_rows, depth, dtype=dtype), random(n_outputs, depth, dtype=dtype)
    bias = random(n_outputs, dtype=dtype) if has_bias else None
    actual = dense_product.project(h, weight, bias, 1)
    assert_is_product(actual, h, weight.T, 0.0 if bias is None else bias)


@given(
    n_rows=N_ROWS,
    n_outputs=st.sampled_from([1, 5, 128, 140]),
    n_panels=st.integers(1, 4),
    dtype=DTYPES,
)
def test_gradients_of_features(n_rows: int, n_outputs: int, n_panels: int, dtype: str) -> None:
    n_inputs = n_panels * LANES[dtype]
    d_out, weight = random(n_rows, n_outputs, dtype=dtype), random(n_outputs, n_inputs, dtype=dtype)
    assert_is_product(dense_product.gradient_of_h(d_out, weight, 1), d_out, weight)


@given(n_rows=N_ROWS, other=st.sampled_from([1, 5, 66, 128]), dtype=DTYPES, turned=st.booleans())
def test_gradients_of_weights(n_rows: int, other: int, dtype: str, turned: bool) -> None:
    sizes = (other, 3 * LANES[dtype]) if turned else (3 * LANES[dtype], other)
    d_out, h = (random(n_rows, size, dtype=dtype) for size in sizes)
    actual = dense_product.gradient_of_weight(d_out, h, 1)
    assert_is_product(actual, d_out.T, h)
    assert actual.flags.c_contiguous


@pytest.mark.parametrize("sizes", [(64, 1024), (1024, 64)])
def test_threads_share_the_longer_side_of_a_gradient(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    n_chunks = []

    def counting(loop: Any, n_threads: int, n: int, *arguments: Any, n_copies: int) -> None:
        n_chunks.append(n)
        run_chunks(loop, n_threads, n, *arguments, n_copies=n_copies)

    run_chunks = dense_product.run_chunks
    monkeypatch.setattr(dense_product, "run_chunks", counting)
    d_out, h = (random(20, size) for size in sizes)
    assert_is_product(dense_product.gradient_of_weight(d_out, h, 2), d_out.T, h)
    assert n_chunks == [1024 // dense_product._CHUNK_ROWS]


@pytest.mark.parametrize("n_rows", [700, 5_000])
def test_same_bits_on_any_number_of_threads(n_rows: int) -> None:
    """Also of a sum that is cut into shares."""
    h, d_out = random(n_rows, 96), random(n_rows, 64)
    expected = dense_product.gradient_of_weight(d_out, h, 1)
    assert_is_product(expected, d_out.T, h)
    projected = dense_product.project(h, random(64, 96), random(64), 1)
    for n_threads in (2, 3):
        actual = dense_product.gradient_of_weight(d_out, h, n_threads)
        np.testing.assert_array_equal(actual, expected)
        actual = dense_product.project(h, random(64, 96), random(64), n_threads)
        np.testing.assert_array_equal(actual, projected)


def test_a_long_sum_rounds_as_one_of_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as one of all products in a row, which is off by 10 times as much."""
    monkeypatch.setattr(dense_product, "_MOST_SHARES", 0)
    depth, block = 1 << 17, dense_product._DEPTH
    d_out, h = np.full((depth, 1), 0.1, "f4"), np.full((depth, LANES["f4"]), 0.1, "f4")
    expected = depth * np.float64(h[0, 0]) ** 2
    error = np.abs(dense_product.gradient_of_weight(d_out, h, 1) / expected - 1)
    assert error.max() <= (block + depth // block) * np.finfo("f4").eps / 2


def test_a_bias_is_added_once_to_shares() -> None:
    h, weight = random(100, 40_000), random(64, 40_000)
    actual = dense_product.project(h, weight, np.full(64, 1e4, "f4"), 2)
    assert_is_product(actual, h, weight.T, np.full(64, 1e4))


def test_with_the_registers_of_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    h, weight, bias = random(70, 30), random(64, 30), random(64)
    expected = dense_product.project(h, weight, bias, 1)
    n_bytes = dense_product.sum_bytes()
    monkeypatch.setattr(dense_product, "sum_bytes", lambda: 256 if n_bytes == 1024 else 1024)
    np.testing.assert_array_equal(dense_product.project(h, weight, bias, 1), expected)


def test_what_is_not_finite_stays_so() -> None:
    h, weight = random(70, 30), random(64, 30)
    h[3, 4], h[69, 0] = np.nan, np.inf
    actual = dense_product.project(h, weight, None, 1)
    assert np.isnan(actual[3]).all()
    assert np.isinf(actual[69]).all()
    assert np.isfinite(np.delete(actual, [3, 69], 0)).all()


@pytest.mark.parametrize(
    ("sizes", "can"), [((256, 64, 64), True), ((255, 64, 64), False), ((2560, 64, 63), False)]
)
def test_what_is_left_to_others(sizes: tuple[int, int, int], can: bool) -> None:
    assert dense_product.can_multiply(*sizes, 4) is can


# A layer, whose products are PyTorch's or ours.

N_NODES, N_EDGES = 40, 120


@pytest.fixture(params=[False, True], ids=["unbiased", "biased"])
def layer(request: pytest.FixtureRequest) -> GraphAttentionV2Layer:
    return GraphAttentionV2Layer(32, 32, 4, dropout=0.0, bias=request.param, dtype=torch.float64)


def _edges() -> Tensor:
    return torch.randint(N_NODES, (2, N_EDGES))


def _features(n_features: int = 32) -> Tensor:
    return torch.randn(N_NODES, n_features, dtype=torch.float64, requires_grad=True)


def outcome(layer: GraphAttentionV2Layer, h: Any, graph: Any) -> list[Tensor]:
    out = layer(h, graph)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    wanted = [
        x for x in (*(h if isinstance(h, tuple) else (h,)), *layer.parameters()) if x.requires_grad
    ]
    return [out, *torch.autograd.grad(out, wanted, cotangent)]


class Counted:
    """Our products, which count their calls."""

    def __init__(self) -> None:
        self.n_calls = 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(dense_product, name)
        self.n_calls += not name.startswith("can_")
        return function


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Products of any number of elements are ours, on every CPU."""
    monkeypatch.setattr(dense_product, "_CHUNK_WORK", 1)
    counted = Counted()
    monkeypatch.setattr(products, "_kernels", lambda: counted)
    return counted


def by_pytorch(monkeypatch: pytest.MonkeyPatch, run: Any) -> Any:
    with monkeypatch.context() as context:
        context.setattr(products, "_kernels", lambda: None)
        return run()


@pytest.mark.parametrize("share_weights", [False, True])
@pytest.mark.parametrize("wants_h", [False, True])
def test_a_layer_is_the_same(
    share_weights: bool, wants_h: bool, ours: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = GraphAttentionV2Layer(
        32, 32, 4, dropout=0.0, share_weights=share_weights, bias=True, dtype=torch.float64
    )
    h, graph = _features().requires_grad_(wants_h), Graph.from_edge_index(_edges(), N_NODES)
    expected = by_pytorch(monkeypatch, lambda: outcome(layer, h, graph))
    assert ours.n_calls == 0
    actual = outcome(layer, h, graph)
    assert ours.n_calls == (1 if share_weights else 2) * (3 if wants_h else 2)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "form", ["transposed", "negative", "zero", "narrow", "pair", "half", "expanded"]
)
def test_features_of_any_form(
    form: str, layer: GraphAttentionV2Layer, ours: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    h: Any = _features().detach()
    if form == "transposed":
        h = h.t().contiguous().t()
    elif form == "negative":
        h = torch.complex(h, h).conj().imag
        assert h.is_neg()
    elif form == "zero":
        h = torch._efficientzerotensor(h.shape, dtype=h.dtype)
    elif form == "narrow":
        h = torch.cat((h, h), 1)[:, :32]
    elif form == "pair":
        h = h, h[:17].clone()
    elif form == "expanded":
        h = h[:1].expand(N_NODES, 32)
    elif form == "half":
        layer, h = layer.bfloat16(), h.bfloat16()
    graph = _edges() % 17
    expected = by_pytorch(monkeypatch, lambda: outcome(layer, h, graph))
    tolerance = 0.0 if form == "half" else 1e-12
    torch.testing.assert_close(outcome(layer, h, graph), expected, rtol=tolerance, atol=tolerance)


def test_a_sparse_weight(
    layer: GraphAttentionV2Layer, ours: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is PyTorch's to multiply by."""
    weight = layer.linear_l.weight.detach().to_sparse_csr()
    layer.linear_l.weight = torch.nn.Parameter(weight, requires_grad=False)
    h, graph = _features(), Graph.from_edge_index(_edges(), N_NODES)
    expected = by_pytorch(monkeypatch, lambda: outcome(layer, h, graph))
    torch.testing.assert_close(outcome(layer, h, graph), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("ours")
def test_a_bias_of_another_dtype_is_an_error_of_pytorchs() -> None:
    layer = GraphAttentionV2Layer(32, 32, 4, bias=True, dtype=torch.float64)
    layer.linear_l.bias = torch.nn.Parameter(torch.ones(32, dtype=torch.float32))
    with pytest.raises(RuntimeError, match="must have the same dtype, but got Float and Double"):
        layer(_features(), _edges())


def test_derivatives_of_gradients(layer: GraphAttentionV2Layer, ours: Counted) -> None:
    edges, h = _edges(), _features()
    assert torch.autograd.gradgradcheck(lambda h: layer(h, edges), (h,), fast_mode=True)
    assert torch.autograd.gradcheck(lambda h: layer(h, edges), (h,), fast_mode=True)
    assert ours.n_calls > 0


def test_many_cotangents_at_once(layer: GraphAttentionV2Layer, ours: Counted) -> None:
    h, edges = _features(), _edges()
    cotangents = torch.randn(3, N_NODES, 32, dtype=torch.float64)
    out = layer(h, edges)
    together = torch.autograd.grad(out, h, cotangents, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = [torch.autograd.grad(out, h, each, retain_graph=True)[0] for each in cotangents]
    torch.testing.assert_close(together, torch.stack(one_by_one))


def test_the_size_of_features_can_be_changed_afterwards(
    layer: GraphAttentionV2Layer, ours: Counted
) -> None:
    h = _features().detach()
    layer(h, _edges()).sum().backward()
    assert ours.n_calls > 0
    h.resize_(2 * N_NODES, 32)
    assert h.untyped_storage().resizable()
    assert all(
        p.untyped_storage().resizable() for p in (layer.linear_l.weight, layer.linear_r.weight)
    )
