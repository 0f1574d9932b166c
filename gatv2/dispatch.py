"""Which kernel does the work: an ordered tuple of kernels, each of which says why it can't."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from gatv2.dense import operator as dense_operator
from gatv2.dense import reference as dense_reference
from gatv2.graph import Graph
from gatv2.graph.adjacency import Adjacency
from gatv2.graph.edge_inputs import EdgeInputs
from gatv2.numba.support import unsupported as unsupported_by_numba
from gatv2.operator.support import unsupported as unsupported_when_fused
from gatv2.sparse import operator as sparse_operator
from gatv2.sparse import reference as sparse_reference
from gatv2.triton.support import IS_INTERPRETED, too_wide
from gatv2.triton.support import unsupported as unsupported_by_triton

T = TypeVar("T")


class Attention(Protocol):
    """The signature of every kernel; `adjacency` is a `Graph` or a mask, by the kernel's backend."""

    def __call__(  # noqa: D102
        self,
        query: Tensor,
        key: Tensor,
        attn: Tensor,
        adjacency: Any,
        /,
        *,
        negative_slope: float,
        dropout: float,
        seed: Tensor | None,
        return_attention: bool,
        edges: EdgeInputs | None = None,
        score_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Kernel:
    """A way to compute GATv2 attention.

    Attributes:
        name: what a user passes as `kernel`.
        backend: "dense" if it reads a mask, "sparse" if it reads a `Graph`.
        attention: the function that does it.
        unsupported: given query, key, attn and, if there are any, edge features, their projection
            and a bias of the scores, the reasons why it can't; empty if it can. They may depend on
            dtypes, devices, heads and numbers of features.
        bind: given a graph and all options of `attention`, and as `is_differentiated` whether autograd
            wants a gradient, an `attention` for calls of this graph that differ in the values of the
            features and the seed alone, and that no transform, mode or compiler is to see; None if that
            is no faster. Chosen once, such a kernel serves graphs of other sizes without being asked. A
            `gatv2.sparse.operator.BoundAttention` also serves features and their projections at once.

    Raises:
        ValueError: no such backend, or a name that means something else.
    """

    name: str
    backend: Literal["dense", "sparse"]
    attention: Attention
    unsupported: Callable[..., list[str]]
    bind: Callable[..., Attention] | None = None

    def __post_init__(self) -> None:
        if self.backend not in ("dense", "sparse"):
            raise ValueError(
                f"the backend of kernel {self.name!r} must be 'dense' or 'sparse'; got {self.backend!r}"
            )
        if self.name in ("", "auto"):
            raise ValueError(f"a kernel's name must not be empty or 'auto'; got {self.name!r}")


def serves_every_call(*_features: Tensor) -> list[str]:
    """No reason against any call."""
    return []


def numba_unsupported(query: Tensor, *features: Tensor) -> list[str]:
    """Reasons against the fused operators on the CPU."""
    return unsupported_by_numba(query.device.type) + unsupported_when_fused(query, *features)


def triton_unsupported(query: Tensor, *features: Tensor) -> list[str]:
    """Reasons against the fused operators on the GPU."""
    has_edge_features = len(features[2:]) > 1  # behind key and attn, with their projection
    return (
        unsupported_by_triton(query.device)
        + (too_wide(query) if has_edge_features else [])
        + unsupported_when_fused(query, *features)
    )


def _by_triton(function: Callable[..., T]) -> Callable[..., T]:
    return partial(function, is_interpreted=True) if IS_INTERPRETED else function


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "numba",
        "sparse",
        sparse_operator.gatv2_attention,
        numba_unsupported,
        sparse_operator.bind,
    ),
    Kernel(
        "triton",
        "sparse",
        _by_triton(sparse_operator.gatv2_attention),
        triton_unsupported,
        _by_triton(sparse_operator.bind),
    ),
    Kernel("torch", "sparse", sparse_reference.gatv2_attention, serves_every_call),
    Kernel("numba", "dense", dense_operator.gatv2_attention, numba_unsupported),
    Kernel("triton", "dense", _by_triton(dense_operator.gatv2_attention), triton_unsupported),
    Kernel("torch", "dense", dense_reference.gatv2_attention, serves_every_call),
)
"""In order of preference: "auto" takes the first kernel of a backend that has nothing against it."""


@dataclass(frozen=True)
class Selection:
    """A selected kernel, and for each kernel of its backend that comes before it, why it can't."""

    kernel: Kernel
    rejected: dict[str, list[str]]


def select_kernel(
    query: Tensor,
    key: Tensor,
    attn: Tensor,
    adjacency: Adjacency,
    *,
    edge_features: Tensor | None = None,
    edge_projection: Tensor | None = None,
    score_bias: Tensor | None = None,
    kernel: str = "auto",
) -> Selection:
    """Tell which kernel serves these inputs, and why not another.

    Args:
        query: `[*B, N, H, F]`.
        key: `[*B, M, H, F]`.
        attn: `[H, F]`.
        adjacency: a `Graph` for the sparse backend, a bool mask for the dense one.
        edge_features: `[*B, E, D]` (sparse) or `[*B, N, M, D]` (dense), or None.
        edge_projection: `[H, F, D]`, or None.
        score_bias: `[*B, E, 1 or H]` (sparse) or `[*B, N, M, 1 or H]` (dense), or None.
        kernel: "auto", or the name of a kernel, which is then taken or an error.

    Raises:
        ValueError: no kernel of that name, or it can't serve these inputs.

    Example:
        >>> import torch
        >>> graph = Graph.from_edge_index(torch.tensor([[0], [1]]), n_nodes=2)
        >>> query, key, attn = torch.randn(2, 4, 8), torch.randn(2, 4, 8), torch.randn(4, 8)
        >>> select_kernel(query, key, attn, graph, kernel="torch").kernel.name
        'torch'
    """
    backend = "sparse" if isinstance(adjacency, Graph) else "dense"
    candidates = [candidate for candidate in KERNELS if candidate.backend == backend]
    if kernel != "auto" and all(kernel != candidate.name for candidate in candidates):
        names = tuple(candidate.name for candidate in candidates)
        raise ValueError(
            f"`kernel` must be 'auto' or, for the {backend} backend, one of {names}; got {kernel!r}"
        )
    features = [query, key, attn]
    features += [x for x in (edge_features, edge_projection, score_bias) if x is not None]
    rejected: dict[str, list[str]] = {}
    for candidate in candidates:
        if kernel in ("auto", candidate.name):
            reasons = candidate.unsupported(*features)
            if not reasons:
                return Selection(candidate, rejected)
            rejected[candidate.name] = reasons
    raise ValueError(
        f"kernel={kernel!r} can't serve this call: {'; '.join(rejected[kernel])}. "
        "kernel='torch' serves every call, kernel='auto' picks what can"
    )
