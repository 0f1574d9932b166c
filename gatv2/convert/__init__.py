"""Layers that were trained elsewhere as ours, and ours as theirs.

PyTorch Geometric's `GATv2Conv`: :func:`from_pyg`, :func:`to_pyg`. DGL's, by its state dict alone:
:func:`from_dgl`, :func:`to_dgl`. The annotated tutorial's layer: :func:`from_labml`. `GAT2Conv` of the
paper's code: :func:`from_official`.

Parameters are copied. A converted layer has the source's output and gradients; where that can't be, the
converter raises an error that says why.
"""

from gatv2.convert.dgl import from_dgl, to_dgl
from gatv2.convert.labml import from_labml
from gatv2.convert.official import from_official
from gatv2.convert.pyg import from_pyg, to_pyg

__all__ = ["from_dgl", "from_labml", "from_official", "from_pyg", "to_dgl", "to_pyg"]
