"""The examples run: each once, with sizes as small as they allow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# those of torch-sparse, which PyG imports where it is installed, are not ours
WARNINGS = ("-W", "error", "-W", "ignore:`torch.jit:DeprecationWarning")


def run_example(name: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *WARNINGS, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


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


@pytest.mark.parametrize("name", ["lookup.py", "digits.py", "demo.py", "planetoid.py"])
def test_help(name: str) -> None:
    assert "--seed" in run_example(name, "--help")
