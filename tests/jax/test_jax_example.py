"""The example: from the same parameters, PyTorch and JAX train alike."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("matplotlib").use("Agg")

EXAMPLE = Path(__file__).parents[2] / "examples" / "jax_dictionary_lookup.py"


def test_both_train_alike(tmp_path: Path) -> None:
    single, double = runpy.run_path(str(EXAMPLE))["run"](tmp_path, k=4, n_steps=20)
    assert single.precision == "float32"
    assert single.difference.max() < 1e-4
    assert double.difference.max() < 1e-12
    assert double.in_jax[-1] < 0.9 * double.in_jax[0]
    assert (tmp_path / "jax_dictionary_lookup.png").stat().st_size > 10_000
