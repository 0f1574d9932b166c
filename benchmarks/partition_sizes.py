"""What the parts of a power-law graph hold and exchange, as the graph grows.

    python -m benchmarks.partition_sizes --output docs/data/partitions.csv

Each graph has as many edges a node as ogbn-papers100M, is split into eight parts, and is counted: the
largest number of a part's own nodes, edges, nodes fetched and sent, and bytes of its tensors, those of
the backward pass included. Nothing runs on them, and no process but this one is needed.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.cases import Case
from gatv2 import Graph
from gatv2.distributed import Partition

EDGES_PER_NODE = 1_615_685_872 / 111_059_956  # ogbn-papers100M
SIZES = (10_000, 100_000, 1_000_000, 3_000_000)
NEAR = (0.0, 0.9)
N_PARTS = 8


def edge_index_of(n_nodes: int, near: float) -> Tensor:
    """Edges between nodes drawn with weight rank**-0.5, numbered at random.

    Args:
        n_nodes: number of nodes.
        near: share of the edges whose key is instead one of the 1 % of nodes with the nearest numbers,
            as in a graph whose nodes are numbered by community.
    """
    n_edges = round(EDGES_PER_NODE * n_nodes)
    edge_index = Case("", n_nodes, n_edges, in_features=1, exponent=0.5).edge_index
    generator = torch.Generator().manual_seed(1)
    is_near = torch.rand(n_edges, generator=generator) < near
    width = n_nodes // 200
    away = torch.randint(-width, width + 1, (n_edges,), generator=generator)
    query, key = edge_index
    return torch.stack((query, torch.where(is_near, (query + away) % n_nodes, key)))


def tensors_of(partition: Partition) -> Iterator[Tensor]:
    """All tensors of a part, those of the backward pass too."""
    for holder in (partition, partition.local, partition.remote):
        yield from (
            value
            for field in fields(holder)
            if isinstance(value := getattr(holder, field.name), Tensor)
        )
    for graph in (partition.local, partition.remote):
        yield from graph.by_key


def n_bytes(partition: Partition) -> int:
    """Memory of a part; what stands in two places is counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors_of(partition)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def measure(n_nodes: int, near: float) -> dict[str, Any]:
    """The largest of the parts of one graph, in every respect."""
    graph = Graph.from_edge_index(edge_index_of(n_nodes, near), n_nodes)
    parts = Partition.split(graph, N_PARTS)
    return {
        "nodes": n_nodes,
        "edges": graph.n_edges,
        "near": near,
        "largest degree": int(graph.query_ptr.diff().max()),
        "own nodes": max(part.n_own for part in parts),
        "own edges": max(part.n_edges for part in parts),
        "local edges": max(part.local.n_edges for part in parts),
        "fetched": max(len(part.halo) for part in parts),
        "sent": max(len(part.sent) for part in parts),
        "bytes": max(n_bytes(part) for part in parts),
    }


def main() -> None:
    """Measure all sizes and write them to a CSV."""
    parser = argparse.ArgumentParser(description="Parts of growing graphs")
    parser.add_argument("--output", type=Path, default=Path("partitions.csv"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    runs = [(n_nodes, near) for n_nodes in options.sizes for near in NEAR]
    rows = [measure(*run) for run in tqdm(runs, unit="graph")]
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
