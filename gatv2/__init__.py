"""Graph Attention v2 in PyTorch: dense and sparse behind one layer.

Names come when they are asked for, so that `import gatv2.jax` does not import PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatv2.control import GraphAttentionLayer
    from gatv2.dispatch import select_kernel
    from gatv2.functional import gatv2_attention
    from gatv2.graph import Graph
    from gatv2.layer import GraphAttentionV2Layer
    from gatv2.model import GATv2

__all__ = [
    "GATv2",
    "Graph",
    "GraphAttentionLayer",
    "GraphAttentionV2Layer",
    "gatv2_attention",
    "select_kernel",
]
__version__ = "0.1.0"

_HOMES = {
    "GATv2": "model",
    "Graph": "graph",
    "GraphAttentionLayer": "control",
    "GraphAttentionV2Layer": "layer",
    "gatv2_attention": "functional",
    "select_kernel": "dispatch",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"gatv2.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"gatv2.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"gatv2.{name}":
                raise
    raise AttributeError(f"module 'gatv2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
