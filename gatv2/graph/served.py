"""Calls that a graph has served: the next one of their kind goes straight to its kernel.

Below some hundred edges, to check a call and to choose its kernel takes longer than the kernel.
"""

from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gatv2.graph.graph import Graph
from gatv2.torch_internals import needs_dispatcher

if TYPE_CHECKING:
    from gatv2.dispatch import Attention
    from gatv2.graph.part import AttendOptions
    from gatv2.options import Flow

MOST_KINDS = 16
"""Kinds of calls that a graph remembers."""


class Kind(NamedTuple):
    """All that the checks of a call and the choice of its kernel depend on."""

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
        tensors = query, key, attn, *(options["edges"] or (None, None)), options["score_bias"]
        if (
            type(graph) is not Graph
            or not {type(slope), type(dropout)} <= _NUMBERS
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            or needs_dispatcher(tensors)
        ):
            return None
        features = tuple(
            x if x is None else (x.shape, x.dtype, x.device, x.layout) for x in tensors
        )
        return cls(graph, (features, slope, dropout, flow, options["backend"], options["kernel"]))

    def kernel(self) -> "Attention | None":
        """What served such a call before, with the tensors and the graph as they came."""
        served: dict[Hashable, Attention] = self.graph.__dict__.get("_served", {})
        return served.get(self.rest)

    def remember(self, kernel: "Attention") -> None:
        """Note that `kernel` serves such calls."""
        served: dict[Hashable, Attention] = self.graph.__dict__.setdefault("_served", {})
        if len(served) >= MOST_KINDS:
            served.clear()
        served[self.rest] = kernel


_NUMBERS = {int, float}  # not bool: True is no slope, and equals one
