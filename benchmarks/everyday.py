"""What people run first, against PyG: small graphs, fresh graphs, sparse features."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from benchmarks.cases import Case
from benchmarks.measure import interleaved, summary
from benchmarks.report import Row
from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.convert import to_pyg

COLUMNS = ("case", "pyg ms", "prepared ms", "prepared x", "fresh ms", "fresh x")


@dataclass(frozen=True)
class Work:
    """A training step: a graph, its features, and layers with ELU between them.

    Attributes:
        name: what it is called.
        n_nodes: number of nodes.
        edge_index: row 0 holds sources, as PyTorch Geometric has them.
        in_features: features of a node.
        n_heads: attention heads of a layer.
        n_hidden: features of a head.
        n_layers: layers.
        edge_dim: features of an edge, or None.
        density: share of a node's features that are not zero; less than 1, ours are a sparse matrix.
    """

    name: str
    n_nodes: int
    edge_index: Tensor
    in_features: int = 64
    n_heads: int = 8
    n_hidden: int = 8
    n_layers: int = 1
    edge_dim: int | None = None
    density: float = 1.0

    def steps(self) -> dict[str, Callable[[], object]]:
        """A step of PyTorch Geometric's layers, of ours on a prepared graph, and on a fresh one.

        Raises:
            AssertionError: the results differ.
        """
        torch.manual_seed(0)
        width = self.n_heads * self.n_hidden
        layers = [
            GraphAttentionV2Layer(
                width if i else self.in_features,
                width,
                self.n_heads,
                dropout=0.0,
                edge_dim=self.edge_dim,
                flow="source_to_target",
            )
            for i in range(self.n_layers)
        ]
        ours, theirs = nn.ModuleList(layers), nn.ModuleList(map(to_pyg, layers))
        h = torch.randn(self.n_nodes, self.in_features)
        h[torch.rand(h.shape) >= self.density] = 0
        of_ours = h.to_sparse() if self.density < 1 else h
        n_edges = self.edge_index.shape[1]
        x = None if self.edge_dim is None else torch.randn(n_edges, self.edge_dim)
        graph = Graph.from_edge_index(self.edge_index, self.n_nodes, flow="source_to_target")
        cotangent = torch.randn(self.n_nodes, width)

        def run(layers: nn.ModuleList, h: Tensor, graph: object, **edges: Any) -> Tensor:
            for i, layer in enumerate(layers):
                h = layer(elu(h) if i else h, graph, **edges)
            return h

        def step(layers: nn.ModuleList, h: Tensor, graph: object, **edges: Any) -> None:
            layers.zero_grad()
            run(layers, h, graph, **edges).backward(cotangent)

        expected = run(theirs, h, self.edge_index, edge_attr=x)
        torch.testing.assert_close(
            run(ours, of_ours, graph, edge_features=x), expected, rtol=1e-3, atol=1e-4
        )
        return {
            "pyg": lambda: step(theirs, h, self.edge_index, edge_attr=x),
            "prepared": lambda: step(ours, of_ours, graph, edge_features=x),
            "fresh": lambda: step(ours, of_ours, self.edge_index.clone(), edge_features=x),
        }


def molecules(n: int, n_atoms: int) -> Tensor:
    """The edges of `n` chains of atoms, each closed to a ring at one end, there and back."""
    atom = torch.arange(n * n_atoms)
    is_last = atom % n_atoms == n_atoms - 1
    chain = torch.stack((atom, atom + 1))[:, ~is_last]
    ring = torch.stack((atom, atom + 5))[:, atom % n_atoms == 0]
    edges = torch.cat((chain, ring), 1)
    return torch.cat((edges, edges.flip(0)), 1)


def works() -> Iterator[Work]:
    """What is measured."""
    yield Work("20 nodes, 100 edges", 20, Case("", 20, 100, 64).edge_index)
    yield Work("16 molecules, 3 layers", 16 * 14, molecules(16, 14), n_layers=3)
    batch: dict[str, Any] = {"edge_index": molecules(128, 23), "n_heads": 4, "n_hidden": 16}
    yield Work("128 molecules", 128 * 23, **batch)
    yield Work("128 molecules, 16 edge features", 128 * 23, **batch, edge_dim=16)
    cora = Case("", 2_708, 13_264, 64).edge_index
    yield Work("Cora's size", 2_708, cora)
    yield Work("Cora's features, sparse", 2_708, cora, in_features=1_433, density=0.0127)
    yield Work("Cora's size, 8 x 64", 2_708, cora, n_hidden=64)
    yield Work("PubMed's size", 19_717, Case("", 19_717, 108_365, 64).edge_index)


def measure(work: Work, seconds: float, tick: Callable[[], object]) -> Row:
    """Medians of the steps, run in turn, and how many times as fast as PyTorch Geometric's ours is."""
    medians = summary(interleaved(work.steps(), seconds, tick))
    row: Row = {"case": work.name, "pyg ms": medians["pyg"]}
    for name in ("prepared", "fresh"):
        row[f"{name} ms"] = medians[name]
        row[f"{name} x"] = medians["pyg"] / medians[name]
    return row
