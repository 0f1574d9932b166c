"""Checks a graph before kernels run on it: they trust every index."""

import math
from dataclasses import fields
from typing import cast

import torch
from torch import Tensor

from gatv2.graph.edges import SortedEdges, forget, is_trusted, trusted
from gatv2.options import FLOWS
from gatv2.torch_internals import is_inspectable, refuse_mapped

_CHUNK = 1 << 22  # edges that are looked at in one go
_INDICES = ("query_ptr", "key_index", "query_index", "edge_id")


def check_graph(graph: SortedEdges) -> None:
    """Raise a ValueError unless a graph, wherever it came from, is one that kernels can run on.

    That is: pointers and queries of edges tell the same; every index is in range; a query's edges are
    sorted by key, which multiplicity and dropout rely on; `edge_id` is a permutation; no edge leaves its
    block. Takes time proportional to edges, and one byte an edge.

    Example:
        >>> from dataclasses import replace
        >>> from gatv2 import Graph
        >>> graph = Graph.from_edge_index(torch.tensor([[0, 0], [0, 1]]), n_nodes=2)
        >>> check_graph(graph)
        >>> check_graph(replace(graph, n_keys=1))
        Traceback (most recent call last):
        ...
        ValueError: not a graph: `key_index` must lie in [0, 1); edge 1 has 1
    """
    _check_layout(graph)
    refuse_mapped(graph.key_index, "check the graphs before vmap")
    ptr, n_edges = graph.query_ptr, graph.n_edges
    for start in range(0, ptr.shape[0], _CHUNK):
        part = ptr[start : start + _CHUNK + 1]
        _require(bool((part[1:] >= part[:-1]).all()), "`query_ptr` must ascend; it does not")
    _check_ends(graph)
    is_numbered = torch.zeros(n_edges, dtype=torch.bool, device=graph.device)
    for start in range(0, n_edges, _CHUNK):
        _check_edges(graph, start)
        is_numbered[graph.edge_id[start : start + _CHUNK].long()] = True
    _require(bool(is_numbered.all()), "`edge_id` must have each number of an edge once; it has not")


def check_again(graph: SortedEdges) -> None:
    """Raise a ValueError unless a graph, whose tensors may have been written to, has lengths that fit.

    Kernels would else read what is not there. Takes as long for any graph.
    """
    _check_layout(graph)
    if graph.query_ptr.is_cpu:  # a GPU would have to be waited for
        _check_ends(graph)
    order = vars(graph).get("_by_key")
    shapes = (graph.n_keys + 1,), (graph.n_edges,), (graph.n_edges,)
    if order is not None and tuple(x.shape for x in order) != shapes:
        forget(graph, "_by_key")


def check_once(graph: SortedEdges) -> None:
    """Check a graph that was made by hand, unless it has been checked; those that we make are not.

    One that an operation has written to since is checked again, and what was made of it is forgotten.
    Where values can't be looked at, under torch.compile and the transforms, there is no check. What is
    no graph at all, as an edge index, is a TypeError.
    """
    if torch.compiler.is_compiling():
        return
    if not isinstance(graph, SortedEdges):
        raise TypeError(
            f"a gatv2.Graph was expected; got {type(graph).__name__}: make one with "
            "`Graph.from_edge_index(edge_index, n_nodes)`"
        )
    if is_trusted(graph):
        return
    forget(graph)
    _check_layout(graph)
    if is_inspectable(graph.key_index):
        check_graph(graph)
        trusted(graph)


def _check_layout(graph: SortedEdges) -> None:
    for field in fields(graph):
        if field.name == "flow":
            _require(graph.flow in FLOWS, f"`flow` must be one of {FLOWS}; it is {graph.flow!r}")
            continue
        if field.name == "batch_shape":
            _check_batch_shape(graph)
            continue
        value, expected = getattr(graph, field.name), cast(type, field.type)
        _require(
            isinstance(value, expected),
            f"`{field.name}` must be of type {expected}; it is a {type(value).__name__}",
        )
    dtype, n_edges = graph.key_index.dtype, graph.key_index.numel()
    _require(
        dtype in (torch.int32, torch.int64), f"indices must be int32 or int64; they are {dtype}"
    )
    tensors = {name: x for name, x in vars(graph).items() if isinstance(x, Tensor)}
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    _require(
        len(set(devices.values())) == 1, f"its tensors must be on one device; they are on {devices}"
    )
    for name in _INDICES:
        n = max(graph.query_ptr.numel(), 1) if name == "query_ptr" else n_edges
        _check_form(graph, name, dtype, n)
    for name, n in (("query_id", graph.n_queries), ("key_id", graph.n_keys)):
        if getattr(graph, name) is not None:
            _check_form(graph, name, torch.int64, n)
    mask = graph.head_mask
    if mask is not None:
        _require(
            mask.dtype == torch.bool and mask.ndim == 2 and mask.shape[0] == n_edges,
            f"`head_mask` must be bool with shape ({n_edges}, n_heads); it is {mask.dtype} with shape "
            f"{tuple(mask.shape)}",
        )
    _require(
        0 <= graph.n_keys <= torch.iinfo(dtype).max,
        f"there can't be {graph.n_keys} keys in {dtype}",
    )
    n_blocks = max(graph.n_blocks, 1)
    _require(
        (graph.n_blocks > 0 or graph.n_queries == graph.n_keys == 0 == graph.n_blocks)
        and graph.n_queries % n_blocks == graph.n_keys % n_blocks == 0,
        f"{graph.n_queries} queries and {graph.n_keys} keys can't make {graph.n_blocks} equal blocks",
    )


def _check_ends(graph: SortedEdges) -> None:
    begin, end = int(graph.query_ptr[0]), int(graph.query_ptr[-1])
    _require(
        (begin, end) == (0, graph.n_edges),
        f"`query_ptr` must go from 0 to {graph.n_edges}, the edges; it goes from {begin} to {end}",
    )


def _check_batch_shape(graph: SortedEdges) -> None:
    shape = graph.batch_shape
    _require(
        shape is None
        or (isinstance(shape, tuple) and all(isinstance(n, int | torch.SymInt) for n in shape)),
        f"`batch_shape` must be a tuple of integers or None; it is {shape!r}",
    )
    _require(
        not any(isinstance(n, int) and n < 0 for n in shape or ()),
        f"`batch_shape` must be of sizes that are not negative; it is {shape}",
    )
    _require(
        shape is None or math.prod(shape) == graph.n_blocks,
        f"`batch_shape` must be of {graph.n_blocks} blocks; it is {shape}",
    )


def _check_form(graph: SortedEdges, name: str, dtype: torch.dtype, n: int) -> None:
    tensor: Tensor = getattr(graph, name)
    _require(
        (tensor.dtype, tensor.shape) == (dtype, (n,)),
        f"`{name}` must be {dtype} with shape ({n},); it is {tensor.dtype} with shape "
        f"{tuple(tensor.shape)}",
    )


def _check_edges(graph: SortedEdges, start: int) -> None:
    """Check the edges from number `start` on, as they are sorted, together with the one before."""
    part = slice(start, start + _CHUNK)
    _check_range(graph, "key_index", graph.n_keys, part)
    _check_range(graph, "query_index", graph.n_queries, part)
    _check_range(graph, "edge_id", graph.n_edges, part)
    query = graph.query_index[part].long()
    position = torch.arange(start, start + query.shape[0], device=graph.device)
    is_own = (graph.query_ptr[query] <= position) & (position < graph.query_ptr[query + 1])
    _require(bool(is_own.all()), "`query_index` must agree with `query_ptr`; it does not")
    if graph.n_blocks > 1:
        n_queries, n_keys = graph.block_shape
        is_inside = query // n_queries == graph.key_index[part] // n_keys
        _require(bool(is_inside.all()), "an edge must join nodes of one block; one does not")
    if graph.head_mask is not None:
        is_bool = graph.head_mask[part].view(torch.uint8) <= 1
        _require(bool(is_bool.all()), "`head_mask` must be of bytes 0 and 1; it has others")
    part = slice(max(start - 1, 0), start + _CHUNK)
    query, key = graph.query_index[part], graph.key_index[part]
    is_sorted = (query[1:] > query[:-1]) | (key[1:] >= key[:-1])
    _require(bool(is_sorted.all()), "the keys of a query must ascend; they do not")


def _check_range(graph: SortedEdges, name: str, end: int, part: slice) -> None:
    index: Tensor = getattr(graph, name)[part]
    is_outside = (index < 0) | (index >= end)
    if bool(is_outside.any()):
        edge = int(is_outside.nonzero()[0])
        raise ValueError(
            f"not a graph: `{name}` must lie in [0, {end}); "
            f"edge {part.start + edge} has {int(index[edge])}"
        )


def _require(is_met: bool, otherwise: str) -> None:
    if not is_met:
        raise ValueError(f"not a graph: {otherwise}")
