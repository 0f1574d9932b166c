"""GraphAttentionLayer: the original, static GAT, the control of every claim about GATv2."""

import torch
from torch import Tensor, nn

from gatv2.base import GraphAttention, Projected
from gatv2.functional import gat_attention, gat_scores
from gatv2.graph.self_loops import FillValue
from gatv2.options import Backend, Bias, Flow, tells_our_names


class GraphAttentionLayer(GraphAttention):
    r"""The original Graph Attention layer, whose ranking of keys is the same for every query.

    .. math::

        \begin{aligned}
        e_{ij} &= \mathrm{LeakyReLU}(a_1 \cdot W h_i + a_2 \cdot W h_j) \\
        \alpha_{ij} &= \mathrm{softmax}_{j \in N_i}(e_{ij}) \\
        h'_i &= \sum_{j \in N_i} \alpha_{ij} W h_j
        \end{aligned}

    LeakyReLU is monotone and :math:`a_1 \cdot W h_i` is the same for all keys of a query, so the
    order of the scores is that of :math:`a_2 \cdot W h_j`: attention is static.

    Arguments, methods and errors are those of :class:`gatv2.GraphAttentionV2Layer`, but for
    `share_weights`, which is True by default, as GAT has one matrix W; with False queries and keys
    have one each, and attention is as static. `kernel` is "torch" or "auto", and edges have no features.

    Attributes:
        linear_l: projects queries.
        linear_r: projects keys and values; `linear_l` itself with `share_weights`.
        attn_query: :math:`a_1`, `[n_heads, n_hidden]`.
        attn_key: :math:`a_2`, `[n_heads, n_hidden]`.

    Example:
        >>> layer = GraphAttentionLayer(16, 8, n_heads=2)
        >>> layer(torch.randn(4, 16), torch.tensor([[0, 0, 3], [1, 2, 3]])).shape
        torch.Size([4, 8])

    Source: Velickovic et al., "Graph Attention Networks", ICLR 2018; shown to be static in Brody,
    Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022, theorem 1.
    """

    attention_vectors = ("attn_query", "attn_key")
    attn_query: nn.Parameter
    attn_key: nn.Parameter

    @tells_our_names
    def __init__(
        self,
        in_features: int | tuple[int, int],
        out_features: int,
        n_heads: int,
        is_concat: bool = True,
        dropout: float = 0.6,
        leaky_relu_negative_slope: float = 0.2,
        share_weights: bool = True,
        *,
        bias: Bias = False,
        residual: bool = False,
        add_self_loops: bool = False,
        loop_bias: FillValue = 0.0,
        backend: Backend = "auto",
        kernel: str = "auto",
        flow: Flow = "target_to_source",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            n_heads,
            is_concat,
            dropout,
            leaky_relu_negative_slope,
            share_weights,
            bias=bias,
            residual=residual,
            add_self_loops=add_self_loops,
            loop_bias=loop_bias,
            backend=backend,
            kernel=kernel,
            flow=flow,
            device=device,
            dtype=dtype,
        )
        if kernel not in ("auto", "torch"):
            raise ValueError(
                f"the static control has only kernel='torch' (or 'auto'); got {kernel!r}"
            )

    def check_edge_features(self, edge_features: Tensor | None) -> None:
        """Raise if there are edge features."""
        if edge_features is not None:
            raise ValueError(
                "the static control has no `edge_features`: pass them to a GraphAttentionV2Layer with "
                "`edge_dim`"
            )

    def score(self, inputs: Projected) -> Tensor:
        """The scores that `attention_scores` returns."""
        dtype = inputs.query.dtype
        return gat_scores(
            inputs.query,
            inputs.key,
            self.attn_query.to(dtype),
            self.attn_key.to(dtype),
            inputs.adj_mat,
            score_bias=inputs.score_bias,
            negative_slope=self.leaky_relu_negative_slope,
            flow=inputs.flow,
            backend=self.backend,
        )

    def attend(
        self, inputs: Projected, *, return_attention: bool, seed: int | Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Heads `[*batch, n_queries, n_heads, n_hidden]`, and coefficients if they are asked for."""
        dtype = inputs.query.dtype
        result = gat_attention(
            inputs.query,
            inputs.key,
            self.attn_query.to(dtype),
            self.attn_key.to(dtype),
            inputs.adj_mat,
            score_bias=inputs.score_bias,
            negative_slope=self.leaky_relu_negative_slope,
            dropout=self._active_dropout(),
            seed=seed,
            flow=inputs.flow,
            backend=self.backend,
            return_attention=return_attention,
        )
        return result if isinstance(result, tuple) else (result, None)
