"""The fused forward pass of one query; see `gatv2.numba.scores` for how a row is cut.

Scores of a block of edges, their softmax, and the weighted sum while the block's keys are still in
cache; blocks are joined as in an online softmax. What the backward pass needs of it is kept: the
log-sum-exp, as the largest score and the sum of exponentials.
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
    Place,
    Problem,
    Results,
    Vector,
    VectorClasses,
)
from gatv2.numba.compile import inline
from gatv2.numba.exp import exp
from gatv2.numba.head_mask import has_unused
from gatv2.numba.rows import column_of, heads_at
from gatv2.numba.scores import BLOCK, apply_dropout, score_block
from gatv2.numba.simd import expand, fma, fold, has_nan, load, repeat, select, splat, store


@inline
def forward_row(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures | None,
    key_id: Integers | None,
    place: Place,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    buffers: Buffers,
    results: Results,
) -> None:
    """Attention of one query: its row of `out`, its largest score, its sum of exponentials, alpha."""
    heads = vectors.heads
    lowest, zero, one = splat(heads, -np.inf), splat(heads, 0.0), splat(heads, 1.0)
    for group in range(problem.layout.n_groups):
        largest, total = lowest, zero
        begin = place.start
        while True:
            block = Block(group, begin, min(begin + BLOCK, place.stop))
            before = largest
            largest = score_block(
                vectors,
                problem,
                edges,
                place,
                edge_list,
                head_mask,
                block,
                largest,
                buffers,
                None,
                None,
            )
            subtracted = select(largest > lowest, largest, zero)  # zero for a head without edges
            rescale = exp(before - subtracted)
            _keep_scores(vectors, problem, place, block, buffers.scores, results.alpha)
            block_total = _exponentials(vectors, block, buffers.scores, subtracted)
            total = fma(total, rescale, block_total)
            apply_dropout(
                vectors, problem, place, edge_list, key_id, block, buffers, buffers.scores
            )
            scale = one
            if block.end == place.stop:
                scale = select(total > zero, one / total, total)
            _add_values(
                vectors,
                problem,
                place,
                edge_list,
                head_mask,
                block,
                buffers.scores,
                rescale,
                scale,
                results.out,
            )
            begin = block.end
            if begin >= place.stop:
                break
        at = heads_at(vectors, problem.layout, place.row, group)
        store(results.largest, at, largest)
        store(results.total, at, total)
        _finish_alpha(vectors, problem, place, group, largest, total, results.alpha)


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
            s = load(vectors.heads, scores, (e - block.begin) * vectors.heads.lanes)
            store(alpha, heads_at(vectors, layout, place.first_edge + e, block.group), s)


@inline
def _exponentials(
    vectors: VectorClasses, block: Block, scores: Floats, subtracted: Vector
) -> Vector:
    """Replace a block's scores by the exponentials of what is left of them; return their sum."""
    flat, n = vectors.flat, (block.end - block.begin) * vectors.heads.lanes
    store(scores, n, splat(flat, -np.inf))
    subtracted_flat, total = repeat(flat, subtracted), splat(flat, 0.0)
    for at in range(0, n, flat.lanes):
        p = exp(load(flat, scores, at) - subtracted_flat)
        store(scores, at, p)
        total = total + p
    return fold(vectors.heads, total)


@inline
def _add_values(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    block: Block,
    weights: Floats,
    rescale: Vector,
    scale: Vector,
    out: Floats,
) -> None:
    """Rescale the query's row of `out`, add the keys of a block, weighted, and scale the sum."""
    tile, layout, is_guarded = vectors.tile, problem.layout, has_unused(head_mask)
    nothing = splat(tile, 0.0)
    for part in range(layout.span):
        at_out = column_of(vectors, layout, place.row, block.group, part)
        # asked once a block: a loop that asked it would be slower, whatever the answer
        total = nothing
        if not is_guarded:
            total = _weigh(vectors, problem, place, edge_list, block, part, weights, None)
        if is_guarded or has_nan(total):  # of a key without weight that is infinite
            total = _weigh(vectors, problem, place, edge_list, block, part, weights, nothing)
        if (
            block.begin > place.start
        ):  # a block is summed by itself: a long row is rounded less often
            total = fma(load(tile, out, at_out), expand(tile, rescale), total)
        store(out, at_out, total * expand(tile, scale))


@inline
def _weigh(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    edge_list: EdgeList,
    block: Block,
    part: Index,
    weights: Floats,
    nothing: Vector | None,
) -> Vector:
    """The sum of a tile of the keys of a block, weighted; `nothing` is there if a weight may be zero."""
    tile, heads, layout = vectors.tile, vectors.heads, problem.layout
    keys, key_index, total = problem.key, edge_list.key, splat(tile, 0.0)
    for e in range(block.begin, block.end):
        row = place.first_key + key_index[e]
        k = load(tile, keys, column_of(vectors, layout, row, block.group, part))
        p = expand(tile, load(heads, weights, (e - block.begin) * heads.lanes))
        if nothing is not None:
            k = select(p > nothing, k, nothing)
        total = fma(p, k, total)
    return total


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
