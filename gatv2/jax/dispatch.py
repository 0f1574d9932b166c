"""Which kernel does the work: a tuple of kernels, each of which says why it can't.

"jax" is plain JAX, which serves every transformation, platform and dtype. "numba" is fused, for the CPU,
under every transformation too, and so is "pallas", over edges, for GPUs. "auto" is one primitive of JAX,
which is lowered to the fused kernel of a platform, and to plain JAX where there is none that serves the
call, when it is known for what a program is compiled.
In `jax.shard_map` each device has the kernel that it would have alone; what XLA cuts up over a mesh of
devices by itself is plain JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import jax

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.dense import reference as dense
from gatv2.jax.edge_features import EdgeInputs
from gatv2.jax.graph import Graph
from gatv2.jax.numba import kernel as numba_kernel
from gatv2.jax.primitives.attention import attend
from gatv2.jax.primitives.call import UNSUPPORTED
from gatv2.jax.sparse import pallas_kernel
from gatv2.jax.sparse import reference as sparse
from gatv2.jax.sparse.tangent import Features


class Attention(Protocol):
    """The signature of every kernel; `adjacency` is a `Graph` or a mask, by the kernel's backend.

    Returns the result, the log-sum-exp, and, if asked for, the coefficients, those of a graph in its own
    order of edges.
    """

    def __call__(  # noqa: D102
        self,
        query: jax.Array,
        key: jax.Array,
        attn: jax.Array,
        adjacency: Any,
        edges: EdgeInputs | None,
        /,
        *,
        negative_slope: float,
        dropout: float,
        seed: jax.Array | None,
        return_attention: bool,
        score_bias: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]: ...


@dataclass(frozen=True)
class Kernel:
    """A way to compute GATv2 attention.

    Attributes:
        name: what a user passes as `kernel`.
        backend: "dense" if it reads a mask, "sparse" if it reads a `Graph`.
        attention: the function that does it.
        unsupported: given what attention is differentiated by and an adjacency, the reasons why it
            can't; empty if it can.
    """

    name: str
    backend: Literal["dense", "sparse"]
    attention: Attention
    unsupported: Callable[[Features, Adjacency], list[str]]


def serves_every_call(*_inputs: object) -> list[str]:
    """No reason against any call."""
    return []


def unsupported_by_all(features: Features, adjacency: Adjacency) -> list[str]:
    """The reasons against every fused kernel; none if one of them serves the call."""
    reasons = [unsupported(features, adjacency) for unsupported in UNSUPPORTED.values()]
    return [] if [] in reasons else [reason for of_one in reasons for reason in of_one]


by_platform, by_numba, by_pallas = (
    partial(attend, kernel=name) for name in ("auto", "numba", "pallas")
)

KERNELS: tuple[Kernel, ...] = (
    Kernel("auto", "sparse", by_platform, unsupported_by_all),
    Kernel("auto", "dense", by_platform, unsupported_by_all),
    Kernel("jax", "sparse", sparse.gatv2_attention, serves_every_call),
    Kernel("jax", "dense", dense.gatv2_attention, serves_every_call),
    Kernel("numba", "sparse", by_numba, numba_kernel.unsupported),
    Kernel("numba", "dense", by_numba, numba_kernel.unsupported),
    Kernel("pallas", "sparse", by_pallas, pallas_kernel.unsupported),
)
"""For one that is not asked for by its name, the first that has no reason against a call is taken."""


def select_kernel(
    query: jax.Array,
    key: jax.Array,
    attn: jax.Array,
    adjacency: Adjacency,
    *,
    edges: EdgeInputs | None = None,
    score_bias: jax.Array | None = None,
    kernel: str = "auto",
) -> Kernel:
    """Tell which kernel serves these inputs.

    Args:
        query: `[*B, N, H, F]`.
        key: `[*B, M, H, F]`.
        attn: `[H, F]`.
        adjacency: a `Graph` for the sparse backend, a bool mask for the dense one.
        edges: edge features and their projection, or None.
        score_bias: what is added to the scores, or None.
        kernel: the name of a kernel, which is then taken or an error; "auto" for the first that can.

    Raises:
        ValueError: no kernel of that name, or it can't serve these inputs.

    Example:
        The fused kernel of the platform that a program is compiled for, and plain JAX on others:

        >>> import jax.numpy as jnp
        >>> query, attn, mask = jnp.ones((2, 4, 8)), jnp.ones((4, 8)), jnp.ones((2, 2, 1), bool)
        >>> select_kernel(query, query, attn, mask).name
        'auto'
    """
    backend = "sparse" if isinstance(adjacency, Graph) else "dense"
    candidates = {
        candidate.name: candidate for candidate in KERNELS if candidate.backend == backend
    }
    if kernel not in candidates:
        raise ValueError(
            f"`kernel` must, for the {backend} backend, be one of {tuple(candidates)}; got {kernel!r}"
        )
    selected = candidates[kernel]
    features = Features(query, key, attn, edges, score_bias)
    if reasons := selected.unsupported(features, adjacency):
        if kernel == "auto":
            return candidates["jax"]
        raise ValueError(
            f"kernel={kernel!r} can't serve this call: {'; '.join(reasons)}. "
            "kernel='jax' serves every call, and kernel='auto' takes what can"
        )
    return selected
