"""Every form in which a user may hold a graph, brought to the two that kernels read.

The sparse backend reads a `Graph`, the dense backend a bool mask `[*batch, n_queries, n_keys, 1 or
n_heads]`. In every form, `adj_mat[i][j]` means that query i attends to key j, and an edge index is
that matrix in coordinates: row 0 holds i and row 1 holds j. Whatever is a matrix is read as one: its
edges are the non-zero entries. Those of a mask are numbered by (query, key), those of a sparse matrix
in the order in which it has them, with either flow; entries of one place are summed first, as the matrix
itself would sum them, and the order is that of the summed matrix then. Only an edge index (and a
`Graph`) can hold parallel edges.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gatv2.graph.check import check_once
from gatv2.graph.edge_index import remedy_for_edge_index
from gatv2.graph.edges import changed
from gatv2.graph.graph import Graph, graph_for_gradients
from gatv2.graph.kept import prepared_of_values
from gatv2.graph.matrix import check_wants_no_gradient, graph_of_matrix
from gatv2.numba.memory import Array as NumPyArray
from gatv2.options import (
    ADDED,
    FLOWS,
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
from gatv2.torch_internals import is_inspectable

Adjacency = Graph | Tensor
"""A prepared graph, or a bool mask `[*batch, n_queries, n_keys, 1 or n_heads]`."""


class Sizes(NamedTuple):
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
    if isinstance(adj_mat, Graph):
        check_once(adj_mat)
    if isinstance(adj_mat, Graph) and not batch_shape:
        return torch.Size(adj_mat.batch_dims)
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
            edge), a bool mask `[n_queries, n_keys]`, an integer edge index `[2, n_edges]`, of PyTorch or
            of NumPy, a `Graph`, a `torch.sparse` or `scipy.sparse` matrix, a
            `torch_sparse.SparseTensor`. A 2-D tensor of integers is an edge index, always. Other values
            than zero are not read: for edge weights pass `score_bias=weight.log()` to attention.
        sizes: the sizes that the graph has to fit.
        flow: "target_to_source" as in the module's text; "source_to_target" turns every form but
            `Graph` round, whose direction was settled when it was prepared: it must have been with this
            flow.
        backend: "dense" or "sparse"; "auto" takes dense for a mask and sparse for the rest.

    Raises:
        TypeError: `adj_mat` is of an unknown type, or of a dtype that its shape does not allow.
        ValueError: shapes, sizes or devices do not fit, or a `Graph` was made with another flow or is
            none.
        IndexError: an index of an edge is out of range.
        NotImplementedError: the dense backend is exported with a list of edges.
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
        if torch.compiler.is_exporting() and not isinstance(adj_mat, Graph):
            raise NotImplementedError(
                "torch.export can't see whether a list of edges has parallel ones, which a dense mask "
                "cannot hold: export with backend='sparse', or pass a mask"
            )
        mask = adjacency.to_mask()
        if not adjacency.batch_dims:
            return mask
        return mask.reshape(*sizes.batch_shape, sizes.n_queries, sizes.n_keys, mask.shape[-1])
    return adjacency


def all_pairs(sides: tuple[int, int], score_bias: Tensor | None, flow: Flow) -> Tensor:
    """The mask, as a caller would have it, of a graph that is None: all queries and all keys.

    Raises:
        TypeError: no bias of the scores came with it.
    """
    shape = shape_of_all_pairs(sides, score_bias is not None, flow)
    device = None if score_bias is None else score_bias.device
    return torch.ones(1, dtype=torch.bool, device=device).expand(*shape, 1)


def _read(adj_mat: object, sizes: Sizes, flow: Flow, *, wants_graph: bool) -> Adjacency:
    if isinstance(adj_mat, Graph):
        return _checked_graph(adj_mat, sizes, flow)
    if isinstance(adj_mat, Tensor) and adj_mat.layout == torch.strided:
        if adj_mat.ndim == 2 and adj_mat.dtype != torch.bool:
            _check_is_edge_index(adj_mat, sizes, flow)
            return prepare_edge_index(adj_mat, (sizes.n_queries, sizes.n_keys), flow)
        mask = _as_mask(adj_mat, sizes, flow)
        if not wants_graph:
            return mask
        return changed(Graph.from_mask(mask), flow=flow)  # it has been turned
    if isinstance(adj_mat, np.ndarray):
        return _of_array(adj_mat, sizes, flow)
    return graph_of_matrix(adj_mat, (sizes.n_queries, sizes.n_keys), flow)


def _of_array(array: NumPyArray, sizes: Sizes, flow: Flow) -> Graph:
    is_matrix = (
        array.shape == by_role((sizes.n_queries, sizes.n_keys), flow) and array.shape[0] != 2
    )
    if array.ndim != 2 or array.dtype == np.bool_ or is_matrix:
        mask = "adj_mat"
        if is_matrix and array.dtype.kind in "iuf":
            _check_numbers(torch.from_numpy(array.astype(np.float64)))
            mask = "adj_mat != 0"
        raise TypeError(
            "`adj_mat` may be a NumPy array if it is an edge index, [2, n_edges] of integers; got "
            f"{array.dtype} with shape {array.shape}: convert a mask with `torch.from_numpy({mask})`"
        )
    return Graph.from_edge_index(array, (sizes.n_queries, sizes.n_keys), flow=flow)


def _checked_graph(graph: Graph, sizes: Sizes, flow: Flow) -> Graph:
    check_once(graph)
    check_flow_of_graph(graph.flow, flow)
    has, wants = graph.block_shape, (sizes.n_queries, sizes.n_keys)
    if has != wants and graph.n_blocks:  # an empty batch is one of any graphs
        raise ValueError(
            f"the graph has {has[0]} queries and {has[1]} keys, "
            f"but the features have {wants[0]} queries and {wants[1]} keys"
        )
    dims, batch_shape = graph.batch_dims, tuple(sizes.batch_shape)
    is_same = dims == batch_shape or 1 in (len(dims), len(batch_shape))  # or one of them is flat
    if dims and not (is_same and sizes.batch_shape.numel() == graph.n_blocks):
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


def _check_is_edge_index(tensor: Tensor, sizes: Sizes, flow: Flow) -> None:
    """Raise unless a 2-D tensor of numbers is an edge index, which it is whatever its second size."""
    is_whole = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
    if is_whole and tensor.shape[0] == 2:
        return
    remedies, matrix_shape = [], by_role((sizes.n_queries, sizes.n_keys), flow)
    if 2 in tensor.shape:
        remedies.append(f"`adj_mat{remedy_for_edge_index(tensor)}` for an edge index")
    if tensor.shape == matrix_shape:
        _check_numbers(tensor)  # `!= 0` would turn an additive mask into its opposite
        remedies.append("`adj_mat != 0` for a mask")
    raise ValueError(
        "a 2-D `adj_mat` must be an integer edge index of shape (2, n_edges) or a bool mask of shape "
        f"{matrix_shape}; got {tensor.dtype} with shape {tuple(tensor.shape)}: "
        f"pass {', '.join(remedies) or 'one of these'}"
    )


def _as_mask(tensor: Tensor, sizes: Sizes, flow: Flow) -> Tensor:
    """A bool mask `[*batch, n_queries, n_keys, 1 or n_heads]`, in our direction."""
    mask = tensor.unsqueeze(-1) if tensor.ndim == 2 else tensor
    if mask.dtype != torch.bool:
        _check_numbers(mask)
        mask = mask != 0
    if flow == "source_to_target" and mask.ndim >= 3:
        mask = mask.transpose(-3, -2)
    sides, heads = (sizes.n_queries, sizes.n_keys), sizes.n_heads
    if mask.ndim < 3 or mask.shape[-3:] not in ((*sides, 1), (*sides, heads)):
        n, m = by_role(sides, flow)
        is_short = tensor.ndim > 2 and tuple(tensor.shape[-2:]) == (n, m)
        remedy = (
            f": the last dimension is of heads, {how_to_add_heads(tensor.shape, heads)}"
            if is_short
            else how_to_expand(tensor.shape, (n, m))
        )
        names = f"n={n}" if n == m else f"{sides[0]} queries and {sides[1]} keys"
        raise ValueError(
            f"`adj_mat` must have shape ({n}, {m}, 1) or ({n}, {m}, {heads}) with {names} and "
            f"{heads} heads, batch dimensions in front, or be a bool mask of shape ({n}, {m}) or an "
            f"integer edge index of shape (2, n_edges); got {tensor.dtype} with shape "
            f"{tuple(tensor.shape)}{remedy}"
        )
    return mask if mask.ndim == 3 else mask.expand(*sizes.batch_shape, *mask.shape[-3:])


def _check_numbers(mask: Tensor) -> None:
    """Raise a ValueError for a mask of numbers that is no mask of edges, but something that is added."""
    check_wants_no_gradient(mask.requires_grad)
    if not is_inspectable(mask):
        return
    if not bool(mask.isfinite().all()):
        raise ValueError(
            "`adj_mat` has entries that are not finite. Non-zero entries are edges: "
            "for an additive mask of 0 and -inf pass `adj_mat == 0`, or the mask as `score_bias`"
        )
    if not mask.numel() or mask.dtype.is_complex or not mask.dtype.is_signed:
        return
    smallest = mask.min()
    if mask.dtype.is_floating_point:  # as the dtype has the number: in bfloat16 it is -9984
        is_added = bool(smallest <= smallest.new_tensor(ADDED))
    else:
        is_added = int(smallest) <= ADDED
    if is_added:
        raise ValueError(
            f"`adj_mat` has entries of {ADDED:g} and less, as an additive mask has where there is no "
            f"edge (the smallest is {smallest.item():g}). Non-zero entries are edges: pass "
            "`adj_mat == 0` for an additive mask, or that as `score_bias`; `adj_mat != 0` for a mask "
            "of edges"
        )


def prepare_edge_index(edge_index: Tensor, n_nodes: tuple[int, int], flow: Flow) -> Graph:
    """The graph of an edge index, kept for when it comes again.

    Args:
        edge_index: checked, but for the range of its indices.
        n_nodes: numbers of queries and of keys.
        flow: how its rows are read.
    """
    if not is_inspectable(edge_index):
        return Graph.from_edge_index(edge_index, n_nodes, flow=flow)
    return _prepare(edge_index, n_nodes, flow)


def _prepare(edge_index: Tensor, n_nodes: tuple[int, int], flow: Flow) -> Graph:
    """As `prepare_edge_index`, for one that is inspectable."""
    has_gradients = torch.is_grad_enabled()  # asked here: below, inference mode is left

    def prepare() -> Graph:
        if has_gradients:
            return graph_for_gradients(edge_index, *n_nodes, flow)
        return Graph.from_edge_index(edge_index, n_nodes, flow=flow)

    return prepared_of_values(edge_index, (edge_index,), (*n_nodes, flow), prepare)


def as_graph(adj_mat: object, n_nodes: tuple[int, int], flow: Flow) -> object:
    """An edge index as a graph of so many queries and keys; anything else as it is."""
    if (
        not isinstance(adj_mat, Tensor)
        or adj_mat.layout is not torch.strided
        or adj_mat.dtype not in (torch.int64, torch.int32)
        or adj_mat.ndim != 2
        or adj_mat.shape[0] != 2
        or flow not in FLOWS
        or not is_inspectable(adj_mat)
    ):
        return adj_mat
    return _prepare(adj_mat, n_nodes, flow)
