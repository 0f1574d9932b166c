"""Kernels count no references: it would take longer than a short row, and threads would wait."""

from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numba import njit, typeof

from gatv2 import gatv2_attention
from gatv2.numba import gradients
from gatv2.numba.compile import _not_cached
from gatv2.sparse import numba_kernel

_as_kernels_are = partial(_not_cached, nogil=True)


def counts_references(function: Any, signature: Any, decorator: Any = _as_kernels_are) -> bool:
    """Whether the compiled function counts any."""
    fresh = FunctionType(function.__code__, function.__globals__)
    compiled: Any = decorator(fresh)
    compiled.compile(signature)
    return "NRT_" in compiled.inspect_llvm(signature)


def test_none_is_counted() -> None:
    query, key, attn = (
        torch.randn(shape, requires_grad=True) for shape in ((2, 2, 4), (2, 2, 4), (2, 4))
    )
    out = gatv2_attention(query, key, attn, torch.tensor([[0, 1], [1, 0]]), kernel="numba")
    out.backward(torch.randn_like(out))
    for function in (
        numba_kernel._forward,
        gradients._backward_queries,
        gradients._backward_keys,
    ):
        dispatcher: Any = function
        assert not counts_references(dispatcher.py_func, dispatcher.signatures[-1])


def test_numba_counts_them_where_it_may() -> None:
    def pair(array: Any) -> Any:
        return array, array

    assert counts_references(pair, (typeof(np.zeros(1)),), njit)
