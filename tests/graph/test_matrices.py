"""A sparse matrix is a list of its entries, in its own order of them, for features and coefficients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatv2 import GATv2, Graph, GraphAttentionV2Layer, gatv2_attention
from gatv2.graph import Sizes, as_adjacency
from gatv2.inference import apply_in_blocks
from gatv2.options import FLOWS, Flow
from gatv2.testing import assert_agrees

N_ROWS, N_COLUMNS = 6, 4


class Stored(NamedTuple):
    """A matrix, and where its entries lie, in its order of them."""

    matrix: Any
    rows: Tensor


def drawn(seed: int, shape: tuple[int, int] = (N_ROWS, N_COLUMNS)) -> tuple[Tensor, Tensor]:
    """Places of a matrix that are all different, in any order, and values of them, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(shape[0] * shape[1], generator=generator)[: 3 * shape[0]]
    value = torch.randn(len(order), generator=generator)
    value[torch.rand(len(order), generator=generator) < 0.2] = 0.0
    return torch.stack((order // shape[1], order % shape[1])), value


def kept(rows: Tensor, value: Tensor) -> Tensor:
    return rows[:, value != 0]


def sorted_by(first: int, rows: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    order = (rows[first] * 100 + rows[1 - first]).argsort()
    return rows[:, order], value[order]


def coo(rows: Tensor, value: Tensor, shape: tuple[int, int]) -> Stored:
    return Stored(torch.sparse_coo_tensor(rows, value, shape), kept(rows, value))


def coalesced(rows: Tensor, value: Tensor, shape: tuple[int, int]) -> Stored:
    matrix = torch.sparse_coo_tensor(rows, value, shape).coalesce()
    return Stored(matrix, kept(matrix.indices(), matrix.values()))


def compressed(layout: str) -> Callable[[Tensor, Tensor, tuple[int, int]], Stored]:
    def make(rows: Tensor, value: Tensor, shape: tuple[int, int]) -> Stored:
        matrix = getattr(torch.sparse_coo_tensor(rows, value, shape), f"to_sparse_{layout}")()
        return Stored(matrix, kept(*sorted_by(1 if layout == "csc" else 0, rows, value)))

    return make


def in_blocks(by_column: bool) -> Callable[[Tensor, Tensor, tuple[int, int]], Stored]:
    """Blocks of two by two, by row or by column, and each in the order of its own rows."""

    def make(rows: Tensor, value: Tensor, shape: tuple[int, int]) -> Stored:
        dense = torch.sparse_coo_tensor(rows, value, shape).to_dense()
        to_blocks = dense.to_sparse_bsc if by_column else dense.to_sparse_bsr
        block, inside = kept(rows, value) // 2, kept(rows, value) % 2
        major, minor = (1, 0) if by_column else (0, 1)
        place = ((block[major] * 50 + block[minor]) * 2 + inside[0]) * 2 + inside[1]
        return Stored(to_blocks((2, 2)), kept(rows, value)[:, place.argsort()])

    return make


def of_scipy(name: str) -> Callable[[Tensor, Tensor, tuple[int, int]], Stored]:
    def make(rows: Tensor, value: Tensor, shape: tuple[int, int]) -> Stored:
        entries = scipy.sparse.coo_array((value.numpy(), tuple(rows.numpy())), shape=shape)
        matrix = getattr(scipy.sparse, name)(entries)
        listed = matrix.tocoo()
        listed_rows = torch.from_numpy(np.stack((listed.row, listed.col))).long()
        rows = kept(listed_rows, torch.from_numpy(listed.data))
        if name.startswith("coo"):
            assert torch.equal(rows, kept(*drawn_rows(entries)))
        if name.startswith("csc"):
            assert torch.equal(rows, sorted_by(1, rows, rows[0])[0])
        return Stored(matrix, rows)

    return make


def drawn_rows(entries: Any) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(np.stack((entries.row, entries.col))).long()
    return rows, torch.from_numpy(entries.data)


FORMS: dict[str, Callable[[Tensor, Tensor, tuple[int, int]], Stored]] = {
    "torch COO": coo,
    "torch COO, coalesced": coalesced,
    "torch CSR": compressed("csr"),
    "torch CSC": compressed("csc"),
    "torch BSR": in_blocks(False),
    "torch BSC": in_blocks(True),
}
FORMS |= {
    f"scipy {layout}_{kind}": of_scipy(f"{layout}_{kind}")
    for layout in ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
    for kind in ("array", "matrix")
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5)
def test_edges_are_entries_in_their_order(
    form: Callable[..., Stored], flow: Flow, seed: int
) -> None:
    stored = form(*drawn(seed), (N_ROWS, N_COLUMNS))
    n_queries, n_keys = (N_ROWS, N_COLUMNS)[:: 1 if flow == "target_to_source" else -1]
    sizes = Sizes(n_queries, n_keys, 2, torch.Size(()), torch.device("cpu"))
    graph = as_adjacency(stored.matrix, sizes, flow=flow, backend="sparse")
    assert isinstance(graph, Graph)
    expected = stored.rows if flow == "target_to_source" else stored.rows.flip(0)
    assert torch.equal(graph.edge_index, expected)


@pytest.mark.parametrize("backend", ["auto", "sparse", "dense"])
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_features_and_coefficients_follow_the_entries(
    form: Callable[..., Stored], flow: Flow, backend: Any
) -> None:
    stored = form(*drawn(7, (6, 6)), (6, 6))
    torch.manual_seed(0)
    layer = GraphAttentionV2Layer(4, 6, 2, edge_dim=3, flow=flow, backend=backend).double().eval()
    h = torch.randn(6, 4).double()
    features = torch.randn(stored.rows.shape[1], 3).double()
    expected = layer(h, stored.rows, edge_features=features, return_attention=True)
    found = layer(h, stored.matrix, edge_features=features, return_attention=True)
    for one, other in zip(found, expected, strict=True):
        assert_agrees(one, other)
    assert_agrees(apply_in_blocks(layer, h, stored.matrix, edge_features=features), expected[0])
    wrong = layer(h, stored.matrix, edge_features=features.flip(0))
    assert not torch.allclose(wrong, expected[0])


@pytest.mark.parametrize("form", ["torch COO", "torch CSC", "scipy csc_array", "torch BSR"])
def test_a_model_and_self_loops_keep_the_order(form: str) -> None:
    stored = FORMS[form](*drawn(3, (6, 6)), (6, 6))
    torch.manual_seed(0)
    model = GATv2(4, 8, 3, n_heads=2, edge_dim=3, add_self_loops=True, flow="source_to_target")
    model.double().eval()
    h, features = torch.randn(6, 4).double(), torch.randn(stored.rows.shape[1], 3).double()
    expected = model(h, stored.rows, edge_features=features)
    assert_agrees(model(h, stored.matrix, edge_features=features), expected)
    assert_agrees(model.inference(h, stored.matrix, edge_features=features), expected)


def test_torch_sparse_keeps_its_order() -> None:
    torch_sparse = pytest.importorskip(
        "torch_sparse", reason="torch_sparse has no wheels: it is built from source"
    )
    rows, value = drawn(5)
    matrix = torch_sparse.SparseTensor(
        row=rows[0], col=rows[1], value=value, sparse_sizes=(N_ROWS, N_COLUMNS)
    )
    sizes = Sizes(N_COLUMNS, N_ROWS, 2, torch.Size(()), torch.device("cpu"))
    graph = as_adjacency(matrix, sizes, flow="source_to_target", backend="sparse")
    assert isinstance(graph, Graph)
    assert torch.equal(graph.edge_index, kept(*sorted_by(0, rows, value)).flip(0))


def repeated(kind: str) -> tuple[Any, list[list[int]]]:
    """A matrix with (2, 0) twice, (0, 1), and (1, 1) twice, which sums to nothing; and its edges."""
    rows = torch.tensor([[2, 0, 1, 2, 1], [0, 1, 1, 0, 1]])
    value = torch.tensor([1.0, 3.0, 2.0, 4.0, -2.0])
    by_row, by_column = [[0, 2], [1, 0]], [[2, 0], [0, 1]]
    if kind == "torch COO":
        return torch.sparse_coo_tensor(rows, value, (3, 3)), by_row
    if kind == "torch COO, bool":
        return torch.sparse_coo_tensor(rows[:, :4], value[:4] > 0, (3, 3)), [[0, 1, 2], [1, 1, 0]]
    ptr, minor = torch.tensor([0, 2, 5, 5]), torch.tensor([2, 2, 1, 1, 0])
    value = torch.tensor(
        [1.0, 4.0, 2.0, -2.0, 3.0]
    )  # by column: (2, 0) twice, (1, 1) twice, (0, 1)
    if kind == "torch CSC":
        return torch.sparse_csc_tensor(ptr, minor, value, (3, 3)), by_column
    if kind == "torch CSR":
        matrix = torch.sparse_csr_tensor(ptr, minor, value, (3, 3))
        return matrix, [[0, 1], [2, 0]]
    entries = (value.numpy(), minor.numpy(), ptr.numpy())
    if kind == "scipy CSC":
        return scipy.sparse.csc_array(entries, shape=(3, 3)), by_column
    matrix = scipy.sparse.coo_array((value.numpy(), (minor.numpy(), [0, 0, 1, 1, 1])), shape=(3, 3))
    return matrix, by_row


@pytest.mark.parametrize(
    "kind",
    ["torch COO", "torch COO, bool", "torch CSR", "torch CSC", "scipy CSC", "scipy COO"],
)
@pytest.mark.parametrize("flow", FLOWS)
def test_repeated_entries_are_summed_first(kind: str, flow: Flow) -> None:
    matrix, expected = repeated(kind)
    sizes = Sizes(3, 3, 1, torch.Size(()), torch.device("cpu"))
    graph = as_adjacency(matrix, sizes, flow=flow, backend="sparse")
    assert isinstance(graph, Graph)
    rows = graph.edge_index if flow == "target_to_source" else graph.edge_index.flip(0)
    assert rows.tolist() == expected


def scipy_with(form: str, **arrays: Any) -> Any:
    """A matrix of SciPy that was whole when it was made."""
    matrix = scipy.sparse.eye_array(4).asformat("csr" if form == "bsr" else form)
    matrix = matrix.tobsr((2, 2)) if form == "bsr" else matrix
    for name, array in arrays.items():
        getattr(matrix, name)[:] = array
    return matrix


BROKEN: dict[str, Callable[[], Any]] = {
    "scipy CSR, past the end": lambda: scipy_with("csr", indptr=[0, 9, 9, 9, 9]),
    "scipy CSR, past the end and back": lambda: scipy_with("csr", indptr=[0, 99, 0, 0, 0]),
    "scipy CSR, column": lambda: scipy_with("csr", indices=[0, 1, 99, 3]),
    "scipy CSC, pointers": lambda: scipy_with("csc", indptr=[0, 3, 2, 3, 4]),
    "scipy CSC, row": lambda: scipy_with("csc", indices=[0, 1, -1, 3]),
    "scipy BSR, pointers": lambda: scipy_with("bsr", indptr=[0, 9, 2]),
    "scipy BSR, column": lambda: scipy_with("bsr", indices=[0, 2]),
    "scipy COO": lambda: scipy_with("coo", row=[0, 1, 2, 4]),
    "torch CSR, past the end": lambda: unchecked("csr", [0, 1, 2, 3, 9], [0, 1, 2, 3]),
    "torch CSR, back": lambda: unchecked("csr", [0, 3, 2, 3, 4], [0, 1, 2, 3]),
    "torch CSC, too few": lambda: unchecked("csc", [0, 1, 2, 3, 3], [0, 1, 2, 3]),
    "torch, one sparse dimension": lambda: torch.eye(4).to_sparse(1),
}


def unchecked(layout: str, ptr: list[int], minor: list[int]) -> Tensor:
    make: Any = getattr(torch, f"sparse_{layout}_tensor")
    matrix: Tensor = make(ptr, minor, torch.ones(4), (4, 4), check_invariants=False)
    return matrix


@pytest.mark.parametrize("form", BROKEN)
def test_what_is_no_matrix_is_refused(form: str) -> None:
    """Before anybody reads past an array's end."""
    matrix, layer = BROKEN[form](), GraphAttentionV2Layer(4, 6, 2)
    with pytest.raises(ValueError, match=r"a sparse `adj_mat` must have .*: (make|pass) "):
        layer(torch.randn(4, 4), matrix)


@pytest.mark.parametrize("form", [form for form in BROKEN if form.startswith("scipy")])
def test_jax_refuses_what_is_no_matrix_of_scipy(form: str) -> None:
    jax = pytest.importorskip("gatv2.jax")
    heads = np.ones((4, 2, 3), np.float32)
    with pytest.raises(ValueError, match="a sparse `adj_mat` must have its entries inside"):
        jax.gatv2_attention(heads, heads, heads[0], BROKEN[form]())


def test_room_behind_the_entries_is_not_read_as_entries() -> None:
    matrix = scipy.sparse.csr_array(np.eye(4))
    matrix.indices = np.append(matrix.indices, np.int32(0))
    matrix.data = np.append(matrix.data, 1.0)
    layer, h = GraphAttentionV2Layer(4, 6, 2).eval(), torch.randn(4, 4)
    with pytest.raises(ValueError, match=r"call its `prune\(\)` where they have room for more"):
        layer(h, matrix)
    matrix.prune()
    assert torch.equal(layer(h, matrix), layer(h, torch.arange(4).expand(2, -1)))


NOT_FINITE: dict[str, Callable[[Tensor], Any]] = {
    "torch COO": lambda dense: dense.to_sparse_coo(),
    "torch CSR": lambda dense: dense.to_sparse_csr(),
    "torch CSC": lambda dense: dense.to_sparse_csc(),
    "torch BSR": lambda dense: dense.to_sparse_bsr((1, 1)),
    "scipy": lambda dense: scipy.sparse.csr_array(dense.numpy()),
    "scipy, complex": lambda dense: scipy.sparse.coo_array(dense.numpy().astype(complex)),
    "scipy, long double": lambda dense: scipy.sparse.coo_array(dense.numpy().astype(np.longdouble)),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_values_that_are_not_finite_are_refused(
    form: Callable[[Tensor], Any], value: float
) -> None:
    layer, h = GraphAttentionV2Layer(4, 6, 2), torch.randn(4, 4)
    dense = torch.eye(4)
    assert layer(h, form(dense)).shape == (4, 6)
    dense[1, 2] = value
    with pytest.raises(
        ValueError, match=r"finite values, .* NaN or infinite: store only the edges"
    ):
        layer(h, form(dense))


@pytest.mark.parametrize(
    "dtype", ["uint16", "uint32", "uint64", "int8", "bool", "clongdouble", "longdouble"]
)
def test_every_dtype_of_scipy(dtype: str) -> None:
    matrix = scipy.sparse.coo_array(np.eye(4, k=1).astype(dtype))
    sizes = Sizes(4, 4, 1, torch.Size(()), torch.device("cpu"))
    graph = as_adjacency(matrix, sizes, flow="target_to_source", backend="sparse")
    assert isinstance(graph, Graph)
    assert graph.edge_index.tolist() == [[0, 1, 2], [1, 2, 3]]


WANTS_GRADIENT: dict[str, Callable[[], Tensor]] = {
    "mask": lambda: torch.ones(4, 4, 1).requires_grad_(),
    "soft mask": lambda: torch.zeros(4, 4, 1).requires_grad_().sigmoid(),
    "mask of a batch": lambda: torch.ones(2, 4, 4, 1).requires_grad_(),
    "torch COO": lambda: torch.eye(4).to_sparse_coo().requires_grad_(),
    "torch CSR": lambda: torch.eye(4).to_sparse_csr().requires_grad_(),
}


@pytest.mark.parametrize("backend", ["auto", "sparse", "dense"])
@pytest.mark.parametrize("make", WANTS_GRADIENT.values(), ids=WANTS_GRADIENT.keys())
def test_a_gradient_of_the_adjacency_is_refused(make: Callable[[], Tensor], backend: Any) -> None:
    query, attn = torch.randn(4, 2, 3), torch.randn(2, 3)
    adj_mat = make()
    gatv2_attention(query, query, attn, adj_mat.detach(), backend=backend)
    with pytest.raises(ValueError, match=r"its values are not read.*pass .* as `score_bias`"):
        gatv2_attention(query, query, attn, adj_mat, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "sparse", "dense"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, -1e9),
        (torch.float32, torch.finfo(torch.float32).min),
        (torch.float64, -1e4),
        (torch.float16, -1e4),
        (torch.float16, torch.finfo(torch.float16).min),
        (torch.bfloat16, -1e4),
        (torch.bfloat16, torch.finfo(torch.bfloat16).min),
        (torch.int32, -10_000),
        (torch.int64, -(10**9)),
    ],
)
@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 4, 2), (3, 4, 4, 1)])
def test_additive_masks_are_refused(
    shape: tuple[int, ...], dtype: torch.dtype, value: float, backend: Any
) -> None:
    query, attn = torch.randn(4, 2, 3), torch.randn(2, 3)
    mask = torch.zeros(shape, dtype=dtype)
    mask[..., 1, 2, :] = value
    with pytest.raises(ValueError, match="`adj_mat == 0`"):
        gatv2_attention(query, query, attn, mask, backend=backend)
    mask[..., 1, 2, :] = -9000
    gatv2_attention(query, query, attn, mask, backend=backend)


def test_graphs_of_networkx_are_one_call_away() -> None:
    """By the call that the error for them names."""
    networkx = pytest.importorskip("networkx")
    graph = networkx.DiGraph([("a", "b"), ("c", "a"), ("a", "c")])
    graph["a"]["b"]["weight"] = 0.0  # of no meaning here
    layer = GraphAttentionV2Layer(4, 6, 2, flow="source_to_target").eval()
    h = torch.randn(3, 4)
    matrix = networkx.to_scipy_sparse_array(graph, weight=None)
    assert_agrees(
        layer.double()(h.double(), matrix), layer(h.double(), torch.tensor([[0, 0, 2], [1, 2, 0]]))
    )
