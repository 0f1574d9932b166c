"""A graph that is learned by gradient
===================================

A layer attends over a planted graph, whose edges are then forgotten. The same layer over all pairs,
with a `score_bias` that starts at zero, has to give the same result. Gradient descent on the bias
finds the edges::

    python examples/learned_graph.py --seed 0
"""

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot as plt
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


def draw(planted: Tensor, bias: Tensor, path: Path) -> None:
    """The planted graph beside what was learned."""
    figure, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
    weight = (bias - bias.amax(1, keepdim=True)).exp()  # of the largest in its row
    for axis, values, title in zip(
        axes, (planted, weight), ("planted", "learned, exp(bias)"), strict=True
    ):
        axis.imshow(values.float().numpy(), cmap="Blues", vmin=0, vmax=1)
        axis.set(title=title, xlabel="key", ylabel="query", xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def main() -> None:
    """Learn a graph, and draw it beside the planted one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results"), metavar="DIR")
    options = parser.parse_args()
    planted, bias = learn(options.seed)
    picture = options.output / "learned_graph.png"
    draw(planted, bias, picture)
    n_wrong = int(((bias > 0) != planted).sum())
    print(f"{int(planted.sum())} edges of {planted.numel()} pairs, {n_wrong} of them wrong")
    print(f"both are drawn in {picture}")


if __name__ == "__main__":
    main()
