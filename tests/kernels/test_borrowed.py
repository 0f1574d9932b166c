"""Kernels borrow their arguments: nothing counts references to them, and they are the same arrays."""

import re
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numba import njit

from gatv2 import gatv2_attention
from gatv2.numba.borrowed import borrowed, keep_alive
from gatv2.numba.compile import kernel
from gatv2.sparse import numba_kernel


@njit  # type: ignore[untyped-decorator]
def _owned(value: Any) -> Any:
    return value


def n_counted(**others: Any) -> int:
    """How often the compiled forward pass counts a reference, with some of its globals replaced."""
    forward: Any = numba_kernel._forward
    query, key, attn = torch.randn(2, 2, 4), torch.randn(2, 2, 4), torch.randn(2, 4)
    gatv2_attention(query, key, attn, torch.tensor([[0, 1], [1, 0]]), kernel="numba")
    function = FunctionType(forward.py_func.__code__, {**forward.py_func.__globals__, **others})
    compiled: Any = njit(nogil=True, error_model="numpy")(
        function
    )  # one from a cache shows nothing
    (signature,) = forward.signatures[-1:]
    compiled.compile(signature)
    functions = re.findall(r"^define .*?^}", compiled.inspect_llvm(signature), re.S | re.M)
    (body,) = (text for text in functions if "_forward" in text[:200] and " i32 @" in text[:200])
    return len(re.findall(r"call .*NRT_incref", body))


def test_nothing_is_counted() -> None:
    n = n_counted()
    assert n < 10  # of all rows, not of each
    assert n_counted(borrowed=_owned) > 3 * n


def test_what_a_kernel_made_lives_until_it_is_told() -> None:
    def count(n: int) -> Any:
        own = np.arange(n)
        values, total = borrowed(own), 0
        for _ in range(1000):  # its memory would be taken, if it were free
            np.ones(n, np.int64)
            total += values.sum()
        keep_alive(own)
        return total

    compiled: Any = kernel(count)
    assert compiled(50) == 1000 * sum(range(50))


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
