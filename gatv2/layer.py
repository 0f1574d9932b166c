"""GraphAttentionV2Layer: a layer of the formula, over any form of a graph or a process's part of one."""

from torch import Tensor, nn

from gatv2.base import GraphAttention, NodeFeatures, Projected
from gatv2.functional import attend, attend_projected, gatv2_scores, join_in_place
from gatv2.graph import Graph
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.graph.part import AttendOptions, is_part
from gatv2.options import by_role, check_flow_of_graph
from gatv2.projection import PLAIN, as_projections, edge_projection
from gatv2.random import as_seed
from gatv2.torch_internals import is_seen

__all__ = ["GraphAttention", "GraphAttentionV2Layer"]


_GENERAL_WAY = {
    *("_forward", "as_pair", "_check_features", "check_edge_features", "_project", "_heads"),
    *("attend", "join", "further_terms", "is_block", "attn", "linear_l", "linear_r"),
}
"""What `attend_at_once` leaves out, or reads past `__getattr__`. A layer with one of these in `__dict__`
has been patched, and goes the general way."""
_LISTS_OF_EDGES = Graph, Tensor


class GraphAttentionV2Layer(GraphAttention):
    r"""Graph Attention v2, with dynamic attention.

    .. math::

        \begin{aligned}
        e_{ij} &= a \cdot \mathrm{LeakyReLU}(W_l h_i + W_r h_j) \\
        \alpha_{ij} &= \mathrm{softmax}_{j \in N_i}(e_{ij}) \\
        h'_i &= \sum_{j \in N_i} \alpha_{ij} W_r h_j
        \end{aligned}

    for each head; :math:`N_i` are the j with `adj_mat[i][j]`. Heads are concatenated or averaged. A
    node without neighbours gives zeros.

    Args:
        in_features: features of a node; -1 for lazy initialisation. For a bipartite graph the pair
            of its two sides, in the order of the rows of an edge index: (queries, keys), and with
            `flow="source_to_target"`, as in PyTorch Geometric, (keys, queries).
        out_features: features of the result; with `is_concat` each head has
            `out_features / n_heads` of them, else each head has all.
        n_heads: number of heads.
        is_concat: whether heads are concatenated (True) or averaged (False).
        dropout: probability, in [0, 1), that a coefficient is dropped in training.
        leaky_relu_negative_slope: slope of LeakyReLU below zero.
        share_weights: whether :math:`W_l = W_r`.
        edge_dim: number D of features of an edge, or None for edges without features. With them
            :math:`e_{ij} = a \cdot \mathrm{LeakyReLU}(W_l h_i + W_r h_j + W_e x_{ij})`.
        bias: whether the projections and the output have a bias, as in PyTorch Geometric;
            "projections" for these alone, as in DGL. The formula has none.
        residual: whether a learned projection of the queries' features, without a bias, is added to the
            result, as in PyTorch Geometric.
        add_self_loops: whether each node attends to itself too; self-loops that there are count once.
            See :meth:`gatv2.Graph.add_self_loops`.
        fill_value: features of added self-loops: a number, `[edge_dim]`, or a reduction of the features
            of a node's other edges, "mean", "sum" ("add"), "min", "max" or "mul".
        loop_bias: `score_bias` of added self-loops in calls that have one, likewise: a number,
            `[n_heads]`, or a reduction of that of a node's other edges, without those that it removes.
        backend: "dense" (masked attention), "sparse" (edges), or "auto": by the form of `adj_mat`.
        kernel: "numba" (fused, on the CPU), "triton" (fused, on GPUs), "torch" (plain operations,
            anywhere), or "auto": the fused one that serves a call, else "torch".
        flow: what row 0 of an edge index holds. "target_to_source": the nodes that attend;
            "source_to_target", PyTorch Geometric's default: the nodes attended to. A `Graph` must
            have been made with "source_to_target" then.
        device: where the parameters are made.
        dtype: dtype of the parameters.

    Attributes:
        linear_l: :math:`W_l`, projects queries.
        linear_r: :math:`W_r`, projects keys and values; `linear_l` itself with `share_weights`.
        linear_e: :math:`W_e`, projects edge features; None without `edge_dim`.
        attn: :math:`a`, `[n_heads, n_hidden]`.
        bias: `[out_features]`, added to the result, or None.
        linear_residual: projects queries to the result, or None.

    Raises:
        TypeError: an argument is of the wrong type, such as a size that is not an int.
        ValueError: a size is not positive, `out_features` does not divide by `n_heads`, `dropout` is
            outside [0, 1), the slope is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> layer = GraphAttentionV2Layer(16, 8, n_heads=2)
        >>> h = torch.randn(4, 16)
        >>> adj_mat = torch.eye(4, dtype=torch.bool).unsqueeze(-1)
        >>> layer(h, adj_mat).shape
        torch.Size([4, 8])
        >>> layer.eval()(h, torch.tensor([[0, 0, 3], [1, 2, 3]])).shape  # 0 attends to 1 and 2
        torch.Size([4, 8])

    Source: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022, equation 7.
    """

    attention_vectors = ("attn",)
    attn: nn.Parameter

    def score(self, inputs: Projected) -> Tensor:
        """The scores that `attention_scores` returns."""
        features, projection = self._edge_inputs(inputs) or (None, None)
        return gatv2_scores(
            inputs.query,
            inputs.key,
            self.attn.to(inputs.query.dtype),
            inputs.adj_mat,
            edge_features=features,
            edge_projection=projection,
            score_bias=inputs.score_bias,
            negative_slope=self.leaky_relu_negative_slope,
            flow=inputs.flow,
            backend=self.backend,
        )

    def attend_at_once(
        self,
        h: NodeFeatures,
        adj_mat: object,
        edge_features: Tensor | None,
        seed: int | Tensor | None,
    ) -> Tensor | None:
        """The result, by one function of autograd's for all three projections and attention."""
        # past `nn.Module.__getattr__`, which takes longer than all else here
        own, modules, attn = self.__dict__, self._modules, self._parameters.get("attn")
        linear_e = own["linear_e"] if "linear_e" in own else modules.get("linear_e")
        h_query = h_key = h
        if type(h) is tuple and len(h) == 2:
            h_query, h_key = by_role(h, self.flow)
        if (
            is_seen()
            or type(self) is not GraphAttentionV2Layer  # a class of the user's may do other things
            or not own.keys().isdisjoint(_GENERAL_WAY)
            or type(adj_mat) not in _LISTS_OF_EDGES
            or self.backend == "dense"
            or self.kernel not in ("auto", "numba")
            or (edge_features is None) != (linear_e is None)
            or attn is None
            or type(attn) not in PLAIN
            or attn.shape != (self.n_heads, self.n_hidden)
        ):
            return None
        linear_l = linear_r = modules.get("linear_l")
        if h_key is not h_query or not self.share_weights:
            linear_r = modules.get("linear_r")
        linears = linear_l, linear_r, linear_e
        projections = as_projections(h_query, h_key, edge_features, linears, attn)
        if projections is None:
            return None
        if seed is not None:
            as_seed(seed, attn.device)
        options = self._options(None, None, seed, return_attention=False)
        fill_value = self.fill_value if self.add_self_loops else None
        out = attend_projected(projections, attn, adj_mat, self.flow, options, fill_value)
        if out is None:
            return None
        terms = self.further_terms(projections.h_query, out.dtype)
        return join_in_place(out, attn.shape, terms, is_concat=self.is_concat)

    def _options(
        self,
        edges: EdgeInputs | None,
        score_bias: Tensor | None,
        seed: int | Tensor | None,
        return_attention: bool,
    ) -> AttendOptions:
        return {
            "edges": edges,
            "score_bias": score_bias,
            "negative_slope": self.leaky_relu_negative_slope,
            "dropout": self._active_dropout(),
            "seed": seed,
            "backend": self.backend,
            "kernel": self.kernel,
            "return_attention": return_attention,
        }

    def attend(
        self, inputs: Projected, *, return_attention: bool, seed: int | Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Heads `[*batch, n_queries, n_heads, n_hidden]`, and coefficients if they are asked for."""
        query, key, graph, _, score_bias, flow = inputs
        attn: Tensor = self.attn
        if attn.dtype is not query.dtype:  # under autocast
            attn = attn.to(query.dtype)
        edges = None if self.linear_e is None else self._edge_inputs(inputs)
        options = self._options(edges, score_bias, seed, return_attention)
        if is_part(graph):
            check_flow_of_graph(graph.flow, flow)
            return graph.attend(query, key, attn, **options)
        out, alpha, _ = attend(query, key, attn, graph, flow=flow, **options)
        return out, alpha

    def _edge_inputs(self, inputs: Projected) -> EdgeInputs | None:
        """Edge features and their projection, which the kernel applies."""
        if self.linear_e is None or inputs.edge_features is None:
            return None
        dtype = inputs.query.dtype
        features, projection = edge_projection(self.linear_e, inputs.edge_features, self.n_heads)
        return EdgeInputs(features.to(dtype), projection.to(dtype))
