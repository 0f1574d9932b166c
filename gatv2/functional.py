"""Attention as pure functions: check the inputs, bring the graph to a backend's form, call a kernel."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from gatv2 import dispatch
from gatv2.checks import check_projections
from gatv2.dense import reference as dense_reference
from gatv2.dispatch import Attention, select_kernel
from gatv2.graph import Graph
from gatv2.graph.adjacency import (
    Adjacency,
    Sizes,
    all_pairs,
    as_adjacency,
    as_graph,
    common_batch_shape,
)
from gatv2.graph.check import check_again
from gatv2.graph.edge_features import as_backend_reads, broadcast_batch, is_mask
from gatv2.graph.edge_inputs import EdgeInputs, check_edge_inputs, check_score_bias
from gatv2.graph.edges import is_trusted
from gatv2.graph.part import AttendOptions
from gatv2.graph.self_loops import FillValue, add_self_loops
from gatv2.graph.served import (
    Kind,
    Marks,
    chosen,
    has_served,
    marks_of,
    marks_of_projections,
    remember,
    remember_choice,
    served,
)
from gatv2.operator.projected import attend_to_projections
from gatv2.options import Backend, Flow, as_dropout, as_slope, check_flow_of_graph
from gatv2.precision import largest_in
from gatv2.projection import Projections
from gatv2.random import as_seed
from gatv2.sparse import operator as sparse_operator
from gatv2.sparse import reference as sparse_reference
from gatv2.torch_internals import refuse_tracing


class Options(TypedDict, total=False):
    """Options of attention; see :func:`gatv2_attention`."""

    negative_slope: float
    dropout: float
    seed: int | Tensor | None
    flow: Flow
    backend: Backend
    score_bias: Tensor | None


class KernelOptions(Options, total=False):
    """Further options of :func:`gatv2_attention`."""

    edge_features: Tensor | None
    edge_projection: Tensor | None
    kernel: str


class Attended(NamedTuple):
    """What attention gives; see :func:`gatv2_attention`."""

    out: Tensor
    alpha: Tensor | None
    """None if it was not asked for."""
    lse: Tensor


@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    return_attention: Literal[False] = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[KernelOptions],
) -> Tensor: ...
@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    return_attention: Literal[True],
    return_lse: Literal[False] = ...,
    **options: Unpack[KernelOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    return_attention: Literal[False] = ...,
    return_lse: Literal[True],
    **options: Unpack[KernelOptions],
) -> tuple[Tensor, Tensor]: ...
@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    return_attention: Literal[True],
    return_lse: Literal[True],
    **options: Unpack[KernelOptions],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    return_attention: bool,
    return_lse: Literal[False] = ...,
    **options: Unpack[KernelOptions],
) -> Tensor | tuple[Tensor, Tensor]: ...
@overload
def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    return_attention: bool = ...,
    return_lse: bool,
    **options: Unpack[KernelOptions],
) -> Tensor | tuple[Tensor, ...]: ...


def gatv2_attention(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    edge_features: Tensor | None = None,
    edge_projection: Tensor | None = None,
    score_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
    kernel: str = "auto",
    return_attention: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    r"""Graph Attention v2: each query attends to the keys of its edges.

    .. math::

        \begin{aligned}
        e_{ij} &= a_h \cdot \mathrm{LeakyReLU}(g^l_i + g^r_j) \\
        \alpha_{ij} &= \mathrm{softmax}_{j \in N_i}(e_{ij}) \\
        \mathrm{out}_i &= \sum_{j \in N_i} \mathrm{dropout}(\alpha_{ij}) \, g^r_j
        \end{aligned}

    A query without keys gives zeros, with zero gradients. Where a score is -inf, also by overflow, there
    is no edge. With edge features :math:`x_{ij}` and a bias :math:`b_{ij}` the score is
    :math:`e_{ij} = a_h \cdot \mathrm{LeakyReLU}(g^l_i + g^r_j + W_e x_{ij}) + b_{ij}`. So edges of
    weights :math:`w_{ij} \geq 0` have coefficients proportional to :math:`w_{ij} \exp e_{ij}` with
    `score_bias=weight.log()`.

    Args:
        query: :math:`g^l`, `[*batch, n_queries, n_heads, n_hidden]`, floating point.
        key: :math:`g^r`, `[*batch, n_keys, n_heads, n_hidden]`, also the values.
        attn: :math:`a`, one vector a head, `[n_heads, n_hidden]`.
        graph: who attends to whom, in any form that :func:`gatv2.graph.as_adjacency` reads;
            `graph[i][j]` lets query i attend to key j. None, with a `score_bias` laid out as a mask:
            every query to every key.
        edge_features: :math:`x`, laid out as `graph`, whatever the backend: with a list of edges
            `[*batch, n_edges, D]` in its order (one list for a batch of graphs in one `Graph`), with
            a mask `[*batch, n_queries, n_keys, D]`, entry for entry (what has no edge is not read).
        edge_projection: :math:`W_e`, `[n_heads, n_hidden, D]`; given if `edge_features` are.
        score_bias: :math:`b`, laid out as `edge_features` are, with 1 or n_heads in the place of D.
            Where it is -inf a head has no edge; NaN and +inf make a row of NaN, of their query and head.
        negative_slope: slope of LeakyReLU below zero.
        dropout: probability, in [0, 1), that a coefficient is dropped. It acts whenever it is not
            zero; a module passes zero outside of training.
        seed: what the dropout mask is a function of, with the position; drawn from PyTorch's
            generator if None.
        flow: "source_to_target", PyTorch Geometric's default, turns `graph` round; a `Graph` must have
            been made with it.
        backend: "dense" (mask), "sparse" (edges), or "auto": by the form of `graph`.
        kernel: "numba" (fused, on the CPU), "triton" (fused, on GPUs), "torch" (plain operations,
            anywhere), or "auto": the fused one that serves the call, else "torch".
        return_attention: whether to return :math:`\alpha` too, before dropout.
        return_lse: whether to return :math:`\log \sum_{j \in N_i} \exp e_{ij}` too. It joins attention
            over parts :math:`N_i^k` of the keys: the whole is
            :math:`\sum_k \exp(\mathrm{lse}_k - \log \sum_l \exp \mathrm{lse}_l) \, \mathrm{out}_k`.

    Returns:
        `[*batch, n_queries, n_heads, n_hidden]`; with `return_attention` and `return_lse` a tuple of it,
        the coefficients, `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse) or
        `[*batch, n_queries, n_keys, n_heads]` (dense), and the log-sum-exp of the scores,
        `[*batch, n_queries, n_heads]`, in float32 or float64, -inf for a query without keys.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, devices or options do not fit.
        IndexError: an index of an edge is out of range.

    Example:
        >>> query, key = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
        >>> edge_index = torch.tensor([[0, 0, 1], [1, 2, 2]])
        >>> out, alpha = gatv2_attention(
        ...     query, key, torch.randn(2, 4), edge_index, return_attention=True
        ... )
        >>> out.shape, alpha.shape
        (torch.Size([3, 2, 4]), torch.Size([3, 2]))
        >>> out[2].abs().sum()  # query 2 has no keys
        tensor(0.)

    Source: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022, equation 7.
    """
    out, alpha, lse = attend(
        query,
        key,
        attn,
        graph,
        edges=EdgeInputs.join(edge_features, edge_projection),
        score_bias=score_bias,
        negative_slope=negative_slope,
        dropout=dropout,
        seed=seed,
        flow=flow,
        backend=backend,
        kernel=kernel,
        return_attention=return_attention,
    )
    if return_lse:
        return (out, lse) if alpha is None else (out, alpha, lse)
    return out if alpha is None else (out, alpha)


def attend(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    flow: Flow,
    **options: Unpack[AttendOptions],
) -> Attended:
    """As :func:`gatv2_attention`, for callers that always want the log-sum-exp too."""
    if type(graph) is not Graph:
        graph = _as_graph(graph, query, key, flow)
    marks = marks_of(query, key, attn, graph, flow, options)
    if marks is not None and type(graph) is Graph:
        known = served(graph, marks, dispatch.KERNELS)
        if known is None:
            known = _choose_again(Kind(graph, *marks), options)
        if known is not None:
            told = _told(options, _seed(query, options))
            out, lse, alpha = known(query, key, attn, graph, **told)
            return Attended(out, alpha, lse)
    options = _read_options(query, key, attn, options)
    attention, prepared = _select(query, key, attn, graph, flow, options, marks)
    told = _told(options, _seed(query, options))
    told["edges"], told["score_bias"] = prepared.edges, prepared.score_bias
    out, lse, alpha = attention(prepared.query, prepared.key, attn, prepared.adjacency, **told)
    shape = prepared.out_shape
    if out.shape != shape:
        out, lse = out.reshape(shape), lse.reshape(shape[:-1])
    return Attended(out, alpha, lse)


def attend_projected(
    projections: Projections,
    attn: Tensor,
    graph: object,
    flow: Flow,
    options: AttendOptions,
    fill_value: FillValue | None = None,
) -> Tensor | None:
    """The output of :func:`gatv2_attention` for what are projections, its heads side by side.

    They are differentiated as a whole: None where no kernel does that. The options have nothing of
    edges, whose features and projection are among the projections. With a fill value each node has a
    self-loop, of such features: None for a sampled block, in which some are queries and keys, and for
    what is refused elsewhere.
    """
    n_nodes = projections.h_query.shape[0], projections.n_keys
    if type(graph) is not Graph:
        graph = as_graph(graph, n_nodes, flow)
        if type(graph) is not Graph:
            return None
    if fill_value is not None:
        is_square = (graph.n_queries, graph.n_keys) == n_nodes and n_nodes[0] == n_nodes[1]
        if not is_square or not is_trusted(graph):  # one made by hand is checked first
            return None
        check_flow_of_graph(graph.flow, flow)
        graph, x = add_self_loops(graph, projections.edge_features, fill_value)
        if type(graph) is not Graph:
            return None
        projections, flow = projections._replace(edge_features=x), "target_to_source"
    marks = marks_of_projections(projections, attn, graph, flow, options)
    if marks is None:
        return None
    attention = served(graph, marks, dispatch.KERNELS)
    if attention is None:
        attention = _choose_for_projections(projections, attn, graph, flow, options, marks)
    if not isinstance(attention, sparse_operator.BoundAttention):
        return None
    return attend_to_projections(attention.bound, projections, attn, _seed(attn, options))


def join_in_place(
    out: Tensor, heads: tuple[int, ...], terms: Iterable[Tensor], *, is_concat: bool
) -> Tensor:
    """A layer's result, of what :func:`attend_projected` gave: nobody else has seen that.

    A sum with a term that is wider than it, or of another dtype, is made anew: it has another form.

    Args:
        out: heads side by side.
        heads: their number, and features of one.
        terms: what is added, one after the other.
        is_concat: whether heads stay side by side; else their mean is taken.
    """
    if not is_concat and heads[0] > 1:
        out = out.unflatten(-1, heads).mean(-2)
    for term in terms:
        fits = term.dtype is out.dtype and term.shape in (out.shape, out.shape[-1:])
        out = out.add_(term) if fits else out + term
    return out


def _choose_for_projections(
    projections: Projections,
    attn: Tensor,
    graph: Graph,
    flow: Flow,
    options: AttendOptions,
    marks: Marks,
) -> Attention:
    """What is to serve calls of these marks."""
    x, w_edge = projections.edge_features, projections.weight_edge
    if x is not None and w_edge is not None:
        options = {**options, "edges": EdgeInputs(x, w_edge.view(*attn.shape, -1))}
    attention = _choose_again(Kind(graph, *marks), options)
    if attention is None:
        # of which only the form is looked at
        n_nodes = projections.h_query.shape[0], projections.n_keys
        query, key = (attn.new_empty(n, *attn.shape) for n in n_nodes)
        options = _read_options(query, key, attn, options)
        attention, _ = _select(query, key, attn, graph, flow, options, marks)
    return attention


def _as_graph(graph: object, query: object, key: object, flow: Flow) -> object:
    """An edge index as a graph, if the features are some; whatever else as it came."""
    if type(query) is not Tensor or type(key) is not Tensor or min(query.ndim, key.ndim) < 3:
        return graph
    return as_graph(graph, (query.shape[-3], key.shape[-3]), flow)


def _seed(features: Tensor, options: AttendOptions) -> Tensor | None:
    """The seed of a call's dropout, drawn if there is none."""
    return as_seed(options["seed"], features.device) if options["dropout"] > 0 else None


def _told(options: AttendOptions, seed: Tensor | None) -> sparse_operator.Options:
    """What a kernel is told."""
    return {
        "negative_slope": options["negative_slope"],
        "dropout": options["dropout"],
        "seed": seed,
        "return_attention": options["return_attention"],
        "edges": options["edges"],
        "score_bias": options["score_bias"],
    }


def _read_options(
    query: Tensor, key: Tensor, attn: Tensor, options: AttendOptions
) -> AttendOptions:
    """Options whose numbers are floats; checked, and features too."""
    check_projections(query, key, attn=attn)
    return {
        **options,
        "negative_slope": as_slope(options["negative_slope"], largest=largest_in(query.dtype)),
        "dropout": as_dropout(options["dropout"]),
    }


def _select(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    flow: Flow,
    options: AttendOptions,
    marks: Marks | None,
) -> tuple[Attention, "Prepared"]:
    """What serves a call of which nothing is known yet, and what it gets; the rest of it checked."""
    edges, score_bias, backend = options["edges"], options["score_bias"], options["backend"]
    prepared = Prepared.of(query, key, graph, edges, score_bias, flow=flow, backend=backend)
    edge_features, edge_projection = prepared.edges or (None, None)
    kernel = select_kernel(
        prepared.query,
        prepared.key,
        attn,
        prepared.adjacency,
        edge_features=edge_features,
        edge_projection=edge_projection,
        score_bias=prepared.score_bias,
        kernel=options["kernel"],
    ).kernel
    adjacency = prepared.adjacency
    if marks is None:  # of an edge index they are those of its graph
        graph, marks = adjacency, marks_of(query, key, attn, adjacency, flow, options)
    if (
        marks is None
        or type(adjacency) is not Graph
        or not prepared.is_as_given(query, graph, options)
    ):
        return kernel.attention, prepared
    kind = Kind(adjacency, *marks)
    if kernel.bind is not None:
        remember_choice(kind, kernel, dispatch.KERNELS)
    return _bind(kernel, kind, options), prepared


def _choose_again(kind: Kind, options: AttendOptions) -> Attention | None:
    """What serves a call like those of other graphs, chosen as for them; None if there were none."""
    kernel = chosen(kind, dispatch.KERNELS)
    return None if kernel is None else _bind(kernel, kind, options)


def _bind(kernel: dispatch.Kernel, kind: Kind, options: AttendOptions) -> Attention:
    """What serves calls of a kind with a kernel; noted for the next one."""
    attention = kernel.attention
    if has_served(kind.graph):
        check_again(kind.graph)
    if kernel.bind is not None:
        # any seed will do: to draw one here would be to draw two for this call
        seed = torch.zeros((), dtype=torch.int64, device="cpu") if options["dropout"] > 0 else None
        attention = kernel.bind(
            kind.graph, is_differentiated=kind.is_differentiated, **_told(options, seed)
        )
    remember(kind, attention, dispatch.KERNELS)
    return attention


def gatv2_scores(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    graph: object,
    *,
    edge_features: Tensor | None = None,
    edge_projection: Tensor | None = None,
    score_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
) -> Tensor:
    """The scores :math:`e_{ij}` of :func:`gatv2_attention`, before the softmax, with their bias.

    Returns:
        `[*batch, n_edges, n_heads]` in the order of the caller's edges (sparse), or
        `[*batch, n_queries, n_keys, n_heads]` (dense); -inf where a head has no edge.

    Example:
        >>> query, key = torch.tensor([[[1.0]], [[-3.0]]]), torch.tensor([[[2.0]], [[-1.0]]])
        >>> gatv2_scores(query, key, torch.ones(1, 1), torch.tensor([[0, 1, 0], [0, 0, 1]])).squeeze()
        tensor([ 3.0000, -0.2000,  0.0000])
    """
    check_projections(query, key, attn=attn)
    negative_slope = as_slope(negative_slope, largest=largest_in(query.dtype))
    edges = EdgeInputs.join(edge_features, edge_projection)
    prepared = Prepared.of(query, key, graph, edges, score_bias, flow=flow, backend=backend)
    prepared = prepared.without_removed()
    query, key, adjacency, edges = prepared[:4]
    if isinstance(adjacency, Graph):
        scores = sparse_reference.gatv2_scores(
            query, key, attn, adjacency, negative_slope=negative_slope, edges=edges
        )
    else:
        scores = dense_reference.gatv2_scores(
            query, key, attn, adjacency, negative_slope=negative_slope, edges=edges
        )
    scores = prepared.add_bias(scores).to(query.dtype)
    return _as_caller_sees(scores, adjacency)


@overload
def gat_attention(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    graph: object,
    *,
    return_attention: Literal[False] = ...,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def gat_attention(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    graph: object,
    *,
    return_attention: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...
@overload
def gat_attention(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    graph: object,
    *,
    return_attention: bool,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]: ...


def gat_attention(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    graph: object,
    *,
    score_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Static attention of the original GAT, the control of :func:`gatv2_attention`.

    .. math:: e_{ij} = \mathrm{LeakyReLU}(a_1 \cdot g^l_i + a_2 \cdot g^r_j)

    The rest, arguments and results alike, is as in :func:`gatv2_attention`; `attn_query` and
    `attn_key` are :math:`a_1` and :math:`a_2`, each `[n_heads, n_hidden]`. Computed with plain
    PyTorch operations.

    Example:
        >>> query, key, a = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.randn(2, 4)
        >>> gat_attention(query, key, a, a, torch.tensor([[0, 0, 1], [1, 2, 2]])).shape
        torch.Size([3, 2, 4])

    Source: Velickovic et al., "Graph Attention Networks", ICLR 2018, equations 1 to 6.
    """
    dropout = as_dropout(dropout)
    prepared, scores = _gat_scores(
        query,
        key,
        attn_query,
        attn_key,
        graph,
        score_bias,
        negative_slope,
        flow=flow,
        backend=backend,
    )
    seed = as_seed(seed, query.device) if dropout > 0 else None
    if isinstance(prepared.adjacency, Graph):
        out, _, alpha = sparse_reference.attend(
            scores, prepared.key, prepared.adjacency, dropout=dropout, seed=seed
        )
        alpha = prepared.adjacency.in_callers_order(alpha, dim=-2)
    else:
        out, _, alpha = dense_reference.attend(
            scores, prepared.key, prepared.adjacency, dropout=dropout, seed=seed
        )
    out = out.reshape(prepared.out_shape)
    return (out, alpha) if return_attention else out


def gat_scores(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    graph: object,
    *,
    score_bias: Tensor | None = None,
    negative_slope: float = 0.2,
    flow: Flow = "target_to_source",
    backend: Backend = "auto",
) -> Tensor:
    """The scores :math:`e_{ij}` of :func:`gat_attention`, as :func:`gatv2_scores` returns them.

    Example:
        >>> query, key = torch.tensor([[[1.0]], [[-3.0]]]), torch.tensor([[[2.0]], [[-1.0]]])
        >>> one = torch.ones(1, 1)
        >>> gat_scores(query, key, one, one, torch.tensor([[0, 1, 0], [0, 0, 1]])).squeeze()
        tensor([ 3.0000, -0.2000,  0.0000])
    """
    prepared, scores = _gat_scores(
        query,
        key,
        attn_query,
        attn_key,
        graph,
        score_bias,
        negative_slope,
        flow=flow,
        backend=backend,
    )
    return _as_caller_sees(scores.to(query.dtype), prepared.adjacency)


class Prepared(NamedTuple):
    """Features and a graph, in the form that kernels read."""

    query: Tensor
    key: Tensor
    adjacency: Adjacency
    edges: EdgeInputs | None
    score_bias: Tensor | None
    out_shape: torch.Size

    @classmethod
    def of(
        cls,
        query: Tensor,
        key: Tensor,
        graph: object,
        edges: EdgeInputs | None,
        score_bias: Tensor | None,
        *,
        flow: Flow,
        backend: Backend,
    ) -> "Prepared":
        """Bring a caller's graph to the form of a backend, and all the rest to its layout."""
        refuse_tracing()
        check_edge_inputs(edges, query)
        check_score_bias(score_bias, query, query.shape[-2])
        if graph is None:
            graph = all_pairs((query.shape[-3], key.shape[-3]), score_bias, flow)
        batch_shape = common_batch_shape(graph, query.shape[:-3])
        if edges is not None:
            batch_shape = broadcast_batch(edges.features, graph, batch_shape)
        if score_bias is not None:
            batch_shape = broadcast_batch(score_bias, graph, batch_shape, "score_bias")
        n_queries, n_heads, n_hidden = query.shape[-3:]
        sizes = Sizes(n_queries, key.shape[-3], n_heads, batch_shape, query.device)
        has_rows = edges is not None or score_bias is not None
        if has_rows and not is_mask(graph):
            graph = as_adjacency(graph, sizes, flow=flow, backend="sparse")  # its order of edges
        adjacency = as_adjacency(graph, sizes, flow=flow, backend=backend)
        if edges is not None:
            features = as_backend_reads(edges.features, graph, adjacency, sizes, flow)
            edges = EdgeInputs(features, edges.projection)
        if score_bias is not None:
            score_bias = as_backend_reads(score_bias, graph, adjacency, sizes, flow, "score_bias")
        if batch_shape != query.shape[:-3]:
            query = query.expand(*batch_shape, *query.shape[-3:])
            key = key.expand(*batch_shape, *key.shape[-3:])
        out_shape = query.shape
        if isinstance(adjacency, Graph) and adjacency.batch_dims:
            query, key = (x.reshape(-1, n_heads, n_hidden) for x in (query, key))
        return cls(query, key, adjacency, edges, score_bias, out_shape)

    def is_as_given(self, query: Tensor, graph: object, options: AttendOptions) -> bool:
        """Whether kernels read the caller's own graph and tensors."""
        features, own = (x and x.features for x in (options["edges"], self.edges))
        return (
            self.query is query
            and self.adjacency is graph
            and features is own
            and self.score_bias is options["score_bias"]
        )

    def without_removed(self) -> "Prepared":
        """The same without the edges that a bias of -inf takes from a head; for the references."""
        adjacency = self.adjacency
        if isinstance(adjacency, Graph):
            return self._replace(
                adjacency=sparse_reference.without_removed(adjacency, self.score_bias)
            )
        return self._replace(adjacency=dense_reference.without_removed(adjacency, self.score_bias))

    def add_bias(self, scores: Tensor) -> Tensor:
        """Scores and their bias; what that removes is taken out before, by `without_removed`."""
        if isinstance(self.adjacency, Graph):
            return sparse_reference.add_bias(scores, self.score_bias, self.adjacency)
        return dense_reference.add_bias(scores, self.score_bias, self.adjacency)


def _gat_scores(
    query: Tensor,
    key: Tensor,
    attn_query: Tensor,
    attn_key: Tensor,
    graph: object,
    score_bias: Tensor | None,
    negative_slope: float,
    *,
    flow: Flow,
    backend: Backend,
) -> tuple[Prepared, Tensor]:
    check_projections(query, key, attn_query=attn_query, attn_key=attn_key)
    negative_slope = as_slope(negative_slope, largest=largest_in(query.dtype))
    prepared = Prepared.of(query, key, graph, None, score_bias, flow=flow, backend=backend)
    prepared = prepared.without_removed()
    if isinstance(prepared.adjacency, Graph):
        scores = sparse_reference.gat_scores(
            prepared.query,
            prepared.key,
            attn_query,
            attn_key,
            prepared.adjacency,
            negative_slope=negative_slope,
        )
    else:
        scores = dense_reference.gat_scores(
            prepared.query,
            prepared.key,
            attn_query,
            attn_key,
            prepared.adjacency,
            negative_slope=negative_slope,
        )
    return prepared, prepared.add_bias(scores)


def _as_caller_sees(scores: Tensor, adjacency: Adjacency) -> Tensor:
    """Scores in the order of the caller's edges, -inf where a head has no edge."""
    if not isinstance(adjacency, Graph):
        return scores.masked_fill(~adjacency, -math.inf)
    if adjacency.head_mask is not None:
        scores = scores.masked_fill(~adjacency.head_mask, -math.inf)
    return adjacency.in_callers_order(scores, dim=-2)
