"""Self-loops: each node attends to itself, once, whatever self-loops there were.

As in PyTorch Geometric: those that there are give way, with their features, and the features of the new
ones are given or come from those of the node's other edges. So does a bias of their scores.
"""

from numbers import Real

import torch
from torch import Tensor

from gatv2.graph.adjacency import Adjacency
from gatv2.graph.graph import Graph, SelfLoops, loops_at_first
from gatv2.graph.part import Loops, Part
from gatv2.graph.sort import fill_features
from gatv2.options import Reduction, check_has_self_loops, check_reduction
from gatv2.precision import summed_in, without_autocast
from gatv2.torch_internals import refuse_mapped

FillValue = float | Tensor | Reduction
"""Features of a self-loop: a number, `[D]`, or how those of the node's other edges are reduced."""
_NEUTRAL = {"mul": 1.0, "min": torch.inf, "max": -torch.inf}


def check_fill_value(fill_value: object, name: str = "fill_value") -> None:
    """Raise a ValueError for an unknown reduction, a TypeError for what is no fill value."""
    if isinstance(fill_value, str):
        check_reduction(fill_value, name)
    elif not isinstance(fill_value, (Real, Tensor)):  # NumPy's numbers too
        raise TypeError(
            f"`{name}` must be a number, a tensor or the name of a reduction; "
            f"got {type(fill_value).__name__}"
        )


def add_self_loops(
    adjacency: Adjacency | Part,
    edge_features: Tensor | None = None,
    fill_value: FillValue = "mean",
    *,
    is_block: bool = False,
    is_bias: bool = False,
) -> tuple[Adjacency | Part, Tensor | None]:
    """A graph or mask with one self-loop at each node, and edge features that fit it.

    Args:
        adjacency: a `Graph` or one process's part of one, whose self-loops are made once and kept with
            it, or a bool mask.
        edge_features: `[*batch, n_edges, D]` in the caller's order of the graph's edges, or
            `[*batch, n, n, D]` with a mask; None for edges without features.
        fill_value: features of the self-loops: a number, `[D]`, or a reduction of the features of the
            edges by which a node attends to others: "mean", "sum" ("add"), "min", "max" or "mul". For a
            node without any they are zero, with "mul" one.
        is_block: whether `adjacency`, the `Graph` of a sampled block, has its queries as the first of
            its keys (or the other way about): these have the self-loops then.
        is_bias: whether `edge_features` is a `score_bias`, with 1 or n_heads in the place of D. An edge
            whose bias is -inf is none for that head, and is not reduced.

    Returns:
        The graph, as `Graph.add_self_loops` numbers its edges (a part has its own nodes' self-loops,
        behind its other edges), or the mask; and the features.

    Raises:
        ValueError: there are not as many queries as keys, or sizes do not fit.

    Example:
        >>> from gatv2 import Graph
        >>> graph = Graph.from_edge_index(torch.tensor([[0, 1, 0], [1, 1, 2]]), n_nodes=3)
        >>> graph, features = add_self_loops(graph, torch.tensor([[1.0], [2.0], [5.0]]))
        >>> graph.edge_index
        tensor([[0, 0, 0, 1, 2],
                [1, 2, 0, 1, 2]])
        >>> features.squeeze(1)
        tensor([1., 5., 3., 0., 0.])

    Source: torch_geometric.utils.add_self_loops, after remove_self_loops.
    """
    if not isinstance(adjacency, Tensor):
        loops: SelfLoops | Loops[Part]
        if is_block and isinstance(adjacency, Graph):
            loops = _loops_of_block(adjacency)
        else:
            loops = adjacency.self_loops
        if edge_features is None:
            return loops.graph, None
        _check_rows(edge_features, -2, adjacency.n_edges, is_bias)
        return loops.graph, _with_filled(loops, edge_features, fill_value, is_bias)
    n_queries, n_keys = adjacency.shape[-3:-1]
    check_has_self_loops(n_queries, n_keys)
    loop = torch.eye(n_queries, dtype=torch.bool, device=adjacency.device).unsqueeze(-1)
    if edge_features is None:
        return adjacency | loop, None
    _check_rows(edge_features, -3, n_queries, is_bias)
    _check_rows(edge_features, -2, n_keys, is_bias)
    if isinstance(fill_value, str):
        is_other = adjacency.any(-1, keepdim=True) & ~loop
        if is_bias:
            is_other = is_other & (edge_features != -torch.inf)
        filled = _reduce_masked(edge_features, is_other, fill_value).unsqueeze(-2)
    else:
        filled = _as_features(fill_value, edge_features, is_bias)
    return adjacency | loop, torch.where(loop, filled, edge_features)


def _loops_of_block(graph: Graph) -> SelfLoops:
    """As `Graph.self_loops`, for those nodes that are queries and keys."""
    refuse_mapped(graph.key_index, "add the self-loops before vmap")
    return loops_at_first(graph, min(graph.n_queries, graph.n_keys))


def _with_filled(
    loops: SelfLoops | Loops[Part], values: Tensor, fill_value: FillValue, is_bias: bool
) -> Tensor:
    n_nodes = loops.graph.n_edges - loops.kept.shape[0]  # len() would be a constant in an export
    filling: Tensor | Reduction
    if isinstance(fill_value, str):
        filling = "sum" if fill_value == "add" else fill_value
    else:
        filling = _as_features(fill_value, values, is_bias).expand(values.shape[-1])
    if isinstance(loops.graph, Graph) and not is_bias:
        pointers = loops.graph.query_ptr, loops.graph.edge_id
        of_all = fill_features(values, loops.kept, *pointers, n_nodes, filling)
        if of_all is not None:
            return of_all
    kept = values.index_select(-2, loops.kept)
    shape = *kept.shape[:-2], n_nodes, kept.shape[-1]
    if isinstance(filling, str):
        n_rows, graph = n_nodes, loops.graph
        if isinstance(graph, Graph) and graph.n_queries > graph.n_keys:
            n_rows = graph.n_queries  # of a block, of which not every query has a loop
        rows = *shape[:-2], n_rows, shape[-1]
        is_used = kept != -torch.inf if is_bias else None
        filled = _reduce_by_query(kept, loops.query, rows, filling, is_used)
        filled = filled.narrow(-2, 0, n_nodes)
    else:
        filled = filling.expand(shape)
    # autocast's `cat` refuses one kind of half precision in the other's
    with without_autocast(kept.device):
        return torch.cat((kept, filled), dim=-2)


def _as_features(fill_value: float | Tensor, edge_features: Tensor, is_bias: bool) -> Tensor:
    n_features = edge_features.shape[-1]
    filled = torch.as_tensor(fill_value, dtype=edge_features.dtype, device=edge_features.device)
    if filled.shape not in ((), (1,), (n_features,)):
        raise ValueError(
            f"`{'loop_bias' if is_bias else 'fill_value'}` must be a number or have shape "
            f"({n_features},), as `{_name(is_bias)}` has {n_features}; got {tuple(filled.shape)}"
        )
    return filled


def _reduce_by_query(
    values: Tensor, query: Tensor, shape: tuple[int, ...], how: str, is_used: Tensor | None
) -> Tensor:
    """Values of edges, those alone that are used if not all are, reduced to rows of their queries."""
    dtype, values = values.dtype, values.to(summed_in(values))
    if is_used is not None:
        values = values.where(is_used, _NEUTRAL.get(how, 0.0))
    if how in ("sum", "mean"):
        total = values.new_zeros(shape).index_add(-2, query, values)
        if how == "mean":
            total = total / _count_by_query(values, query, shape, is_used).clamp(min=1)
        return total.to(dtype)
    start = values.new_full(shape, _NEUTRAL[how])  # an extreme shares its gradient with its equals
    name = {"min": "amin", "max": "amax", "mul": "prod"}[how]
    index = query.unsqueeze(-1).expand(values.shape)
    reduced = start.scatter_reduce(-2, index, values, name, include_self=how == "mul")
    if how != "mul":
        reduced = reduced.where(_count_by_query(values, query, shape, is_used) > 0, 0.0)
    return reduced.to(dtype)


def _count_by_query(
    values: Tensor, query: Tensor, shape: tuple[int, ...], is_used: Tensor | None
) -> Tensor:
    if is_used is None:
        ones = values.new_ones(query.shape[0])
        return values.new_zeros(shape[-2]).index_add(0, query, ones).unsqueeze(-1)
    return values.new_zeros(shape).index_add(-2, query, is_used.to(values.dtype))


def _reduce_masked(values: Tensor, is_other: Tensor, how: str) -> Tensor:
    if not is_other.shape[-2]:
        return values.sum(-2)
    count, dtype = is_other.sum(-2), values.dtype
    others = torch.where(is_other, values.to(summed_in(values)), _NEUTRAL.get(how, 0.0))
    if how == "mul":
        return others.prod(-2).to(dtype)
    if how in ("min", "max"):
        extreme = others.amin(-2) if how == "min" else others.amax(-2)
        return torch.where(count > 0, extreme, 0.0).to(dtype)
    total = others.sum(-2)
    return (total / count.clamp(min=1) if how == "mean" else total).to(dtype)


def _check_rows(edge_features: Tensor, dim: int, expected: int, is_bias: bool) -> None:
    if edge_features.ndim < -dim or edge_features.shape[dim] != expected:
        raise ValueError(
            f"`{_name(is_bias)}` must have {expected} as dimension {dim}, to be laid out as the graph; "
            f"got {tuple(edge_features.shape)}"
        )


def _name(is_bias: bool) -> str:
    return "score_bias" if is_bias else "edge_features"
