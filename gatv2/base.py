"""GraphAttention: what the two layers share. Parameters, projections, and how heads are joined."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from gatv2.checks import is_same
from gatv2.dispatch import KERNELS, select_kernel
from gatv2.graph.adjacency import (
    Adjacency,
    Sizes,
    all_pairs,
    as_adjacency,
    common_batch_shape,
)
from gatv2.graph.edge_features import as_backend_reads, broadcast_batch, is_mask
from gatv2.graph.edge_inputs import check_score_bias, given_of_edges, refuse_bool_bias
from gatv2.graph.graph import Graph
from gatv2.graph.part import Part, is_part
from gatv2.graph.self_loops import FillValue, add_self_loops, check_fill_value
from gatv2.options import (
    Backend,
    Bias,
    Flow,
    as_dropout,
    as_slope,
    by_role,
    check_backend,
    check_bias,
    check_flags,
    check_flow,
    check_flow_of_graph,
    check_sizes,
    hidden_of,
    tells_our_names,
)
from gatv2.precision import is_autocast, is_convertible, lowered
from gatv2.projection import (
    Where,
    has_bias,
    is_plain,
    linear,
    n_inputs_of,
    reset_parameters,
    weight_and_size,
    weight_of,
)
from gatv2.random import as_seed
from gatv2.sparse_features import Features, as_features, project, project_sides
from gatv2.torch_internals import refuse_tracing

NodeFeatures = Features | tuple[Features, Features]
"""Features of the nodes of one graph, or of the two sides of a bipartite one."""


class Projected(NamedTuple):
    """What a layer hands to attention."""

    query: Tensor
    """`[*batch, n_queries, n_heads, n_hidden]`."""
    key: Tensor
    """`[*batch, n_keys, n_heads, n_hidden]`."""
    adj_mat: object
    edge_features: Tensor | None
    """Laid out as `adj_mat`."""
    score_bias: Tensor | None
    """Laid out as `adj_mat`."""
    flow: Flow
    """How `adj_mat` is to be read."""


class GraphAttention(nn.Module, ABC):
    """What attention layers share: projections to heads, options, and how heads are joined."""

    attention_vectors: ClassVar[tuple[str, ...]]
    """Names of the parameters that score a pair, each `[n_heads, n_hidden]`."""

    @tells_our_names
    def __init__(
        self,
        in_features: int | tuple[int, int],
        out_features: int,
        n_heads: int,
        is_concat: bool = True,
        dropout: float = 0.6,
        leaky_relu_negative_slope: float = 0.2,
        share_weights: bool = False,
        *,
        edge_dim: int | None = None,
        bias: Bias = False,
        residual: bool = False,
        add_self_loops: bool = False,
        fill_value: FillValue = "mean",
        loop_bias: FillValue = 0.0,
        backend: Backend = "auto",
        kernel: str = "auto",
        flow: Flow = "target_to_source",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_flags(
            is_concat=is_concat,
            share_weights=share_weights,
            residual=residual,
            add_self_loops=add_self_loops,
        )
        sides = _sizes_of_sides(in_features, share_weights)
        check_sizes(out_features=out_features, n_heads=n_heads)
        out_features, n_heads = int(out_features), int(n_heads)  # not NumPy's
        if edge_dim is not None:
            check_sizes(edge_dim=edge_dim)
            edge_dim = int(edge_dim)
        self.n_hidden = hidden_of(out_features, n_heads, is_concat)
        check_bias(bias)
        dropout = as_dropout(dropout)
        slope = as_slope(leaky_relu_negative_slope, "leaky_relu_negative_slope")
        check_flow(flow)
        check_fill_value(fill_value)
        check_fill_value(loop_bias, "loop_bias")
        check_backend(backend)
        _check_kernel(kernel)
        _check_dtype(dtype)
        self.out_features = out_features
        self.n_heads = n_heads
        self.is_concat = is_concat
        self.dropout = dropout
        self.leaky_relu_negative_slope = slope
        self.share_weights = share_weights
        self.edge_dim = edge_dim
        self.add_self_loops = add_self_loops
        self.fill_value = fill_value
        self.loop_bias = loop_bias
        self.backend = backend
        self.kernel = kernel
        self.flow = flow
        self._is_pair = isinstance(in_features, (tuple, list))

        n_query, n_key = by_role(sides, flow)
        where = Where(device=device, dtype=dtype)
        width = n_heads * self.n_hidden
        self.linear_l = linear(n_query, width, bias=bool(bias), **where)
        self.linear_r = (
            self.linear_l if share_weights else linear(n_key, width, bias=bool(bias), **where)
        )
        self.linear_e = None if edge_dim is None else linear(edge_dim, width, bias=False, **where)
        self.linear_residual = (
            linear(n_query, out_features, bias=False, **where) if residual else None
        )
        for name in self.attention_vectors:
            vector = torch.empty(n_heads, self.n_hidden, **where)
            self.register_parameter(name, nn.Parameter(vector))
        self.bias = nn.Parameter(torch.empty(out_features, **where)) if bias is True else None
        self.reset_parameters()

    @property
    def in_features(self) -> int | tuple[int, int]:
        """Features of a node, or of the nodes of each side; -1 where the first input will tell."""
        sizes = n_inputs_of(self.linear_l), n_inputs_of(self.linear_r)
        return by_role(sizes, self.flow) if self._is_pair else sizes[0]

    def reset_parameters(self) -> None:
        """Draw all parameters anew: Glorot uniform, as the paper's code; biases are zero."""
        reset_parameters(self)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any
    ) -> None:
        """Load parameters, unless two matrices would become the one that both sides share."""
        if self.share_weights:
            error_messages: list[str] = arguments[-1]
            for name in ("weight", "bias"):
                left = state_dict.get(f"{prefix}linear_l.{name}")
                right = state_dict.get(f"{prefix}linear_r.{name}")
                if left is not None and right is not None and not is_same(left, right):
                    error_messages.append(
                        f"`{prefix}linear_l.{name}` and `{prefix}linear_r.{name}` differ, and the layer "
                        "shares one matrix: make it with share_weights=False"
                    )
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @overload
    def forward(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        edge_features: Tensor | None = ...,
        score_bias: Tensor | None = ...,
        return_attention: Literal[False] = ...,
        seed: int | Tensor | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        edge_features: Tensor | None = ...,
        score_bias: Tensor | None = ...,
        return_attention: Literal[True],
        seed: int | Tensor | None = ...,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        edge_features: Tensor | None = ...,
        score_bias: Tensor | None = ...,
        return_attention: bool,
        seed: int | Tensor | None = ...,
    ) -> Tensor | tuple[Tensor, Tensor]: ...
    @tells_our_names
    def forward(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        edge_features: Tensor | None = None,
        score_bias: Tensor | None = None,
        return_attention: bool = False,
        seed: int | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend over the graph.

        Args:
            h: `[*batch, n_nodes, in_features]`; without a batch it may be a `torch.sparse` or
                `scipy.sparse` matrix, of which only what it stores is read. For a bipartite graph the
                pair of its two sides, in the order of the rows of an edge index: `(h_query, h_key)`, and
                with `flow="source_to_target"`, as in PyTorch Geometric, `(h_key, h_query)`.
            adj_mat: mask `[*batch, n_nodes, n_nodes, 1 or n_heads]`, edge index `[2, n_edges]` or any
                other form of a graph; `adj_mat[i][j]` lets i attend to j. See
                :func:`gatv2.functional.gatv2_attention`. For a pair: `n_queries` and `n_keys`. One
                process's part of a graph, a :class:`gatv2.distributed.Partition`, comes with the
                features of its own nodes. None, with a `score_bias`: all attend to all.
            edge_features: features of each edge, laid out as `adj_mat`, for a layer with `edge_dim`:
                `[*batch, n_edges, edge_dim]` in the order of a list of edges, or
                `[*batch, n_nodes, n_nodes, edge_dim]` with a mask.
            score_bias: what is added to the scores :math:`e_{ij}`, for one or for each head, laid out as
                `adj_mat`: `[*batch, n_edges, 1 or n_heads]`, or
                `[*batch, n_nodes, n_nodes, 1 or n_heads]` with a mask. -inf takes an edge from a head;
                `weight.log()` makes coefficients proportional to edge weights. Self-loops that
                the layer adds have the bias that its `loop_bias` says.
            return_attention: whether to return the coefficients too, after the softmax and before
                dropout.
            seed: the seed of the dropout mask; drawn from PyTorch's generator if None.

        Returns:
            `[*batch, n_queries, out_features]`; with `return_attention` the pair of it and the
            coefficients, `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse; of a
            batch of graphs `[n_edges, n_heads]`, those of all) or `[*batch, n_queries, n_keys, n_heads]`
            (dense). With `add_self_loops` the edges of a list are those of
            :meth:`gatv2.Graph.add_self_loops`, and those of a mask stay sorted by (query, key).
        """
        if score_bias is None and not return_attention:
            at_once = self.attend_at_once(h, adj_mat, edge_features, seed)
            if at_once is not None:
                return at_once
        call = h, adj_mat, edge_features, score_bias, return_attention, seed
        if is_part(adj_mat):
            out, alpha = adj_mat.told(lambda: self._forward(*call))
        else:
            out, alpha = self._forward(*call)
        return out if alpha is None else (out, alpha)

    if TYPE_CHECKING:
        __call__ = forward  # that of `nn.Module` is of any arguments, and returns Any

    def _forward(
        self,
        h: NodeFeatures,
        adj_mat: object,
        edge_features: Tensor | None,
        score_bias: Tensor | None,
        return_attention: bool,
        seed: int | Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The result, and the coefficients if they are asked for."""
        if type(h) is not Tensor or type(adj_mat) is not Graph:
            check_order(h, adj_mat)
        h_query, h_key = self.as_pair(h)
        if seed is not None:
            as_seed(seed, h_query.device)
        inputs = self._project(h_query, h_key, adj_mat, edge_features, score_bias)
        out, alpha = self.attend(inputs, return_attention=return_attention, seed=seed)
        return self.join(out, h_query), alpha

    def attention_scores(
        self,
        h: NodeFeatures,
        adj_mat: object,
        *,
        edge_features: Tensor | None = None,
        score_bias: Tensor | None = None,
    ) -> Tensor:
        """The scores e_ij before the softmax, with their bias, -inf where a head has no edge.

        `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
        `[*batch, n_queries, n_keys, n_heads]` (dense).
        """
        return self.score(self._project(*self.as_pair(h), adj_mat, edge_features, score_bias))

    def attend_at_once(
        self,
        h: NodeFeatures,
        adj_mat: object,
        edge_features: Tensor | None,
        seed: int | Tensor | None,
    ) -> Tensor | None:
        """The result, where it is made faster by one function of autograd's; None elsewhere."""
        return None

    @abstractmethod
    def attend(
        self, inputs: Projected, *, return_attention: bool, seed: int | Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Heads `[*batch, n_queries, n_heads, n_hidden]`, and coefficients if they are asked for."""

    @abstractmethod
    def score(self, inputs: Projected) -> Tensor:
        """The scores that `attention_scores` returns."""

    def as_pair(self, h: NodeFeatures) -> tuple[Tensor, Tensor]:
        """Features of queries and of keys, checked."""
        refuse_tracing()
        if isinstance(h, (tuple, list)):
            if len(h) != 2:
                raise TypeError(
                    f"`h` must be a torch.Tensor or a pair of them; got {len(h)} of them"
                )
            names = by_role(("h[0]", "h[1]"), self.flow)
            h_query, h_key = map(as_features, by_role(h, self.flow), names)
        else:
            names = ("h", "h")
            h_query = h_key = as_features(h)
        self._check_features(h_query, names[0], self.linear_l)
        if h_key is not h_query or not self.share_weights:
            self._check_features(h_key, names[1], self.linear_r)
        if h_key.shape[:-2] != h_query.shape[:-2]:
            raise ValueError(
                f"`{names[0]}` and `{names[1]}` must have the same batch dimensions; got "
                f"{tuple(h_query.shape)} and {tuple(h_key.shape)}: expand one of them"
            )
        return h_query, h_key

    def _check_features(self, h: Tensor, name: str, projection: nn.Module) -> None:
        weight, size = weight_and_size(projection)
        if h.ndim < 2 or (size != -1 and h.shape[-1] != size):
            of_both = f": the layer has in_features={self.in_features}" if self._is_pair else ""
            raise ValueError(
                f"`{name}` must have shape (*batch, n_nodes, in_features={size}); "
                f"got {tuple(h.shape)}{of_both}"
            )
        if weight is None:
            return  # a quantized or wrapped projection checks its input itself
        if h.device != weight.device:
            raise ValueError(f"`{name}` is on {h.device} and the layer is on {weight.device}")
        is_converted = is_autocast(h.device) and h.layout is not torch.strided
        if h.dtype != weight.dtype and lowered(h) != lowered(weight) and not is_converted:
            raise TypeError(
                f"`{name}` must have the layer's dtype {weight.dtype}; got {h.dtype}{_by_autocast(h)}: "
                "convert one of them with `.to(dtype)`, a SciPy matrix with `.astype(dtype)`"
            )

    def check_edge_features(self, edge_features: Tensor | None) -> None:
        """Raise unless edge features are what the layer's `edge_dim` asks for."""
        if self.linear_e is None:
            if edge_features is not None:
                raise ValueError(
                    "`edge_features` came to a layer without `edge_dim`: construct it with "
                    f"edge_dim=D, the last dimension of `edge_features`, {tuple(edge_features.shape)}"
                )
            return
        weight = weight_of(self.linear_e)
        if not isinstance(edge_features, Tensor):
            raise TypeError(
                f"`edge_features` must be a torch.Tensor, as edge_dim={self.edge_dim}; "
                f"got {type(edge_features).__name__}{_how_to_convert(edge_features)}"
            )
        if edge_features.shape[-1:] != (self.edge_dim,):
            is_short = self.edge_dim == 1 and edge_features.ndim == 1
            remedy = ": add it with `.unsqueeze(-1)`" if is_short else ""
            raise ValueError(
                f"`edge_features` must have edge_dim={self.edge_dim} as its last dimension; "
                f"got {tuple(edge_features.shape)}{remedy}"
            )
        if weight is None:
            return
        is_lowered = is_autocast(edge_features.device)
        is_converted = is_lowered and is_plain(self.linear_e, nn.Linear)  # as the kernel has it
        if lowered(edge_features) != lowered(weight) and not is_converted:
            raise TypeError(
                f"`edge_features` must have the layer's dtype {weight.dtype}; "
                f"got {edge_features.dtype}{_by_autocast(edge_features)}: convert it with `.to(dtype)`"
            )

    def check_score_bias(self, score_bias: Tensor | None, h: Tensor) -> None:
        """Raise unless a bias of the scores fits the layer's heads, and features of nodes."""
        refuse_bool_bias(score_bias)
        if isinstance(score_bias, Tensor) and is_autocast(h.device):
            score_bias = score_bias.to(h.dtype)  # as it will be converted to what heads are
        check_score_bias(score_bias, h, self.n_heads, "h")

    def _project(
        self,
        h_query: Tensor,
        h_key: Tensor,
        adj_mat: object,
        edge_features: Tensor | None,
        score_bias: Tensor | None,
    ) -> Projected:
        self.check_edge_features(edge_features)
        if score_bias is not None:
            self.check_score_bias(score_bias, h_query)
        if adj_mat is None:
            adj_mat = all_pairs((h_query.shape[-2], h_key.shape[-2]), score_bias, self.flow)
        linear_l, linear_r = self.linear_l, self.linear_r
        are_plain = type(linear_l) is type(linear_r) is nn.Linear
        if not are_plain and -1 in (n_inputs_of(linear_l), n_inputs_of(linear_r)):
            # a call that is refused must not tell the layer its sizes
            self._check_graph(h_query, h_key, adj_mat, edge_features, score_bias)
        of_query, of_key = project_sides(
            (linear_l, linear_r), (h_query, h_key), is_shared=self.share_weights
        )
        query = key = self._heads(of_query, "linear_l")
        if of_key is not of_query:
            key = self._heads(of_key, "linear_r")
        if score_bias is not None:
            score_bias = score_bias.to(query.dtype)
        if not self.add_self_loops:
            return Projected(query, key, adj_mat, edge_features, score_bias, self.flow)
        batch_shape = common_batch_shape(adj_mat, query.shape[:-3])
        sizes = Sizes(query.shape[-3], key.shape[-3], self.n_heads, batch_shape, query.device)
        return self._with_loops(
            Projected(query, key, adj_mat, edge_features, score_bias, self.flow), sizes
        )

    def _heads(self, projected: Tensor, name: str) -> Tensor:
        if projected.shape[-1] != self.n_heads * self.n_hidden:
            raise ValueError(
                f"`{name}` must give {self.n_heads} heads of {self.n_hidden} features, "
                f"{self.n_heads * self.n_hidden} together; it gave {projected.shape[-1]}"
            )
        return projected.view(*projected.shape[:-1], self.n_heads, self.n_hidden)

    def _with_loops(self, inputs: Projected, sizes: Sizes) -> Projected:
        """The same with a self-loop at each node."""
        _, _, adj_mat, edge_features, score_bias, _ = inputs
        if isinstance(adj_mat, Part):
            check_flow_of_graph(adj_mat.flow, self.flow)
            adjacency: Adjacency | Part = adj_mat
        else:
            # "auto" leaves a mask a mask, which keeps its batch; the backend's form comes with the call
            adjacency = as_adjacency(adj_mat, sizes, flow=self.flow, backend="auto")
        if is_mask(adj_mat) and self.flow == "source_to_target":
            edge_features, score_bias = (
                None if x is None else x.transpose(-3, -2) for x in (edge_features, score_bias)
            )
        is_block = self.is_block(adj_mat, sizes)
        with_loops, edge_features = add_self_loops(
            adjacency, edge_features, self.fill_value, is_block=is_block
        )
        if score_bias is not None:
            _, score_bias = add_self_loops(
                adjacency, score_bias, self.loop_bias, is_block=is_block, is_bias=True
            )
        flow: Flow = self.flow if isinstance(adj_mat, Part) else "target_to_source"
        return Projected(*inputs[:2], with_loops, edge_features, score_bias, flow)

    def is_block(self, adj_mat: object, sizes: Sizes) -> bool:
        """Whether an edge index is of a sampled block, in which some nodes are queries and keys.

        In the convention of PyTorch Geometric and DGL, its targets come first among its sources. A
        `Graph` of two sides may be a batch, whose nodes do not pair up by number.
        """
        is_list = isinstance(adj_mat, Tensor | np.ndarray) and not is_mask(adj_mat)
        return is_list and self.flow == "source_to_target" and sizes.n_queries != sizes.n_keys

    def _check_graph(
        self,
        h_query: Tensor,
        h_key: Tensor,
        adj_mat: object,
        edge_features: Tensor | None,
        score_bias: Tensor | None,
    ) -> None:
        """Raise what attention would raise of the graph, before anything is projected."""
        if isinstance(adj_mat, Part):
            check_flow_of_graph(adj_mat.flow, self.flow)
            if h_query.shape[-2] != adj_mat.n_own:
                raise ValueError(
                    f"`h` must have a row for each of the part's {adj_mat.n_own} own nodes; "
                    f"got {tuple(h_query.shape)}"
                )
            self._check_kernel_serves(h_query, h_key, adj_mat.local)
            return
        batch_shape = common_batch_shape(adj_mat, h_query.shape[:-2])
        given = given_of_edges(edge_features, score_bias)
        for name, x in given.items():
            batch_shape = broadcast_batch(x, adj_mat, batch_shape, name)
        sides = h_query.shape[-2], h_key.shape[-2]
        sizes = Sizes(*sides, self.n_heads, batch_shape, h_query.device)
        backend = "auto" if self.add_self_loops else self.backend
        graph = as_adjacency(adj_mat, sizes, flow=self.flow, backend="auto")
        adjacency = as_adjacency(graph, sizes, flow="target_to_source", backend=backend)
        self._check_kernel_serves(h_query, h_key, adjacency)
        laid_out_as = adj_mat if is_mask(adj_mat) else graph
        for name, x in given.items():
            as_backend_reads(x, laid_out_as, graph, sizes, self.flow, name)
        if self.add_self_loops:
            add_self_loops(graph, is_block=self.is_block(adj_mat, sizes))

    def _check_kernel_serves(self, h_query: Tensor, h_key: Tensor, adjacency: Adjacency) -> None:
        """Raise what the choice of a kernel would raise of projected features."""
        attn = getattr(self, self.attention_vectors[0])
        dtype = lowered(attn)
        select_kernel(h_query.to(dtype), h_key.to(dtype), attn, adjacency, kernel=self.kernel)

    def join(self, out: Tensor, h_query: Tensor) -> Tensor:
        """The result: heads side by side or their mean, the residual of the queries, the bias."""
        out = out.flatten(-2) if self.is_concat else out.mean(-2)
        for term in self.further_terms(h_query, out.dtype):
            out = out + term
        return out

    def further_terms(self, h_query: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        """What is added to joined heads, one term after the other, as each may be large."""
        if self.linear_residual is not None:
            yield project(self.linear_residual, h_query)
        if self.bias is not None:
            yield self.bias.to(dtype)

    def _active_dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        is_biased = has_bias(self.linear_l)
        bias = "projections" if is_biased and self.bias is None else is_biased
        edge_dim = "" if self.edge_dim is None else f"edge_dim={self.edge_dim}, "
        loops = f", fill_value={self.fill_value!r}" if edge_dim and self.add_self_loops else ""
        if self.add_self_loops and (
            not isinstance(self.loop_bias, (int, float)) or self.loop_bias != 0
        ):
            loops += f", loop_bias={self.loop_bias!r}"
        return (
            f"{self.in_features}, {self.out_features}, n_heads={self.n_heads}, "
            f"is_concat={self.is_concat}, dropout={self.dropout}, "
            f"leaky_relu_negative_slope={self.leaky_relu_negative_slope}, "
            f"share_weights={self.share_weights}, {edge_dim}bias={bias!r}, "
            f"backend={self.backend!r}, kernel={self.kernel!r}, flow={self.flow!r}, "
            f"residual={self.linear_residual is not None}, add_self_loops={self.add_self_loops}{loops}"
        )


def _sizes_of_sides(in_features: int | tuple[int, int], share_weights: bool) -> tuple[int, int]:
    """The sizes of a pair, checked; a number is that of both sides."""
    sizes = in_features if isinstance(in_features, (tuple, list)) else (in_features, in_features)
    for size in sizes:
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"`in_features` must be an int or a pair; got {type(size).__name__}")
        if size < 1 and size != -1:
            raise ValueError(
                f"`in_features` must be positive, or -1 for lazy initialisation; got {size}"
            )
    if len(sizes) != 2:
        raise ValueError(f"`in_features` must be an int or a pair of them; got {tuple(sizes)}")
    if share_weights and sizes[0] != sizes[1]:
        raise ValueError(
            "with share_weights=True one matrix projects both sides, but `in_features` is "
            f"{tuple(sizes)}"
        )
    first, second = sizes
    return int(first), int(second)


def check_order(h: object, adj_mat: object) -> None:
    """Raise a TypeError if features and a graph came in each other's place."""
    is_edge_index = isinstance(h, Tensor) and h.dtype in (torch.int32, torch.int64)
    is_features = isinstance(adj_mat, Tensor) and adj_mat.dtype.is_floating_point
    if isinstance(h, Graph) or is_part(h) or (is_edge_index and is_features):
        raise TypeError("features come first, and then the graph: call `layer(h, adj_mat)`")


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"`dtype` must be a floating-point dtype of PyTorch, as torch.float32; got {dtype}"
        )


def _by_autocast(given: Tensor) -> str:
    if not is_autocast(given.device) or is_convertible(given):
        return ""
    return ", which autocast does not convert"


def _how_to_convert(edge_features: object) -> str:
    if edge_features is None:
        return ""
    return ": convert it with `torch.as_tensor(edge_features, dtype=layer.attn.dtype)`"


def _check_kernel(kernel: str) -> None:
    kernels = ("auto", *dict.fromkeys(kernel.name for kernel in KERNELS))
    if kernel not in kernels:
        raise ValueError(f"`kernel` must be one of {kernels}; got {kernel!r}")
