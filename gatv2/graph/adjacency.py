"""Every form in which a user may hold a graph, brought to the two that kernels read.

The sparse backend reads a `Graph`, the dense backend a bool mask `[*batch, n_queries, n_keys, 1 or
n_heads]`. In every form, `adj_mat[i][j]` means that query i attends to key j, and an edge index is
that matrix in coordinates: row 0 holds i and row 1 holds j. Whatever is a matrix is read as one: its
edges are the non-zero entries, numbered by (query, key), and duplicate entries are summed first, as the
matrix itself would sum them. Only an edge index (and a `Graph`) can hold parallel edges.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gatv2.graph.graph import Graph
from gatv2.graph.part import Part
from gatv2.options import Backend, Flow, check_backend, check_flow
from gatv2.torch_internals import is_inspectable, made_to_last

Adjacency = Graph | Tensor
"""A prepared graph, or a bool mask `[*batch, n_queries, n_keys, 1 or n_heads]`."""


@dataclass(frozen=True)
class Sizes:
    """What a graph has to fit; `batch_shape` is the result's."""

    n_queries: int
    n_keys: int
    n_heads: int
    batch_shape: torch.Size
    device: torch.device


def common_batch_shape(adj_mat: object, batch_shape: torch.Size) -> torch.Size:
    """The batch shape of the result, of a graph and of features that may both have batches.

    Raises:
        ValueError: the two do not broadcast.
    """
    if isinstance(adj_mat, Graph) and adj_mat.n_blocks > 1 and not batch_shape:
        return torch.Size((adj_mat.n_blocks,))
    if not isinstance(adj_mat, Tensor) or adj_mat.ndim <= 3:
        return batch_shape
    try:
        return torch.Size(torch.broadcast_shapes(adj_mat.shape[:-3], batch_shape))
    except RuntimeError:
        raise ValueError(
            f"the batch dimensions of `adj_mat`, {tuple(adj_mat.shape[:-3])}, do not broadcast with "
            f"those of the features, {tuple(batch_shape)}"
        ) from None


def as_adjacency(adj_mat: object, sizes: Sizes, *, flow: Flow, backend: Backend) -> Adjacency:
    """Bring any form of a graph to the form of a backend, checked against the sizes.

    Args:
        adj_mat: a mask `[*batch, n_queries, n_keys, 1 or n_heads]` of any number type (non-zero is an
            edge), a bool mask `[n_queries, n_keys]`, an integer edge index `[2, n_edges]`, a `Graph`,
            a `torch.sparse` or `scipy.sparse` matrix, a `torch_sparse.SparseTensor`.
        sizes: the sizes that the graph has to fit.
        flow: "target_to_source" as in the module's text; "source_to_target" turns every form but
            `Graph` round, whose direction was settled when it was prepared.
        backend: "dense" or "sparse"; "auto" takes dense for a mask and sparse for the rest.

    Raises:
        TypeError: `adj_mat` is of an unknown type, or of a dtype that its shape does not allow.
        ValueError: shapes, sizes or devices do not fit, or `adj_mat` could be two things.
        IndexError: an index of an edge is out of range.
    """
    check_flow(flow)
    check_backend(backend)
    adjacency = _read(adj_mat, sizes, flow, wants_graph=backend == "sparse")
    if adjacency.device != sizes.device:
        raise ValueError(
            f"the graph is on {adjacency.device} and the features are on {sizes.device}: "
            "move one of them with `.to(device)`"
        )
    if backend == "dense" and isinstance(adjacency, Graph):
        mask = adjacency.to_mask()
        return mask if mask.ndim == 3 else mask.reshape(*sizes.batch_shape, *mask.shape[1:])
    return adjacency


def _read(adj_mat: object, sizes: Sizes, flow: Flow, *, wants_graph: bool) -> Adjacency:
    if isinstance(adj_mat, Graph):
        return _checked_graph(adj_mat, sizes)
    if isinstance(adj_mat, Tensor) and adj_mat.layout == torch.strided:
        if _is_edge_index(adj_mat, sizes, flow):
            return prepared_once(adj_mat, sizes, flow)
        mask = _as_mask(adj_mat, sizes, flow)
        if not wants_graph:
            return mask
        return Graph.from_mask(mask)
    return _from_matrix(adj_mat, sizes, flow)


def _checked_graph(graph: Graph, sizes: Sizes) -> Graph:
    has, wants = graph.block_shape, (sizes.n_queries, sizes.n_keys)
    if has != wants:
        raise ValueError(
            f"the graph has {has[0]} queries and {has[1]} keys, "
            f"but the features have {wants[0]} queries and {wants[1]} keys"
        )
    if graph.n_blocks > 1 and sizes.batch_shape.numel() != graph.n_blocks:
        raise ValueError(
            f"the graph is a batch of {graph.n_blocks} graphs, "
            f"but the features have batch dimensions {tuple(sizes.batch_shape)}"
        )
    if graph.head_mask is not None and graph.head_mask.shape[1] != sizes.n_heads:
        raise ValueError(
            f"the graph's mask is for {graph.head_mask.shape[1]} heads, "
            f"but there are {sizes.n_heads} heads"
        )
    return graph


def _is_edge_index(tensor: Tensor, sizes: Sizes, flow: Flow) -> bool:
    """Whether a tensor is an edge index, and not a mask; what could be both is an error."""
    if tensor.ndim != 2 or tensor.dtype == torch.bool:
        return False
    pair = _matrix_shape(sizes, flow)
    looks_like_edges = tensor.shape[0] == 2 and not tensor.dtype.is_floating_point
    if tensor.shape == pair or not looks_like_edges:
        is_both = looks_like_edges and tensor.shape == pair
        problem = "could be an edge index or a mask" if is_both else "is neither"
        raise ValueError(
            f"a 2-D `adj_mat` must be an integer edge index of shape (2, n_edges) or a bool mask of "
            f"shape {pair}; got {tensor.dtype} with shape {tuple(tensor.shape)}, which {problem}: "
            "pass `Graph.from_edge_index(adj_mat, n_nodes)` for an edge index, "
            "`(adj_mat != 0).unsqueeze(-1)` for a mask"
        )
    return True


def _matrix_shape(sizes: Sizes, flow: Flow) -> tuple[int, int]:
    """The shape of the matrix `adj_mat`, as the caller has it."""
    n, m = sizes.n_queries, sizes.n_keys
    return (n, m) if flow == "target_to_source" else (m, n)


def _as_mask(tensor: Tensor, sizes: Sizes, flow: Flow) -> Tensor:
    """A bool mask `[*batch, n_queries, n_keys, 1 or n_heads]`, in our direction."""
    mask = tensor.unsqueeze(-1) if tensor.ndim == 2 else tensor
    if mask.dtype.is_floating_point and is_inspectable(mask) and not bool(mask.isfinite().all()):
        raise ValueError(
            "`adj_mat` has entries that are not finite. Non-zero entries are edges: "
            "for an additive mask of 0 and -inf pass `adj_mat == 0`"
        )
    if mask.dtype != torch.bool:
        mask = mask != 0
    if flow == "source_to_target" and mask.ndim >= 3:
        mask = mask.transpose(-3, -2)
    sides, heads = (sizes.n_queries, sizes.n_keys), sizes.n_heads
    if mask.ndim < 3 or mask.shape[-3:] not in ((*sides, 1), (*sides, heads)):
        n, m = _matrix_shape(sizes, flow)
        names = f"n={n}" if n == m else f"{sides[0]} queries and {sides[1]} keys"
        raise ValueError(
            f"`adj_mat` must have shape ({n}, {m}, 1) or ({n}, {m}, {heads}) with {names} and "
            f"{heads} heads, batch dimensions in front, or be a bool mask of shape ({n}, {m}) or an "
            f"integer edge index of shape (2, n_edges); got {tensor.dtype} with shape "
            f"{tuple(tensor.shape)}"
        )
    return mask if mask.ndim == 3 else mask.expand(*sizes.batch_shape, *mask.shape[-3:])


@dataclass(frozen=True)
class _Prepared:
    """An edge index as it was when it was prepared, and what came of it."""

    edge_index: Tensor
    n_nodes: tuple[int, int]
    flow: Flow
    graph: Graph


_prepared: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def prepared_once(edge_index: Tensor, sizes: Sizes, flow: Flow) -> Graph:
    """Prepare an edge index, or find what was prepared from the same tensor with the same values.

    Values are compared and not the tensor's version, which misses writes through NumPy or `.data`:
    comparing is many times cheaper than preparing.
    """
    n_nodes = (sizes.n_queries, sizes.n_keys)
    if not is_inspectable(edge_index):
        return Graph.from_edge_index(edge_index, n_nodes, flow=flow)
    with made_to_last(edge_index):
        known: _Prepared | None = _prepared.get(edge_index)
        if (
            known is not None
            and (known.n_nodes, known.flow) == (n_nodes, flow)
            and known.edge_index.dtype == edge_index.dtype
            and known.edge_index.device == edge_index.device
            and torch.equal(known.edge_index, edge_index)
        ):
            return known.graph
        graph = Graph.from_edge_index(edge_index, n_nodes, flow=flow)
        _prepared[edge_index] = _Prepared(edge_index.detach().clone(), n_nodes, flow, graph)
        return graph


def _from_matrix(matrix: Any, sizes: Sizes, flow: Flow) -> Graph:
    """Prepare a sparse matrix; its edges are its non-zero entries, numbered by (query, key)."""
    if isinstance(matrix, Tensor):
        entries = _torch_entries
    elif _is_from("scipy.sparse", "issparse", matrix):
        entries = _scipy_entries
    elif _is_from("torch_sparse", "SparseTensor", matrix):
        entries = _torch_sparse_entries
    elif isinstance(matrix, Part):
        raise TypeError(
            "a Partition is read by GraphAttentionV2Layer and gatv2.distributed.gatv2_attention, which "
            "exchange rows with the other processes, and by nothing else: pass a Graph"
        )
    else:
        raise TypeError(
            "`adj_mat` must be a torch.Tensor (mask or edge index), a gatv2.Graph, a torch.sparse or "
            f"scipy.sparse matrix, or a torch_sparse.SparseTensor; got {type(matrix).__name__}"
        )
    shape = tuple(matrix.sizes() if entries is _torch_sparse_entries else matrix.shape)
    pair, expected = (sizes.n_queries, sizes.n_keys), _matrix_shape(sizes, flow)
    if shape != expected:
        raise ValueError(f"a sparse `adj_mat` must have shape {expected}; got {shape}")
    rows, columns = entries(matrix)
    edge_index = torch.stack((rows.long(), columns.long()))
    graph = Graph.from_edge_index(edge_index, pair, flow=flow)
    return replace(
        graph, edge_id=torch.arange(graph.n_edges, device=graph.device).to(graph.edge_id)
    )


def _torch_entries(matrix: Tensor) -> tuple[Tensor, Tensor]:
    coo = matrix.detach().to_sparse_coo().coalesce()
    rows, columns = coo.indices()[:, coo.values() != 0]
    return rows, columns


def _scipy_entries(matrix: Any) -> tuple[Tensor, Tensor]:
    csr = matrix.tocsr(copy=True)
    csr.sum_duplicates()
    rows, columns = csr.nonzero()
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _torch_sparse_entries(matrix: Any) -> tuple[Tensor, Tensor]:
    rows, columns, values = matrix.coalesce().coo()
    if values is None:
        return rows, columns
    is_edge = values.flatten(1).any(1) if values.ndim > 1 else values != 0
    return rows[is_edge], columns[is_edge]


def _is_from(module_name: str, name: str, candidate: object) -> bool:
    """Whether a module that the user has imported recognises an object; imports nothing."""
    recognise = getattr(sys.modules.get(module_name), name, None)
    if isinstance(recognise, type):
        return isinstance(candidate, recognise)
    return recognise is not None and recognise(candidate)
