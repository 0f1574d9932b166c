"""The C library keeps what large arrays leave behind: the next ones need not be filled with zeros."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")

N_PAGES = 6 * 768
"""Of a step's arrays."""
PROGRAM = f"""
import resource
import sys
import numpy as np
from gatv2.numba.memory import expect_large_arrays

def step():
    return [np.ones({N_PAGES} // 6 * 4096, np.uint8) for _ in range(6)]

if sys.argv[1:]:
    expect_large_arrays()
step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def faults(*arguments: str) -> float:
    """Pages that the system gives to a step of a fresh process."""
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(found.stdout)


def test_large_arrays_are_kept() -> None:
    assert faults("expects them") < N_PAGES / 100


def test_pages_are_counted() -> None:
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge_pages.exists() and "[always]" in huge_pages.read_text():
        pytest.skip("pages are huge")
    assert faults() > N_PAGES / 2
