"""Kernels borrow their arguments: nothing counts references to them, and they are the same arrays."""

import re
from typing import Any

import numpy as np
import pytest

from gatv2.numba.arguments import Buffers
from gatv2.numba.borrowed import borrowed, keep_alive
from gatv2.numba.compile import inline, kernel


@inline
def _add_row(buffers: Buffers, row: int) -> None:
    buffers.scores[row] += buffers.d_scores[row]


def _add(given: Any) -> Any:
    own = np.ones(4)
    buffers = Buffers(borrowed(own), *borrowed(given))
    for row in range(own.size):
        _add_row(buffers, row)
    keep_alive(own)
    return own.sum()


def _add_counted(given: Any) -> Any:
    own = np.ones(4)
    buffers = Buffers(own, *given)
    for row in range(own.size):
        _add_row(buffers, row)
    return own.sum()


def n_counted(compiled: Any) -> int:
    """How often a compiled kernel counts a reference, outside of what unpacks its arguments."""
    (signature,) = compiled.signatures
    functions = re.findall(r"^define [^{]*\{.*?^\}", compiled.inspect_llvm(signature), re.S | re.M)
    kernel_itself = [text for text in functions if "cpython" not in text.split("(")[0]]
    return sum(len(re.findall(r"call .*NRT_incref", text)) for text in kernel_itself)


@pytest.mark.parametrize(("function", "is_counted"), [(_add, False), (_add_counted, True)])
def test_nothing_is_counted(function: Any, is_counted: bool) -> None:
    compiled: Any = kernel(function)
    given = np.arange(4.0), np.zeros(4), np.zeros(4, np.uint32)
    assert compiled(given) == 10
    assert (n_counted(compiled) > 0) == is_counted


def test_a_kernel_writes_to_what_it_borrows() -> None:
    def double(arrays: Any, array: Any, nothing: Any) -> Any:
        first, _ = borrowed(arrays)
        second, third = borrowed(array), borrowed(nothing)
        first[:] = 2 * second
        return third is None

    compiled: Any = kernel(double)
    written, read = np.zeros(3), np.arange(3.0)
    assert compiled((written, 7), read, None)
    assert written.tolist() == [0, 2, 4]
