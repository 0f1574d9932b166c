"""Compile the CPU's kernels ahead of their first call: for containers and read-only installations."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gatv2.functional import KernelOptions, gatv2_attention
from gatv2.graph import Graph
from gatv2.graph.graph import graph_for_gradients
from gatv2.numba.support import import_failure
from gatv2.operator.products import project
from gatv2.options import check_sizes

BACKENDS = ("sparse", "dense")
_MOST_HEADS, _MOST_HIDDEN = 16, 128

Shape = tuple[int, int]
"""Heads, and features of a head."""


def shapes_to_compile(dtype: torch.dtype) -> list[Shape]:
    """One shape of each kind: those of a kind are computed by the same code.

    Example:
        >>> len(shapes_to_compile(torch.float32))
        12
    """
    from gatv2.numba.tiles import tiles_of

    of_kind: dict[object, Shape] = {}
    for n_heads in range(1, _MOST_HEADS + 1):
        for n_hidden in range(1, _MOST_HIDDEN + 1):
            tiles = tiles_of(n_heads, n_hidden, dtype == torch.float64)
            of_kind.setdefault((tiles.group, tiles.lanes), (n_heads, n_hidden))
    return list(of_kind.values())


def compile_kernels(
    shapes: Sequence[Shape] = (),
    *,
    dtype: torch.dtype = torch.float32,
    backends: Sequence[str] = BACKENDS,
    has_edge_features: bool = False,
) -> Iterator[tuple[Shape, str]]:
    """Compile forward and backward, and say what is done when it is.

    Each is compiled when a loop over the result asks for it. What has been compiled is kept on disk, in
    `NUMBA_CACHE_DIR`, or in the directory of the sources, or in the user's cache directory; what is
    there already is only loaded. Calls with a `score_bias`, a mask of each head, sparse features, a part
    of a graph or an int32 edge index need some code of their own, which the first of them compiles.

    Args:
        shapes: (heads, features of a head); by default one of each kind, so that all are served.
        dtype: what is computed in, float32 or float64; half precision is computed in float32.
        backends: "sparse", "dense", or both.
        has_edge_features: whether to compile the kernels for edge features, and not those without.

    Raises:
        RuntimeError: Numba can't be imported, or what it compiles can't be kept.
        TypeError: a size is not an int.
        ValueError: a size is not positive, or there is no such backend.

    Example:
        >>> for done in compile_kernels([(8, 8)], backends=["sparse"]):
        ...     print(done)
        ((8, 8), 'sparse')
    """
    for n_heads, n_hidden in shapes:
        check_sizes(n_heads=n_heads, n_hidden=n_hidden)
    if isinstance(backends, str) or not set(backends) <= set(BACKENDS):
        raise ValueError(f"`backends` must be a list of some of {BACKENDS}; got {backends!r}")
    if failure := import_failure():
        raise RuntimeError(f"there are no kernels to compile: {failure}")
    from gatv2.numba.compile import not_kept

    mask = torch.eye(2, dtype=torch.bool).unsqueeze(-1)
    graphs = {"sparse": torch.tensor([[0, 1], [0, 1]]), "dense": mask}
    graph = Graph.from_edge_index(graphs["sparse"], 2)
    _ = graph.by_key, graph.self_loops, Graph.batch([graph])
    _compile_for_many_edges()
    _compile_products(dtype)

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=dtype, requires_grad=True)

    for n_heads, n_hidden in shapes or shapes_to_compile(dtype):
        heads = (n_heads, n_hidden)
        for backend in backends:
            options: KernelOptions = {"kernel": "numba"}
            if has_edge_features:
                options["edge_features"] = ones(*((2,) if backend == "sparse" else (2, 2)), 1)
                options["edge_projection"] = ones(*heads, 1)
            query, key, attn = ones(2, *heads), ones(2, *heads), ones(*heads)
            out = gatv2_attention(query, key, attn, graphs[backend], **options)
            out.backward(torch.ones_like(out))
            if not_kept:
                raise RuntimeError(f"compiled kernels are not kept: {not_kept[0]}")
            yield heads, backend


def _compile_for_many_edges() -> None:
    """Compile what sorts many edges, and what cuts them into parts, by giving it some."""
    from gatv2.numba.counting_sort import LARGE
    from gatv2.numba.parts import cut

    edge_index = torch.zeros(2, LARGE, dtype=torch.int64)
    graph = graph_for_gradients(edge_index, 1, 1, "target_to_source")
    key_order = tuple(x.numpy() for x in graph.by_key)
    cut(2, 2, graph.query_ptr.numpy(), key_order, torch.get_num_threads())


def _compile_products(dtype: torch.dtype) -> None:
    """Compile the products of projections, if they are not PyTorch's, for panels of each width."""
    for n_outputs in (16, 32, 64):
        project(torch.zeros(1 << 16, 1, dtype=dtype), torch.zeros(n_outputs, 1, dtype=dtype), None)
