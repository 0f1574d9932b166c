"""JAX is imported by `gatv2.jax` and by nothing else, PyTorch never, and what is missing is said."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

HEAVY = {"torch", "jax", "numba", "scipy.sparse", "flax", "equinox"}
LOADED = f"import sys; print(*sorted({HEAVY} & sys.modules.keys()))"
# None in sys.modules makes an import fail as if the package were not installed
WITHOUT_JAX = "import sys; sys.modules['jax'] = None"
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None"
ATTEND = """
import jax, numpy as np, jax.numpy as jnp
import gatv2.jax as gat
edges, mask, h = np.array([[0, 1], [1, 2]]), np.eye(3, dtype=bool), jnp.ones((3, 3))
for kernel in ("auto", "jax"):
    config = gat.Config(3, 4, 2, kernel=kernel)
    params = config.init(jax.random.key(0))
    for adj_mat in (gat.Graph.from_edge_index(edges, 3), mask):
        jax.jit(jax.grad(lambda params: config.apply(params, h, adj_mat, seed=3).sum()))(params)
print("attended")
"""


def run(*lines: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )


def test_nothing_is_imported_before_it_is_needed() -> None:
    """JAX by `gatv2.jax`; Numba when a fused kernel is called; Flax and Equinox by their modules."""
    result = run("import gatv2", LOADED, "import gatv2.jax", LOADED)
    loaded = [set(line.split()) for line in result.stdout.splitlines()]
    assert loaded[0] & {"jax", "numba", "flax", "equinox"} == set(), result.stderr
    result = run("import gatv2.jax", LOADED)
    assert set(result.stdout.split()) - {"scipy.sparse"} == {"jax"}, result.stderr


def test_both_kernels_attend_without_pytorch() -> None:
    """Graphs, masks, layers and gradients, in a process in which PyTorch can't be imported."""
    result = run(WITHOUT_TORCH, ATTEND)
    assert result.stdout == "attended\n", result.stderr


def test_without_a_numba_that_works_plain_jax_attends(tmp_path: Path) -> None:
    """One that is switched off, or does not go with another package, is seen when it is imported."""
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs another NumPy')")
    switched_off = "import os; os.environ['NUMBA_DISABLE_JIT'] = '1'"
    broken = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    for without, reason in {
        switched_off: "NUMBA_DISABLE_JIT is set",
        broken: "Numba needs another NumPy",
    }.items():
        result = run(without, ATTEND)
        assert result.stdout == "attended\n", result.stderr
        result = run(without, ATTEND.replace('"auto", "jax"', '"numba",'))
        assert (
            f"ValueError: kernel='numba' can't run, as Numba can't be used: {reason}"
            in result.stderr
        )


def test_the_check_sees_what_is_imported() -> None:
    """What the checks must reject."""
    assert run("import gatv2, jax, numba, torch", LOADED).stdout.split() == [
        "jax",
        "numba",
        "torch",
    ]
    result = run(WITHOUT_TORCH, "import gatv2.jax", "import gatv2.graph")
    assert result.returncode == 1
    assert "torch" in result.stderr.splitlines()[-1]


def test_missing_jax_says_what_to_install() -> None:
    result = run(WITHOUT_JAX, "import gatv2", "print('imported')", "import gatv2.jax")
    assert result.returncode == 1
    assert result.stdout == "imported\n"
    message = "ImportError: gatv2.jax needs JAX: `pip install gatv2-layers[jax]`"
    assert result.stderr.splitlines()[-1] == message
