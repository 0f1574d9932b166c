"""Reorders nodes so that neighbours lie close in memory, and restores the order of the result.

A layer reads one row of features for every edge. If the keys of one query are near to those of the
next, their rows are still in the cache; if nodes are numbered at random, and are too many for the cache,
each row comes from memory.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gatv2.graph import Graph
from gatv2.graph.check import check_once
from gatv2.graph.edges import changed
from gatv2.optional import require
from gatv2.torch_internals import refuse_mapped


@dataclass(frozen=True, eq=False)
class Reordered:
    """A graph whose nodes have been put in another order, and the way there and back.

    Attributes:
        graph: the graph in the new order. Its edges have the caller's numbers, so edge features and
            attention weights are as before; its nodes are known to dropout by their old numbers.
        order: `[n_nodes]`, int64, the old number of each node.
    """

    graph: Graph
    order: Tensor

    @cached_property
    def rank(self) -> Tensor:
        """`[n_nodes]`, int64, the new number of each node: the inverse of `order`."""
        return _inverse(self.order)

    def apply(self, h: Tensor, dim: int = -2) -> Tensor:
        """Bring what nodes have, along `dim`, to the new order; an error if they are others."""
        return self._of_nodes(h, dim).index_select(dim, self.order)

    def undo(self, out: Tensor, dim: int = -2) -> Tensor:
        """Bring what nodes have, along `dim`, back to the old order; an error if they are others."""
        return self._of_nodes(out, dim).index_select(dim, self.rank)

    def _of_nodes(self, values: Tensor, dim: int) -> Tensor:
        n_nodes = self.order.shape[0]
        if not isinstance(values, Tensor):
            raise TypeError(
                f"what nodes have must be a torch.Tensor; got {type(values).__name__}: convert it with "
                "`torch.as_tensor`"
            )
        if values.size(dim) != n_nodes:  # of more rows, some would be left out
            raise ValueError(
                f"dimension {dim} must be of the graph's {n_nodes} nodes; got {tuple(values.shape)}"
            )
        return values


def reorder(graph: Graph, order: Tensor | None = None) -> Reordered:
    """Put the nodes of a graph in another order.

    Layers give the same results, dropout included, up to the order in which sums are taken:
    `undo(layer(apply(h), graph))` is `layer(h, graph)`. Between the layers of a model there is nothing
    to undo.

    Args:
        graph: a graph whose queries are its keys.
        order: `[n_nodes]`, integer, the number that each node had. By default that of Cuthill and
            McKee, reversed, of the graph without directions.

    Raises:
        ImportError: SciPy is missing, which finds the default order.
        TypeError: `order` is not a tensor of integers.
        ValueError: queries and keys are not the same nodes, the graph is of several masks, or `order` is
            no permutation of the nodes.

    Example:
        A ring in which neighbours are three numbers apart.

        >>> ring = torch.arange(8)
        >>> graph = Graph.from_edge_index(torch.stack((ring, (ring + 3) % 8)), n_nodes=8)
        >>> reordered = reorder(graph)
        >>> int((reordered.graph.query_index - reordered.graph.key_index).abs().max())
        2
        >>> h = torch.randn(8, 4)
        >>> torch.equal(reordered.undo(reordered.apply(h)), h)
        True

    Source: E. Cuthill and J. McKee, "Reducing the bandwidth of sparse symmetric matrices", 1969.
    """
    check_once(graph)
    refuse_mapped(graph.key_index, "reorder the graphs before vmap")
    if graph.n_queries != graph.n_keys or graph.n_blocks != 1 or graph.is_bipartite:
        of = "a batch of bipartite graphs, " if graph.is_bipartite else ""
        raise ValueError(
            f"to be reordered, a graph must have one set of nodes; got {of}"
            f"{graph.n_queries} queries and {graph.n_keys} keys in {graph.n_blocks} blocks: "
            "reorder the graphs before they are joined"
        )
    order = _reverse_cuthill_mckee(graph) if order is None else _checked(order, graph)
    rank = _inverse(order).to(graph.key_index)
    edge_index = torch.stack((rank[graph.query_index.long()], rank[graph.key_index.long()]))
    moved = Graph.from_edge_index(edge_index, graph.n_keys)
    position = moved.edge_id.long()  # in the old graph
    return Reordered(
        changed(
            moved,
            edge_id=graph.edge_id[position],
            head_mask=None if graph.head_mask is None else graph.head_mask[position],
            query_id=order if graph.query_id is None else graph.query_id[order],
            key_id=order if graph.key_id is None else graph.key_id[order],
            flow=graph.flow,
            batch_shape=graph.batch_shape,
        ),
        order,
    )


def _inverse(order: Tensor) -> Tensor:
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.shape[0], device=order.device)
    return rank


def _checked(order: Tensor, graph: Graph) -> Tensor:
    nodes = torch.arange(graph.n_keys, device=graph.device)
    if not isinstance(order, Tensor) or order.is_floating_point() or order.dtype == torch.bool:
        got = order.dtype if isinstance(order, Tensor) else type(order).__name__
        raise TypeError(f"`order` must be a tensor of integers; got {got}")
    order = order.to(nodes)
    if order.shape != nodes.shape or not torch.equal(order.sort().values, nodes):
        raise ValueError(
            f"`order` must have each of the {graph.n_keys} nodes once; got shape {tuple(order.shape)}, "
            f"{order.unique().numel()} different numbers"
        )
    return order


def _reverse_cuthill_mckee(graph: Graph) -> Tensor:
    sparse, csgraph = (
        require(name, extra="scipy", needed_for="an order for locality")
        for name in ("scipy.sparse", "scipy.sparse.csgraph")
    )
    if not graph.n_queries:
        return torch.arange(0, device=graph.device)
    key, ptr = graph.key_index.cpu().numpy(), graph.query_ptr.cpu().numpy()
    # bool, in which parallel edges do not add up to nothing
    matrix = sparse.csr_array(
        (np.ones(graph.n_edges, bool), key, ptr), shape=(graph.n_queries, graph.n_keys)
    )
    order = csgraph.reverse_cuthill_mckee(matrix)
    return torch.from_numpy(order.astype(np.int64)).to(graph.device)
