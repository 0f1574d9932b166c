"""The fused forward pass of a strip of queries; see `gatv2.numba.scores` for how rows are cut.

Scores of a block of edges, their softmax, and the weighted sums while the block's keys are still in
cache; blocks of one query are joined as in an online softmax.
"""

import numpy as np

from gatv2.numba.arguments import (
    Block,
    Buffers,
    EdgeFeatures,
    EdgeList,
    Floats,
    HeadMask,
    Index,
    Integers,
    Layout,
    NodeIds,
    Place,
    Problem,
    Results,
    Strip,
    Vector,
    VectorClasses,
)
from gatv2.numba.compile import inline
from gatv2.numba.exp import exp
from gatv2.numba.head_mask import has_unused
from gatv2.numba.log import log
from gatv2.numba.rows import block_of, column_of, heads_at, n_blocks_of, part_of, place_in
from gatv2.numba.scores import apply_dropout, score_block
from gatv2.numba.simd import element, expand, fma, has_nan, load, repeat, select, splat, store


@inline
def forward_strip(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures | None,
    node_ids: NodeIds | None,
    strip: Strip,
    ptr: Integers | None,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    buffers: Buffers,
    results: Results,
) -> None:
    """Attention of queries: their rows of `out`, log-sum-exp, alpha."""
    heads, scores, weights = vectors.heads, buffers.scores, buffers.scores
    if problem.dropout.least_word > 0:
        weights = buffers.d_scores
    for group in range(problem.layout.n_groups):
        for i in range(n_blocks_of(strip)):
            block = block_of(strip, group, i)
            subtracted = splat(heads, 0.0)
            for k in range(strip.n_queries):
                place = place_in(strip, ptr, node_ids, k)
                part = part_of(block, place)
                subtracted = _score(
                    vectors, problem, edges, place, edge_list, head_mask, part, buffers, results
                )
                if strip.n_queries > 1:
                    _subtract(vectors, part, scores, subtracted)
                    subtracted = splat(heads, 0.0)
            _exponentials(vectors, block, scores, subtracted)
            apply_dropout(
                vectors, problem, node_ids, strip, ptr, edge_list.key, block, buffers, scores
            )
            for k in range(strip.n_queries):
                place = place_in(strip, ptr, node_ids, k)
                part = part_of(block, place)
                _add_values(
                    vectors, problem, place, edge_list, head_mask, part, scores, weights, results
                )


@inline
def _score(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures | None,
    place: Place,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    block: Block,
    buffers: Buffers,
    results: Results,
) -> Vector:
    """Write a query's scores; return what is to be subtracted from them, its largest so far."""
    heads, layout = vectors.heads, problem.layout
    lowest, zero = splat(heads, -np.inf), splat(heads, 0.0)
    at = heads_at(vectors, layout, place.row, block.group)
    before, total = lowest, zero
    if block.begin > place.start:
        before, total = load(heads, results.lse, at), load(heads, results.total, at)
    largest = score_block(
        vectors,
        problem,
        edges,
        place,
        edge_list,
        head_mask,
        block,
        before,
        buffers,
        None,
        None,
        None,
    )
    subtracted = select(largest > lowest, largest, zero)  # zero for a head without edges
    if block.begin > place.start:
        rescale = exp(before - subtracted)
        total = total * rescale
        _rescale(vectors, layout, place, block.group, rescale, results.out)
    store(results.lse, at, largest)
    store(results.total, at, total)
    _keep_scores(vectors, problem, place, block, buffers.scores, results.alpha)
    return subtracted


@inline
def _rescale(
    vectors: VectorClasses,
    layout: Layout,
    place: Place,
    group: Index,
    rescale: Vector,
    out: Floats,
) -> None:
    """Multiply what was added to a row of `out` so far."""
    for part in range(layout.span):
        at = column_of(vectors, layout, place.row, group, part)
        store(out, at, load(vectors.tile, out, at) * expand(vectors.tile, rescale))


@inline
def _keep_scores(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    block: Block,
    scores: Floats,
    alpha: Floats,
) -> None:
    """Copy scores to where alpha will be, if anybody wants it."""
    layout = problem.layout
    if alpha.size > 0:
        for e in range(block.begin, block.end):
            s = load(vectors.heads, scores, (e - block.first) * vectors.heads.lanes)
            store(alpha, heads_at(vectors, layout, place.first_edge + e, block.group), s)


@inline
def _subtract(vectors: VectorClasses, block: Block, scores: Floats, subtracted: Vector) -> None:
    """Subtract a query's largest score from all."""
    heads = vectors.heads
    for e in range(block.begin, block.end):
        at = (e - block.first) * heads.lanes
        store(scores, at, load(heads, scores, at) - subtracted)


@inline
def _exponentials(vectors: VectorClasses, block: Block, scores: Floats, subtracted: Vector) -> None:
    """Replace a block's scores by the exponentials of what is left of them."""
    flat, n = vectors.flat, (block.end - block.begin) * vectors.heads.lanes
    store(scores, n, splat(flat, -np.inf))
    subtracted_flat = repeat(flat, subtracted)
    for at in range(0, n, flat.lanes):
        store(scores, at, exp(load(flat, scores, at) - subtracted_flat))


@inline
def _add_values(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    block: Block,
    exponentials: Floats,
    weights: Floats,
    results: Results,
) -> None:
    """Add the keys of a block, weighted, to the query's row of `out`; the last one makes it a mean."""
    tile, heads, layout = vectors.tile, vectors.heads, problem.layout
    out, group, nothing = results.out, block.group, splat(tile, 0.0)
    at, is_guarded = heads_at(vectors, layout, place.row, group), has_unused(head_mask)
    before, scale = load(heads, results.total, at), splat(heads, 1.0)
    total_p, is_last = before, block.end == place.stop
    for part in range(layout.span):
        at_out = column_of(vectors, layout, place.row, group, part)
        # asked once a block: a loop that asked it would be slower, whatever the answer
        total, sum_p = nothing, before
        if not is_guarded:
            total, sum_p = _weigh(
                vectors, problem, place, edge_list, block, part, exponentials, weights, None
            )
        if is_guarded or has_nan(total):  # of a key without weight that is infinite
            total, sum_p = _weigh(
                vectors, problem, place, edge_list, block, part, exponentials, weights, nothing
            )
        total_p = before + sum_p
        if is_last:
            scale = select(total_p > splat(heads, 0.0), splat(heads, 1.0) / total_p, total_p)
        if block.begin > place.start:  # summed by itself: a long row is rounded less often
            total = load(tile, out, at_out) + total
        store(out, at_out, total * expand(tile, scale))
    store(results.total, at, total_p)
    if is_last:
        largest = load(heads, results.lse, at)
        store(results.lse, at, largest + log(total_p))
        _finish_alpha(vectors, problem, place, group, largest, total_p, results.alpha)


@inline
def _weigh(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    edge_list: EdgeList,
    block: Block,
    part: Index,
    exponentials: Floats,
    weights: Floats,
    nothing: Vector | None,
) -> tuple[Vector, Vector]:
    """Sums over a query's keys in a block: of a tile of them, weighted, and of the exponentials.

    `nothing` is there if a weight may be zero.
    """
    tile, heads, layout = vectors.tile, vectors.heads, problem.layout
    keys, key_index = problem.key, edge_list.key
    total, sum_p = splat(tile, 0.0), splat(heads, 0.0)
    for e in range(block.begin, block.end):
        row = place.first_key + element(key_index, e)
        k = load(tile, keys, column_of(vectors, layout, row, block.group, part))
        at = (e - block.first) * heads.lanes
        p = expand(tile, load(heads, weights, at))
        if nothing is not None:
            k = select(p > nothing, k, nothing)
        total = fma(p, k, total)
        sum_p = sum_p + load(heads, exponentials, at)
    return total, sum_p


@inline
def _finish_alpha(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    group: Index,
    largest: Vector,
    total: Vector,
    alpha: Floats,
) -> None:
    """Make coefficients of the scores that were copied to `alpha`."""
    heads, layout = vectors.heads, problem.layout
    zero = splat(heads, 0.0)
    if alpha.size > 0:
        subtracted = select(largest > splat(heads, -np.inf), largest, zero)
        scale = select(total > zero, splat(heads, 1.0) / total, total)
        for e in range(place.start, place.stop):
            at = heads_at(vectors, layout, place.first_edge + e, group)
            store(alpha, at, exp(load(heads, alpha, at) - subtracted) * scale)
