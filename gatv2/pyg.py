"""PyTorch Geometric's `GATv2Conv` with our kernels: the change of one import.

from gatv2.pyg import GATv2Conv  # was: from torch_geometric.nn import GATv2Conv
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch_geometric.utils
from torch import Tensor
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.nn.conv import MessagePassing, gatv2_conv
from torch_geometric.nn.dense import Linear
from torch_geometric.typing import SparseTensor, torch_sparse

from gatv2.convert.pyg import check_flow, is_sum, our_fill_value, overridden
from gatv2.functional import attend, attend_projected, join_in_place
from gatv2.graph import Graph
from gatv2.graph.adjacency import Sizes, as_adjacency, prepare_edge_index
from gatv2.graph.edge_index import check_edge_index
from gatv2.graph.edge_inputs import EdgeInputs, check_tensor
from gatv2.graph.kept import prepared_once
from gatv2.graph.part import AttendOptions
from gatv2.graph.self_loops import add_self_loops
from gatv2.projection import PLAIN, LinearKind, as_projections, edge_projection, is_plain
from gatv2.sparse_features import as_features, project, project_sides
from gatv2.torch_internals import is_jit_traced, is_seen

_PYG_LINEAR = LinearKind(Linear, Linear.forward)

Result = Tensor | tuple[Tensor, tuple[Tensor, Tensor]]
"""Features, or the pair of them and `(edge_index, coefficients)`."""


class GATv2Conv(gatv2_conv.GATv2Conv):  # type: ignore[misc]
    """`torch_geometric.nn.GATv2Conv`, computed by :func:`gatv2.functional.gatv2_attention`.

    Arguments, parameters, state dict and results are those of the base class, so that it stands wherever
    that one does: in `HeteroConv`, `to_hetero`, models and checkpoints. An `edge_index` that is used
    again is prepared once. What works on the messages themselves, explainers, message hooks, another
    `aggr` and subclasses with a `message` or `propagate` of their own, gets them from the base class,
    and so does `torch.jit.trace`, which can't follow our kernels.

    Two things differ. The attention that is returned is that before dropout; in training other edges are
    dropped for a seed.

    Raises:
        ValueError: as :func:`gatv2.convert.from_pyg` has it for flow="target_to_source".

    Example:
        >>> conv = GATv2Conv(16, 8, heads=4)
        >>> conv(torch.randn(20, 16), torch.randint(20, (2, 60))).shape
        torch.Size([20, 32])
    """

    # The base class reads how it calls its own methods from the source of this class:
    # edge_updater_type: (x: PairTensor, edge_attr: OptTensor)
    # propagate_type: (x: PairTensor, alpha: Tensor)
    # It compiles these two for each class, and explains by what they were before: for a class without
    # its own that is what it has compiled for another one, which explains nothing.
    propagate = MessagePassing.propagate
    edge_updater = MessagePassing.edge_updater

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        check_flow(self)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Tensor | SparseTensor | Graph,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Result:
        """As `torch_geometric.nn.GATv2Conv.forward`."""
        is_list = isinstance(edge_index, Graph) or (
            isinstance(edge_index, Tensor) and edge_index.layout == torch.strided
        )
        if (
            is_jit_traced()
            or self._needs_messages()
            or not (is_list or self._reads_matrix(edge_index, edge_attr, return_attention_weights))
        ):
            if isinstance(edge_index, Graph):
                edge_index = self._as_list(edge_index, x, edge_attr)
            theirs: Result = super().forward(x, edge_index, edge_attr, return_attention_weights)
            return theirs
        if is_list and not return_attention_weights:
            at_once = self._attend_at_once(x, edge_index, edge_attr)
            if at_once is not None:
                return at_once
        x_key, x_query = _features_of_sides(x)
        heads = (self.heads, self.out_channels)
        sides = project_sides(
            (self.lin_l, self.lin_r), (x_key, x_query), Linear, is_shared=self.share_weights
        )
        key, query = (side.unflatten(-1, heads) for side in sides)
        if is_list:
            graph, edge_attr = self._read_list(edge_index, edge_attr, query, key)
        else:
            graph, edge_attr = self._read_matrix(edge_index, edge_attr, query, key)
        out, alpha, _ = attend(
            query,
            key,
            self.att[0].to(query.dtype),
            graph,
            flow="target_to_source",
            **self._options(
                self._edge_inputs(edge_attr, query.dtype), bool(return_attention_weights)
            ),
        )
        out = out.flatten(-2) if self.concat else out.mean(-2)
        for term in self._further_terms(x_query):
            out = out + term
        if alpha is None:
            return out
        return out, (self._edges_of(graph, edge_index), alpha)

    def _edges_of(self, graph: Graph, edge_index: Tensor | Graph) -> Tensor:
        """The edges that coefficients are of: the list that was given, if no self-loops joined it."""
        if isinstance(edge_index, Tensor) and not self.add_self_loops:
            return edge_index
        return self._rows_of(graph)

    def _rows_of(self, graph: Graph) -> Tensor:
        """The edge index that a graph is for this flow."""
        rows = graph.edge_index
        return rows.flip(0) if self.flow == "source_to_target" else rows

    def _as_list(self, graph: Graph, x: object, edge_attr: Tensor | None) -> Tensor:
        """The edge index of a graph, for the base class; checked as our kernels' is."""
        x_key, x_query = _features_of_sides(x)
        self._read_list(graph, edge_attr, x_query, x_key)
        if graph.head_mask is not None:
            raise ValueError(
                "a graph with a `head_mask` has no messages that all heads share, and PyTorch "
                "Geometric's code, which serves aggr, explainers, hooks and subclasses, has no others: "
                "pass a graph without it"
            )
        return self._rows_of(graph)

    def _attend_at_once(
        self, x: object, edge_index: Tensor | Graph, edge_attr: Tensor | None
    ) -> Tensor | None:
        """The result, made faster by one function of autograd's for all of it; None elsewhere."""
        modules, att = self._modules, self._parameters.get("att")
        if is_seen() or type(att) not in PLAIN:
            return None
        x_key: object = x
        x_query: object = x
        if isinstance(x, (tuple, list)) and len(x) == 2:
            x_key, x_query = x
        if edge_attr is not None:
            if isinstance(edge_index, Graph):
                n_edges = edge_index.n_edges
            else:
                check_edge_index(edge_index)
                n_edges = edge_index.shape[1]
            edge_attr = self._checked_attr(edge_attr, n_edges)
        linears = modules.get("lin_r"), modules.get("lin_l"), modules.get("lin_edge")
        attn = att.view(self.heads, self.out_channels)
        projections = as_projections(x_query, x_key, edge_attr, linears, attn, _PYG_LINEAR)
        if projections is None:
            return None
        options = self._options(None, False)
        fill_value = our_fill_value(self) if self.add_self_loops else None
        out = attend_projected(projections, attn, edge_index, self.flow, options, fill_value)
        if out is None:
            return None
        terms = self._further_terms(projections.h_query)
        return join_in_place(out, attn.shape, terms, is_concat=self.concat)

    def _options(self, edges: EdgeInputs | None, returns_attention: bool) -> AttendOptions:
        return {
            "edges": edges,
            "score_bias": None,
            "negative_slope": self.negative_slope,
            "dropout": self.dropout if self.training else 0.0,
            "seed": None,
            "backend": "auto",
            "kernel": "auto",
            "return_attention": returns_attention,
        }

    def _further_terms(self, x_query: Tensor) -> Iterator[Tensor]:
        """What is added to joined heads, one term after the other, as each may be large."""
        if self.res is not None:
            yield project(self.res, x_query, Linear)
        if self.bias is not None:
            yield self.bias

    def _read_list(
        self, edge_index: Tensor | Graph, edge_attr: Tensor | None, query: Tensor, key: Tensor
    ) -> tuple[Graph, Tensor | None]:
        """The graph of an `edge_index`, or of a `Graph`, with self-loops, and features that fit."""
        n_queries, n_keys = query.shape[0], key.shape[0]
        sizes = Sizes(n_queries, n_keys, self.heads, torch.Size(()), query.device)
        graph: Any
        if isinstance(edge_index, Graph):
            graph = as_adjacency(edge_index, sizes, flow=self.flow, backend="sparse")
        else:
            check_edge_index(edge_index)
            graph = prepare_edge_index(edge_index, (n_queries, n_keys), self.flow)
        edge_attr = self._checked_attr(edge_attr, graph.n_edges)
        if self.add_self_loops:
            is_block = n_queries != n_keys and not isinstance(edge_index, Graph)
            graph, edge_attr = add_self_loops(
                graph, edge_attr, our_fill_value(self), is_block=is_block
            )
        return graph, edge_attr

    def _read_matrix(
        self, adj_t: Tensor | SparseTensor, edge_attr: Tensor | None, query: Tensor, key: Tensor
    ) -> tuple[Graph, Tensor | None]:
        """The graph of a sparse matrix, whose rows are queries: every entry that it holds is an edge."""
        given, sides, shape = adj_t, (query.shape[0], key.shape[0]), (adj_t.size(0), adj_t.size(1))
        if shape != sides:
            raise ValueError(f"`adj_t` must have shape (targets, sources)={sides}; got {shape}")
        if isinstance(adj_t, SparseTensor):
            adj_t = torch_sparse.set_diag(adj_t) if self.add_self_loops else adj_t
            row, column, values = adj_t.coo()
            rows = torch.stack((row, column))
        else:
            if self.add_self_loops:
                adj_t, _ = torch_geometric.utils.remove_self_loops(adj_t)
                adj_t, _ = torch_geometric.utils.add_self_loops(adj_t, None, self.fill_value)
            rows, values = torch_geometric.utils.to_edge_index(adj_t)
            values = None if values.ndim == 1 else values
        edge_attr = self._checked_attr(values if edge_attr is None else edge_attr, rows.shape[1])
        graph = prepared_once(
            given,
            (rows,),
            (*sides, "PyG's", self.add_self_loops),
            lambda: Graph.from_edge_index(rows, sides),
        )
        return graph, edge_attr

    def _checked_attr(self, edge_attr: Tensor | None, n_edges: int) -> Tensor | None:
        """Edge features, `[n_edges, edge_dim]`."""
        if edge_attr is None:
            return None
        if self.lin_edge is None:
            raise ValueError("`edge_attr` came to a layer without `edge_dim`")
        check_tensor(edge_attr, "edge_attr", self.att, "att")
        if edge_attr.is_complex():
            raise TypeError(f"`edge_attr` must hold real numbers; got {edge_attr.dtype}")
        rows = edge_attr.unsqueeze(1) if edge_attr.ndim == 1 else edge_attr
        width = getattr(self.lin_edge, "in_channels", -1)  # not known of a wrapped or a lazy one
        if rows.ndim != 2 or rows.shape != (n_edges, rows.shape[1] if width < 0 else width):
            raise ValueError(
                f"`edge_attr` must have shape (n_edges={n_edges}, edge_dim"
                f"{'' if width < 0 else f'={width}'}); got {tuple(edge_attr.shape)}"
            )
        return rows

    def _edge_inputs(self, edge_attr: Tensor | None, dtype: torch.dtype) -> EdgeInputs | None:
        """Edge features and their projection, which the kernel applies."""
        if edge_attr is None:
            return None
        features, projection = edge_projection(self.lin_edge, edge_attr, self.heads, Linear)
        return EdgeInputs(features.to(dtype), projection.to(dtype))

    def _reads_matrix(
        self, adj_t: object, edge_attr: Tensor | None, returns_attention: bool | None
    ) -> bool:
        """Whether a sparse matrix is one that we read; the base class has the rest, and its errors."""
        if returns_attention or self.flow == "target_to_source":
            return False
        if isinstance(adj_t, SparseTensor):
            return not (self.add_self_loops and self.edge_dim is not None)
        if not isinstance(adj_t, Tensor) or (self.add_self_loops and edge_attr is not None):
            return False
        is_coo = adj_t.layout == torch.sparse_coo and adj_t.is_coalesced()
        return is_coo or adj_t.layout == torch.sparse_csr

    def _needs_messages(self) -> bool:
        """Whether anything works on messages, which our kernels do not make."""
        hooks = (
            getattr(self, f"_{name}_forward{kind}_hooks")
            for name in ("propagate", "message", "aggregate", "edge_update")
            for kind in ("", "_pre")
        )
        if self.explain or any(hooks) or overridden(self):
            return True
        aggr = self.aggr_module
        return not (is_sum(aggr) and is_plain(aggr, SumAggregation))


def _features_of_sides(x: object) -> tuple[Tensor, Tensor]:
    """Features of sources and of targets, checked; sparse ones in CSR."""
    if not isinstance(x, (tuple, list)):
        x = as_features(x, "x")
        sides = x, x
    else:
        sides = as_features(x[0], "x[0]"), as_features(x[1], "x[1]")
    for features, name in zip(sides, ("sources", "targets"), strict=True):
        if features.ndim != 2:
            raise ValueError(
                f"features of {name} must have shape (n_nodes, n_features); got {tuple(features.shape)}"
            )
    return sides
