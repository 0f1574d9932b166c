"""Calls that have been served: the next one of their kind goes straight to its kernel.

Below some hundred edges, to check a call and to choose its kernel takes longer than the kernel. What
serves a graph's calls is kept with the graph; a graph that has served none yet asks for the choice that
was made for calls of the same manner, of another graph.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gatv2.graph.edges import is_trusted
from gatv2.graph.graph import Graph
from gatv2.projection import Projections
from gatv2.torch_internals import needs_dispatcher

if TYPE_CHECKING:
    from gatv2.dispatch import Attention, Kernel
    from gatv2.graph.part import AttendOptions
    from gatv2.options import Flow

    Kernels = tuple[Kernel, ...]


Shapes: TypeAlias = tuple[tuple[int, ...] | None, ...]


Marks: TypeAlias = tuple[Shapes, Hashable, Hashable, bool]
"""What tells calls of one graph apart: the fields of a `Kind` behind the graph."""


class Kind(NamedTuple):
    """A graph, and all else that the checks of a call, and the choice among some kernels, depend on."""

    graph: Graph
    shapes: Shapes
    """Of query, key and attn, and of edge features and bias, if there is one of the two."""
    manner: Hashable
    """What does not depend on the numbers of nodes and edges."""
    form: Hashable
    """That of the graph."""
    is_differentiated: bool
    """Whether autograd wants a gradient; part of the manner, too."""

    @property
    def is_for_all_graphs(self) -> bool:
        """Whether what serves the manner serves a call of these shapes, of this graph."""
        graph, (query, key, attn, *of_edges) = self.graph, self.shapes
        n_edges = graph.key_index.shape[0]
        return (
            attn is not None
            and query == (graph.query_ptr.shape[0] - 1, *attn)
            and key == (graph.n_keys, *attn)
            and graph.head_mask is None
            and graph.n_blocks == 1
            and graph.batch_shape is None
            and all(shape is None or shape[:-1] == (n_edges,) for shape in of_edges)
        )


MOST_KINDS = 16
"""Kinds of calls that a graph remembers."""
MOST_MANNERS = 256
"""Manners of calls that are remembered."""
_NUMBERS = {int, float}  # not bool: True is no slope, and equals one
"""Types of a probability; a slope that is an int may be too large, where a dropout is 0."""
_chosen: dict[Hashable, tuple["Kernels", "Kernel"]] = {}


def marks_of(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    flow: "Flow",
    options: "AttendOptions",
) -> Marks | None:
    """Those of a call of plain tensors and a graph; None if it depends on more than that."""
    edges, score_bias = options["edges"], options["score_bias"]
    tensors: tuple[Tensor | None, ...] = query, key, attn
    if edges is not None or score_bias is not None:
        tensors = *tensors, *(edges or (None, None)), score_bias
    if type(graph) is not Graph or needs_dispatcher(tensors):
        return None
    shapes: list[tuple[int, ...] | None] = []
    forms: list[Hashable] = []
    wants_gradient = False
    for x in tensors:
        if x is None:
            shapes.append(None)
            forms.append(None)
            continue
        shapes.append(x.shape)
        forms += x.ndim, x.shape[-1:], x.dtype, x.device, x.layout
        wants_gradient |= x.requires_grad
    is_differentiated = wants_gradient and torch.is_grad_enabled()
    projection = None if edges is None else edges.projection.shape
    of_all = (*shapes[:3], *shapes[3::2])
    return _marks(graph, of_all, (*forms, shapes[2], projection), is_differentiated, flow, options)


def marks_of_projections(
    projections: Projections,
    attn: Tensor,
    graph: Graph,
    flow: "Flow",
    options: "AttendOptions",
) -> Marks | None:
    """Those of a call of what plain modules project, as `as_projections` has found it to be."""
    h_query, h_key, x = projections.h_query, projections.h_key, projections.edge_features
    heads = attn.shape
    of_query = of_key = (h_query.shape[0], *heads)
    if h_key is not None:
        of_key = (h_key.shape[0], *heads)
    shapes: Shapes = (of_query, of_key, heads)
    n_features = None
    if x is not None:
        of_edges = x.shape
        shapes, n_features = (*shapes, of_edges), of_edges[1]
    is_differentiated = torch.is_grad_enabled() and (
        attn.requires_grad or True in [p.requires_grad for p in projections if p is not None]
    )
    return _marks(graph, shapes, (heads, attn.dtype, n_features), is_differentiated, flow, options)


def _marks(
    graph: Graph,
    shapes: Shapes,
    forms: tuple[Hashable, ...],
    is_differentiated: bool,
    flow: "Flow",
    options: "AttendOptions",
) -> Marks | None:
    slope, dropout = options["negative_slope"], options["dropout"]
    backend, kernel = options["backend"], options["kernel"]
    if (
        not is_trusted(graph)  # one made by hand may hold anything
        or type(slope) is not float
        or type(dropout) not in _NUMBERS
        or type(flow) is not str
        or type(backend) is not str
        or type(kernel) is not str
    ):
        return None
    ptr, index, mask = graph.query_ptr, graph.key_index, graph.head_mask
    manner = (
        forms,
        *(slope, dropout, flow, backend, kernel, options["return_attention"], is_differentiated),
        *(ptr.dtype, index.dtype, index.is_cpu or index.device, graph.flow),
    )
    form = (
        *(ptr.shape, ptr.data_ptr(), index.shape, index.data_ptr(), graph.n_keys, graph.n_blocks),
        *(() if mask is None else (mask.shape, mask.dtype, mask.data_ptr())),
        *(() if dropout == 0 and len(shapes) == 3 else _ids_of(graph)),
    )
    return shapes, manner, form, is_differentiated


def _ids_of(graph: Graph) -> tuple[Hashable, ...]:
    """Which numbers of edges and of nodes a graph has."""
    ids = graph.edge_id, graph.query_id, graph.key_id
    return *map(id, ids), *[None if x is None else x.shape for x in ids]


def has_served(graph: Graph) -> bool:
    """Whether a graph has served a call: its tensors may have been written to since."""
    return "_served" in graph.__dict__


def served(graph: Graph, marks: Marks, kernels: "Kernels") -> "Attention | None":
    """What served such a call, with the tensors and the graph as they came; chosen among `kernels`."""
    calls: dict[Hashable, tuple[Kernels, Attention]] | None = graph.__dict__.get("_served")
    found = None if calls is None else calls.get(marks)
    return found[1] if found is not None and found[0] is kernels else None


def remember(kind: Kind, attention: "Attention", kernels: "Kernels") -> None:
    """Note that `attention`, chosen among these kernels, serves such calls."""
    calls: dict[Hashable, tuple[Kernels, Attention]] = kind.graph.__dict__.setdefault("_served", {})
    if len(calls) >= MOST_KINDS:
        calls.clear()
    calls[kind[1:]] = kernels, attention


def chosen(kind: Kind, kernels: "Kernels") -> "Kernel | None":
    """Which of some kernels serves such a call, if that is known from calls of other graphs."""
    found = _chosen.get(kind.manner)
    if found is None or found[0] is not kernels or not kind.is_for_all_graphs:
        return None
    return found[1]


def remember_choice(kind: Kind, kernel: "Kernel", kernels: "Kernels") -> None:
    """Note that calls of this manner are served by one of these kernels."""
    if not kind.is_for_all_graphs:
        return
    if len(_chosen) >= MOST_MANNERS:
        _chosen.clear()
    _chosen[kind.manner] = kernels, kernel
