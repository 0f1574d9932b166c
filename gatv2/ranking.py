"""Is attention static or dynamic? Measured on the scores of any attention layer.

Needs SciPy: `pip install gatv2-layers[scipy]`.

Attention is static if one order of all keys explains the scores of every query: no query scores key
j strictly above key k where the order has k above j. GAT is always static, whatever its weights
(Theorem 1 of the paper): LeakyReLU(s_i + d_j) rises with d_j for every query i. GATv2 is not.

This is decided exactly, on any graph, in time O(edges). Each query chains its keys by strictly
increasing score; the order exists if and only if the union of all chains has no cycle. Comparing
queries two by two is not enough: with the rankings 1 < 2, 2 < 3 and 3 < 1 no two queries disagree
about any pair of keys, and yet no single order explains all three.

Source: Brody, Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022,
arXiv:2105.14491, section 3. Definition 3.1 there asks for one key that every query scores highest;
the whole order, measured here, is what the proof of Theorem 1 shows.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import kendalltau

from gatv2.graph import Graph
from gatv2.graph.adjacency import Sizes, as_adjacency, common_batch_shape
from gatv2.layer import GraphAttention
from gatv2.numba.memory import Array as NumPyArray
from gatv2.options import Flow, as_int, by_role, check_flow

ArrayLike = NumPyArray | torch.Tensor
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeadRanking:
    """How one attention head ranks the keys.

    Attributes:
        is_static: one order of all keys explains every query's scores.
        n_rankings: how many orders of the keys explain the compared queries, each query by one of
            them. Found greedily; on a complete graph without ties, the number of distinct rankings.
        correlation: mean Kendall rank correlation (tau-b) of the compared pairs of queries over the
            keys they share: 1 if all rank alike. NaN if there is nothing to compare.
        reversed_pairs: share of the compared pairs of queries that reverse at least one pair of
            keys. NaN if there is nothing to compare.
        n_queries: compared queries: all, or a sample.
        n_pairs: compared pairs of queries, those that share two keys or more.
    """

    is_static: bool
    n_rankings: int
    correlation: float
    reversed_pairs: float
    n_queries: int
    n_pairs: int


@dataclass(frozen=True)
class Ranking:
    """How a layer ranks the keys: a verdict and numbers for each head. `print` it for a table.

    Attributes:
        heads: one entry a head.
        n_queries: queries with at least one key.
        n_keys: keys with at least one query.
    """

    heads: tuple[HeadRanking, ...]
    n_queries: int
    n_keys: int

    @property
    def is_static(self) -> bool:
        """Every head is static."""
        return all(head.is_static for head in self.heads)

    def __str__(self) -> str:
        lines = [
            f"{_verdict(self.is_static)} attention: {self.n_queries} queries, {self.n_keys} keys",
            "head  attention  rankings  correlation  reversed pairs",
        ]
        for number, head in enumerate(self.heads):
            rankings = f"{head.n_rankings} of {head.n_queries}"
            lines.append(
                f"{number:4}  {_verdict(head.is_static):>9}  {rankings:>8}  "
                f"{_figure(head.correlation, '.3f'):>11}  {_figure(head.reversed_pairs, '.1%'):>14}"
            )
        return "\n".join(lines)


@torch.no_grad()
def measure_ranking(
    layer: GraphAttention,
    h: torch.Tensor,
    adj_mat: object,
    *,
    max_queries: int = 64,
    seed: int = 0,
) -> Ranking:
    """Measure how a layer ranks the keys of each query, by its scores before the softmax.

    Args:
        layer: a `GraphAttentionV2Layer` or a `GraphAttentionLayer`.
        h: `[n_nodes, in_features]`, one graph's features.
        adj_mat: the graph in any form that the layer takes.
        max_queries: see :func:`measure_scores`.
        seed: see :func:`measure_scores`.

    Raises:
        TypeError: `layer` is none of ours, or `h` is a pair.
        ValueError: `h` or the graph has batch dimensions: each element has keys, and a ranking, of its
            own; or the layer has edge features.

    Example:
        >>> from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer
        >>> _ = torch.manual_seed(0)
        >>> h, everyone = torch.randn(6, 4), torch.ones(6, 6, 1, dtype=torch.bool)
        >>> measure_ranking(GraphAttentionLayer(4, 8, n_heads=2), h, everyone).is_static
        True
        >>> print(measure_ranking(GraphAttentionV2Layer(4, 8, n_heads=2), h, everyone))
        dynamic attention: 6 queries, 6 keys
        head  attention  rankings  correlation  reversed pairs
           0    dynamic    2 of 6        0.920           60.0%
           1    dynamic    3 of 6        0.884           73.3%
    """
    if not isinstance(layer, GraphAttention):
        raise TypeError(
            "`layer` must be a GraphAttentionV2Layer or a GraphAttentionLayer; got "
            f"{type(layer).__name__}: convert it with `gatv2.convert`, or pass its scores or "
            "coefficients to `measure_scores`"
        )
    if not isinstance(h, torch.Tensor):
        raise TypeError(
            f"`h` must be a torch.Tensor, the features of one set of nodes; got {type(h).__name__}: for "
            "a matrix of SciPy, or for a bipartite graph pass `layer.attention_scores(h, adj_mat)` to "
            "`measure_scores`"
        )
    if layer.edge_dim is not None:
        raise ValueError(
            f"the layer has edge_dim={layer.edge_dim}, and edges have no features here: pass "
            "`layer.attention_scores(h, adj_mat, edge_features=...)` to `measure_scores`, and the edges"
        )
    batch_shape = common_batch_shape(adj_mat, h.shape[:-2])
    if h.ndim != 2 or batch_shape:
        raise ValueError(
            f"`h` must have shape (n_nodes, in_features), and the graph no batch; got {tuple(h.shape)} "
            f"and a batch of shape {tuple(batch_shape)}: measure one element of a batch at a time"
        )
    scores = layer.attention_scores(h, adj_mat)
    if scores.ndim == 3:
        return measure_scores(scores, max_queries=max_queries, seed=seed)
    sizes = Sizes(len(h), len(h), layer.n_heads, torch.Size(), h.device)
    graph = as_adjacency(adj_mat, sizes, flow=layer.flow, backend="sparse")
    assert isinstance(graph, Graph)
    if layer.add_self_loops:
        graph = graph.add_self_loops()
    return measure_scores(scores, graph.edge_index, max_queries=max_queries, seed=seed)


def measure_scores(
    scores: ArrayLike,
    edge_index: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    flow: Flow = "target_to_source",
    rtol: float | None = None,
    max_queries: int = 64,
    seed: int = 0,
) -> Ranking:
    """Measure how attention scores, of whatever layer, rank the keys.

    Two scores of a query count as tied if they differ by no more than `rtol` times the query's
    largest absolute score, so that rounding is not taken for a ranking. Attention coefficients
    after the softmax rank like the scores before it, as far as they do not underflow.

    Args:
        scores: with an `edge_index`, `[n_edges]` or `[n_edges, n_heads]`; without one,
            `[n_queries, n_keys]` or `[n_queries, n_keys, n_heads]`. -inf where there is no edge.
        edge_index: `[2, n_edges]`; row 0 holds queries and row 1 holds keys.
        mask: `[n_queries, n_keys]` or `[n_queries, n_keys, 1 or n_heads]`, non-zero where there is
            an edge; for dense scores only.
        flow: "source_to_target", PyTorch Geometric's default, reads row 0 of `edge_index` as keys
            and row 1 as queries.
        rtol: the relative tolerance below which scores are tied. By default 16 times the precision
            of the scores' dtype.
        max_queries: if there are more queries, `n_rankings`, `correlation` and `reversed_pairs` are
            measured on a sample of this size, drawn so that queries have others that share
            their keys. `is_static` always speaks of all queries.
        seed: of the sample.

    Raises:
        TypeError: `max_queries` or `seed` is not an integer, or scores are not real numbers.
        ValueError: shapes do not fit together, a score is NaN or +inf, parallel edges have different
            scores, or `seed` is negative.

    Example:
        Two queries that agree on two keys, and two that do not:

        >>> measure_scores(np.array([[0.1, 0.7], [3.0, 4.0]])).is_static
        True
        >>> print(measure_scores(np.array([[0.1, 0.7], [4.0, 3.0]])))
        dynamic attention: 2 queries, 2 keys
        head  attention  rankings  correlation  reversed pairs
           0    dynamic    2 of 2       -1.000          100.0%

        For a layer of PyTorch Geometric, pass what it returns with `return_attention_weights=True`:
        `_, (edges, alpha) = conv(h, edge_index, return_attention_weights=True)`, and then
        `measure_scores(alpha, edges, flow="source_to_target")`.
    """
    check_flow(flow)
    if as_int(max_queries, "max_queries") < 2:
        raise ValueError(f"`max_queries` must be at least 2, a pair to compare; got {max_queries}")
    if rtol is not None and not 0 <= rtol < math.inf:
        raise ValueError(f"`rtol` must be a finite number, 0 or more; got {rtol}")
    if as_int(seed, "seed") < 0:
        raise ValueError(f"`seed` must be 0 or more; got {seed}")
    values, precision = _to_float64(scores, is_exact=not rtol)
    if edge_index is None:
        query, key, values = _from_dense(values, mask)
    else:
        if mask is not None:
            raise ValueError("`mask` goes with dense scores: pass `edge_index` or `mask`, not both")
        query, key, values = _from_edges(values, _to_numpy(edge_index), flow)
    tolerance = 16 * precision if rtol is None else rtol
    chains = [_chain(query, key, column, tolerance) for column in values.T]
    has_edge = (values > -np.inf).any(axis=1)
    return Ranking(
        heads=tuple(_measure_head(chain, max_queries, seed) for chain in chains),
        n_queries=len(np.unique(query[has_edge])),
        n_keys=len(np.unique(key[has_edge])),
    )


class _Chains(NamedTuple):
    """One head's edges, sorted by query and score; equal scores of a query share a level."""

    query: Ints
    key: Ints
    level: Ints  # numbered through all queries
    is_lowest: npt.NDArray[np.bool_]  # the edge is in its query's lowest level

    def select(self, edges: Ints | slice) -> "_Chains":
        return _Chains(self.query[edges], self.key[edges], self.level[edges], self.is_lowest[edges])

    def of(self, query: int) -> "_Chains":
        return self.select(slice(*np.searchsorted(self.query, (query, query + 1))))


def _chain(query: Ints, key: Ints, score: Floats, rtol: float) -> _Chains:
    is_edge = score > -np.inf
    query, key, score = query[is_edge], key[is_edge], score[is_edge]
    order = np.lexsort((score, query))
    query, key, score = query[order], key[order], score[order]
    queries, row = np.unique(query, return_inverse=True)  # their numbers may be of any size
    tolerance = np.zeros(len(queries))
    np.maximum.at(tolerance, row, rtol * np.abs(score))
    same_query = query[1:] == query[:-1]
    with np.errstate(over="ignore"):  # a gap that overflows is a gap
        same_level = same_query & (np.diff(score) <= tolerance[row[1:]])
    level = np.concatenate((np.zeros(min(1, len(query)), np.int64), np.cumsum(~same_level)))
    first_edge = np.searchsorted(query, query)
    chains = _Chains(query, key, level, level == level[first_edge])
    return _merge_parallel(chains)


def _merge_parallel(chains: _Chains) -> _Chains:
    order = np.lexsort((chains.key, chains.query))
    query, key, level, _ = chains.select(order)
    is_parallel = (query[1:] == query[:-1]) & (key[1:] == key[:-1])
    differs = is_parallel & (level[1:] != level[:-1])
    if differs.any():
        edge = int(differs.argmax())
        raise ValueError(
            f"parallel edges from query {query[edge]} to key {key[edge]} have different scores, "
            "which no ranking of keys explains: pass one score for each pair of query and key"
        )
    is_first = np.concatenate((np.ones(min(1, len(order)), np.bool_), ~is_parallel))
    return chains.select(np.sort(order[is_first]))


def _is_acyclic(chains: Iterable[_Chains]) -> bool:
    """Whether one order of the keys explains all chains.

    Nodes are keys and levels. Each key points to its level and each level to the keys of the next
    level of the same query, so a level with many keys costs their number, not its square.
    """
    _, key, level, is_lowest = (np.concatenate(arrays) for arrays in zip(*chains, strict=True))
    keys, key = np.unique(key, return_inverse=True)
    level_node = np.unique(level, return_inverse=True)[1] + len(keys)
    tail = np.concatenate((key, level_node[~is_lowest] - 1))
    head = np.concatenate((level_node, key[~is_lowest]))
    n_nodes = max(tail.max(initial=-1), head.max(initial=-1)) + 1
    arcs = csr_array((np.ones(len(tail), np.bool_), (tail, head)), shape=(n_nodes, n_nodes))
    n_components, _ = connected_components(arcs, connection="strong")
    return bool(n_components == n_nodes)


def _measure_head(chains: _Chains, max_queries: int, seed: int) -> HeadRanking:
    queries = _choose_queries(chains, max_queries, np.random.default_rng(seed))
    compared = [chains.of(query) for query in queries]
    groups: list[list[_Chains]] = []  # queries that one order explains
    for chain in compared:
        fitting = (group for group in groups if _is_acyclic([*group, chain]))
        group = next(fitting, None)
        if group is None:
            groups.append([chain])
        else:
            group.append(chain)
    comparisons = [
        comparison
        for one, other in combinations(compared, 2)
        if (comparison := _compare(one, other)) is not None
    ]
    correlations = [tau for tau, _ in comparisons if not math.isnan(tau)]
    return HeadRanking(
        is_static=_is_acyclic([chains]),
        n_rankings=len(groups),
        correlation=float(np.mean(correlations)) if correlations else math.nan,
        reversed_pairs=float(np.mean([r for _, r in comparisons])) if comparisons else math.nan,
        n_queries=len(compared),
        n_pairs=len(comparisons),
    )


def _choose_queries(chains: _Chains, max_queries: int, rng: np.random.Generator) -> list[int]:
    """All queries, or a sample in which each brings along one that shares two of its keys."""
    queries, row = np.unique(chains.query, return_inverse=True)
    if len(queries) <= max_queries:
        return [int(query) for query in queries]
    column = np.unique(chains.key, return_inverse=True)[1]
    edges = csr_array((np.ones(len(row), np.int64), (row, column)))
    by_key = edges.T.tocsr()
    chosen: dict[int, None] = {}  # an ordered set
    for query in rng.permutation(len(queries)):
        n_shared = edges[[query]] @ by_key
        partners = n_shared.indices[(n_shared.data >= 2) & (n_shared.indices != query)]
        partner = rng.choice(partners) if len(partners) else query
        chosen |= {int(query): None, int(partner): None}
        if len(chosen) >= max_queries:
            break
    return [int(queries[query]) for query in list(chosen)[:max_queries]]


def _compare(one: _Chains, other: _Chains) -> tuple[float, bool] | None:
    """Kendall's tau over the shared keys, and whether two of them are reversed."""
    shared, at_one, at_other = np.intersect1d(
        one.key, other.key, assume_unique=True, return_indices=True
    )
    if len(shared) < 2:
        return None
    a, b = one.level[at_one], other.level[at_other]
    tau = float(kendalltau(a, b).statistic)
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    n_below = np.searchsorted(a, a)  # shared keys in lower levels of `one`
    highest = np.maximum.accumulate(b)
    has_below = n_below > 0
    is_reversed = highest[n_below[has_below] - 1] > b[has_below]
    return tau, bool(is_reversed.any())


def _to_numpy(array: ArrayLike) -> NumPyArray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def _to_float64(scores: ArrayLike, *, is_exact: bool) -> tuple[Floats, float]:
    """The scores in float64, which keeps their order, and the precision of their own dtype.

    Exact integers, of which only equal ones are tied, are numbered in their order: above 2**53 float64
    takes some for one.
    """
    if isinstance(scores, torch.Tensor) and scores.is_floating_point():
        precision = torch.finfo(scores.dtype).eps
        return scores.detach().cpu().to(torch.float64).numpy(), precision
    scores = _to_numpy(scores)
    _require_real(scores.dtype.kind in "biuf", scores.dtype)
    if scores.dtype.kind == "f":
        finest = float(np.finfo(np.float64).eps)  # which a longer float is rounded to
        return scores.astype(np.float64), max(float(np.finfo(scores.dtype).eps), finest)
    if is_exact:
        scores = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    return scores.astype(np.float64), 0.0


def _require_real(is_real: bool, dtype: object) -> None:
    if not is_real:
        raise TypeError(f"`scores` must be real numbers, which have an order; got {dtype}")


def _from_dense(scores: Floats, mask: ArrayLike | None) -> tuple[Ints, Ints, Floats]:
    if scores.ndim not in (2, 3):
        raise ValueError(
            "without `edge_index`, `scores` must have shape (n_queries, n_keys) or "
            f"(n_queries, n_keys, n_heads); got {scores.shape}"
        )
    scores = scores[:, :, None] if scores.ndim == 2 else scores
    if mask is not None:
        edges = _to_numpy(mask) != 0
        shapes = (scores.shape[:2], (*scores.shape[:2], 1), scores.shape)
        if edges.shape not in shapes:
            raise ValueError(
                f"`mask` must have shape {shapes[0]}, {shapes[1]} or {shapes[2]}; got {edges.shape}"
            )
        scores = np.where(edges[:, :, None] if edges.ndim == 2 else edges, scores, -np.inf)
    query, key = (scores != -np.inf).any(axis=2).nonzero()
    return _check_scores(query, key, scores[query, key])


def _from_edges(scores: Floats, edge_index: NumPyArray, flow: Flow) -> tuple[Ints, Ints, Floats]:
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype.kind not in "iu":
        raise ValueError(
            "`edge_index` must hold integers and have shape (2, n_edges); "
            f"got {edge_index.dtype} with shape {edge_index.shape}"
        )
    n_edges = edge_index.shape[1]
    if scores.ndim not in (1, 2) or len(scores) != n_edges:
        raise ValueError(
            f"with an `edge_index` of {n_edges} edges, `scores` must have shape ({n_edges},) or "
            f"({n_edges}, n_heads); got {scores.shape}"
        )
    if edge_index.min(initial=0) < 0:
        raise ValueError(f"`edge_index` must not be negative; got {edge_index.min()}")
    query, key = by_role(edge_index.astype(np.int64), flow)
    return _check_scores(query, key, scores[:, None] if scores.ndim == 1 else scores)


def _check_scores(query: Ints, key: Ints, scores: Floats) -> tuple[Ints, Ints, Floats]:
    wrong = np.argwhere(np.isnan(scores) | (scores == np.inf))
    if len(wrong):
        edge, head = wrong[0]
        raise ValueError(
            "scores must be finite, or -inf where there is no edge; got "
            f"{scores[edge, head]} for query {query[edge]}, key {key[edge]}, head {head}"
        )
    return query, key, scores


def _verdict(is_static: bool) -> str:
    return "static" if is_static else "dynamic"


def _figure(value: float, spec: str) -> str:
    return "n/a" if math.isnan(value) else format(value, spec)
