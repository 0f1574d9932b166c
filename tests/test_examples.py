"""The examples run: each once, with sizes as small as they allow."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
WARNINGS = (
    "error",
    # not ours: torch-sparse, which PyG imports where it is installed; its sampler; few cores
    "ignore:`torch.jit:DeprecationWarning",
    "ignore:Using 'NeighborSampler' without a 'pyg-lib'",
    "ignore:This DataLoader will create",
)


def run_example(
    name: str, *arguments: str, path: Sequence[Path] = (), exit_code: int = 0, timeout: float = 600
) -> str:
    """What an example prints, or what it says on stderr where it has to fail.

    Args:
        name: its file.
        arguments: of its command line.
        path: folders in which Python looks for modules first.
        exit_code: what it has to end with.
        timeout: seconds that it may take.
    """
    result = subprocess.run(
        [sys.executable, *(f"-W{w}" for w in WARNINGS), str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, EXAMPLES.parent)))},
    )
    assert result.returncode == exit_code, result.stderr
    return result.stderr if exit_code else result.stdout


def test_demo(tmp_path: Path) -> None:
    output = run_example(
        "demo.py",
        *("--output", str(tmp_path)),
        *("--k", "4", "--lookup-epochs", "1", "--digits-epochs", "1"),
    )
    assert "the same prediction for 1797 of 1797 images" in output
    for picture in ("dictionary_lookup.png", "digits.png"):
        assert str(tmp_path / picture) in output
        assert (tmp_path / picture).stat().st_size > 10_000


@pytest.mark.parametrize(
    "name",
    [
        "lookup.py",
        "digits.py",
        "demo.py",
        "planetoid.py",
        "neighbor_sampling.py",
        "distributed_full_graph.py",
    ],
)
def test_help(name: str) -> None:
    assert "--seed" in run_example(name, "--help")
