"""Graph: the prepared form of a graph, as a pytree whose sizes are static.

Fields, order of edges and rules are those of :class:`gatv2.Graph`. What is new is padding: an edge
from query `n_queries`, which does not exist, to key `n_keys`, sorted behind all others. Gathering reads
zeros there and scattering drops what it is given, so padding changes nothing, and graphs of several
sizes share one compilation. Nodes are padded by nodes without edges.
"""

from gatv2.jax.graph.graph import Graph, SelfLoops
from gatv2.jax.graph.sort import KeyOrder

__all__ = ["Graph", "KeyOrder", "SelfLoops"]
