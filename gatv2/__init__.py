"""Graph Attention v2 in PyTorch: dense and sparse behind one layer."""

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
