"""Compiled code is kept on disk, and is not used when any source of the kernels has changed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from gatv2.numba import compile as numba_vectors

SOURCE = """
from gatv2.numba.compile import kernel

@kernel
def twice(x):
    return 2 * x
"""


def twice_of(path: Path) -> Any:
    """The kernel of a file, as a new process would get it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.twice(3) == 6
    return module.twice


def test_code_of_other_sources_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(SOURCE)
    assert sum(twice_of(path).stats.cache_misses.values()) == 1
    assert sum(twice_of(path).stats.cache_hits.values()) == 1
    monkeypatch.setattr(numba_vectors, "_DIGEST", "of other sources")
    again = twice_of(path)
    assert not again.stats.cache_hits
    assert sum(again.stats.cache_misses.values()) == 1


def test_an_index_that_cannot_be_read_any_more_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types in it may have been moved since; what is of another version must not be unpickled."""
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(SOURCE)
    index = Path(twice_of(path)._cache._cache_file._index_path)
    index.write_bytes(index.read_bytes()[:-20] + b"what no pickle is...")
    monkeypatch.setattr(numba_vectors, "_DIGEST", "of other sources")
    assert sum(twice_of(path).stats.cache_misses.values()) == 1
