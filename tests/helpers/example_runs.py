"""An example as a person would run it: in a process of its own, with warnings as errors."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
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
