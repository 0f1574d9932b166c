"""An edge index as its owner has it: read where it lies, checked, and never copied whole."""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from gatv2.numba.memory import Array as NumPyArray
from gatv2.optional import remedy_for_networkx
from gatv2.options import Flow, by_role, check_flow

_CHUNK = 1 << 22  # indices that are looked at in one go


def read_edge_index(
    edge_index: Tensor | NumPyArray,
    n_nodes: SupportsIndex | tuple[SupportsIndex, SupportsIndex],
    flow: Flow,
) -> tuple[Tensor, int, int]:
    """An edge index as a tensor in its own memory; number of queries, number of keys.

    Arguments and errors are those of `gatv2.Graph.from_edge_index`, but for indices past the end, which
    who sorts the edges finds.
    """
    check_flow(flow)
    if not isinstance(edge_index, Tensor):
        edge_index = _as_tensor(edge_index)
    check_edge_index(edge_index)
    return edge_index, *_read_sizes(n_nodes)


def queries_and_keys(edge_index: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
    """Queries and keys of the edges, views of the rows."""
    return by_role(edge_index.unbind(), flow)


def check_edge_index(edge_index: Tensor) -> None:
    """Raise a TypeError or ValueError unless a tensor has an edge index's dtype and shape."""
    is_dense = edge_index.layout is torch.strided
    if is_dense and _is_whole(edge_index) and edge_index.ndim == 2 and edge_index.shape[0] == 2:
        return
    if not is_dense:
        raise TypeError(
            f"an edge index must be a dense tensor; got one of layout {edge_index.layout}: convert it "
            "with `edge_index.to_dense()`, or pass a sparse matrix, as the graph, to a layer itself"
        )
    remedy = f"edge_index{remedy_for_edge_index(edge_index)}"
    if not _is_whole(edge_index):
        raise TypeError(
            f"an edge index must hold integers; got {edge_index.dtype}: convert it with `{remedy}`"
        )
    advice = f": pass `{remedy}`" if remedy != "edge_index" else ""
    raise ValueError(
        f"an edge index must have shape (2, n_edges); got {tuple(edge_index.shape)}{advice}"
    )


def remedy_for_edge_index(tensor: Tensor) -> str:
    """What is to be written behind a tensor so that it becomes an edge index, as far as that will do."""
    is_turned = tensor.ndim == 2 and tensor.shape[0] != 2 and tensor.shape[1] == 2
    return (".T" if is_turned else "") + ("" if _is_whole(tensor) else ".long()")


def _is_whole(tensor: Tensor) -> bool:
    dtype = tensor.dtype
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def how_to_convert(graph: object, name: str) -> str:
    """What makes an edge index of an object that is none, in words: one call, wherever there is one."""
    of_networkx = remedy_for_networkx(graph, name)
    if of_networkx is not None:
        return of_networkx
    if type(graph).__module__.partition(".")[0] == "dgl":
        return f"pass `torch.stack({name}.edges())` with flow='source_to_target'"
    if hasattr(graph, "edge_index"):  # torch_geometric.data.Data, and what is like it
        return f"pass `{name}.edge_index` with flow='source_to_target'"
    if isinstance(graph, (list, tuple)):
        return f"convert it with `{_stacked(graph, name)}`"
    return "convert it to `[2, n_edges]` with `torch.as_tensor`"


def _stacked(rows: Sequence[object], name: str) -> str:
    """What makes a tensor of a list of edges, or of the two rows of an edge index."""
    if rows and all(isinstance(row, Tensor) for row in rows):
        return f"torch.stack({name})"
    # of two lists of two each it can't be said which they are; tuples are edges
    are_edges = len(rows) != 2 or isinstance(rows[0], tuple)
    has_ends = all(isinstance(row, (list, tuple)) and len(row) == 2 for row in rows)
    return f"torch.as_tensor({name}){'.T' if rows and are_edges and has_ends else ''}"


def _read_sizes(
    n_nodes: SupportsIndex | tuple[SupportsIndex, SupportsIndex],
) -> tuple[int, int]:
    # a tuple by itself is told faster than as a sequence
    pair = n_nodes if isinstance(n_nodes, (tuple, Sequence)) else (n_nodes, n_nodes)
    sizes = [_as_int(n) for n in pair]
    if len(sizes) != 2 or None in sizes:
        raise TypeError(
            "the number of nodes must be an integer, or a pair of them, (number of queries, number of "
            f"keys); got {n_nodes!r}"
        )
    n_queries, n_keys = sizes
    if n_queries < 0 or n_keys < 0:
        raise ValueError(f"numbers of nodes must not be negative; got {(n_queries, n_keys)}")
    return n_queries, n_keys


def _as_int(n: SupportsIndex) -> Any:
    if type(n) is int or isinstance(n, torch.SymInt):
        return n
    try:
        return int(operator.index(n))  # a bool is its own index
    except TypeError:
        return None


class _Unlocked:
    """The memory of an array, as one that may be written to.

    PyTorch has no tensors that are read-only, and warns of an array that is. We only read.
    """

    def __init__(self, array: NumPyArray) -> None:
        self.owner = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _as_tensor(array: NumPyArray) -> Tensor:
    """A tensor of an array of indices, checked to be one."""
    if not isinstance(array, np.ndarray):
        raise TypeError(
            "an edge index must be a torch.Tensor or a numpy.ndarray; "
            f"got {type(array).__name__}: {how_to_convert(array, 'edge_index')}"
        )
    if array.dtype.kind not in "iu":
        turned = ".T" if array.ndim == 2 and array.shape[0] != 2 == array.shape[1] else ""
        raise TypeError(
            f"an edge index must hold integers; got {array.dtype}: "
            f"convert it with `edge_index{turned}.astype(numpy.int64)`"
        )
    return in_its_memory(array)


def in_its_memory(array: NumPyArray) -> Tensor:
    """A tensor in the memory of an array, or of a copy where PyTorch can't have one there.

    Nobody may write to it: the array may be read-only.

    Args:
        array: of a dtype that PyTorch has.
    """
    is_readable = (
        array.dtype.isnative
        and array.flags.aligned
        and all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    )
    if not is_readable:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Unlocked(array)))


def check_ranges(query: Tensor, key: Tensor, n_queries: int, n_keys: int) -> None:
    """Raise an IndexError for the first edge with a query or a key that there is not."""
    _check_range(query, n_queries, "query")
    _check_range(key, n_keys, "key")


def _check_range(index: Tensor, n_nodes: int, role: str) -> None:
    for start in range(0, index.shape[0], _CHUNK):
        part = index[start : start + _CHUNK].long()
        smallest, largest = part.aminmax()
        if smallest < 0 or largest >= n_nodes:
            edge = start + int(((part < 0) | (part >= n_nodes)).nonzero()[0])
            raise IndexError(
                f"edge {edge} has {role} {index[edge].item()}, but there are {n_nodes} {role} nodes: "
                f"indices must lie in [0, {n_nodes})"
            )
