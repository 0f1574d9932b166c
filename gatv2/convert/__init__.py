"""Layers that were trained elsewhere as ours, and ours as theirs.

| from | function | and back |
|---|---|---|
| PyTorch Geometric's `GATv2Conv` | :func:`from_pyg` | :func:`to_pyg` |
| DGL's `GATv2Conv` | :func:`from_dgl` | :func:`to_dgl` |
| the tutorial's `GraphAttentionV2Layer` | :func:`from_labml` | |
| the paper's code, `GAT2Conv` | :func:`from_official` | |

Parameters are copied. A converted layer has the source's output and gradients; where that can't be, the
converter raises an error that says why. Names on both sides, i attending to j:

| here | PyTorch Geometric, the paper's code | DGL |
|---|---|---|
| `linear_l`, of the query i | `lin_r`, of the target i | `fc_dst` |
| `linear_r`, of the key j | `lin_l`, of the source j | `fc_src` |
| `attn` `[H, F]` | `att` `[1, H, F]` | `attn` `[1, H, F]` |
| `bias` | `bias` | none |
| `linear_e` | `lin_edge` (not the paper's) | none |
| `linear_residual` | `res` (not the paper's) | `res_fc` |
"""

from gatv2.convert.dgl import from_dgl, to_dgl
from gatv2.convert.labml import from_labml
from gatv2.convert.official import from_official
from gatv2.convert.pyg import from_pyg, to_pyg

__all__ = ["from_dgl", "from_labml", "from_official", "from_pyg", "to_dgl", "to_pyg"]
