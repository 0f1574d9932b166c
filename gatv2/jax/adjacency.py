"""Every form in which a user may hold a graph, brought to the two that kernels read.

The forms and their meaning are those of :func:`gatv2.graph.as_adjacency`. Arrays of JAX and NumPy are
read by shape and dtype alone, so that they may be traced. What only PyTorch can hold is read there.
"""

import math
import sys
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from gatv2.jax.arrays import ArrayLike, NumPyArray, is_concrete
from gatv2.jax.graph import Graph
from gatv2.jax.interop import as_jax
from gatv2.options import Backend, Flow, check_backend, check_flow

if TYPE_CHECKING:
    from jax.experimental.sparse import JAXSparse
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
    return isinstance(adj_mat, Graph) or _is_from("gatv2.graph", "Graph", adj_mat)


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
        return (adj_mat.n_blocks,) if adj_mat.n_blocks > 1 and not batch_shape else batch_shape
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


def as_adjacency(adj_mat: object, sizes: Sizes, *, flow: Flow, backend: Backend) -> Adjacency:
    """Bring any form of a graph to the form of a backend, checked against the sizes.

    Args:
        adj_mat: a :class:`gatv2.jax.Graph`, a mask `[*batch, n_queries, n_keys, 1 or n_heads]` of any
            number type (non-zero is an edge), a bool mask `[n_queries, n_keys]`, an integer edge index
            `[2, n_edges]`, a BCOO or BCSR matrix of JAX, a `scipy.sparse` matrix; or any other form that
            :func:`gatv2.graph.as_adjacency` reads.
        sizes: the sizes that the graph has to fit.
        flow: "source_to_target" turns every form but a `Graph` round.
        backend: "dense" or "sparse"; "auto" takes dense for a mask and sparse for the rest.

    Raises:
        TypeError: `adj_mat` is of an unknown type, of a dtype that its shape does not allow, or traced
            where its values are needed.
        ValueError: shapes or sizes do not fit, or `adj_mat` could be two things.
        IndexError: an index of an edge is out of range, outside of `jit`.
    """
    check_backend(backend)
    return to_backend(read_adjacency(adj_mat, sizes, flow=flow), sizes, backend)


def read_adjacency(adj_mat: object, sizes: Sizes, *, flow: Flow) -> Graph | ArrayLike:
    """A graph, or a mask `[*batch, n_queries, n_keys, 1 or n_heads]` in the caller's kind of array.

    A mask of NumPy keeps its values under `jit`, where any operation of JAX would trace it.
    """
    check_flow(flow)
    if isinstance(adj_mat, Graph):
        return _checked_graph(adj_mat, sizes)
    if isinstance(adj_mat, jax.Array | np.ndarray):
        return _read_array(adj_mat, sizes, flow)
    if _is_matrix_of_jax(adj_mat):
        return _of_matrix(*_jax_entries(adj_mat), _shape_of(adj_mat, sizes, flow), flow)
    if _is_matrix_of_scipy(adj_mat):
        return _of_matrix(*_scipy_entries(adj_mat), _shape_of(adj_mat, sizes, flow), flow)
    if (
        _is_tensor(adj_mat)
        or is_graph(adj_mat)
        or _is_from("torch_sparse", "SparseTensor", adj_mat)
    ):
        return _read_with_torch(adj_mat, sizes, flow)
    raise TypeError(
        "`adj_mat` must be an array (mask or edge index), a gatv2.jax.Graph, a BCOO, BCSR or "
        f"scipy.sparse matrix, or a graph of PyTorch; got {type(adj_mat).__name__}"
    )


def to_backend(adjacency: Graph | ArrayLike, sizes: Sizes, backend: Backend) -> Adjacency:
    """What `read_adjacency` gives, in the form of a backend."""
    if isinstance(adjacency, Graph):
        if backend != "dense":
            return adjacency
        mask = adjacency.to_mask()
        return mask if mask.ndim == 3 else mask.reshape(*sizes.batch_shape, *mask.shape[1:])
    return Graph.from_mask(adjacency) if backend == "sparse" else jnp.asarray(adjacency)


def _checked_graph(graph: Graph, sizes: Sizes) -> Graph:
    has, wants = graph.block_shape, (sizes.n_queries, sizes.n_keys)
    if has != wants:
        raise ValueError(
            f"the graph has {has[0]} queries and {has[1]} keys, "
            f"but the features have {wants[0]} queries and {wants[1]} keys"
        )
    if graph.n_blocks > 1 and math.prod(sizes.batch_shape) != graph.n_blocks:
        raise ValueError(
            f"the graph is a batch of {graph.n_blocks} graphs, "
            f"but the features have batch dimensions {sizes.batch_shape}"
        )
    if graph.head_mask is not None and graph.head_mask.shape[1] != sizes.n_heads:
        raise ValueError(
            f"the graph's mask is for {graph.head_mask.shape[1]} heads, "
            f"but there are {sizes.n_heads} heads"
        )
    return graph


def _read_array(array: ArrayLike, sizes: Sizes, flow: Flow) -> Graph | ArrayLike:
    pair = (sizes.n_queries, sizes.n_keys)
    if array.ndim == 2 and array.dtype != bool:
        expected = _matrix_shape(sizes, flow)
        looks_like_edges = array.shape[0] == 2 and jnp.issubdtype(array.dtype, jnp.integer)
        if array.shape == expected or not looks_like_edges:
            is_both = looks_like_edges and array.shape == expected
            problem = "could be an edge index or a mask" if is_both else "is neither"
            raise ValueError(
                "a 2-D `adj_mat` must be an integer edge index of shape (2, n_edges) or a bool mask "
                f"of shape {expected}; got {array.dtype} with shape {array.shape}, which {problem}: "
                "pass `Graph.from_edge_index(adj_mat, n_nodes)` for an edge index, "
                "`(adj_mat != 0)[..., None]` for a mask"
            )
        return Graph.from_edge_index(array, pair, flow=flow)
    return _as_mask(array, sizes, flow)


def _matrix_shape(sizes: Sizes, flow: Flow) -> tuple[int, int]:
    """The shape of the matrix `adj_mat`, as the caller has it."""
    n, m = sizes.n_queries, sizes.n_keys
    return (n, m) if flow == "target_to_source" else (m, n)


def _as_mask(array: ArrayLike, sizes: Sizes, flow: Flow) -> ArrayLike:
    xp: ModuleType = jnp if isinstance(array, jax.Array) else np  # jnp would trace what NumPy knows
    mask = array[..., None] if array.ndim == 2 else array
    is_float = jnp.issubdtype(mask.dtype, jnp.floating)
    if is_float and is_concrete(mask) and not xp.isfinite(mask).all():
        raise ValueError(
            "`adj_mat` has entries that are not finite. Non-zero entries are edges: "
            "for an additive mask of 0 and -inf pass `adj_mat == 0`"
        )
    if mask.dtype != bool:
        mask = mask != 0
    if flow == "source_to_target" and mask.ndim >= 3:
        mask = xp.swapaxes(mask, -3, -2)
    sides, heads = (sizes.n_queries, sizes.n_keys), sizes.n_heads
    if mask.ndim < 3 or mask.shape[-3:] not in ((*sides, 1), (*sides, heads)):
        n, m = _matrix_shape(sizes, flow)
        names = f"n={n}" if n == m else f"{sides[0]} queries and {sides[1]} keys"
        raise ValueError(
            f"`adj_mat` must have shape ({n}, {m}, 1) or ({n}, {m}, {heads}) with {names} and "
            f"{heads} heads, batch dimensions in front, or be a bool mask of shape ({n}, {m}) or an "
            f"integer edge index of shape (2, n_edges); got {array.dtype} with shape {array.shape}"
        )
    if mask.ndim > 3:
        mask = xp.broadcast_to(mask, (*sizes.batch_shape, *mask.shape[-3:]))
    return mask


def _shape_of(
    matrix: "JAXSparse | sparray | spmatrix", sizes: Sizes, flow: Flow
) -> tuple[int, int]:
    """Number of queries and keys; raises a ValueError if a matrix has others."""
    expected = _matrix_shape(sizes, flow)
    if tuple(matrix.shape) != expected:
        raise ValueError(
            f"a sparse `adj_mat` must have shape {expected}; got {tuple(matrix.shape)}"
        )
    return sizes.n_queries, sizes.n_keys


def _of_matrix(rows: NumPyArray, columns: NumPyArray, pair: tuple[int, int], flow: Flow) -> Graph:
    """A graph of a matrix's non-zero entries, numbered by (query, key)."""
    graph = Graph.from_edge_index(np.stack((rows, columns)), pair, flow=flow)
    return replace(graph, edge_id=jnp.arange(graph.n_edges, dtype=graph.edge_id.dtype))


def _jax_entries(matrix: "JAXSparse") -> tuple[NumPyArray, NumPyArray]:
    """Rows and columns of the entries of a matrix that are not zero; duplicates are summed first."""
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
    coo = coo.sum_duplicates()
    indices, values = np.asarray(coo.indices), np.asarray(coo.data)
    is_inside = (indices < np.array(coo.shape)).all(axis=1)  # how BCOO marks its padding
    rows, columns = indices[is_inside & (values != 0)].T
    return rows, columns


def _scipy_entries(matrix: "sparray | spmatrix") -> tuple[NumPyArray, NumPyArray]:
    csr = matrix.tocsr(copy=True)
    csr.sum_duplicates()
    rows, columns = csr.nonzero()
    return rows, columns


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
    return _is_from("torch", "Tensor", candidate)


def _is_matrix_of_jax(candidate: object) -> "TypeGuard[JAXSparse]":
    return _is_from("jax.experimental.sparse", "JAXSparse", candidate)


def _is_matrix_of_scipy(candidate: object) -> "TypeGuard[sparray | spmatrix]":
    return _is_from("scipy.sparse", "issparse", candidate)


def _is_from(module_name: str, name: str, candidate: object) -> bool:
    """Whether a module that the user has imported recognises an object; imports nothing."""
    recognise = getattr(sys.modules.get(module_name), name, None)
    if isinstance(recognise, type):
        return isinstance(candidate, recognise)
    return recognise is not None and bool(recognise(candidate))
