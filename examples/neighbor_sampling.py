"""Sampled blocks
==============

Training on sampled blocks, and inference on the whole graph, layer by layer::

    python examples/neighbor_sampling.py --root DIR --workers 2 --start-method spawn

The network is that of `planetoid.py`, on Cora. A step of training sees 32 nodes and what it sampled
of their neighbourhoods, which processes of PyTorch Geometric's `NeighborLoader` prepare meanwhile.
Accuracy is that of `GATv2.inference` on the whole graph, which holds one layer's activations at a
time.
"""

import argparse
import multiprocessing
from collections.abc import Sequence

import torch
import torch_geometric.typing
from planetoid import build
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.loader import NeighborLoader
from torch_geometric.transforms import NormalizeFeatures
from tqdm import tqdm

from gatv2 import GATv2, Graph
from gatv2.options import Flow

FLOW: Flow = "source_to_target"  # PyTorch Geometric's edges go to the node that attends


def sampled_blocks(data: Data, *, workers: int, start_method: str | None) -> NeighborLoader:
    """Blocks around 32 training nodes each: at most 10 neighbours of a node, two layers deep."""
    return NeighborLoader(
        data,
        num_neighbors=[10, 10],
        input_nodes=data.train_mask,
        batch_size=32,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=start_method if workers else None,
        persistent_workers=workers > 0,
    )


def train_epoch(network: GATv2, optimizer: torch.optim.Optimizer, blocks: NeighborLoader) -> float:
    """A step for each block; returns the mean loss of the training nodes."""
    network.train()
    total, n_nodes = 0.0, 0
    for block in blocks:
        n_seeds = block.batch_size  # they come first
        logits = network(block.x, block.edge_index)[:n_seeds]
        loss = cross_entropy(logits, block.y[:n_seeds])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, n_nodes = total + float(loss.detach()) * n_seeds, n_nodes + n_seeds
    return total / n_nodes


def whole_graph(network: GATv2, data: Data, graph: Graph) -> Tensor:
    """Logits of all nodes, with all their neighbours."""
    return network.eval().inference(data.x, graph, block_size=1024)


def main(arguments: Sequence[str] | None = None) -> float:
    """Train; returns the test accuracy at the epoch of the best validation accuracy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--epochs", type=int, default=100, help="(default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes that sample (default: 2)")
    parser.add_argument(
        "--start-method",
        choices=multiprocessing.get_all_start_methods(),
        help="how they are started (default: as Python does here)",
    )
    options = parser.parse_args(arguments)
    if not (torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE):
        raise SystemExit(
            "NeighborLoader samples with pyg-lib or torch-sparse, and neither is installed: see "
            "https://pytorch-geometric.readthedocs.io for pyg-lib, or `pip install torch-sparse`"
        )

    torch.manual_seed(options.seed)
    data = Planetoid(options.root, "Cora", transform=NormalizeFeatures())[0]
    graph = Graph.from_edge_index(data.edge_index, data.num_nodes, flow=FLOW)
    n_classes = int(data.y.max()) + 1
    network = build(data.num_features, n_classes, flow=FLOW, add_self_loops=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005, weight_decay=5e-4)
    blocks = sampled_blocks(data, workers=options.workers, start_method=options.start_method)
    best, test_accuracy = (0.0, 0.0), 0.0
    progress = tqdm(range(options.epochs), unit="epoch")
    for _ in progress:
        loss = train_epoch(network, optimizer, blocks)
        logits = whole_graph(network, data, graph)
        hits = (logits.argmax(dim=1) == data.y).float()
        validation_loss = cross_entropy(logits[data.val_mask], data.y[data.val_mask])
        score = float(hits[data.val_mask].mean()), -float(validation_loss)
        if score > best:
            best, test_accuracy = score, float(hits[data.test_mask].mean())
        progress.set_postfix(loss=f"{loss:.3f}", validation=f"{score[0]:.1%}")
    with torch.no_grad():
        difference = (whole_graph(network, data, graph) - network(data.x, graph)).abs().max()
    print(f"layer by layer and all at once: logits differ by at most {difference:.1e}")
    print(f"Cora, sampled blocks, {options.epochs} epochs: test accuracy {test_accuracy:.1%}")
    return test_accuracy


if __name__ == "__main__":
    main()
