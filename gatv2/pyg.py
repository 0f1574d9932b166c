"""PyTorch Geometric's `GATv2Conv` with our kernels: the change of one import.

from gatv2.pyg import GATv2Conv  # was: from torch_geometric.nn import GATv2Conv
"""

from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor

from gatv2.convert.pyg import check_flow
from gatv2.functional import gatv2_attention
from gatv2.graph import Graph
from gatv2.graph.adjacency import Sizes, as_adjacency, prepared_once
from gatv2.graph.self_loops import add_self_loops
from gatv2.options import Flow


class GATv2Conv(torch_geometric.nn.GATv2Conv):  # type: ignore[misc]
    """`torch_geometric.nn.GATv2Conv`, computed by :func:`gatv2.functional.gatv2_attention`.

    Arguments, parameters, state dict and results are those of the base class, so that it stands wherever
    that one does: in `HeteroConv`, `to_hetero`, models and checkpoints. An `edge_index` that is used
    again is prepared once. What works on the messages themselves, explainers and message hooks, gets
    them from the base class.

    Three things differ. Added self-loops on a bipartite graph of unequal sides are an error; the
    attention that is returned is that before dropout; in training other edges are dropped for a seed.

    Raises:
        ValueError: as :func:`gatv2.convert.from_pyg` has it for flow="target_to_source".

    Example:
        >>> conv = GATv2Conv(16, 8, heads=4)
        >>> conv(torch.randn(20, 16), torch.randint(20, (2, 60))).shape
        torch.Size([20, 32])
    """

    # The base class reads how it calls its own methods from the source of the class at hand:
    # edge_updater_type: (x: PairTensor, edge_attr: OptTensor)
    # propagate_type: (x: PairTensor, alpha: Tensor)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_flow(self)

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """As `torch_geometric.nn.GATv2Conv.forward`."""
        is_list = isinstance(edge_index, Tensor) and edge_index.layout == torch.strided
        if self._shows_messages() or (return_attention_weights and not is_list):
            return super().forward(x, edge_index, edge_attr, return_attention_weights)
        x_key, x_query = (x, x) if isinstance(x, Tensor) else x
        heads = (self.heads, self.out_channels)
        key = self.lin_l(x_key).unflatten(-1, heads)
        is_same = self.share_weights and x_query is x_key
        query = key if is_same else self.lin_r(x_query).unflatten(-1, heads)
        sizes = Sizes(len(query), len(key), self.heads, torch.Size(()), query.device)
        if is_list:
            graph: Any = prepared_once(edge_index, sizes, self.flow)
        else:  # a sparse matrix is `adj_t`, whose rows are queries
            flow: Flow = self.flow if isinstance(edge_index, Graph) else "target_to_source"
            graph = as_adjacency(edge_index, sizes, flow=flow, backend="sparse")
        if edge_attr is not None and edge_attr.ndim == 1:
            edge_attr = edge_attr.unsqueeze(1)
        if self.add_self_loops:
            graph, edge_attr = add_self_loops(graph, edge_attr, self.fill_value)
        result: Any = gatv2_attention(
            query,
            key,
            self.att[0].to(query.dtype),
            graph,
            edge_features=None if edge_attr is None else edge_attr.to(query.dtype),
            edge_projection=self._edge_projection(edge_attr, query.dtype),
            negative_slope=self.negative_slope,
            dropout=self.dropout if self.training else 0.0,
            return_attention=bool(return_attention_weights),
        )
        out, alpha = result if return_attention_weights else (result, None)
        out = out.flatten(-2) if self.concat else out.mean(-2)
        if self.res is not None:
            out = out + self.res(x_query)
        if self.bias is not None:
            out = out + self.bias
        if not return_attention_weights:
            return out
        rows = graph.edge_index
        return out, (rows.flip(0) if self.flow == "source_to_target" else rows, alpha)

    def _edge_projection(self, edge_attr: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if edge_attr is None:
            return None
        if self.lin_edge is None:
            raise ValueError("`edge_attr` came to a layer without `edge_dim`")
        weight: Tensor = self.lin_edge.weight.unflatten(0, (self.heads, self.out_channels))
        return weight.to(dtype)

    def _shows_messages(self) -> bool:
        """Whether an explainer or a hook waits for messages, which our kernels do not make."""
        hooks = (
            getattr(self, f"_{name}_forward{kind}_hooks")
            for name in ("propagate", "message", "aggregate", "edge_update")
            for kind in ("", "_pre")
        )
        return bool(self.explain) or any(hooks)
