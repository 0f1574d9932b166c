"""What is measured: graphs, and layers that compute the same function of them."""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.convert import to_dgl

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A graph, the sizes of a layer, and who else runs.

    Attributes:
        name: name of the case.
        n_nodes: number of nodes.
        n_edges: number of random edges, or None.
        density: without `n_edges`, share of the pairs of nodes that are edges, none of them twice.
        in_features: features of a node.
        n_heads: attention heads.
        n_hidden: features of a head.
        exponent: nodes are drawn with weight rank**-exponent, at both ends of an edge.
        edge_dim: features of an edge, or None.
        dropout: probability in training.
        rivals: who else runs; ratios are against the first.
    """

    name: str
    n_nodes: int
    n_edges: int | None
    in_features: int
    n_heads: int = 8
    n_hidden: int = 8
    exponent: float = 0.0
    density: float = 1.0
    edge_dim: int | None = None
    dropout: float = 0.0
    rivals: tuple[str, ...] = ("pyg",)

    @cached_property
    def edge_index(self) -> Tensor:
        """Row 0 attends to row 1."""
        generator = torch.Generator().manual_seed(0)
        if self.n_edges is None:
            drawn = torch.rand(self.n_nodes, self.n_nodes, generator=generator)
            return (drawn < self.density).nonzero().T
        weight = torch.arange(1, self.n_nodes + 1).double() ** -self.exponent
        share = weight.cumsum(0) / weight.sum()
        drawn = torch.rand(2, self.n_edges, dtype=torch.float64, generator=generator)
        rank = torch.searchsorted(share, drawn).clamp(max=self.n_nodes - 1)
        return torch.randperm(self.n_nodes, generator=generator)[rank]

    @cached_property
    def graph(self) -> Graph:
        """The same, prepared."""
        return Graph.from_edge_index(self.edge_index, self.n_nodes)

    @cached_property
    def mask(self) -> Tensor:
        """The same as a dense mask."""
        mask = torch.zeros(self.n_nodes, self.n_nodes, 1, dtype=torch.bool)
        mask[self.edge_index[0], self.edge_index[1]] = True
        return mask

    @cached_property
    def features(self) -> Tensor:
        """Features of the nodes."""
        return torch.randn(self.n_nodes, self.in_features)

    @cached_property
    def edge_features(self) -> Tensor | None:
        """Edge features, if they have any."""
        n_edges = self.edge_index.shape[1]
        return None if self.edge_dim is None else torch.randn(n_edges, self.edge_dim)

    @cached_property
    def cotangent(self) -> Tensor:
        """A cotangent of the result."""
        return torch.randn(self.n_nodes, self.n_heads * self.n_hidden)

    def contender(self, name: str) -> tuple[torch.nn.Module, Layer]:
        """A module, the same for one name as for another, and how to call it on the features."""
        torch.manual_seed(1)
        out_features = self.n_heads * self.n_hidden
        sizes = (self.in_features, out_features, self.n_heads)
        ours = GraphAttentionV2Layer(*sizes, dropout=self.dropout, edge_dim=self.edge_dim)
        if name == "pyg":
            return self._pyg(ours)
        if name == "dgl":
            return self._dgl(ours)
        if name in MASKED:
            masked = GraphAttentionV2Layer(*sizes, dropout=self.dropout, **MASKED[name])
            masked.load_state_dict(ours.state_dict())
            return masked, lambda h: masked(h, self.mask)
        return ours, lambda h: ours(h, self.graph, edge_features=self.edge_features)

    def _pyg(self, ours: GraphAttentionV2Layer) -> tuple[torch.nn.Module, Layer]:
        from torch_geometric.nn import GATv2Conv

        pyg: Any = GATv2Conv(
            self.in_features,
            self.n_hidden,
            heads=self.n_heads,
            dropout=self.dropout,
            bias=False,
            add_self_loops=False,
            edge_dim=self.edge_dim,
        )
        with torch.no_grad():  # PyG projects sources, which are our keys, with lin_l
            pyg.lin_l.weight.copy_(ours.linear_r.weight)
            pyg.lin_r.weight.copy_(ours.linear_l.weight)
            pyg.att.copy_(ours.attn.unsqueeze(0))
            if ours.linear_e is not None:
                pyg.lin_edge.weight.copy_(ours.linear_e.weight)
            for linear in (pyg.lin_l, pyg.lin_r):
                if linear.bias is not None:
                    linear.bias.zero_()
        source_to_target = self.edge_index.flip(0).contiguous()
        return pyg, lambda h: pyg(h, source_to_target, self.edge_features)

    def _dgl(self, ours: GraphAttentionV2Layer) -> tuple[torch.nn.Module, Layer]:
        dgl = _import_dgl()
        sizes = self.in_features, self.n_hidden, self.n_heads
        conv = dgl.nn.pytorch.GATv2Conv(
            *sizes, attn_drop=self.dropout, bias=False, allow_zero_in_degree=True
        )
        conv.load_state_dict(to_dgl(ours), strict=False)
        for linear in (conv.fc_src, conv.fc_dst):  # DGL's layer has them with bias=False, too
            if linear.bias is not None:
                torch.nn.init.zeros_(linear.bias)
        query, key = self.edge_index
        graph = dgl.graph((key, query), num_nodes=self.n_nodes)
        graph.create_formats_()
        return conv, lambda h: conv(graph, h).flatten(1)


def _import_dgl() -> Any:
    """DGL, whose part for sampling is built for other versions of PyTorch, and is not needed here."""
    sys.modules.setdefault("dgl.graphbolt", ModuleType("dgl.graphbolt"))
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl.nn.pytorch

    return dgl


def _large(name: str, **options: Any) -> Case:
    """A random graph of the size of ogbn-arxiv."""
    name = f"169k nodes, 2.3M edges, {name}"
    return Case(name, n_nodes=169_343, n_edges=2_300_000, in_features=128, **options)


def _as_dense(name: str, **options: Any) -> Case:
    options = {"rivals": _EVERYBODY} | options
    return Case(name, n_nodes=2_708, n_edges=None, in_features=64, **options)


MASKED: dict[str, dict[str, Any]] = {
    "formula": {"backend": "dense", "kernel": "torch"},
    "dense": {"backend": "dense"},
    "converted": {"backend": "sparse"},
}
"""Our layers that read a mask: as the formula does, fused, and converted to edges in each call."""
_FUSED = ("dense", "converted")
_EVERYBODY = ("pyg", "dense", "formula")
CASES = (
    _large("8 x 8"),
    _large("4 x 32", n_heads=4, n_hidden=32),
    _large("1 x 64", n_heads=1, n_hidden=64),
    Case("20k nodes, 2M edges", 20_000, 2_000_000, 64),
    Case("power law", 100_000, 2_900_000, 128, exponent=0.7),
    _large("dropout 0.6", dropout=0.6),
    _large("16 edge features", edge_dim=16),
    Case("20 nodes, 100 edges", 20, 100, 64, rivals=_EVERYBODY),
    _as_dense("all pairs"),
    _as_dense("half of the pairs", density=0.5, rivals=_FUSED),
    _as_dense("every tenth pair", density=0.1, rivals=_FUSED),
    _as_dense("every hundredth pair", density=0.01, rivals=_FUSED),
    _as_dense("Cora's density", density=0.0018),
)
QUICK = (
    Case("400 nodes, 4k edges", 400, 4_000, 64, rivals=_EVERYBODY),
    Case("20 nodes, 100 edges", 20, 100, 64, rivals=_EVERYBODY),
    Case(
        "power law, 4 x 32",
        2_000,
        30_000,
        64,
        n_heads=4,
        n_hidden=32,
        exponent=0.7,
    ),
)


def against_dgl(cases: Iterable[Case]) -> list[Case]:
    """The cases that DGL's layer can run, alone with ours: beside it PyTorch Geometric's is slower."""
    return [
        replace(case, rivals=("dgl",))
        for case in cases
        if case.rivals == ("pyg",) and case.edge_dim is None
    ]
