"""The example of sampled mini-batches trains, with data loading in forked and in spawned processes."""

import multiprocessing
import re
from pathlib import Path

import pytest
from example_runs import run_example
from planetoid_files import write_planetoid


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planetoid(tmp_path_factory.mktemp("planetoid"))


@pytest.mark.parametrize("start_method", ["fork", "spawn", None])
def test_trains(root: Path, start_method: str | None) -> None:
    typing = pytest.importorskip("torch_geometric.typing")
    if not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE):
        pytest.skip("NeighborLoader needs pyg-lib or torch-sparse")
    if start_method not in (*multiprocessing.get_all_start_methods(), None):
        pytest.skip(f"there is no {start_method} here")
    loading = (
        ("--start-method", start_method, "--workers", "2") if start_method else ("--workers", "0")
    )
    output = run_example(
        "neighbor_sampling.py", *("--root", str(root), "--epochs", "30"), *loading, timeout=120
    )
    accuracy = re.search(r"test accuracy ([\d.]+)%", output)
    difference = re.search(r"logits differ by at most (\S+)", output)
    assert accuracy is not None
    assert difference is not None
    assert float(accuracy[1]) > 80  # a third by guessing
    assert float(difference[1]) <= 1e-6


def test_says_what_to_install(root: Path, tmp_path: Path) -> None:
    for name in ("pyg_lib", "torch_sparse"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    error = run_example(
        "neighbor_sampling.py", "--root", str(root), path=[tmp_path], exit_code=1, timeout=120
    )
    assert "neither is installed" in error
    assert "pip install torch-sparse" in error
    assert "Traceback" not in error
