"""Graph Attention v2 in PyTorch: dense and sparse behind one layer.

`import gatv2` loads next to nothing: each name is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gatv2.numba.support import PROCESS as _PROCESS  # noqa: F401 - noted before anything forks

if TYPE_CHECKING:
    from gatv2 import control as control
    from gatv2 import convert as convert
    from gatv2 import dictionary_lookup as dictionary_lookup
    from gatv2 import dispatch as dispatch
    from gatv2 import distributed as distributed
    from gatv2 import functional as functional
    from gatv2 import graph as graph
    from gatv2 import inference as inference
    from gatv2 import jax as jax
    from gatv2 import layer as layer
    from gatv2 import locality as locality
    from gatv2 import model as model
    from gatv2 import pyg as pyg
    from gatv2 import random as random
    from gatv2 import ranking as ranking
    from gatv2 import tensor_file as tensor_file
    from gatv2 import testing as testing
    from gatv2.control import GraphAttentionLayer
    from gatv2.dispatch import select_kernel
    from gatv2.functional import gatv2_attention
    from gatv2.graph import Graph
    from gatv2.layer import GraphAttentionV2Layer
    from gatv2.model import GATv2
    from gatv2.numba.scratch import release_scratch

__all__ = [
    "GATv2",
    "Graph",
    "GraphAttentionLayer",
    "GraphAttentionV2Layer",
    "gatv2_attention",
    "release_scratch",
    "select_kernel",
]
__version__ = "0.1.0"

_FILES = {
    "GATv2": "gatv2.model",
    "Graph": "gatv2.graph",
    "GraphAttentionLayer": "gatv2.control",
    "GraphAttentionV2Layer": "gatv2.layer",
    "gatv2_attention": "gatv2.functional",
    "release_scratch": "gatv2.numba.scratch",
    "select_kernel": "gatv2.dispatch",
}
_SUBMODULES = (
    "control",
    "convert",
    "dictionary_lookup",
    "dispatch",
    "distributed",
    "functional",
    "graph",
    "inference",
    "jax",
    "layer",
    "locality",
    "model",
    "pyg",
    "random",
    "ranking",
    "tensor_file",
    "testing",
)


if not TYPE_CHECKING:  # for a type checker, a module with this function has every name

    def __getattr__(name: str) -> object:
        if name in _SUBMODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_FILES[name]), name)
        globals()[name] = value  # the next time nothing is looked up
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
