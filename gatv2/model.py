"""GATv2: a ready stack of layers for node classification."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from gatv2.base import GraphAttention, check_order
from gatv2.graph.adjacency import Sizes, as_adjacency, common_batch_shape
from gatv2.graph.edge_features import is_mask
from gatv2.graph.part import is_part
from gatv2.graph.self_loops import FillValue
from gatv2.inference import BLOCK_SIZE, apply_in_blocks
from gatv2.layer import GraphAttentionV2Layer
from gatv2.options import Backend, Bias, Flow, as_dropout, check_sizes, tells_our_names
from gatv2.projection import reset_parameters
from gatv2.sparse_features import Features, as_features, drop_features


class LayerOptions(TypedDict, total=False):
    """Options of every layer of a stack; see :class:`gatv2.GraphAttentionV2Layer`."""

    leaky_relu_negative_slope: float
    share_weights: bool
    edge_dim: int | None
    bias: Bias
    residual: bool
    add_self_loops: bool
    fill_value: FillValue
    loop_bias: FillValue
    backend: Backend
    kernel: str
    flow: Flow


class GATv2(nn.Module):
    r"""A stack of attention layers, as in the experiments of the GAT and GATv2 papers.

    .. math::

        \begin{aligned}
        h^{(l+1)} &= \sigma\big(\mathrm{layer}_l(\mathrm{dropout}(h^{(l)}), G)\big) \\
        \mathrm{out} &= \mathrm{layer}_L(\mathrm{dropout}(h^{(L)}), G)
        \end{aligned}

    Hidden layers concatenate their heads, and the last averages its own. A list of edges is sorted once
    for all of them.

    Args:
        in_features: features of a node; -1 for lazy initialisation.
        hidden_features: features between layers, those of all heads together.
        out_features: features of the result, such as the number of classes.
        n_layers: number of layers.
        n_heads: heads of a hidden layer.
        out_heads: heads of the last layer.
        dropout: probability, in [0, 1), that a coefficient is dropped in training.
        feature_dropout: probability, in [0, 1), that a feature is dropped in training, before each
            layer.
        activation: :math:`\sigma`, between layers.
        layer: the class of the layers; :class:`gatv2.GraphAttentionLayer` for the static control.
        device: where the parameters are made.
        dtype: dtype of the parameters.
        **options: options of every layer, such as `bias`, `residual` or `backend`.

    Attributes:
        layers: the layers, an `nn.ModuleList`.

    Raises:
        TypeError: a layer does not know an option, or refuses its type.
        ValueError: `n_layers` is not positive, or a layer refuses its sizes or options.

    Example:
        >>> model = GATv2(16, 64, 7, n_layers=3, n_heads=8, bias=True)
        >>> h, edge_index = torch.randn(20, 16), torch.randint(20, (2, 60))
        >>> model(h, edge_index).shape
        torch.Size([20, 7])
        >>> out, coefficients = model(h, edge_index, return_attention=True)
        >>> [tuple(alpha.shape) for alpha in coefficients]
        [(60, 8), (60, 8), (60, 1)]

    Source: Velickovic et al., "Graph Attention Networks", ICLR 2018, section 3.3.
    """

    @tells_our_names
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        n_layers: int = 2,
        n_heads: int = 8,
        *,
        out_heads: int = 1,
        dropout: float = 0.6,
        feature_dropout: float = 0.6,
        activation: Callable[[Tensor], Tensor] = elu,
        layer: type[GraphAttention] = GraphAttentionV2Layer,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        check_sizes(n_layers=n_layers)
        self.feature_dropout = as_dropout(feature_dropout, "feature_dropout")
        self.activation = activation
        sizes = [in_features] + [hidden_features] * (n_layers - 1)
        make = partial(layer, dropout=dropout, device=device, dtype=dtype, **options)
        self.layers = nn.ModuleList(make(size, hidden_features, n_heads) for size in sizes[:-1])
        self.layers.append(make(sizes[-1], out_features, out_heads, False))

    def reset_parameters(self) -> None:
        """Draw the parameters of all layers anew."""
        reset_parameters(self)

    @overload
    def forward(
        self,
        h: Features,
        adj_mat: object,
        *,
        edge_features: Tensor | None = ...,
        score_bias: Tensor | None = ...,
        return_attention: Literal[False] = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        h: Features,
        adj_mat: object,
        *,
        edge_features: Tensor | None = ...,
        score_bias: Tensor | None = ...,
        return_attention: Literal[True],
    ) -> tuple[Tensor, list[Tensor]]: ...
    @overload
    def forward(
        self,
        h: Features,
        adj_mat: object,
        *,
        edge_features: Tensor | None = ...,
        score_bias: Tensor | None = ...,
        return_attention: bool,
    ) -> Tensor | tuple[Tensor, list[Tensor]]: ...
    @tells_our_names
    def forward(
        self,
        h: Features,
        adj_mat: object,
        *,
        edge_features: Tensor | None = None,
        score_bias: Tensor | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Run all layers over one graph.

        Args:
            h: `[*batch, n_nodes, in_features]`, or a sparse matrix, as a layer takes it.
            adj_mat: the graph, in any form that a layer reads.
            edge_features: features of each edge, for layers with `edge_dim`.
            score_bias: what is added to the scores of every layer, as a layer takes it; for one head, or
                for as many as all layers have.
            return_attention: whether to return the coefficients of each layer too.

        Returns:
            `[*batch, n_nodes, out_features]`; with `return_attention` the pair of it and the list of the
            layers' coefficients, as :meth:`gatv2.GraphAttentionV2Layer.forward` returns them.
        """
        x, graph = self._prepare(h, adj_mat, score_bias)
        coefficients: list[Tensor] = []
        for i, layer in enumerate(self._layers()):
            x = drop_features(self.activation(x) if i else x, self.feature_dropout, self.training)
            result = layer(
                x,
                graph,
                edge_features=edge_features,
                score_bias=score_bias,
                return_attention=return_attention,
            )
            if isinstance(result, tuple):
                x, alpha = result
                coefficients.append(alpha)
            else:
                x = result
        return (x, coefficients) if return_attention else x

    if TYPE_CHECKING:
        __call__ = forward  # that of `nn.Module` is of any arguments, and returns Any

    def embed(
        self,
        h: Features,
        adj_mat: object,
        *,
        edge_features: Tensor | None = None,
        score_bias: Tensor | None = None,
    ) -> Tensor:
        """What the last layer sees: `[*batch, n_nodes, hidden_features]`; the only one sees `h`."""
        x, graph = self._prepare(h, adj_mat, score_bias)
        for layer in self._layers()[:-1]:
            x = drop_features(x, self.feature_dropout, self.training)
            x = layer(x, graph, edge_features=edge_features, score_bias=score_bias)
            x = self.activation(x)
        return x

    @torch.no_grad()
    def inference(
        self,
        h: Features,
        adj_mat: object,
        *,
        edge_features: Tensor | None = None,
        score_bias: Tensor | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> Tensor:
        """What `forward` gives in evaluation, layer by layer in the memory of one layer.

        Each layer is applied to all nodes, `block_size` queries at a time, before the next begins, by
        :func:`gatv2.inference.apply_in_blocks`: beside `h`, a layer's input, keys and output are held,
        and nothing of another layer.

        Args:
            h: `[*batch, n_nodes, in_features]`, or a sparse matrix, as a layer takes it.
            adj_mat: the graph, in any form that a layer reads, but for batches of masks.
            edge_features: features of each edge, for layers with `edge_dim`, in the order of the edges.
            score_bias: what is added to the scores, likewise.
            block_size: number of queries in a block.

        Returns:
            `[*batch, n_nodes, out_features]`.

        Raises:
            RuntimeError: the model is in training mode.
            ValueError: `block_size` is not positive, or the graph is a batch of masks.

        Example:
            >>> model = GATv2(16, 64, 7).eval()
            >>> h, edge_index = torch.randn(20, 16), torch.randint(20, (2, 60))
            >>> out = model.inference(h, edge_index, block_size=8)
            >>> torch.allclose(out, model(h, edge_index), atol=1e-6)
            True
        """
        x, graph = self._prepare(h, adj_mat, score_bias)
        layers = self._layers()
        for i, layer in enumerate(layers, start=1):
            x = apply_in_blocks(
                layer,
                x,
                graph,
                edge_features=edge_features,
                score_bias=score_bias,
                activation=self.activation if i < len(layers) else None,
                block_size=block_size,
            )
        return x

    def _layers(self) -> list[GraphAttention]:
        return cast(list[GraphAttention], list(self.layers))

    def _prepare(
        self, h: Features, adj_mat: object, score_bias: Tensor | None
    ) -> tuple[Tensor, object]:
        """Features, and a list of edges as a `Graph`, once for all layers.

        A mask or a part needs no preparation, and a part's other processes are told what is wrong.
        """
        if is_part(adj_mat):
            return adj_mat.told(lambda: (self._checked(h, adj_mat, score_bias), adj_mat))
        h = self._checked(h, adj_mat, score_bias)
        if adj_mat is None or is_mask(adj_mat) or h.ndim < 2:
            return h, adj_mat  # the first layer says what is wrong with `h`
        first, n_nodes = self._layers()[0], h.shape[-2]
        batch_shape = common_batch_shape(adj_mat, h.shape[:-2])
        sizes = Sizes(n_nodes, n_nodes, first.n_heads, batch_shape, h.device)
        return h, as_adjacency(adj_mat, sizes, flow=first.flow, backend="sparse")

    def _checked(self, h: Features, adj_mat: object, score_bias: Tensor | None) -> Tensor:
        """Features, if they and what is of heads can be what all layers take."""
        check_order(h, adj_mat)
        h = as_features(h)
        if is_mask(adj_mat):
            self._check_heads(cast(Tensor, adj_mat), "mask")
        if isinstance(score_bias, Tensor):
            self._check_heads(score_bias, "`score_bias`")
        return h

    def _check_heads(self, of_heads: Tensor, name: str) -> None:
        """Raise a ValueError for what is of heads that not all layers have."""
        heads = [layer.n_heads for layer in self._layers()]
        n_heads = of_heads.shape[-1]
        if n_heads in heads and n_heads != 1 and len(set(heads)) > 1:
            raise ValueError(
                f"a {name} for {n_heads} heads came to layers with {heads} heads: pass one whose last "
                "dimension is 1, which is for all heads, or make the model with equal `n_heads` and "
                "`out_heads`"
            )
