"""Compiled code is kept on disk, and is not used when any source of the kernels has changed."""

import ast
import importlib.util
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from numba.core import caching

from gatv2.numba import compile as numba_compile

SOURCE = """
from gatv2.numba.compile import kernel

@kernel
def twice(x):
    return 2 * x
"""


@pytest.fixture(autouse=True)
def _forget_what_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests can't keep is nothing to `compile_kernels`, which this process may call later."""
    monkeypatch.setattr(numba_compile, "not_kept", [])


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
    monkeypatch.setattr(numba_compile, "_DIGEST", "of other sources")
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
    monkeypatch.setattr(numba_compile, "_DIGEST", "of other sources")
    assert sum(twice_of(path).stats.cache_misses.values()) == 1


def test_without_the_private_name_nothing_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a Numba that keeps the version elsewhere, a cache would be stale and nobody would know."""
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(SOURCE)
    can_only_be_written = property(fset=lambda *_: None)
    monkeypatch.setattr(caching.IndexDataCacheFile, "_version", can_only_be_written, raising=False)
    assert twice_of(path).stats.cache_path is None
    monkeypatch.undo()
    assert twice_of(path).stats.cache_path is not None


def test_every_file_that_is_compiled_into_a_kernel_is_in_the_digest() -> None:
    """A change in it must not meet old code: files of the kernels and what they import of gatv2."""
    package = Path(numba_compile.__file__).parent.parent
    sources = set(numba_compile._sources())
    assert package / "philox.py" in sources  # its constants are compiled in
    for source in list(sources):
        for name in imported_files(source):
            assert (package.parent / name) in sources, f"{source} imports {name}"
    assert package / "options.py" not in sources


def imported_files(source: Path) -> set[str]:
    """The files of gatv2 that a file imports from."""
    modules = {
        node.module
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gatv2.")
    }
    return {module.replace(".", "/") + ".py" for module in modules}


def test_of_processes_that_need_a_kernel_at_once_one_compiles_it(tmp_path: Path) -> None:
    """As do the processes of torchrun, on a machine where nothing has been compiled yet."""
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(f"{SOURCE}\nprint(twice(3), sum(twice.stats.cache_misses.values()))")
    processes = [
        subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=100)[0].split() for process in processes]
    assert sorted(printed) == [["6", "0"], ["6", "0"], ["6", "1"]]


def test_a_process_that_never_finishes_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(SOURCE)
    locks = list(Path(twice_of(path).stats.cache_path).glob("kernel_of_a_test.twice*.lock"))
    monkeypatch.setattr(numba_compile, "_DIGEST", "of other sources")
    monkeypatch.setattr(numba_compile, "_LONGEST_COMPILATION", 0.1)
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(FileLock(lock))
        with pytest.warns(RuntimeWarning, match="can't be written"):
            assert sum(twice_of(path).stats.cache_misses.values()) == 1


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped"])
@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
def test_a_damaged_cache_is_a_miss_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, pattern: str
) -> None:
    """What a crash at the wrong moment leaves of an index or of code must not stop a call."""
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(SOURCE)
    (file,) = Path(twice_of(path).stats.cache_path).glob(f"kernel_of_a_test.twice{pattern}")
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(
        {
            "emptied": b"",
            "cut": content[:half],
            "flipped": bytes(byte ^ 255 for byte in content),
        }[damage]
    )
    monkeypatch.setattr(numba_compile, "_told_of", set())
    with pytest.warns(RuntimeWarning, match=r"can't be read .* NUMBA_CACHE_DIR") as told:
        twice_of(path)
    assert len(told) == 1


def test_code_that_cannot_be_kept_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kernel_of_a_test.py"
    path.write_text(SOURCE)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_index", full)
    monkeypatch.setattr(numba_compile, "_told_of", set())
    with pytest.warns(RuntimeWarning, match="can't be written .*No space left on device"):
        twice_of(path)
    (reason,) = numba_compile.not_kept
    assert "No space left on device" in reason


def test_code_that_is_kept_nowhere_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a read-only installation without a home, where every process compiles."""

    def nowhere(*_arguments: object) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(caching.FunctionCache, "__init__", nowhere)
    monkeypatch.setattr(numba_compile, "not_kept", [])
    for name in ("one", "two"):
        path = tmp_path / f"{name}_of_a_test.py"
        path.write_text(SOURCE)
        twice_of(path)
    (record,) = caplog.records
    assert "set NUMBA_CACHE_DIR to one that can" in record.getMessage()


def test_why_one_waits_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numba_compile, "_told_of", set())
    for name in ("one", "two"):
        path = tmp_path / f"{name}_of_a_test.py"
        path.write_text(SOURCE)
        twice_of(path)
        twice_of(path)  # which is loaded
    (record,) = caplog.records
    assert record.name == "gatv2.numba.compile"
    assert str(tmp_path) in record.getMessage()
