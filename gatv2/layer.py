"""GraphAttentionV2Layer: parameters and projections, then one call."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gatv2.adjacency import BACKENDS, Backend
from gatv2.dispatch import KERNELS
from gatv2.functional import check_dropout, check_slope, gatv2_attention, gatv2_scores
from gatv2.graph import Flow, check_flow


class GraphAttention(nn.Module, ABC):
    """What attention layers share: projections to heads, options, and how heads are joined."""

    attention_vectors: ClassVar[tuple[str, ...]]
    """Names of the parameters that score a pair, each `[n_heads, n_hidden]`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_heads: int,
        is_concat: bool = True,
        dropout: float = 0.6,
        leaky_relu_negative_slope: float = 0.2,
        share_weights: bool = False,
        *,
        edge_dim: int | None = None,
        bias: bool = False,
        backend: Backend = "auto",
        kernel: str = "auto",
        flow: Flow = "target_to_source",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "n_heads": n_heads}
        if edge_dim is not None:
            sizes["edge_dim"] = edge_dim
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"`{name}` must be an int; got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"`{name}` must be positive; got {size}")
        if is_concat and out_features % n_heads:
            raise ValueError(
                f"with is_concat=True, `out_features`={out_features} must be divisible by "
                f"`n_heads`={n_heads}"
            )
        check_dropout(dropout)
        check_slope(leaky_relu_negative_slope, "leaky_relu_negative_slope")
        check_flow(flow)
        if backend not in BACKENDS:
            raise ValueError(f"`backend` must be one of {BACKENDS}; got {backend!r}")
        kernels = ("auto", *dict.fromkeys(kernel.name for kernel in KERNELS))
        if kernel not in kernels:
            raise ValueError(f"`kernel` must be one of {kernels}; got {kernel!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.n_heads = n_heads
        self.n_hidden = out_features // n_heads if is_concat else out_features
        self.is_concat = is_concat
        self.dropout = dropout
        self.leaky_relu_negative_slope = leaky_relu_negative_slope
        self.share_weights = share_weights
        self.edge_dim = edge_dim
        self.backend = backend
        self.kernel = kernel
        self.flow = flow

        width = n_heads * self.n_hidden
        self.linear_l = nn.Linear(in_features, width, bias=bias, device=device, dtype=dtype)
        self.linear_r = (
            self.linear_l
            if share_weights
            else nn.Linear(in_features, width, bias=bias, device=device, dtype=dtype)
        )
        self.linear_e = (
            None
            if edge_dim is None
            else nn.Linear(edge_dim, width, bias=False, device=device, dtype=dtype)
        )
        for name in self.attention_vectors:
            vector = torch.empty(n_heads, self.n_hidden, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(vector))
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: Glorot uniform, as the paper's code; biases are zero."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(
        self,
        h: Tensor,
        adj_mat: object,
        *,
        edge_features: Tensor | None = None,
        return_attention: bool = False,
        seed: int | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend over the graph.

        Args:
            h: `[*batch, n_nodes, in_features]`.
            adj_mat: mask `[*batch, n_nodes, n_nodes, 1 or n_heads]`, edge index `[2, n_edges]` or any
                other form of a graph; `adj_mat[i][j]` lets i attend to j. See
                :func:`gatv2.functional.gatv2_attention`.
            edge_features: features of the edges, laid out as `adj_mat`, for a layer with `edge_dim`:
                `[*batch, n_edges, edge_dim]` in the order of a list of edges, or
                `[*batch, n_nodes, n_nodes, edge_dim]` with a mask.
            return_attention: whether to return the coefficients too, after the softmax and before
                dropout.
            seed: the seed of the dropout mask; drawn from PyTorch's generator if None.

        Returns:
            `[*batch, n_nodes, out_features]`; with `return_attention` the pair of it and the
            coefficients, `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse) or
            `[*batch, n_nodes, n_nodes, n_heads]` (dense).
        """
        query, key = self._project(h)
        result = self._attend(
            query,
            key,
            adj_mat,
            edge_features=edge_features,
            return_attention=return_attention,
            seed=seed,
        )
        out, alpha = result if isinstance(result, tuple) else (result, None)
        out = out.flatten(-2) if self.is_concat else out.mean(-2)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out if alpha is None else (out, alpha)

    @abstractmethod
    def attention_scores(
        self, h: Tensor, adj_mat: object, *, edge_features: Tensor | None = None
    ) -> Tensor:
        """The scores e_ij before the softmax, -inf where a head has no edge.

        `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
        `[*batch, n_nodes, n_nodes, n_heads]` (dense).
        """

    @abstractmethod
    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        adj_mat: object,
        *,
        edge_features: Tensor | None,
        return_attention: bool,
        seed: int | Tensor | None,
    ) -> Any: ...

    def _project(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """`h` as queries and as keys, each `[*batch, n_nodes, n_heads, n_hidden]`."""
        weight = self.linear_l.weight
        if not isinstance(h, Tensor):
            raise TypeError(f"`h` must be a torch.Tensor; got {type(h).__name__}")
        if h.ndim < 2 or h.shape[-1] != self.in_features:
            raise ValueError(
                f"`h` must have shape (*batch, n_nodes, in_features={self.in_features}); "
                f"got {tuple(h.shape)}"
            )
        if h.device != weight.device:
            raise ValueError(f"`h` is on {h.device} and the layer is on {weight.device}")
        if h.dtype != weight.dtype and not torch.is_autocast_enabled(h.device.type):
            raise TypeError(
                f"`h` must have the layer's dtype {weight.dtype}; got {h.dtype}: "
                "convert one of them with `.to(dtype)`"
            )
        heads = (self.n_heads, self.n_hidden)
        query = self.linear_l(h).unflatten(-1, heads)
        return query, query if self.share_weights else self.linear_r(h).unflatten(-1, heads)

    def _active_dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        edge_dim = "" if self.edge_dim is None else f"edge_dim={self.edge_dim}, "
        return (
            f"{self.in_features}, {self.out_features}, n_heads={self.n_heads}, "
            f"is_concat={self.is_concat}, dropout={self.dropout}, "
            f"leaky_relu_negative_slope={self.leaky_relu_negative_slope}, "
            f"share_weights={self.share_weights}, {edge_dim}bias={self.bias is not None}, "
            f"backend={self.backend!r}, kernel={self.kernel!r}, flow={self.flow!r}"
        )


class GraphAttentionV2Layer(GraphAttention):
    r"""Graph Attention v2, with dynamic attention.

    .. math::

        e_{ij} = a \cdot \mathrm{LeakyReLU}(W_l h_i + W_r h_j), \qquad
        \alpha_{ij} = \mathrm{softmax}_{j \in N_i}(e_{ij}), \qquad
        h'_i = \sum_{j \in N_i} \alpha_{ij} W_r h_j

    for each head; :math:`N_i` are the j with `adj_mat[i][j]`. Heads are concatenated or averaged. A
    node without neighbours gives zeros; self-loops are not added.

    Args:
        in_features: features of a node.
        out_features: features of the result; with `is_concat` each head has
            `out_features / n_heads` of them, else each head has all.
        n_heads: number of heads.
        is_concat: whether heads are concatenated (True) or averaged (False).
        dropout: probability, in [0, 1), that a coefficient is dropped in training.
        leaky_relu_negative_slope: slope of LeakyReLU below zero.
        share_weights: whether :math:`W_l = W_r`.
        edge_dim: number D of features of an edge, or None for edges without features. With them
            :math:`e_{ij} = a \cdot \mathrm{LeakyReLU}(W_l h_i + W_r h_j + W_e x_{ij})`.
        bias: whether the projections and the output have a bias, as in PyTorch Geometric. The
            formula has none.
        backend: "dense" (masked attention), "sparse" (edges), or "auto": by the form of `adj_mat`.
        kernel: "torch", or "auto": the first that serves a call.
        flow: what row 0 of an edge index holds. "target_to_source": the nodes that attend;
            "source_to_target", PyTorch Geometric's default: the nodes attended to.
        device: where the parameters are made.
        dtype: dtype of the parameters.

    Attributes:
        linear_l: :math:`W_l`, projects queries.
        linear_r: :math:`W_r`, projects keys and values; `linear_l` itself with `share_weights`.
        linear_e: :math:`W_e`, projects features of edges; None without `edge_dim`.
        attn: :math:`a`, `[n_heads, n_hidden]`.
        bias: `[out_features]`, added to the result, or None.

    Raises:
        TypeError: a size is not an int.
        ValueError: a size is not positive, `out_features` does not divide by `n_heads`, `dropout` is
            outside [0, 1), the slope is not finite, or an option is unknown.

    Example:
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

    def attention_scores(  # noqa: D102
        self, h: Tensor, adj_mat: object, *, edge_features: Tensor | None = None
    ) -> Tensor:
        query, key = self._project(h)
        return gatv2_scores(
            query,
            key,
            self.attn.to(query.dtype),
            adj_mat,
            **self._edges(edge_features, query.dtype),
            negative_slope=self.leaky_relu_negative_slope,
            flow=self.flow,
            backend=self.backend,
        )

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        adj_mat: object,
        *,
        edge_features: Tensor | None,
        return_attention: bool,
        seed: int | Tensor | None,
    ) -> Any:
        return gatv2_attention(
            query,
            key,
            self.attn.to(query.dtype),
            adj_mat,
            **self._edges(edge_features, query.dtype),
            negative_slope=self.leaky_relu_negative_slope,
            dropout=self._active_dropout(),
            seed=seed,
            flow=self.flow,
            backend=self.backend,
            kernel=self.kernel,
            return_attention=return_attention,
        )

    def _edges(self, edge_features: Tensor | None, dtype: torch.dtype) -> dict[str, Any]:
        """Features of edges and their projection, which the kernel applies."""
        if self.linear_e is None:
            if edge_features is not None:
                raise ValueError(
                    "`edge_features` came to a layer without `edge_dim`: construct it with "
                    f"edge_dim=D, the last dimension of `edge_features`, {tuple(edge_features.shape)}"
                )
            return {}
        weight = self.linear_e.weight
        if not isinstance(edge_features, Tensor):
            raise TypeError(
                f"`edge_features` must be a torch.Tensor, as edge_dim={self.edge_dim}; "
                f"got {type(edge_features).__name__}"
            )
        if edge_features.shape[-1:] != (self.edge_dim,):
            raise ValueError(
                f"`edge_features` must have edge_dim={self.edge_dim} as its last dimension; "
                f"got {tuple(edge_features.shape)}"
            )
        if edge_features.dtype != weight.dtype and not torch.is_autocast_enabled(
            edge_features.device.type
        ):
            raise TypeError(
                f"`edge_features` must have the layer's dtype {weight.dtype}; "
                f"got {edge_features.dtype}: convert it with `.to(dtype)`"
            )
        projection = weight.unflatten(0, (self.n_heads, self.n_hidden))
        return {"edge_features": edge_features.to(dtype), "edge_projection": projection.to(dtype)}
