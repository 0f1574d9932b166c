"""Importing gatv2 is light: optional and heavy libraries are imported where they are used."""

import subprocess
import sys

import pytest

import gatv2

HEAVY = ("jax", "numba", "scipy", "torch_geometric", "sklearn", "matplotlib", "hypothesis")


def imported_by(code: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has imported after running `code`."""
    check = f"import sys\n{code}\nprint(*(m for m in {HEAVY} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", check], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_import_is_light() -> None:
    assert imported_by("import gatv2") == set()


def test_the_check_sees_what_is_imported() -> None:
    assert "scipy" in imported_by("import gatv2, gatv2.ranking")


def test_public_names() -> None:
    assert gatv2.__all__ == [
        "GATv2",
        "Graph",
        "GraphAttentionLayer",
        "GraphAttentionV2Layer",
        "gatv2_attention",
        "select_kernel",
    ]
    for name in gatv2.__all__:
        assert getattr(gatv2, name).__doc__


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError):
        _ = gatv2.nothing  # type: ignore[attr-defined]
