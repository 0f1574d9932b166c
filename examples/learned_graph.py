"""A graph that is learned by gradient: the bias of every pair's score, from what a layer gives.

    python examples/learned_graph.py --seed 0

A layer attends over a planted graph, whose edges are then forgotten. The same layer over all pairs, with
a `score_bias` that starts at zero, is to give the same: gradient descent on the bias finds the edges.
"""

import argparse
import csv
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from run_log import Row
from torch import Tensor

from gatv2 import GraphAttentionV2Layer

N_NODES, N_FEATURES, N_EXAMPLES = 12, 8, 32


def learn(seed: int, n_steps: int = 150) -> tuple[Tensor, Tensor]:
    """A planted graph, `[n, n]` bool, and the bias that was learned of each pair."""
    torch.manual_seed(seed)
    planted = torch.rand(N_NODES, N_NODES) < 0.2
    planted |= torch.eye(N_NODES, dtype=torch.bool).roll(1, dims=1)  # no node is without an edge
    layer = GraphAttentionV2Layer(N_FEATURES, N_FEATURES, 1, dropout=0.0)
    h = torch.randn(N_EXAMPLES, N_NODES, N_FEATURES)
    target = layer(h, planted.unsqueeze(-1)).detach()
    bias = torch.zeros(N_NODES, N_NODES, 1, requires_grad=True)
    optimizer = torch.optim.Adam([bias], lr=0.2)
    for _ in range(n_steps):
        loss = (layer(h, None, score_bias=bias) - target).square().mean()
        (bias.grad,) = torch.autograd.grad(loss, [bias])
        optimizer.step()
    return planted, bias.detach().squeeze(-1)


def draw(rows: list[Row], path: Path) -> None:
    """The planted graph beside what was learned."""
    n_nodes = max(row["query"] for row in rows) + 1
    planted, bias = (
        torch.tensor([float(row[name]) for row in rows]).view(n_nodes, n_nodes)
        for name in ("planted", "bias")
    )
    figure, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
    weight = (bias - bias.amax(1, keepdim=True)).exp()  # of the largest in its row
    for axis, values, title in zip(
        axes, (planted, weight), ("planted", "learned, exp(bias)"), strict=True
    ):
        axis.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1)
        axis.set(title=title, xlabel="key", ylabel="query", xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Learn a graph, and draw it beside the planted one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results/learned_graph.csv"))
    options = parser.parse_args()
    planted, bias = learn(options.seed)
    rows: list[Row] = [
        {"query": i, "key": j, "planted": int(planted[i, j]), "bias": round(float(bias[i, j]), 3)}
        for i in range(N_NODES)
        for j in range(N_NODES)
    ]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    picture = options.results.with_suffix(".svg")
    draw(rows, picture)
    n_wrong = int(((bias > 0) != planted).sum())
    print(f"{int(planted.sum())} edges of {planted.numel()} pairs, {n_wrong} of them wrong")
    print(f"results: {options.results}\npicture: {picture}")


if __name__ == "__main__":
    main()
