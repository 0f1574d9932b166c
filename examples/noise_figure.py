"""Random edges on Cora
====================

GAT and GATv2 on Cora with random edges, as in Figure 4 of the GATv2 paper::

    python examples/noise_figure.py --root DIR

DIR is where PyTorch Geometric's `Planetoid` finds the data, or puts them if it may download. With
noise p, edges between nodes without one are added before training, p times as many as there are.
The network and its training are those of `planetoid.py`.

Every finished run is a row of the CSV. A program that was stopped goes on with the runs that are
missing.
"""

import argparse
import itertools
from functools import cache
from pathlib import Path
from statistics import mean, pstdev

import torch
from matplotlib import pyplot as plt
from planetoid import as_graph, build, load, train
from run_log import Row, by, complete
from torch_geometric.data import Data

from gatv2 import GraphAttentionLayer, GraphAttentionV2Layer
from gatv2.layer import GraphAttention

LAYERS: dict[str, type[GraphAttention]] = {
    "GAT": GraphAttentionLayer,
    "GATv2": GraphAttentionV2Layer,
}
NOISE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
COLUMNS = ("layer", "p", "seed", "test_accuracy")


def add_noise(data: Data, p: float, seed: int) -> Data:
    """The graph with p * |E| more edges, drawn from the pairs of distinct nodes without an edge."""
    n = data.num_nodes
    query, key = data.edge_index
    n_new = round(p * int((query != key).sum()))
    is_free = torch.ones(n * n, dtype=torch.bool)
    is_free[query * n + key] = False
    is_free[torch.arange(n) * (n + 1)] = False
    free = is_free.nonzero().squeeze(1)
    chosen = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed))[:n_new]
    pairs = free[chosen]
    noisy = data.clone()
    noisy.edge_index = torch.cat((data.edge_index, torch.stack((pairs // n, pairs % n))), dim=1)
    return noisy


def draw(rows: list[Row], path: Path) -> None:
    """Test accuracy over p: mean and standard deviation of the seeds."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for layer, color, marker in (("GAT", "tab:orange", "s"), ("GATv2", "tab:blue", "o")):
        groups = by((row for row in rows if row["layer"] == layer), "p", "test_accuracy")
        accuracies = [[100 * value for value in values] for values in groups.values()]
        axis.errorbar(
            list(groups),
            list(map(mean, accuracies)),
            list(map(pstdev, accuracies)),
            color=color,
            marker=marker,
            capsize=3,
            label=layer,
        )
    axis.set(xlabel="noise p (added edges, share of |E|)", ylabel="test accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Train what is missing, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of the data sets")
    parser.add_argument("--results", type=Path, default=Path("results/noise.csv"))
    parser.add_argument("--seeds", type=int, default=5, help="train for seeds 0 to SEEDS - 1")
    parser.add_argument(
        "--epochs", type=int, default=200, help="of runs that RESULTS has no row of"
    )
    options = parser.parse_args()

    cora = cache(lambda: load(options.root))

    def run(layer: str, p: float, seed: int) -> Row:
        data = add_noise(cora(), p, seed)
        torch.manual_seed(seed)
        network = build(data.num_features, int(data.y.max()) + 1, layer=LAYERS[layer])
        accuracy = train(network, data, as_graph(data), n_epochs=options.epochs)
        return {"test_accuracy": f"{accuracy:.4f}"}

    runs = [
        {"layer": layer, "p": p, "seed": seed}
        for seed, p, layer in itertools.product(range(options.seeds), NOISE, LAYERS)
    ]
    rows = complete(options.results, runs, run, COLUMNS)
    picture = options.results.with_suffix(".svg")
    draw(rows, picture)
    print(f"results: {options.results}\npicture: {picture}")


if __name__ == "__main__":
    main()
