"""A sparse `h` gives what the same numbers give dense: results, gradients, under every transform."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from gatv2 import GATv2, GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.graph.kept import _kept
from gatv2.inference import apply_in_blocks
from gatv2.sparse_features import _ours, as_features, drop_features, project, project_sides

N, N_FEATURES = 12, 30
EDGES = torch.tensor([[0, 1, 1, 5, 7, 7, 11], [3, 2, 1, 0, 7, 8, 4]])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "csr": Tensor.to_sparse_csr,
    "csc": Tensor.to_sparse_csc,
    "bsr": lambda h: h.to_sparse_bsr((2, 3)),
    "coo": Tensor.to_sparse_coo,
    "coo, in parts": lambda h: _in_two_parts(h),
    "csr of int32": lambda h: _with_int32(h.to_sparse_csr()),
    "scipy csr": lambda h: scipy.sparse.csr_array(h.numpy()),
    "scipy csc": lambda h: scipy.sparse.csc_matrix(h.numpy()),
    "scipy coo": lambda h: scipy.sparse.coo_array(h.numpy()),
}


def _in_two_parts(h: Tensor) -> Tensor:
    """Not coalesced: each entry is the sum of two."""
    coo = h.to_sparse_coo()
    rows, values = (
        torch.cat((coo.indices(),) * 2, 1),
        torch.cat((0.25 * coo.values(), 0.75 * coo.values())),
    )
    return torch.sparse_coo_tensor(rows, values, h.shape)


def _with_int32(h: Tensor) -> Tensor:
    indices = h.crow_indices().int(), h.col_indices().int()
    return torch.sparse_csr_tensor(*indices, h.values(), h.shape)


def features(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(N, N_FEATURES, generator=generator, dtype=torch.float64)
    h[torch.rand(N, N_FEATURES, generator=generator) < 0.9] = 0
    h[3] = 0  # a node without any
    return h.to(dtype)


def result_and_gradients(module: nn.Module, h: Any, *graph: Any) -> list[Tensor]:
    out = module(h, *graph)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out, *torch.autograd.grad(out, tuple(module.parameters()), cotangent)]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def unchecked(crow: list[int], column: list[int]) -> Tensor:
    parts = torch.tensor(crow), torch.tensor(column), torch.ones(len(column))
    return torch.sparse_csr_tensor(*parts, (2, N_FEATURES), check_invariants=False)


@pytest.mark.parametrize(
    ("crow", "column"),
    [
        ([0, 1, 2], [0, N_FEATURES]),
        ([0, 1, 2], [-1, 0]),
        ([0, 3, 2], [0, 1]),
        ([1, 1, 2], [0, 1]),
        ([0, 1, 3], [0, 1]),
    ],
)
def test_what_is_no_matrix_is_refused(crow: list[int], column: list[int]) -> None:
    linear = nn.Linear(N_FEATURES, 8, bias=False)
    assert project(linear, unchecked([0, 1, 2], [0, 1])).shape == (2, 8)
    with pytest.raises((ValueError, RuntimeError)):
        project(linear, unchecked(crow, column))


@pytest.mark.parametrize("width", [1, 5, 8, 64, 77, 512])
@pytest.mark.parametrize("shape", [(0, 4), (7, 40), (3000, 400)])
def test_compiled_products_are_those_of_pytorch(
    shape: tuple[int, int], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = torch.randn(shape, dtype=torch.float64)
    h[torch.rand(shape) < 0.8] = 0
    linear = nn.Linear(shape[1], width, bias=False, dtype=torch.float64)
    cotangent = torch.randn(width, shape[0], dtype=torch.float64).t()

    def outcome(n_threads: int) -> list[Tensor]:
        torch.set_num_threads(n_threads)
        out = project(linear, h.to_sparse_csr())
        return [out, *torch.autograd.grad(out, linear.weight, cotangent)]

    n_threads = torch.get_num_threads()
    try:
        one, two = outcome(1), outcome(2)
    finally:
        torch.set_num_threads(n_threads)
    assert_same(one, two, 0)
    monkeypatch.setattr("gatv2.sparse_features.import_failure", lambda: "it is not there")
    assert_same(one, outcome(n_threads), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [5, 64, 200])
def test_two_projections_at_once_have_the_bits_of_each(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse_product = pytest.importorskip("gatv2.numba.sparse_product")
    products, counts = sparse_product.products, []

    def counted(*arguments: Any) -> Any:
        counts.append(len(arguments[3]))
        return products(*arguments)

    monkeypatch.setattr(sparse_product, "products", counted)
    h = torch.randn(900, 333, dtype=dtype)
    h[torch.rand(h.shape) < 0.8] = 0
    h = h.to_sparse_csr()
    one, other = (nn.Linear(333, width, bias=i == 1, dtype=dtype) for i in range(2))
    cotangents = [torch.randn(900, width, dtype=dtype) for _ in range(2)]
    weights = one.weight, other.weight
    both = project_sides((one, other), (h, h), is_shared=False)
    actual = [*both, *torch.autograd.grad(both, weights, cotangents)]
    each = project(one, h), project(other, h)
    assert_same(actual, [*each, *torch.autograd.grad(each, weights, cotangents)], 0)
    assert counts == [2, 1, 1]


def test_two_projections_that_are_not_alike() -> None:
    h = features().to_sparse_csr()
    plain = nn.Linear(N_FEATURES, 8, dtype=torch.float64)
    frozen, hooked, wide = (nn.Linear(N_FEATURES, n, dtype=torch.float64) for n in (8, 8, 16))
    frozen.requires_grad_(False)
    hooked.register_forward_hook(lambda _module, _inputs, out: 2 * out)
    for other in (frozen, hooked, wide):
        for pair in ((plain, other), (other, plain)):
            both = project_sides(pair, (h, h), is_shared=False)
            assert_same(list(both), [linear(features()) for linear in pair], 1e-12)
    assert not project_sides((plain, frozen), (h, h), is_shared=False)[1].requires_grad
    one, same = project_sides((plain, wide), (h, h), is_shared=True)
    assert one is same


def test_a_weight_that_does_not_fit_is_refused_as_a_dense_matrix_is() -> None:
    linear, h = nn.Linear(N_FEATURES, 8), torch.ones(N, 4000)
    for features_ in (h, h.to_sparse_csr()):
        with pytest.raises(RuntimeError, match=r"\(12x4000 and 30x8\)"):
            project(linear, features_)


def test_without_outputs() -> None:
    linear = nn.Linear(N_FEATURES, 8, bias=False, dtype=torch.float64)
    linear.weight = nn.Parameter(linear.weight[:0])
    assert project(linear, features().to_sparse_csr()).shape == (N, 0)


def test_the_gradient_is_of_the_matrix_as_it_was() -> None:
    linear = nn.Linear(N_FEATURES, 8, dtype=torch.float64)
    h = features().to_sparse_csr()
    out = project(linear, h)
    expected = torch.autograd.grad(linear(features()).sum(), linear.weight)
    h.col_indices().numpy()[:] = 10**9  # which autograd does not see
    assert_same(list(torch.autograd.grad(out.sum(), linear.weight)), list(expected), 1e-12)
    with pytest.raises((ValueError, RuntimeError)):
        project(linear, h)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csc, torch.sparse_bsr])
def test_the_gradient_is_of_the_values_as_they_were(layout: torch.layout) -> None:
    """Of those in CSR autograd sees that they have been written to."""
    layer = GraphAttentionV2Layer(N_FEATURES, 8, 2, dropout=0.0, dtype=torch.float64)
    expected = torch.autograd.grad(layer(features(), EDGES).sum(), list(layer.parameters()))
    blocksize = (1, 1) if layout == torch.sparse_bsr else None
    h = features().to_sparse(layout=layout, blocksize=blocksize)
    out = layer(h, EDGES)
    h.values().mul_(2.0)
    gradients = torch.autograd.grad(out.sum(), list(layer.parameters()))
    assert_same(list(gradients), list(expected), 1e-12)


def test_another_matrix_is_told() -> None:
    layer = GraphAttentionV2Layer(N_FEATURES, 8, 2, dtype=torch.float64).eval()
    expected = result_and_gradients(layer, features(), EDGES)
    with pytest.raises(AssertionError):
        assert_same(result_and_gradients(layer, features(seed=1), EDGES), expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, dtype: torch.dtype) -> None:
    h = features(dtype)
    layer = GraphAttentionV2Layer(N_FEATURES, 8, 2, bias=True, residual=True, dtype=dtype).eval()
    actual = result_and_gradients(layer, FORMS[form](h), EDGES)
    assert_same(actual, result_and_gradients(layer, h, EDGES), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "layer",
    [
        GraphAttentionV2Layer(N_FEATURES, 8, 2, share_weights=True, dtype=torch.float64),
        GraphAttentionV2Layer(N_FEATURES, 8, 2, add_self_loops=True, dtype=torch.float64),
        GraphAttentionV2Layer(-1, 8, 2, dtype=torch.float64),
        GraphAttentionLayer(N_FEATURES, 8, 2, dtype=torch.float64),
        GATv2(N_FEATURES, 8, 3, n_heads=2, residual=True, dtype=torch.float64),
    ],
    ids=["shared", "loops", "lazy", "static", "stack"],
)
@pytest.mark.parametrize("has_mask", [False, True])
def test_layers(layer: nn.Module, has_mask: bool) -> None:
    h, graph = features(), EDGES
    if has_mask:
        graph = torch.zeros(N, N, 1, dtype=torch.bool)
        graph[tuple(EDGES)] = True
    layer.eval()
    actual = result_and_gradients(layer, h.to_sparse_csr(), graph)
    assert_same(actual, result_and_gradients(layer, h, graph), 1e-12)


@pytest.mark.parametrize("sparse_sides", [(True, True), (True, False), (False, True)])
def test_pairs(sparse_sides: tuple[bool, bool]) -> None:
    layer = GraphAttentionV2Layer((N_FEATURES, N_FEATURES), 8, 2, dtype=torch.float64).eval()
    pair = features(), features(seed=1)[:9]
    sparse = tuple(
        x.to_sparse_coo() if wants else x for x, wants in zip(pair, sparse_sides, strict=True)
    )
    graph = torch.tensor([[0, 4, 11, 11], [8, 0, 1, 2]])
    actual = result_and_gradients(layer, sparse, graph)
    assert_same(actual, result_and_gradients(layer, pair, graph), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    h = features(dtype)
    layer = GraphAttentionV2Layer(N_FEATURES, 8, 2, dtype=dtype)
    exact = h.double() @ layer.linear_l.weight.double().t()
    assert torch.equal(project(layer.linear_l, h.to_sparse_csr()), exact.float().to(dtype))
    assert layer(h.to_sparse_csr(), EDGES).dtype == dtype


def test_autocast() -> None:
    h, layer = features(torch.float32), GraphAttentionV2Layer(N_FEATURES, 8, 2).eval()
    with torch.autocast("cpu", torch.bfloat16):
        actual = result_and_gradients(layer, h.to_sparse_csr(), EDGES)
        expected = result_and_gradients(layer, h, EDGES)
    assert actual[0].dtype == expected[0].dtype == torch.bfloat16
    assert_same(actual, expected, 0.05)


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_lowers_a_sparse_product_as_a_dense_one(
    dtype: torch.dtype, given: torch.dtype
) -> None:
    """Float64 stays; a sparse matrix is converted to what the layer has."""
    h, layer = features(given), GraphAttentionV2Layer(N_FEATURES, 8, 2, dtype=dtype).eval()
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = layer(h.to_sparse_csr(), EDGES), layer(h.to(dtype), EDGES)
    assert actual.dtype == expected.dtype
    allowed = 1e-12 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(actual, expected, rtol=allowed, atol=allowed)


def test_inference_in_blocks() -> None:
    h = features().to_sparse_csr()
    model = GATv2(N_FEATURES, 8, 3, n_heads=2, residual=True, dtype=torch.float64).eval()
    torch.testing.assert_close(model.inference(h, EDGES, block_size=5), model(h, EDGES))
    layer = GraphAttentionV2Layer((N_FEATURES, N_FEATURES), 8, 2, dtype=torch.float64).eval()
    blocks = apply_in_blocks(layer, (h, h), EDGES, block_size=5)
    torch.testing.assert_close(blocks, layer((h, h), EDGES))


def test_feature_dropout_is_of_what_is_stored() -> None:
    h = torch.ones(40, 50).to_sparse_csr()
    torch.manual_seed(0)
    dropped = drop_features(h, 0.75, training=True).to_dense()
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert 0.2 < (dropped > 0).double().mean() < 0.3
    assert drop_features(h, 0.75, training=False) is drop_features(h, 0.0, training=True) is h
    model = GATv2(N_FEATURES, 8, 3, n_heads=2, feature_dropout=0.5, dtype=torch.float64)
    assert not torch.equal(
        model(features().to_sparse_csr(), EDGES), model.eval()(features(), EDGES)
    )


@pytest.mark.parametrize("form", ["csr", "csc", "coo, in parts", "scipy csc"])
def test_transforms(form: str) -> None:
    """Of functions of the parameters: PyTorch's own can't take a matrix in CSR as an argument."""
    layer = GraphAttentionV2Layer(N_FEATURES, 8, 2, dtype=torch.float64).eval()
    parameters = {name: x.detach() for name, x in layer.named_parameters()}
    of_two = {name: torch.stack((x, -2 * x)) for name, x in parameters.items()}
    weight = parameters["linear_l.weight"]

    def transformed(h: Any) -> list[Tensor]:
        def loss(parameters: dict[str, Tensor]) -> Any:
            return functional_call(layer, parameters, (h, EDGES)).sin().sum()

        def out(weight: Tensor) -> Any:
            return functional_call(layer, {**parameters, "linear_l.weight": weight}, (h, EDGES))

        return [
            *grad(loss)(parameters).values(),
            *vmap(grad(loss))(of_two).values(),
            jvp(out, (weight,), (weight.flip(0),))[1],
            jacrev(jacrev(lambda weight: out(weight)[1].sin().sum()))(weight),
        ]

    assert_same(transformed(FORMS[form](features())), transformed(features()), 1e-11)


def test_gradients_of_gradients() -> None:
    layer = GraphAttentionV2Layer(N_FEATURES, 4, 2, dtype=torch.float64).eval()
    h = features().to_sparse_csr()

    def out(weight: Tensor) -> Any:
        return functional_call(layer, {"linear_r.weight": weight}, (h, EDGES))

    weight = layer.linear_r.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(out, (weight,), fast_mode=True)
    assert torch.autograd.gradgradcheck(out, (weight,), fast_mode=True)


def test_a_projection_of_the_users_sees_the_matrix() -> None:
    h = features()
    layer = GraphAttentionV2Layer(N_FEATURES, 8, 2, dtype=torch.float64).eval()
    expected = layer(h, EDGES)
    seen = []
    layer.linear_l.register_forward_hook(
        lambda _module, inputs, _out: seen.append(inputs[0].layout)
    )
    torch.testing.assert_close(layer(h.to_sparse_csr(), EDGES), expected)
    assert seen == [torch.sparse_csr]


def test_drop_in_class() -> None:
    conv = (
        pytest.importorskip("gatv2.pyg").GATv2Conv(N_FEATURES, 4, 2, residual=True).eval().double()
    )
    h = features()
    actual = result_and_gradients(conv, h.to_sparse_coo(), EDGES)
    assert_same(actual, result_and_gradients(conv, h, EDGES), 1e-12)


@pytest.mark.parametrize(
    ("h", "error", "message"),
    [
        (torch.ones(N, 7).to_sparse_csr(), ValueError, r"in_features=30\); got \(12, 7\)"),
        (
            torch.ones(2, N, N_FEATURES).to_sparse_coo(),
            ValueError,
            r"without batch .* got \(2, 12, 30\)",
        ),
        (
            torch.ones(N, N_FEATURES).to_sparse_coo().requires_grad_(),
            ValueError,
            "sparse `h` must not require a gradient, .* `.to_dense\\(\\)`",
        ),
        (torch.ones(N, N_FEATURES).to_sparse(1), ValueError, "must store numbers; got 1 dense"),
        (
            scipy.sparse.csr_array(np.ones((N, N_FEATURES))),
            TypeError,
            r"dtype torch.float32; got torch.float64.* SciPy matrix with `.astype\(dtype\)`",
        ),
    ],
    ids=["size", "batch", "gradient", "hybrid", "dtype"],
)
def test_refused(h: Any, error: type[Exception], message: str) -> None:
    for module in (GraphAttentionV2Layer(N_FEATURES, 8, 2), GATv2(N_FEATURES, 8, 3, n_heads=2)):
        with pytest.raises(error, match=message):
            module(h, EDGES)


OUTSIDE: dict[str, Callable[[], Tensor]] = {
    "coo": lambda: torch.sparse_coo_tensor(
        torch.tensor([[0, 7], [0, 1]]), torch.ones(2), (2, 4), check_invariants=False
    ),
    "csc": lambda: torch.sparse_csc_tensor([0, 1, 1, 1, 1], [99], [1.0], (2, 4)),
    "bsr": lambda: torch.sparse_bsr_tensor([0, 1], [99], torch.ones(1, 2, 2), (2, 4)),
    "bsc": lambda: torch.sparse_bsc_tensor([0, 1, 1], [99], torch.ones(1, 2, 2), (2, 4)),
}


@pytest.mark.parametrize("form", OUTSIDE)
def test_entries_outside_are_refused(form: str) -> None:
    """And not written to, as PyTorch does that converts the matrix and makes such ones unchecked."""
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        matrix = OUTSIDE[form]()
    with pytest.raises(ValueError, match="a sparse `h` must have its entries inside: "):
        as_features(matrix)


@pytest.mark.parametrize("form", ["csc", "bsr", "coo"])
def test_entries_of_scipy_outside_are_refused(form: str) -> None:
    matrix = scipy.sparse.csr_array(np.eye(4)).asformat(form)
    if form == "coo":
        matrix.row[1] = 99
    else:
        matrix.indptr[1] = 99
    with pytest.raises(ValueError, match="a sparse `h` must have its entries inside, "):
        as_features(matrix)


def test_a_matrix_is_converted_and_sorted_once_unless_it_has_changed() -> None:
    h = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).to_sparse()
    first = as_features(h)
    assert as_features(h) is first
    layer = GraphAttentionV2Layer(2, 4, 2)
    csr = first.clone()
    for matrix in (h, csr):
        orders: list[Any] = []
        for _ in range(2):
            layer(matrix, torch.tensor([[0], [1]])).square().sum().backward()
            if matrix is h:
                orders.append(_ours[first])
            else:
                orders += [made for _, made in _kept[id(csr)].readings.values()]
        one, again = orders
        assert one is again
    h.values()[0] = 3
    changed = as_features(h)
    assert changed is not first
    assert changed.values().tolist() == [3, 1]
    h.sparse_resize_((3, 4), 2, 0)
    assert as_features(h).shape == (3, 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", ["read-only", "of another byte order"])
def test_a_matrix_of_scipy_whose_arrays_pytorch_can_not_share(change: str) -> None:
    """As those of a file that is mapped, or of one that another machine has written."""
    h = features()
    matrix = scipy.sparse.csr_array(h.numpy())
    for name in ("data", "indices", "indptr"):
        array = getattr(matrix, name)
        if change == "read-only":
            array.flags.writeable = False
        elif name == "data":
            matrix.data = array.astype(array.dtype.newbyteorder("S"))
    for _ in range(2):
        assert torch.equal(as_features(matrix).to_dense(), h)


def test_a_matrix_of_scipy_and_what_dropout_leaves_are_sorted_once() -> None:
    matrix = scipy.sparse.csr_array(features().numpy())
    one, again = as_features(matrix), as_features(matrix)
    assert _ours[one] is _ours[again]
    assert _ours[drop_features(one, 0.5, training=True)] is _ours[one]
    csr = features().to_sparse_csr()
    dropped, other = (drop_features(csr, 0.5, training=True) for _ in range(2))
    assert _ours[dropped] is _ours[other]
    matrix.indices[:] = matrix.indices[::-1].copy()
    assert _ours[as_features(matrix)] is not _ours[one]


def test_a_weight_that_is_computed_is_asked_for_once() -> None:
    n_calls = []

    class Noted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            n_calls.append(weight.shape)
            return weight * 1

    h = torch.eye(6).to_sparse_csr()
    sides = nn.Linear(6, 4), nn.Linear(6, 4)
    for linear in sides:
        nn.utils.parametrize.register_parametrization(linear, "weight", Noted())
    n_calls.clear()
    project_sides(sides, (h, h), is_shared=False)
    assert len(n_calls) == 2
    project(sides[0], h)
    assert len(n_calls) == 3


def test_a_cotangent_that_is_negated_when_read() -> None:
    linear = nn.Linear(6, 4, bias=False)
    h = torch.eye(6).to_sparse_csr()
    cotangent = torch.ones(6, 4, dtype=torch.complex64).mul(1j).conj().imag
    assert cotangent.is_neg()
    project(linear, h).backward(cotangent)
    assert linear.weight.grad is not None
    assert torch.equal(linear.weight.grad, -torch.ones(4, 6))
