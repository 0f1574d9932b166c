"""SortedEdges: what a graph holds, and what follows from that alone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from gatv2.graph.sort import sort_by_key
from gatv2.options import Flow
from gatv2.torch_internals import made_once, n_writes_of

Edges = TypeVar("Edges", bound="SortedEdges")


class KeyOrder(NamedTuple):
    """The edges of a graph in the order (key, query): CSC, which the backward pass reads."""

    ptr: Tensor
    """`[n_keys + 1]`: the edges of key j are `ptr[j]:ptr[j + 1]`."""
    edge: Tensor
    """`[n_edges]`: position of the edge in the graph's own order, by query."""
    query: Tensor
    """`[n_edges]`: query of the edge."""


@dataclass(frozen=True, eq=False, repr=False)
class SortedEdges:
    """Edges sorted by (query, key), and the way back to the caller's order of them.

    Attributes are those of :class:`gatv2.Graph`.
    """

    query_ptr: Tensor
    key_index: Tensor
    query_index: Tensor
    edge_id: Tensor
    n_keys: int
    head_mask: Tensor | None = None
    n_blocks: int = 1
    query_id: Tensor | None = None
    key_id: Tensor | None = None
    flow: Flow = "target_to_source"
    is_bipartite: bool = False
    batch_shape: tuple[int, ...] | None = None
    _gatv2_record: ClassVar[bytes]  # of `gatv2.graph.join`; no name that a subclass may have

    def __getstate__(self) -> dict[str, object]:
        """The fields alone: what was made of them is made again, and they are checked again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def n_queries(self) -> int:
        """Number of queries."""
        return self.query_ptr.shape[0] - 1

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.key_index.shape[0]

    @property
    def block_shape(self) -> tuple[int, int]:
        """Number of queries and of keys in one block; the whole graph's if there is one block."""
        n_blocks = max(self.n_blocks, 1)
        return self.n_queries // n_blocks, self.n_keys // n_blocks

    @property
    def batch_dims(self) -> tuple[int, ...]:
        """Batch dimensions of a batch of graphs, also of one or of none; () for a graph alone."""
        if self.batch_shape is not None:
            return self.batch_shape
        return () if self.n_blocks == 1 else (self.n_blocks,)

    @property
    def device(self) -> torch.device:
        """Where the graph's tensors are."""
        return self.key_index.device

    @property
    def edge_index(self) -> Tensor:
        """`[2, n_edges]`, int64: queries and keys in the caller's order."""
        return self.in_callers_order(
            torch.stack((self.query_index, self.key_index), dim=1).long(), dim=0
        ).T

    @made_once
    def by_key(self) -> KeyOrder:
        """The edges sorted by (key, query); made when first asked for."""
        return KeyOrder(*sort_by_key(self.query_ptr, self.key_index, self.query_index, self.n_keys))

    @property
    def multiplicity(self) -> Tensor:
        """`[n_edges]`, int64: 0 for the first of parallel edges, 1 for the second, and so on."""
        position = torch.arange(self.n_edges, device=self.device)
        is_first = torch.ones_like(self.query_index, dtype=torch.bool)
        is_first[1:] = (self.query_index[1:] != self.query_index[:-1]) | (
            self.key_index[1:] != self.key_index[:-1]
        )
        first: Tensor = torch.cummax(torch.where(is_first, position, 0), dim=0).values
        return position - first

    def in_callers_order(self, values: Tensor, dim: int) -> Tensor:
        """Bring values of the sorted edges, along `dim`, to the order in which the caller gave them."""
        position = torch.empty_like(self.edge_id)
        position[self.edge_id.long()] = torch.arange(
            self.n_edges, dtype=position.dtype, device=self.device
        )
        return values.index_select(dim, position)


def of_sorted(make: type[Edges], edges: Sequence[Tensor], **further: object) -> Edges:
    """A graph that kernels can run on: query_ptr, key_index, query_index, edge_id, further fields.

    Not by the constructor, which sets field by field and takes a tenth of the time that a small graph
    does: what is not set here has its default from the class.
    """
    graph = make.__new__(make)
    query_ptr, key_index, query_index, edge_id = edges
    graph.__dict__.update(
        query_ptr=query_ptr,
        key_index=key_index,
        query_index=query_index,
        edge_id=edge_id,
        **further,
    )
    return trusted(graph)


def forget(graph: SortedEdges, *names: str) -> None:
    """Forget what was made of the fields, all of it if no names are given: it is made again."""
    for name in names or [name for name in graph.__dict__ if name.startswith("_")]:
        graph.__dict__.pop(name, None)


def trusted(graph: Edges) -> Edges:
    """A graph that kernels can run on, because it was made to be one or has been checked, marked so."""
    if not torch.compiler.is_compiling():
        graph.__dict__["_trusted"] = _as_it_is(graph)
    return graph


def is_trusted(graph: SortedEdges) -> bool:
    """Whether kernels can run on a graph, or nobody knows; not once an operation has written to it.

    Nobody counts what writes past PyTorch's operations: NumPy, or `.data`.
    """
    known = graph.__dict__.get("_trusted")
    if known is None:
        return False
    tensors, n_writes = known
    return torch.compiler.is_compiling() or n_writes_of(tensors) == n_writes


def _as_it_is(graph: SortedEdges) -> tuple[list[Tensor], list[int]]:
    """The tensors of a graph, and how often each has been written to."""
    tensors = [graph.query_ptr, graph.key_index, graph.query_index, graph.edge_id]
    tensors += [x for x in (graph.head_mask, graph.query_id, graph.key_id) if x is not None]
    return tensors, n_writes_of(tensors)


def changed(graph: Edges, **changes: Any) -> Edges:
    """`dataclasses.replace`, for changes by which a graph stays one: no check if it needed none."""
    result = replace(graph, **changes)
    if torch.compiler.is_compiling() or not is_trusted(graph):
        return result
    return trusted(result)
