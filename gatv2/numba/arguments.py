"""The arguments of kernels: what travels together has a name.

Python passes plain tuples and arrays, whose types Numba finds out fast, and a kernel names them in its
first lines: `problem = as_problem(problem)`. What may be None (`edges`, `node_ids`, `head_mask`) is a
parameter of its own wherever `is None` is asked, as Numba leaves out a branch only for a parameter.

All arrays are contiguous and of one dimension; comments tell what their elements are.
"""

from typing import Any, NamedTuple, TypeAlias

from numba import types

from gatv2.numba.compile import inline, overload

# Words for a reader. Numba finds out the types, and Python never sees the values.
VectorClasses: TypeAlias = Any  # the vector types that a kernel is compiled for, by their names
VectorClass: TypeAlias = Any  # one of them, as a value: what a load gives
Vector: TypeAlias = Any  # lanes of floating-point numbers or of words
Mask: TypeAlias = Any  # lanes of truth values
Index: TypeAlias = Any  # a position or a count
Number: TypeAlias = Any  # one floating-point number
Word: TypeAlias = Any  # 32 random bits, or a part of a counter
Bits: TypeAlias = Any  # an integer that is a set of bits
Floats: TypeAlias = Any  # an array of float32 or float64
Integers: TypeAlias = Any  # an array of int32 or int64
Words: TypeAlias = Any  # an array of uint32
Bytes: TypeAlias = Any  # an array of uint8
Flags: TypeAlias = Any  # an array of bool
Truth: TypeAlias = Any  # one truth value
Nothing: TypeAlias = Any  # of what only writes
HeadMask: TypeAlias = Any  # flags, or a `ScoreBias`: see `gatv2.numba.head_mask`
Plain: TypeAlias = Any  # a tuple from Python: the elements of the named tuple that is made of it


class Dropout(NamedTuple):
    """Which coefficients are kept, and what they are multiplied by."""

    least_word: Word
    """A coefficient whose random word is less is dropped; 0 without dropout."""
    factor: Number
    seed_low: Word
    seed_high: Word


class Layout(NamedTuple):
    """How a row of features is cut into tiles. Numbers only: it costs a loop nothing to be passed."""

    n_groups: Index
    """Groups of heads."""
    span: Index
    """Tiles that a head spans."""


class Problem(NamedTuple):
    """What a call computes with: features, their sizes, and options.

    A feature set has its own query and key, and shares attn and the graph with the others.
    """

    dropout: Dropout
    layout: Layout
    query: Floats
    """[feature sets, queries, heads, features], padded to whole tiles."""
    key: Floats
    """[feature sets, keys, heads, features]."""
    attn: Floats
    """[heads, features]."""
    n_queries: Index
    """Queries of a feature set."""
    n_keys: Index
    n_batches: Index
    """Feature sets that dropout tells apart."""
    block_queries: Index
    """Queries of one block of a block-diagonal graph."""
    block_keys: Index
    n_counters: Index
    """Dropout's counters of a query and a key, for all heads."""
    n_edge_rows: Index
    """Rows of edge features, or of what is added to their scores, of a feature set."""
    slope: Number
    """The negative slope."""


class EdgeFeatures(NamedTuple):
    """The edge features, x, and the projection that is applied to them."""

    x: Floats
    """[rows, D]."""
    projection: Floats
    """[D, heads, features]."""
    n_features: Index
    """D."""
    n_rows: Index
    """Rows of x, which feature sets may share."""


class ScoreBias(NamedTuple):
    """What is added to the scores of edges; minus infinity where a head does not use one."""

    values: Floats
    """[rows, width]."""
    is_listed: bool
    """Whether rows are in the order of the list of edges, and not where `EdgeList.x_row` tells."""
    width: Index
    """1, for all heads, or the number of heads."""
    n_rows: Index
    """Rows of the values, which feature sets may share."""
    removes: bool
    """Whether any value is minus infinity."""
    gradient: Floats
    """[feature sets, rows, width], or empty if nobody wants it."""


class BiasRows(NamedTuple):
    """Where the rows of a `ScoreBias`, or of its gradient, are; numbers only, as in `Layout`."""

    first: Index
    """The row of edge 0."""
    width: Index
    is_listed: bool


class NodeIds(NamedTuple):
    """The numbers of queries and keys for dropout, where they are not the positions."""

    query: Integers
    key: Integers


class EdgeList(NamedTuple):
    """Edges, those of one query behind those of another."""

    key: Integers
    x_row: Integers
    """Row of each edge in x, and in a bias that is not listed; anything if there is neither."""


class KeyOrder(NamedTuple):
    """Edges by key."""

    ptr: Integers
    """Where the edges of each key start."""
    edge: Integers
    """Where each stands in the list of edges."""
    query: Integers


class Place(NamedTuple):
    """Where a query stands, and its edges."""

    row: Index
    """Its row, counted over all feature sets."""
    start: Index
    """Its first edge in the list of edges."""
    stop: Index
    """End of its edges."""
    first_key: Index
    """Row of key 0."""
    first_edge: Index
    """Where edge 0 of the list stands in what has a row for each edge."""
    first_x: Index
    """Row of x, and of a bias, of edge 0."""
    drop_query: Word
    """Number of the query for dropout."""
    drop_key: Index
    """The key that is number 0 for dropout."""
    drop_word: Word
    """Fourth word of dropout's counter, for head 0."""


class KeyPlace(NamedTuple):
    """Where a key stands, and its edges."""

    row: Index
    """Its row, counted over all feature sets."""
    start: Index
    """Its first edge in the order of keys."""
    stop: Index
    """End of its edges."""
    first_query: Index
    """Row of query 0 of the list of edges."""
    first_edge: Index
    """Where edge 0 of the list stands in `PerEdge`."""


class Strip(NamedTuple):
    """Queries that follow each other and are worked off together: one, or some of few edges."""

    place: Place
    """Of the first query."""
    query: Index
    """Number of the first query in its feature set."""
    first: Index
    """The same among those whose edges are listed."""
    n_queries: Index
    begin: Index
    """The first edge of all."""
    end: Index


class Block(NamedTuple):
    """Some edges, and one group of heads: what is worked on at once."""

    group: Index
    begin: Index
    end: Index
    first: Index
    """The edge whose coefficients come first in the buffers."""


class Buffers(NamedTuple):
    """What a thread needs beside its results: coefficients of a block, and counters of dropout."""

    scores: Floats
    d_scores: Floats
    keep: Floats
    """Factors of dropout; before them, while scores are computed, projected edge features."""
    counters: Words


class Results(NamedTuple):
    """Of the forward pass."""

    out: Floats
    """[queries, heads, features]."""
    lse: Floats
    """[queries, heads]: the largest score so far; of a query that is done, the log-sum-exp."""
    total: Floats
    """[queries, heads]: the sum of exponentials of the scores less the largest."""
    alpha: Floats
    """[edges, heads], or empty if nobody wants it."""


class Incoming(NamedTuple):
    """What the backward pass starts from: cotangents, and the log-sum-exp of the scores."""

    d_out: Floats
    d_lse: Floats
    """[queries, heads], or empty."""
    d_alpha: Floats
    """[edges, heads], or empty."""
    lse: Floats
    """[queries, heads]."""


class PerEdge(NamedTuple):
    """What the pass over queries leaves for the pass over keys."""

    weights: Floats
    """[edges, groups, 2, heads of a group]: keep * p and de."""
    signs: Bytes
    """[edges, heads, features]: whether x is positive, in bits."""


class EdgeGradients(NamedTuple):
    """Of the edge features and their projection."""

    d_x: Floats
    """[feature sets, rows, D], or empty if nobody wants it."""
    shares: Floats
    """[chunks, D, heads, features]: G of each chunk, see `gatv2.numba.edge_features`."""
    by_lane: Floats
    """a * W_e, [heads, features, D], D padded to whole cache lines."""


class QueryGradients(NamedTuple):
    """What the pass over queries writes, for one chunk."""

    chunk: Index
    d_query: Floats
    d_attn: Floats
    """[chunks, heads, features]: shares, summed into."""
    edges: Plain
    """See `EdgeGradients`; None if edges have no features."""


class KeyGradients(NamedTuple):
    """What the pass over keys writes, for one chunk."""

    chunk: Index
    d_key: Floats
    adds: bool
    """Whether to add to d_key, or to write it."""
    d_attn: Floats
    """[chunks, heads, features]: shares, summed into."""


@inline
def as_problem(problem: Plain) -> Problem:
    """Name the arguments of a call."""
    return Problem(Dropout(*problem[0]), Layout(*problem[1]), *problem[2:])


def as_edge_features(edges: Plain | None) -> EdgeFeatures | None:
    """Name the edge features, if there are any."""
    raise NotImplementedError("for Numba only")


def as_node_ids(node_ids: Plain | None) -> NodeIds | None:
    """Name the numbers of nodes, if they have any."""
    raise NotImplementedError("for Numba only")


# by type, as a function that returns None or a tuple gives what Numba asks for None at every use


@overload(as_edge_features)
def _overload_as_edge_features(edges):  # type: ignore[no-untyped-def]
    if isinstance(edges, types.NoneType):
        return lambda edges: None
    return lambda edges: EdgeFeatures(*edges)


@overload(as_node_ids)
def _overload_as_node_ids(node_ids):  # type: ignore[no-untyped-def]
    if isinstance(node_ids, types.NoneType):
        return lambda node_ids: None
    return lambda node_ids: NodeIds(*node_ids)
