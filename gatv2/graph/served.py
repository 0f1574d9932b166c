"""Calls that a graph has served: the next one of their kind goes straight to its kernel.

Below some hundred edges, to check a call and to choose its kernel takes longer than the kernel.
"""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gatv2.graph.edges import is_trusted
from gatv2.graph.graph import Graph
from gatv2.projection import Form
from gatv2.torch_internals import needs_dispatcher

if TYPE_CHECKING:
    from gatv2.dispatch import Attention, Kernel
    from gatv2.graph.part import AttendOptions
    from gatv2.options import Flow

    Kernels = tuple[Kernel, ...]
    _Served = tuple[Kernels, Attention]


class Kind(NamedTuple):
    """A graph, and all else that the checks of a call, and the choice among some kernels, depend on."""

    graph: Graph
    rest: Hashable
    is_differentiated: bool
    """Whether autograd wants a gradient; part of the rest, too."""


MOST_KINDS = 16
"""Kinds of calls that a graph remembers."""
_NUMBERS = {int, float}  # not bool: True is no slope, and equals one


def kind_of(
    query: Tensor | Form,
    key: Tensor | Form,
    attn: Tensor,
    graph: object,
    flow: "Flow",
    options: "AttendOptions",
    projected: Sequence[Tensor | None] = (),
) -> Kind | None:
    """The kind of a call of plain tensors and a graph; None if it depends on more than that.

    `projected`: what query and key will be made of, if that is not known of themselves. The dispatcher
    need see nothing of it, nor attn.
    """
    slope, dropout, edges = options["negative_slope"], options["dropout"], options["edges"]
    backend, kernel, score_bias = options["backend"], options["kernel"], options["score_bias"]
    tensors: tuple[Any, ...] = query, key, attn
    if edges is not None or score_bias is not None:
        tensors = *tensors, *(edges or (None, None)), score_bias
    if (
        type(graph) is not Graph
        or not is_trusted(graph)  # one made by hand may hold anything
        or type(slope) not in _NUMBERS
        or type(dropout) not in _NUMBERS
        or type(flow) is not str
        or type(backend) is not str
        or type(kernel) is not str
        or (not projected and needs_dispatcher(tensors))
    ):
        return None
    sources = (attn, *projected) if projected else tensors
    forms: list[Hashable] = []
    for x in tensors:
        if x is not None:
            forms += x.shape, x.dtype, x.device, x.layout
        else:
            forms.append(None)
    ptr, index, mask = graph.query_ptr, graph.key_index, graph.head_mask
    is_differentiated = torch.is_grad_enabled() and True in [
        x.requires_grad for x in sources if x is not None
    ]
    rest = (
        *forms,
        *(ptr.shape, ptr.dtype, ptr.data_ptr()),
        *(index.shape, index.dtype, index.device, index.data_ptr()),
        *(() if mask is None else (mask.shape, mask.dtype, mask.data_ptr())),
        *(() if dropout == 0 and len(tensors) == 3 else _ids_of(graph)),
        *(graph.n_keys, graph.n_blocks, graph.flow, slope, dropout, flow, backend, kernel),
        options["return_attention"],
        is_differentiated,
    )
    return Kind(graph, rest, is_differentiated)


def _ids_of(graph: Graph) -> tuple[int, int, int]:
    """Which numbers of edges and of nodes a graph has."""
    return id(graph.edge_id), id(graph.query_id), id(graph.key_id)


def served(kind: Kind, kernels: "Kernels") -> "Attention | None":
    """What served such a call, with the tensors and the graph as they came; chosen among `kernels`."""
    calls: dict[Hashable, _Served] | None = kind.graph.__dict__.get("_served")
    found = None if calls is None else calls.get(kind.rest)
    return found[1] if found is not None and found[0] is kernels else None


def remember(kind: Kind, attention: "Attention", kernels: "Kernels") -> None:
    """Note that `attention`, chosen among these kernels, serves such calls."""
    calls: dict[Hashable, _Served] = kind.graph.__dict__.setdefault("_served", {})
    if len(calls) >= MOST_KINDS:
        calls.clear()
    calls[kind.rest] = kernels, attention
