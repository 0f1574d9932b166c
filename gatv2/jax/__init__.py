"""Graph Attention v2 in JAX: the functions of the PyTorch side, under the same names.

Everything here is a pure function of arrays and works under `jit`, `grad`, `vmap`, `jvp`, `jacrev`,
`hessian` and `checkpoint`. The options of a layer are a frozen :class:`gatv2.jax.Config`, its parameters
a plain dict with the names of the PyTorch layer's state dict, and a graph is prepared once as a
:class:`gatv2.jax.Graph`, which is a pytree:

    >>> import jax
    >>> import gatv2.jax as gat
    >>> config = gat.Config(in_features=16, out_features=8, n_heads=2, dropout=0.0)
    >>> params = gat.init(jax.random.key(0), config)
    >>> graph = gat.Graph.from_edge_index(jax.numpy.array([[0, 0, 3], [1, 2, 3]]), n_nodes=4)
    >>> jax.jit(gat.apply, static_argnums=0)(config, params, jax.numpy.ones((4, 16)), graph).shape
    (4, 8)

Modules for Flax and Equinox over the same functions are in `gatv2.jax.nnx` and `gatv2.jax.equinox`.
Nothing here imports PyTorch, but for what is called to carry something to it or from it.
"""

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise ImportError("gatv2.jax needs JAX: `pip install gatv2-layers[jax]`") from error

from gatv2.jax.dispatch import select_kernel
from gatv2.jax.functional import gat_attention, gat_scores, gatv2_attention, gatv2_scores
from gatv2.jax.graph import Graph
from gatv2.jax.interop import Params, as_jax, as_torch, from_torch, to_torch
from gatv2.jax.join import join_parts
from gatv2.jax.layer import Config, StaticConfig, apply, attention_scores, init
from gatv2.jax.model import GATv2
from gatv2.jax.numba.targets import register_kernels
from gatv2.jax.random import seed_from_key
from gatv2.jax.self_loops import add_self_loops

__all__ = [
    "Config",
    "GATv2",
    "Graph",
    "Params",
    "StaticConfig",
    "add_self_loops",
    "apply",
    "as_jax",
    "as_torch",
    "attention_scores",
    "from_torch",
    "gat_attention",
    "gat_scores",
    "gatv2_attention",
    "gatv2_scores",
    "init",
    "join_parts",
    "register_kernels",
    "seed_from_key",
    "select_kernel",
    "to_torch",
]
