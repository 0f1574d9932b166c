"""What travels together into a Triton kernel, by name. Imports neither Triton nor gatv2.

A kernel takes named tuples: of pointers (tensors at the launch), of which those that are None are left
out when it is compiled, and of sizes.
"""

from typing import Any, NamedTuple

Pointer = Any
"""A tensor at the launch, a pointer in a kernel; None where there is none."""
Values = Any
"""A tensor of Triton's: what a program holds in registers."""
Number = Any
"""An int at the launch, a number of Triton's in a kernel."""


class Shape(NamedTuple):
    """What a kernel is compiled for: the tile `[edges, rows, heads, hidden]` and what it computes in.

    A row of features is one node's. Every number of the tile is a power of two; what it has beyond the
    features is masked.
    """

    n_heads: int
    """Heads of a row in memory."""
    n_hidden: int
    """Features of a head in memory."""
    heads: int
    hidden: int
    rows: int
    """Queries, or keys, that a program works on at once."""
    edges: int
    """Edges of each of them that it works on at once."""
    warps: int
    accumulator: object
    """The dtype that is computed in."""
    has_edge_features: bool
    mask_heads: int
    """Heads of the mask: `n_heads`, or 1 for all of them; 0 if there is no mask."""
    bias_heads: int
    """Heads of what is added to scores: `n_heads`, or 1 for all of them; 0 if there is nothing."""
    has_unused: bool
    """Whether there are pairs that are no edges, of all heads or of some: what belongs to them may hold
    NaN."""
    is_by_key: bool
    """Whether rows are keys, and not queries."""
    split: int
    """A row with more edges than this is worked on in parts; see `gatv2.triton.rows`."""


class Features(NamedTuple):
    """The features of nodes, and the edge features."""

    query: Pointer
    """`[copies * n_queries, n_heads, n_hidden]`."""
    key: Pointer
    """`[copies * n_keys, n_heads, n_hidden]`."""
    attn: Pointer
    """`[n_heads, n_hidden]`."""
    of_edges: Pointer
    """`[rows, D]`."""
    projection: Pointer
    """`[D, n_heads, n_hidden]`."""


class Order(NamedTuple):
    """The edges by query (CSR) or by key (CSC); the entries of a mask have sizes alone."""

    ptr: Pointer
    """The edges of row r are `ptr[r]:ptr[r + 1]`."""
    other: Pointer
    """`[n_edges]`: the node at the edge's other end."""
    number: Pointer
    """`[n_edges]`: where the edge stands by query; None if that is here."""
    window_rows: Pointer
    """`[2 * windows]`: rows of the first and the last edge of each window; see `gatv2.triton.rows`."""
    n_rows: Number
    n_others: Number
    n_slots: Number
    """Places for parts of rows, ahead of the rows themselves."""


class Edges(NamedTuple):
    """What is known of an edge beside its ends."""

    mask: Pointer
    """`[n_edges, mask_heads]`, bool: which heads use an edge."""
    bias: Pointer
    """`[rows, bias_heads]`: what is added to its scores, -inf where a head does not use it."""
    feature_row: Pointer
    """`[n_edges]`: the row of its features and of its bias; None if that is the edge's number."""
    query: Pointer
    """`[n_edges]`: its query; None unless the pass over edges asks."""


class Dropout(NamedTuple):
    """What the dropout mask is a function of; see `gatv2.random.keep_mask`."""

    seed: Pointer
    query_id: Pointer
    key_id: Pointer


class Sizes(NamedTuple):
    """Sizes of a feature set, of which a launch serves a number of copies."""

    n_queries: Number
    n_keys: Number
    n_edges: Number
    n_batches: Number
    """Feature sets that dropout tells apart."""
    block_queries: Number
    """Queries of a graph of a block-diagonal union."""
    block_keys: Number
    mask_step: Number
    """Entries between the masks of two feature sets; 0 if they share one."""
    n_features: Number
    """D, the number of edge features."""
    feature_step: Number
    """Rows between the edge features of two feature sets; 0 if they share them."""
    bias_step: Number
    """Rows between the biases of two feature sets; 0 if they share one."""


class Graph(NamedTuple):
    """What a kernel reads beside features, in one order of the edges."""

    order: Order
    edges: Edges
    dropout: Dropout
    sizes: Sizes


class Problem(NamedTuple):
    """What the helpers of a kernel read, of one feature set."""

    features: Features
    graph: Graph
    attn: Values
    """`features.attn`, as `[1, rows, heads, hidden]`."""
    slope: Values
    threshold: Values
    """A coefficient whose random word is below it is dropped."""
    factor: Values
    """What the others are multiplied with."""
    copy: Values
    """Number of the feature set."""


class ForwardResults(NamedTuple):
    """What the forward pass writes; the first two for each query."""

    out: Pointer
    lse: Pointer
    scores: Pointer
    """`[copies * n_edges, n_heads]`; None, as the next two, if nobody wants alpha."""
    largest: Pointer
    total: Pointer
    part_values: Pointer
    """For each slot, as are the next two; None if there are no slots."""
    part_largest: Pointer
    part_total: Pointer


class Cotangents(NamedTuple):
    """What the backward passes are given; `d_lse` and `d_alpha` are None if they are zero."""

    d_out: Pointer
    d_lse: Pointer
    d_alpha: Pointer
    lse: Pointer
    """The log-sum-exp that the forward pass gave."""
    statistics: Pointer
    """`[copies * n_queries, 3, n_heads]`, what the pass over queries leaves; see there."""


class QueryResults(NamedTuple):
    """What the pass over queries writes."""

    d_query: Pointer
    part_slopes: Pointer
    """Sum of p s for each slot, and so on; None if there are no slots."""
    part_d_slopes: Pointer
    part_sums: Pointer
    """`[slots, 2, n_heads]`: the sums of p and of p dp."""


class KeyResults(NamedTuple):
    """What the pass over keys writes."""

    d_key: Pointer
    d_attn: Pointer
    """`[copies, chunks * rows, n_heads, n_hidden]`."""
    part_d_key: Pointer
    """For each slot; None if there are none."""
    d_bias: Pointer
    """`[copies * n_edges, bias_heads]`; None if nobody wants it."""


class EdgeResults(NamedTuple):
    """What the pass over edges writes."""

    d_features: Pointer
    """`[copies * rows, D]`; None if nobody wants it."""
    d_projection: Pointer
    """`[copies, chunks, n_heads * n_hidden, D]`."""
