"""What Pallas's kernels become on a GPU, shown by compiling ahead of time what they are lowered to.

XLA has a Triton of its own, of another version: what this one can compile, and into how many registers,
tells what to expect of that.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("triton")
jax = pytest.importorskip("jax")
jnp = jax.numpy
gat = pytest.importorskip("gatv2.jax")
import triton  # noqa: E402
from ahead_of_time import Compiled, inspected  # noqa: E402
from jaxlib.mlir import ir  # noqa: E402
from jaxlib.triton import dialect  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

N, E = 50, 300
SHARED = 99 * 1024
"""Bytes of shared memory that a program has on the GPUs that have least."""


class Case(NamedTuple):
    """Heads and features of nodes, and options."""

    n_heads: int
    n_hidden: int
    dropout: float = 0.0
    n_features: int = 0
    bias_heads: int = 0
    return_attention: bool = False


CASES = {
    Case(8, 8): (96, 128, 168),
    Case(8, 8, dropout=0.5): (128, 128, 168),
    Case(8, 8, return_attention=True): (96, 96, 168, 168),
    Case(8, 8, n_features=20, bias_heads=8): (200, 168, 168, 168, 128),
    Case(8, 64, n_features=16): (168, 208, 168, 128),
}
"""Registers of a thread, at most: forward, of coefficients, over queries, keys, and what edges have."""


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@cache
def program_of(case: Case) -> Any:
    """The program of the gradients, for CUDA."""
    rng = np.random.default_rng(0)
    graph = gat.Graph.from_edge_index(rng.integers(0, N, (2, E)), N)
    query, attn = (
        jnp.ones((N, case.n_heads, case.n_hidden)),
        jnp.ones((case.n_heads, case.n_hidden)),
    )
    edges = {}
    if case.n_features:
        edges["edge_features"] = jnp.ones((E, case.n_features))
        edges["edge_projection"] = jnp.ones((*attn.shape, case.n_features))
    if case.bias_heads:
        edges["score_bias"] = jnp.ones((E, case.bias_heads))

    def loss(query: Any, key: Any, attn: Any, edges: dict[str, Any]) -> Any:
        results = gat.gatv2_attention(
            query,
            key,
            attn,
            graph,
            dropout=case.dropout,
            seed=3,
            return_attention=case.return_attention,
            **edges,
        )
        return sum((x**2).sum() for x in jax.tree.leaves(results))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).trace(query, query, attn, edges)
    return traced.lower(lowering_platforms=("cuda",)).compiler_ir()


def kernels_in(operation: Any) -> Iterator[Any]:
    """What a program says of each of Triton's kernels."""
    for region in operation.regions:
        for block in region:
            for inner in block:
                if "__gpu$xla.gpu.triton" in str(inner.attributes.get("call_target_name")):
                    yield inner.attributes["mhlo.backend_config"]
                yield from kernels_in(inner.operation)


def compiled(
    kernel: Any, capability: int, folder: Path, n_warps: int | None = None
) -> tuple[Compiled, int]:
    """A kernel for a compute capability, and how many bytes of shared memory it has."""
    with ir.Context() as context:
        dialect.register_dialect(context)
        text = str(ir.Module.parse(kernel["ir"].value_bytes))
    path = folder / "kernel.ttir"
    path.write_text(text)
    options = {"num_warps": n_warps or kernel["num_warps"].value, "num_stages": 1}
    binary = triton.compile(str(path), target=GPUTarget("cuda", capability, 32), options=options)
    return inspected(binary), binary.metadata.shared


@pytest.mark.parametrize(
    ("case", "capability"), [*((x, 80) for x in CASES), (Case(8, 8), 90)], ids=str
)
def test_nothing_is_spilled(case: Case, capability: int, tmp_path: Path) -> None:
    """Rows are read 16 bytes at once, and shared memory is enough on any GPU."""
    kernels = list(kernels_in(program_of(case).operation))
    for kernel, limit in zip(kernels, CASES[case], strict=True):
        seen, shared = compiled(kernel, capability, tmp_path)
        assert seen.spilled == 0
        assert seen.registers <= limit
        assert seen.times("LDG.E.128") > 0
        assert shared <= SHARED


def test_what_is_spilled_is_seen(tmp_path: Path) -> None:
    """The check must reject a kernel on fewer threads than it is made for."""
    *_, kernel = kernels_in(program_of(Case(8, 64, n_features=16)).operation)
    seen, _ = compiled(kernel, 80, tmp_path, n_warps=2)
    assert seen.spilled > 0
