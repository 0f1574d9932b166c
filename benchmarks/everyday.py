"""What people run first, against PyG: small graphs, fresh graphs, sparse features."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch_geometric
from torch import Tensor, nn
from torch.nn.functional import elu

from benchmarks.cases import Case
from benchmarks.measure import in_a_process, interleaved, summary
from benchmarks.report import Row
from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.convert import to_pyg
from gatv2.pyg import GATv2Conv

_N_PROCESSES = 5
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
        is_drop_in: whether ours is `gatv2.pyg.GATv2Conv`, with the defaults of the class.
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
    is_drop_in: bool = False

    def steps(self) -> dict[str, Callable[[], object]]:
        """A step of PyTorch Geometric's layers, of ours on a prepared graph, and on a fresh one.

        Raises:
            AssertionError: the results differ.
        """
        torch.manual_seed(0)
        ours, theirs = self._modules()
        h = torch.randn(self.n_nodes, self.in_features)
        h[torch.rand(h.shape) >= self.density] = 0
        of_ours = h.to_sparse() if self.density < 1 else h
        n_edges = self.edge_index.shape[1]
        x = None if self.edge_dim is None else torch.randn(n_edges, self.edge_dim)
        graph = Graph.from_edge_index(self.edge_index, self.n_nodes, flow="source_to_target")
        cotangent = torch.randn(self.n_nodes, self.n_heads * self.n_hidden)
        name = "edge_attr" if self.is_drop_in else "edge_features"

        def run(layers: nn.ModuleList, h: Tensor, graph: object, **edges: Any) -> Tensor:
            for i, layer in enumerate(layers):
                h = layer(elu(h) if i else h, graph, **edges)
            return h

        def step(layers: nn.ModuleList, h: Tensor, graph: object, **edges: Any) -> None:
            layers.zero_grad()
            run(layers, h, graph, **edges).backward(cotangent)

        expected = run(theirs, h, self.edge_index, edge_attr=x)
        torch.testing.assert_close(
            run(ours, of_ours, graph, **{name: x}), expected, rtol=1e-3, atol=1e-4
        )
        return {
            "pyg": lambda: step(theirs, h, self.edge_index, edge_attr=x),
            "prepared": lambda: step(ours, of_ours, graph, **{name: x}),
            "fresh": lambda: step(ours, of_ours, self.edge_index.clone(), **{name: x}),
        }

    def _modules(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Our layers, and PyTorch Geometric's of the same parameters."""
        width = self.n_heads * self.n_hidden
        sizes = [width if i else self.in_features for i in range(self.n_layers)]
        if self.is_drop_in:
            of_heads = {"heads": self.n_heads, "edge_dim": self.edge_dim}
            ours = nn.ModuleList(GATv2Conv(n, self.n_hidden, **of_heads) for n in sizes)
            theirs = nn.ModuleList(
                torch_geometric.nn.GATv2Conv(n, self.n_hidden, **of_heads) for n in sizes
            )
            theirs.load_state_dict(ours.state_dict())
            return ours, theirs
        layers = [
            GraphAttentionV2Layer(
                n,
                width,
                self.n_heads,
                dropout=0.0,
                edge_dim=self.edge_dim,
                flow="source_to_target",
            )
            for n in sizes
        ]
        return nn.ModuleList(layers), nn.ModuleList(map(to_pyg, layers))


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
    yield Work(
        "128 molecules, 16 edge features, drop-in class",
        128 * 23,
        **batch,
        edge_dim=16,
        is_drop_in=True,
    )
    cora = Case("", 2_708, 13_264, 64).edge_index
    yield Work("Cora's size", 2_708, cora)
    yield Work("Cora's features, sparse", 2_708, cora, in_features=1_433, density=0.0127)
    yield Work("Cora's size, 8 x 7", 2_708, cora, n_hidden=7)
    yield Work("Cora's size, 8 x 64", 2_708, cora, n_hidden=64)
    yield Work("PubMed's size", 19_717, Case("", 19_717, 108_365, 64).edge_index)


def measure(work: Work, seconds: float, tick: Callable[[], object]) -> Row:
    """Medians of the steps, and how many times as fast as PyTorch Geometric's ours is.

    Of some processes, one after the other, the median again: what memory a process happens to get makes
    a step of tensors of some 100 KB, PyTorch Geometric's above all, up to half as fast again.
    """
    runs = []
    for _ in range(_N_PROCESSES):
        share = seconds / _N_PROCESSES
        runs.append(in_a_process(__name__, "report", work.name, share, torch.get_num_threads()))
        tick()
    medians = {name: median(run[name] for run in runs) for name in runs[0]}
    row: Row = {"case": work.name, "pyg ms": medians["pyg"]}
    for name in ("prepared", "fresh"):
        row[f"{name} ms"] = medians[name]
        row[f"{name} x"] = medians["pyg"] / medians[name]
    return row


def report(name: str, seconds: float, n_threads: int) -> None:
    """Print the medians of the steps of a piece of work, run in turn."""
    torch.set_num_threads(n_threads)
    work = next(work for work in works() if work.name == name)
    print(json.dumps(summary(interleaved(work.steps(), seconds, lambda: None))))
