"""Memory of one training step of one layer, in each of some processes.

    torchrun --nproc-per-node 4 -m benchmarks.partition_step --output docs/data/partition_steps.csv

A process has its part of a power-law graph, prepared for both passes, and the features of its nodes.
Counted are the bytes by which its first step raises its memory.
"""

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measure import added_memory
from benchmarks.partition_sizes import NEAR, edge_index_of
from gatv2 import Graph, GraphAttentionV2Layer
from gatv2.distributed import Partition

IN_FEATURES, N_HEADS, N_HIDDEN = 128, 4, 8


def measure(n_nodes: int, near: float) -> dict[str, Any]:
    """This process's part of one graph, and what a step needs beside it."""
    partition = Partition.from_graph(Graph.from_edge_index(edge_index_of(n_nodes, near), n_nodes))
    _ = partition.local.by_key, partition.remote.by_key
    layer = GraphAttentionV2Layer(IN_FEATURES, N_HEADS * N_HIDDEN, N_HEADS)
    h = torch.randn(partition.n_own, IN_FEATURES)
    cotangent = torch.randn(partition.n_own, N_HEADS * N_HIDDEN)
    added = added_memory(lambda: layer(h, partition).backward(cotangent))
    return {
        "rank": partition.rank,
        "nodes": n_nodes,
        "near": near,
        "own nodes": partition.n_own,
        "own edges": partition.n_edges,
        "fetched": len(partition.halo),
        "sent": len(partition.sent),
        "bytes": round(added * 2**20),
    }


def main() -> None:
    """Measure in all processes; the first one writes."""
    parser = argparse.ArgumentParser(description="Memory of a step, in each process")
    parser.add_argument("--output", type=Path, default=Path("partition_steps.csv"))
    parser.add_argument("--nodes", type=int, default=400_000)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    measure(1000, 0.0)  # what is compiled, once, is compiled
    rows: list[Any] = [None] * dist.get_world_size()
    results = []
    for near in NEAR:
        dist.all_gather_object(rows, measure(options.nodes, near))
        results += rows
    if dist.get_rank() == 0:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(results[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(results)
    dist.barrier()
    # not destroy_process_group: holding the GIL, it can join gloo threads that wait for the GIL
    os._exit(0)


if __name__ == "__main__":
    main()
