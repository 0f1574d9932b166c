"""JAX is imported by `gatv2.jax` and by nothing else, and where it is missing an error says so."""

import subprocess
import sys

import pytest

pytest.importorskip("jax")

LOADED = "import sys; print(*{'jax', 'numba', 'flax', 'equinox'} & sys.modules.keys())"
# None in sys.modules makes an import fail as if the package were not installed
WITHOUT_JAX = "import sys; sys.modules['jax'] = None"


def run(*lines: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )


def test_nothing_is_imported_before_it_is_needed() -> None:
    """JAX by `gatv2.jax`; Numba when a fused kernel is called; Flax and Equinox by their modules."""
    result = run("import gatv2", LOADED, "import gatv2.jax", LOADED)
    assert result.stdout.splitlines() == ["", "jax"], result.stderr


def test_the_check_sees_what_is_imported() -> None:
    """What the check must reject."""
    assert run("import gatv2, jax, numba", LOADED).stdout.split() != []


def test_missing_jax_says_what_to_install() -> None:
    result = run(WITHOUT_JAX, "import gatv2", "print('imported')", "import gatv2.jax")
    assert result.returncode == 1
    assert result.stdout == "imported\n"
    message = "ImportError: gatv2.jax needs JAX: `pip install gatv2-layers[jax]`"
    assert result.stderr.splitlines()[-1] == message
