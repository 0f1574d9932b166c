"""Philox4x32-10 in SIMD: the dropout of `gatv2.random`, sixteen edges at a time."""

from typing import Any

from gatv2.numba.compile import inline
from gatv2.numba.simd import high_product, load, splat, store
from gatv2.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1

LANES = 16


@inline
def keep_factors(
    words: Any,
    dropout: Any,
    query: Any,
    first_word: Any,
    first_head: Any,
    n_heads: Any,
    key_index: Any,
    block_key: Any,
    key_id: Any,
    start: Any,
    begin: Any,
    end: Any,
    counters: Any,
    keep: Any,
) -> None:
    """Write the factor of each coefficient, 0 or 1 / (1 - p), to `keep[edge - begin, head]`.

    Args:
        words: class of uint32 vectors of `LANES` lanes.
        dropout: (least word that is kept, factor of a kept coefficient, two words of the seed).
        query: index of the query in its own graph.
        first_word: fourth word of the counter, for head 0.
        first_head: the first of the `n_heads` heads that are written.
        n_heads: a power of two; from 4 on it divides `first_head`.
        key_index: key of each edge.
        block_key: the key that is number 0 in the query's own graph.
        key_id: numbers of the keys; None if they are numbered from `block_key` on.
        start: first edge of the query.
        begin: first edge that is written.
        end: end of the edges that are written.
        counters: uint32 scratch of `2 * (end - begin + LANES) + 4 * LANES`.
        keep: scratch of `(end - begin) * n_heads`.
    """
    threshold, factor, seed_0, seed_1 = dropout
    multiplicities = end - begin + LANES
    drawn = 2 * multiplicities
    multiplicity = 0
    while begin - multiplicity > start and (
        key_index[begin - multiplicity - 1] == key_index[begin]
    ):
        multiplicity += 1
    for e in range(begin, end):
        if e > begin:
            multiplicity = multiplicity + 1 if key_index[e] == key_index[e - 1] else 0
        if key_id is None:
            counters[e - begin] = key_index[e] - block_key
        else:
            counters[e - begin] = key_id[key_index[e]]
        counters[multiplicities + e - begin] = multiplicity
    for e in range(0, end - begin, LANES):
        for head in range(0, n_heads, 4):
            c0, c1 = splat(words, query), load(words, counters, e)
            c2 = load(words, counters, multiplicities + e)
            c3 = splat(words, first_word + (first_head + head) // 4)
            k0, k1 = splat(words, seed_0), splat(words, seed_1)
            for _ in range(ROUNDS):
                m0, m1 = splat(words, MULTIPLIER_0), splat(words, MULTIPLIER_1)
                c0, c1, c2, c3 = (
                    high_product(c2, m1) ^ c1 ^ k0,
                    c2 * m1,
                    high_product(c0, m0) ^ c3 ^ k1,
                    c0 * m0,
                )
                k0, k1 = k0 + splat(words, WEYL_0), k1 + splat(words, WEYL_1)
            store(counters, drawn, c0)
            store(counters, drawn + LANES, c1)
            store(counters, drawn + 2 * LANES, c2)
            store(counters, drawn + 3 * LANES, c3)
            for h in range(head, min(head + 4, n_heads)):
                word = drawn + (first_head + h) % 4 * LANES
                for i in range(min(LANES, end - begin - e)):
                    kept = counters[word + i] >= threshold
                    keep[(e + i) * n_heads + h] = factor if kept else 0.0
