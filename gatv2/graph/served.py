"""Calls that a graph has served: the next one of their kind goes straight to its kernel.

Below some hundred edges, to check a call and to choose its kernel takes longer than the kernel.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gatv2.graph.edges import is_trusted
from gatv2.graph.graph import Graph
from gatv2.torch_internals import needs_dispatcher

if TYPE_CHECKING:
    from gatv2.dispatch import Attention, Kernel
    from gatv2.graph.part import AttendOptions
    from gatv2.options import Flow

    Kernels = tuple[Kernel, ...]
    _Served = tuple[Kernels, Attention]

MOST_KINDS = 16
"""Kinds of calls that a graph remembers."""
_NUMBERS = {int, float}  # not bool: True is no slope, and equals one


class Kind(NamedTuple):
    """All that the checks of a call, and the choice among some kernels, depend on."""

    graph: Graph
    rest: Hashable

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        attn: Tensor,
        graph: object,
        flow: "Flow",
        options: "AttendOptions",
    ) -> "Kind | None":
        """The kind of a call of plain tensors and a graph; None if it depends on more than that."""
        slope, dropout = options["negative_slope"], options["dropout"]
        names = flow, options["backend"], options["kernel"]
        tensors = query, key, attn, *(options["edges"] or (None, None)), options["score_bias"]
        if (
            torch.compiler.is_compiling()
            or type(graph) is not Graph
            or not is_trusted(graph)  # one made by hand may hold anything
            or not {type(slope), type(dropout)} <= _NUMBERS
            or set(map(type, names)) != {str}
            or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            or needs_dispatcher(tensors)
        ):
            return None
        forms = tuple(
            x if x is None else (x.shape, x.dtype, x.device, x.layout)
            for x in (*tensors, graph.query_ptr, graph.key_index, graph.head_mask)
        )
        return cls(graph, (forms, graph.n_keys, graph.flow, slope, dropout, names))

    def kernel(self, kernels: "Kernels") -> "Attention | None":
        """Which of these kernels served such a call, with the tensors and the graph as they came."""
        served: dict[Hashable, _Served] = self.graph.__dict__.get("_served", {})
        chosen, kernel = served.get(self.rest, (None, None))
        return kernel if chosen is kernels else None

    def remember(self, kernel: "Attention", kernels: "Kernels") -> None:
        """Note that `kernel` was chosen among these for such calls."""
        served: dict[Hashable, _Served] = self.graph.__dict__.setdefault("_served", {})
        if len(served) >= MOST_KINDS:
            served.clear()
        served[self.rest] = kernels, kernel
