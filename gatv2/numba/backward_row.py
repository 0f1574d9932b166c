"""The fused backward pass, over queries and then over keys; see `gatv2.numba.scores`.

With x = query_i + key_j, and s_ij = 1 where x is positive, else the negative slope:

    p = exp(e - lse),   dp = keep * (d_out . key) + d_alpha,   de = p * (dp - sum_j p dp + d_lse)
    d_query_i = a * sum_j de_ij s_ij
    d_key_j = sum_i keep_ij p_ij d_out_i + a * sum_i de_ij s_ij
    d_attn = sum_i query_i * (sum_j de_ij s_ij) + sum_j key_j * (sum_i de_ij s_ij)

The pass over queries leaves keep * p, de and the sign of x, one bit a feature. So the pass over keys
gathers only d_out: neither a query, nor the scores again.

With s_ij = slope + (1 - slope) * (x > 0), the sum of de_ij s_ij is that of de over the positive x, times
1 - slope, and that of all de, times slope: `_slopes`.
"""

import numpy as np

from gatv2.numba.arguments import (
    Block,
    Buffers,
    Bytes,
    EdgeFeatures,
    EdgeList,
    Floats,
    HeadMask,
    Incoming,
    Index,
    Integers,
    KeyGradients,
    KeyOrder,
    KeyPlace,
    Layout,
    NodeIds,
    PerEdge,
    Place,
    Problem,
    QueryGradients,
    Strip,
    Vector,
    VectorClass,
    VectorClasses,
)
from gatv2.numba.compile import inline
from gatv2.numba.edge_features import backward_edges
from gatv2.numba.exp import exp
from gatv2.numba.head_mask import gradient_of, has_unused, write_d_bias
from gatv2.numba.rows import (
    AHEAD,
    BLOCK,
    block_of,
    column_of,
    heads_at,
    n_blocks_of,
    part_of,
    place_in,
    signs_at,
    weights_at,
)
from gatv2.numba.scores import apply_dropout, score_block
from gatv2.numba.simd import (
    element,
    expand,
    fma,
    fold,
    is_any,
    load,
    load_bits,
    prefetch,
    select,
    splat,
    store,
)


@inline
def backward_strip(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures | None,
    node_ids: NodeIds | None,
    strip: Strip,
    ptr: Integers | None,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    buffers: Buffers,
    incoming: Incoming,
    per_edge: PerEdge,
    gradients: QueryGradients,
) -> None:
    """Backward of queries: their rows of d_query, their share of d_attn, and `per_edge`."""
    zero = splat(vectors.heads, 0.0)
    n_blocks = n_blocks_of(strip)
    for group in range(problem.layout.n_groups):
        sum_p, sum_p_dp, sum_de = zero, zero, zero
        # the first sweep sums; a single block is still in the buffers when the second one starts
        for sweep in range(2):
            for i in range(n_blocks):
                block = block_of(strip, group, i)
                if sweep == 0 or n_blocks > 1:
                    p, p_dp = _coefficients(
                        vectors,
                        problem,
                        edges,
                        node_ids,
                        strip,
                        ptr,
                        edge_list,
                        head_mask,
                        block,
                        buffers,
                        incoming,
                        per_edge,
                    )
                if sweep == 0:
                    sum_p, sum_p_dp = sum_p + p, sum_p_dp + p_dp
                    continue
                for k in range(strip.n_queries):
                    place = place_in(strip, ptr, node_ids, k)
                    part = part_of(block, place)
                    if strip.n_queries > 1:
                        sum_p, sum_p_dp = _sums(vectors, part, buffers)
                        sum_de = zero
                    sum_de = sum_de + _write_weights(
                        vectors,
                        problem,
                        place,
                        edge_list,
                        head_mask,
                        part,
                        sum_p,
                        sum_p_dp,
                        buffers,
                        incoming.d_lse,
                        per_edge.weights,
                    )
                    if part.end == place.stop:
                        _write_d_query(
                            vectors, problem, place, block.group, per_edge, sum_de, gradients
                        )
                backward_edges(
                    vectors,
                    problem,
                    edges,
                    strip.place,
                    edge_list,
                    block,
                    buffers,
                    per_edge,
                    gradients,
                    head_mask,
                )


@inline
def _coefficients(
    vectors: VectorClasses,
    problem: Problem,
    edges: EdgeFeatures | None,
    node_ids: NodeIds | None,
    strip: Strip,
    ptr: Integers | None,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    block: Block,
    buffers: Buffers,
    incoming: Incoming,
    per_edge: PerEdge,
) -> tuple[Vector, Vector]:
    """Write p of a block's edges to `buffers.scores` and dp to `buffers.d_scores`; sum p and p * dp."""
    flat, heads = vectors.flat, vectors.heads
    scores, d_scores = buffers.scores, buffers.d_scores
    for k in range(strip.n_queries):
        place = place_in(strip, ptr, node_ids, k)
        at_lse = heads_at(vectors, problem.layout, place.row, block.group)
        score_block(
            vectors,
            problem,
            edges,
            place,
            edge_list,
            head_mask,
            part_of(block, place),
            splat(heads, 0.0),
            buffers,
            load(heads, incoming.lse, at_lse),
            incoming.d_out,
            per_edge.signs,
        )
    apply_dropout(vectors, problem, node_ids, strip, ptr, edge_list.key, block, buffers, d_scores)
    n = (block.end - block.begin) * heads.lanes
    store(scores, n, splat(flat, -np.inf))
    store(d_scores, n, splat(flat, 0.0))
    _add_d_alpha(vectors, problem, strip.place, block, incoming.d_alpha, d_scores)
    sum_p, sum_p_dp = splat(flat, 0.0), splat(flat, 0.0)
    for at in range(0, n, flat.lanes):
        s, dp = load(flat, scores, at), load(flat, d_scores, at)
        is_unused = s == splat(flat, -np.inf)
        if is_any(is_unused):  # an edge without weight
            dp = select(is_unused, splat(flat, 0.0), dp)
            store(d_scores, at, dp)
        p = exp(s)
        store(scores, at, p)
        sum_p = sum_p + p
        sum_p_dp = fma(p, dp, sum_p_dp)
    return fold(heads, sum_p), fold(heads, sum_p_dp)


@inline
def _sums(vectors: VectorClasses, block: Block, buffers: Buffers) -> tuple[Vector, Vector]:
    """The sums of p and of p * dp of a query."""
    heads = vectors.heads
    sum_p, sum_p_dp = splat(heads, 0.0), splat(heads, 0.0)
    for e in range(block.begin, block.end):
        at = (e - block.first) * heads.lanes
        p = load(heads, buffers.scores, at)
        sum_p, sum_p_dp = sum_p + p, fma(p, load(heads, buffers.d_scores, at), sum_p_dp)
    return sum_p, sum_p_dp


@inline
def _add_d_alpha(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    block: Block,
    d_alpha: Floats,
    d_scores: Floats,
) -> None:
    """Add the cotangent of alpha, if there is one."""
    layout = problem.layout
    if d_alpha.size > 0:
        for e in range(block.begin, block.end):
            at = (e - block.first) * vectors.heads.lanes
            at_edge = heads_at(vectors, layout, place.first_edge + e, block.group)
            d = load(vectors.heads, d_scores, at) + load(vectors.heads, d_alpha, at_edge)
            store(d_scores, at, d)


@inline
def _minus_d_lse(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    group: Index,
    d_lse: Floats,
    delta: Vector,
) -> Vector:
    """Delta less the cotangent of the log-sum-exp, if there is one."""
    if d_lse.size > 0:
        at = heads_at(vectors, problem.layout, place.row, group)
        delta = delta - load(vectors.heads, d_lse, at)
    return delta


@inline
def _write_weights(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    edge_list: EdgeList,
    head_mask: HeadMask | None,
    block: Block,
    sum_p: Vector,
    sum_p_dp: Vector,
    buffers: Buffers,
    d_lse: Floats,
    weights: Floats,
) -> Vector:
    """Write keep * p and de of a query's edges in a block to `weights`; return the sum of de.

    The latter is the gradient of a bias.
    """
    heads, nothing = vectors.heads, splat(vectors.heads, 0.0)
    layout, drops = problem.layout, problem.dropout.least_word > 0
    scores, d_scores, keep = buffers.scores, buffers.d_scores, buffers.keep
    sum_de, is_guarded = nothing, has_unused(head_mask)
    scale = select(sum_p > nothing, splat(heads, 1.0) / sum_p, sum_p)
    delta = _minus_d_lse(vectors, problem, place, block.group, d_lse, sum_p_dp * scale)
    x_row, column = edge_list.x_row, block.group * heads.lanes
    d_bias, bias_rows = gradient_of(head_mask, place)
    for e in range(block.begin, block.end):
        at = (e - block.first) * heads.lanes
        unscaled = load(heads, scores, at)
        p = unscaled * scale
        de = p * (load(heads, d_scores, at) - delta)
        if is_guarded:  # NaN of the row is not that of an edge that a head does not use
            p = select(unscaled == nothing, nothing, p)
            de = select(unscaled == nothing, nothing, de)
        if drops:
            p = p * load(heads, keep, at)
        at_edge = weights_at(vectors, layout, place.first_edge + e, block.group)
        store(weights, at_edge, p)
        store(weights, at_edge + heads.lanes, de)
        write_d_bias(d_bias, bias_rows, x_row, e, column, de)
        sum_de = sum_de + de
    return sum_de


@inline
def _write_d_query(
    vectors: VectorClasses,
    problem: Problem,
    place: Place,
    group: Index,
    per_edge: PerEdge,
    sum_de: Vector,
    gradients: QueryGradients,
) -> None:
    """Write a query's row of d_query, and add its share of d_attn.

    Nothing reads these tiles of the query any more: d_query may have its memory.
    """
    tile, layout = vectors.tile, problem.layout
    for part in range(layout.span):
        at_query = column_of(vectors, layout, place.row, group, part)
        positive = splat(tile, 0.0)
        for begin in range(place.start, place.stop, BLOCK):  # summed by itself: rounded less often
            block = Block(group, begin, min(begin + BLOCK, place.stop), begin)
            positive = positive + _sum_positive(vectors, layout, place, block, part, per_edge)
        total = _slopes(tile, problem, positive, sum_de)
        if place.start < place.stop:
            q = load(tile, problem.query, at_query)
            at = column_of(vectors, layout, gradients.chunk, group, part)
            _add_share(tile, total, q, gradients.d_attn, at)
        a = load(tile, problem.attn, column_of(vectors, layout, 0, group, part))
        store(gradients.d_query, at_query, total * a)


@inline
def _sum_positive(
    vectors: VectorClasses,
    layout: Layout,
    place: Place,
    block: Block,
    part: Index,
    per_edge: PerEdge,
) -> Vector:
    """The sum of de over some edges, where x is positive."""
    tile, heads = vectors.tile, vectors.heads
    weights, signs, total = per_edge.weights, per_edge.signs, splat(tile, 0.0)
    for e in range(block.begin, block.end):
        edge = place.first_edge + e
        de = load(heads, weights, weights_at(vectors, layout, edge, block.group) + heads.lanes)
        at = signs_at(vectors, layout, edge, block.group, part)
        total = total + _where_positive(tile, signs, at, de)
    return total


@inline
def backward_key_row(
    vectors: VectorClasses,
    problem: Problem,
    place: KeyPlace,
    key_order: KeyOrder,
    head_mask: HeadMask | None,
    d_out: Floats,
    per_edge: PerEdge,
    gradients: KeyGradients,
) -> None:
    """Backward of one key: its row of d_key, and its share of d_attn."""
    tile = vectors.tile
    for group in range(problem.layout.n_groups):
        for part in range(problem.layout.span):
            values, positive, sum_de = _sum_over_queries(
                vectors, problem, place, key_order, head_mask, group, part, d_out, per_edge
            )
            total = _slopes(tile, problem, positive, sum_de)
            at_key = column_of(vectors, problem.layout, place.row, group, part)
            if place.start < place.stop:  # before d_key, which may have the key's memory
                k = load(tile, problem.key, at_key)
                at = column_of(vectors, problem.layout, gradients.chunk, group, part)
                _add_share(tile, total, k, gradients.d_attn, at)
            a = load(tile, problem.attn, column_of(vectors, problem.layout, 0, group, part))
            d_key = fma(a, total, values)
            if gradients.adds:
                d_key = d_key + load(tile, gradients.d_key, at_key)
            store(gradients.d_key, at_key, d_key)


@inline
def _sum_over_queries(
    vectors: VectorClasses,
    problem: Problem,
    place: KeyPlace,
    key_order: KeyOrder,
    head_mask: HeadMask | None,
    group: Index,
    part: Index,
    d_out: Floats,
    per_edge: PerEdge,
) -> tuple[Vector, Vector, Vector]:
    """Sums over the queries of a key: of keep * p * d_out, of de where x is positive, and of all de."""
    values, positive = splat(vectors.tile, 0.0), splat(vectors.tile, 0.0)
    sum_de = splat(vectors.heads, 0.0)
    for begin in range(place.start, place.stop, BLOCK):  # summed by itself: rounded less often
        block = Block(group, begin, min(begin + BLOCK, place.stop), begin)
        v, x, de = _sum_over_block(
            vectors, problem, place, key_order, head_mask, block, part, d_out, per_edge
        )
        values, positive, sum_de = values + v, positive + x, sum_de + de
    return values, positive, sum_de


@inline
def _sum_over_block(
    vectors: VectorClasses,
    problem: Problem,
    place: KeyPlace,
    key_order: KeyOrder,
    head_mask: HeadMask | None,
    block: Block,
    part: Index,
    d_out: Floats,
    per_edge: PerEdge,
) -> tuple[Vector, Vector, Vector]:
    """The sums over some of the queries."""
    tile, heads, group, layout = vectors.tile, vectors.heads, block.group, problem.layout
    edges, queries = key_order.edge, key_order.query
    weights, signs = per_edge.weights, per_edge.signs
    nothing, last, is_guarded = splat(tile, 0.0), queries.size - 1, has_unused(head_mask)
    values, positive, sum_de = nothing, nothing, splat(heads, 0.0)
    for i in range(block.begin, block.end):
        ahead = min(i + AHEAD, last)
        edge = place.first_edge + element(edges, ahead)
        row = place.first_query + element(queries, ahead)
        prefetch(tile, d_out, column_of(vectors, layout, row, group, part))
        prefetch(heads, weights, weights_at(vectors, layout, edge, group))
        prefetch(heads, signs, signs_at(vectors, layout, edge, group, part))
        edge = place.first_edge + element(edges, i)
        row = place.first_query + element(queries, i)
        at = weights_at(vectors, layout, edge, group)
        p = expand(tile, load(heads, weights, at))
        de = load(heads, weights, at + heads.lanes)
        d = load(tile, d_out, column_of(vectors, layout, row, group, part))
        if is_guarded:
            d = select(p > nothing, d, nothing)
        values = fma(p, d, values)
        at = signs_at(vectors, layout, edge, group, part)
        positive = positive + _where_positive(tile, signs, at, de)
        sum_de = sum_de + de
    return values, positive, sum_de


@inline
def _where_positive(tile: VectorClass, signs: Bytes, at: Index, de: Vector) -> Vector:
    """De in the features where x is positive."""
    return select(load_bits(tile, signs, at), expand(tile, de), splat(tile, 0.0))


@inline
def _slopes(tile: VectorClass, problem: Problem, positive: Vector, sum_de: Vector) -> Vector:
    """The sum of de_ij s_ij: of its sum where x is positive, and of all de."""
    everywhere = expand(tile, sum_de) * splat(tile, problem.slope)
    return fma(positive, splat(tile, 1.0 - problem.slope), everywhere)


@inline
def _add_share(
    tile: VectorClass,
    total: Vector,
    features: Vector,
    d_attn: Floats,
    at: Index,
) -> None:
    """Add a row's share to d_attn; of what has no weight, which may be NaN or infinite, none."""
    nothing = splat(tile, 0.0)
    share = select(total == nothing, nothing, total * features)
    store(d_attn, at, load(tile, d_attn, at) + share)
