"""Philox4x32-10 in SIMD: the dropout of `gatv2.random`, sixteen edges at a time."""

from gatv2.numba.arguments import (
    Block,
    Buffers,
    Dropout,
    Index,
    Integers,
    NodeIds,
    Place,
    Strip,
    Vector,
    VectorClass,
    Words,
)
from gatv2.numba.compile import inline
from gatv2.numba.rows import part_of, place_in
from gatv2.numba.simd import element, high_product, load, splat, store
from gatv2.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1, WORDS_PER_COUNTER

LANES = 16


@inline
def keep_factors(
    words: VectorClass,
    dropout: Dropout,
    strip: Strip,
    ptr: Integers | None,
    node_ids: NodeIds | None,
    keys: Integers,
    block: Block,
    n_heads: Index,
    buffers: Buffers,
) -> None:
    """Write the factor of each coefficient, 0 or 1 / (1 - p), to `buffers.keep[edge, head]`.

    Args:
        words: class of uint32 vectors of `LANES` lanes.
        dropout: which coefficients are kept.
        strip: queries.
        ptr: where the edges of each start; None if there is one.
        node_ids: numbers of the nodes; None if they are the positions.
        keys: of the edges.
        block: whose factors are written.
        n_heads: heads of a group, a power of two.
        buffers: whose counters have room for `3 * (edges + LANES) + 4 * LANES`.
    """
    counters, keep = buffers.counters, buffers.keep
    n_edges = block.end - block.begin
    length = n_edges + LANES
    multiplicities, queries, drawn = length, 2 * length, 3 * length
    for k in range(strip.n_queries):
        place = place_in(strip, ptr, node_ids, k)
        part = part_of(block, place)
        _write_counters(place, keys, node_ids, part, counters, length)
    first_head = block.group * n_heads
    for e in range(0, n_edges, LANES):
        for head in range(0, n_heads, WORDS_PER_COUNTER):
            c0, c1, c2, c3 = _draw(
                words,
                dropout,
                load(words, counters, queries + e),
                load(words, counters, e),
                load(words, counters, multiplicities + e),
                splat(words, strip.place.drop_word + (first_head + head) // WORDS_PER_COUNTER),
            )
            store(counters, drawn, c0)
            store(counters, drawn + LANES, c1)
            store(counters, drawn + 2 * LANES, c2)
            store(counters, drawn + 3 * LANES, c3)
            for h in range(head, min(head + WORDS_PER_COUNTER, n_heads)):
                word = drawn + (first_head + h) % WORDS_PER_COUNTER * LANES
                for i in range(min(LANES, n_edges - e)):
                    kept = counters[word + i] >= dropout.least_word
                    keep[(e + i) * n_heads + h] = dropout.factor if kept else 0.0


@inline
def _write_counters(
    place: Place,
    keys: Integers,
    node_ids: NodeIds | None,
    block: Block,
    counters: Words,
    length: Index,
) -> None:
    """Write of each edge its key, how many parallel ones came before, and its query: `length` apart."""
    begin, multiplicity = block.begin, 0
    while begin - multiplicity > place.start and (
        element(keys, begin - multiplicity - 1) == element(keys, begin)
    ):
        multiplicity += 1
    for e in range(begin, block.end):
        key = element(keys, e)
        if e > begin:
            multiplicity = multiplicity + 1 if key == element(keys, e - 1) else 0
        at = e - block.first
        if node_ids is None:
            counters[at] = key - place.drop_key
        else:
            counters[at] = element(node_ids.key, key)
        counters[at + length] = multiplicity
        counters[at + 2 * length] = place.drop_query


@inline
def _draw(
    words: VectorClass, dropout: Dropout, c0: Vector, c1: Vector, c2: Vector, c3: Vector
) -> tuple[Vector, Vector, Vector, Vector]:
    """The words of counters: ten rounds, keyed by the seed."""
    k0, k1 = splat(words, dropout.seed_low), splat(words, dropout.seed_high)
    for _ in range(ROUNDS):
        m0, m1 = splat(words, MULTIPLIER_0), splat(words, MULTIPLIER_1)
        c0, c1, c2, c3 = (
            high_product(c2, m1) ^ c1 ^ k0,
            c2 * m1,
            high_product(c0, m0) ^ c3 ^ k1,
            c0 * m0,
        )
        k0, k1 = k0 + splat(words, WEYL_0), k1 + splat(words, WEYL_1)
    return c0, c1, c2, c3
