"""Which kernel does the work: a tuple of kernels, each of which says why it can't.

"auto" takes "jax", plain JAX operations, which serve every transformation, platform and dtype. "numba"
is asked for by name, although it is many times faster on the CPU: it has no derivative in forward mode
(`jvp`, `jacfwd`, `hessian`), and under `jit` a function does not know what will be done to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax

from gatv2.jax.adjacency import Adjacency
from gatv2.jax.dense import reference as dense
from gatv2.jax.graph import Graph
from gatv2.jax.numba import kernel as numba_kernel
from gatv2.jax.sparse import reference as sparse


class Attention(Protocol):
    """The signature of every kernel; `adjacency` is a `Graph` or a mask, by the kernel's backend."""

    def __call__(  # noqa: D102
        self,
        query: jax.Array,
        key: jax.Array,
        attn: jax.Array,
        adjacency: Any,
        /,
        *,
        negative_slope: float,
        dropout: float,
        seed: jax.Array | None,
        return_attention: bool,
    ) -> tuple[jax.Array, jax.Array | None]: ...


@dataclass(frozen=True)
class Kernel:
    """A way to compute GATv2 attention.

    Attributes:
        name: what a user passes as `kernel`.
        backend: "dense" if it reads a mask, "sparse" if it reads a `Graph`.
        attention: the function that does it.
        unsupported: given query, key, attn and adjacency, the reasons why it can't; empty if it can.
    """

    name: str
    backend: Literal["dense", "sparse"]
    attention: Attention
    unsupported: Callable[[jax.Array, jax.Array, jax.Array, Any], list[str]]


KERNELS: tuple[Kernel, ...] = (
    Kernel("jax", "sparse", sparse.gatv2_attention, lambda *_: []),
    Kernel("jax", "dense", dense.gatv2_attention, lambda *_: []),
    Kernel("numba", "sparse", numba_kernel.gatv2_attention, numba_kernel.unsupported),
    Kernel("numba", "dense", numba_kernel.gatv2_attention, numba_kernel.unsupported),
)


def select_kernel(
    query: jax.Array, key: jax.Array, attn: jax.Array, adjacency: Adjacency, *, kernel: str = "auto"
) -> Kernel:
    """Tell which kernel serves these inputs.

    Args:
        query: `[*B, N, H, F]`.
        key: `[*B, M, H, F]`.
        attn: `[H, F]`.
        adjacency: a `Graph` for the sparse backend, a bool mask for the dense one.
        kernel: the name of a kernel, which is then taken or an error; "auto" for "jax".

    Raises:
        ValueError: no kernel of that name, or it can't serve these inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> query, attn, mask = jnp.ones((2, 4, 8)), jnp.ones((4, 8)), jnp.ones((2, 2, 1), bool)
        >>> select_kernel(query, query, attn, mask).name
        'jax'
    """
    backend = "sparse" if isinstance(adjacency, Graph) else "dense"
    candidates = {
        candidate.name: candidate for candidate in KERNELS if candidate.backend == backend
    }
    if kernel != "auto" and kernel not in candidates:
        raise ValueError(
            f"`kernel` must be 'auto' or, for the {backend} backend, one of {tuple(candidates)}; "
            f"got {kernel!r}"
        )
    selected = candidates["jax" if kernel == "auto" else kernel]
    if reasons := selected.unsupported(query, key, attn, adjacency):
        raise ValueError(
            f"kernel={kernel!r} can't serve this call: {'; '.join(reasons)}. "
            "kernel='jax' serves every call"
        )
    return selected
