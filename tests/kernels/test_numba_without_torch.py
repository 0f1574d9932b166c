"""The kernels of Numba stand on arrays: no file of theirs loads PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest

import gatv2

PACKAGE = Path(gatv2.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for pattern in ("numba/*.py", "dense/numba_*.py", "sparse/numba_*.py")
    for path in PACKAGE.glob(pattern)
)
# without what `import gatv2` itself loads
LOADS = """
import sys, types
package = types.ModuleType("gatv2")
package.__path__ = [{path!r}]
sys.modules["gatv2"] = package
import {module}
print("torch" in sys.modules)
"""


def loads_torch(module: str) -> bool:
    """Whether a module of ours loads PyTorch, in a fresh interpreter."""
    code = LOADS.format(path=str(PACKAGE), module=module)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout == "True\n"


def test_no_module_of_the_kernels_loads_torch() -> None:
    assert "gatv2.numba.gradients" in MODULES
    assert "gatv2.dense.numba_mask" in MODULES
    assert not loads_torch(", ".join(MODULES))


@pytest.mark.parametrize("module", ["gatv2.random", "gatv2.operator.on_arrays"])
def test_a_module_of_tensors_does(module: str) -> None:
    assert loads_torch(module)
