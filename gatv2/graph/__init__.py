"""A graph, prepared once: every form in which it comes, its edges sorted, checked, saved."""

from gatv2.graph.adjacency import Sizes, as_adjacency
from gatv2.graph.check import check_graph
from gatv2.graph.edges import KeyOrder
from gatv2.graph.graph import Graph, SelfLoops
from gatv2.graph.self_loops import FillValue, add_self_loops

__all__ = [
    "FillValue",
    "Graph",
    "KeyOrder",
    "SelfLoops",
    "Sizes",
    "add_self_loops",
    "as_adjacency",
    "check_graph",
]
