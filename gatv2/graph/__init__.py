"""A graph, prepared once: every form in which it comes, its edges sorted, checked, saved."""

from gatv2.graph.graph import Graph, KeyOrder, SelfLoops

__all__ = ["Graph", "KeyOrder", "SelfLoops"]
