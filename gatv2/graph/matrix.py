"""A sparse matrix, of PyTorch, SciPy or torch_sparse, as a list of edges in the order of its entries."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gatv2.graph.edge_index import how_to_convert
from gatv2.graph.graph import Graph
from gatv2.graph.kept import prepared_once
from gatv2.graph.part import Part
from gatv2.optional import check_scipy_matrix, is_from
from gatv2.options import Flow, by_role
from gatv2.torch_internals import coo_entries

if TYPE_CHECKING:
    from scipy.sparse import sparray, spmatrix
    from torch_sparse import SparseTensor

    from gatv2.numba.memory import Array as NumPyArray

    SciPyMatrix: TypeAlias = sparray | spmatrix
    Matrix: TypeAlias = Tensor | SciPyMatrix | SparseTensor


LAYOUTS = (
    *(torch.sparse_coo, torch.sparse_csr, torch.sparse_csc),
    *(torch.sparse_bsr, torch.sparse_bsc),
)
"""Those of matrices of PyTorch."""


class _Entries(NamedTuple):
    """The entries that a matrix stores, in its order of them."""

    row: Tensor
    column: Tensor
    value: Tensor | None
    """None: all are edges."""


class _Reader(NamedTuple):
    """How the matrices of a library are read."""

    shape: "Callable[[Matrix], tuple[int, ...]]"
    wants_gradient: "Callable[[Matrix], bool]"
    stored: "Callable[[Matrix], Sequence[Tensor]]"
    """The tensors that a matrix stores, without a copy; none if it has another form."""
    entries: "Callable[[Matrix], _Entries]"
    summed: "Callable[[Matrix], Matrix]"
    """The matrix with entries of one place summed."""


def graph_of_matrix(matrix: "Matrix", n_nodes: tuple[int, int], flow: Flow) -> Graph:
    """Prepare a sparse matrix: its edges are its non-zero entries, in the order in which it has them.

    That order is the one of `values()` of a `torch.sparse` tensor, `data` of `tocoo()` of a SciPy
    matrix, and `coo()` of a `torch_sparse.SparseTensor`, with either flow. Entries of one place are
    summed first, as the matrix itself sums them; then the order is that of the summed matrix: by column
    and row for CSC (in PyTorch for BSC, too), by row and column for the others.

    Args:
        matrix: of shape (n_queries, n_keys); (n_keys, n_queries) with flow="source_to_target".
        n_nodes: number of queries, number of keys.
        flow: what rows are: queries, or with "source_to_target" keys.

    Raises:
        TypeError: not a sparse matrix.
        ValueError: the shape does not fit, values are not finite, or a gradient is wanted of them.
    """
    reader = _reader_of(matrix)
    shape = tuple(reader.shape(matrix))
    expected = by_role(n_nodes, flow)
    if shape != expected:
        raise ValueError(f"a sparse `adj_mat` must have shape {expected}; got {shape}")
    check_wants_no_gradient(reader.wants_gradient(matrix))

    def prepare() -> Graph:
        graph = _graph_of(reader.entries(matrix), n_nodes, flow)
        if bool((graph.multiplicity > 0).any()):
            graph = _graph_of(reader.entries(reader.summed(matrix)), n_nodes, flow)
        return graph

    stored = reader.stored(matrix)
    return prepared_once(matrix, stored, (*n_nodes, flow), prepare) if stored else prepare()


def check_wants_no_gradient(wants_gradient: bool) -> None:
    """Raise a ValueError if a gradient is wanted of a mask or matrix, whose values are not read."""
    if wants_gradient:
        raise ValueError(
            "`adj_mat` must not require a gradient: its values are not read, only where they are "
            "non-zero; pass what is added to the scores as `score_bias`, and the graph detached"
        )


def _graph_of(entries: _Entries, n_nodes: tuple[int, int], flow: Flow) -> Graph:
    edge_index, value = torch.stack((entries.row.long(), entries.column.long())), entries.value
    if value is not None:
        if not bool(value.isfinite().all()):
            raise ValueError(
                "`adj_mat` must have finite values, of which those that are not zero are edges; some "
                "are NaN or infinite: store only the edges, or make these values 0 or 1; what is added "
                "to the scores is passed as `score_bias`"
            )
        is_edge = value != 0
        edge_index = edge_index[:, is_edge if is_edge.ndim == 1 else is_edge.flatten(1).any(1)]
    return Graph.from_edge_index(edge_index, n_nodes, flow=flow)


def _reader_of(matrix: object) -> _Reader:
    if isinstance(matrix, Tensor):
        check_layout(matrix, "adj_mat")
        return _TORCH
    if is_from("scipy.sparse", "issparse", matrix):
        return _SCIPY
    if is_from("torch_sparse", "SparseTensor", matrix):
        return _TORCH_SPARSE
    if isinstance(matrix, Part):
        raise TypeError(
            "a Partition is read by GraphAttentionV2Layer and gatv2.distributed.gatv2_attention, which "
            "exchange rows with the other processes, and by nothing else: pass a Graph"
        )
    raise TypeError(
        "`adj_mat` must be a torch.Tensor (mask or edge index), a gatv2.Graph, a torch.sparse or "
        "scipy.sparse matrix, or a torch_sparse.SparseTensor; got "
        f"{type(matrix).__name__}: {how_to_convert(matrix, 'adj_mat')}"
    )


def check_layout(tensor: Tensor, name: str) -> None:
    """Raise a TypeError for a tensor that is neither dense nor a sparse matrix."""
    if tensor.layout not in (torch.strided, *LAYOUTS):
        raise TypeError(
            f"`{name}` must be a dense tensor or one of layout {', '.join(map(str, LAYOUTS))}; got one "
            f"of layout {tensor.layout}: convert it with `{name}.to_dense()`"
        )


def stored_in(matrix: Tensor) -> Sequence[Tensor]:
    """The tensors that a `torch.sparse` matrix stores, in the order in which one is made of them."""
    matrix = matrix.detach()
    if matrix.layout == torch.sparse_coo:
        return coo_entries(matrix)
    by_row = matrix.layout in (torch.sparse_csr, torch.sparse_bsr)
    ptr = matrix.crow_indices() if by_row else matrix.ccol_indices()
    return ptr, matrix.col_indices() if by_row else matrix.row_indices(), matrix.values()


def _torch_entries(matrix: Tensor) -> _Entries:
    matrix = matrix.detach()
    if matrix.layout == torch.sparse_coo:
        if matrix.sparse_dim() != 2:
            raise ValueError(
                f"a sparse `adj_mat` must have two sparse dimensions; got {matrix.sparse_dim()}, and "
                "dense ones: pass `adj_mat.to_dense().to_sparse()`"
            )
        (row, column), value = coo_entries(matrix)
        return _Entries(row, column, value)
    by_row = matrix.layout in (torch.sparse_csr, torch.sparse_bsr)
    ptr, minor, value = stored_in(matrix)
    _check_pointers(ptr, minor, value)
    major = torch.arange(ptr.shape[0] - 1, device=ptr.device).repeat_interleave(ptr.diff())
    row, column = (major, minor) if by_row else (minor, major)
    if value.ndim == 3:  # blocks, each in the order of its own rows
        _, n_rows, n_columns = value.shape
        in_row, in_column = (torch.arange(n, device=value.device) for n in (n_rows, n_columns))
        row = (row * n_rows)[:, None, None] + in_row[:, None].expand(-1, n_columns)
        column = (column * n_columns)[:, None, None] + in_column.expand(n_rows, -1)
        row, column, value = row.flatten(), column.flatten(), value.flatten()
    return _Entries(row, column, value)


def _check_pointers(ptr: Tensor, minor: Tensor, value: Tensor) -> None:
    """Raise a ValueError unless pointers tell the rows of as many entries as there are."""
    n_stored = value.shape[0]
    if (
        minor.shape != (n_stored,)
        or (int(ptr[0]), int(ptr[-1])) != (0, n_stored)
        or not bool((ptr.diff() >= 0).all())
    ):
        raise ValueError(
            f"a sparse `adj_mat` must have pointers that ascend from 0 to {n_stored}, its values; it "
            "has not: make it with check_invariants=True, which says what is wrong"
        )


def _torch_summed(matrix: Tensor) -> Tensor:
    row, column, value = _torch_entries(matrix)
    by_column = matrix.layout in (torch.sparse_csc, torch.sparse_bsc)
    rows = torch.stack((column, row) if by_column else (row, column))
    shape = matrix.shape[::-1] if by_column else matrix.shape
    assert value is not None
    summed = torch.sparse_coo_tensor(rows, value, shape, device=value.device).coalesce()
    if not by_column:
        return summed
    # in this order, which is not a coalesced matrix's
    return torch.sparse_coo_tensor(
        summed.indices().flip(0), summed.values(), matrix.shape, device=value.device
    )


def _scipy_stored(matrix: "SciPyMatrix") -> Sequence[Tensor]:
    names = {"coo": ("row", "col", "data")}.get(matrix.format, ("indptr", "indices", "data"))
    arrays = [getattr(matrix, name, None) for name in names]
    is_readable = all(_is_readable(array) for array in arrays)
    return tuple(map(torch.from_numpy, arrays)) if is_readable else ()


def _is_readable(array: "NumPyArray | None") -> bool:
    """Whether PyTorch can read an array where it lies, and without a warning."""
    if array is None or array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        return False
    return array.dtype.isnative and array.flags.carray


def _scipy_entries(matrix: "SciPyMatrix") -> _Entries:
    check_scipy_matrix(matrix, "adj_mat")
    coo = matrix.tocoo()
    value = coo.data  # in a dtype that PyTorch has
    if value.dtype.kind in "biu":
        value = value != 0
    else:
        value = value.astype(complex if value.dtype.kind == "c" else float)
    return _Entries(*map(torch.from_numpy, (coo.row, coo.col, value)))


def _scipy_summed(matrix: "SciPyMatrix") -> "SciPyMatrix":
    compressed = matrix.tocsc(copy=True) if matrix.format == "csc" else matrix.tocsr(copy=True)
    compressed.sum_duplicates()
    return compressed


def _torch_sparse_shape(matrix: "SparseTensor") -> tuple[int, ...]:
    return tuple(matrix.sizes())


def _torch_sparse_stored(matrix: "SparseTensor") -> Sequence[Tensor]:
    return tuple(part for part in matrix.coo() if part is not None)


def _torch_sparse_entries(matrix: "SparseTensor") -> _Entries:
    return _Entries(*matrix.coo())


def _torch_sparse_wants_gradient(matrix: "SparseTensor") -> bool:
    value = matrix.storage.value()
    return value is not None and value.requires_grad


_TORCH = _Reader(
    shape=lambda matrix: matrix.shape,
    wants_gradient=lambda matrix: matrix.requires_grad,
    stored=stored_in,
    entries=_torch_entries,
    summed=_torch_summed,
)
_SCIPY = _Reader(
    shape=lambda matrix: matrix.shape,
    wants_gradient=lambda _: False,
    stored=_scipy_stored,
    entries=_scipy_entries,
    summed=_scipy_summed,
)
_TORCH_SPARSE = _Reader(
    shape=_torch_sparse_shape,
    wants_gradient=_torch_sparse_wants_gradient,
    stored=_torch_sparse_stored,
    entries=_torch_sparse_entries,
    summed=lambda matrix: matrix.coalesce(),
)
