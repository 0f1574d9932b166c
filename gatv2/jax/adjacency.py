"""Every form in which a user may hold a graph, brought to the two that kernels read.

The forms and their meaning are those of :func:`gatv2.graph.as_adjacency`. Arrays of JAX and NumPy are
read by shape and dtype alone, so that they may be traced. What only PyTorch can hold is read there.
"""

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import ArrayLike, NumPyArray, computed_where, is_concrete
from gatv2.jax.graph import Graph
from gatv2.jax.graph.edges import require_unstacked
from gatv2.jax.interop import as_jax
from gatv2.optional import check_scipy_matrix, is_from, remedy_for_networkx
from gatv2.options import (
    ADDED,
    Backend,
    Flow,
    by_role,
    check_backend,
    check_flow,
    check_flow_of_graph,
    how_to_add_heads,
    how_to_expand,
    shape_of_all_pairs,
)

if TYPE_CHECKING:
    from jax.experimental.sparse import BCOO, JAXSparse
    from scipy.sparse import sparray, spmatrix
    from torch import Tensor

    from gatv2.graph import Graph as TorchGraph

Adjacency = Graph | jax.Array
"""A prepared graph, or a bool mask `[*batch, n_queries, n_keys, 1 or n_heads]`."""


@dataclass(frozen=True)
class Sizes:
    """What a graph has to fit; `batch_shape` is the result's."""

    n_queries: int
    n_keys: int
    n_heads: int
    batch_shape: tuple[int, ...]


def is_graph(adj_mat: object) -> "TypeGuard[Graph | TorchGraph]":
    """Whether a form of a graph is a `Graph`, of JAX or of PyTorch."""
    return isinstance(adj_mat, Graph) or is_from("gatv2.graph", "Graph", adj_mat)


def is_mask(adj_mat: object) -> "TypeGuard[ArrayLike | Tensor]":
    """Whether a form of a graph that :func:`as_adjacency` reads is a mask."""
    if _is_tensor(adj_mat):
        return str(adj_mat.layout) == "torch.strided" and (
            adj_mat.ndim != 2 or str(adj_mat.dtype) == "torch.bool"
        )
    return isinstance(adj_mat, jax.Array | np.ndarray) and (
        adj_mat.ndim != 2 or adj_mat.dtype == bool
    )


def common_batch_shape(adj_mat: object, batch_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The batch shape of the result, of a graph and of features that may both have batches.

    Raises:
        ValueError: the two do not broadcast.
    """
    if is_graph(adj_mat):
        return batch_shape or tuple(adj_mat.batch_dims)
    if not is_mask(adj_mat) or adj_mat.ndim <= 3:
        return batch_shape
    own = tuple(adj_mat.shape[:-3])
    try:
        return jnp.broadcast_shapes(own, batch_shape)
    except ValueError:
        raise ValueError(
            f"the batch dimensions of `adj_mat`, {own}, do not broadcast with "
            f"those of the features, {batch_shape}"
        ) from None


def all_pairs(sides: tuple[int, int], score_bias: ArrayLike | None, flow: Flow) -> NumPyArray:
    """The mask, as a caller would have it, of a graph that is None: all queries and all keys.

    Raises:
        TypeError: no bias of the scores came with it.
    """
    shape = shape_of_all_pairs(sides, score_bias is not None, flow)
    return np.broadcast_to(np.True_, (*shape, 1))


def on_jax(mask: ArrayLike) -> jax.Array:
    """A mask as an array of JAX; that of all pairs does not become a constant of a program."""
    if is_one_value(mask):
        return jnp.full(mask.shape, mask.flat[0])
    return jnp.asarray(mask)


def is_one_value(mask: ArrayLike) -> "TypeGuard[NumPyArray]":
    """Whether a mask holds one value in memory for all of its entries, as that of all pairs."""
    return isinstance(mask, np.ndarray) and mask.size > 0 and not any(mask.strides)


def as_adjacency(adj_mat: object, sizes: Sizes, *, flow: Flow, backend: Backend) -> Adjacency:
    """Bring any form of a graph to the form of a backend, checked against the sizes.

    Args:
        adj_mat: a :class:`gatv2.jax.Graph`, a mask `[*batch, n_queries, n_keys, 1 or n_heads]` of any
            number type (non-zero is an edge), a bool mask `[n_queries, n_keys]`, an integer edge index
            `[2, n_edges]`, a BCOO or BCSR matrix of JAX, a `scipy.sparse` matrix; or any other form that
            :func:`gatv2.graph.as_adjacency` reads. Numbers other than zero are not read: for weights
            of edges pass `score_bias=jnp.log(weight)` to attention.
        sizes: the sizes that the graph has to fit.
        flow: "source_to_target" turns every form but a `Graph` round, which must have been made with
            that flow.
        backend: "dense" or "sparse"; "auto" takes dense for a mask and sparse for the rest.

    Raises:
        TypeError: `adj_mat` is of an unknown type, of a dtype that its shape does not allow, or traced
            where its values are needed.
        ValueError: shapes or sizes do not fit, or a `Graph` was made with another flow.
        IndexError: an index of an edge is out of range, outside of `jit`.
    """
    check_backend(backend)
    adjacency = to_backend(read_adjacency(adj_mat, sizes, flow=flow), sizes, backend)
    if isinstance(adjacency, Graph) and is_mask(adj_mat):
        return replace(adjacency, flow=flow)  # it has been turned
    return adjacency


def read_adjacency(adj_mat: object, sizes: Sizes, *, flow: Flow) -> Graph | ArrayLike:
    """A graph, or a mask `[*batch, n_queries, n_keys, 1 or n_heads]` in the caller's kind of array.

    A mask of NumPy keeps its values under `jit`, where any operation of JAX would trace it.
    """
    check_flow(flow)
    if isinstance(adj_mat, Graph):
        return _checked_graph(adj_mat, sizes, flow)
    if isinstance(adj_mat, jax.Array | np.ndarray):
        return _read_array(adj_mat, sizes, flow)
    if _is_matrix_of_jax(adj_mat):
        pair = _shape_of(adj_mat, sizes, flow)
        return _of_entries(_jax_entries(adj_mat), pair, flow)
    if _is_matrix_of_scipy(adj_mat):
        pair = _shape_of(adj_mat, sizes, flow)
        return _of_entries(_scipy_entries(adj_mat), pair, flow)
    if _is_tensor(adj_mat) or is_graph(adj_mat) or is_from("torch_sparse", "SparseTensor", adj_mat):
        return _read_with_torch(adj_mat, sizes, flow)
    raise TypeError(
        "`adj_mat` must be an array (mask or edge index), a gatv2.jax.Graph, a BCOO, BCSR or "
        f"scipy.sparse matrix, or a graph of PyTorch; got {type(adj_mat).__name__}"
        f"{_how_to_convert(adj_mat)}"
    )


def _how_to_convert(graph: object) -> str:
    """What makes a graph of an object that is none, in words."""
    of_networkx = remedy_for_networkx(graph, "adj_mat")
    if of_networkx is not None:
        return f": {of_networkx}"
    if isinstance(graph, (list, tuple)):
        return ": pass an array of integers of shape (2, n_edges), whose rows are queries and keys"
    return ""


def to_backend(adjacency: Graph | ArrayLike, sizes: Sizes, backend: Backend) -> Adjacency:
    """What `read_adjacency` gives, in the form of a backend."""
    if isinstance(adjacency, Graph):
        if backend != "dense":
            return adjacency
        mask = adjacency.to_mask()
        if not adjacency.batch_dims:
            return mask
        return mask.reshape(*sizes.batch_shape, sizes.n_queries, sizes.n_keys, mask.shape[-1])
    return Graph.from_mask(adjacency) if backend == "sparse" else on_jax(adjacency)


def _checked_graph(graph: Graph, sizes: Sizes, flow: Flow) -> Graph:
    check_flow_of_graph(graph.flow, flow)
    require_unstacked(graph)
    has, wants = graph.block_shape, (sizes.n_queries, sizes.n_keys)
    if has != wants and graph.n_blocks:  # an empty batch is one of any graphs
        raise ValueError(
            f"the graph has {has[0]} queries and {has[1]} keys, "
            f"but the features have {wants[0]} queries and {wants[1]} keys"
        )
    dims, batch_shape = graph.batch_dims, sizes.batch_shape
    is_same = dims == batch_shape or 1 in (len(dims), len(batch_shape))  # or one of them is flat
    if dims and not (is_same and math.prod(batch_shape) == graph.n_blocks):
        raise ValueError(
            f"the graph is a batch of {' x '.join(map(str, dims))} graphs, "
            f"but the features have batch dimensions {batch_shape}"
        )
    if graph.head_mask is not None and graph.head_mask.shape[1] != sizes.n_heads:
        raise ValueError(
            f"`head_mask` must have {sizes.n_heads} heads, as the features do; got "
            f"{graph.head_mask.shape[1]}: make the mask for {sizes.n_heads} heads"
        )
    return graph


def _read_array(array: ArrayLike, sizes: Sizes, flow: Flow) -> Graph | ArrayLike:
    pair = (sizes.n_queries, sizes.n_keys)
    if array.ndim == 2 and array.dtype != bool:
        expected = by_role(pair, flow)
        is_whole = bool(jnp.issubdtype(array.dtype, jnp.integer))
        if array.shape[0] != 2 or not is_whole:
            remedies = []
            if 2 in array.shape:
                turned = "" if array.shape[0] == 2 else ".T"
                whole = "" if is_whole else ".astype(int)"
                remedies.append(f"`adj_mat{turned}{whole}` for an edge index")
            if array.shape == expected:
                if is_concrete(array):  # `!= 0` would turn an additive mask into its opposite
                    _check_numbers(np.asarray(array))
                remedies.append("`adj_mat != 0` for a mask")
            raise ValueError(
                "a 2-D `adj_mat` must be an integer edge index of shape (2, n_edges) or a bool mask "
                f"of shape {expected}; got {array.dtype} with shape {array.shape}, which is neither: "
                f"pass {', '.join(remedies) or 'one of these'}"
            )
        return Graph.from_edge_index(array, pair, flow=flow)
    with computed_where(array):
        return _as_mask(array, sizes, flow)


def _as_mask(array: ArrayLike, sizes: Sizes, flow: Flow) -> ArrayLike:
    xp: ModuleType = jnp if isinstance(array, jax.Array) else np  # jnp would trace what NumPy knows
    mask = array[..., None] if array.ndim == 2 else array
    if mask.dtype != bool:
        if is_concrete(mask):
            _check_numbers(np.asarray(mask))
        mask = mask != 0
    if flow == "source_to_target" and mask.ndim >= 3:
        mask = xp.swapaxes(mask, -3, -2)
    sides, heads = (sizes.n_queries, sizes.n_keys), sizes.n_heads
    if mask.ndim < 3 or mask.shape[-3:] not in ((*sides, 1), (*sides, heads)):
        n, m = by_role(sides, flow)
        is_short = array.ndim > 2 and tuple(array.shape[-2:]) == (n, m)
        remedy = (
            f": the last dimension is of heads, {how_to_add_heads(array.shape, heads, 'jax')}"
            if is_short
            else how_to_expand(array.shape, (n, m), "jax")
        )
        names = f"n={n}" if n == m else f"{sides[0]} queries and {sides[1]} keys"
        raise ValueError(
            f"`adj_mat` must have shape ({n}, {m}, 1) or ({n}, {m}, {heads}) with {names} and "
            f"{heads} heads, batch dimensions in front, or be a bool mask of shape ({n}, {m}) or an "
            f"integer edge index of shape (2, n_edges); got {array.dtype} with shape {array.shape}"
            f"{remedy}"
        )
    if mask.ndim > 3:
        mask = xp.broadcast_to(mask, (*sizes.batch_shape, *mask.shape[-3:]))
    return mask


def _check_numbers(mask: NumPyArray) -> None:
    """Raise a ValueError for a mask of numbers that is no mask of edges, but something that is added."""
    if not np.isfinite(mask).all():
        raise ValueError(
            "`adj_mat` has entries that are not finite. Non-zero entries are edges: "
            "for an additive mask of 0 and -inf pass `adj_mat == 0`, or the mask as `score_bias`"
        )
    if not mask.size or jnp.issubdtype(mask.dtype, jnp.complexfloating):
        return
    is_float = jnp.issubdtype(mask.dtype, jnp.floating)
    # as the dtype has the number: in bfloat16 it is -9984
    added, smallest = float(np.asarray(ADDED, mask.dtype)) if is_float else ADDED, float(mask.min())
    if smallest <= added:
        raise ValueError(
            f"`adj_mat` has entries of {ADDED:g} and less, as an additive mask has where there is no "
            f"edge (the smallest is {smallest:g}). Non-zero entries are edges: pass `adj_mat == 0` "
            "for an additive mask, or that as `score_bias`; `adj_mat != 0` for a mask of edges"
        )


def _shape_of(
    matrix: "JAXSparse | sparray | spmatrix", sizes: Sizes, flow: Flow
) -> tuple[int, int]:
    """Number of queries and keys; raises a ValueError if a matrix has others."""
    pair = (sizes.n_queries, sizes.n_keys)
    expected = by_role(pair, flow)
    if tuple(matrix.shape) != expected:
        raise ValueError(
            f"a sparse `adj_mat` must have shape {expected}; got {tuple(matrix.shape)}"
        )
    return pair


class _Entries(NamedTuple):
    """The entries that a matrix stores, in its order of them."""

    row: NumPyArray
    column: NumPyArray
    value: NumPyArray


def _of_entries(entries: _Entries, pair: tuple[int, int], flow: Flow) -> Graph:
    """A graph of the entries that are not zero, in the order in which a matrix has them."""
    if not np.isfinite(entries.value).all():
        raise ValueError(
            "`adj_mat` must have finite values, of which those that are not zero are edges; some are "
            "NaN or infinite: store only the edges, or make these values 0 or 1; what is added to the "
            "scores is passed as `score_bias`"
        )
    is_edge = entries.value != 0
    edge_index = np.stack((entries.row[is_edge], entries.column[is_edge]))
    return Graph.from_edge_index(edge_index, pair, flow=flow)


def _has_twice(entries: _Entries) -> bool:
    """Whether a place has several entries, which are summed then."""
    places = np.stack((entries.row, entries.column))
    return bool(np.unique(places, axis=1).shape[1] < places.shape[1])


def _jax_entries(matrix: "JAXSparse") -> _Entries:
    """The entries of a BCOO or BCSR matrix, in its order; those of one place summed."""
    from jax.experimental.sparse import BCOO, BCSR

    coo = matrix.to_bcoo() if isinstance(matrix, BCSR) else matrix
    if not isinstance(coo, BCOO) or coo.n_batch or coo.n_dense:
        raise TypeError(
            "a sparse matrix of JAX must be a BCOO or BCSR without batch and dense dimensions; "
            f"got {matrix}"
        )
    if not (is_concrete(coo.indices) and is_concrete(coo.data)):
        raise TypeError(
            "a sparse matrix becomes a Graph only outside of `jit`, where its non-zero entries are "
            "known: prepare it there, or pass its edge index"
        )
    entries = _bcoo_entries(coo)
    return _bcoo_entries(coo.sum_duplicates()) if _has_twice(entries) else entries


def _bcoo_entries(coo: "BCOO") -> _Entries:
    indices, values = np.asarray(coo.indices), np.asarray(coo.data)
    is_inside = (indices < np.array(coo.shape)).all(axis=1)  # how BCOO marks its padding
    row, column = indices[is_inside].T
    return _Entries(row, column, values[is_inside])


def _scipy_entries(matrix: "sparray | spmatrix") -> _Entries:
    """The entries of a matrix of SciPy, in the order of `tocoo()`; those of one place summed."""
    check_scipy_matrix(matrix, "adj_mat")
    coo = matrix.tocoo()
    entries = _Entries(coo.row, coo.col, coo.data)
    if _has_twice(entries):
        compressed = matrix.tocsc(copy=True) if matrix.format == "csc" else matrix.tocsr(copy=True)
        compressed.sum_duplicates()
        coo = compressed.tocoo()
        entries = _Entries(coo.row, coo.col, coo.data)
    return entries


def _read_with_torch(adj_mat: object, sizes: Sizes, flow: Flow) -> Adjacency:
    import torch

    from gatv2.graph import adjacency as torch_adjacency

    torch_sizes = torch_adjacency.Sizes(
        sizes.n_queries,
        sizes.n_keys,
        sizes.n_heads,
        torch.Size(sizes.batch_shape),
        torch.device("cpu"),
    )
    adjacency = torch_adjacency.as_adjacency(adj_mat, torch_sizes, flow=flow, backend="auto")
    if isinstance(adjacency, torch.Tensor):
        return as_jax(adjacency)
    return Graph.from_torch(adjacency)


def _is_tensor(candidate: object) -> "TypeGuard[Tensor]":
    return is_from("torch", "Tensor", candidate)


def _is_matrix_of_jax(candidate: object) -> "TypeGuard[JAXSparse]":
    return is_from("jax.experimental.sparse", "JAXSparse", candidate)


def _is_matrix_of_scipy(candidate: object) -> "TypeGuard[sparray | spmatrix]":
    return is_from("scipy.sparse", "issparse", candidate)
