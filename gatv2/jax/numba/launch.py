"""The fused kernels on NumPy arrays, for XLA: through the operators of PyTorch."""

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ADJACENCY = {
    "sparse": (
        "query_ptr",
        "key_index",
        "key_ptr",
        "edges_by_key",
        "queries_by_key",
        "head_mask",
        "edge_id",
        "query_id",
        "key_id",
    ),
    "dense": ("mask",),
}


class of:  # noqa: N801
    """Forward and backward of a backend."""

    def __init__(self, backend: str) -> None:
        importlib.import_module(f"gatv2.{backend}.operator")  # defines the operators
        self.names = _ADJACENCY[backend]
        self._forward = getattr(torch.ops.gatv2, f"{backend}_attention")
        self._backward = getattr(torch.ops.gatv2, f"{backend}_attention_backward")

    def forward(self, query: Any, key: Any, attn: Any, arrays: Any, options: Any) -> Any:
        """(out, log-sum-exp, alpha)."""
        results = self._forward(**self._arguments(query, key, attn, arrays, options, "with_alpha"))
        return [_array(x) for x in results]

    def backward(
        self, cotangents: Any, query: Any, key: Any, attn: Any, arrays: Any, options: Any
    ) -> Any:
        """Gradients of the features."""
        arguments = self._arguments(query, key, attn, arrays, options, "with_d_edge_features")
        d_out, d_lse, d_alpha, lse = map(_tensor, cotangents)
        results = self._backward(d_out=d_out, d_lse=d_lse, d_alpha=d_alpha, lse=lse, **arguments)
        return [_array(x) for x in results]

    def _arguments(
        self, query: Any, key: Any, attn: Any, arrays: Any, options: Any, rows: str
    ) -> dict[str, Any]:
        tensors = {name: _tensor(array) for name, array in arrays.items()}
        for name in ("query_id", "key_id"):
            if name in tensors:
                tensors[name] = tensors[name].long()
        options = dict(options)
        seed, wants_rows = options.pop("seed"), options.pop("wants_rows")
        return {
            "query": _tensor(query),
            "key": _tensor(key),
            "attn": _tensor(attn),
            **{name: tensors.get(name) for name in ("edge_features", "edge_projection")},
            **{name: tensors.get(name) for name in self.names},
            "seed": None if seed is None else torch.tensor(seed),
            "n_mapped": 0,
            rows: wants_rows,
            **options,
        }


def _tensor(array: Any) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: Tensor) -> Any:
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
